"""The feed-forward layers of a transformer."""

import torch
from torch import Tensor, nn

from dit_video.nn.activation import GELU
from dit_video.nn.linear import Linear

PART = 2**24
"""Bytes of what is between the layers, several times as wide as the tokens, that are there at a time on a CPU. Smaller
parts cost time: a product has a start of its own, some 50 us (`docs/log.md`).
"""


class FeedForward(nn.Sequential):
    """A linear layer with GELU, and another one."""

    def __init__(self, dim: int, hidden: int):
        super().__init__(Linear(dim, hidden), GELU(), Linear(hidden, dim))
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) to (N, D)."""
        rows = max(PART // (self.hidden * x.element_size()), 1)
        whole = x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling()
        if whole or len(x) <= rows:
            return self.layers(x)
        return torch.cat([self.layers(part) for part in x.split(rows)])

    def layers(self, x: Tensor) -> Tensor:
        """All tokens at once."""
        first, gelu, second = self
        return second(first(x, gelu))
