"""Wan's causal 3D VAE, both forms: 2.1 (plain) and 2.2 (pixel unshuffle, average-down and duplicate-up shortcuts).

The first frame has a latent frame of its own; every further latent frame stands for four frames. Attribute names are
the original release's (Wan-Video/Wan2.1 wan/modules/vae.py, Wan-Video/Wan2.2 wan/modules/vae2_2.py).

    B batch; C channels; T frames; H W rows and columns of the tensor at hand. Clips are (B, C, T, H, W) in
    `channels_last_3d` memory from the entrance to the exit, so that no layer copies them into another layout.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_video.errors import DvgenError, UsageError
from dit_video.nn.causal_conv import cat_time, causal_conv3d, clips, frames, stack_time, upsample_conv
from dit_video.nn.resample import add_duplicated, average_down, pixel_shuffle, pixel_unshuffle
from dit_video.nn.rms_silu import rms_norm
from dit_video.nn.tiling import windows


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The shape of a Wan VAE and the constants that whiten its latents; the defaults are Wan 2.1's shape.

    Raises:
        DvgenError: fields that do not fit together.
    """

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

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            levels, given = len(self.dim_mult), len(self.temporal_downsample)
            raise DvgenError(f"temporal_downsample has {given} entries: {levels} levels need {levels - 1}.")
        for name in ("latents_mean", "latents_std"):
            if (given := len(getattr(self, name))) != self.z_dim:
                raise DvgenError(f"{name} has {given} values: z_dim {self.z_dim} needs {self.z_dim}.")
        growth = [b / a for a, b in pairwise((1, *self.dim_mult))]
        if self.residual and not (growth[-1] == 1 and set(growth) <= {1, 2, 4}):
            raise DvgenError(
                f"dim_mult {self.dim_mult}: a residual VAE's shortcuts need factors of 1, 2 or 4 from level to level "
                "and the last two levels equal, for example (1, 2, 4, 4)."
            )

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent in time, height and width."""
        space = self.patch * 2 ** (len(self.dim_mult) - 1)
        return 2 ** sum(self.temporal_downsample), space, space


@dataclass
class Memory:
    """What a chunked pass carries from chunk to chunk: the last input frames of every layer that looks back."""

    first: bool = True
    frames: dict[nn.Module, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Tile:
    """A window of the frames: rows and columns in latents, weights (h, w) in pixels, and its own memory."""

    rows: slice
    columns: slice
    weights: Tensor
    memory: Memory


class RMSNorm(nn.Module):
    """The scale of a norm over channels; a trailing (1, 1) in attention and (1, 1, 1) elsewhere are the release's."""

    def __init__(self, *shape: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(shape))


class Conv(nn.Module):
    """The parameters of a convolution with any kernel, drawn as PyTorch draws them."""

    def __init__(self, in_dim: int, out_dim: int, *kernel: int):
        super().__init__()
        bound = (in_dim * prod(kernel)) ** -0.5
        self.weight = nn.Parameter(torch.empty(out_dim, in_dim, *kernel).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(out_dim).uniform_(-bound, bound))


class CausalConv3d(Conv):
    """A causal 3D convolution; with a `Memory` it continues where the last chunk ended."""

    def forward(self, x: Tensor, memory: Memory | None = None, *, norm: RMSNorm | None = None) -> Tensor:
        """x (B, C, T, H, W), normalised and put through SiLU first when a norm is given."""
        back = self.weight.shape[2] - 1
        past = memory.frames.get(self) if memory is not None else None
        room = 0 if past is None and x.shape[2] == 1 else back  # a still image meets only the newest tap
        if norm is not None:
            x = rms_norm(x, norm.gamma.flatten(), silu=True, room=room)
        elif room:
            x = F.pad(x, (0, 0, 0, 0, room, 0))
        if past is not None:
            x[:, :, back - past.shape[2] : back] = past
        if memory is not None and back:
            memory.frames[self] = x[:, :, -back:].clone(memory_format=torch.channels_last_3d)
        return causal_conv3d(x, self.weight[:, :, back - room :], self.bias)


class Conv2d(Conv):
    """A convolution of single frames."""

    def forward(self, x: Tensor) -> Tensor:
        return causal_conv3d(x, self.weight.unsqueeze(2), self.bias)


class HalvingConv2d(Conv):
    """A convolution of single frames that leaves half the rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        return causal_conv3d(x, self.weight.unsqueeze(2), self.bias, stride=(1, 2))


class DoublingConv2d(Conv):
    """A convolution of single frames after doubling their rows and columns."""

    def forward(self, x: Tensor) -> Tensor:
        return upsample_conv(x, self.weight, self.bias)


class ResidualBlock(nn.Module):
    """Two rounds of norm, SiLU and causal convolution beside a shortcut."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__()
        self.residual = nn.ModuleDict(  # the names are the release's; its 1 and 4 are SiLUs, its 5 a dropout
            {
                "0": RMSNorm(in_dim, 1, 1, 1),
                "2": CausalConv3d(in_dim, out_dim, 3, 3, 3),
                "3": RMSNorm(out_dim, 1, 1, 1),
                "6": CausalConv3d(out_dim, out_dim, 3, 3, 3),
            }
        )
        self.shortcut = CausalConv3d(in_dim, out_dim, 1, 1, 1) if in_dim != out_dim else nn.Identity()

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        norm_1, conv_1, norm_2, conv_2 = self.residual.values()
        h = conv_2(conv_1(x, memory, norm=norm_1), memory, norm=norm_2)
        shortcut = self.shortcut(x)
        return h + shortcut if h.requires_grad else h.add_(shortcut)


