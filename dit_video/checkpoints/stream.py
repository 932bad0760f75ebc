"""Weights that stay in their files until they are needed: layers of a model that is larger than the memory for it."""

import mmap
import sys
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.parts import Keep
from dit_video.checkpoints.stored import Stored
from dit_video.checkpoints.transfer import Held, Transfer
from dit_video.nn.streaming import Slot, StreamedList, spread

ALIGNMENT = 64  # bytes, of what torch allocates
MAPPED = 2**18  # bytes, from which memory is asked of the system

Read = Callable[[Mapping[str, TensorInfo], Held | None], Iterator[tuple[str, Tensor]]]
"""Tensors by our names, ready for the module, from their files or from where they are held."""


@dataclass(frozen=True)
class Stream:
    """What of a module is read only when it is needed.

    layers: the name of the list of layers that are streamed. keep: what stays in memory of them. rows: the name of
    an embedding whose rows are read one by one, from wherever else in the module it is found too.
    """

    layers: str
    keep: Keep
    rows: str | None = None


class StoredRows(nn.Module):
    """An embedding whose rows stay in the file."""

    def __init__(self, info: TensorInfo, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.info, self.dtype, self.device = info, dtype, device

    def forward(self, index: Tensor) -> Tensor:
        """Numbers of rows (...) to rows (..., width). Raises CheckpointError when the file cannot be read."""
        with Stored(self.info.file) as stored:
            rows = stored.rows(self.info, index.flatten().cpu())
        return rows.to(self.device, self.dtype).unflatten(0, index.shape)


def install(
    module: nn.Module, stream: Stream, sources: Mapping[str, TensorInfo], read: Read, transfer: Transfer
) -> dict[str, TensorInfo]:
    """Puts layers in a module that read their weights themselves; what is left to be read now, for those that stay.

    sources: the module's tensors by its names. transfer: to where they are held, if they are.
    """
    path, _, leaf = stream.layers.rpartition(".")
    owner = module.get_submodule(path)
    layers = owner.get_submodule(leaf)
    assert isinstance(layers, nn.ModuleList)
    kept = spread(len(layers), stream.keep.layers)
    of_layers = [_under(f"{stream.layers}.{index}.", sources) for index in range(len(layers))]
    infos = (info for index, some in enumerate(of_layers) if index not in kept for info in some.values())
    held = Held(infos, transfer) if stream.keep.stored else None

    def fill(index: int, slot: Slot, names: Collection[str]) -> Slot:
        prefix = f"{stream.layers}.{index}."
        wanted = of_layers[index]
        if names:
            wanted = {name: info for name, info in wanted.items() if name[len(prefix) :].startswith(tuple(names))}
        return {
            name[len(prefix) :]: copied(tensor, slot.get(name[len(prefix) :])) for name, tensor in read(wanted, held)
        }

    setattr(owner, leaf, StreamedList(layers, fill, kept))
    later = {name for index, some in enumerate(of_layers) if index not in kept for name in some}
    return {name: info for name, info in sources.items() if name not in later}


def install_rows(module: nn.Module, names: Collection[str], rows: StoredRows) -> None:
    """Puts an embedding in a module wherever it is found, by the names of its weight there."""
    for name in names:
        path, _, leaf = name.removesuffix(".weight").rpartition(".")
        setattr(module.get_submodule(path), leaf, rows)


def _under(prefix: str, sources: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    return {name: info for name, info in sources.items() if name.startswith(prefix)}


def copied(tensor: Tensor, memory: Tensor | None = None) -> Tensor:
    """A tensor, which may be a map of a file, in memory that is there already if it is like it, else in new memory.

    On the CPU it begins as far behind a multiple of `ALIGNMENT` bytes as the tensor does: products of matrices are
    summed in another order where that differs, and streamed layers give the same bits as those that are maps.
    memory: what this function gave before, which is filled again and must not be used as it was.
    """
    if memory is not None and (memory.shape, memory.dtype) != (tensor.shape, tensor.dtype):
        memory = None
    if tensor.device.type != "cpu":
        return (torch.empty_like(tensor) if memory is None else memory).copy_(tensor, non_blocking=True)
    room = _room(tensor.nbytes + ALIGNMENT) if memory is None else _whole(memory)
    begin = (tensor.data_ptr() - room.data_ptr()) % ALIGNMENT
    place = room[begin : begin + tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    return place.copy_(tensor)


def _whole(part: Tensor) -> Tensor:
    """The bytes that a tensor is a part of."""
    return torch.empty(0, dtype=torch.uint8).set_(part.untyped_storage())


def _room(nbytes: int) -> Tensor:
    """New bytes, much of them from the system itself: the allocator of the C library keeps what is freed in pieces,
    which the next layers would not fit in."""
    if nbytes < MAPPED:
        return torch.empty(nbytes, dtype=torch.uint8)
    private = {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
    return torch.frombuffer(mmap.mmap(-1, nbytes, **private), dtype=torch.uint8)
