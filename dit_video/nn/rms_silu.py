"""RMS normalisation over channels with SiLU after it, for clips whose channels lie together in memory.

Written as separate operations this is ten passes over the largest tensors of a VAE. Here it runs in blocks of rows that
stay in the cache, and stores nothing for the backward pass but its input and one number per pixel.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

CPU_BLOCK = 2**18
"""Values per block on a CPU: a megabyte of float32, so that the threads' shares and their copies fit the second-level
caches; smaller blocks lose more to starting the threads.
"""

GPU_BLOCK = 2**27
"""Values per block elsewhere: so many that launches cost nothing, so few that the float32 copies stay small."""


def rms_norm(x: Tensor, gamma: Tensor, *, silu: bool = False, room: int = 0, blank: int | None = None) -> Tensor:
    """x (B, C, T, H, W) with each pixel's channels scaled to length sqrt(C), times gamma (C,), then SiLU if asked.

    Computed in float32, returned in x's dtype and `channels_last_3d` memory, with `room` frames before it for a causal
    convolution to look back at: the first `blank` of them, or all, are zeros, and the others are the caller's to fill.
    Source: `RMS_norm` in Wan-Video/Wan2.1 wan/modules/vae.py.
    """
    return _RMSNorm.apply(x, gamma, silu, room, room if blank is None else blank)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, gamma: Tensor, silu: bool, room: int, blank: int) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last_3d)
        batch, dim, count, height, width = x.shape
        out = x.new_empty(batch, room + count, height, width, dim).permute(0, 4, 1, 2, 3)
        out[:, :, :blank] = 0
        inverse = torch.empty(batch, count * height * width, 1, dtype=torch.float32, device=x.device)
        scale = gamma.float() * dim**0.5
        for source, target, factor in _blocks(x, out[:, :, room:], inverse):
            values = source.float()
            length = torch.linalg.vector_norm(values, dim=-1, keepdim=True)
            torch.reciprocal(length.clamp_min_(1e-12), out=factor)  # the floor is F.normalize's
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
        grad_x, grad_scale = torch.empty_like(x), gamma.new_zeros(gamma.shape, dtype=torch.float32)
        scale = gamma.float() * x.shape[1] ** 0.5
        for source, upper, target, factor in _blocks(x, grad[:, :, ctx.room :], grad_x, inverse):
            unit = torch.mul(source, factor)
            slope = upper.float()
            if ctx.silu:
                slope = torch.ops.aten.silu_backward(slope, unit * scale)
            product = unit * slope
            grad_scale += product.sum(0)
            along = (product @ scale).unsqueeze(1)  # the part of the slope along x, which the norm takes out
            target.copy_((slope * scale).addcmul_(unit, along, value=-1).mul_(factor))
        return grad_x, (grad_scale * x.shape[1] ** 0.5).to(gamma.dtype), None, None, None


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching blocks of rows of the clips (B, C, T, H, W), as (N, C), and of numbers per row (B, T * H * W, 1)."""
    rows = [t.permute(0, 2, 3, 4, 1).flatten(1, 3) if t.dim() == 5 else t for t in tensors]
    values = CPU_BLOCK if tensors[0].device.type == "cpu" else GPU_BLOCK
    for clip in zip(*rows, strict=True):
        yield from zip(*(part.split(max(1, values // rows[0].shape[2])) for part in clip), strict=True)
