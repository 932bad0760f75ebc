"""The layers of Wan's causal 3D VAE (models/wan/vae.py): convolutions that remember the last chunk, and their blocks.

Attribute names are the original release's (Wan2.1's wan/modules/vae.py, Wan2.2's wan/modules/vae2_2.py).

    B batch; C channels; T frames; H W rows and columns of the tensor at hand. Clips are (B, C, T, H, W) in
    `channels_last_3d` memory from the entrance to the exit, so that no layer copies them into another layout.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_video.nn.causal_conv import cat_time, causal_conv3d, clips, frames, stack_time, upsample_conv
from dit_video.nn.resample import add_duplicated, average_down
from dit_video.nn.rms_silu import rms_norm

PART = 2**24
"""Bytes of one layer's frames from which on fewer of them are computed at a time, see `run_layers`."""


@dataclass
class Memory:
    """What a chunked pass carries from chunk to chunk: the last input frames (B, C, 1, H, W) of layers that look back.

    Each is a tensor of its own, so that what stays is not copied.
    """

    first: bool = True
    frames: dict[nn.Module, list[Tensor]] = field(default_factory=dict)

    def keep(self, layer: nn.Module, x: Tensor, count: int) -> None:
        """Let the last `count` frames of what the layer has kept, and of x after it, be what it keeps."""
        new = [frame.clone(memory_format=torch.channels_last_3d) for frame in x[:, :, -count:].split(1, dim=2)]
        self.frames[layer] = [*self.frames.get(layer, []), *new][-count:]


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
        past = memory.frames.get(self, []) if memory is not None else []
        room = 0 if not past and x.shape[2] == 1 else back  # a still image meets only the newest tap
        if norm is not None:
            x = rms_norm(x, norm.gamma.flatten(), silu=True, room=room, blank=room - len(past))
        elif room:
            x = F.pad(x, (0, 0, 0, 0, room, 0))
        for place, frame in enumerate(past, back - len(past)):
            x[:, :, place : place + 1] = frame
        if memory is not None and back:
            del past  # which the memory lets go of
            memory.keep(self, x[:, :, room:], back)
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
            seen, parts = cat_time([*memory.frames[self], x]), []
        if memory is not None:
            memory.keep(self, x, 1)
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
        blocks = residual_blocks(in_dim, out_dim, num_res_blocks)
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
        blocks = residual_blocks(in_dim, out_dim, num_res_blocks)
        self.upsamples = nn.ModuleList(blocks + ([Upsample(out_dim, out_dim, time=time)] if up else []))

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        before = x
        for layer in self.upsamples:
            x = layer(x, memory)
        if not self.up:
            return x
        return add_duplicated(x, before, self.time, first=memory is None or memory.first)


class Head(nn.ModuleDict):
    """The last norm and convolution of an encoder or decoder."""

    def __init__(self, in_dim: int, out_dim: int):
        super().__init__({"0": RMSNorm(in_dim, 1, 1, 1), "2": CausalConv3d(in_dim, out_dim, 3, 3, 3)})

    def forward(self, x: Tensor, memory: Memory | None) -> Tensor:
        return self["2"](x, memory, norm=self["0"])


def residual_blocks(in_dim: int, out_dim: int, count: int) -> list[nn.Module]:
    """`count` residual blocks, the first of which changes the channels."""
    return [ResidualBlock(a, b) for a, b in pairwise([in_dim] + [out_dim] * count)]


def middle_blocks(dim: int) -> nn.ModuleList:
    """The blocks at the size of the latents: attention within frames between two residual blocks."""
    return nn.ModuleList([ResidualBlock(dim, dim), AttentionBlock(dim), ResidualBlock(dim, dim)])


def run_layers(layers: Iterable[nn.Module], x: Tensor, memory: Memory | None) -> Tensor:
    """All layers one after the other; after them the memory is no longer at its first chunk.

    With a memory, on a CPU, layers that follow one another and keep the number of frames take one part of the frames
    after the other where frames are large: what is between them is never there for more.
    """
    for keeps, run in groupby(layers, _keeps_frames):
        stretch = tuple(run)
        split = keeps and memory is not None and x.device.type == "cpu"
        count = _frames_at_a_time(stretch, x) if split else x.shape[2]
        parts = []
        for part in x.split(count, dim=2):
            for layer in stretch:
                part = layer(part, memory)
            parts.append(part)
        x = parts[0] if len(parts) == 1 else cat_time(parts)
    if memory is not None:
        memory.first = False
    return x


def _keeps_frames(layer: nn.Module) -> bool:
    """Whether there are as many frames after a layer as before it."""
    if isinstance(layer, Downsample | Upsample):
        return layer.time_conv is None
    return not isinstance(layer, DownBlock | UpBlock) or layer.time == 1


def _frames_at_a_time(layers: Iterable[nn.Module], x: Tensor) -> int:
    """How many frames of the largest layer are PART bytes, at least one."""
    area, most = float(x.shape[3] * x.shape[4]), 0.0
    for layer in layers:
        area, before = area * _growth(layer), area
        width = max(each.weight.shape[0] for each in layer.modules() if isinstance(each, Conv))
        most = max(most, width * max(area, before))
    return max(1, int(PART // (most * x.element_size())))


def _growth(layer: nn.Module) -> float:
    """How many pixels a layer has for each that goes in."""
    if isinstance(layer, Downsample) or (isinstance(layer, DownBlock) and layer.space == 2):
        return 1 / 4
    return 4.0 if isinstance(layer, Upsample) or (isinstance(layer, UpBlock) and layer.up) else 1.0
