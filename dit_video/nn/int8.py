"""Matrix products in 8-bit integers, for processors.

Weights get a scale for each output, once, and x one for each row as it comes (W8A8, dynamic), both symmetric, as in
torchao's `Int8DynamicActivationInt8WeightConfig` and SmoothQuant (arXiv 2211.10438, section 2). Shapes: M rows of x, K
numbers in, N numbers out.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from dit_video.errors import UsageError
from dit_video.nn.parts import by_parts
from dit_video.nn.processor import has_amx, has_avx512

MOST = 127
HALF = 64  # the largest weight where pairs of products are added in 16 bits: 2 * 255 * 64 < 2^15
SMALLEST = torch.finfo(torch.float32).tiny


def check_int8(device: torch.device) -> None:
    """Refuses a PyTorch that has no such products. Raises UsageError."""
    if not torch.backends.mkldnn.is_available():
        raise UsageError(
            "--quantize int8: needs a PyTorch with oneDNN, and this one has none; the nearest is --quantize none."
        )


@dataclass(frozen=True)
class Rounded:
    """x (..., K), with M rows in all, as `levels` (M, K) times `scale` (M, 1).

    Levels are int8, or where `_unsigned` uint8 with 128 for 0. Scales are bfloat16 where x is, since they multiply what
    is rounded so, and else float32. shape and dtype: of x.
    """

    levels: Tensor
    scale: Tensor
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    @torch.no_grad()
    def of(cls, x: Tensor) -> "Rounded":
        """Of x, which gets no gradients through it."""
        rows = x.flatten(0, -2)
        scale = rows.new_empty(len(rows), 1, dtype=x.dtype if x.dtype == torch.bfloat16 else torch.float32)
        levels = torch.empty_like(rows, dtype=torch.int8)
        margin = (
            1 + torch.finfo(scale.dtype).eps / 2
        )  # a scale that is rounded down would lead beyond the largest level
        for part, factor, place in zip(*by_parts(rows, scale, levels), strict=True):
            factor.copy_(part.abs().amax(1, keepdim=True).float().mul_(margin / MOST).clamp_(min=SMALLEST))
            place.copy_((part * factor.float().reciprocal()).round_())
        if _unsigned():
            levels = levels.view(torch.uint8).bitwise_xor_(128)
        return cls(levels, scale, x.shape, x.dtype)


class Int8:
    """x W^T + b with weights (N, K) that were rounded to 8 bits.

    Sums are exact, in 32 bits. Processors without VNNI add pairs of products in 16 bits, which saturate: there weights
    go to +-64 only, so that no pair does.
    """

    def __init__(self, weight: Tensor) -> None:
        limit = MOST if _adds_exactly() else HALF
        self.scale = weight.abs().amax(1).float().div_(limit).clamp_(min=SMALLEST)  # (N,)
        levels = (weight / self.scale[:, None]).round_().to(torch.int8)  # (N, K)
        self.packed = torch.ops.onednn.qlinear_prepack(levels, None)
        self.zeros = torch.zeros_like(self.scale, dtype=torch.int64)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K) and bias (N,) to (..., N) of x's dtype."""
        return self.of_rounded(Rounded.of(x), bias)

    def of_rounded(self, x: Rounded, bias: Tensor | None) -> Tensor:
        """The same of x that was rounded before, which several layers may share."""
        dtype = x.scale.dtype
        y = _multiplied(x.levels, self.packed, self.scale, self.zeros, dtype)  # (M, N)
        y = y.mul_(x.scale) if bias is None else torch.addcmul(bias.to(dtype), y, x.scale, out=y)
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


def _multiplied(levels: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor, dtype: torch.dtype) -> Tensor:
    """levels (M, K) of x times packed weights (N, K), times their scale (N,): (M, N) of a dtype."""
    zero = 128 if levels.dtype == torch.uint8 else 0
    return torch.ops.onednn.qlinear_pointwise(
        levels, 1.0, zero, packed, scale, zeros, None, 1.0, 0, dtype, "none", [], ""
    )


@cache
def _unsigned() -> bool:
    """Whether numbers of x have to be unsigned: oneDNN has no products of signed ones with AVX-512 but without AMX, and
    multiplies them number by number, a hundred times as slowly."""
    return has_avx512() and not has_amx()


@cache
def _adds_exactly() -> bool:
    """Whether this processor's products of 8 bits are exact for all numbers: it is tried with the largest."""
    most = torch.full((32, 256), MOST, dtype=torch.int8)
    levels = most.view(torch.uint8).bitwise_xor(128) if _unsigned() else most
    ones, zeros = torch.ones(32), torch.zeros(32, dtype=torch.int64)
    found = _multiplied(levels, torch.ops.onednn.qlinear_prepack(most, None), ones, zeros, torch.float32)
    return bool((found == 256 * MOST**2).all())
