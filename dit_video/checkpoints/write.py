"""Safetensors files written tensor by tensor, so that nothing as large as a model is ever in memory.

The header is made from what is known of the tensors before they are read; then each is read, cast and written in turn.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dit_video import atomic
from dit_video.checkpoints.files import write_json
from dit_video.checkpoints.headers import BYTES, FLOATS, TensorInfo, reason
from dit_video.checkpoints.stored import DTYPES, read_tensor
from dit_video.errors import CheckpointError

SHARD_BYTES = 10 * 10**9
"""The most that a file of several holds, as in diffusers, unless one tensor alone is larger."""

_PIECE = 2**24  # elements that are cast at a time
_ALIGNMENT = 8  # bytes, of where the data begins


@dataclass(frozen=True, kw_only=True)
class Planned:
    """A tensor that is to be written: where it is stored, and the dtype (the format's code) that it becomes.

    then: others that follow it along the first axis, and are one tensor with it.
    """

    source: TensorInfo
    dtype: str
    then: tuple[TensorInfo, ...] = ()

    @property
    def sources(self) -> tuple[TensorInfo, ...]:
        """Where its numbers are stored, in their order."""
        return (self.source, *self.then)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        if not self.then:
            return self.source.shape
        return (sum(info.shape[0] for info in self.sources), *self.source.shape[1:])

    @property
    def nbytes(self) -> int:
        """Its bytes once it is written."""
        return sum(info.numel for info in self.sources) * BYTES[self.dtype]


Tensors = Mapping[str, Planned | bytes]  # bytes: a tensor of them, uint8


def planned(info: TensorInfo, dtype: str | None, *then: TensorInfo) -> Planned:
    """A tensor as `dtype`, or None for the one that it has (bfloat16 if it is quantised); whole numbers stay so.

    then: see `Planned`; of several that are to keep dtypes that differ, float32.
    """
    kept = {_kept(each, dtype) for each in (info, *then)}
    return Planned(source=info, dtype=kept.pop() if len(kept) == 1 else "F32", then=then)


def _kept(info: TensorInfo, dtype: str | None) -> str:
    if info.is_quantised:
        return dtype or "BF16"
    return dtype if dtype and info.dtype in FLOATS else info.dtype


def nbytes(tensors: Tensors) -> int:
    """The bytes of all of them, without the header."""
    return sum(_entry(tensor)[2] for tensor in tensors.values())


def write_tensors(file: Path, tensors: Tensors, done: Callable[[], object] = lambda: None) -> None:
    """Writes a safetensors file under a temporary name, which is renamed when it is whole.

    done: called after each tensor.

    Raises:
        CheckpointError: a tensor cannot be read, has values that float16 has no room for, or the file cannot be
            written.
    """
    # The widest numbers first, as the format's own library does: so each lies at a multiple of its width.
    ordered = sorted(tensors, key=lambda name: (-BYTES[_entry(tensors[name])[0]], name))
    try:
        with atomic.replacing(file) as part, part.open("wb") as stream:
            stream.write(_header({name: tensors[name] for name in ordered}))
            for name in ordered:
                tensor = tensors[name]
                if isinstance(tensor, bytes):
                    stream.write(tensor)
                else:
                    _write(stream.write, tensor)
                done()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be written ({reason(error)}).") from error


def write_shards(
    folder: Path,
    stem: str,
    tensors: Tensors,
    *,
    limit: int | None = SHARD_BYTES,
    done: Callable[[], object] = lambda: None,
) -> None:
    """Writes STEM.safetensors, or where that were larger than `limit` its shards, in the order of `tensors`, and their
    index.

    limit: the most bytes of a file, None for one file in any case.

    Raises:
        CheckpointError: see `write_tensors`.
    """
    shards = _shards(tensors, limit)
    if len(shards) == 1:
        write_tensors(folder / f"{stem}.safetensors", tensors, done)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        write_tensors(folder / name, shard, done)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {"total_size": nbytes(tensors)}, "weight_map": weight_map}
    write_json(folder / f"{stem}.safetensors.index.json", index)


def _shards(tensors: Tensors, limit: int | None) -> list[dict[str, Planned | bytes]]:
    shards: list[dict[str, Planned | bytes]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        needed = _entry(tensor)[2]
        if limit is not None and shards[-1] and size + needed > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += needed
    return shards


def _entry(tensor: Planned | bytes) -> tuple[str, tuple[int, ...], int]:
    """The dtype, shape and bytes of a tensor in the file."""
    if isinstance(tensor, bytes):
        return "U8", (len(tensor),), len(tensor)
    return tensor.dtype, tensor.shape, tensor.nbytes


def _header(tensors: Tensors) -> bytes:
    """What comes before the data of these tensors, in their order."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}  # what transformers looks for
    position = 0
    for name, tensor in tensors.items():
        dtype, shape, size = _entry(tensor)
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _write(write: Callable[[memoryview], object], tensor: Planned) -> None:
    """The numbers of a tensor, cast piece by piece."""
    dtype = DTYPES[tensor.dtype]
    for source in tensor.sources:
        _write_numbers(write, source, dtype)


def _write_numbers(write: Callable[[memoryview], object], source: TensorInfo, dtype: torch.dtype) -> None:
    for piece in read_tensor(source).reshape(-1).split(_PIECE):
        cast = piece.to(dtype)
        if dtype == torch.float16:
            _refuse_overflow(source, piece, cast)
        write(memoryview(cast.contiguous().view(torch.uint8).numpy()))


def _refuse_overflow(info: TensorInfo, before: Tensor, after: Tensor) -> None:
    """Raises CheckpointError where numbers became infinite."""
    if before.dtype != after.dtype and bool((torch.isinf(after) & ~torch.isinf(before.float())).any()):
        largest = f"{before.float().abs().max():g}"
        rule = f"float16 ends at {torch.finfo(torch.float16).max:g}; bfloat16 has room for it"
        raise CheckpointError(f"{info.file}: tensor {info.name!r} holds {largest}, and {rule}.")
