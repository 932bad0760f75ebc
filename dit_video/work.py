"""The arithmetic of a run, told by configs and sizes: how often the transformer runs, and what a stage computes."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from dit_video.flow.caching import LEAST_STEPS, SOLVERS, computed_steps
from dit_video.flow.guidance import needs_guidance
from dit_video.flow.ramps import NUM_TRAIN_TIMESTEPS, float32, ramp_of, timesteps_of
from dit_video.shapes import VideoShape

if TYPE_CHECKING:
    from dit_video.clip import Settings
    from dit_video.models.wan.configs import DiTConfig, VAEConfig

TAPS = 27  # of a convolution over 3 frames, rows and columns


@dataclass(frozen=True)
class Passes:
    """How often a clip goes through each transformer, with and without its prompt, and what is encoded of prompts.

    by_part: "transformer", or also "transformer_2", in the order in which they are used.
    """

    by_part: dict[str, int]

    @property
    def count(self) -> int:
        """All of them."""
        return sum(self.by_part.values())


@dataclass(frozen=True)
class Step:
    """What a step of denoising takes.

    part: the transformer of its level. guided: with the pass without the prompt. computed: not skipped, see
    `flow.caching`.
    """

    part: str
    guided: bool
    computed: bool = True


def steps_of(settings: "Settings", boundary: float | None) -> list[Step]:
    """The steps that denoising with these settings takes.

    boundary: the noise level from which up the first of two experts denoises; None for one transformer.

    Raises:
        UsageError: settings that give no levels, see `ramp_of`.
    """
    ramp = ramp_of(settings.steps, shift=settings.shift, convention=settings.sigmas, solver=settings.solver)
    every = []
    for sigma, time in zip(ramp, timesteps_of(ramp, settings.solver), strict=True):
        low = boundary is not None and time < boundary * NUM_TRAIN_TIMESTEPS
        guided = needs_guidance(float32(sigma), settings.guidance[-1 if low else 0], settings.guidance_interval)
        every.append(Step("transformer_2" if low else "transformer", guided))
    first = settings.first_step
    if not settings.fast:
        return every[first:]
    computed = computed_steps(every, first, settings.solver)
    return [replace(step, computed=is_computed) for step, is_computed in zip(every[first:], computed, strict=True)]


def why_not_fast(settings: "Settings", boundary: float | None) -> str:
    """Why no step is skipped though it was asked for, in a sentence; "" where some are, or it was not."""
    if not settings.fast or not all(step.computed for step in steps_of(settings, boundary)):
        return ""
    if settings.solver not in SOLVERS:
        return f"--fast skips nothing: not with the solver {settings.solver}, only with {', '.join(SOLVERS)}."
    if settings.steps < LEAST_STEPS:
        return f"--fast skips nothing: {settings.steps} steps are too few; it begins at {LEAST_STEPS}."
    return "--fast skips nothing: of the few steps that are taken all are needed."


def passes_of(settings: "Settings", boundary: float | None) -> Passes:
    """What denoising with these settings takes, counted level by level.

    boundary: see `steps_of`.

    Raises:
        UsageError: settings that give no levels, see `ramp_of`.
    """
    found: dict[str, int] = {}
    for number, step in enumerate(steps_of(settings, boundary)):
        # Heun's method also evaluates the level that a step leads to, but for 0.
        count = 2 if settings.solver == "heun" and number > 0 else 1
        if step.computed:
            found[step.part] = found.get(step.part, 0) + count * (2 if step.guided else 1)
    return Passes(found)


def forward_flops(dit: "DiTConfig", tokens: int) -> float:
    """Of one clip once through the transformer: the products with its weights, and those of attention."""
    block = 2 * tokens * (6 * dit.dim**2 + 2 * dit.dim * dit.ffn_dim) + 4 * tokens**2 * dit.dim
    return float(dit.num_layers * block)


def decode_flops(vae: "VAEConfig", padded: VideoShape) -> float:
    """Of decoding a clip on the grid: its convolutions, level by level."""
    dims = [vae.decoder_dim * mult for mult in (vae.dim_mult[-1], *reversed(vae.dim_mult))]
    return _level_flops(vae, padded, dims, vae.num_res_blocks + 1, growing=True)


def encode_flops(vae: "VAEConfig", padded: VideoShape) -> float:
    """Of encoding a clip on the grid."""
    dims = [vae.dim * mult for mult in (1, *vae.dim_mult)]
    return _level_flops(vae, padded, dims, vae.num_res_blocks, growing=False)


def _level_flops(vae: "VAEConfig", padded: VideoShape, dims: list[int], blocks: int, *, growing: bool) -> float:
    """dims: channels before each level, and after the last. blocks: of a level, of two convolutions each."""
    levels = len(vae.dim_mult)
    total = 0.0
    for level, (before, after) in enumerate(pairwise(dims)):
        halvings = levels - 1 - level if growing else level  # of the sides, from the frames as they go in and come out
        halved = vae.temporal_downsample[:halvings]
        frames = 1 + (padded.num_frames - 1) // 2 ** sum(halved)
        places = frames * padded.height * padded.width / (vae.patch * 2**halvings) ** 2
        total += 2 * TAPS * places * (before * after + (2 * blocks - 1) * after**2)
    ends = padded.num_frames * padded.height * padded.width / vae.patch**2
    return total + 2 * TAPS * ends * 3 * vae.patch**2 * (dims[-1] if growing else dims[0])


def size_of_latents(channels: int, latent: tuple[int, int, int]) -> int:
    """Bytes of a clip's latents, float32."""
    return 4 * channels * math.prod(latent)
