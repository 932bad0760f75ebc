"""Elementwise functions that training can compile to one kernel each.

On a CPU the elementwise passes over (N, D) cost a small model more than its matrix products. Compiled, each function is
one pass forward and one backward: training steps are a quarter shorter (benchmarks/bench_training.py, --compile). It is
off until `enable` is called, as it needs a C++ compiler and a minute at the start.
"""

from collections.abc import Callable
from functools import cache, wraps
from typing import ParamSpec

import torch
from torch import Tensor

P = ParamSpec("P")
_state = {"enabled": False}


def enable(on: bool = True) -> None:
    """Compile all fusable functions when they are next called with gradients, or stop using what was compiled.

    With more than one thread, compiled functions sum the gradients of the modulation in any order: a run is then not
    repeatable bit for bit.
    """
    _state["enabled"] = on


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function, dynamic=True)


def fusable(function: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Mark an elementwise function; inside, `torch.compiler.is_compiling()` tells whether it is being compiled."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        compiled = _state["enabled"] and torch.is_grad_enabled()
        return (_compiled(function) if compiled else function)(*args, **kwargs)

    return call
