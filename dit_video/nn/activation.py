"""The activation of the feed-forward layers."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_video.nn.fusion import fusable
from dit_video.nn.parts import by_parts

C = math.sqrt(2 / math.pi)
A = 0.044715


@fusable
def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh approximation, x (1 + tanh(u)) / 2 with u = C (x + A x^3) (arXiv 1606.08415)."""
    if torch.compiler.is_compiling():
        # (1 + tanh(u)) / 2 = sigmoid(2 u), which compiles to half the time
        z = x.float()
        return (z * torch.sigmoid(2 * C * z * (1 + A * z * z))).to(x.dtype)
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        # the same: torch's tanh takes several times as long as its exponential
        if x.dtype == torch.float32:
            return _by_sigmoid(x)
        if x.dtype in (torch.bfloat16, torch.float16) and x.dim() > 1:
            y = torch.empty_like(x, memory_format=torch.contiguous_format)
            for part, place in zip(*by_parts(x.flatten(0, -2), y.flatten(0, -2)), strict=True):
                place.copy_(_by_sigmoid(part.float()))
            return y
    return F.gelu(x, approximate="tanh")


def _by_sigmoid(x: Tensor) -> Tensor:
    """`gelu_tanh` of float32."""
    return (x * x).mul_(2 * C * A).add_(2 * C).mul_(x).sigmoid_().mul_(x)


class GELU(nn.Module):
    """`gelu_tanh` as a layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to (..., D)."""
        return gelu_tanh(x)
