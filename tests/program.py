"""The real command in a process of its own, and file systems that are small, full or read-only."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dvgen.main import app
from typer.testing import CliRunner

from dit_video.video.io import read_frames

ROOT = Path(__file__).parents[1]
NOBODY = 65534


def start(*arguments: str | Path, every: str = "0", **options: Any) -> "subprocess.Popen[str]":
    """A command that has begun; every: seconds of denoising after which it writes its state."""
    environment = os.environ | {"DVGEN_KEEP_EVERY": every, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "cli"), *sys.path])
    how: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}
    return subprocess.Popen([sys.executable, "-m", "dvgen", *map(str, arguments)], **how | options)


def run(*arguments: str | Path, code: int = 0, **options: Any) -> tuple[str, str]:
    """What a command printed, and what it said; it must end with `code`, and never with a traceback."""
    process = start(*arguments, **options)
    out, said = process.communicate(timeout=300)
    assert process.returncode == code, said
    assert "Traceback" not in (said or "")
    return out, said


def run_here(*arguments: str | Path, code: int = 0) -> tuple[str, str]:
    """As `run`, in this process, which saves the seconds of a start."""
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.stderr, found.exception)
    assert "Traceback" not in found.stderr
    return found.stdout, found.stderr


def wait_for(happened: Callable[[], Any], process: "subprocess.Popen[str]") -> Any:
    """What `happened` returns when it is true, or when the process has ended."""
    while not (found := happened()) and process.poll() is None:
        time.sleep(0.005)
    return found


def frames(path: str | Path) -> np.ndarray:
    """All frames of a file, (T, H, W, 3)."""
    return np.stack(list(read_frames(path)))


def left(folder: Path) -> list[str]:
    """The hidden files that commands have left in a folder."""
    return sorted(path.name for path in folder.glob(".dvgen-*"))


class Disk:
    """A file system in memory, mounted at `folder`; size: in KiB."""

    def __init__(self, folder: Path, size: int) -> None:
        self.folder = folder
        folder.mkdir()
        _mount("-t", "tmpfs", "-o", f"size={size}k,mode=777", "dvgen-test", str(folder))

    def resize(self, size: int) -> None:
        """Give it another size."""
        _mount("-o", f"remount,size={size}k", str(self.folder))

    def protect(self) -> None:
        """Make it read-only, for root too."""
        _mount("-o", "remount,ro", str(self.folder))

    def fill(self) -> None:
        """Leave no room on it."""
        with (self.folder / "fill").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(4096))
                except OSError:
                    return

    def empty(self) -> None:
        """Make the room again that `fill` took."""
        (self.folder / "fill").unlink()


@contextmanager
def mounted(folder: Path, size: int) -> Iterator[Disk]:
    """A small disk while the block runs; the test is skipped where none can be mounted."""
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk, on Linux")
    try:
        disk = Disk(folder, size)
    except OSError as error:
        pytest.skip(f"no disk can be mounted here: {error}")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(done.stderr.strip())
