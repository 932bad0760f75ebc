"""Linear layers of the transformers: the one place that says how x W^T + b is computed.

With weights as they are; in float32 where weights are of 16 bits and the processor does not multiply those; or
quantised by one of `SCHEMES`. Shapes: M rows of x (tokens), K numbers in, N numbers out.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_video import limits
from dit_video.nn.activation import GELU
from dit_video.nn.fp8 import Fp8, check_fp8
from dit_video.nn.int8 import Int8, Rounded, check_int8
from dit_video.nn.processor import has_avx512


def multiplies(dtype: torch.dtype, device: str) -> bool:
    """Whether matrix products of this dtype run at the device's speed, and not number by number.

    Elsewhere the CPU's take several times as long as in float32: 18 against 110 GFLOP/s on two cores with AVX2. To
    compiled code it is a constant (`regional.compile_blocks`).
    """
    if device != "cpu" or dtype not in (torch.bfloat16, torch.float16):
        return True
    ops = torch.ops.mkldnn
    told = "_is_mkldnn_bf16_supported" if dtype == torch.bfloat16 else "_is_mkldnn_fp16_supported"
    return not torch.backends.mkldnn.is_available() or bool(getattr(ops, told)())


def product_dtype(parameter: Tensor) -> torch.dtype:
    """The dtype of matrix products of a layer with this parameter: autocast's where it is on, else the parameter's own,
    or float32 where the processor does not multiply that."""
    device = parameter.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return parameter.dtype if multiplies(parameter.dtype, device) else torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, then: GELU | None = None) -> Tensor:
    """x W^T + b in the dtype of x, or autocast's, whatever the weights are stored as; and what comes then."""
    if weight.dtype != x.dtype and not torch.is_autocast_enabled(x.device.type):
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if (then is not None or x.dtype == torch.bfloat16) and in_one(x, weight):
        name, form = ("none", "") if then is None else ("gelu", "tanh")
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, name, [], form)
    y = F.linear(x, weight, bias)
    return y if then is None else then(y)


def in_one(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to be asked for a product and what comes after it in one: that saves a pass through memory, and
    in bfloat16 there is less to do before it than in torch's `linear` (256 x 256: 66 against 155 us).

    Not on processors without AVX-512, where its GELU takes longer than torch's operations do.
    """
    return weight.is_contiguous() and onednn_multiplies(x)


def onednn_multiplies(x: Tensor) -> bool:
    """Whether oneDNN's products of x, without gradients, can be asked for by name and are worth it: with AVX-512."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    return has_avx512() and bool(torch.backends.mkldnn.enabled) and multiplies(x.dtype, "cpu")


class Product(Protocol):
    """x W^T + b with weights that were quantised beforehand."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K) and bias (N,) to (..., N) of x's dtype."""
        ...


class Linear(nn.Linear):
    """A linear layer whose weights `quantised` may let be quantised, when they are loaded or when they are used.

    Those that are loaded whole are quantised once and their float values dropped; those of layers that are streamed
    are quantised each time they are there. The numbers are the same.
    """

    scheme: str | None = None
    product: Product | None = None

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) to (..., N) of x's dtype, or autocast's."""
        if self.scheme is not None:
            return (self.product or SCHEMES[self.scheme](self.weight))(x, self.bias)
        return linear(x, self.weight, self.bias)

    def settle(self) -> None:
        """Quantise the weights that are there, if this layer is to be quantised, and drop them."""
        if self.scheme is not None and not self.weight.is_meta:
            self.product = SCHEMES[self.scheme](self.weight)
            self.weight = nn.Parameter(torch.empty_like(self.weight, device="meta"), requires_grad=False)


def several(x: Tensor, layers: Sequence[Linear]) -> list[Tensor]:
    """x (..., K) through each of these layers; where all have weights that were rounded to int8, x is rounded once."""
    products = [layer.product for layer in layers]
    hooked = any(layer._forward_hooks or layer._forward_pre_hooks for layer in layers)
    if hooked or not all(isinstance(product, Int8) for product in products):
        return [layer(x) for layer in layers]
    rounded = Rounded.of(x)
    pairs = zip(cast(list[Int8], products), layers, strict=True)
    return [product.of_rounded(rounded, layer.bias) for product, layer in pairs]


def quantised(modules: Iterable[nn.Module], scheme: str | None) -> None:
    """Let all `Linear` layers of these modules be quantised by one of SCHEMES, those at once whose weights are there;
    None leaves them as they are."""
    for module in modules:
        for layer in module.modules():
            if scheme is not None and isinstance(layer, Linear):
                layer.scheme = scheme
                layer.settle()


SCHEMES: dict[str, Callable[[Tensor], Product]] = {"int8": Int8, "fp8": Fp8}
"""What makes the product of weights (N, K), by its name, which `--quantize` takes."""

CHECKS: dict[str, Callable[[torch.device], None]] = {"int8": check_int8, "fp8": check_fp8}
"""What refuses a device of the right kind that has no such products all the same."""


def check_quantize(scheme: str | None, device: torch.device, dtype: torch.dtype, *, compiled: bool = False) -> None:
    """Refuses a scheme, a name in CHECKS, that cannot be carried out there, or in blocks that are compiled; None never
    is. Raises UsageError."""
    if scheme is not None:
        limits.check_quantize(scheme, device.type, str(dtype).removeprefix("torch."), compiled=compiled)
        CHECKS[scheme](device)
