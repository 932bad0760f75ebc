"""A linear code: latents that are a fixed linear function of the pixels, for the encoder to learn and the decoder to
read.

An encoder that is free to choose codes spreads what tells shapes apart in whatever way the decoder can read: a
transformer must then learn that code too, from noisy examples. Here each latent frame's cell holds the first principal
components of the pixels around it, under a smooth window that overlaps the next cells'. What moves a little changes the
latents a little, and the decoder alone does what is not linear (docs/decisions/0003-linear-code.md).
"""

import math
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_video.checkpoints.files import load_tensors, save_tensors
from dit_video.errors import CheckpointError

FILE = "linear_code.safetensors"
POOL = 2  # pixels are averaged in squares of this side first: finer detail is beyond so few components
SIDES = 2 * POOL  # pixels of a latent must be a multiple: the windows reach half a latent beyond it
CELLS_PER_CLIP = 64  # with an object, that the components are fitted to


class LinearCode(nn.Module):
    """Video to whitened latents, linearly.

    Args:
        kernel: (z_dim, 3 * stride_t, k, k): the weights of the frames of a latent frame, k pooled pixels on a side.
        bias: (z_dim,).
    """

    kernel: Tensor
    bias: Tensor

    def __init__(self, kernel: Tensor, bias: Tensor):
        super().__init__()
        self.register_buffer("kernel", kernel)
        self.register_buffer("bias", bias)

    def forward(self, video: Tensor) -> Tensor:
        """Video (B, 3, 1 + stride_t k, H, W) in [-1, 1] to latents (B, z_dim, 1 + k, h, w), float32."""
        side = self.kernel.shape[-1]
        images = F.pad(_groups(video, self.kernel.shape[1] // 3), (side // 4,) * 4, mode="replicate")
        with torch.autocast(video.device.type, enabled=False):
            latents = F.conv2d(images, self.kernel, self.bias, stride=side // 2)
        return latents.unflatten(0, (len(video), -1)).transpose(1, 2).contiguous()

    def save(self, folder: Path) -> None:
        """Write `linear_code.safetensors`. Raises CheckpointError."""
        save_tensors({name: value.contiguous().cpu() for name, value in self.state_dict().items()}, folder / FILE)


def load_linear_code(folder: Path) -> LinearCode | None:
    """The linear code of an autoencoder's run, or None where its latents are no such code. Raises CheckpointError."""
    if not (folder / FILE).is_file():
        return None
    tensors, _ = load_tensors(folder / FILE)
    if tensors.keys() != {"kernel", "bias"}:
        raise CheckpointError(f"{folder / FILE}: has {', '.join(sorted(tensors))}; a linear code has bias and kernel.")
    return LinearCode(tensors["kernel"], tensors["bias"])


def stand_in(z_dim: int, stride: tuple[int, int, int]) -> LinearCode:
    """A random code that takes the time and the memory of a fitted one."""
    side = 2 * stride[1] // POOL
    return LinearCode(torch.randn(z_dim, 3 * stride[0], side, side) / side, torch.zeros(z_dim))


def fit_linear_code(clips: Iterable[tuple[Tensor, Tensor]], z_dim: int, stride: tuple[int, int, int]) -> LinearCode:
    """Principal components of the windows around cells with an object, scaled.

    A channel's scale is the geometric mean of its deviation over all cells and over those with an object: most cells
    are plain background, where the higher components are 0, so the first alone would make objects tower above the
    noise, and the second would hide them in it.

    Args:
        clips: pairs of a video (3, T, H, W) in [-1, 1] on the grid and of its cells that hold objects (t, h, w), bool.
        stride: pixels of a latent in time, height and width; height and width are alike, and multiples of SIDES.
    """
    side = 2 * stride[1] // POOL
    ramp = (torch.arange(side) + 0.5) / side
    window = torch.sin(math.pi * ramp) ** 2  # of neighbouring cells they add up to 1
    taper = torch.outer(window, window).flatten().repeat(3 * stride[0])
    generator = torch.Generator().manual_seed(0)
    chosen, others = [], []
    for video, objects in clips:
        images = F.pad(_groups(video[None], stride[0]), (side // 4,) * 4, mode="replicate")
        rows = F.unfold(images, side, stride=side // 2).transpose(1, 2).flatten(0, 1) * taper  # (t h w, 3 stride_t k k)
        some = torch.randperm(len(rows), generator=generator)
        inside = objects.flatten()[some]
        chosen.append(rows[some[inside][:CELLS_PER_CLIP]])
        others.append(rows[some[:CELLS_PER_CLIP]])
    rows, everywhere = torch.cat(chosen), torch.cat(others)
    mean = rows.mean(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)  # svd_lowrank draws its start
        _, _, directions = torch.svd_lowrank(rows - mean, q=min(z_dim + 16, *rows.shape), niter=4)
    matrix = directions[:, :z_dim].T  # (z_dim, 3 stride_t k k)
    latents, objects_latents = everywhere @ matrix.T, rows @ matrix.T
    scale = (latents.std(0) * objects_latents.std(0)).sqrt()
    kernel = (matrix * taper / scale[:, None]).unflatten(1, (3 * stride[0], side, side))
    return LinearCode(kernel, -latents.mean(0) / scale)


def _groups(video: Tensor, frames: int) -> Tensor:
    """Pooled frames of each latent frame (B t, 3 frames, H / 2, W / 2); the first frame stands for a still group."""
    video = torch.cat([video[:, :, :1].expand(-1, -1, frames - 1, -1, -1), video], dim=2)  # (B, 3, t frames, H, W)
    images = F.avg_pool2d(video.transpose(1, 2).flatten(0, 1), POOL)  # (B t frames, 3, H / 2, W / 2)
    return images.unflatten(0, (-1, frames)).flatten(1, 2)
