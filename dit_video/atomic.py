"""Files and folders that appear under their names only when they are whole.

They are written under a temporary name in the same folder, which is renamed at the end and removed if that fails. It
names the process, so that the files which an ended one was writing go when the next one writes in that folder.
"""

import hashlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from dit_video.processes import runs, this_process

_NAME = re.compile(r"\.dvgen-([\d.]+)-([0-9a-f]{8})-[0-9a-f]{8}\.part")
_ours: set[str] = set()  # the temporary names that this process has used
_swept: set[Path] = set()  # the folders that it has written in


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


def _temporary(path: Path) -> Path:
    identity, _, host = this_process().partition("@")
    name = f".dvgen-{identity}-{_short(host)}-{secrets.token_hex(4)}.part"
    _ours.add(name)
    _sweep(path.parent, host)
    return path.with_name(name)


def _sweep(folder: Path, host: str) -> None:
    """Removes, once, the files that ended processes of this machine were writing in a folder.

    Not folders: while one takes the place of another, either is all that there is.
    """
    folder = folder.absolute()
    if folder in _swept:
        return
    _swept.add(folder)
    with suppress(OSError):
        for part in folder.glob(".dvgen-*.part"):
            match = _NAME.fullmatch(part.name)
            if match and match[2] == _short(host) and part.name not in _ours and runs(f"{match[1]}@{host}") is False:
                with suppress(OSError):
                    part.unlink()


def _short(host: str) -> str:
    """What stands for a machine in a file's name."""
    return hashlib.sha256(host.encode()).hexdigest()[:8]
