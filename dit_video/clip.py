"""What to make, and how to denoise it: plain values, known before anything heavy is imported."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dit_video.errors import UsageError
from dit_video.models.wan.defaults import PRESETS, Defaults
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
    level that is guided. fast: steps are skipped, see `flow.caching`. strength: from 0 to 1, the share of the steps
    that is taken where clips have a start; above 0 it is one step at least.
    """

    steps: int
    solver: str = "unipc"
    sigmas: str = "release"
    shift: float = 1.0
    guidance: tuple[float, ...] = (1.0,)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    fast: bool = False
    strength: float = 1.0

    @property
    def first_step(self) -> int:
        """The step that denoising begins with, as in SDEdit (arXiv 2108.01073) and diffusers' Wan video-to-video."""
        taken = min(int(self.steps * self.strength), self.steps)
        return self.steps - (max(1, taken) if self.strength > 0 else 0)


def settings_of(
    defaults: Defaults,
    *,
    experts: bool,
    preset: str | None = None,
    steps: int | None = None,
    solver: str | None = None,
    sigmas: str | None = None,
    shift: float | None = None,
    guidance: tuple[float, ...] | None = None,
    guidance_interval: tuple[float, float] | None = None,
    fast: bool = False,
    strength: float = 1.0,
) -> Settings:
    """What was asked for, the preset's settings for what was not, and the model's for the rest.

    experts: it has two transformers.

    Raises:
        UsageError: two guidance scales, and one transformer.
    """
    if guidance and len(guidance) > 1 and not experts:
        refuse_two_scales(guidance)
    if preset is not None:
        defaults = PRESETS[preset].over(defaults, experts=experts)
    return Settings(
        steps=steps or defaults.steps,
        solver=solver or defaults.solver,
        sigmas=sigmas or defaults.sigmas,
        shift=shift or defaults.shift,
        guidance=guidance or defaults.guidance,
        guidance_interval=guidance_interval or (0.0, 1.0),
        fast=fast,
        strength=strength,
    )


def refuse_two_scales(guidance: tuple[float, ...]) -> None:
    """Raises UsageError: a model with one transformer takes one scale."""
    text = ",".join(f"{scale:g}" for scale in guidance)
    raise UsageError(
        f"--guidance {text}: this model has one transformer and takes one scale; the nearest is {guidance[0]:g}."
    )


def prompts_of(clip: Clip, settings: Settings) -> list[str]:
    """What is read for a clip: the negative prompt only where there is guidance."""
    return [clip.prompt, clip.negative] if max(settings.guidance) > 1 else [clip.prompt]
