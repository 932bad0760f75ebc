"""The feed-forward layers of a transformer."""

from typing import cast

import torch
from torch import Tensor, nn

from dit_video.nn.activation import GELU
from dit_video.nn.linear import Linear, in_one, linear

ROWS = 512
"""Tokens at a time on a CPU where GELU is computed by itself: so few that what is between the layers, several times as
wide as the tokens, is still in the cache when it is read: a third off the time of 6,240 tokens that are 256 wide.
"""

PART = 2**24
"""Bytes of what is between the layers at a time where the product computes GELU as well. Products have a start of their
own, some 50 us, so that there fewer tokens at a time only cost time (`docs/log.md`).
"""


class FeedForward(nn.Sequential):
    """A linear layer with GELU, and another one."""

    def __init__(self, dim: int, hidden: int):
        super().__init__(Linear(dim, hidden), GELU(), Linear(hidden, dim))
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        """(N, D) to (N, D)."""
        rows = max(PART // (self.hidden * x.element_size()), ROWS) if self._in_one(x) else ROWS
        whole = x.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling()
        if whole or len(x) <= rows:
            return self.layers(x)
        return torch.cat([self.layers(part) for part in x.split(rows)])

    def layers(self, x: Tensor) -> Tensor:
        """All tokens at once."""
        first, gelu, second = cast(Linear, self[0]), cast(GELU, self[1]), self[2]
        return second(linear(x, first.weight, first.bias, gelu) if self._in_one(x) else gelu(first(x)))

    def _in_one(self, x: Tensor) -> bool:
        """Whether the first product computes GELU too: not where it is quantised, or something hooks in between."""
        first = cast(Linear, self[0])
        return first.scheme is None and not first._forward_hooks and in_one(x, first.weight)
