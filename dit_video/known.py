"""Known latent frames: which frames of a clip are given, and their latents.

A causal VAE gives the first frame of a clip a latent frame of its own and every further latent frame a group of
frames. What is given is given in whole groups: an image, or a part of another clip, that is the first frame or begins
where a group begins. A part that does not begin the clip is encoded behind a still picture of its first frame, because
the encoder looks back in time and what comes before is not known yet.

Known latents have noise level 0 in the transformer and are never changed (Diffusion Forcing, arXiv 2407.01392; Wan 2.2
TI2V, wan/textimage2video.py).

Models that were made to animate pictures (Wan 2.1 and 2.2 I2V and FLF2V) take what is given beside the noise instead:
every latent of the clip has more channels, which say what is given and what it is, and no latent is replaced.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dit_video.groups import STILL_GROUPS, runs_of
from dit_video.nn.pixels import pad_frames, to_video
from dit_video.shapes import Grid, VideoShape

if TYPE_CHECKING:
    from dit_video.models.wan.vae import WanVAE


@dataclass(frozen=True, kw_only=True)
class Known:
    """What is given of a clip, as the transformer takes it.

    latents: (C, T, H, W) float32 of the whole clip, 0 where they are not known. frames: (T,) bool, which of them are.
    channels: (D, T, H, W) float32 beside the noise, of models made so; they have no known latents. images: (R, W), the
    rows of the image encoder, of models that attend to them.
    """

    latents: Tensor
    frames: Tensor
    channels: Tensor | None = None
    images: Tensor | None = None

    def to(self, device: torch.device) -> "Known":
        """The same on a device."""
        return Known(
            latents=self.latents.to(device),
            frames=self.frames.to(device),
            channels=None if self.channels is None else self.channels.to(device),
            images=None if self.images is None else self.images.to(device),
        )


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
    for groups in runs_of(given):
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
    """Normalised latents (C, t, h, w), float32 on the CPU, of frames (T, H, W, 3) uint8 on the autoencoder's grid.

    Raises:
        UsageError: they are not on it.
    """
    vae.check_grid(*frames.shape[:3])
    like, group = next(vae.parameters()), vae.config.stride[0]
    starts = [0, *range(1, len(frames), group), len(frames)]  # of what each latent frame stands for
    parts = (to_video(frames[None, a:b]).to(like.device, like.dtype) for a, b in pairwise(starts))
    return vae.encode_stream(parts)[0].float().cpu()


@torch.no_grad()
def encode_beside(vae: "WanVAE", grid: Grid, shape: VideoShape, given: Mapping[int, np.ndarray]) -> Tensor:
    """The channels (D, T, H, W) that are beside the noise of a clip of `shape` in models that animate pictures.

    They are, for every latent frame, whether each of its frames is given (the only frame of the first one counts as
    often as others have frames), and then the latents of a clip that is grey but for what is given (Wan 2.1,
    wan/image2video.py and wan/first_last_frame2video.py).

    Args:
        given: as of `encode_known`, but of the first latent frame, and perhaps of the last. Of that one only the clip's
            own last frame counts, and the frames that the clip is padded with repeat it.
    """
    padded, stride = grid.padded(shape), grid.stride[0]
    like = next(vae.parameters())
    video = like.new_zeros(1, 3, padded.num_frames, padded.height, padded.width)
    mask = torch.zeros(padded.num_frames)
    for group, frames in given.items():
        of_clip = slice(0, 1) if group == 0 else slice(shape.num_frames - 1, padded.num_frames)
        picture = pad_frames(frames[-1:], replace(padded, num_frames=1))
        video[:, :, of_clip] = to_video(picture[None]).to(like.device, like.dtype)
        mask[of_clip] = 1
    latents = vae.encode(video, chunk=1)[0].float().cpu()  # C T H W
    of_groups = torch.cat([mask[:1].repeat(stride), mask[1:]]).view(-1, stride).T  # (frames of a latent frame, T)
    return torch.cat([of_groups[:, :, None, None].expand(-1, -1, *latents.shape[2:]), latents])
