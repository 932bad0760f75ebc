"""Rotary position embedding over (time, height, width), as in Wan: interleaved pairs, theta 10000; and the norm before.

Shapes: N tokens, D width, E width of a head.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_video.nn.fusion import fusable

THETA = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's channels turn with time, height and width: the last two get 2 * (head_dim // 6) each."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


@lru_cache(maxsize=256)
def rope_table(grid: tuple[int, int, int], head_dim: int) -> Tensor:
    """cos and sin of the angle of each token and channel pair: (T H W, head_dim / 2, 2) float32 on the CPU.

    Angles are computed in float64, as the Wan release does (wan/modules/model.py, `rope_params`), then rounded once.
    """
    parts = []
    for axis, (size, dim) in enumerate(zip(grid, axis_dims(head_dim), strict=True)):
        rates = THETA ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        angles = torch.outer(torch.arange(size, dtype=torch.float64), rates)  # (size, dim / 2)
        shape = [1, 1, 1, dim // 2]
        shape[axis] = size
        parts.append(angles.view(shape).expand(*grid, -1))  # (T, H, W, dim / 2)
    angles = torch.cat(parts, dim=-1).flatten(0, 2)  # (T H W, head_dim / 2)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).float()


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the channel pairs (2j, 2j + 1) of every head of x (N, D) float32 by the angles of `table` (N, E / 2, 2)."""
    pairs = x.view(len(x), -1, *table.shape[1:])  # (N, heads, E / 2, 2)
    table = table[:, None]  # (N, 1, E / 2, 2)
    if torch.compiler.is_compiling():  # which does not know complex numbers
        (a, b), (cos, sin) = pairs.unbind(-1), table.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(table))
    return turned.view_as(x)  # (N, D)


@fusable
def rms_norm_rotate(x: Tensor, weight: Tensor, table: Tensor | None, eps: float) -> Tensor:
    """RMS norm over all of D with gain `weight`, then `rotate` if there is a table, in float32: (N, D) to (N, D)."""
    y = x.float()
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        normed = F.rms_norm(y, x.shape[-1:], weight, eps)
        return (normed if table is None else rotate(normed, table)).to(x.dtype)
    # The same in fewer passes: what a token is divided by goes into its angles, of which there are fewer.
    factor = torch.linalg.vector_norm(y, dim=-1).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    y = y * weight
    y = y.mul_(factor[:, None]) if table is None else rotate(y, table * factor[:, None, None])
    return y.to(x.dtype)
