"""Wan's causal 3D VAE, both forms: 2.1 (plain) and 2.2 (pixel unshuffle, average-down and duplicate-up shortcuts).

The first frame has a latent frame of its own; every further latent frame stands for four frames. Attribute names are the original
release's (Wan-Video/Wan2.1 wan/modules/vae.py, Wan-Video/Wan2.2 wan/modules/vae2_2.py).

    B batch; C channels; T frames; H W rows and columns of the tensor at hand. Tensors are (B, C, T, H, W) in
    `channels_last_3d` memory; only the entrance and the exit, and nothing between, copy to another layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_video.errors import UsageError
from dit_video.nn.causal_conv import cat_time, causal_conv3d, clips, frames, stack_time, upsample_conv, with_past
from dit_video.nn.resample import add_duplicated, average_down, pixel_shuffle, pixel_unshuffle
from dit_video.nn.rms_silu import rms_norm
from dit_video.nn.tiling import windows


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The shape of a Wan VAE and the constants that whiten its latents."""

    dim: int = 96
    decoder_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    residual: bool = False
    patch: int = 1
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent in time, height and width."""
        space = self.patch * 2 ** (len(self.dim_mult) - 1)
        return 2 ** sum(self.temporal_downsample), space, space


@dataclass
class Memory:
    """What a chunked pass carries from chunk to chunk: the last input frames of every causal layer."""

    first: bool = True
    frames: dict[nn.Module, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Tile:
    """A window of the frames, in latents, with the weights (rows, columns) of its pixels and what it carries through time."""

    rows: slice
    columns: slice
    weights: Tensor
    memory: Memory


class RMSNorm(nn.Module):
    """Each pixel's channels scaled to length sqrt(C), then by gamma, which is (C, 1, 1) in attention and (C, 1, 1, 1) elsewhere."""

    def __init__(self, *shape: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(shape))


class CausalConv3d(nn.Module):
    """A causal 3D convolution; with a `Memory` it continues where the last chunk ended."""

    def __init__(self, in_dim: int, out_dim: int, kernel: tuple[int, int, int] = (3, 3, 3)):
        super().__init__()
        conv = nn.Conv3d(in_dim, out_dim, kernel)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor, memory: Memory | None = None, *, norm: RMSNorm | None = None) -> Tensor:
        """x (B, C, T, H, W), normalised and put through SiLU first when a norm is given."""
        back = self.weight.shape[2] - 1
        past = memory.frames.get(self) if memory else None
        room = 0 if past is None and x.shape[2] == 1 else back  # a still image meets only the newest tap
        x = with_past(x, None, room) if norm is None else rms_norm(x, norm.gamma.flatten(), silu=True, room=room)
        if past is not None and back:
            x[:, :, back - past.shape[2] : back] = past
        if memory and back:
            memory.frames[self] = x[:, :, -back:].clone(memory_format=torch.channels_last_3d)
        return causal_conv3d(x, self.weight[:, :, back - room :], self.bias)


class Conv2d(nn.Module):
    """A convolution of single frames, applied to clips."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int):
        super().__init__()
        conv = nn.Conv2d(in_dim, out_dim, kernel)
        self.weight, self.bias = conv.weight, conv.bias

    def forward(self, x: Tensor, *, stride: int = 1) -> Tensor:
        return causal_conv3d(x, self.weight.unsqueeze(2), self.bias, stride=(1, stride))


class ResidualBlock(nn.Module):
    """Two rounds of norm, SiLU and causal convolution beside a shortcut."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.residual = nn.ModuleDict(  # the names are the release's; its 1 and 4 are SiLUs, its 5 a dropout
            {
                "0": RMSNorm(in_dim, 1, 1, 1),
                "2": CausalConv3d(in_dim, out_dim),
                "3": RMSNorm(out_dim, 1, 1, 1),
                "6": CausalConv3d(out_dim, out_dim),
            }
        )
        self.shortcut = CausalConv3d(in_dim, out_dim, (1, 1, 1)) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        norm_1, conv_1, norm_2, conv_2 = self.residual.values()
        h = conv_2(conv_1(x, memory, norm=norm_1), memory, norm=norm_2)
        return h + self.shortcut(x) if h.requires_grad else h.add_(self.shortcut(x))


