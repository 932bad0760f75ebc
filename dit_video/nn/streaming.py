"""Layers of which only a few have their weights in memory at a time: read when their turn comes, one ahead.

The numbers are those of the layers with all of their weights: what is streamed is memory, not arithmetic.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor, nn

Slot = dict[str, Tensor]  # weights by their names in a layer; the same memory is filled again for another layer
Fill = Callable[[int, Slot, Collection[str]], Slot]
"""fill(index, slot, names): the layer's weights, only those of `names` if there are any, in the memory of `slot` where
their shapes are alike."""


class StreamedList(nn.ModuleList):
    """A list of layers to iterate over in order; a layer's weights are there until the next one is asked for.

    While a layer computes, a thread fills the memory of the one before it with the weights of the next: two layers'
    worth in all, and those of the layers that are kept.
    """

    def __init__(self, layers: Iterable[nn.Module], fill: Fill, kept: Collection[int] = ()) -> None:
        """The layers in `kept` have their weights, all others have parameters on the meta device."""
        super().__init__(layers)
        self._fill = fill
        self._streamed = [index for index in range(len(self)) if index not in kept]
        self._slots: list[Slot] = [{}, {}]
        self._used: list[torch.cuda.Event | None] = [None, None]  # when a slot's last layer was through, on a GPU
        self._ahead: tuple[int, int, Future[Slot]] | None = None  # layer, slot and its weights to be
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="weights")
        self._copies: dict[torch.device, torch.cuda.Stream] = {}

    def __iter__(self) -> Iterator[nn.Module]:
        layers = list(self._modules.values())
        for index, layer in enumerate(layers):
            assert layer is not None
            if index not in self._streamed:
                yield layer
                continue
            slot, weights = self._take(index)
            _attach(layer, weights)
            self._begin(self._after(index), 1 - slot)
            try:
                yield layer
            finally:
                _detach(layer, weights)
                self._used[slot] = _mark(weights)

    def each(self, names: Collection[str]) -> Iterator[nn.Module]:
        """The layers in order, those that are streamed with the weights of these names alone."""
        for index, layer in enumerate(list(self._modules.values())):
            assert layer is not None
            if index not in self._streamed:
                yield layer
                continue
            weights = self._thread.submit(self._fill, index, {}, names).result()
            _attach(layer, weights)
            try:
                yield layer
            finally:
                _detach(layer, weights)

    def _after(self, index: int) -> int:
        """The streamed layer that follows, from the last one on the first of the next pass."""
        place = self._streamed.index(index) + 1
        return self._streamed[place % len(self._streamed)]

    def _take(self, index: int) -> tuple[int, Slot]:
        """The slot and the weights of a layer, which are there or on their way unless the order was broken."""
        if self._ahead is None or self._ahead[0] != index:
            if self._ahead is not None:
                self._ahead[2].result()  # its slot is being filled
            self._begin(index, 0)
        assert self._ahead is not None
        _, slot, future = self._ahead
        self._ahead = None
        self._slots[slot] = future.result()
        return slot, self._slots[slot]

    def _begin(self, index: int, slot: int) -> None:
        self._ahead = index, slot, self._thread.submit(self._read, index, slot)

    def _read(self, index: int, slot: int) -> Slot:
        """The weights of a layer in a slot; on a GPU by a stream of their own, once the slot's layer is through."""
        used = self._used[slot]
        if used is None:
            return self._fill(index, self._slots[slot], ())
        device = next(iter(self._slots[slot].values())).device
        stream = self._copies.setdefault(device, torch.cuda.Stream(device))
        with torch.cuda.stream(stream):
            stream.wait_event(used)
            weights = self._fill(index, self._slots[slot], ())
        stream.synchronize()
        return weights


def layers_with(layers: nn.ModuleList, *names: str) -> Iterator[nn.Module]:
    """Layers in order, whose weights of these names are there, for what needs no others."""
    return layers.each(names) if isinstance(layers, StreamedList) else iter(layers)


def spread(count: int, keep: int) -> list[int]:
    """Which `keep` of `count` layers are kept: spread evenly, so that the others are read while they compute."""
    return [index for index in range(count) if (index + 1) * keep // count > index * keep // count]


def _attach(layer: nn.Module, weights: Slot) -> None:
    for name, tensor in weights.items():
        owner, leaf = _owner(layer, name)
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)


def _detach(layer: nn.Module, weights: Slot) -> None:
    for name, tensor in weights.items():
        owner, leaf = _owner(layer, name)
        owner._parameters[leaf] = nn.Parameter(torch.empty_like(tensor, device="meta"), requires_grad=False)


def _owner(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return layer.get_submodule(path), leaf


def _mark(weights: Slot) -> "torch.cuda.Event | None":
    """An event after all that has been asked of a GPU so far, None on the CPU, which is through already."""
    device = next(iter(weights.values())).device
    if device.type != "cuda":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event
