"""Pictures that are frames of a video: `--image FILE[@FRAME]` and `--fit`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video.errors import MediaError, UsageError
from dit_video.shapes import MAX_SIDE, MIN_SIDE, Grid, VideoShape
from dvgen import options

if TYPE_CHECKING:
    import numpy as np

FITS = ("cover", "contain", "stretch")
FIT_HELP = "How what has another size is made to fit: cover (the default), contain or stretch."


@dataclass(frozen=True)
class Placed:
    """A picture and the frame that it is; -1 is the last one."""

    path: Path
    frame: int

    @property
    def text(self) -> str:
        """It as --image takes it, with its whole path."""
        return f"{self.path.resolve()}@{'last' if self.frame == -1 else self.frame}"

    def of(self, num_frames: int) -> int:
        """The frame in a video of so many."""
        return num_frames - 1 if self.frame == -1 else self.frame


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
        number = options.whole("--image ...@", frame, 0, options.MAX_FRAMES)
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
    return options.choice("--fit", text or "cover", FITS)


def check_frames(images: Sequence[Placed], num_frames: int) -> None:
    """Refuses frames outside the video, and two pictures for one frame. Raises UsageError."""
    seen: dict[int, Placed] = {}
    for image in images:
        frame = image.of(num_frames)
        if frame >= num_frames:
            last = num_frames - 1
            rule = f"the video has {num_frames} frames, 0 to {last}"
            raise UsageError(f"--image {image.path}@{frame}: {rule}; the nearest is {image.path}@{last}.")
        if frame in seen:
            taken = f"{seen[frame].path} is frame {frame} already"
            last = num_frames - 1 not in [each.of(num_frames) for each in images]
            advice = f"give another frame, such as {image.path}@{'last' if last else 'N'}"
            raise UsageError(f"--image {image.path}@{frame}: {taken}; {advice}.")
        seen[frame] = image


def check_beside(images: Sequence[Placed], known_frames: str, num_frames: int) -> None:
    """Refuses pictures that a model which takes them beside the noise cannot be given, or the lack of one.

    Raises:
        UsageError: it says what to give.
    """
    from dit_video.known import check_beside

    check_frames(images, num_frames)
    advice = {"first": "", "first and last": " and --image FILE@last", "first or both": ", or also --image FILE@last"}
    frames = [image.of(num_frames) for image in images]
    check_beside(known_frames, frames, num_frames, f"; give --image FILE{advice[known_frames]}")


def read(images: Sequence[Placed]) -> "list[tuple[Placed, np.ndarray]]":
    """The pictures (H, W, 3) uint8. Raises MediaError."""
    from dit_video.video.io import read_picture

    return [(image, read_picture(image.path)) for image in images]


def size_of(image: Placed, pixels: "np.ndarray") -> tuple[int, int]:
    """(width, height) of a picture that a video is to have.

    Raises:
        UsageError: no video can have it.
    """
    height, width = pixels.shape[:2]
    near = [min(max(side, MIN_SIDE), MAX_SIDE) for side in (width, height)]
    if near != [width, height]:
        rule = f"each side of a video must be from {MIN_SIDE} to {MAX_SIDE} pixels"
        raise UsageError(
            f"--image {image.path}: it is {width}x{height}, and {rule}; give --size, such as {near[0]}x{near[1]}."
        )
    return width, height


def given(
    images: "Sequence[tuple[Placed, np.ndarray]]",
    shape: VideoShape,
    grid: Grid,
    fit: str,
    note: Callable[[str], None],
) -> "Mapping[int, np.ndarray]":
    """What the pictures give of a video: latent frame -> its frames, all of them the picture.

    Raises:
        UsageError: see `check_frames`; or two pictures of one latent frame.
    """
    import numpy as np

    from dit_video.known import frames_of, group_of
    from dit_video.video.fit import fit_frames, what_fits

    check_frames([image for image, _ in images], shape.num_frames)
    found: dict[int, np.ndarray] = {}
    whose: dict[int, Placed] = {}
    stride = grid.stride[0]
    for image, pixels in images:
        frame = image.of(shape.num_frames)
        group = group_of(frame, stride)
        if group in found:
            together = frames_of(group, stride)
            rule = f"this model makes frames {together.start} to {together.stop - 1} together, and {whose[group].path}"
            taken = {group_of(image.of(shape.num_frames), stride) for image, _ in images}
            free = [other for other in range(shape.num_frames) if group_of(other, stride) not in taken]
            nearest = min(free, key=lambda other: abs(other - frame), default=None)
            near = "none is free" if nearest is None else f"the nearest free one is {nearest}"
            raise UsageError(f"--image {image.path}@{frame}: {rule} is one of them; {near}.")
        words = what_fits((pixels.shape[1], pixels.shape[0]), (shape.width, shape.height), fit)
        if words:
            note(f"{image.path}: {words}.")
        together = frames_of(group, stride)
        if len(together) > 1:
            alike = f"frames {together.start} to {min(together.stop, shape.num_frames) - 1}"
            note(f"{image.path}: is all of {alike}, which this model makes together.")
        fitted = fit_frames(pixels[None], shape.width, shape.height, fit)
        found[group], whose[group] = np.repeat(fitted, len(frames_of(group, stride)), axis=0), image
    return found


def seen(images: "Sequence[tuple[Placed, np.ndarray]]", shape: VideoShape, grid: Grid) -> "Mapping[int, np.ndarray]":
    """The pictures as they came, by the latent frames that they are given for."""
    from dit_video.known import group_of

    return {group_of(image.of(shape.num_frames), grid.stride[0]): pixels for image, pixels in images}


def warn_untrained(known_frames: str, groups: Sequence[int], warn: Callable[[str], None]) -> None:
    """Say so where a model was not trained to be given these latent frames; see `DescribedModel.known_frames`."""
    if known_frames == "none":
        warn("this model was not trained with given frames: it may not go on from them.")
    elif known_frames == "first" and any(groups):
        warn("this model was trained with the first frame given, and no other: it may not lead to the others.")
