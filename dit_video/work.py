"""The arithmetic of a run, told by configs and sizes: how often the transformer runs, and what a stage computes."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

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


def passes_of(settings: "Settings", boundary: float | None) -> Passes:
    """What denoising with these settings takes, counted level by level.

    boundary: the noise level from which up the first of two experts denoises; None for one transformer.

    Raises:
        UsageError: settings that give no levels, see `ramp_of`.
    """
    ramp = ramp_of(settings.steps, shift=settings.shift, convention=settings.sigmas, solver=settings.solver)
    times = timesteps_of(ramp, settings.solver)
    first = settings.first_step
    found: dict[str, int] = {}
    for step, (sigma, time) in list(enumerate(zip(ramp, times, strict=True)))[first:]:
        # Heun's method also evaluates the level that a step leads to, but for 0.
        count = 2 if settings.solver == "heun" and step > first else 1
        low = boundary is not None and time < boundary * NUM_TRAIN_TIMESTEPS
        guided = needs_guidance(float32(sigma), settings.guidance[-1 if low else 0], settings.guidance_interval)
        part = "transformer_2" if low else "transformer"
        found[part] = found.get(part, 0) + count * (2 if guided else 1)
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
