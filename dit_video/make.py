"""From a clip to a video file: what is given of it is encoded, it is denoised, decoded and written."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dit_video.clip import Clip, Settings, prompts_of
from dit_video.decode import write_decoded
from dit_video.denoise import OnDenoised, sample_latents
from dit_video.errors import CheckpointError
from dit_video.groups import check_beside, encoded_frames
from dit_video.known import Known, encode_beside, encode_frames, encode_known
from dit_video.latents import is_of, read_latents, save_latents_of
from dit_video.machine import peak_memory
from dit_video.nn.pixels import pad_frames
from dit_video.prompts import read_prompts
from dit_video.shapes import VideoShape
from dit_video.stages import Stages, explained_memory
from dit_video.timing import Clock, Task
from dit_video.unfinished import Unfinished, keeping


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `make_clip` made.

    grid: patches in time, height and width. unknown_words: of the prompts, those that the model never learnt.
    prompt_cut: a prompt was too long and its end was not read. seconds: per activity. peak_memory: in bytes, see
    `peak_memory`.
    """

    path: Path
    width: int
    height: int
    frames: int
    fps: float
    seed: int
    grid: tuple[int, int, int]
    tokens: int
    steps: int
    forwards: int
    unknown_words: list[str]
    prompt_cut: bool
    seconds: dict[str, float]
    peak_memory: dict[str, int]


def make_clip(
    stages: Stages,
    clip: Clip,
    settings: Settings,
    path: Path,
    *,
    fps: float,
    given: Mapping[int, np.ndarray] | None = None,
    seen: Mapping[int, np.ndarray] | None = None,
    start: np.ndarray | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    save_latents: Path | None = None,
    model: str = "",
    tile: int | None = None,
    unfinished: Unfinished | None = None,
    strict: bool = False,
    comment: str = "",
    watch: OnDenoised | None = None,
    show: Callable[[int, np.ndarray], None] | None = None,
) -> Result:
    """Makes one video file; with `save_latents` also a file of its latents, which is there before decoding begins.

    Args:
        given, seen: frames that are given, see `encode_given`.
        start: frames (T, H, W, 3) uint8 of the clip's shape, to begin with at the level of `Settings.strength`.
        fresh: latents that the same command has left without their video are not taken up.
        model: what the latents say of the model that made them.
        tile: see `decode_frames`.
        unfinished: see `sample_latents`; gone when the file is there.
        strict, comment, show: see `write_decoded`.
        watch: see `sample_latents`.

    Raises:
        DvgenError: a stage that cannot be loaded, too little memory, latents that are not finite, or a file that cannot
            be written.
    """
    with explained_memory(clip.shape):
        latents = None
        if save_latents and not fresh and not path.exists() and is_of(save_latents, unfinished, clip.seed):
            latents = _taken_up(stages, save_latents)
        are_kept = latents is not None
        if latents is None:
            clip = with_frames(stages, clip, given, seen, start)
            latents = sample_latents(stages, [clip], settings, unfinished=unfinished, watch=watch)[0]
    return write_clip(
        stages,
        clip,
        latents,
        settings,
        path,
        fps=fps,
        overwrite=overwrite,
        save_latents=save_latents,
        are_kept=are_kept,
        model=model,
        tile=tile,
        unfinished=unfinished,
        strict=strict,
        comment=comment,
        show=show,
    )


def _taken_up(stages: Stages, file: Path) -> Tensor | None:
    """The latents that the same command has left in a file; None where they are damaged."""
    try:
        latents = read_latents(file).to(stages.device)
    except CheckpointError as error:
        stages.warn(f"{error} They are made anew.")
        return None
    stages.note(f"{file}: the latents of the same command are there, and only their video is made")
    return latents


