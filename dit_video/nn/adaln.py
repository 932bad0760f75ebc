"""Adaptive layer norm: a token's noise level scales, shifts and gates what a block adds to it (DiT, arXiv 2212.09748).

Shapes: N tokens, D width, U distinct noise levels; `level` (N,) int64 is each token's row of a (U, D) table. All
arithmetic is float32.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_video.nn.fusion import fusable


def timestep_embedding(timesteps: Tensor, dim: int) -> Tensor:
    """Sinusoids of timesteps (U,) in 0..1000: (U, dim) float32, cosines first.

    In float64, as in the Wan release (wan/modules/model.py, `sinusoidal_embedding_1d`): angles reach 1000 radians.
    """
    half = dim // 2
    rates = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float64, device=timesteps.device) / half)
    angles = timesteps.double()[:, None] * rates  # (U, dim / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1).float()


def to_tokens(table: Tensor, level: Tensor) -> Tensor:
    """(U, D) to (N, D), or (1, D), which broadcasts, when there is one level."""
    return table if len(table) == 1 else table.index_select(0, level)


@fusable
def modulated_norm(x: Tensor, shift: Tensor, scale: Tensor, level: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """layer_norm(x) (1 + scale) + shift: x (N, D) float32, shift and scale (U, D) to (N, D) of `dtype`."""
    if len(shift) == 1:
        return F.layer_norm(x, x.shape[-1:], 1 + scale[0], shift[0], eps).to(dtype)
    normed = F.layer_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(to_tokens(shift, level), normed, 1 + to_tokens(scale, level)).to(dtype)


@fusable
def gated_add(x: Tensor, y: Tensor, gate: Tensor, level: Tensor) -> Tensor:
    """x + y gate: x (N, D) float32, y (N, D) of any dtype, gate (U, D) to (N, D) float32."""
    return x + y * to_tokens(gate, level)
