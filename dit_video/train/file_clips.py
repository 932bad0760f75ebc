"""What an autoencoder is trained on, from folders of videos and pictures (train/files.py).

Clips keep their size, shape and length, but those above a quarter of a step's pixels are cut in time and space: each
time another window of the file's own pixels, at any place. So a step sees several files however large they are, and
nothing is scaled to one shape. Captions are needed only where a `denoiser` reads them.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit_video.errors import DvgenError, MediaError
from dit_video.nn.pixels import pad_frames, to_video
from dit_video.shapes import Grid, VideoShape
from dit_video.train import clips
from dit_video.train.clips import FIRST_LOOK, FIRST_LOOK_CLIPS, MAX_CLIPS, Batch
from dit_video.train.config import AutoencoderConfig
from dit_video.train.files import Found, Note, Piece, read_piece, sampled_shape
from dit_video.train.seeding import numpy_generator

WINDOWS = 4  # of the largest size in a step
LEAST_FRAMES = 9  # of a window: with strides of 4 the encoder's and the decoder's whole look back
VALIDATION_CLIPS = 64
SHEET_CLIPS, SHEET_FRAMES = 6, 17
KEPT_BYTES = 512 * 2**20  # of clips that stay in memory once they are read


@dataclass(frozen=True, kw_only=True)
class Window:
    """A part of a clip that is scaled to `scaled`: `shape`, which begins at `corner` (frame, row, column)."""

    piece: Piece
    scaled: VideoShape
    shape: VideoShape
    corner: tuple[int, int, int]
    caption: str


class FileClips:
    """Windows of the clips that a scan found.

    Raises (from all that reads):
        DvgenError: no file can be read any more.
    """

    def __init__(self, config: AutoencoderConfig, grid: Grid, found: Found, note: Note):
        assert config.files is not None
        self.config, self.files, self.grid, self.found, self.note = config, config.files, grid, found, note
        self.damaged: dict[Path, str] = {}
        self._kept: OrderedDict[tuple[Piece, VideoShape], np.ndarray] = OrderedDict()
        self._bytes = 0

    @property
    def cut(self) -> float:
        """The share of the clips that are too large to be taken whole."""
        rng = np.random.default_rng(0)
        windows = [self._window(piece, rng) for piece in self.found.training]
        return sum(window.shape != window.scaled for window in windows) / len(windows)

    def step(self, rng: np.random.Generator) -> list[Batch]:
        """Windows of clips drawn alike, those of one shape together in a batch."""
        return next(self._steps(self._draw(rng)))

    def validation(self) -> list[list[Batch]]:
        """Steps of windows of the files that are kept from training, VALIDATION_CLIPS at most, always the same."""
        pieces = self.found.validation[:VALIDATION_CLIPS]
        return [*self._steps(self._window(piece, numpy_generator(0, 0, n)) for n, piece in enumerate(pieces))]

    def first_look(self) -> Tensor:
        """Windows of one shape; smaller clips are padded to it by their own edge."""
        frames = islice(self._frames(self._draw(self._rng(0), FIRST_LOOK)), FIRST_LOOK_CLIPS)
        return to_video(np.stack([pad_frames(each, FIRST_LOOK) for _, each in frames]))

    def code_clips(self, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """All cells matter alike."""
        for window, frames in islice(self._frames(self._draw(rng)), clips.CODE_CLIPS):
            latent = self.grid.latent(window.shape)
            cells = torch.ones(latent.frames, latent.height, latent.width, dtype=torch.bool)
            yield to_video(pad_frames(frames, self.grid.padded(window.shape))[None])[0], cells

    def sheet_clips(self) -> list[np.ndarray]:
        """Whole frames of files that are kept from training, or of others where none is."""
        pieces = self.found.validation or self.found.training
        some = [pieces[n] for n in np.linspace(0, len(pieces) - 1, min(SHEET_CLIPS, len(pieces))).round().astype(int)]
        shapes = [sampled_shape(self.files, piece.shape, np.random.default_rng(0)) for piece in some]
        frames = [self._clip(piece, shape) for piece, shape in zip(some, shapes, strict=True)]
        return [each[:SHEET_FRAMES] for each in frames if each is not None]

    def _rng(self, number: int) -> np.random.Generator:
        return numpy_generator(self.config.loop.seed, 1 << 20, number)

    def _draw(self, rng: np.random.Generator, largest: VideoShape | None = None) -> Iterator[Window]:
        """Windows without end; `largest` takes the place of what a step's pixels allow."""
        pieces = self.found.training
        while True:
            yield self._window(pieces[rng.integers(len(pieces))], rng, largest)

    def _window(self, piece: Piece, rng: np.random.Generator, largest: VideoShape | None = None) -> Window:
        scaled = sampled_shape(self.files, piece.shape, rng)
        shape = self.grid.window(scaled, self.config.batch_pixels // WINDOWS, least_frames=LEAST_FRAMES)
        if largest is not None:
            shape = VideoShape(
                num_frames=min(scaled.num_frames, largest.num_frames),
                height=min(scaled.height, largest.height),
                width=min(scaled.width, largest.width),
            )
        room = [a - b for a, b in zip(_sizes(scaled), _sizes(shape), strict=True)]
        frame, row, column = (int(rng.integers(each + 1)) for each in room)
        caption = piece.captions[rng.integers(len(piece.captions))] if piece.captions else ""
        return Window(piece=piece, scaled=scaled, shape=shape, corner=(frame, row, column), caption=caption)

    def _steps(self, windows: Iterable[Window]) -> Iterator[list[Batch]]:
        """The windows in their order, as many in a step as have room."""
        taken: list[tuple[Window, np.ndarray]] = []
        for window in windows:
            room = self.config.batch_pixels - sum(self._pixels(each) for each, _ in taken)
            if taken and (len(taken) == MAX_CLIPS or self._pixels(window) > room):
                yield self._batches(taken)
                taken = []
            taken += self._frames([window])
        if taken:
            yield self._batches(taken)

    def _pixels(self, window: Window) -> int:
        return int(np.prod(_sizes(self.grid.padded(window.shape))))

    def _batches(self, taken: list[tuple[Window, np.ndarray]]) -> list[Batch]:
        groups: dict[VideoShape, list[tuple[Window, np.ndarray]]] = {}
        for window, frames in taken:
            groups.setdefault(self.grid.padded(window.shape), []).append((window, frames))
        batches = []
        for padded, group in groups.items():
            video = to_video(np.stack([pad_frames(frames, padded) for _, frames in group]))
            captions = tuple(window.caption for window, _ in group)
            batches.append(Batch(padded, video, torch.ones_like(video[:, :1]), captions))
        return batches

    def _frames(self, windows: Iterable[Window]) -> Iterator[tuple[Window, np.ndarray]]:
        """Each window with its frames (T, H, W, 3); those of damaged files are left out."""
        for window in windows:
            frames = self._clip(window.piece, window.scaled)
            if frames is not None:
                part = tuple(slice(a, a + b) for a, b in zip(window.corner, _sizes(window.shape), strict=True))
                yield window, frames[part]

    def _clip(self, piece: Piece, shape: VideoShape) -> np.ndarray | None:
        """A whole clip, from memory where it is there; None for a file that turns out to be damaged."""
        if piece.path in self.damaged:
            return None
        if (frames := self._kept.get((piece, shape))) is not None:
            self._kept.move_to_end((piece, shape))
            return frames
        try:
            frames = read_piece(piece, shape)
        except (MediaError, OSError) as error:
            self.damaged[piece.path] = str(error)
            self.note(f"left out {piece.path}: {str(error).removeprefix(f'{piece.path}: ').rstrip('.')}.")
            if self.damaged.keys() >= {each.path for each in self.found.training}:
                raise DvgenError(f"none of the {len(self.damaged)} files can be read any more.") from None
            return None
        self._kept[piece, shape] = frames
        self._bytes += frames.nbytes
        while self._bytes > KEPT_BYTES:
            self._bytes -= self._kept.popitem(last=False)[1].nbytes
        return frames


def _sizes(shape: VideoShape) -> tuple[int, int, int]:
    return shape.num_frames, shape.height, shape.width