def write_clip(
    stages: Stages,
    clip: Clip,
    latents: Tensor,
    settings: Settings,
    path: Path,
    *,
    fps: float,
    overwrite: bool = False,
    save_latents: Path | None = None,
    are_kept: bool = False,
    model: str = "",
    tile: int | None = None,
    unfinished: Unfinished | None = None,
    strict: bool = False,
    comment: str = "",
    show: Callable[[int, np.ndarray], None] | None = None,
) -> Result:
    """The second half of `make_clip`: the file of a clip whose latents (C, T, H, W) are there.

    are_kept: the file of latents holds them already.

    Raises:
        DvgenError: see `make_clip`.
    """
    with explained_memory(clip.shape):
        with keeping(unfinished, stages.warn):
            if save_latents and not are_kept:
                about = {"prompt": clip.prompt, "negative": clip.negative, "seed": str(clip.seed), "model": model}
                about |= {"key": unfinished.key} if unfinished else {}
                about |= {"comment": comment} if comment else {}
                save_latents_of(latents, save_latents, clip.shape, fps=fps, about=about)
        with keeping(unfinished, stages.warn, latents=save_latents):
            written = write_decoded(
                stages,
                latents,
                clip.shape,
                path,
                fps=fps,
                overwrite=overwrite,
                tile=tile,
                strict=strict,
                comment=comment,
                show=show,
            )
    if unfinished:
        unfinished.remove()
    if stages.clock:
        stages.clock.keep()
    grid = stages.checkpoint.grid.tokens(stages.checkpoint.grid.latent(clip.shape))
    unknown_words, prompt_cut = read_prompts(stages, *prompts_of(clip, settings))
    return Result(
        path=written.path,
        width=written.width,
        height=written.height,
        frames=written.frames,
        fps=written.fps,
        seed=clip.seed,
        grid=grid,
        tokens=math.prod(grid),
        steps=settings.steps - settings.first_step,
        forwards=stages.forwards,
        unknown_words=unknown_words,
        prompt_cut=prompt_cut,
        seconds={activity: round(seconds, 3) for activity, seconds in stages.seconds.items()},
        peak_memory=peak_memory(stages.device),
    )


def with_frames(
    stages: Stages,
    clip: Clip,
    given: Mapping[int, np.ndarray] | None,
    seen: Mapping[int, np.ndarray] | None,
    start: np.ndarray | None,
) -> Clip:
    """The clip with the latents of what is given, and of what it starts from. Raises DvgenError."""
    if not given and start is None:
        return clip
    known = encode_given(stages, clip.shape, given, seen) if given else None
    if start is None:
        return replace(clip, known=known)
    with stages.timed("encode", lambda clock: clock.encode(clip.shape)):
        padded = pad_frames(start, stages.checkpoint.grid.padded(clip.shape))
        return replace(clip, known=known, start=encode_frames(stages.vae, padded))


def encode_given(
    stages: Stages, shape: VideoShape, given: Mapping[int, np.ndarray], seen: Mapping[int, np.ndarray] | None = None
) -> Known:
    """What is given of a clip of `shape`, as the model takes it.

    Args:
        given: latent frame -> its frames, see `encode_known`, and `encode_beside` for models that take them so.
        seen: latent frame -> the picture (H, W, 3) that it was made from, of any size, which is what an image encoder
            sees, as in the release and in diffusers; without it, its last frame.

    Raises:
        UsageError: the model takes pictures beside the noise, and not these.
    """
    checkpoint = stages.checkpoint

    def measured(clock: Clock) -> Task:
        frames = encoded_frames(given, checkpoint.grid.stride[0])
        return clock.encode(shape if checkpoint.beside else replace(shape, num_frames=frames))

    with stages.timed("encode", measured):
        if not checkpoint.beside:
            return encode_known(stages.vae, checkpoint.grid, shape, given)
        frames = [0 if group == 0 else shape.num_frames - 1 for group in given]
        check_beside(checkpoint.known_frames, frames, shape.num_frames)
        images = None
        if checkpoint.sees_images:
            pictures = [(seen or {}).get(group, given[group][-1])[None] for group in sorted(given)]
            images = torch.cat([stages.images.encode(picture)[0] for picture in pictures]).cpu()
        latent = checkpoint.grid.latent(shape)
        return Known(
            latents=torch.zeros(checkpoint.latent_channels, latent.frames, latent.height, latent.width),
            frames=torch.zeros(latent.frames, dtype=torch.bool),
            channels=encode_beside(stages.vae, checkpoint.grid, shape, given),
            images=images,
        )
