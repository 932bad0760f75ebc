"""Known latent frames: which frames of a clip are given, and their latents.

A causal VAE gives the first frame of a clip a latent frame of its own and every further latent frame a group of
frames. What is given is given in whole groups: an image, or a part of another clip, that is the first frame or begins
where a group begins. A part that does not begin the clip is encoded behind a still picture of its first frame, because
the encoder looks back in time and what comes before is not known yet.

Known latents have noise level 0 in the transformer and are never changed (Diffusion Forcing, arXiv 2407.01392; Wan 2.2
TI2V, wan/textimage2video.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dit_video.nn.pixels import pad_frames, to_video
from dit_video.shapes import Grid, VideoShape

if TYPE_CHECKING:
    from dit_video.models.wan.vae import WanVAE

STILL_GROUPS = 4  # groups of a still picture before a part of a clip that does not begin it


@dataclass(frozen=True, kw_only=True)
class Known:
    """latents: (C, T, H, W) float32 of a whole clip on the CPU, 0 where they are not known. frames: (T,) bool."""

    latents: Tensor
    frames: Tensor


def group_of(frame: int, stride: int) -> int:
    """The latent frame that frame number `frame` belongs to; `stride` frames to a group after the first."""
    return -(-frame // stride)


def frames_of(group: int, stride: int) -> range:
    """The frames of a latent frame: one of the first, `stride` of each other."""
    return range(0, 1) if group == 0 else range((group - 1) * stride + 1, group * stride + 1)


@torch.no_grad()
def encode_known(vae: "WanVAE", grid: Grid, shape: VideoShape, given: Mapping[int, np.ndarray]) -> Known:
    """The latents of what is given of a clip of `shape`.

    Args:
        given: latent frame -> its frames (n, H, W, 3) uint8 of the clip's size, as many as `frames_of` says.
    """
    latent = grid.latent(shape)
    padded = grid.padded(shape)
    latents = torch.zeros(vae.config.z_dim, latent.frames, latent.height, latent.width)
    known = torch.zeros(latent.frames, dtype=torch.bool)
    for _, numbered in groupby(enumerate(sorted(given)), key=lambda pair: pair[1] - pair[0]):
        groups = [group for _, group in numbered]  # that follow one another
        frames = np.concatenate([given[group] for group in groups])
        before = 0 if groups[0] == 0 else 1 + STILL_GROUPS  # groups
        if before:
            still = 1 + STILL_GROUPS * grid.stride[0]
            frames = np.concatenate([np.repeat(frames[:1], still, axis=0), frames])
        part = encode_frames(vae, pad_frames(frames, replace(padded, num_frames=len(frames))))[:, before:]
        latents[:, groups], known[groups] = part, True
    return Known(latents=latents, frames=known)


@torch.no_grad()
def encode_frames(vae: "WanVAE", frames: np.ndarray) -> Tensor:
    """Normalised latents (C, t, h, w), float32 on the CPU, of frames (T, H, W, 3) uint8 on the autoencoder's grid."""
    like = next(vae.parameters())
    return vae.encode(to_video(frames[None]).to(like.device, like.dtype), chunk=1)[0].float().cpu()
