"""Files and folders that appear under their names only when they are whole.

They are written under a temporary name in the same folder, which is renamed at the end and removed if that fails.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

_ours: set[str] = set()  # the temporary names that this process has used


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write to, which takes the place of `path` when the block ends well. Raises OSError."""
    part = _temporary(path)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def replacing_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `folder` when the block ends well, else is removed.

    The old one is gone only when the new one is there. Raises OSError.
    """
    part, old = _temporary(folder), _temporary(folder)
    try:
        part.mkdir(parents=True)
        yield part
        if folder.exists():
            os.replace(folder, old)
        os.replace(part, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.replace(old, folder)
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)


def numbered(path: Path) -> Iterator[Path]:
    """`path`, then its name with -2, -3 and so on before the suffix."""
    yield path
    for number in count(2):
        yield path.with_stem(f"{path.stem}-{number}")


@dataclass
class Placed:
    """Where a file is, once it is there."""

    path: Path


@contextmanager
def placing(path: Path, *, overwrite: bool) -> Iterator[tuple[Path, Placed]]:
    """As `replacing`, but without `overwrite` a file that appeared meanwhile is kept: the new one gets the next free
    name of `numbered(path)`, which `Placed` tells after the block. Raises OSError.
    """
    part, placed = _temporary(path), Placed(path)
    try:
        yield part, placed
        if overwrite:
            os.replace(part, path)
        else:
            placed.path = next(name for name in numbered(path) if _take(name, part))
    finally:
        part.unlink(missing_ok=True)


def _take(name: Path, part: Path) -> bool:
    """Also names the file `part` `name`; False when a file has that name."""
    try:
        os.link(part, name)  # unlike a rename, this fails when the name is taken
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        if name.exists():
            return False
        os.replace(part, name)
    return True


def remove_parts(folder: Path, process: int) -> None:
    """Removes what a process that has ended was writing in a folder; it may have had the number of this one."""
    for part in folder.glob(f".dvgen-{process}-*.part"):
        if part.name not in _ours:
            with suppress(OSError):
                part.unlink()


def _temporary(path: Path) -> Path:
    name = f".dvgen-{os.getpid()}-{secrets.token_hex(4)}.part"
    _ours.add(name)
    return path.with_name(name)
