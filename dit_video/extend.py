"""Frames before, after and between given ones: extend forward and backward, loop, connect.

All of it is one thing: a window of which some latent frames are known (`known.py`). The frames before the new ones are
1 + 4k, so that the window begins as a clip does, and the new ones begin a group. The frames after them must begin a
group too: where the number of new frames is not a multiple of 4, their last group also covers the first of what
follows, which is then taken from there. A window without frames before it begins with new ones, of which the surplus
is left out. (4 stands for the autoencoder's stride in time.)

Models that take pictures beside the noise (`known.encode_beside`) are given the frame before the new ones, and where
they can also the frame after them, and nothing more.

More new frames than fit in a window are made window by window, each from the last frames of the one before, so memory
does not grow with their number.
"""

import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dit_video.clip import Clip, Settings
from dit_video.decode import checked, decode_or_tile
from dit_video.denoise import OnDenoised, sample_latents
from dit_video.errors import MediaError
from dit_video.groups import frames_of, group_of
from dit_video.machine import peak_memory
from dit_video.make import encode_given
from dit_video.prompts import read_prompts
from dit_video.shapes import VideoShape
from dit_video.stages import Stages, explained_memory
from dit_video.unfinished import Unfinished, tell_kept
from dit_video.video.io import write_video
from dit_video.windows import Windows

MAX_SEED = 2**63


