"""The ffmpeg that imageio-ffmpeg carries: run so that it never outlives us, and its errors in one sentence."""

import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import imageio_ffmpeg

from dit_video.errors import MediaError

MAX_ARGUMENT = 100_000  # bytes; Linux takes 131,071 in one argument

# What ffmpeg's commonest reasons mean.
_MEANING = (
    (r"moov atom not found", "it is not a video, or its end is missing"),
    (r"Stream map '' matches no streams", "it holds no video"),
    (r"Picture size \d+x\d+ is invalid", "it has far more pixels than can be read; make it smaller first"),
)

_FULL = "No space left on device"  # which ffmpeg wraps in what it was about to do

_ENVIRONMENT = threading.Lock()  # of the process, which is everybody's


def commented(comment: str, folder: Path) -> list[str]:
    """ffmpeg's arguments for a comment; one that is too long for a command line goes through a file in `folder`."""
    if not comment:
        return []
    text = f"comment={comment}"
    if len(text.encode()) < MAX_ARGUMENT:
        return ["-metadata", text]
    (folder / "comment").write_bytes(text.encode())
    return ["-/metadata", str(folder / "comment")]  # since ffmpeg 7


@contextmanager
def explained(path: Path, report: Path) -> Iterator[None]:
    """Turns a pipe that breaks, since ffmpeg has stopped, into a MediaError with ffmpeg's own reason."""
    try:
        yield
    except OSError as error:
        reason = reason_in(report) or str(error).partition("\n")[0]
        if not reason or "Broken pipe" in reason:
            reason = "it has stopped: it was ended from outside, or memory ran out"
        raise MediaError(f"{path}: ffmpeg cannot write it ({reason}).") from None


@contextmanager
def reporting(report: Path) -> Iterator[None]:
    """Lets an ffmpeg that is started within write its errors to a file (FFREPORT: ffmpeg's manual, generic options)."""
    # ':', quotes and backslashes separate and escape, and % begins a placeholder
    name = re.sub(r"([\\':])", r"\\\1", str(report).replace("%", "%%"))
    # Without the second, imageio-ffmpeg forks by running Python in the child, which is unsafe beside torch's threads.
    ours = {"FFREPORT": f"file={name}:level=16", "IMAGEIO_FFMPEG_NO_PREVENT_SIGINT": "1"}
    with _ENVIRONMENT:
        before = {key: os.environ.get(key) for key in ours}
        os.environ.update(ours)
        try:
            yield
        finally:
            for key, value in before.items():
                if value is None:
                    del os.environ[key]
                else:
                    os.environ[key] = value


def reason_in(report: Path) -> str:
    """The first error in ffmpeg's messages, or "" if there is none."""
    text = report.read_text(errors="replace") if report.is_file() else ""
    if _FULL in text:
        return _FULL
    errors = re.findall(r"^(?:\[[^]]*\] )*?\[(?:error|fatal)\] (?:\[\w+\] )?(.*)$", text, re.MULTILINE)
    return errors[0].strip(" .") if errors else ""


@contextmanager
def running(
    path: Path, arguments: list[str], *, level: str = "error", log: list[str] | None = None
) -> Iterator[IO[bytes]]:
    """Runs ffmpeg with the end of its output in our hand, and never lets it outlive us.

    Raises:
        MediaError: ffmpeg failed; its first error becomes one sentence about `path`.
    """
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-nostdin", "-hide_banner", "-v", f"level+{level}", *arguments]
    # The messages go to a file, as nobody reads a second pipe while the first one is busy. A session of its own keeps
    # Ctrl-C from ffmpeg: it reaches us, and we end ffmpeg.
    with (
        tempfile.TemporaryDirectory() as folder,
        (Path(folder) / "messages").open("wb") as messages,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=messages, start_new_session=True) as process,
    ):
        assert process.stdout is not None
        try:
            yield process.stdout
        except BaseException:
            process.kill()
            raise
        finally:
            process.stdout.close()
        status = process.wait()
        if status != 0:
            reason = reason_in(Path(messages.name)) or f"exit status {status}"
            reason = next((words for found, words in _MEANING if re.fullmatch(found, reason)), reason)
            raise MediaError(f"{path}: ffmpeg cannot read it ({reason}).")
        if log is not None:
            log.extend(Path(messages.name).read_text(errors="replace").splitlines())
