"""Adaptive layer norm: the noise level of a token scales, shifts and gates what a block adds to it (DiT, arXiv
2212.09748).

Shapes: N tokens, D width, U distinct noise levels; `level` (N,) int64 is each token's row of a (U, D) table. All
arithmetic is float32. The two functions that blocks apply to every token have their backward written out: on a CPU,
elementwise passes over (N, D) cost a small model as much as its matrix products, and autograd's backward makes twice
as many of them.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoids of timesteps (U,) in 0..1000: (U, dim) float32, cosines first.

    In float64, as in the Wan release (wan/modules/model.py, `sinusoidal_embedding_1d`): angles reach 1000 radians.
    """
    half = dim // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
    angles = timesteps.double()[:, None] * rates  # (U, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, level: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """layer_norm(x) (1 + scale) + shift: x (N, D) float32, shift and scale (U, D) to (N, D) of `dtype`."""
    return _ModulatedNorm.apply(x, shift, scale, level, eps, dtype)


def gated_add(x: Tensor, y: Tensor, gate: Tensor, level: Tensor) -> Tensor:
    """x + y gate: x (N, D) float32, y (N, D) of any dtype, gate (U, D) to (N, D) float32."""
    return _GatedAdd.apply(x, y, gate, level)


def _to_tokens(table: Tensor, level: Tensor) -> Tensor:
    """(U, D) to (N, D), or (1, D), which broadcasts, when there is one level."""
    return table if len(table) == 1 else table.index_select(0, level)


def _to_levels(tokens: Tensor, level: Tensor, levels: int) -> Tensor:
    """(N, D) summed over the tokens of each level, (U, D)."""
    if levels == 1:
        return tokens.sum(0, keepdim=True)
    return tokens.new_zeros(levels, tokens.shape[1]).index_add_(0, level, tokens)


class _ModulatedNorm(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, shift: Tensor, scale: Tensor, level: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        normed, mean, rstd = torch.native_layer_norm(x, x.shape[-1:], None, None, eps)
        gain = 1 + scale
        ctx.save_for_backward(x, normed, mean, rstd, gain, level)
        return torch.addcmul(_to_tokens(shift, level), normed, _to_tokens(gain, level)).to(dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, normed, mean, rstd, gain, level = ctx.saved_tensors
        grad = grad.float()
        d_shift = _to_levels(grad, level, len(gain))
        d_scale = _to_levels(grad * normed, level, len(gain))
        d_normed = grad * _to_tokens(gain, level)
        d_x = torch.ops.aten.native_layer_norm_backward(
            d_normed, x, x.shape[-1:], mean, rstd, None, None, [True, False, False]
        )[0]
        return d_x, d_shift, d_scale, None, None, None


class _GatedAdd(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, gate: Tensor, level: Tensor) -> Tensor:
        ctx.save_for_backward(y, gate, level)
        return torch.addcmul(x, y.float(), _to_tokens(gate, level))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        y, gate, level = ctx.saved_tensors
        d_y = (grad * _to_tokens(gate, level)).to(y.dtype)
        d_gate = _to_levels(grad * y.float(), level, len(gate))
        return grad, d_y, d_gate, None
