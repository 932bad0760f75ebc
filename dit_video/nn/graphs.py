"""CUDA graphs where shapes repeat: the kernels of a function are recorded once and then started all together.

In denoising the transformer is called with the same shapes at every step, and where those are small a GPU waits for
the program to start its kernels. What is called once is not recorded: recording costs about what two calls do.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., Tensor]
Replay = Callable[..., Tensor]
Record = Callable[[Function, tuple[Tensor, ...]], Replay]
"""record(function, inputs): what gives function(*inputs) for inputs of the same shapes."""

MOST = 2  # graphs that are kept: of two passes of guidance, one after the other


@dataclass(frozen=True)
class Call:
    """What has to be the same for a recorded call to be good: `same` by value, `held` the very objects.

    held: whose memory the recorded kernels read.
    """

    same: Hashable
    held: tuple[object, ...]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Call)
            and self.same == other.same
            and len(self.held) == len(other.held)
            and all(a is b for a, b in zip(self.held, other.held, strict=True))
        )

    def __hash__(self) -> int:
        return hash((self.same, tuple(map(id, self.held))))


class Repeats:
    """Calls of functions: the first of a kind is made as it is, the second is recorded, those that follow are replayed.

    Of the kinds that were called last `MOST` are kept. recorded: how many recordings were made so far.
    """

    def __init__(self, record: Record | None = None) -> None:
        self._record = record or record_cuda
        self._kinds: OrderedDict[Call, Replay | None] = OrderedDict()  # the one that was called last at the end
        self.recorded = 0

    def __call__(self, call: Call, function: Function, *inputs: Tensor) -> Tensor:
        """function(*inputs), in memory of its own."""
        shapes = tuple((tuple(x.shape), x.dtype) for x in inputs)
        kind = Call((call.same, shapes), call.held)
        if kind not in self._kinds:
            while len(self._kinds) >= MOST:
                self._kinds.popitem(last=False)  # its memory is free before more is taken
            self._kinds[kind] = None
            return function(*inputs)
        self._kinds.move_to_end(kind)
        replay = self._kinds[kind]
        if replay is None:
            replay = self._kinds[kind] = self._record(function, inputs)
            self.recorded += 1
        return replay(*inputs)


def record_cuda(function: Function, inputs: tuple[Tensor, ...]) -> Replay:
    """Record on the GPU of the inputs: they get memory that stays, and what the function makes is copied out of it."""
    device = inputs[0].device
    assert device.type == "cuda", "there are CUDA graphs on CUDA alone"
    static = tuple(x.clone() for x in inputs)
    with torch.cuda.device(device):
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            function(*static)  # what libraries do the first time on a stream must not be recorded
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            made = function(*static)

    def replay(*given: Tensor, held: Function = function) -> Tensor:  # the kernels read what the function holds
        for place, x in zip(static, given, strict=True):
            place.copy_(x)
        graph.replay()
        return made.clone()

    return replay
