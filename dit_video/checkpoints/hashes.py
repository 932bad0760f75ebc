"""SHA-256 of whole files, computed once: a model of 28 GB takes a minute to read, so what was found is kept."""

import hashlib
import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

from dit_video import atomic
from dit_video.cache import users_folder

PART = "hashes"  # of the user's cache


def content_hash(file: Path) -> str:
    """The SHA-256 of a file's content, in 64 digits; read now. Raises OSError."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_hash(file: Path) -> str | None:
    """It, if it was found before and the file has the size and the time that it had then. Raises OSError."""
    kept = _kept(file)
    with suppress(OSError, ValueError, KeyError, TypeError):
        if kept is not None:
            return str(json.loads(kept.read_text())["sha256"])
    return None


def kept_hash(file: Path) -> str:
    """It, read only if it is not known, and kept. Raises OSError."""
    found = known_hash(file)
    if found is None:
        kept = _kept(file)
        found = content_hash(file)
        with suppress(OSError):  # it is found again next time
            if kept is not None:
                kept.parent.mkdir(parents=True, exist_ok=True)
                with atomic.replacing(kept) as part:
                    part.write_text(json.dumps({"path": str(file.resolve()), "sha256": found}))
    return found


def together(files: Iterable[Path], hash_of: Callable[[Path], str | None]) -> str | None:
    """One hash of the contents of several files, wherever they lie; None if one of theirs is. Raises OSError."""
    every = [hash_of(file) for file in files]
    if None in every:
        return None
    return hashlib.sha256(repr(sorted(str(each) for each in every)).encode()).hexdigest()


def _kept(file: Path) -> Path | None:
    """Where the hash of a file is kept, as it is now."""
    folder, stat = users_folder(PART), file.stat()
    about = repr((str(file.resolve()), stat.st_size, stat.st_mtime_ns))
    return None if folder is None else folder / f"{hashlib.sha256(about.encode()).hexdigest()}.json"
