"""From latents to a video file: frames are written as they are decoded, in tiles where memory runs out."""

import gc
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dit_video.errors import DvgenError, UndefinedNumbers
from dit_video.machine import is_out_of_memory
from dit_video.nn.pixels import Frames, one_ahead
from dit_video.shapes import MIN_TILE, VideoShape
from dit_video.timing import Clock
from dit_video.video.io import WrittenVideo, write_video

if TYPE_CHECKING:
    from dit_video.models.wan.vae import WanVAE
    from dit_video.stages import Progress, Stages

BLACK = 8  # the brightest that a black picture is, of 255
STILL = 1  # by how much the pixels of two frames differ at most that show the same, of 255


@torch.no_grad()
def decode_frames(
    vae: "WanVAE", latents: Tensor, shape: VideoShape, *, tile: int | None = None
) -> Iterator[np.ndarray]:
    """Frames (H, W, 3) uint8 as they are decoded from latents (C, T, H, W), cropped and trimmed to `shape`.

    Frames of more than `tile` latents on a side are decoded in windows of that size, in less memory, and blended.
    What a clip is padded with comes at its end, at the bottom and at the right, in training as here.

    Raises:
        UndefinedNumbers: decoding gave infinite or undefined numbers.
    """
    dtype = next(vae.parameters()).dtype
    done = 0
    for part in one_ahead(_parts(vae, latents.to(dtype), shape, tile), ahead=latents.device.type == "cuda"):
        frames, finite = part.get()
        if not finite:
            cause = "use --dtype bfloat16" if dtype == torch.float16 else "the latents or the weights are damaged"
            raise UndefinedNumbers(
                f"decoding frame {done + 1} of {shape.num_frames} gave infinite or undefined numbers: {cause}."
            )
        yield from frames
        done += len(frames)


def _parts(vae: "WanVAE", latents: Tensor, shape: VideoShape, tile: int | None) -> Iterator[Frames]:
    left = shape.num_frames
    for chunk in vae.decode_stream(latents[None], tile=tile):  # 1 3 t H W
        part = Frames(chunk[0, :, :left, : shape.height, : shape.width])
        yield part
        left -= len(part)
        if left == 0:
            return


def write_decoded(
    stages: "Stages",
    latents: Tensor,
    shape: VideoShape,
    path: Path,
    *,
    fps: float,
    overwrite: bool = False,
    tile: int | None = None,
    strict: bool = False,
    comment: str = "",
    show: Callable[[int, np.ndarray], None] | None = None,
) -> WrittenVideo:
    """Decodes latents (C, T, H, W) into a file; where memory runs out it begins again in tiles.

    tile: see `decode_frames`. strict: a video that is black, or in which nothing moves, is an error and not written,
    instead of a warning. comment: see `write_video`. show: is given every frame (H, W, 3) with its number; those of a
    decoding that began again once more.

    Raises:
        DvgenError: the file cannot be written, decoding gave undefined numbers, or see `strict`.
    """
    vae, sizes = stages.vae, _tiles(latents, tile)
    for size in sizes:
        stages.progress("decode", 0, shape.num_frames)
        try:
            with stages.timed("decode", partial(Clock.decode, shape=shape, suffix=path.suffix.lower(), tile=size)):
                frames = decode_frames(vae, latents, shape, tile=size)
                counted = _counted(frames, stages.progress, shape.num_frames)
                watched = checked(counted, f"{path}: the video", stages.warn, strict=strict)
                watched = watched if show is None else shown(watched, show)
                # Who took the name while it was denoised is no reason to lose it.
                written = write_video(path, watched, fps=fps, overwrite=overwrite, numbered=True, comment=comment)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or size == sizes[-1]:
                raise
        _make_room(stages)
    stages.progress("decode", shape.num_frames, shape.num_frames)
    if written.note:
        stages.warn(written.note)
    return written


def decode_or_tile(
    stages: "Stages", latents: Tensor, shape: VideoShape, *, tile: int | None = None
) -> Iterator[np.ndarray]:
    """As `decode_frames`; where memory runs out the frames that are left are decoded in tiles."""
    sizes, given = _tiles(latents, tile), 0
    for size in sizes:
        try:
            for frame in islice(decode_frames(stages.vae, latents, shape, tile=size), given, None):
                given += 1
                yield frame
            return
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or size == sizes[-1]:
                raise
        _make_room(stages)


def _tiles(latents: Tensor, tile: int | None) -> list[int | None]:
    """The tiles to decode in, each where memory runs out with those before."""
    return [tile] if tile is not None or max(latents.shape[-2:]) <= MIN_TILE else [None, MIN_TILE]


def _make_room(stages: "Stages") -> None:
    tiles = f"again in tiles of {MIN_TILE}x{MIN_TILE} latents, which changes them a little"
    stages.warn(f"decoding whole frames ran out of memory: {tiles}, and a recipe does not tell it")
    gc.collect()
    if stages.device.type == "cuda":
        torch.cuda.empty_cache()


def _counted(frames: Iterator[np.ndarray], progress: "Progress", total: int) -> Iterator[np.ndarray]:
    for count, frame in enumerate(frames):
        progress("decode", count, total)  # the last one counts when the file is there: encoders run behind
        yield frame


def shown(frames: Iterator[np.ndarray], show: Callable[[int, np.ndarray], None]) -> Iterator[np.ndarray]:
    """The frames, of which each is shown with its number."""
    for number, frame in enumerate(frames):
        show(number, frame)
        yield frame


def checked(
    frames: Iterator[np.ndarray], named: str, warn: Callable[[str], None], *, strict: bool
) -> Iterator[np.ndarray]:
    """The frames; at their end it is said if all of what is `named` so are black, or alike.

    Raises:
        DvgenError: so it is, and that is to be an error.
    """
    first: np.ndarray | None = None
    count, black, still = 0, True, True
    for frame in frames:
        first = frame if first is None else first
        count += 1
        black = black and int(frame.max()) <= BLACK
        still = still and int(np.abs(frame.astype(np.int16) - first).max()) <= STILL
        yield frame
    words = "is black all over" if black else "does not move: all frames are alike" if still and count > 1 else ""
    if words and strict:
        raise DvgenError(f"{named} {words}; it is not kept (--strict).")
    if words:
        warn(f"{named} {words}.")
