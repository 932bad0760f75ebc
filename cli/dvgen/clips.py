"""Video files that a command goes on from: what they are, and their frames."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video.errors import MediaError, UsageError
from dit_video.shapes import MAX_SIDE, MIN_SIDE

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class ClipFile:
    """A clip as a command reads it.

    frames: evenly at `fps`. even_at: the rate that frames are repeated or left out for; None where each is taken once.
    size: (width, height) that they are brought to, by the rule `fit`. picture: it is one, and read as `--image` is.
    """

    path: Path
    size: tuple[int, int]
    frames: int
    fps: float
    even_at: float | None = None
    fit: str = "cover"
    picture: bool = False

    def read(self) -> "Iterator[np.ndarray]":
        """The frames (H, W, 3) uint8, one at a time. Raises MediaError."""
        from dit_video.video.fit import fit_frames
        from dit_video.video.io import read_frames, read_picture

        for frame in [read_picture(self.path)] if self.picture else read_frames(self.path, fps=self.even_at):
            yield fit_frames(frame[None], *self.size, self.fit)[0]

    def head(self, count: int) -> "np.ndarray":
        """The first `count` frames, or all. Raises MediaError."""
        import numpy as np

        return np.stack(list(islice(self.read(), count)))


def check_there(path: Path, name: str) -> None:
    """Refuses a file that is not there, before anything heavy is imported. Raises MediaError."""
    if not path.is_file():
        kind = "this is a folder, not a video" if path.is_dir() else "there is no such file"
        raise MediaError(f"{name} {path}: {kind}.")


def open_clip(
    path: Path,
    name: str,
    note: Callable[[str], None],
    *,
    fps: float,
    size: tuple[int, int] | None = None,
    rate: float | None = None,
    fit: str | None = None,
) -> ClipFile:
    """What a file is; notes say what of it is not taken over.

    Args:
        name: what messages call it.
        fps: of a picture, which has no rate.
        size, rate: that it must have; it is brought to a rate, and by `fit` to a size.

    Raises:
        MediaError: it cannot be read.
        UsageError: sides that no video can have here, or another size without `fit`.
    """
    from dit_video.video.fit import what_fits
    from dit_video.video.io import probe, read_picture

    info = probe(path)
    own = (info.width, info.height)
    if info.fps is None:
        height, width, _ = read_picture(path).shape
        own = (width, height)
    if size is None:
        near = tuple(min(max(side, MIN_SIDE), MAX_SIDE) for side in own)
        if near != own:
            rule = f"each side must be from {MIN_SIDE} to {MAX_SIDE} pixels"
            raise UsageError(f"{name} {path}: it is {own[0]}x{own[1]}, and {rule}; the nearest is {near[0]}x{near[1]}.")
    elif own != size and fit is None:
        rule = f"it is {own[0]}x{own[1]}, and the other clip {size[0]}x{size[1]}"
        raise UsageError(f"{name} {path}: {rule}; say how to make it fit: --fit cover, contain or stretch.")
    elif words := what_fits(own, size, fit or "cover"):
        note(f"{path}: {words}.")
    wanted = rate or info.fps or fps
    even_at = None
    if info.uneven or (info.fps is not None and abs(wanted / info.fps - 1) > 1e-3):
        even_at = wanted
        if info.uneven:
            note(f"{path}: its frames come unevenly; at {wanted:g} per second some are repeated or left out.")
        else:
            note(f"{path}: it has {info.fps:g} frames per second; it is read at {wanted:g}.")
    if info.audio:
        note(f"{path}: its sound is left out.")
    frames = info.frames
    if even_at is not None:
        from dit_video.video.io import read_frames

        frames = sum(1 for _ in read_frames(path, fps=even_at))
    return ClipFile(
        path=path,
        size=size or own,
        frames=frames,
        fps=wanted,
        even_at=even_at,
        fit=fit or "cover",
        picture=info.fps is None,
    )
