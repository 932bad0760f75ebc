"""Matrix products in 8-bit integers, for processors.

Weights get a scale for each output, once, and x one for each row as it comes (W8A8, dynamic), both symmetric, as in
torchao's `Int8DynamicActivationInt8WeightConfig` and SmoothQuant (arXiv 2211.10438, section 2). Shapes: M rows of x, K
numbers in, N numbers out.
"""

from functools import cache

import torch
from torch import Tensor

from dit_video.errors import UsageError

MOST = 127
HALF = 64  # the largest weight where pairs of products are added in 16 bits: 2 * 255 * 64 < 2^15
SMALLEST = torch.finfo(torch.float32).tiny


def check_int8(device: torch.device) -> None:
    """Refuses a PyTorch that has no such products. Raises UsageError."""
    if not torch.backends.mkldnn.is_available():
        raise UsageError(
            "--quantize int8: needs a PyTorch with oneDNN, and this one has none; the nearest is --quantize none."
        )


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
        rows = x.flatten(0, -2)  # (M, K)
        low, high = torch.aminmax(rows, dim=1, keepdim=True)
        scale = torch.maximum(high, low.neg_()).float().div_(MOST).clamp_(min=SMALLEST)
        levels = (rows * scale.reciprocal()).round_().to(torch.int8)  # (M, K)
        y = _multiplied(levels, self.packed, self.scale, self.zeros)  # (M, N) float32
        y = y.mul_(scale) if bias is None else torch.addcmul(bias.float(), y, scale, out=y)
        return y.to(x.dtype).unflatten(0, x.shape[:-1])


def _multiplied(levels: Tensor, packed: Tensor, scale: Tensor, zeros: Tensor) -> Tensor:
    """levels (M, K) int8 times packed weights (N, K), times their scale (N,): (M, N) float32."""
    return torch.ops.onednn.qlinear_pointwise(
        levels, 1.0, 0, packed, scale, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )


@cache
def _adds_exactly() -> bool:
    """Whether this processor's products of 8 bits are exact for all numbers: it is tried with the largest."""
    most = torch.full((32, 256), MOST, dtype=torch.int8)
    ones, zeros = torch.ones(32), torch.zeros(32, dtype=torch.int64)
    found = _multiplied(most, torch.ops.onednn.qlinear_prepack(most, None), ones, zeros)
    return bool((found == 256 * MOST**2).all())
