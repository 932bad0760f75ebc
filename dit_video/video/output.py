"""What may be written: refused before anything heavy is imported or computed."""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from dit_video.errors import MediaError, UsageError

SUFFIXES = (".mp4", ".webm", ".gif", ".png")
MAX_FPS = 1000
MAX_GIF_FPS = 50  # a GIF counts time in hundredths of a second, and viewers slow delays under two of them down
PREVIEW = "dvgen preview of "  # how the comment of one begins
FIRST_BYTES = 8192  # of a GIF, in which the comment lies
MAX_NAME_BYTES = 255  # of every usual file system


def check_file(path: Path, suffixes: Sequence[str], *, overwrite: bool = False, option: str = "") -> None:
    """Refuses a file that could not be written; `option` is what the message begins with.

    Raises:
        UsageError: a name that ends in none of `suffixes`.
        MediaError: a name that is too long, a missing or read-only folder, a folder of that name, or a file that exists
            when `overwrite` is False.
    """
    named = f"{option} {path}".strip()
    if len(os.fsencode(path.name)) > MAX_NAME_BYTES:
        rule = f"the file name is longer than {MAX_NAME_BYTES} bytes; choose a shorter one"
        raise MediaError(f"{option} {path.name[:40]}...: {rule}.".strip())
    if path.is_dir() or not path.name:
        raise MediaError(f"{named}: this is a folder; name a file in it.")
    if path.suffix.lower() not in suffixes:
        rule = f"the file name must end in {' or '.join(suffixes)}"
        raise UsageError(f"{named}: {rule}; the nearest is {path.with_suffix(suffixes[0])}.")
    if not path.parent.is_dir():
        raise MediaError(f"{named}: the folder {path.parent} does not exist; create it first.")
    if os.path.lexists(path) and not overwrite:  # a link to nothing takes the name too
        raise MediaError(f"{named}: the file exists; choose another name or pass --overwrite.")
    check_folder(path.parent, named)


def check_folder(folder: Path, named: str) -> None:
    """Refuses a folder in which no file can be created, by creating one without a name; nothing is left behind.

    Permissions do not tell: root has them on a file system that is read-only, or that is none, such as /proc.

    Raises:
        MediaError: so it is; the message begins with `named`.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise MediaError(f"{named}: the folder {folder} is not writable ({reason}); choose another one.") from None


def check_video(path: Path, num_frames: int, *, fps: float, overwrite: bool = False, option: str = "") -> None:
    """As `check_file`, for a video or picture of so many frames.

    Raises:
        UsageError, MediaError: see `check_file`; UsageError also for several frames in a .png, or a rate that the kind
            of file cannot hold.
    """
    named, suffix = f"{option} {path}".strip(), path.suffix.lower()
    if suffix == ".png" and num_frames != 1:
        rule = f"a .png holds 1 frame, not {num_frames}"
        raise UsageError(f"{named}: {rule}; the nearest is {path.with_suffix('.mp4')}.")
    highest = MAX_GIF_FPS if suffix == ".gif" else MAX_FPS
    if not 0 < fps <= highest:
        rule = f"a {suffix} plays more than 0 and at most {highest} frames per second, not {fps:g}"
        raise UsageError(f"{named}: {rule}; the nearest is {highest if fps > highest else 1}.")
    check_file(path, SUFFIXES, overwrite=overwrite, option=option)


def previewed(path: Path) -> Path | None:
    """The video that a GIF is a preview of, as its comment says (GIF89a, section 24); None where it is none."""
    try:
        with path.open("rb") as file:
            data = file.read(FIRST_BYTES)
    except OSError:
        return None
    start, text = data.find(b"\x21\xfe") + 2, b""
    while start >= 2 and start < len(data) and data[start]:
        text += data[start + 1 : start + 1 + data[start]]
        start += 1 + data[start]
    found = text.decode(errors="replace")
    return Path(found.removeprefix(PREVIEW)) if found.startswith(PREVIEW) else None
