"""Checkpoint files: shards, the JSON beside them, and writing so that a half-written one is never seen."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_video import atomic
from dit_video.checkpoints.headers import TensorInfo, read_header, reason
from dit_video.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

FIRST_BYTES = 2**20  # of a file, in which what it says of itself lies
PIECES, PIECE_BYTES = 16, 2**16  # of its content


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: the file is missing, unreadable, or not a JSON object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({reason(error)}).") from error
    except ValueError as error:
        raise CheckpointError(f"{file}: is not JSON ({error}).") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file}: must hold a JSON object, not a {type(value).__name__}.")
    return value


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Writes an object as indented JSON."""
    file.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


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
    if outside := [shard for shard in shards if Path(shard).name != shard or "\\" in shard]:
        raise CheckpointError(f"{index}: names the shard {outside[0]!r}; shards lie in the index's own folder.")
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
        raise CheckpointError(f"{file}: cannot be written ({reason(error)}).") from error


def fingerprint(files: Iterable[Path], *, times: bool = True) -> str:
    """Tells files from others, as they are now: a hash of their names, sizes, first bytes, and times.

    times: without them, which are others on another machine, some pieces of the content count instead.
    """
    found = hashlib.sha256()
    for file in sorted(files):
        stat = file.stat()
        found.update(repr((file.name, stat.st_size, stat.st_mtime_ns if times else None)).encode())
        with file.open("rb") as stream:
            found.update(hashlib.sha256(stream.read(FIRST_BYTES)).digest())
            for number in range(0 if times else PIECES):
                stream.seek(stat.st_size * number // PIECES)
                found.update(stream.read(PIECE_BYTES))
    return found.hexdigest()


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
        raise CheckpointError(f"{folder}: cannot be written ({reason(error)}).") from error


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
