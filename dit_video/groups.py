"""Groups of frames: which of a clip's frames a latent frame stands for, and which may be given; see `known`."""

from collections.abc import Collection, Iterator
from itertools import groupby

from dit_video.errors import UsageError

STILL_GROUPS = 4  # groups of a still picture before a part of a clip that does not begin it


def group_of(frame: int, stride: int) -> int:
    """The latent frame that frame number `frame` belongs to; `stride` frames to a group after the first."""
    return -(-frame // stride)


def frames_of(group: int, stride: int) -> range:
    """The frames of a latent frame: one of the first, `stride` of each other."""
    return range(0, 1) if group == 0 else range((group - 1) * stride + 1, group * stride + 1)


def runs_of(groups: Collection[int]) -> Iterator[list[int]]:
    """Latent frames that are given, those that follow one another together: each run is encoded by itself."""
    for _, numbered in groupby(enumerate(sorted(groups)), key=lambda pair: pair[1] - pair[0]):
        yield [group for _, group in numbered]


def encoded_frames(groups: Collection[int], stride: int) -> int:
    """How many frames are encoded for latent frames that are given, with the still pictures before them."""
    total = 0
    for run in runs_of(groups):
        total += sum(len(frames_of(group, stride)) for group in run)
        total += 0 if run[0] == 0 else 1 + STILL_GROUPS * stride
    return total


BESIDE = {
    "first": "animates an image, which is the first frame, and takes no other",
    "first and last": "leads from one image, the first frame, to another, the last",
    "first or both": "animates an image, which is the first frame, and takes another as the last",
}
"""Which frames are given to models that take them beside the noise, by `DescribedModel.known_frames`: in words."""


def check_beside(known_frames: str, frames: Collection[int], num_frames: int, advice: str = "") -> None:
    """Refuses frames of a clip that cannot be given beside the noise, or are too few; known_frames: a key of BESIDE.

    Raises:
        UsageError: it says what can be given, and then the advice.
    """
    ends = {0, num_frames - 1}
    possible = {"first": [{0}], "first and last": [ends], "first or both": [{0}, ends]}[known_frames]
    if known_frames == "first and last" and num_frames == 1:
        raise UsageError(f"this model {BESIDE[known_frames]}, and there is one frame; the nearest is 2.")
    if set(frames) not in possible:
        raise UsageError(f"this model {BESIDE[known_frames]}{advice}.")
