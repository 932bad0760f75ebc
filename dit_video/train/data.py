"""Training data from the procedural world: shapes drawn natively, scenes rendered, clips encoded once and cached,
packs filled greedily.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dit_video import atomic
from dit_video.nn.pixels import pad_frames, to_video
from dit_video.scenes.captions import caption
from dit_video.scenes.render import boxes, render
from dit_video.scenes.world import MAX_ASPECT, MIN_ASPECT, SECOND_OBJECT_SHARE, Scene, sample_scene
from dit_video.shapes import Grid, LatentShape, VideoShape
from dit_video.train.config import PhaseConfig, parse_weighted_shape
from dit_video.train.packing import pack_in_chunks

CAPTIONS_PER_CLIP = 4
SCENES_VERSION = 2  # to be raised when scenes, captions or sampled shapes change, so that caches are made anew
GROUP = 8  # clips of one shape that follow each other in a shard
ENCODED_PIXELS = 4_000_000  # pixels times frames that are rendered and encoded together, at most; one clip at least


@dataclass(frozen=True)
class Example:
    """A clip as the trainer sees it: latents (C, T, H, W) in float16, wordings, and where its objects are (T, H, W)
    bool.
    """

    latents: Tensor
    captions: tuple[str, ...]
    objects: Tensor


def sample_shape(rng: np.random.Generator, phase: PhaseConfig) -> VideoShape:
    """A native size and length from a phase's mixture."""
    if phase.common and rng.random() < phase.common_share:
        shapes, weights = zip(*map(parse_weighted_shape, phase.common), strict=True)
        return shapes[np.searchsorted(np.cumsum(weights), rng.integers(sum(weights)), side="right")]
    low, high = phase.short_side
    short = math.exp(rng.uniform(math.log(low), math.log(high)))
    ratio = math.exp(rng.uniform(math.log(MIN_ASPECT), math.log(MAX_ASPECT)))
    width, height = (short * ratio, short) if ratio >= 1 else (short, short / ratio)
    frames = 1 if rng.random() < phase.images else int(rng.integers(phase.frames[0], phase.frames[1] + 1))
    shrink = min(1.0, math.sqrt(phase.max_pixels / (width * height * frames)))
    return VideoShape(num_frames=frames, height=max(32, round(height * shrink)), width=max(32, round(width * shrink)))


