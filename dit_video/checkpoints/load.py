"""Weights into modules: build without memory, check every name and shape by the headers, then stream tensor by tensor.

Nothing is read before everything fits, and nothing is kept twice: a tensor of the right dtype stays a map of its file.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from dit_video.checkpoints.files import save_tensors, some
from dit_video.checkpoints.formats import loadable
from dit_video.checkpoints.headers import FLOATS, TensorInfo
from dit_video.checkpoints.keymap import Layout, whole_name
from dit_video.checkpoints.stored import Stored
from dit_video.checkpoints.stream import StoredRows, Stream, copied, install, install_rows
from dit_video.checkpoints.transfer import Held, Transfer
from dit_video.errors import CheckpointError
from dit_video.nn.linear import Linear

M = TypeVar("M", bound=nn.Module)


class _EmptyOnMeta(TorchFunctionMode):
    """`torch.empty`, which parameters of torch's layers start as, takes no memory; buffers get their real values."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return func(*args, **((kwargs or {}) | ({"device": "meta"} if func is torch.empty else {})))


def load_into(
    build: Callable[[], M],
    tensors: Mapping[str, TensorInfo],
    layout: Layout,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    float32_names: Callable[[str], bool] = lambda name: False,
    change: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
    stream: Stream | None = None,
) -> M:
    """The module that `build` makes, with the tensors of a checkpoint as its parameters, ready for inference.

    Layers that are to be quantised (`nn.linear.quantised`) are, one by one, as their weights are read.

    Args:
        build: makes the module; it runs without allocating parameters.
        tensors: the headers by their names in `layout`, as from `read_headers` or of a `Part`.
        layout: translates the checkpoint's names to the module's.
        dtype: of the parameters and persistent buffers.
        float32_names: names (the module's) that are float32 whatever `dtype` is.
        change: what a tensor becomes, by its name (the module's), on the device, before it is cast.
        stream: layers whose weights are read again each time their turn comes, instead of now.

    Raises:
        CheckpointError: a tensor is missing, unexpected, mis-shaped, of a dtype that is not a float, or unreadable.
    """
    with _EmptyOnMeta():
        module = build()
    twins = _twins(module)
    sources = _match(module, tensors, layout, twins)
    transfer = Transfer(torch.device(device))
    reader = _Reader(dtype, transfer, float32_names, change)
    now = sources
    if stream is not None:
        now = install(module, stream, sources, reader.read, transfer)
    if stream is not None and stream.rows is not None:
        weight = f"{stream.rows}.weight"
        install_rows(module, _names(weight, twins), StoredRows(now.pop(weight), dtype, transfer.device))
    for name, tensor in reader.read(now):
        if stream is not None and name.startswith(stream.layers):
            tensor = copied(tensor)  # what is kept must not be a map that the system drops while others are read
        parameter = nn.Parameter(tensor, requires_grad=False)
        for each in _names(name, twins):
            _assign(module, each, parameter)
            _settle(module, each)
    for name, value in [*module.named_parameters(), *module.named_buffers()]:
        if value.is_meta and name not in sources:
            raise CheckpointError(f"{name}: no tensor of the checkpoint gives it a value.")
        if name not in sources:  # a buffer that is not persistent: computed when the module was built
            _assign(module, name, value.to(device))
    return module.eval().requires_grad_(False)


def check(build: Callable[[], nn.Module], tensors: Mapping[str, TensorInfo], layout: Layout) -> None:
    """Refuses what `load_into` would refuse of the headers; nothing is read.

    Raises:
        CheckpointError: a tensor is missing, unexpected, mis-shaped, or of a dtype that is not a float.
    """
    with _EmptyOnMeta():
        module = build()
    _match(module, tensors, layout, _twins(module))


