"""Checkpoint files: where they are, what their headers say, and writing them so that a half-written one is never seen.

A safetensors file is 8 bytes (the header's length, little-endian), the header (JSON: name -> dtype, shape, offsets) and
the data (https://huggingface.co/docs/safetensors). Reading the header alone tells everything but the numbers.
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_video import atomic
from dit_video.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000  # the format's own limit
LOADABLE = ("F64", "F32", "F16", "BF16")  # of weights
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1} | {
    "F8_E4M3": 1,
    "F8_E5M2": 1,
}
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_PACKAGE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor as its file's header describes it; `dtype` is the format's own code, such as "BF16"."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes it takes in the file."""
        return self.numel * _BYTES[self.dtype]


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Some tensors in figures: parameters, bytes on disk, and the dtypes in them (torch's names), most bytes first."""

    parameters: int
    nbytes: int
    dtypes: tuple[str, ...]


def summarize(tensors: Iterable[TensorInfo]) -> Summary:
    """What `dvgen info` says about the files of one component."""
    tensors = list(tensors)
    share: dict[str, int] = {}
    for tensor in tensors:
        dtype = _NAMES.get(tensor.dtype, tensor.dtype)
        share[dtype] = share.get(dtype, 0) + tensor.nbytes
    return Summary(
        parameters=sum(tensor.numel for tensor in tensors),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        dtypes=tuple(sorted(share, key=lambda dtype: -share[dtype])),
    )


def find_checkpoint(name: str | Path | None = None) -> Path:
    """The folder of a checkpoint: a path, or the name of one that ships with dvgen ("default", also for None).

    Shipped ones lie in the package (`dit_video/_weights/NAME`, a wheel) or beside it (`weights/NAME`, a checkout).

    Raises:
        CheckpointError: there is none.
    """
    name = "default" if name is None else name
    if not str(name).strip():
        raise CheckpointError(f"model {str(name)!r}: must be 'default' or the path of a diffusers folder.")
    shipped = [_PACKAGE / "_weights" / name, _PACKAGE.parent / "weights" / name]
    places = shipped if str(name) == "default" else [Path(name), *shipped]
    for place in places:
        if (place / "model_index.json").is_file():
            return place
    if str(name) == "default":
        raise CheckpointError(
            f"the default checkpoint is neither in {places[0]} nor in {places[1]}; pass --model with the path of a "
            "diffusers folder."
        )
    if Path(name).exists():
        raise CheckpointError(f"{name}: holds no model_index.json; a model is 'default' or a diffusers folder.")
    raise CheckpointError(f"{name}: there is no such file or folder; a model is 'default' or a diffusers folder.")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a JSON object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({_reason(error)}).") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: must hold a JSON object, not a {type(value).__name__}.")
    return value


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a safetensors file by name, without reading their data.

    Raises:
        CheckpointError: the file is missing, cut short, or not safetensors.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
                raise CheckpointError(f"{file}: is not a safetensors file, or is cut short ({size} bytes).")
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        tensors = {
            name: TensorInfo(name=name, dtype=entry["dtype"], shape=tuple(entry["shape"]), file=file)
            for name, entry in header.items()
        }
        needed = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({_reason(error)}).") from error
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        raise CheckpointError(f"{file}: its header is damaged ({error}); fetch the file again.") from error
    if size != needed:
        problem = "is cut short" if size < needed else "is too long"
        raise CheckpointError(f"{file}: {problem} ({size} bytes of {needed}); fetch the file again.")
    if unknown := [tensor for tensor in tensors.values() if str(tensor.dtype) not in _BYTES]:
        tensor = unknown[0]
        raise CheckpointError(f"{file}: tensor {tensor.name!r} has the dtype {tensor.dtype}, which is not supported.")
    return tensors


def read_metadata(file: Path) -> dict[str, str]:
    """What a safetensors file says of itself, beside its tensors; a file that `read_header` accepts."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        return json.loads(stream.read(length)).get("__metadata__", {})


def read_headers(folder: Path, stem: str) -> dict[str, TensorInfo]:
    """The tensors of `STEM.safetensors`, or of the shards that `STEM.safetensors.index.json` names, by name.

    Raises:
        CheckpointError: no such file, a missing or damaged shard, or an index that disagrees with its shards.
    """
    single, index = folder / f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if single.is_file():
        return read_header(single)
    if not index.is_file():
        raise CheckpointError(f"{folder}: holds neither {single.name} nor {index.name}.")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{index}: lacks a weight_map of tensor names to file names.")
    shards = sorted(set(weight_map.values()))
    if missing := [shard for shard in shards if not (folder / shard).is_file()]:
        count = f"{len(missing)} of {len(shards)} shards are missing"
        raise CheckpointError(f"{folder}: {count}, the first is {missing[0]}; fetch the folder again.")
    tensors: dict[str, TensorInfo] = {}
    for shard in shards:
        tensors |= read_header(folder / shard)
    for name in weight_map.keys() ^ tensors.keys():
        raise CheckpointError(f"{index}: tensor {name!r} is in the index or in a shard, but not in both.")
    return tensors


def load_tensors(file: Path) -> tuple[dict[str, "Tensor"], dict[str, str]]:
    """The tensors of a small safetensors file, and its metadata.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    from safetensors import safe_open
    from safetensors.torch import load_file

    read_header(file)
    with safe_open(file, "pt") as opened:
        return load_file(file), opened.metadata() or {}


def save_tensors(tensors: Mapping[str, "Tensor"], file: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes a safetensors file under a temporary name, then renames it: `file` is the old one or the whole new one.

    Raises:
        CheckpointError: the file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic.replacing(file) as part:
            mode = _usual_mode(part)
            save_file(dict(tensors), part, metadata={"format": "pt", **(metadata or {})})  # what transformers looks for
            part.chmod(mode)  # safetensors lets nobody else read it
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file}: cannot be written ({_reason(error)}).") from error


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well, else is removed.

    Raises:
        CheckpointError: `folder` holds something other than a checkpoint, or cannot be written.
    """
    if folder.exists() and not (folder / "model_index.json").is_file() and not _is_empty(folder):
        raise CheckpointError(f"{folder}: exists and is not a checkpoint; choose another folder.")
    try:
        with atomic.replacing_folder(folder) as part:
            yield part
            mode = _usual_mode(part / ".mode")
            (part / ".mode").unlink()
            for file in part.rglob("*"):
                if file.is_file():
                    file.chmod(mode)  # safetensors lets nobody else read what it writes
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written ({_reason(error)}).") from error


def some(names: Sequence[str], what: str, kind: str = "tensor") -> str:
    """ "4 tensors are missing: 'a', 'b', 'c', ...", with no more than three names."""
    listed = ", ".join(repr(name) for name in names[:3]) + (", ..." if len(names) > 3 else "")
    return f"{len(names)} {kind}{' is' if len(names) == 1 else 's are'} {what}: {listed}"


def _usual_mode(path: Path) -> int:
    """The permissions of a new file, such as `path`, which this creates."""
    path.touch()
    return path.stat().st_mode


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and next(folder.iterdir(), None) is None


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
