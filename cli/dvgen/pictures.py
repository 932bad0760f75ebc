"""Pictures that are frames of a video: `--image FILE[@FRAME]` and `--fit`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video import limits
from dit_video.errors import MediaError, UsageError
from dit_video.given import Placed, check_frames, given, groups_of, seen, size_of, warn_untrained
from dvgen import options

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "FIT_HELP",
    "Placed",
    "check_beside",
    "check_frames",
    "given",
    "groups_of",
    "parse",
    "parse_fit",
    "read",
    "seen",
    "size_of",
    "warn_untrained",
]

FIT_HELP = "How what has another size is made to fit: cover (the default), contain or stretch."


def parse(texts: Sequence[str]) -> tuple[Placed, ...]:
    """The pictures of `--image`, which must be there.

    Raises:
        UsageError: a frame that is not "first", "last" or a whole number from 0 up.
        MediaError: a file that is not there.
    """
    return tuple(map(_parse, texts))


def _parse(text: str) -> Placed:
    name, at, frame = text.rpartition("@")
    if not at or Path(text).is_file():  # a name may have an @ of its own
        name, frame = text, "first"
    number = {"first": 0, "last": -1}.get(frame)
    if number is None:
        if not frame.isdecimal():
            rule = "the frame after @ must be first, last, or a whole number from 0 up"
            nearest = "last" if frame.startswith(("-", "l", "e")) else "first"
            raise UsageError(f"--image {text}: {rule}; the nearest is {name}@{nearest}.")
        number = options.whole("--image ...@", frame, 0, limits.MAX_FRAMES)
    if not Path(name).is_file():
        kind = "this is a folder, not a picture" if Path(name).is_dir() else "there is no such file"
        raise MediaError(f"--image {name}: {kind}.")
    return Placed(Path(name), number)


def parse_fit(text: str | None, *, needed: str = "") -> str:
    """The rule of `--fit`; `needed` is the option without which it means nothing, if that was not given.

    Raises:
        UsageError: it is none, or it means nothing.
    """
    if text is not None and needed:
        raise UsageError(f"--fit {text}: it says how {needed} is made to fit, and there is no {needed}.")
    return options.choice("--fit", text or "cover", limits.FITS)


def check_beside(images: Sequence[Placed], known_frames: str, num_frames: int) -> None:
    """Refuses pictures that a model which takes them beside the noise cannot be given, or the lack of one.

    Raises:
        UsageError: it says what to give.
    """
    from dit_video.groups import check_beside

    check_frames(images, num_frames)
    advice = {"first": "", "first and last": " and --image FILE@last", "first or both": ", or also --image FILE@last"}
    frames = [image.of(num_frames) for image in images]
    check_beside(known_frames, frames, num_frames, f"; give --image FILE{advice[known_frames]}")


def read(images: Sequence[Placed]) -> "list[tuple[Placed, np.ndarray]]":
    """The pictures (H, W, 3) uint8. Raises MediaError."""
    if not images:
        return []
    from dit_video.video.io import read_picture

    return [(image, read_picture(image.path)) for image in images]
