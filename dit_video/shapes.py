"""Sizes: the one place that turns pixels and frames into latents and tokens, rounds up, and crops back.

A video of any size is padded up to the model's grid, generated, and cropped and trimmed back, so the file has exactly
the width, height and number of frames that were asked for.
"""

import math
from dataclasses import dataclass

from dit_video.errors import UsageError

Size3 = tuple[int, int, int]  # of time, height and width

MIN_SIDE = 16
MAX_SIDE = 16_384
MIN_TILE = 24  # latents on a side of the windows that large frames are decoded in


@dataclass(frozen=True, kw_only=True)
class VideoShape:
    """Pixels of a video: frames, rows, columns."""

    num_frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}, {self.num_frames} frame{'' if self.num_frames == 1 else 's'}"


@dataclass(frozen=True, kw_only=True)
class LatentShape:
    """Latents of a video: latent frames, rows, columns."""

    frames: int
    height: int
    width: int


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is not below `value`."""
    return -(-value // multiple) * multiple


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A model's arithmetic: `stride` pixels per latent and `patch` latents per token, each (time, height, width).

    The causal VAE gives the first frame a latent frame of its own, so a clip on the grid has 1 + stride[0] * k frames.
    """

    stride: tuple[int, int, int] = (4, 8, 8)
    patch: tuple[int, int, int] = (1, 2, 2)

    def padded(self, video: VideoShape) -> VideoShape:
        """The smallest shape on the grid that holds `video`."""
        t, h, w = (s * p for s, p in zip(self.stride, self.patch, strict=True))
        return VideoShape(
            num_frames=1 + round_up(video.num_frames - 1, t),
            height=round_up(video.height, h),
            width=round_up(video.width, w),
        )

    def latent(self, video: VideoShape) -> LatentShape:
        """The latent shape of `video` once padded to the grid."""
        padded = self.padded(video)
        return LatentShape(
            frames=1 + (padded.num_frames - 1) // self.stride[0],
            height=padded.height // self.stride[1],
            width=padded.width // self.stride[2],
        )

    def window(self, video: VideoShape, pixels: int, *, least_frames: int) -> VideoShape:
        """`video` itself where it has at most `pixels` pixels times frames, else a part of it that has.

        Frames are cut first, to `least_frames` at least, then height and width about alike; what is cut fills whole
        tokens, one at least.
        """
        if video.num_frames * video.height * video.width <= pixels:
            return video
        t, h, w = (s * p for s, p in zip(self.stride, self.patch, strict=True))
        frames = max(least_frames, pixels // (video.height * video.width))
        frames = video.num_frames if frames >= video.num_frames else 1 + (frames - 1) // t * t
        room = pixels / frames
        if room >= video.height * video.width:
            return VideoShape(num_frames=frames, height=video.height, width=video.width)
        wanted = round(video.height * math.sqrt(room / (video.height * video.width)) / h) * h
        height = min(video.height, max(h, wanted))
        width = min(video.width, max(w, int(room / height) // w * w))
        height = min(video.height, max(h, int(room / width) // h * h))  # of a clip that is narrower than a token
        return VideoShape(num_frames=frames, height=height, width=width)

    def tokens(self, latent: LatentShape) -> tuple[int, int, int]:
        """The token grid (time, height, width) of a latent shape."""
        t, h, w = self.patch
        return latent.frames // t, latent.height // h, latent.width // w


def parse_size(text: str, *, name: str = "--size") -> tuple[int, int]:
    """(width, height) from "640x360"; `name` is what the message calls it.

    Raises:
        UsageError: not two whole numbers joined by an x, or a side that is not from 16 to 16384.
    """
    parts = text.lower().replace("×", "x").split("x") if len(text) <= 60 else []
    if len(parts) != 2 or not all(part.strip().isdecimal() for part in parts):
        shown = text if len(text) <= 60 else f"{text[:60]}..."
        raise UsageError(f"{name} {shown!r}: must be WIDTHxHEIGHT in whole pixels, for example 640x360.")
    width, height = (int(part) for part in parts)
    nearest = tuple(min(max(side, MIN_SIDE), MAX_SIDE) for side in (width, height))
    if nearest != (width, height):
        rule = f"each side must be from {MIN_SIDE} to {MAX_SIDE} pixels"
        raise UsageError(f"{name} {text}: {rule}; the nearest is {nearest[0]}x{nearest[1]}.")
    return width, height
