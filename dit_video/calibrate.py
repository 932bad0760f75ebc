"""A few seconds of a model's own work, so that its clock knows how fast it is here; see `timing`."""

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dit_video.clip import Clip, Settings
from dit_video.decode import write_decoded
from dit_video.denoise import sample_latents
from dit_video.groups import group_of
from dit_video.make import encode_given
from dit_video.models.wan.described import DescribedModel
from dit_video.shapes import VideoShape
from dit_video.stages import Stages

SIDE = 64  # pixels on the shorter side of the smallest clip
GROWTH = 8  # by how much a clip has more pixels than the one before, at most
STEPS = 2
GRAY = 128


def calibrate(stages: Stages, model: DescribedModel, *, seconds: float) -> list[VideoShape]:
    """Makes clips, each larger than the one before, for about so many seconds, the smallest in any case, and keeps what
    their stages took; the clips that were made.

    stages: with a clock, and without a cache, so that a prompt is read.

    Raises:
        DvgenError: a stage that cannot be loaded, or too little memory.
    """
    assert stages.clock is not None
    made: list[VideoShape] = []
    shapes = list(growing(model))
    with TemporaryDirectory(prefix="dvgen-") as folder:
        with stages.clock.hearing(lambda task: task.is_loading):  # the rest of it has what is done but once
            _make(stages, model, shapes[0], Path(folder) / "0.mp4", "")
        with stages.clock.hearing(lambda task: not task.is_loading):  # which is quicker than in a run by now
            began, taken = time.perf_counter(), 0.0
            for number, shape in enumerate(shapes, start=1):
                if made and time.perf_counter() - began + GROWTH * taken > seconds:
                    break
                before = time.perf_counter()
                _make(stages, model, shape, Path(folder) / f"{number}.mp4", f"{number}")
                taken = time.perf_counter() - before
                made.append(shape)
    return made


def growing(model: DescribedModel) -> Iterator[VideoShape]:
    """Clips of more and more pixels, up to the one that the model makes by default."""
    defaults = model.defaults
    whole = VideoShape(num_frames=defaults.frames, height=defaults.height, width=defaults.width)
    factor = 1
    while (least := min(whole.width, whole.height) // factor) > SIDE:
        factor *= 2
        least //= 2
    while factor > 1:
        yield VideoShape(
            num_frames=max(min(9, whole.num_frames), whole.num_frames // factor),
            height=max(16, whole.height // factor),
            width=max(16, whole.width // factor),
        )
        factor //= 2
    yield whole


def _make(stages: Stages, model: DescribedModel, shape: VideoShape, path: Path, prompt: str) -> None:
    groups = {0}
    if model.known_frames == "first and last":
        groups.add(group_of(shape.num_frames - 1, model.grid.stride[0]))
    picture = np.full((1, shape.height, shape.width, 3), GRAY, np.uint8)
    known = encode_given(stages, shape, {group: picture for group in groups})
    clip = Clip(prompt=prompt, negative=prompt, shape=shape, seed=0, known=known)
    settings = Settings(steps=STEPS, solver="euler", shift=model.defaults.shift, guidance=model.defaults.guidance)
    (latents,) = sample_latents(stages, [clip], settings)
    write_decoded(stages, latents, shape, path, fps=8)
