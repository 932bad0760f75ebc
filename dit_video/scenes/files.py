"""The training world as files: clips (.mp4) and pictures (.png), each with its caption in a .txt of the same name."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from dit_video import atomic
from dit_video.errors import MediaError, UsageError
from dit_video.scenes.captions import caption
from dit_video.scenes.render import render
from dit_video.scenes.world import MAX_FRAMES, MAX_SIDE, MIN_SIDE, sample_num_frames, sample_scene, sample_size
from dit_video.video.io import write_video

DEFAULT_FPS = 12.0  # only how fast the files play: the world's motions are timed by the clip's length


def write_scenes(
    out_dir: Path | str,
    count: int,
    seed: int,
    *,
    size: tuple[int, int] | None = None,
    num_frames: int | None = None,
    held_out: bool = False,
    fps: float = DEFAULT_FPS,
    overwrite: bool = False,
) -> Iterator[Path]:
    """Writes `count` scenes and yields the path of each clip or picture once it and its caption are whole.

    Scene n depends on the seed and n alone, so a longer set begins with a shorter one. size = (width, height) and
    num_frames are drawn for each scene when None. With `held_out`, scenes and wordings are those kept for evaluation.

    Raises:
        UsageError: count under 1, seed under 0, a side or a number of frames outside the world.
        MediaError: a missing parent folder, or scenes already there when `overwrite` is False.
    """
    folder = Path(out_dir)
    _check(folder, count, seed, size, num_frames, overwrite)
    folder.mkdir(exist_ok=True)
    return (_write_scene(folder, n, seed, size, num_frames, held_out, fps, overwrite) for n in range(count))


def _check(
    folder: Path, count: int, seed: int, size: tuple[int, int] | None, num_frames: int | None, overwrite: bool
) -> None:
    if count < 1:
        raise UsageError(f"{count} scenes: there must be at least 1.")
    if seed < 0:
        raise UsageError(f"seed {seed}: must be 0 or more; the nearest is 0.")
    if size and not MIN_SIDE <= min(size) <= max(size) <= MAX_SIDE:
        nearest = "x".join(str(min(max(side, MIN_SIDE), MAX_SIDE)) for side in size)
        raise UsageError(
            f"--size {size[0]}x{size[1]}: the world has sides of {MIN_SIDE} to {MAX_SIDE}; the nearest is {nearest}."
        )
    if num_frames is not None and not 1 <= num_frames <= MAX_FRAMES:
        nearest = str(min(max(num_frames, 1), MAX_FRAMES))
        raise UsageError(f"--frames {num_frames}: clips of the world have 1 to {MAX_FRAMES}; the nearest is {nearest}.")
    if not folder.absolute().parent.is_dir():
        raise MediaError(f"{folder}: the folder {folder.parent} does not exist; create it first.")
    if folder.exists() and not folder.is_dir():
        raise MediaError(f"{folder}: this is a file; name a folder.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise MediaError(f"{folder}: this must be a new or empty folder; choose another name.")


def _write_scene(
    folder: Path,
    number: int,
    seed: int,
    size: tuple[int, int] | None,
    num_frames: int | None,
    held_out: bool,
    fps: float,
    overwrite: bool,
) -> Path:
    rng = np.random.default_rng((seed, number))
    scene = sample_scene(
        rng, num_frames=num_frames or sample_num_frames(rng), size=size or sample_size(rng), held_out=held_out
    )
    text = caption(scene, rng, held_out=held_out) + "\n"
    path = folder / f"{number:06d}{'.png' if scene.num_frames == 1 else '.mp4'}"
    with atomic.replacing(path.with_suffix(".txt")) as words:  # appears when its clip is there
        words.write_text(text, encoding="utf-8")
        write_video(path, iter(render(scene)), fps=fps, overwrite=overwrite)
    return path
