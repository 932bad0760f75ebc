"""What files of tensors hold, told without reading the numbers: safetensors, GGUF, and the pickles of PyTorch.

GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is read by the `gguf` package. Its files for diffusion
models keep the original names, shapes with the last axis first, and where a shape had to be changed the original one in
`comfy.gguf.orig_shape.NAME`. Only pickles need torch, which is imported for them.
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_video.checkpoints.headers import FLOATS, TensorInfo, read_header, reason
from dit_video.checkpoints.places import SUFFIXES
from dit_video.errors import CheckpointError

if TYPE_CHECKING:
    from gguf import GGUFReader

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".pth", ".pt", ".bin")
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."


def describe(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a file by name, whatever its format.

    Raises:
        CheckpointError: the file is missing, damaged, of an unknown format, or a pickle with code in it.
    """
    kind = file.suffix.lower()
    if kind in SAFETENSORS:
        return read_header(file)
    if kind == ".gguf":
        return _describe_gguf(file)
    if kind in PICKLES:
        from dit_video.checkpoints.stored import describe_pickle

        return describe_pickle(file)
    raise CheckpointError(f"{file}: is none of the formats that are read, which end in {', '.join(SUFFIXES)}.")


def loadable(info: TensorInfo) -> bool:
    """Whether a tensor stands for real numbers: floats, or what is quantised and has its scale, in its blocks (GGUF) or
    beside it."""
    return info.dtype in FLOATS or info.is_quantised


def stamp(file: Path) -> tuple[Path, int, int]:
    """What tells whether a file is still the one that was read. Raises CheckpointError."""
    try:
        found = file.stat()
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({reason(error)}).") from error
    return file, found.st_size, found.st_mtime_ns


def first_line(error: Exception) -> str:
    """What is wrong, of errors whose texts are long."""
    return (reason(error).splitlines() or [type(error).__name__])[0]


# GGUF.


@lru_cache(maxsize=2)
def gguf_reader(file: Path, size: int, modified: int) -> "GGUFReader":
    """The package's reader of a file; size, modified: of its `stamp`. Raises CheckpointError."""
    from gguf import GGUFReader

    try:
        return GGUFReader(file, "c")  # copy on write: torch wants memory that it may write to
    except Exception as error:  # the package checks little: wrong numbers end as any error
        raise CheckpointError(f"{file}: is not a GGUF file, or damaged ({first_line(error)}).") from error


def gguf_field(file: Path, name: str) -> Any:
    """A value of a GGUF file's metadata, None where it has none. Raises CheckpointError."""
    field = gguf_reader(*stamp(file)).get_field(name)
    try:
        return None if field is None else field.contents()
    except Exception as error:
        raise CheckpointError(f"{file}: its field {name!r} is damaged ({first_line(error)}).") from error


def _describe_gguf(file: Path) -> dict[str, TensorInfo]:
    tensors = {}
    for tensor in gguf_reader(*stamp(file)).tensors:
        shape = tuple(int(side) for side in reversed(tensor.shape.tolist()))
        original = gguf_field(file, _ORIGINAL_SHAPE + tensor.name)
        if original is not None:
            if math.prod(original) != math.prod(shape):
                raise CheckpointError(f"{file}: tensor {tensor.name!r} is {list(shape)}, which is not {original}.")
            shape = tuple(original)
        kind = tensor.tensor_type.name
        tensors[tensor.name] = TensorInfo(
            name=tensor.name, dtype=kind, shape=shape, file=file, nbytes=int(tensor.n_bytes)
        )
    return tensors
