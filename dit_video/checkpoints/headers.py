"""What a safetensors file says of its tensors, without reading the numbers.

The file is 8 bytes (the header's length, little-endian), the header (JSON: name -> dtype, shape, offsets) and the data
(https://huggingface.co/docs/safetensors). Everything in the header is checked before anything relies on it: whoever
wrote the file may have meant harm, and most damaged files are merely cut short.
"""

import json
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_video.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
MAX_NAME = 200  # characters of a tensor's name that a message repeats
BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1} | {
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # of weights
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I8": "int8", "U8": "uint8"} | {
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}

_FORMATS = {"F64": "d", "F32": "f", "F16": "e", "BF16": "f", "I64": "q", "I32": "i", "I16": "h", "I8": "b", "U8": "B"}


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor as its file's header describes it.

    dtype: the code of the file's format, such as "BF16" or "Q4_K". nbytes: in the file. scale: of a quantised tensor,
    the one that it is multiplied by. piece: (k, n) where it is the k-th, from 0, of n equal pieces of the tensor `name`
    along the first axis; shape and nbytes are then the piece's.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    nbytes: int
    scale: "TensorInfo | None" = None
    piece: tuple[int, int] | None = None

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def is_quantised(self) -> bool:
        """Whether its numbers stand for others: in blocks (GGUF), or with a scale beside them."""
        return self.scale is not None or self.dtype not in BYTES


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Some tensors in figures: parameters, bytes on disk, and the dtypes in them (torch's names), most bytes first.

    quantised: those dtypes whose numbers stand for others, in blocks or with a scale beside them.
    """

    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]
    quantised: tuple[str, ...] = ()


def summarize(tensors: Iterable[TensorInfo]) -> Summary:
    """What `dvgen info` says about the files of one component."""
    tensors = list(tensors)
    share: dict[str, int] = {}
    quantised = set()
    for tensor in tensors:
        dtype = _NAMES.get(tensor.dtype, tensor.dtype)
        share[dtype] = share.get(dtype, 0) + tensor.nbytes
        if tensor.is_quantised:
            quantised.add(dtype)
    return Summary(
        parameters=sum(tensor.numel for tensor in tensors),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        dtypes=(dtypes := tuple(sorted(share, key=lambda dtype: -share[dtype]))),
        quantised=tuple(dtype for dtype in dtypes if dtype in quantised),
    )


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, without reading their data.

    Raises:
        CheckpointError: the file is missing, cut short, not safetensors, or its header contradicts itself.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{file}: is not a safetensors file, or is cut short ({size} bytes).")
            text = stream.read(length)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({reason(error)}).") from error
    try:
        header = json.loads(text, object_pairs_hook=_without_twins)
        header.pop("__metadata__", None)
        spans = {name: _span(name, entry) for name, entry in header.items()}
    except (ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file}: its header is damaged ({error}); fetch the file again.") from error
    needed = 8 + length + max((end for _, end in spans.values()), default=0)
    if size != needed:
        problem = "is cut short" if size < needed else "is too long"
        raise CheckpointError(f"{file}: {problem} ({size} bytes of {needed}); fetch the file again.")
    tensors = {
        name: TensorInfo(
            name=name,
            dtype=entry["dtype"],
            shape=tuple(entry["shape"]),
            file=file,
            nbytes=spans[name][1] - spans[name][0],
        )
        for name, entry in header.items()
    }
    _check(file, tensors, spans)
    return tensors


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, in which no name is there twice: of two tensors only one would be seen."""
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twin = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twin[:MAX_NAME]!r} is there twice")
    return found


def _span(name: str, entry: Mapping[str, Any]) -> tuple[int, int]:
    """Where a tensor's data begins and ends. Raises ValueError, LookupError, TypeError or AttributeError."""
    dtype, shape, (start, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    whole = [*shape, start, end]
    if not isinstance(dtype, str) or not isinstance(shape, list) or any(type(n) is not int or n < 0 for n in whole):
        raise ValueError(f"tensor {name[:MAX_NAME]!r} has no dtype, shape and offsets that make sense")
    return start, end


def _check(file: Path, tensors: Mapping[str, TensorInfo], spans: Mapping[str, tuple[int, int]]) -> None:
    if unknown := [tensor for tensor in tensors.values() if tensor.dtype not in BYTES]:
        name, dtype = unknown[0].name[:MAX_NAME], unknown[0].dtype[:MAX_NAME]
        raise CheckpointError(f"{file}: tensor {name!r} has the dtype {dtype}, which is not supported.")
    position = 0
    for name, (start, end) in sorted(spans.items(), key=lambda item: item[1]):
        info, problem = tensors[name], None
        if start != position:
            problem = "overlaps another one" if start < position else "leaves a gap before it"
        elif end - start != info.numel * BYTES[info.dtype]:
            problem = f"takes {end - start} bytes, which its shape and dtype do not"
        if problem:
            detail = f"tensor {name[:MAX_NAME]!r} {problem}"
            raise CheckpointError(f"{file}: its header is damaged ({detail}); fetch the file again.")
        position = end


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself, beside its tensors; a file that `read_header` accepts."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        found = json.loads(stream.read(length)).get("__metadata__")
    return found if isinstance(found, dict) else {}


def read_numbers(file: Path, tensors: Iterable[TensorInfo]) -> dict[str, float]:
    """The values of tensors of one element, by name, read without torch; of a file that `read_header` accepts.

    Raises:
        CheckpointError: a tensor has more elements or none, or is of a dtype that is read in other ways only.
    """
    tensors = list(tensors)
    for info in tensors:
        if info.numel != 1 or info.dtype not in _FORMATS:
            rule = f"it must be one number, one of {', '.join(_FORMATS)}"
            raise CheckpointError(f"{file}: {info.name!r} is {list(info.shape)} of {info.dtype}; {rule}.")
    found = {}
    for info, data in zip(tensors, read_bytes(file, tensors), strict=True):
        if info.dtype == "BF16":  # the upper half of a float32
            data = b"\0\0" + data
        (value,) = struct.unpack(f"<{_FORMATS[info.dtype]}", data)
        found[info.name] = float(value)
    return found


def read_bytes(file: Path, tensors: Iterable[TensorInfo]) -> Iterator[bytes]:
    """What is stored of small tensors, read without torch; of a file that `read_header` accepts."""
    tensors = list(tensors)
    if not tensors:
        return
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(length))
        for info in tensors:
            stream.seek(8 + length + header[info.name]["data_offsets"][0])
            yield stream.read(info.nbytes)


def reason(error: Exception) -> str:
    """An error of the system in its own words."""
    words = getattr(error, "strerror", None) or str(error)
    found = re.search(r"I/O error: (.*) \(os error \d+\)", words)  # how safetensors passes one on
    return found[1] if found else words