class AttentionBlock(nn.Module):
    """Single-head self-attention among the pixels of each frame; it starts as the identity, as in the release."""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = RMSNorm(dim, 1, 1)
        self.to_qkv = Conv2d(dim, dim * 3, 1, 1)
        self.proj = Conv2d(dim, dim, 1, 1)
        nn.init.zeros_(self.proj.weight)

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        images = frames(self.to_qkv(rms_norm(x, self.norm.gamma.flatten())))  # (B*T, 3C, H, W)
        q, k, v = images.flatten(2).mT.unsqueeze(1).chunk(3, dim=-1)  # (B*T, 1, H*W, C) each
        out = F.scaled_dot_product_attention(q, k, v)
        out = out.squeeze(1).mT.unflatten(2, images.shape[2:])  # (B*T, C, H, W)
        return x + self.proj(clips(out, x.shape[0]))


class Downsample(nn.Module):
    """Half the rows and columns; with `time`, also half the frames after the first."""

    def __init__(self, dim: int, *, time: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": HalvingConv2d(dim, dim, 3, 3)})
        self.time_conv = CausalConv3d(dim, dim, 3, 1, 1) if time else None

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        x = self.resample["1"](x)  # (B, C, T, H/2, W/2)
        if self.time_conv is None:
            return x
        if memory is None or memory.first:
            seen, parts = x, [x[:, :, :1]]
        else:
            seen, parts = cat_time([memory.frames[self], x]), []
        if memory is not None:
            memory.frames[self] = x[:, :, -1:].clone(memory_format=torch.channels_last_3d)
        if seen.shape[2] > 2:
            parts.append(causal_conv3d(seen, self.time_conv.weight, self.time_conv.bias, stride=(2, 1)))
        return cat_time(parts)


class Upsample(nn.Module):
    """Twice the rows and columns; with `time`, also twice the frames after the first."""

    def __init__(self, dim: int, out_dim: int, *, time: bool):
        super().__init__()
        self.resample = nn.ModuleDict({"1": DoublingConv2d(dim, out_dim, 3, 3)})
        self.time_conv = CausalConv3d(dim, dim * 2, 3, 1, 1) if time else None

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        if self.time_conv is not None:
            x = _double_time(x, self.time_conv, memory)
        return self.resample["1"](x)


def _double_time(x: Tensor, time_conv: CausalConv3d, memory: Memory | None) -> Tensor:
    """The first frame stays single and out of sight of `time_conv`, which makes two of every later frame."""
    single = 1 if memory is None or memory.first else 0
    first, rest = x.split([single, x.shape[2] - single], dim=2)
    images = list(first.unbind(2))
    if rest.shape[2]:
        halves = time_conv(rest, memory).unflatten(1, (2, -1)).unbind(1)  # (B, C, T, H, W) each
        images += [image for pair in zip(*(half.unbind(2) for half in halves), strict=True) for image in pair]
    return stack_time(images)


class DownBlock(nn.Module):
    """2.2: residual blocks and a downsample beside a shortcut that averages neighbouring pixels."""

    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, *, down: bool, time: bool):
        super().__init__()
        self.out_dim, self.time, self.space = out_dim, 2 if time else 1, 2 if down else 1
        blocks = _residual_blocks(in_dim, out_dim, num_res_blocks)
        self.downsamples = nn.ModuleList(blocks + ([Downsample(out_dim, time=time)] if down else []))

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        shortcut = average_down(x, self.out_dim, self.time, self.space)
        for layer in self.downsamples:
            x = layer(x, memory)
        return x + shortcut


class UpBlock(nn.Module):
    """2.2: residual blocks and an upsample beside a shortcut that duplicates pixels."""

    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, *, up: bool, time: bool):
        super().__init__()
        self.time, self.up = 2 if time else 1, up
        blocks = _residual_blocks(in_dim, out_dim, num_res_blocks)
        self.upsamples = nn.ModuleList(blocks + ([Upsample(out_dim, out_dim, time=time)] if up else []))

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        before = x
        for layer in self.upsamples:
            x = layer(x, memory)
        if not self.up:
            return x
        return add_duplicated(x, before, self.time, first=memory is None or memory.first)


def _residual_blocks(in_dim: int, out_dim: int, count: int) -> list[nn.Module]:
    return [ResidualBlock(a, b) for a, b in pairwise([in_dim] + [out_dim] * count)]


def _middle(dim: int) -> nn.ModuleList:
    return nn.ModuleList([ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim)])


