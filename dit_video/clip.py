"""What to make, and how to denoise it: plain values, known before anything heavy is imported."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_video.shapes import VideoShape

if TYPE_CHECKING:
    from torch import Tensor

    from dit_video.known import Known


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video to make: what it shows, what it must not, its size, and the seed of its noise.

    known: what is given of it. start: normalised latents (C, T, H, W) on the CPU that denoising
    begins with, at the level of `Settings.strength`; without them it begins with noise.
    """

    prompt: str
    negative: str = ""
    shape: VideoShape
    seed: int
    known: "Known | None" = None
    start: "Tensor | None" = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to denoise.

    solver: a key of `flow.solvers.SOLVERS`. sigmas: "release" or "diffusers". shift: above 0. guidance: one scale, or
    those of the high-noise and of the low-noise expert; 1 is none. guidance_interval: the lowest and the highest noise
    level that is guided. strength: from 0 to 1, the share of the steps that is taken where clips have a start; above 0
    it is one step at least.
    """

    steps: int
    solver: str = "unipc"
    sigmas: str = "release"
    shift: float = 1.0
    guidance: tuple[float, ...] = (1.0,)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    strength: float = 1.0

    @property
    def first_step(self) -> int:
        """The step that denoising begins with, as in SDEdit (arXiv 2108.01073) and diffusers' Wan video-to-video."""
        taken = min(int(self.steps * self.strength), self.steps)
        return self.steps - (max(1, taken) if self.strength > 0 else 0)


def prompts_of(clip: Clip, settings: Settings) -> list[str]:
    """What is read for a clip: the negative prompt only where there is guidance."""
    return [clip.prompt, clip.negative] if max(settings.guidance) > 1 else [clip.prompt]