@dataclass(frozen=True)
class _Reader:
    """Tensors of files as a module's parameters, see `load_into`."""

    dtype: torch.dtype
    transfer: Transfer
    float32_names: Callable[[str], bool]
    change: Callable[[str, Tensor], Tensor]

    def read(self, sources: Mapping[str, TensorInfo], held: Held | None = None) -> Iterator[tuple[str, Tensor]]:
        """Each tensor by our name; of one that stays as it is stored, on the CPU, a map of the file.

        held: where they are, if not in their files.
        """
        if held is not None:
            for name, info in sources.items():
                yield name, self._ready(name, held.get(info))
            return
        by_file = sorted(sources.items(), key=lambda item: item[1].file)
        for file, group in groupby(by_file, key=lambda item: item[1].file):
            with Stored(file) as stored:
                for name, info in group:
                    yield name, self._ready(name, stored.get(info, self.transfer))

    def _ready(self, name: str, tensor: Tensor) -> Tensor:
        return self.change(name, tensor).to(torch.float32 if self.float32_names(name) else self.dtype)


def save_model(module: nn.Module, file: Path, layout: Layout, dtype: torch.dtype | None = None) -> None:
    """Writes a module's parameters and persistent buffers under the layout's names, as `dtype` if one is given.

    Raises:
        CheckpointError: a name that the layout does not have, or the file cannot be written.
    """
    state = {layout.to_theirs(name): tensor.detach() for name, tensor in module.state_dict().items()}
    save_tensors({name: tensor.to("cpu", dtype).contiguous() for name, tensor in state.items()}, file)


def _twins(module: nn.Module) -> dict[str, str]:
    """The second and further names of parameters that a module has under several, and the first of each."""
    first: dict[int, str] = {}
    named = module.named_parameters(remove_duplicate=False)
    return {name: first[id(p)] for name, p in named if first.setdefault(id(p), name) != name}


def _names(name: str, twins: Mapping[str, str]) -> list[str]:
    """All names of a parameter."""
    return [name, *(twin for twin, first in twins.items() if first == name)]


def _match(
    module: nn.Module, tensors: Mapping[str, TensorInfo], layout: Layout, twins: Mapping[str, str]
) -> dict[str, TensorInfo]:
    """The checkpoint's tensors by our names, once they are exactly those of the module."""
    sources: dict[str, TensorInfo] = {}
    for theirs, info in tensors.items():
        name = layout.to_ours(theirs)
        if name in sources:
            raise CheckpointError(
                f"{info.file}: {info.name!r} and {sources[name].name!r} are both the tensor {name!r}."
            )
        sources[name] = info
    where = next((info.file.parent for info in sources.values()), Path())
    wanted = {name: tensor for name, tensor in module.state_dict().items() if name not in twins}
    if missing := dict.fromkeys(whole_name(layout.to_theirs(name))[0] for name in wanted if name not in sources):
        raise CheckpointError(f"{where}: {some([*missing], 'missing')}.")
    if unexpected := [info.name for name, info in sources.items() if name not in wanted]:
        raise CheckpointError(f"{where}: {some(unexpected, 'unexpected')}.")
    for name, info in sources.items():
        if info.shape != tuple(wanted[name].shape):
            expected = list(wanted[name].shape)
            raise CheckpointError(f"{info.file}: tensor {info.name!r} is {list(info.shape)}; it must be {expected}.")
        if not loadable(info):
            raise CheckpointError(
                f"{info.file}: tensor {info.name!r} is {info.dtype}; it must be one of {', '.join(FLOATS)}."
            )
    return sources


def _settle(module: nn.Module, name: str) -> None:
    """Quantises a layer whose weights have been put in place, if it is one that is to be."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if isinstance(owner, Linear) and leaf == "weight":
        owner.settle()


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    """Puts `tensor` in the place of the parameter or buffer `name`."""
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if leaf in owner._parameters:
        assert isinstance(tensor, nn.Parameter)  # one for all of its names
        owner._parameters[leaf] = tensor
    else:
        owner._buffers[leaf] = tensor.detach()
