"""Training data from folders of videos and pictures with captions, each at its own size, shape and length.

A file's captions are the lines of the `.txt` beside it, or its entry in a `captions.jsonl` of its folder:
`{"file": "a/b.mp4", "caption": "..."}`, or a list of wordings. A file that cannot be read, or that has no caption where
captions are needed, is named and left out.

Long videos become several clips of at most `max_frames`. Nothing is cropped. With `short_side` each clip is scaled to
a side drawn anew each time it is used (NaViT's resolution sampling, arXiv 2307.06304, section 2.2), else it has its own
size, but for clips above `max_pixels`, which are scaled down.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_video import atomic
from dit_video.errors import DvgenError, MediaError
from dit_video.nn.pixels import pad_frames, to_video
from dit_video.shapes import MIN_SIDE, Grid, VideoShape
from dit_video.train.config import FilesConfig
from dit_video.train.data import Example
from dit_video.video.fit import fit_frames
from dit_video.video.io import probe, read_frames

VIDEOS = (".mp4", ".webm", ".gif", ".mov", ".mkv", ".avi", ".m4v")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
CAPTIONS = "captions.jsonl"
INDEX = "files.json"  # of what a scan found out, in a run's folder

Note = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A clip of a file: its frames from `start` on, at the rate `fps` (None: each once), and the file's captions.

    shape: the largest that it is trained on.
    """

    path: Path
    start: int
    shape: VideoShape
    fps: float | None
    captions: tuple[str, ...]


@dataclass
class Found:
    """What a scan found: clips to train on and to validate with, and the files that were left out, with the reason."""

    training: list[Piece] = field(default_factory=list)
    validation: list[Piece] = field(default_factory=list)
    skipped: dict[Path, str] = field(default_factory=dict)

    @property
    def captions(self) -> list[str]:
        """Every wording, each once, in a fixed order."""
        pieces = (*self.training, *self.validation)
        return sorted({caption for piece in pieces for caption in piece.captions})


def scan(config: FilesConfig, index: Path, note: Note, *, captioned: bool = True) -> Found:
    """The clips of all folders; what was found out about files is kept in the file `index` for the next time.

    captioned: leave out files without a caption.

    Raises:
        DvgenError: a folder that is not there, or no clip to train on.
    """
    known = _read_index(index)
    found = Found()
    facts: dict[str, Any] = {}
    for folder in map(Path, config.folders):
        if not folder.is_dir():
            raise DvgenError(f"folders: {folder} is not a folder.")
        listed = _listed_captions(folder, found, note)
        for path in sorted(p for p in folder.rglob("*") if p.suffix.lower() in (*VIDEOS, *PICTURES) and p.is_file()):
            captions = listed.get(path.relative_to(folder).as_posix()) or _own_captions(path)
            if captioned and not captions:
                _skip(found, path, f"it has no caption in {path.with_suffix('.txt').name} or {CAPTIONS}", note)
                continue
            key = _key(path)
            try:
                facts[key] = known.get(key) or _facts(path)
            except MediaError as error:
                _skip(found, path, str(error).removeprefix(f"{path}: "), note)
                continue
            held_out = _share(path.relative_to(folder).as_posix()) < config.validation
            pieces = [*_pieces(path, facts[key], captions, config)]
            if not pieces:
                _skip(found, path, f"it has fewer than {config.min_frames} frames (min_frames)", note)
            (found.validation if held_out else found.training).extend(pieces)
    if found.skipped:
        note(f"{len(found.skipped):,} files were left out.")
    if not found.training:
        raise DvgenError(
            f"folders {', '.join(config.folders)}: there is no clip to train on, of {len(found.skipped)} files that "
            "were left out."
        )
    index.parent.mkdir(parents=True, exist_ok=True)
    with atomic.replacing(index) as part:
        part.write_text(json.dumps(facts) + "\n")
    return found


def _skip(found: Found, path: Path, reason: str, note: Note) -> None:
    if path not in found.skipped:
        found.skipped[path] = reason
        note(f"left out {path}: {reason.rstrip('.')}.")


def _key(path: Path) -> str:
    """A name for a file as it is now."""
    stat = path.stat()
    return f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"