class Maker:
    """Makes new frames beside given ones, with one prompt and one set of settings.

    made: windows so far; each has the next seed. unfinished: where their states are kept until the file is there;
    current: that of the latest.
    strict: new frames that are black, or of which all are alike, are an error instead of a warning. watch: see
    `sample_latents`.
    """

    def __init__(
        self,
        stages: Stages,
        settings: Settings,
        *,
        prompt: str,
        negative: str,
        seed: int,
        size: tuple[int, int],
        windows: Windows,
        tile: int | None = None,
        unfinished: Unfinished | None = None,
        strict: bool = False,
        watch: OnDenoised | None = None,
    ) -> None:
        self.stages, self.settings, self.prompt, self.negative = stages, settings, prompt, negative
        self.seed, self.windows, self.tile, self.unfinished = seed, windows, tile, unfinished
        self.strict, self.watch = strict, watch
        self.width, self.height = size
        self.made = 0
        self.current: Unfinished | None = None
        self.pictures: Mapping[int, np.ndarray] = {}  # of a clip from its beginning, by its latent frames
        self.seen: Mapping[int, np.ndarray] = {}

    def checked(self, frames: Iterator[np.ndarray], named: str) -> Iterator[np.ndarray]:
        """New frames, see `decode.checked`."""
        return checked(frames, named, self.stages.warn, strict=self.strict)

    def whole(
        self,
        count: int,
        pictures: Mapping[int, np.ndarray] | None = None,
        seen: Mapping[int, np.ndarray] | None = None,
    ) -> Iterator[np.ndarray]:
        """A clip of `count` frames from its beginning.

        pictures, seen: what is given of it, see `encode_given`.
        """
        self.pictures, self.seen = pictures or {}, seen or {}
        first, *rest = self.windows.whole(count)
        recent: list[np.ndarray] = []
        for frame in self._fill(None, first, None):
            recent = [*recent, frame][-self.windows.before :]
            yield frame
        if rest:
            yield from self.between(np.stack(recent), sum(rest), None, begun=first)

    def after(self, given: np.ndarray, count: int) -> Iterator[np.ndarray]:
        """`count` frames that follow the frames `given` (T, H, W, 3)."""
        return self.between(given, count, None)

    def before(self, given: np.ndarray, count: int) -> Iterator[np.ndarray]:
        """`count` frames that lead to the frames `given`, in the order of time.

        They are made from the end, so they wait in a temporary file.
        """
        parts, offsets = self.windows.parts(count, before=False, after=True), []
        with tempfile.TemporaryFile() as spool:
            for part in parts:
                offsets.append(spool.tell())
                frames = np.stack(list(self._fill(None, part, given)))
                try:
                    spool.write(frames.tobytes())
                    spool.flush()
                except OSError as error:
                    place = f"new frames wait in a temporary file in {tempfile.gettempdir()}"
                    raise MediaError(f"{place}, which cannot be written ({error.strerror or error}).") from None
                given = np.concatenate([frames, given])[: self.windows.after + self.windows.stride]
            for part, offset in zip(reversed(parts), reversed(offsets), strict=True):
                spool.seek(offset)
                for _ in range(part):
                    data = spool.read(self.height * self.width * 3)
                    yield np.frombuffer(data, np.uint8).reshape(self.height, self.width, 3)

    def between(
        self, before: np.ndarray, count: int, after: np.ndarray | None, *, begun: int = 0
    ) -> Iterator[np.ndarray]:
        """`count` frames that lead from the frames `before` to the frames `after`, if there are any; begun: see
        `_fill`."""
        windows = self.windows
        last = windows.most(before=True, after=True) if after is not None else 0
        parts = windows.parts(count, before=True, after=False, last=last)
        for number, part in enumerate(parts):
            end = after if number == len(parts) - 1 else None
            recent = list(before[-windows.before :])
            for frame in self._fill(before, part, end, begun=begun + sum(parts[:number]) if begun else 0):
                recent = [*recent[-(windows.before - 1) :], frame] if windows.before > 1 else [frame]
                yield frame
            before = np.stack(recent)

    def _fill(
        self, before: np.ndarray | None, count: int, after: np.ndarray | None, *, begun: int = 0
    ) -> Iterator[np.ndarray]:
        """One window: `count` new frames after, before or between known ones, or alone.

        begun: frames of a clip from its beginning that are there.
        """
        given, shape, skipped = self._window(before, count, after)
        if self.pictures:
            t, offset = self.windows.stride, (begun - skipped) // self.windows.stride if begun else 0
            new = range(len(given), 1 + (shape.num_frames - 1) // t)
            given |= {group: self.pictures[group + offset] for group in new if group + offset in self.pictures}
        stages = self.stages
        seed = (self.seed + self.made) % MAX_SEED
        self.current = self.unfinished and self.unfinished.of_part(self.made)
        self.made += 1
        with explained_memory(shape):
            known = encode_given(stages, shape, given, None if begun else self.seen) if given else None
            clip = Clip(prompt=self.prompt, negative=self.negative, shape=shape, seed=seed, known=known)
            latents = sample_latents(stages, [clip], self.settings, unfinished=self.current, watch=self.watch)[0]
            frames = decode_or_tile(stages, latents, shape, tile=self.tile)
            decoding = stages.seconds["decode"]
            for number in range(skipped + count):
                with stages.timed("decode"):
                    frame = next(frames)
                if number >= skipped:
                    yield frame
            if clock := stages.clock:
                clock.took(clock.decode(shape, "", tile=self.tile), stages.seconds["decode"] - decoding)

    def _window(
        self, before: np.ndarray | None, count: int, after: np.ndarray | None
    ) -> tuple[dict[int, np.ndarray], VideoShape, int]:
        """What is given of a window, by latent frame; its shape; and how many frames come before the new ones."""
        t, windows = self.windows.stride, self.windows
        if self.stages.checkpoint.beside and before is not None:
            return _between_two(before[-1], count, None if after is None else after[0], t)
        given: dict[int, np.ndarray] = {}
        if before is None:
            groups = 1 + -(-(count - 1) // t)  # of the new frames, the first of which is a group of its own
            skipped = 0 if after is None else 1 + (groups - 1) * t - count  # the surplus is at the free end
            surplus = 0
        else:
            kept = min(windows.before, 1 + (len(before) - 1) // t * t)
            before = before[len(before) - kept :]
            for group in range(1 + (kept - 1) // t):
                given[group] = before[frames_of(group, t).start : frames_of(group, t).stop]
            groups = len(given) + -(-count // t)
            skipped = kept
            surplus = -count % t
        if after is not None:
            short = surplus + t - len(after)  # a group at least: a clip of less is held still for its rest
            after = np.concatenate([after, np.repeat(after[-1:], max(0, short), axis=0)])
            usable = min(windows.after, (len(after) - surplus) // t * t)
            for start in range(surplus, surplus + usable, t):
                given[groups] = after[start : start + t]
                groups += 1
        shape = VideoShape(num_frames=1 + (groups - 1) * t, height=self.height, width=self.width)
        return given, shape, skipped


def _between_two(
    before: np.ndarray, count: int, after: np.ndarray | None, stride: int
) -> tuple[dict[int, np.ndarray], VideoShape, int]:
    """As `Maker._window`, for `count` new frames after one frame (H, W, 3), or between two."""
    shape = VideoShape(num_frames=1 + count + (after is not None), height=before.shape[0], width=before.shape[1])
    given = {0: before[None]}
    if after is not None:
        given[group_of(shape.num_frames - 1, stride)] = after[None]
    return given, shape, 1


def extended(
    maker: Maker, clip: Iterable[np.ndarray], head: np.ndarray, *, backward: int = 0, forward: int = 0, loop: int = 0
) -> Iterator[np.ndarray]:
    """The frames of `clip` (H, W, 3), each as it is, with new ones before and after it.

    Args:
        head: the first frames of the clip, at least as many as `head_frames`, or all of it.
        loop: new frames at the end that lead back to the beginning.
    """
    if backward:
        yield from maker.checked(maker.before(head, backward), "what comes before the clip")
    tail: list[np.ndarray] = []
    for frame in clip:
        tail = [*tail[-(maker.windows.before - 1) :], frame] if maker.windows.before > 1 else [frame]
        yield frame
    if forward or loop:
        new = maker.between(np.stack(tail), forward or loop, head if loop else None)
        yield from maker.checked(new, "what comes after the clip")


def connected(
    maker: Maker, first: Iterable[np.ndarray], second: Iterable[np.ndarray], head: np.ndarray, count: int
) -> Iterator[np.ndarray]:
    """The frames of two clips with `count` new ones between; head: the first frames of the second."""
    yield from extended(maker, first, head, loop=count)
    yield from second


@dataclass(frozen=True, kw_only=True)
class Extended:
    """What `write_extended` made; see `make.Result`. new_frames: of its frames, those that were made."""

    path: Path
    width: int
    height: int
    frames: int
    new_frames: int
    fps: float
    seed: int
    windows: int
    steps: int
    forwards: int
    unknown_words: list[str]
    prompt_cut: bool
    seconds: dict[str, float]
    peak_memory: dict[str, int]


def write_extended(
    maker: Maker,
    frames: Iterator[np.ndarray],
    path: Path,
    *,
    fps: float,
    old_frames: int,
    overwrite: bool = False,
    comment: str = "",
) -> Extended:
    """Writes the frames that `extended` or `connected` gives as they come; old_frames: of them, those that were given;
    comment: see `write_video`.

    Raises:
        DvgenError: a stage that cannot be loaded, too little memory, latents that are not finite, or a file that cannot
            be read or written.
    """
    stages, settings = maker.stages, maker.settings
    began, in_stages = time.perf_counter(), sum(stages.seconds.values())
    try:
        written = write_video(path, frames, fps=fps, overwrite=overwrite, comment=comment)
    except BaseException as error:
        tell_kept(maker.current, error, stages.warn)
        raise
    if clock := stages.clock:
        taken = time.perf_counter() - began - (sum(stages.seconds.values()) - in_stages)
        clock.took(clock.write(written.frames, written.width, written.height, path.suffix.lower()), taken)
        clock.keep()
    if maker.unfinished:
        maker.unfinished.remove()
    if written.note:
        stages.warn(written.note)
    unknown_words, prompt_cut = read_prompts(stages, maker.prompt, maker.negative)
    return Extended(
        path=written.path,
        width=written.width,
        height=written.height,
        frames=written.frames,
        new_frames=written.frames - old_frames,
        fps=written.fps,
        seed=maker.seed,
        windows=maker.made,
        steps=settings.steps,
        forwards=stages.forwards,
        unknown_words=unknown_words,
        prompt_cut=prompt_cut,
        seconds={activity: round(seconds, 3) for activity, seconds in stages.seconds.items()},
        peak_memory=peak_memory(stages.device),
    )