class AttentionBlock(nn.Module):
    """Single-head self-attention among the pixels of each frame."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, 1, 1)
        self.to_qkv = Conv2d(dim, dim * 3, 1)
        self.proj = Conv2d(dim, dim, 1)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        qkv = frames(self.to_qkv(rms_norm(x, self.norm.gamma.flatten())))  # (B*T, 3C, H, W)
        q, k, v = qkv.flatten(2).transpose(1, 2).unsqueeze(1).chunk(3, dim=-1)  # (B*T, 1, H*W, C)
        out = F.scaled_dot_product_attention(q, k, v)
        out = out.squeeze(1).unflatten(1, qkv.shape[2:]).permute(0, 3, 1, 2)  # (B*T, C, H, W)
        return x + self.proj(clips(out, x.shape[0]))


class Downsample(nn.Module):
    """Half the rows and columns; with `time`, also half the frames after the first."""

    def __init__(self, dim: int, *, time: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": Conv2d(dim, dim, 3)})
        self.time_conv = CausalConv3d(dim, dim, (3, 1, 1)) if time else None

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        x = self.resample["1"](x, stride=2)  # (B, C, T, H/2, W/2)
        if self.time_conv is None:
            return x
        first = memory is None or memory.first
        seen = x if first else cat_time([memory.frames[self], x])
        if memory is not None:
            memory.frames[self] = x[:, :, -1:].clone(memory_format=torch.channels_last_3d)
        parts = [x[:, :, :1]] if first else []
        if seen.shape[2] > 2:
            parts.append(causal_conv3d(seen, self.time_conv.weight, self.time_conv.bias, stride=(2, 1)))
        return cat_time(parts)


class Upsample(nn.Module):
    """Twice the rows and columns; with `time`, also twice the frames after the first."""

    def __init__(self, dim: int, out_dim: int, *, time: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": Conv2d(dim, out_dim, 3)})
        self.time_conv = CausalConv3d(dim, dim * 2, (3, 1, 1)) if time else None

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        if self.time_conv is not None:
            x = self._double_time(x, memory)
        conv = self.resample["1"]
        return upsample_conv(x, conv.weight, conv.bias)

    def _double_time(self, x: Tensor, memory: Memory | None) -> Tensor:
        """The first frame stays single and out of sight of `time_conv`; every later frame becomes two."""
        single = 1 if memory is None or memory.first else 0
        first, rest = x.split([single, x.shape[2] - single], dim=2)
        frames = list(first.unbind(2))
        if rest.shape[2]:
            halves = self.time_conv(rest, memory).unflatten(1, (2, -1)).unbind(1)  # of 2C channels; each (B, C, T, H, W)
            frames += [frame for pair in zip(*(half.unbind(2) for half in halves), strict=True) for frame in pair]
        return stack_time(frames)


class DownBlock(nn.Module):
    """2.2: residual blocks and a downsample beside a shortcut that averages neighbouring pixels and channels."""

    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, *, down: bool, time: bool):
        super().__init__()
        self.out_dim, self.time, self.space = out_dim, 2 if time else 1, 2 if down else 1
        dims = [in_dim] + [out_dim] * num_res_blocks
        blocks: list[nn.Module] = [ResidualBlock(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True)]
        self.downsamples = nn.ModuleList(blocks + ([Downsample(out_dim, time=time)] if down else []))

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        shortcut = average_down(x, self.out_dim, self.time, self.space)
        for layer in self.downsamples:
            x = layer(x, memory)
        return x + shortcut


class UpBlock(nn.Module):
    """2.2: residual blocks and an upsample beside a shortcut that duplicates pixels and channels."""

    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, *, up: bool, time: bool):
        super().__init__()
        self.time, self.up = 2 if time else 1, up
        dims = [in_dim] + [out_dim] * num_res_blocks
        blocks: list[nn.Module] = [ResidualBlock(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True)]
        self.upsamples = nn.ModuleList(blocks + ([Upsample(out_dim, out_dim, time=time)] if up else []))

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        before = x
        for layer in self.upsamples:
            x = layer(x, memory)
        if not self.up:
            return x
        return add_duplicated(x, before, self.time, first=memory is None or memory.first)


def _middle(dim: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim)])


def _head(in_dim: int, out_dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({"0": RMSNorm(in_dim, 1, 1, 1), "2": CausalConv3d(in_dim, out_dim)})


class Encoder(nn.Module):
    """Pixels (B, 3 * patch**2, T, H, W) to moments (B, 2 * z_dim, t, h, w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        dims = [config.dim * mult for mult in (1, *config.dim_mult)]
        self.conv1 = CausalConv3d(3 * config.patch**2, dims[0])
        layers: list[nn.Module] = []
        for level, (in_dim, out_dim) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            down = level < len(config.dim_mult) - 1
            time = down and config.temporal_downsample[level]
            if config.residual:
                layers.append(DownBlock(in_dim, out_dim, config.num_res_blocks, down=down, time=time))
                continue
            block_dims = [in_dim] + [out_dim] * config.num_res_blocks
            layers += [ResidualBlock(a, b) for a, b in zip(block_dims[:-1], block_dims[1:], strict=True)]
            layers += [Downsample(out_dim, time=time)] if down else []
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(dims[-1])
        self.head = _head(dims[-1], config.z_dim * 2)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        x = self.conv1(x, memory)
        for layer in (*self.downsamples, *self.middle):
            x = layer(x, memory)
        norm, conv = self.head.values()
        x = conv(x, memory, norm=norm)
        if memory is not None:
            memory.first = False
        return x


class Decoder(nn.Module):
    """Latents (B, z_dim, t, h, w) to pixels (B, 3 * patch**2, T, H, W)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        dims = [config.decoder_dim * mult for mult in (config.dim_mult[-1], *reversed(config.dim_mult))]
        self.conv1 = CausalConv3d(config.z_dim, dims[0])
        self.middle = _middle(dims[0])
        layers: list[nn.Module] = []
        upsample_time = config.temporal_downsample[::-1]
        for level, (in_dim, out_dim) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            up = level < len(config.dim_mult) - 1
            time = up and upsample_time[level]
            if config.residual:
                layers.append(UpBlock(in_dim, out_dim, config.num_res_blocks + 1, up=up, time=time))
                continue
            # 2.1's upsample halves the channels that it hands to the next level
            block_dims = [in_dim // 2 if level else in_dim] + [out_dim] * (config.num_res_blocks + 1)
            layers += [ResidualBlock(a, b) for a, b in zip(block_dims[:-1], block_dims[1:], strict=True)]
            layers += [Upsample(out_dim, out_dim // 2, time=time)] if up else []
        self.upsamples = nn.ModuleList(layers)
        self.head = _head(dims[-1], 3 * config.patch**2)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        x = self.conv1(x, memory)
        for layer in (*self.middle, *self.upsamples):
            x = layer(x, memory)
        norm, conv = self.head.values()
        x = conv(x, memory, norm=norm)
        if memory is not None:
            memory.first = False
        return x


class WanVAE(nn.Module):
    """Video to latents and back."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.conv1 = CausalConv3d(config.z_dim * 2, config.z_dim * 2, (1, 1, 1))
        self.conv2 = CausalConv3d(config.z_dim, config.z_dim, (1, 1, 1))
        self.decoder = Decoder(config)

    def encode_moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, logvar), each (B, z_dim, t, h, w) and not whitened, of video (B, 3, T, H, W) in [-1, 1]; differentiable.

        Raises:
            UsageError: T is not 1 + 4k, or a side is not a multiple of the stride.
        """
        self._check_grid(video)
        return self.conv1(self.encoder(pixel_unshuffle(video, self.config.patch))).chunk(2, dim=1)

    @torch.no_grad()
    def encode(self, video: Tensor, *, chunk: int | None = None) -> Tensor:
        """Whitened mean latents (B, z_dim, t, h, w) of video (B, 3, T, H, W) in [-1, 1], `chunk` latent frames at a time or all at once.

        The result does not depend on `chunk`; the memory does. Raises as `encode_moments`.
        """
        self._check_grid(video)
        step = self.config.stride[0]
        frames = [1, *[step] * ((video.shape[2] - 1) // step)]  # of each latent frame
        chunk = chunk or len(frames)
        memory, means = Memory(), []
        for part in video.split([sum(frames[i : i + chunk]) for i in range(0, len(frames), chunk)], dim=2):
            moments = self.conv1(self.encoder(pixel_unshuffle(part, self.config.patch), memory))
            means.append(moments.chunk(2, dim=1)[0])
        return self.whiten(torch.cat(means, dim=2))

    def decode(self, latents: Tensor) -> Tensor:
        """Pixels (B, 3, T, H, W) of whitened latents, the whole clip in one pass; differentiable, and so not clamped to [-1, 1]."""
        return self._decode(self.unwhiten(latents), None)

    @torch.no_grad()
    def decode_stream(self, latents: Tensor, *, chunk: int = 1, tile: int | None = None) -> Iterator[Tensor]:
        """Pixels (B, 3, T_i, H, W) in [-1, 1] as soon as they are ready, `chunk` latent frames at a time: first 1, then 4 frames for each.

        What is kept between chunks does not grow with the clip. `tile` is the side in latents of the square windows that frames are cut
        into when they are larger (nn/tiling.py says how those are blended); None decodes whole frames.

        Raises:
            UsageError: a tile smaller than the windows' overlap allows.
        """
        (_, h, w), (height, width) = self.config.stride, latents.shape[3:]
        tiles = [
            Tile(row, column, (down.unsqueeze(1) * across).to(latents.device), Memory())
            for row, down in windows(height, tile or height, h)
            for column, across in windows(width, tile or width, w)
        ]
        for z in self.unwhiten(latents).split(chunk, dim=2):
            yield self._decode_tiles(z, tiles).clamp_(-1, 1)

    def whiten(self, mean: Tensor) -> Tensor:
        """(mean - latents_mean) / latents_std, per channel."""
        centre, spread = self._constants(mean)
        return (mean - centre) / spread

    def unwhiten(self, latents: Tensor) -> Tensor:
        """The inverse of `whiten`."""
        centre, spread = self._constants(latents)
        return latents * spread + centre

    def _decode(self, z: Tensor, memory: Memory | None) -> Tensor:
        return pixel_shuffle(self.decoder(self.conv2(z), memory), self.config.patch)

    def _decode_tiles(self, z: Tensor, tiles: list[Tile]) -> Tensor:
        if len(tiles) == 1:
            return self._decode(z, tiles[0].memory).float()
        _, h, w = self.config.stride
        canvas = torch.empty(0)
        for tile in tiles:
            part = self._decode(z[..., tile.rows, tile.columns], tile.memory) * tile.weights
            if tile is tiles[0]:
                canvas = part.new_zeros(*part.shape[:3], z.shape[3] * h, z.shape[4] * w)
            canvas[..., tile.rows.start * h : tile.rows.stop * h, tile.columns.start * w : tile.columns.stop * w] += (
                part
            )
        return canvas

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        pair = like.new_tensor([self.config.latents_mean, self.config.latents_std])
        centre, spread = pair.view(2, -1, 1, 1, 1)
        return centre, spread

    def _check_grid(self, video: Tensor) -> None:
        (t, h, w), (frames, height, width) = self.config.stride, video.shape[2:]
        if (frames - 1) % t or height % h or width % w:
            raise UsageError(
                f"video of {width}x{height}, {frames} frames: the autoencoder takes 1 + {t}k frames and sides that are multiples of {h}."
            )