def _head(in_dim: int, out_dim: int) -> nn.ModuleDict:
    return nn.ModuleDict({"0": RMSNorm(in_dim, 1, 1, 1), "2": CausalConv3d(in_dim, out_dim, 3, 3, 3)})


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
            layers += _residual_blocks(in_dim, out_dim, config.num_res_blocks)
            layers += [Downsample(out_dim, time=time)] if down else []
        self.downsamples = nn.ModuleList(layers)
        self.middle = _middle(dims[-1])
        self.head = _head(dims[-1], config.z_dim * 2)

    def forward(self, x: Tensor, memory: Memory | None = None) -> Tensor:
        x = self.conv1(x, memory)
        return _run((*self.downsamples, *self.middle), self.head, x, memory)


class Decoder(nn.Module):
    """Latents (B, z_dim, t, h, w) to pixels (B, 3 * patch**2, T, H, W)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        dims = [config.decoder_dim * mult for mult in (config.dim_mult[-1], *reversed(config.dim_mult))]
        self.conv1 = CausalConv3d(config.z_dim, dims[0], 3, 3, 3)
        self.middle = _middle(dims[0])
        layers: list[nn.Module] = []
        for level, (in_dim, out_dim) in enumerate(pairwise(dims)):
            up = level < len(config.dim_mult) - 1
            time = up and config.temporal_downsample[-1 - level]
            if config.residual:
                layers.append(UpBlock(in_dim, out_dim, config.num_res_blocks + 1, up=up, time=time))
                continue
            # 2.1's upsample halves the channels that it hands to the next level
            layers += _residual_blocks(in_dim // 2 if level else in_dim, out_dim, config.num_res_blocks + 1)
            layers += [Upsample(out_dim, out_dim // 2, time=time)] if up else []
        self.upsamples = nn.ModuleList(layers)
        self.head = _head(dims[-1], 3 * config.patch**2)

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
        return _run(tuple(self.upsamples), self.head, x, memory)


def _run(layers: tuple[nn.Module, ...], head: nn.ModuleDict, x: Tensor, memory: Memory | None) -> Tensor:
    for layer in layers:
        x = layer(x, memory)
    x = head["2"](x, memory, norm=head["0"])
    if memory is not None:
        memory.first = False
    return x


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
        self._check_grid(video)
        mean, logvar = self._encode(video, None).chunk(2, dim=1)
        return mean, logvar

    @torch.no_grad()
    def encode(self, video: Tensor, *, chunk: int | None = None) -> Tensor:
        """Whitened mean latents (B, z_dim, t, h, w) of video (B, 3, T, H, W) in [-1, 1].

        `chunk` latent frames at a time, or all at once: the memory depends on it, the result does not.

        Raises:
            UsageError: T is not 1 + 4k, or a side is not a multiple of the stride.
        """
        self._check_grid(video)
        step = self.config.stride[0]
        lengths = [1] + [step] * ((video.shape[2] - 1) // step)  # frames behind each latent frame
        chunk = chunk or len(lengths)
        sizes = [sum(lengths[i : i + chunk]) for i in range(0, len(lengths), chunk)]
        memory = Memory()
        moments = [self._encode(part, memory) for part in video.split(sizes, dim=2)]
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
        blended (nn/tiling.py).

        Raises:
            UsageError: a tile smaller than the overlap of windows allows.
        """
        height, width = latents.shape[3:]
        _, h, w = self.config.stride
        tiles = [
            Tile(rows, columns, (down.unsqueeze(1) * across).to(latents.device), Memory())
            for rows, down in windows(height, tile or height, h)
            for columns, across in windows(width, tile or width, w)
        ]
        memory = Memory()
        for z in self.unwhiten(latents).split(chunk, dim=2):
            features = self.decoder.begin(self.conv2(z), memory)  # looks back in time, but does not ask what is first
            yield self._enlarge_tiles(features, tiles).clamp_(-1, 1)

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

    def _enlarge_tiles(self, features: Tensor, tiles: list[Tile]) -> Tensor:
        _, h, w = self.config.stride
        canvas: Tensor | None = None
        for tile in tiles:
            part = self.decoder.enlarge(features[..., tile.rows, tile.columns], tile.memory)
            part = pixel_shuffle(part, self.config.patch).float()
            if len(tiles) == 1:
                return part
            if canvas is None:
                canvas = part.new_zeros(*part.shape[:3], features.shape[3] * h, features.shape[4] * w)
            top, left = tile.rows.start * h, tile.columns.start * w
            canvas[..., top : top + part.shape[3], left : left + part.shape[4]] += part * tile.weights
        assert canvas is not None
        return canvas

    def _constants(self, like: Tensor) -> tuple[Tensor, Tensor]:
        pair = like.new_tensor([self.config.latents_mean, self.config.latents_std])
        centre, spread = pair.view(2, -1, 1, 1, 1)
        return centre, spread

    def _check_grid(self, video: Tensor) -> None:
        (t, h, w), (count, height, width) = self.config.stride, video.shape[2:]
        if (count - 1) % t or height % h or width % w:
            raise UsageError(
                f"video of {width}x{height}, {count} frames: the autoencoder takes 1 + {t}k frames "
                f"and sides that are multiples of {h}."
            )