def object_mask(scene: Scene, shape: VideoShape, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
    """Cells (T, H, W) of a grid with `stride` over `shape` (its padded pixels) that an object's box touches, as
    bool.
    """
    per_frame = boxes(scene)  # frames, objects, (left, top, right, bottom)
    t, h, w = stride
    cells = torch.zeros(1 + (shape.num_frames - 1) // t, shape.height // h, shape.width // w, dtype=torch.bool)
    for frame in range(shape.num_frames):
        for left, top, right, bottom in per_frame[min(frame, len(per_frame) - 1)]:
            cells[-(-frame // t), top // h : -(-bottom // h), left // w : -(-right // w)] = True
    return cells


def scene_batch(
    rng: np.random.Generator, shape: VideoShape, count: int, second_object: float = SECOND_OBJECT_SHARE
) -> list[Scene]:
    """`count` scenes of one shape, a share `second_object` of them with two objects; combinations that are held out
    never occur.
    """
    size = (shape.width, shape.height)
    return [
        sample_scene(rng, num_frames=shape.num_frames, size=size, second_object=second_object) for _ in range(count)
    ]


class Shards(Protocol):
    """Where a stream's clips come from; `grid` is the model's."""

    grid: Grid

    def load(self, index: int) -> list[Example]: ...

    def forget(self, index: int) -> None: ...


class SceneShards:
    """Shards of encoded scenes, made on demand and kept in a folder; shard n of a seed is always the same.

    Args:
        encode: (B, 3, T, H, W) in [-1, 1] on the grid -> normalised latents (B, C, t, h, w).
        fingerprint: names the encoder; a cached shard of another one, or of other settings, is never used.
    """

    def __init__(
        self,
        folder: Path,
        phases: Sequence[PhaseConfig],
        grid: Grid,
        encode: Callable[[Tensor], Tensor],
        *,
        clips: int,
        seed: tuple[int, ...],
        fingerprint: str,
    ):
        self.folder, self.phases, self.grid, self.encode = folder, phases, grid, encode
        self.clips, self.seed, self.fingerprint = clips, seed, fingerprint
        folder.mkdir(parents=True, exist_ok=True)

    def load(self, index: int) -> list[Example]:
        """The examples of shard `index`, from the cache or made now."""
        path = self.folder / f"shard-{index:05d}.pt"
        made_of = repr((self.fingerprint, self._phase(index), self.clips, self.seed, self.grid, SCENES_VERSION))
        if path.is_file():
            saved = torch.load(path, weights_only=True)
            if saved["fingerprint"] == made_of:
                return [Example(*fields) for fields in saved["examples"]]
        examples = self._make(index)
        stored = {"fingerprint": made_of, "examples": [(e.latents, e.captions, e.objects) for e in examples]}
        with atomic.replacing(path) as part:
            torch.save(stored, part)
        return examples

    def forget(self, index: int) -> None:
        """Remove a shard that is no longer needed from the cache."""
        (self.folder / f"shard-{index:05d}.pt").unlink(missing_ok=True)

    def _phase(self, index: int) -> PhaseConfig:
        return [phase for phase in self.phases if phase.first_shard <= index][-1]

    def _make(self, index: int) -> list[Example]:
        phase = self._phase(index)
        rng = np.random.default_rng((*self.seed, index))
        examples: list[Example] = []
        while len(examples) < self.clips:
            shape = sample_shape(rng, phase)
            padded = self.grid.padded(shape)
            scenes = scene_batch(rng, shape, min(GROUP, self.clips - len(examples)), phase.second_object)
            together = max(1, ENCODED_PIXELS // (padded.num_frames * padded.height * padded.width))
            for start in range(0, len(scenes), together):
                part = scenes[start : start + together]
                frames = np.stack([pad_frames(render(scene), padded) for scene in part])
                latents = self.encode(to_video(frames)).half().cpu()
                for scene, clip in zip(part, latents, strict=True):
                    wordings = tuple(caption(scene, rng) for _ in range(CAPTIONS_PER_CLIP))
                    examples.append(Example(clip.clone(), wordings, object_mask(scene, padded, self.grid.stride)))
        return examples


class PackStream:
    """An endless stream of packs: rounds over a window of shards that moves on by one shard a round.

    Every clip is seen once a round and so `window` times in all. The place in the stream is (round, pack), which is
    all that resuming needs.
    """

    def __init__(self, shards: Shards, *, window: int, pack_tokens: int, seed: tuple[int, ...]):
        self.shards, self.window, self.pack_tokens, self.seed = shards, window, pack_tokens, seed
        self.round, self.place = 0, 0
        self.live: dict[int, list[Example]] = {}
        self.packs: tuple[tuple[int, ...], ...] = ()
        self.examples: list[Example] = []

    def next(self) -> list[Example]:
        """The clips of the next pack, longest first."""
        if not self.packs:
            self._begin_round()
        if self.place == len(self.packs):
            self.round, self.place = self.round + 1, 0
            self._begin_round()
        pack = [self.examples[i] for i in self.packs[self.place]]
        self.place += 1
        return pack

    def state_dict(self) -> dict[str, Any]:
        """The place in the stream."""
        return {"round": self.round, "place": self.place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place in the stream."""
        self.round, self.place = state["round"], state["place"]
        self._begin_round()

    def tokens(self, example: Example) -> int:
        """How many tokens a clip becomes."""
        frames, height, width = example.latents.shape[1:]
        return math.prod(self.shards.grid.tokens(LatentShape(frames=frames, height=height, width=width)))

    def _begin_round(self) -> None:
        wanted = range(max(0, self.round - self.window + 1), self.round + 1)
        for index in [i for i in self.live if i not in wanted]:
            del self.live[index]
            self.shards.forget(index)
        for index in wanted:
            if index not in self.live:
                self.live[index] = self.shards.load(index)
        rng = np.random.default_rng((*self.seed, self.round))
        clips = [example for index in wanted for example in self.live[index]]
        self.examples = [clips[i] for i in rng.permutation(len(clips))]
        packs = pack_in_chunks([self.tokens(example) for example in self.examples], self.pack_tokens)
        self.packs = tuple(packs[i] for i in rng.permutation(len(packs)))
