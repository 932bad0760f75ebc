"""Matrix products in 8-bit floats (e4m3), for GPUs that multiply those: Ada, Hopper and later.

Weights get a scale for each output, once, and x one for each row as it comes (W8A8, dynamic), as torchao's
`Float8DynamicActivationFloat8WeightConfig` with `PerRow()`. Shapes: M rows of x, K numbers in, N numbers out.
"""

import torch
from torch import Tensor

from dit_video.errors import UsageError

FORMAT = torch.float8_e4m3fn  # 448 at most, 3 bits of mantissa: FP8 Formats for Deep Learning, arXiv 2209.05433
MOST = torch.finfo(FORMAT).max
SMALLEST = torch.finfo(torch.float32).tiny
CAPABILITY = (8, 9)  # of a GPU with such products
SIXTEEN = 16  # the kernels take K and N that are multiples of so many


def check_fp8(device: torch.device) -> None:
    """Refuses GPUs without such products; other devices and dtypes `limits.check_quantize` does. Raises UsageError."""
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        told = ".".join(map(str, capability))
        needed = "--quantize fp8: needs a GPU of compute capability 8.9 or later"
        raise UsageError(f"{needed}, and this one has {told}; the nearest is --quantize none.")


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """x (M, K) as e4m3 levels (M, K) and the scale (M, 1) float32 of each row, which its largest number sets."""
    scale = x.abs().amax(1, keepdim=True).float().div(MOST).clamp(min=SMALLEST)  # (M, 1)
    return (x.float() / scale).clamp(-MOST, MOST).to(FORMAT), scale


class Fp8:
    """x W^T + b with weights (N, K) that were rounded to e4m3.

    Raises:
        UsageError: K or N is not a multiple of 16.
    """

    def __init__(self, weight: Tensor) -> None:
        if any(size % SIXTEEN for size in weight.shape):
            outputs, inputs = weight.shape
            raise UsageError(f"fp8 takes layers of multiples of {SIXTEEN}, and one is {inputs} to {outputs}.")
        self.levels, scale = rounded(weight)  # (N, K), (N, 1)
        self.scale = scale.t().contiguous()  # (1, N)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., K) and bias (N,) to (..., N) of x's dtype, bfloat16 on a GPU."""
        levels, scale = rounded(x.flatten(0, -2))  # (M, K), (M, 1)
        y = torch._scaled_mm(
            levels,
            self.levels.t(),
            scale_a=scale,
            scale_b=self.scale,
            out_dtype=x.dtype,
            use_fast_accum=x.device.type == "cuda",
        )  # (M, N)
        y = y if bias is None else y + bias.to(y.dtype)
        return y.unflatten(0, x.shape[:-1])
