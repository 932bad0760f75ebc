"""RMS normalisation over channels with SiLU after it, for tensors whose channels lie together in memory.

Written as separate operations this is ten passes over the largest tensors of the VAE; in blocks that stay in the cache, one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 131072
"""Values per block: 512 KB of float32, so that a block and its copies fit the second-level cache."""


def rms_norm(x: Tensor, gamma: Tensor, *, silu: bool = False, room: int = 0) -> Tensor:
    """x (B, C, T, H, W) with each pixel's channels scaled to length sqrt(C), times gamma (C,), then SiLU if asked.

    Computed in float32, returned in x's dtype with `room` frames of zeros before it (where a causal convolution looks back), in
    `channels_last_3d` memory. Source: `RMS_norm` in Wan-Video/Wan2.1 wan/modules/vae.py.
    """
    return _RMSNorm.apply(x, gamma, silu, room)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, silu: bool, room: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        batch, dim, count, height, width = x.shape
        out = x.new_empty(batch, count + room, height, width, dim).permute(0, 4, 1, 2, 3)
        out[:, :, :room] = 0
        inverse = torch.empty(batch, count * height * width, 1, dtype=torch.float32, device=x.device)
        scale = gamma.float() * dim**0.5
        for source, target, factor in _blocks(x, out[:, :, room:], inverse):
            values = source.float()
            length = torch.linalg.vector_norm(values, dim=-1, keepdim=True).clamp_min_(1e-12)  # as F.normalize does
            torch.reciprocal(length, out=factor)
            normed = target if target.dtype == torch.float32 else torch.empty_like(values)
            torch.mul(values, factor, out=normed).mul_(scale)
            if silu:
                F.silu(normed, inplace=True)
            if normed is not target:
                target.copy_(normed)
        ctx.save_for_backward(x, gamma, inverse)
        ctx.silu, ctx.room = silu, room
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, inverse = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        scale = gamma.float() * x.shape[1] ** 0.5
        grad_x, grad_scale = torch.empty_like(x), torch.zeros_like(scale)
        for source, upper, target, factor in _blocks(x, grad[:, :, ctx.room :], grad_x, inverse):
            unit = torch.mul(source, factor)
            slope = upper.float()
            if ctx.silu:
                slope = torch.ops.aten.silu_backward(slope, unit * scale)
            along = unit * slope
            grad_scale += along.sum(0)
            slope = slope * scale
            target.copy_(slope.addcmul_(unit, (along @ scale).unsqueeze(1), value=-1).mul_(factor))
        return grad_x, (grad_scale * x.shape[1] ** 0.5).to(gamma.dtype), None, None


def _blocks(*tensors: Tensor):
    """Matching blocks of rows: clips (B, C, T, H, W) as (N, C) views, and per-row tensors (B, N, 1) as they are."""
    rows = [t.permute(0, 2, 3, 4, 1).flatten(1, 3) if t.dim() == 5 else t for t in tensors]
    dim = tensors[0].shape[1]
    size = max(1, BLOCK // dim)
    for clip in zip(*rows, strict=True):
        yield from zip(*(part.split(size) for part in clip), strict=True)