def _read_index(index: Path) -> dict[str, Any]:
    try:
        found = json.loads(index.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _facts(path: Path) -> dict[str, Any]:
    info = probe(path)
    frames = info.frames
    if info.uneven:
        frames = sum(1 for _ in read_frames(path, fps=info.fps))
    return {"width": info.width, "height": info.height, "frames": frames, "fps": info.fps, "uneven": info.uneven}


def _own_captions(path: Path) -> tuple[str, ...]:
    text = path.with_suffix(".txt")
    if not text.is_file():
        return ()
    return tuple(
        line.strip() for line in text.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()
    )


def _listed_captions(folder: Path, found: Found, note: Note) -> dict[str, tuple[str, ...]]:
    """The captions of a folder's captions.jsonl, by file; a line that makes no sense is named and left out."""
    listed: dict[str, tuple[str, ...]] = {}
    file = folder / CAPTIONS
    if not file.is_file():
        return listed
    for number, line in enumerate(file.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            name, captions = entry["file"], entry["caption"]
            wordings = [captions] if isinstance(captions, str) else list(captions)
            listed[Path(name).as_posix()] = tuple(str(text) for text in wordings)
        except (ValueError, KeyError, TypeError):
            rule = 'must be an object with "file" and "caption"'
            _skip(found, Path(f"{file}:{number}"), rule, note)
    return listed


def _share(name: str) -> float:
    """A number in [0, 1) that a name always has."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64


def _pieces(path: Path, facts: dict[str, Any], captions: tuple[str, ...], config: FilesConfig) -> Iterator[Piece]:
    rate = facts["fps"]
    fps = config.fps or rate
    even_at = fps if rate and (facts["uneven"] or abs(fps / rate - 1) > 1e-3) else None
    frames = facts["frames"] if even_at is None or not rate else max(1, round(facts["frames"] * fps / rate))
    for start in range(0, frames, config.max_frames):
        count = min(config.max_frames, frames - start)
        if count >= config.min_frames or frames == 1:
            own = VideoShape(num_frames=count, height=facts["height"], width=facts["width"])
            largest = _scaled(config, own, config.short_side[1] if config.short_side else math.inf)
            yield Piece(path=path, start=start, shape=largest, fps=even_at, captions=captions)


class FileShards:
    """Shards of encoded clips: the same interface as `SceneShards`, over files instead of scenes.

    Every clip comes once in each pass over the data, in another order. Latents are kept in `cache`, one file for each
    clip at each size, so an interrupted run, and every later one on the same data, finds them.

    Args:
        encode: (B, 3, T, H, W) in [-1, 1] on the grid -> normalised latents (B, C, t, h, w).
        fingerprint: names the encoder.
    """

    def __init__(
        self,
        cache: Path,
        pieces: Sequence[Piece],
        config: FilesConfig,
        grid: Grid,
        encode: Callable[[Tensor], Tensor],
        *,
        clips: int,
        seed: tuple[int, ...],
        fingerprint: str,
        note: Note,
    ):
        self.cache, self.pieces, self.config, self.grid, self.encode = cache, pieces, config, grid, encode
        self.clips, self.seed, self.fingerprint, self.note = clips, seed, fingerprint, note
        self.damaged: dict[Path, str] = {}
        cache.mkdir(parents=True, exist_ok=True)

    def load(self, index: int) -> list[Example]:
        """The examples of shard `index`.

        Raises:
            DvgenError: no file of it can be read.
        """
        examples = []
        orders: dict[int, np.ndarray] = {}
        for place in range(index * self.clips, (index + 1) * self.clips):
            turn, number = divmod(place, len(self.pieces))
            if turn not in orders:
                orders[turn] = np.random.default_rng((*self.seed, turn)).permutation(len(self.pieces))
            sides = np.random.default_rng((*self.seed, turn, number))
            if (example := self.example(self.pieces[orders[turn][number]], sides)) is not None:
                examples.append(example)
        if not examples:
            raise DvgenError(f"none of the {len(self.damaged)} files of this part of the data can be read.")
        return examples

    def forget(self, index: int) -> None:
        """Nothing: latents stay for the next pass."""

    def example(self, piece: Piece, rng: np.random.Generator) -> Example | None:
        """A clip's example, from the cache or made now; None for a file that turns out to be damaged."""
        shape = sampled_shape(self.config, piece.shape, rng)
        made_of = (
            _key(piece.path) if piece.path.is_file() else "",
            piece.start,
            piece.fps,
            str(shape),
            self.fingerprint,
        )
        name = hashlib.sha256(repr(made_of).encode()).hexdigest()
        path = self.cache / name[:2] / f"{name}.pt"
        try:
            latents = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError):
            try:
                latents = self._encoded(piece, shape)
            except (MediaError, OSError) as error:
                if piece.path not in self.damaged:
                    self.damaged[piece.path] = str(error)
                    self.note(f"left out {piece.path}: {str(error).removeprefix(f'{piece.path}: ').rstrip('.')}.")
                return None
            path.parent.mkdir(exist_ok=True)
            with atomic.replacing(path) as part:
                torch.save(latents, part)
        return Example(latents, piece.captions, torch.zeros(latents.shape[1:], dtype=torch.bool))

    def _encoded(self, piece: Piece, shape: VideoShape) -> Tensor:
        padded = pad_frames(read_piece(piece, shape), self.grid.padded(shape))
        return self.encode(to_video(padded[None]))[0].half().cpu()


def read_piece(piece: Piece, shape: VideoShape) -> np.ndarray:
    """The frames of a clip, (T, H, W, 3) uint8, scaled to `shape`. Raises MediaError."""
    stop = piece.start + piece.shape.num_frames
    frames = [
        fit_frames(frame[None], shape.width, shape.height, "stretch")[0]
        for frame in islice(read_frames(piece.path, fps=piece.fps), piece.start, stop)
    ]
    if not frames:
        raise MediaError(f"{piece.path}: it ends before frame {piece.start}.")
    frames += frames[-1:] * (shape.num_frames - len(frames))  # a rate that does not divide may lack a last one
    return np.stack(frames)


def sampled_shape(config: FilesConfig, largest: VideoShape, rng: np.random.Generator) -> VideoShape:
    """The size that a clip of the size `largest` at most has this time."""
    if config.short_side is None:
        return _scaled(config, largest, math.inf)
    low, high = config.short_side
    return _scaled(config, largest, math.exp(rng.uniform(math.log(low), math.log(high))))


def _scaled(config: FilesConfig, shape: VideoShape, short_side: float) -> VideoShape:
    """`shape` with a shorter side of `short_side` and `max_pixels` pixels at most; never larger than it is, which would
    teach blur.
    """
    pixels = shape.width * shape.height * shape.num_frames
    scale = min(1.0, short_side / min(shape.width, shape.height), math.sqrt(config.max_pixels / pixels))
    # Rounded down, so that what was scaled once stays as it is; the little is for products that are whole but for it.
    width, height = (max(MIN_SIDE, math.floor(side * scale + 1e-6)) for side in (shape.width, shape.height))
    return VideoShape(num_frames=shape.num_frames, height=height, width=width)
