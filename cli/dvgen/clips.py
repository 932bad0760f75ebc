"""Video files that a command goes on from: what they are, and their frames."""

import re
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
    pix_fmt: ffmpeg's name of how its pixels are stored.
    """

    path: Path
    size: tuple[int, int]
    frames: int
    fps: float
    even_at: float | None = None
    fit: str = "cover"
    picture: bool = False
    pix_fmt: str = ""

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
    if info.pixel_shape:
        note(f"{path}: its pixels are {info.pixel_shape} and not square; they are taken as square.")
    if info.animated:
        note(f"{path}: its animation is left out; make an .mp4 of it to go on from its end.")
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
        pix_fmt=info.pix_fmt,
    )


def tell_coding(clip: ClipFile, output: Path, note: Callable[[str], None]) -> None:
    """Say where the new file holds less of a clip's colours than the clip does."""
    from dit_video.video.io import stored_as

    (old, bits), (new, new_bits) = _colours(clip.pix_fmt), _colours(stored_as(output, *clip.size))
    if clip.picture or not new:  # a picture is one frame of many, and whoever wants a GIF wants few colours
        return
    if old > new:
        note(f"{clip.path}: its colours are stored as {old}, in {output} as {new}, at half the size.")
    if bits > new_bits:
        note(f"{clip.path}: its colours have {bits} bits, in {output} {new_bits}.")


def _colours(pix_fmt: str) -> tuple[str, int]:
    """How many pixels have a colour of their own, as in "4:2:0", and its bits, by ffmpeg's name of the pixels; "" where
    there are only some colours, or none."""
    if pix_fmt.startswith(("pal", "gray", "mono")):
        return "", 8
    found, depth = re.search(r"4[124][0124]", pix_fmt), re.search(r"p(9|1[0246])(?:le|be)?$", pix_fmt)
    return ":".join(found[0] if found else "444"), int(depth[1]) if depth else 8
