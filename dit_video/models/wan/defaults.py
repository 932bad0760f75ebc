"""The settings that a model is best sampled with; known before torch is imported.

Sources: Wan-Video/Wan2.1 and Wan2.2, wan/configs/*.py; 1.3B's shift and guidance from its README.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What to sample with where the user says nothing.

    guidance: one scale, or those of the high-noise and the low-noise expert. sigmas: "release" or "diffusers". window:
    the longest clip that it makes well, in frames, where that is not `frames`.
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
    window: int | None = None


RELEASES = {
    "T2V-1.3B": Defaults(shift=8.0, guidance=(6.0,)),
    "T2V-14B": Defaults(width=1280, height=720),
    "T2V-A14B": Defaults(width=1280, height=720, steps=40, guidance=(4.0, 3.0), shift=12.0),
    "TI2V-5B": Defaults(width=1280, height=704, frames=121, fps=24),
}
"""By the names of `variants.VARIANTS`."""

TINY_DEFAULTS = Defaults(width=128, height=72, frames=9, fps=8, steps=4)
