"""Moving between pixels and channels: pixel shuffle, and the averaging and duplicating shortcuts of Wan 2.2's VAE.

Clips are (B, C, T, H, W) in `channels_last_3d` memory. A shortcut joins a block of neighbours (time, row, column) with
one place of the smaller clip. When the number of channels differs by a factor, that factor stands for the slowest axes
of the block; along the other axes the values are averaged, or repeated.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_video.nn.causal_conv import clips, frames


def pixel_unshuffle(video: Tensor, patch: int) -> Tensor:
    """(B, C, T, H, W) -> (B, C * patch**2, T, H / patch, W / patch); channels in Wan 2.2's order (C, column, row)."""
    x = video.unflatten(4, (-1, patch)).unflatten(3, (-1, patch))  # (B, C, T, h, row, w, column)
    return x.permute(0, 2, 3, 5, 1, 6, 4).flatten(4).contiguous().permute(0, 4, 1, 2, 3)


def pixel_shuffle(x: Tensor, patch: int) -> Tensor:
    """The inverse of `pixel_unshuffle`, in contiguous memory."""
    x = x.unflatten(1, (-1, patch, patch))  # (B, C, column, row, T, h, w)
    return x.permute(0, 1, 4, 5, 3, 6, 2).contiguous().flatten(5).flatten(3, 4)


def average_down(x: Tensor, out_dim: int, time: int, space: int) -> Tensor:
    """(B, C, T, H, W) -> (B, out_dim, ceil(T / time), H / space, W / space): means over blocks of neighbours.

    A clip whose length `time` does not divide gets zero frames before it.
    Source: `AvgDown3D` in Wan-Video/Wan2.2 wan/modules/vae2_2.py.
    """
    if time == space == 1:
        return x
    kept_t, kept_h, kept_w = _kept(out_dim // x.shape[1], time, space)
    pooled = clips(F.avg_pool2d(frames(x), (space // kept_h, space // kept_w)), x.shape[0])
    rows = pooled.permute(0, 2, 3, 4, 1).unflatten(3, (-1, kept_w)).unflatten(2, (-1, kept_h))
    rows = F.pad(rows, (0, 0) * 5 + (-rows.shape[1] % time, 0))  # (B, T, h, kept_h, w, kept_w, C)
    rows = rows.unflatten(1, (-1, kept_t, time // kept_t)).mean(3)
    return rows.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(4).permute(0, 4, 1, 2, 3)


def add_duplicated(base: Tensor, x: Tensor, time: int, *, first: bool) -> Tensor:
    """base plus x made twice as large on each side and `time` times as long.

    base (B, out_dim, T', 2H, 2W), x (B, C, T, H, W) and T' = T * time; but of a clip's `first` frame only the last copy
    counts, so that T' is less by time - 1. Source: `DupUp3D` in Wan-Video/Wan2.2 wan/modules/vae2_2.py.
    """
    return _AddDuplicated.apply(base, x, time, first)


def _kept(factor: int, time: int, space: int) -> tuple[int, int, int]:
    """How much of a factor in channels each axis (time, row, column) of a block stands for, the slowest axis first."""
    kept_t = min(factor, time)
    kept_h = min(factor // kept_t, space)
    return kept_t, kept_h, factor // kept_t // kept_h


class _AddDuplicated(torch.autograd.Function):
    """Written out so that the duplicate is never stored; its gradient is `average_down` but for a factor."""

    @staticmethod
    def forward(ctx, base: Tensor, x: Tensor, time: int, first: bool) -> Tensor:
        ctx.dim, ctx.time, ctx.scale = x.shape[1], time, time * 4 * base.shape[1] // x.shape[1]
        kept = _kept(x.shape[1] // base.shape[1], time, 2)
        source = x.permute(0, 2, 3, 4, 1).unflatten(-1, (-1, *kept))  # (B, T, H, W, C, t, h, w)
        source = source.permute(0, 5, 1, 2, 6, 3, 7, 4).contiguous()  # (B, t, T, H, h, W, w, C)
        out = torch.empty_like(base, memory_format=torch.channels_last_3d)
        absent = time - 1 if first else 0  # copies that the first frame goes without
        for place in range(time):
            skip = place < absent
            start = place - absent + time * skip
            target, values = (_blocks(clip)[:, start::time] for clip in (out, base))
            torch.add(values, source[:, min(place, kept[0] - 1), int(skip) :], out=target)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, average_down(grad, ctx.dim, ctx.time, 2) * ctx.scale, None, None


def _blocks(clip: Tensor) -> Tensor:
    return clip.permute(0, 2, 3, 4, 1).unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # (B, T, h, 2, w, 2, C)
