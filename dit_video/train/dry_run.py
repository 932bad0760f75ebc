"""What a training run would be: its clips, tokens, packs, memory and time, from the data's shapes and a few real steps.

Nothing is written. Steps are measured on random latents of the shapes that the data has, so that nothing has to be
rendered or encoded first; encoding is measured on one clip.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dit_video.machine import peak_memory
from dit_video.shapes import Grid, VideoShape
from dit_video.train.config import DiTTrainConfig, PhaseConfig
from dit_video.train.data import Example, PackStream, Shards, sample_shape
from dit_video.train.dit import Models, build, embed_captions, make_encode, make_run, pack_loss
from dit_video.train.files import INDEX, Found, Note, sampled_shape, scan
from dit_video.train.loop import check_device, in_fast_dtype, optimise
from dit_video.train.packing import pack_in_chunks, padding
from dit_video.train.seeding import numpy_generator, torch_generator

SAMPLED_SHAPES = 2000  # of the procedural world, which has no end
MEASURED_STEPS = 3  # after one that warms up


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """What was found.

    clips: of the data; None for the procedural world, which has no end. skipped: files that were left out. padding: the
    share of the packs that stays empty. clips_seen: in all steps, each as often as it is seen. memory: the peak in
    bytes. encode_seconds: for a clip of the middle size.
    """

    clips: int | None
    validation_clips: int
    skipped: int
    tokens_per_clip: float
    clips_per_pack: float
    padding: float
    parameters: int
    steps: int
    clips_seen: int
    memory: int
    step_seconds: float
    encode_seconds: float

    @property
    def seconds(self) -> float:
        """Of all steps, in one process."""
        return self.steps * self.step_seconds

    @property
    def passes(self) -> float | None:
        """How often every clip of the data is seen."""
        return None if self.clips is None else self.clips_seen / self.clips


class _RandomShards:
    """Random latents of given shapes, where shards of encoded clips would be."""

    def __init__(self, grid: Grid, shapes: Sequence[VideoShape], channels: int, captions: Sequence[str], clips: int):
        self.grid, self.shapes, self.channels, self.captions, self.clips = grid, shapes, channels, captions, clips

    def load(self, index: int) -> list[Example]:
        """Any of the shapes."""
        rng = np.random.default_rng(index)
        examples = []
        for number in rng.integers(len(self.shapes), size=min(self.clips, 256)):
            latent = self.grid.latent(self.shapes[number])
            size = (latent.frames, latent.height, latent.width)
            captions = (self.captions[number % len(self.captions)],)
            latents = torch.randn(self.channels, *size).half()
            examples.append(Example(latents, captions, torch.zeros(size, dtype=torch.bool)))
        return examples

    def forget(self, index: int) -> None:
        """Nothing is kept."""


def dry_run(config: DiTTrainConfig, *, note: Note) -> DryRun:
    """Measures a few steps of what `train` would do, in one process; nothing is left behind.

    Raises:
        DvgenError: whatever `train` would refuse before its first step.
    """
    with TemporaryDirectory() as folder:
        return _dry_run(replace(config, out=folder), note)


def _dry_run(config: DiTTrainConfig, note: Note) -> DryRun:
    check_device(config.loop)
    config = replace(config, loop=in_fast_dtype(config.loop, note))
    found = scan(config.files, Path(config.out) / INDEX, note) if config.files else None
    models = build(config, found, note)
    embed_captions(models, ())
    if config.loop.threads:
        torch.set_num_threads(config.loop.threads)
    grid, shapes = models.grid, _shapes(config, found)
    of_a_round = min(config.window * config.shard_clips, SAMPLED_SHAPES)  # what packs are made of at a time
    tokens = [math.prod(grid.tokens(grid.latent(shapes[n % len(shapes)]))) for n in range(max(of_a_round, len(shapes)))]
    packs = pack_in_chunks(tokens, config.pack_tokens)
    per_pack = len(tokens) / len(packs)
    captions = models.prompts
    step_seconds = _measured(config, models, _RandomShards(grid, shapes, models.dit.config.in_dim, captions, 256))
    return DryRun(
        clips=None if found is None else len(found.training),
        validation_clips=0 if found is None else len(found.validation),
        skipped=0 if found is None else len(found.skipped),
        tokens_per_clip=sum(tokens) / len(tokens),
        clips_per_pack=per_pack,
        padding=padding(packs, tokens, config.pack_tokens),
        parameters=sum(p.numel() for module in models.trained.values() for p in module.parameters()),
        steps=config.loop.steps,
        clips_seen=round(config.loop.steps * per_pack),
        memory=max(peak_memory(torch.device(config.loop.device)).values(), default=0),
        step_seconds=step_seconds,
        encode_seconds=_encoding(config, models, sorted(shapes, key=_pixels)[len(shapes) // 2]),
    )


def _pixels(shape: VideoShape) -> int:
    return shape.width * shape.height * shape.num_frames


def _shapes(config: DiTTrainConfig, found: Found | None) -> list[VideoShape]:
    """The shapes of the data: of files, at the size that they are used at, or drawn from the phases, each alike."""
    rng = np.random.default_rng(config.loop.seed)
    if found is not None and config.files is not None:
        return [sampled_shape(config.files, piece.shape, rng) for piece in found.training]
    phases: list[PhaseConfig] = list(config.phase)
    return [sample_shape(rng, phases[n % len(phases)]) for n in range(SAMPLED_SHAPES)]


def _measured(config: DiTTrainConfig, models: Models, shards: Shards) -> float:
    """The median time of a whole step."""
    run, stream = make_run(config, models, shards)
    assert isinstance(stream, PackStream)
    seconds = []
    for number in range(1 + MEASURED_STEPS):
        started = time.perf_counter()
        pack = stream.next()
        rng, generator = numpy_generator(0, 0, number), torch_generator(0, 0, number)
        optimise(run, pack_loss(models, pack, config, rng, generator))
        if config.loop.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return float(np.median(seconds[1:]))


def _encoding(config: DiTTrainConfig, models: Models, shape: VideoShape) -> float:
    padded = models.grid.padded(shape)
    video = torch.zeros(1, 3, padded.num_frames, padded.height, padded.width)
    started = time.perf_counter()
    make_encode(config, models)(video).cpu()
    return time.perf_counter() - started
