"""The settings that a model is best sampled with."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What to sample with where the user says nothing.

    guidance: one scale, or those of the high-noise and the low-noise expert. sigmas: "release" or "diffusers".
    """

    width: int = 832
    height: int = 480
    frames: int = 81
    fps: float = 16
    steps: int = 50
    guidance: tuple[float, ...] = (5.0,)
    negative: str = ""
    shift: float = 5.0
    solver: str = "unipc"
    sigmas: str = "release"
