"""Tensors of files, see `formats`, read one by one.

They are maps of the file: nothing is in memory before it is asked for.
Pickles are read with `weights_only`, which runs no code of theirs.
"""

import logging
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dit_video.checkpoints.formats import PICKLES, first_line, gguf_reader, stamp
from dit_video.checkpoints.headers import BYTES, TensorInfo, reason
from dit_video.errors import CheckpointError

if TYPE_CHECKING:
    from numpy import ndarray

_log = logging.getLogger(__name__)

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""By the codes of safetensors, which this package gives all tensors that are not quantised in blocks."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Stored:
    """An open file of tensors; a context manager."""

    def __init__(self, file: Path) -> None:
        self.file = file
        _log.debug("reading tensors of %s", file)
        self._close: Callable[..., Any] = lambda *_: None
        self._read_rows: Callable[[str, Tensor], Tensor] = lambda name, index: self._read(name)[index]
        kind = file.suffix.lower()
        if kind == ".gguf":
            self._read, self._read_rows = _gguf_tensors(file)
        elif kind in PICKLES:
            self._read = _pickled(*stamp(file)).__getitem__
        else:
            from safetensors import safe_open

            with self._explained():
                opened = safe_open(file, framework="pt", device="cpu").__enter__()
            self._read, self._close = opened.get_tensor, opened.__exit__

    def __enter__(self) -> "Stored":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close(kind, error, trace)

    def get(self, info: TensorInfo, move: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Tensor:
        """A tensor of this file: a map of the file where it is stored as it is, float32 if it is quantised.

        move: brings it to another device, before it is made from what is stored.

        Raises:
            CheckpointError: it cannot be read.
        """
        if info.piece is not None:
            place, count = info.piece
            shape = (info.shape[0] * count, *info.shape[1:])
            return self.get(replace(info, piece=None, shape=shape), move).chunk(count)[place]
        return ready(info, lambda each: move(self.raw(each)))

    def raw(self, info: TensorInfo) -> Tensor:
        """What is stored under the name of a tensor, without its scale. Raises CheckpointError."""
        with self._explained():
            tensor = self._read(info.name)
        return tensor if tuple(tensor.shape) == info.shape else tensor.reshape(info.shape)

    def rows(self, info: TensorInfo, index: Tensor) -> Tensor:
        """Rows (n, in) of a matrix (out, in) of this file, and nothing else of it, as `get` gives them.

        Raises:
            CheckpointError: they cannot be read.
        """
        with self._explained():
            rows = self._read_rows(info.name, index).reshape(len(index), *info.shape[1:])
            if info.scale is None:
                return rows
            scale = self.raw(info.scale)
            return scaled(rows, scale if scale.numel() == 1 else scale[index * len(scale) // info.shape[0]])

    def _explained(self) -> "_Explained":
        return _Explained(self.file)


def read_tensor(info: TensorInfo) -> Tensor:
    """One tensor of its file, as `Stored.get` gives it. Raises CheckpointError."""
    with Stored(info.file) as stored:
        return stored.get(info)


class _Explained:
    """Errors of reading, which every library raises in its own way, as one sentence."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if isinstance(error, Exception) and not isinstance(error, CheckpointError):
            raise CheckpointError(f"{self.file}: cannot be read ({reason(error)}).") from error


def ready(info: TensorInfo, raw: Callable[[TensorInfo], Tensor]) -> Tensor:
    """A tensor as it is used, of what is stored of it: float32 where it has a scale."""
    return raw(info) if info.scale is None else scaled(raw(info), raw(info.scale))


def scaled(tensor: Tensor, scale: Tensor) -> Tensor:
    """A quantised tensor (out, ...) times its scale, float32.

    scale: one number, one for each row, (out,) or (out, 1), or one for each block, (out / g, in / g).
    """
    scale = scale.float()
    if scale.numel() == 1:
        return tensor.float() * scale.reshape(())
    if scale.ndim == 1:
        return tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
    down, across = (side // blocks for side, blocks in zip(tensor.shape, scale.shape, strict=True))
    blocks = tensor.float().view(scale.shape[0], down, scale.shape[1], across)
    return (blocks * scale[:, None, :, None]).view(tensor.shape)


# Pickles.


@lru_cache(maxsize=4)
def _pickled(file: Path, size: int, modified: int) -> dict[str, Tensor]:
    """The tensors of a file that torch.save wrote, as maps of it."""
    if file.is_file() and not zipfile.is_zipfile(file):
        raise CheckpointError(f"{file}: is not in torch.save's zip format, or is cut short; nothing of it was run.")
    try:
        found = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        detail = "it holds code" if "Unsupported" in str(error) or "weights_only" in str(error) else "it is damaged"
        raise CheckpointError(f"{file}: is not a file of tensors alone ({detail}); nothing of it was run.") from error
    except Exception as error:  # zip and pickle files can be wrong in every way
        raise CheckpointError(f"{file}: cannot be read ({first_line(error)}); fetch the file again.") from error
    if isinstance(found, dict) and set(found) == {"state_dict"}:
        found = found["state_dict"]
    if not isinstance(found, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items()
    ):
        raise CheckpointError(f"{file}: holds something other than named tensors.")
    return found


def describe_pickle(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a file that torch.save wrote. Raises CheckpointError."""
    tensors = {}
    for name, tensor in _pickled(*stamp(file)).items():
        if tensor.dtype not in _CODES:
            raise CheckpointError(f"{file}: tensor {name!r} has the dtype {tensor.dtype}, which is not supported.")
        code, shape = _CODES[tensor.dtype], tuple(tensor.shape)
        tensors[name] = TensorInfo(name=name, dtype=code, shape=shape, file=file, nbytes=tensor.numel() * BYTES[code])
    return tensors


# GGUF.


def _gguf_tensors(file: Path) -> tuple[Callable[[str], Tensor], Callable[[str, Tensor], Tensor]]:
    """What reads a tensor, and what reads some of its rows."""
    from gguf import GGMLQuantizationType, dequantize

    plain = (GGMLQuantizationType.F32, GGMLQuantizationType.F16)
    by_name = {tensor.name: tensor for tensor in gguf_reader(*stamp(file)).tensors}

    def numbers(kind: GGMLQuantizationType, data: "ndarray") -> Tensor:
        if kind == GGMLQuantizationType.BF16:
            return torch.from_numpy(data.view("int16")).view(torch.bfloat16)
        return torch.from_numpy(data if kind in plain else dequantize(data, kind))

    def read(name: str) -> Tensor:
        return numbers(by_name[name].tensor_type, by_name[name].data)

    def read_rows(name: str, index: Tensor) -> Tensor:
        return numbers(by_name[name].tensor_type, by_name[name].data[index.numpy()])

    return read, read_rows
