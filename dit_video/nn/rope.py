"""Rotary position embedding over (time, height, width), as in Wan: interleaved pairs, theta 10000; and its norm.

Shapes: N tokens, D width, E width of a head.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

THETA = 10000.0


def axis_dims(head_dim: int) -> tuple[int, int, int]:
    """How many of a head's channels turn with time, height and width: the last two get 2 * (head_dim // 6) each."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


@lru_cache(maxsize=256)
def rope_table(grid: tuple[int, int, int], head_dim: int) -> Tensor:
    """cos + i sin of the angle of each token and channel pair: (T H W, head_dim / 2) complex64 on the CPU.

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
    return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)


def rotate(x: Tensor, table: Tensor) -> Tensor:
    """Turn the channel pairs (2j, 2j + 1) of every head of x (N, D) float32 by the angles of `table` (N, E / 2)."""
    pairs = torch.view_as_complex(x.view(len(x), -1, table.shape[1], 2))  # (N, heads, E / 2)
    return torch.view_as_real(pairs * table[:, None]).view_as(x)  # (N, D)


def rms_norm_rotate(x: Tensor, weight: Tensor, table: Tensor | None, eps: float) -> Tensor:
    """RMS norm over all of D with gain `weight`, then `rotate` (not if table is None), in float32: (N, D) to (N, D).

    Its backward is written out because autograd's makes about three times as many passes over (N, D).
    """
    return _RMSNormRotate.apply(x, weight, table, eps)


class _RMSNormRotate(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, table: Tensor | None, eps: float) -> Tensor:
        ctx.dtype = x.dtype
        x = x.float()
        rstd = (torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_() / x.shape[-1] + eps).rsqrt_()  # (N, 1)
        normed = x * rstd
        ctx.save_for_backward(normed, rstd, weight, table)
        y = normed * weight
        return y if table is None else rotate(y, table)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        normed, rstd, weight, table = ctx.saved_tensors
        grad = grad.float()
        if table is not None:
            grad = rotate(grad.contiguous(), table.conj().resolve_conj())
        product = grad * normed
        with torch.autocast(grad.device.type, enabled=False):
            mean = (product @ weight)[:, None] / weight.numel()  # (N, 1)
        d_x = (grad * weight).addcmul_(normed, mean, value=-1).mul_(rstd).to(ctx.dtype)
        return d_x, product.sum(0), None, None
