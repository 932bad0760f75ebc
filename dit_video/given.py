"""Pictures that are frames of a video: where they can be, and what they give of it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video.errors import UsageError
from dit_video.groups import frames_of, group_of
from dit_video.shapes import MAX_SIDE, MIN_SIDE, Grid, VideoShape

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Placed:
    """A picture and the frame that it is; -1 is the last one. option: what stands before its name in messages."""

    path: Path
    frame: int
    option: str = "--image "

    @property
    def text(self) -> str:
        """It as --image takes it, with its whole path."""
        return f"{self.path.resolve()}@{'last' if self.frame == -1 else self.frame}"

    def of(self, num_frames: int) -> int:
        """The frame in a video of so many."""
        return num_frames - 1 if self.frame == -1 else self.frame


def check_frames(images: Sequence[Placed], num_frames: int) -> None:
    """Refuses frames outside the video, and two pictures for one frame. Raises UsageError."""
    seen: dict[int, Placed] = {}
    for image in images:
        frame = image.of(num_frames)
        if frame >= num_frames:
            last = num_frames - 1
            rule = f"the video has {num_frames} frames, 0 to {last}"
            raise UsageError(f"{image.option}{image.path}@{frame}: {rule}; the nearest is {image.path}@{last}.")
        if frame in seen:
            taken = f"{seen[frame].path} is frame {frame} already"
            last = num_frames - 1 not in [each.of(num_frames) for each in images]
            advice = f"give another frame, such as {image.path}@{'last' if last else 'N'}"
            raise UsageError(f"{image.option}{image.path}@{frame}: {taken}; {advice}.")
        seen[frame] = image


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
            f"{image.option}{image.path}: it is {width}x{height}, and {rule}; give --size, such as {near[0]}x{near[1]}."
        )
    return width, height


def groups_of(
    images: Sequence[tuple[Placed, tuple[int, int]]],
    shape: VideoShape,
    grid: Grid,
    fit: str,
    note: Callable[[str], None],
) -> Mapping[int, Placed]:
    """What pictures of these sizes (width, height) are given for: latent frame -> picture; says what becomes of them.

    Raises:
        UsageError: see `check_frames`; or two pictures of one latent frame.
    """
    from dit_video.video.fit import what_fits

    check_frames([image for image, _ in images], shape.num_frames)
    found: dict[int, Placed] = {}
    stride = grid.stride[0]
    for image, size in images:
        frame = image.of(shape.num_frames)
        group = group_of(frame, stride)
        together = frames_of(group, stride)
        if group in found:
            rule = f"this model makes frames {together.start} to {together.stop - 1} together, and {found[group].path}"
            taken = {group_of(image.of(shape.num_frames), stride) for image, _ in images}
            free = [other for other in range(shape.num_frames) if group_of(other, stride) not in taken]
            nearest = min(free, key=lambda other: abs(other - frame), default=None)
            near = "none is free" if nearest is None else f"the nearest free one is {nearest}"
            raise UsageError(f"{image.option}{image.path}@{frame}: {rule} is one of them; {near}.")
        if words := what_fits(size, (shape.width, shape.height), fit):
            note(f"{image.path}: {words}.")
        if len(together) > 1:
            alike = f"frames {together.start} to {min(together.stop, shape.num_frames) - 1}"
            note(f"{image.path}: is all of {alike}, which this model makes together.")
        found[group] = image
    return found


def given(
    images: "Sequence[tuple[Placed, np.ndarray]]",
    shape: VideoShape,
    grid: Grid,
    fit: str,
    note: Callable[[str], None],
) -> "Mapping[int, np.ndarray]":
    """What the pictures give of a video: latent frame -> its frames, all of them the picture.

    Raises:
        UsageError: see `groups_of`.
    """
    import numpy as np

    from dit_video.video.fit import fit_frames

    sizes = [(image, (pixels.shape[1], pixels.shape[0])) for image, pixels in images]
    groups = groups_of(sizes, shape, grid, fit, note)
    found: dict[int, np.ndarray] = {}
    for group, (_, pixels) in zip(groups, images, strict=True):
        fitted = fit_frames(pixels[None], shape.width, shape.height, fit)
        found[group] = np.repeat(fitted, len(frames_of(group, grid.stride[0])), axis=0)
    return found


def seen(images: "Sequence[tuple[Placed, np.ndarray]]", shape: VideoShape, grid: Grid) -> "Mapping[int, np.ndarray]":
    """The pictures as they came, by the latent frames that they are given for."""
    return {group_of(image.of(shape.num_frames), grid.stride[0]): pixels for image, pixels in images}


def warn_untrained(known_frames: str, groups: Sequence[int], warn: Callable[[str], None]) -> None:
    """Say so where a model was not trained to be given these latent frames; see `DescribedModel.known_frames`."""
    if known_frames == "none":
        warn("this model was not trained with given frames: it may not go on from them.")
    elif known_frames == "first" and any(groups):
        warn("this model was trained with the first frame given, and no other: it may not lead to the others.")
