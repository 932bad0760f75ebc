"""What an autoencoder is trained on: batches of clips, from the procedural world here, from files in `file_clips`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from dit_video.nn.pixels import pad_frames, to_video
from dit_video.scenes.captions import caption
from dit_video.scenes.render import render
from dit_video.shapes import Grid, VideoShape
from dit_video.train.config import AutoencoderConfig
from dit_video.train.data import object_mask, sample_shape, scene_batch
from dit_video.train.seeding import numpy_generator

MAX_CLIPS = 64  # in a batch
CODE_CLIPS = 400
OBJECT_WEIGHT = 4.0  # where the config says none
FIRST_LOOK = VideoShape(num_frames=9, height=96, width=128)
FIRST_LOOK_CLIPS = 48


@dataclass(frozen=True)
class Batch:
    """Clips of one shape, padded to whole latents by their own edge: video (B, 3, T, H, W) in [-1, 1], weights
    (B, 1, T, H, W), and captions.
    """

    shape: VideoShape
    video: Tensor
    weights: Tensor
    captions: tuple[str, ...]


class Clips(Protocol):
    """Where an autoencoder's clips come from; everything depends on the config and on `rng` alone."""

    def step(self, rng: np.random.Generator) -> Sequence[Batch]:
        """The clips of one step: `batch_pixels` pixels times frames at most, one clip at least."""

    def first_look(self) -> Tensor:
        """Clips (B, 3, T, H, W) of one common shape to fit the start to."""

    def code_clips(self, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Native clips to fit a linear code to: (video (3, T, H, W), cells that matter (t, h, w))."""

    def sheet_clips(self) -> list[np.ndarray]:
        """Frames (T, H, W, 3) of a few clips that are always the same."""


class SceneClips:
    """Clips of the procedural world."""

    def __init__(self, config: AutoencoderConfig, grid: Grid):
        self.config, self.grid = config, grid

    def step(self, rng: np.random.Generator) -> list[Batch]:
        """One batch of one shape, its objects weighted."""
        config = self.config
        shape = sample_shape(rng, config.data)
        padded = self.grid.padded(shape)
        count = max(1, round(config.batch_pixels / (padded.num_frames * padded.height * padded.width)))
        scenes = scene_batch(rng, shape, min(count, MAX_CLIPS), config.data.second_object)
        video = to_video(np.stack([pad_frames(render(scene), padded) for scene in scenes]))
        masks = torch.stack([object_mask(scene, padded) for scene in scenes])[:, None]
        captions = tuple(caption(scene, rng) for scene in scenes) if config.denoiser else ("",) * len(scenes)
        weight = OBJECT_WEIGHT if config.object_weight is None else config.object_weight
        return [Batch(shape, video, 1 + (weight - 1) * masks.float(), captions)]

    def first_look(self) -> Tensor:
        """Scenes of one shape."""
        rng = numpy_generator(self.config.loop.seed, 1 << 20, 0)
        return to_video(np.stack([render(scene) for scene in scene_batch(rng, FIRST_LOOK, FIRST_LOOK_CLIPS)]))

    def code_clips(self, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """The cells that matter are those with an object."""
        for _ in range(CODE_CLIPS):
            shape = sample_shape(rng, self.config.data)
            padded = self.grid.padded(shape)
            (scene,) = scene_batch(rng, shape, 1, self.config.data.second_object)
            yield to_video(pad_frames(render(scene), padded)[None])[0], object_mask(scene, padded, self.grid.stride)

    def sheet_clips(self) -> list[np.ndarray]:
        """Six scenes."""
        shape = VideoShape(num_frames=17, height=128, width=224)
        return [render(scene) for scene in scene_batch(np.random.default_rng(12345), shape, 6)]
