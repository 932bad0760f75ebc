"""Wan's causal 3D VAE, both forms: 2.1 (plain) and 2.2 (pixel unshuffle, average-down and duplicate-up shortcuts).

The first frame has a latent frame of its own; every further latent frame stands for four frames. Attribute names are
the original release's (Wan-Video/Wan2.1 wan/modules/vae.py, Wan-Video/Wan2.2 wan/modules/vae2_2.py).
"""

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from dit_video.allocator import giving_back
from dit_video.errors import UsageError
from dit_video.models.wan.configs import VAEConfig
from dit_video.models.wan.vae_layers import (
    PART,
    CausalConv3d,
    DownBlock,
    Downsample,
    Head,
    Memory,
    UpBlock,
    Upsample,
    middle_blocks,
    residual_blocks,
    run_layers,
)
from dit_video.nn.resample import pixel_shuffle, pixel_unshuffle
from dit_video.nn.tiling import windows


@dataclass(frozen=True)
class Tile:
    """A window of the frames: rows and columns in latents, and weights (h, w) in pixels."""

    rows: slice
    columns: slice
    weights: Tensor


class Encoder(nn.Module):
    """Pixels (B, 3 * patch**2, T, H, W) to moments (B, 2 * z_dim, t, h, w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        dims = [config.dim * mult for mult in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(3 * config.patch**2, dims[0], 3, 3, 3)
        layers: list[nn.Module] = []
        for level, (in_dim, out_dim) in enumerate(pairwise(dims)):
            down = level < len(config.dim_mult) - 1
            time = down and config.temporal_downsample[level]
            if config.residual:
                layers.append(DownBlock(in_dim, out_dim, config.num_res_blocks, down=down, time=time))
                continue
            layers += residual_blocks(in_dim, out_dim, config.num_res_blocks)
            layers += [Downsample(out_dim, time=time)] if down else []
        self.downsamples = nn.ModuleList(layers)
        self.middle = middle_blocks(dims[-1])
        self.head = Head(dims[-1], config.z_dim * 2)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return run_layers((self.conv1, *self.downsamples, *self.middle, self.head), x, memory)


class Decoder(nn.Module):
    """Latents (B, z_dim, t, h, w) to pixels (B, 3 * patch**2, T, H, W)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        dims = [config.decoder_dim * mult for mult in (config.dim_mult[-1], *reversed(config.dim_mult))]
        self.conv1 = CausalConv3d(config.z_dim, dims[0], 3, 3, 3)
        self.middle = middle_blocks(dims[0])
        layers: list[nn.Module] = []
        for level, (in_dim, out_dim) in enumerate(pairwise(dims)):
            up = level < len(config.dim_mult) - 1
            time = up and config.temporal_downsample[-1 - level]
            if config.residual:
                layers.append(UpBlock(in_dim, out_dim, config.num_res_blocks + 1, up=up, time=time))
                continue
            # 2.1's upsample halves the channels that it hands to the next level
            layers += residual_blocks(in_dim // 2 if level else in_dim, out_dim, config.num_res_blocks + 1)
            layers += [Upsample(out_dim, out_dim // 2, time=time)] if up else []
        self.upsamples = nn.ModuleList(layers)
        self.head = Head(dims[-1], 3 * config.patch**2)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        return self.enlarge(self.begin(x, memory), memory)

    def begin(self, x: Tensor, memory: Memory | None) -> Tensor:
        """The layers at the size of the latents; with their attention they see whole frames, and they cost little."""
        x = self.conv1(x, memory)
        for layer in self.middle:
            x = layer(x, memory)
        return x

    def enlarge(self, x: Tensor, memory: Memory | None) -> Tensor:
        """The layers that grow to pixels, which see only a neighbourhood, and may so work on windows of the frames."""
        return run_layers((*self.upsamples, self.head), x, memory)


class WanVAE(nn.Module):
    """Video to latents and back."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(config.z_dim * 2, config.z_dim * 2, 1, 1, 1)
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, 1, 1, 1)
        self.decoder = Decoder(config)

    def encode_moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, logvar), each (B, z_dim, t, h, w), not whitened, of video (B, 3, T, H, W) in [-1, 1]; differentiable.

        Raises:
            UsageError: T is not 1 + 4k, or a side is not a multiple of the stride.
        """
        self.check_grid(*video.shape[2:])
        mean, logvar = self._encode(video, None).chunk(2, dim=1)
        return mean, logvar

    @torch.no_grad()
    def encode(self, video: Tensor, *, chunk: int | None = None) -> Tensor:
        """Whitened mean latents (B, z_dim, t, h, w) of video (B, 3, T, H, W) in [-1, 1].

        `chunk` latent frames at a time, or all at once: the memory depends on it, the result does not.

        Raises:
            UsageError: T is not 1 + 4k, or a side is not a multiple of the stride.
        """
        self.check_grid(*video.shape[2:])
        step = self.config.stride[0]
        lengths = [1] + [step] * ((video.shape[2] - 1) // step)  # frames behind each latent frame
        chunk = chunk or len(lengths)
        sizes = [sum(lengths[i : i + chunk]) for i in range(0, len(lengths), chunk)]
        return self.encode_stream(video.split(sizes, dim=2))

    @torch.no_grad()
    def encode_stream(self, parts: Iterable[Tensor]) -> Tensor:
        """Whitened mean latents (B, z_dim, t, h, w) of parts (B, 3, T_i, H, W) in [-1, 1] of a video, one after the
        other: the first has 1 + 4k frames, the others have 4k. `check_grid` tells of the whole whether it is one."""
        memory, moments = Memory(), []
        for part in parts:
            with giving_back(self._large(self.config.dim, part)):
                moments.append(self._encode(part, memory))
        return self.whiten(torch.cat(moments, dim=2).chunk(2, dim=1)[0])

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W) of whitened latents in one pass: differentiable, and so not clamped to [-1, 1]."""
        x = self.decoder(self.conv2(self.unwhiten(latents)))
        return pixel_shuffle(x, self.config.patch)

    @torch.no_grad()
    def decode_stream(self, latents: Tensor, *, chunk: int = 1, tile: int | None = None) -> Iterator[Tensor]:
        """Pixels (B, 3, T_i, H, W), float32 in [-1, 1], of whitened latents: chunk by chunk, as soon as they are ready.

        A chunk is `chunk` latent frames; the first of all gives one frame, each other four. What is kept between chunks
        does not grow with the clip. Frames larger than `tile` latents on a side are decoded in overlapping windows and
        blended (nn/tiling.py), one window after the other over the whole clip, so that one of them is in memory at a
        time; their sums are in a temporary file meanwhile.

        Raises:
            UsageError: a tile smaller than the overlap of windows allows.
        """
        height, width = latents.shape[3:]
        _, h, w = self.config.stride
        tiles = [
            Tile(rows, columns, (down.unsqueeze(1) * across).to(latents.device))
            for rows, down in windows(height, tile or height, h)
            for columns, across in windows(width, tile or width, w)
        ]
        past = Memory()  # of what looks back in time, but does not ask what is first
        begun = (self.decoder.begin(self.conv2(z), past) for z in self.unwhiten(latents).split(chunk, dim=2))
        if len(tiles) > 1:
            yield from self._in_tiles(list(begun), tiles)
            return
        memory = Memory()
        for features in begun:
            yield self._pixels(features, memory).clamp_(-1, 1)

    def whiten(self, mean: Tensor) -> Tensor:
        """(mean - latents_mean) / latents_std, per channel."""
        centre, spread = self._constants(mean)
        return (mean - centre) / spread

    def unwhiten(self, latents: Tensor) -> Tensor:
        """The inverse of `whiten`."""
        centre, spread = self._constants(latents)
        return latents * spread + centre

    def _encode(self, video: Tensor, memory: Memory | None) -> Tensor:
        return self.conv1(self.encoder(pixel_unshuffle(video, self.config.patch), memory))

    def _pixels(self, features: Tensor, memory: Memory) -> Tensor:
        """Pixels (B, 3, t, H, W), float32, of features that were begun."""
        _, h, w = self.config.stride
        with giving_back(self._large(self.config.decoder_dim, features, h * w)):
            return pixel_shuffle(self.decoder.enlarge(features, memory), self.config.patch).float()

    def _large(self, dim: int, x: Tensor, pixels: int = 1) -> bool:
        """Whether frames are large at full size, where they have `dim` channels, and `pixels` for each one of x."""
        return dim * x.shape[3] * x.shape[4] * pixels // self.config.patch**2 * x.element_size() > PART

    def _in_tiles(self, begun: list[Tensor], tiles: list[Tile]) -> Iterator[Tensor]:
        """The pixels of every chunk, blended of what the tiles are."""
        t, h, w = self.config.stride
        batch, _, _, rows, columns = begun[0].shape
        counts = [each.shape[2] * t - (number == 0) * (t - 1) for number, each in enumerate(begun)]
        shape = (sum(counts), batch, 3, rows * h, columns * w)
        with tempfile.TemporaryFile() as file:
            canvas = torch.from_numpy(np.memmap(file, np.float32, "w+", shape=shape))  # T B 3 H W, zeros
            for tile in tiles:
                memory, frame = Memory(), 0
                top, left = tile.rows.start * h, tile.columns.start * w
                for features, count in zip(begun, counts, strict=True):
                    part = self._pixels(features[..., tile.rows, tile.columns], memory) * tile.weights
                    place = canvas[frame : frame + count, ..., top : top + part.shape[3], left : left + part.shape[4]]
                    place += part.movedim(2, 0).cpu()
                    frame += count
            for frames in canvas.split(counts):
                yield frames.movedim(0, 2).to(begun[0].device).clamp(-1, 1)

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        pair = like.new_tensor([self.config.latents_mean, self.config.latents_std])
        centre, spread = pair.view(2, -1, 1, 1, 1)
        return centre, spread

    def check_grid(self, count: int, height: int, width: int) -> None:
        """Refuse a video of so many frames, rows and columns that cannot be encoded. Raises UsageError."""
        t, h, w = self.config.stride
        if (count - 1) % t or height % h or width % w:
            raise UsageError(
                f"video of {width}x{height}, {count} frames: the autoencoder takes 1 + {t}k frames "
                f"and sides that are multiples of {h}."
            )
