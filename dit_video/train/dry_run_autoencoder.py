"""What an autoencoder's training run would be: its clips, pixels, memory and time, from a few real steps on the data.

Nothing is written.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from dit_video.machine import peak_memory
from dit_video.models.wan.vae import WanVAE
from dit_video.train.autoencoder import check, find_clips, make_run, step_result, vae_config
from dit_video.train.config import AutoencoderConfig
from dit_video.train.dry_run import MEASURED_STEPS
from dit_video.train.file_clips import FileClips
from dit_video.train.files import Note
from dit_video.train.linear_code import stand_in
from dit_video.train.loop import in_fast_dtype, optimise
from dit_video.train.seeding import numpy_generator, torch_generator


@dataclass(frozen=True, kw_only=True)
class AutoencoderDryRun:
    """What was found.

    clips: of the data; None for the procedural world, which has no end. skipped: files that were left out. pixels:
    times frames, of a step, padding included. cut: the share of the clips that are larger than a step takes whole.
    memory: the peak in bytes. step_seconds: with the clips' reading, which alone takes data_seconds.
    """

    clips: int | None
    validation_clips: int
    skipped: int
    cut: float
    clips_per_step: float
    pixels: float
    parameters: int
    steps: int
    memory: int
    step_seconds: float
    data_seconds: float

    @property
    def clips_seen(self) -> int:
        """In all steps, in one process."""
        return round(self.steps * self.clips_per_step)

    @property
    def seconds(self) -> float:
        """Of all steps, in one process."""
        return self.steps * self.step_seconds


def dry_run(config: AutoencoderConfig, *, note: Note) -> AutoencoderDryRun:
    """Measures a few steps of what `train` would do, in one process; nothing is left behind.

    Raises:
        DvgenError: whatever `train` would refuse before its first step.
    """
    models = check(config, resume=False)
    with TemporaryDirectory() as folder:
        clips, _ = find_clips(config, models, Path(folder) / "index.json", note)
    config = replace(config, loop=in_fast_dtype(config.loop, note))
    if config.loop.threads:
        torch.set_num_threads(config.loop.threads)
    torch.manual_seed(config.loop.seed)
    models.vae = WanVAE(vae_config(config.arch))
    if models.start is not None:
        models.vae.load_state_dict(models.start.state_dict())
    if config.linear_code:
        models.code = stand_in(config.arch.z_dim, models.grid.stride)
    run = make_run(config, models)
    seconds, reading, counts, pixels = [], [], [], []
    for number in range(1 + MEASURED_STEPS):  # the first one warms up
        started = time.perf_counter()
        batches = clips.step(numpy_generator(config.loop.seed, 0, number))
        reading.append(time.perf_counter() - started)
        optimise(run, step_result(config, models, batches, torch_generator(0, 0, number)).loss)
        if config.loop.device != "cpu":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
        counts.append(sum(len(batch.video) for batch in batches))
        pixels.append(sum(batch.video[:, 0].numel() for batch in batches))
    found = clips.found if isinstance(clips, FileClips) else None
    return AutoencoderDryRun(
        clips=None if found is None else len(found.training),
        validation_clips=0 if found is None else len(found.validation),
        skipped=0 if found is None else len(found.skipped),
        cut=clips.cut if isinstance(clips, FileClips) else 0.0,
        clips_per_step=float(np.mean(counts)),
        pixels=float(np.mean(pixels)),
        parameters=sum(p.numel() for p in models.vae.parameters() if p.requires_grad),
        steps=config.loop.steps,
        memory=max(peak_memory(torch.device(config.loop.device)).values(), default=0),
        step_seconds=float(np.median(seconds[1:])),
        data_seconds=float(np.median(reading[1:])),
    )
