"""dvgen from Python: what the command does, with arrays where it has files.

    from dit_video import generate

    generate("a red ball moving right on a white background", frames=24, size=(256, 144), seed=7).save("ball.mp4")

`load_model` keeps a model in memory for many videos. Names, meanings and defaults are those of the command's options.
What the command says on standard error comes as Python warnings, and as notes of the logger "dit_video".
"""

import logging
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_video import limits
from dit_video.checkpoints.lora import describe_left_out, read_lora
from dit_video.checkpoints.places import Named
from dit_video.clip import Clip, Settings, prompts_of, settings_of
from dit_video.decode import decode_frames
from dit_video.denoise import sample_latents
from dit_video.errors import UsageError
from dit_video.extend import Maker, connected, extended
from dit_video.given import Placed, given, seen, size_of, warn_untrained
from dit_video.groups import check_beside
from dit_video.machine import dtype_name, memory_for, pick_device, pick_dtype
from dit_video.make import with_frames
from dit_video.models import open_checkpoint
from dit_video.models.wan.defaults import PRESETS
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.nn.linear import check_quantize
from dit_video.plan import Plan, check_memory, weights_bytes
from dit_video.prompts import read_prompts
from dit_video.shapes import MAX_SIDE, MIN_SIDE, VideoShape
from dit_video.stages import Progress, Stages, explained_memory
from dit_video.text.cache import made_by, users_cache
from dit_video.timing import users_clock
from dit_video.video.fit import fit_frames
from dit_video.video.io import WrittenVideo, read_picture, read_video, write_video
from dit_video.windows import Windows, head_frames, sliding
from dit_video.work import why_not_fast

Picture = str | Path | np.ndarray  # a file, or (H, W, 3) uint8
Frames = str | Path | np.ndarray  # a file, or (T, H, W, 3) uint8
OnStep = Callable[[int, int, Tensor], None]  # (steps done, steps in all, what the latents (C, T, H, W) look like)

_LOG = logging.getLogger("dit_video")


@dataclass(frozen=True, kw_only=True)
class Video:
    """What was made.

    frames: (T, H, W, 3) uint8. settings: how it was denoised. unknown_words: of the prompts, those that the model never
    learnt. prompt_cut: a prompt was too long, and its end was not read. seconds: per activity.
    """

    frames: np.ndarray
    fps: float
    prompt: str
    seed: int
    settings: Settings
    unknown_words: list[str] = field(default_factory=list)
    prompt_cut: bool = False
    seconds: dict[str, float] = field(default_factory=dict)

    def save(self, path: str | Path, *, overwrite: bool = False, comment: str = "") -> WrittenVideo:
        """Writes .mp4, .webm, .gif, or .png of one frame, see `write_video`. Raises UsageError, MediaError."""
        return write_video(path, self.frames, fps=self.fps, overwrite=overwrite, comment=comment)


class Model:
    """A model whose stages stay in memory from one video to the next, as far as they fit.

    Args:
        name: a folder, a file, or a name; "default" is the shipped one, "random" a tiny one of noise.
        dtype, device: "auto", or a name in `limits.DTYPES`, `limits.DEVICES`.
        quantize: in what the transformer multiplies: "int8" on the CPU, "fp8" on a GPU that has it, "none".
        memory: bytes that it may take; layers that do not fit are read as they are needed. None for what is free.
        loras: files, or (file, strength), merged into its transformers.
        vae, text_encoder, image_encoder, high_noise: files of parts that are not in it.
        progress: called with (stage, parts done, parts in all) by everything that it does.

    Raises:
        CheckpointError, UsageError: it cannot be opened, or the device is not there.
    """

    def __init__(
        self,
        name: str | Path = "default",
        *,
        dtype: str = "auto",
        device: str = "auto",
        quantize: str = "none",
        memory: int | None = None,
        loras: Sequence[str | Path | tuple[str | Path, float]] = (),
        vae: str | Path | None = None,
        text_encoder: str | Path | None = None,
        image_encoder: str | Path | None = None,
        high_noise: str | Path | None = None,
        progress: Progress = lambda stage, done, total: None,
    ) -> None:
        limits.choice("dtype", dtype, limits.DTYPES)
        limits.choice("device", device, limits.DEVICES)
        self.quantize = None if limits.choice("quantize", quantize, limits.QUANTIZE) == "none" else quantize
        self.memory, self.progress = memory, progress
        if name == "random":
            self.checkpoint: Any = RandomCheckpoint()
        else:
            named = Named(
                vae=_path(vae),
                text_encoder=_path(text_encoder),
                image_encoder=_path(image_encoder),
                high_noise=_path(high_noise),
            )
            every = [lora if isinstance(lora, tuple) else (lora, 1.0) for lora in loras]
            merged = [read_lora(Path(path), strength) for path, strength in every]
            self.checkpoint = open_checkpoint(name, named).with_loras(merged)
            for fitted in self.checkpoint.loras:
                if left_out := describe_left_out(fitted):
                    _warn(left_out)
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        check_quantize(self.quantize, self.device, self.dtype)
        self._stages: Stages | None = None

    def generate(
        self,
        prompt: str,
        *,
        size: tuple[int, int] | None = None,
        frames: int | None = None,
        fps: float | None = None,
        images: Picture | Mapping[int, Picture] | None = None,
        fit: str = "cover",
        seed: int | None = None,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Video:
        """A video of a prompt; `dvgen sample`.

        Args:
            size: (width, height) in pixels, exactly. Without it, that of the first picture, or the model's.
            frames: their number, exactly. More than the model makes well at once are made in windows, each going on
                from the one before.
            images: pictures that are frames of it: the first one, or by their numbers; -1 is the last.
            fit: how pictures of another size are made to fit, of `limits.FITS`.
            seed: drawn where there is none; `Video.seed` tells it.
            on_step: called after every denoising step; what it raises ends the denoising.
            settings: negative, steps, solver, sigmas, shift, guidance (one scale or two), guidance_interval, preset,
                fast (True or False).

        Raises:
            DvgenError: a value that cannot be, too little memory, or a model that cannot do this.
        """
        defaults = self.checkpoint.defaults
        read = _read(images)
        if size is None:
            width, height = size_of(*read[0]) if read else (defaults.width, defaults.height)
        else:
            width, height = _pair("size", size, "(width, height)")
        shape = _shape(width, height, defaults.frames if frames is None else frames)
        rate = limits.number("fps", str(defaults.fps if fps is None else fps), *limits.FPS)
        limits.choice("fit", fit, limits.FITS)
        if self.checkpoint.beside:
            check_beside(
                self.checkpoint.known_frames, [image.of(shape.num_frames) for image, _ in read], shape.num_frames
            )
        groups = given(read, shape, self.checkpoint.grid, fit, _LOG.info)
        if groups and not self.checkpoint.beside:
            warn_untrained(self.checkpoint.known_frames, list(groups), _warn)
        if windows := sliding(self.checkpoint, shape.num_frames, list(groups)):
            pictures = groups, seen(read, shape, self.checkpoint.grid)
            return self._slid(windows, shape, prompt, seed, settings, pictures, rate, on_step)
        clip, how = self._clip(prompt, shape, seed, settings)
        stages, plan = self._ready(shape, encodes=any(groups))
        with explained_memory(shape):
            clip = with_frames(stages, clip, groups, seen(read, shape, self.checkpoint.grid), None)
        return self._made(stages, plan, clip, how, rate, on_step)

    def edit(
        self,
        clip: Frames,
        prompt: str,
        *,
        strength: float = limits.STRENGTH,
        fps: float | None = None,
        seed: int | None = None,
        on_step: OnStep | None = None,
        **settings: Any,
    ) -> Video:
        """A clip changed as a prompt says; `dvgen edit`.

        strength: from 0, nothing, to 1, all. fps: of a clip that is an array. For the rest see `generate`.

        Raises:
            DvgenError: see `generate`.
        """
        if self.checkpoint.beside:
            raise UsageError("this model animates images and cannot edit a clip; use a text-to-video model.")
        start, rate = self._frames(clip, fps)
        how = limits.number("strength", str(strength), 0.0, 1.0)
        shape = _shape(start.shape[2], start.shape[1], len(start))
        begun, found = self._clip(prompt, shape, seed, settings, strength=how)
        stages, plan = self._ready(shape, encodes=len(start) > 1)
        with explained_memory(shape):
            begun = with_frames(stages, begun, None, None, start)
        return self._made(stages, plan, begun, found, rate, on_step)

    def extend(
        self,
        clip: Frames,
        prompt: str = "",
        *,
        forward: int = 0,
        backward: int = 0,
        loop: int = 0,
        fps: float | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> Video:
        """A clip with new frames after it, before it, or that lead back to its beginning; `dvgen extend`. For the rest
        see `edit`.

        Raises:
            DvgenError: see `generate`.
        """
        new = {"forward": forward, "backward": backward, "loop": loop}
        for name, count in new.items():
            limits.whole(name, str(count), 0, limits.MAX_FRAMES)
        if not any(new.values()) or (loop and (forward or backward)):
            raise UsageError("extend: give forward, backward or both, or loop alone, as numbers of new frames.")
        own, rate = self._frames(clip, fps)
        maker, how = self._maker(own, prompt, seed, settings, before=backward, after=forward, between=loop)
        made = np.stack(list(extended(maker, own, own[: head_frames(maker.windows)], **new)))
        return self._video(maker.stages, made, rate, prompt, maker.negative, maker.seed, how)

    def connect(
        self,
        first: Frames,
        second: Frames,
        prompt: str = "",
        *,
        frames: int,
        fit: str | None = None,
        fps: float | None = None,
        seed: int | None = None,
        **settings: Any,
    ) -> Video:
        """Two clips joined by new frames; `dvgen connect`.

        fit: how the second one is made to fit the first, where it has another size. For the rest see `edit`.

        Raises:
            DvgenError: see `generate`.
        """
        limits.whole("frames", str(frames), 1, limits.MAX_FRAMES)
        (a, rate), (b, _) = self._frames(first, fps), self._frames(second, fps)
        if a.shape[1:] != b.shape[1:]:
            if fit is None:
                sizes = f"the clips are {a.shape[2]}x{a.shape[1]} and {b.shape[2]}x{b.shape[1]}"
                raise UsageError(f"connect: {sizes}; say how the second is made to fit: fit={limits.FITS}.")
            b = fit_frames(b, a.shape[2], a.shape[1], limits.choice("fit", fit, limits.FITS))
        maker, how = self._maker(a, prompt, seed, settings, between=frames)
        made = np.stack(list(connected(maker, a, b, b[: head_frames(maker.windows)], frames)))
        return self._video(maker.stages, made, rate, prompt, maker.negative, maker.seed, how)

    def free(self) -> None:
        """Drop its weights from memory; they are loaded again when they are needed."""
        if self._stages is not None:
            self._stages.free()

    def _clip(
        self, prompt: str, shape: VideoShape, seed: int | None, asked: Mapping[str, Any], *, strength: float = 1.0
    ) -> tuple[Clip, Settings]:
        """A clip of noise, and how it is denoised. Raises UsageError."""
        asked = dict(asked)
        negative = asked.pop("negative", None)
        experts = self.checkpoint.boundary is not None
        how = settings_of(self.checkpoint.defaults, experts=experts, strength=strength, **_checked_settings(asked))
        if words := why_not_fast(how, self.checkpoint.boundary):
            _warn(words)
        number = secrets.randbelow(2**32) if seed is None else limits.whole("seed", str(seed), 0, limits.MAX_SEED)
        if words := self.checkpoint.untrained(shape):
            _warn(words)
        without = self.checkpoint.defaults.negative if negative is None else negative
        return Clip(prompt=prompt, negative=without, shape=shape, seed=number), how

    def _ready(self, shape: VideoShape, *, encodes: bool) -> tuple[Stages, Plan]:
        """The stages, kept from the video before where they can be, and what a clip takes. Raises UsageError."""
        available = memory_for(self.device, self.memory)
        if self._stages is not None:  # what they take already is theirs to take
            available += weights_bytes(self.checkpoint, self.dtype.itemsize) if self._stages.keep else 0
        plan = check_memory(
            self.checkpoint,
            shape,
            itemsize=self.dtype.itemsize,
            available=available,
            holds=self.device.type != "cpu",
            encodes=encodes,
            quantised=self.quantize is not None,
        )
        together = plan.nbytes + weights_bytes(self.checkpoint, self.dtype.itemsize)
        keep = not plan.keep_layers and together < available
        if self._stages is None or self._stages.keep_layers != plan.keep_layers or self._stages.keep != keep:
            self.free()
            files, place = self.checkpoint.text_files, (dtype_name(self.dtype), self.device.type)
            self._stages = Stages(
                self.checkpoint,
                dtype=self.dtype,
                device=self.device,
                keep=keep,
                keep_layers=plan.keep_layers,
                cache=users_cache(made_by(files, *place)) if files else None,
                clock=users_clock(self.checkpoint, *place, plan.keep_layers, self.quantize),
                quantize=self.quantize,
                progress=self.progress,
                note=_LOG.info,
                warn=_warn,
            )
        self._stages.count_anew()
        return self._stages, plan

    def _made(self, stages: Stages, plan: Plan, clip: Clip, how: Settings, fps: float, on_step: OnStep | None) -> Video:
        def watch(step: int, total: int, denoised: Sequence[Tensor]) -> None:
            if on_step:
                on_step(step, total, denoised[0])

        with explained_memory(clip.shape), torch.no_grad():
            (latents,) = sample_latents(stages, [clip], how, watch=watch)
            vae = stages.vae
            with stages.timed("decode", lambda clock: clock.decode(clip.shape, "", tile=plan.tile)):
                frames = np.stack(list(decode_frames(vae, latents, clip.shape, tile=plan.tile)))
        return self._video(stages, frames, fps, clip.prompt, clip.negative, clip.seed, how)

    def _slid(
        self,
        windows: Windows,
        shape: VideoShape,
        prompt: str,
        seed: int | None,
        settings: Mapping[str, Any],
        pictures: "tuple[Mapping[int, np.ndarray], Mapping[int, np.ndarray]]",
        fps: float,
        on_step: OnStep | None,
    ) -> Video:
        """A clip that is longer than the model makes at once; on_step is told of every window."""
        window = replace(shape, num_frames=max(windows.whole_sizes(shape.num_frames)))
        clip, how = self._clip(prompt, window, seed, settings)
        stages, plan = self._ready(window, encodes=bool(pictures[0]) or windows.groups_before > 1)

        def watch(step: int, total: int, denoised: Sequence[Tensor]) -> None:
            if on_step:
                on_step(step, total, denoised[0])

        maker = Maker(
            stages,
            how,
            prompt=clip.prompt,
            negative=clip.negative,
            seed=clip.seed,
            size=(shape.width, shape.height),
            windows=windows,
            tile=plan.tile,
            watch=watch,
        )
        frames = np.stack(list(maker.whole(shape.num_frames, *pictures)))
        return self._video(stages, frames, fps, clip.prompt, clip.negative, clip.seed, how)

    def _video(
        self,
        stages: Stages,
        frames: np.ndarray,
        fps: float,
        prompt: str,
        negative: str,
        seed: int,
        how: Settings,
    ) -> Video:
        shape = VideoShape(num_frames=1, height=MIN_SIDE, width=MIN_SIDE)
        read = prompts_of(Clip(prompt=prompt, negative=negative, shape=shape, seed=seed), how)
        unknown, cut = read_prompts(stages, *read)
        if stages.clock:
            stages.clock.keep()
        return Video(
            frames=frames,
            fps=fps,
            prompt=prompt,
            seed=seed,
            settings=how,
            unknown_words=unknown,
            prompt_cut=cut,
            seconds=dict(stages.seconds),
        )

    def _maker(
        self,
        clip: np.ndarray,
        prompt: str,
        seed: int | None,
        settings: Mapping[str, Any],
        *,
        before: int = 0,
        after: int = 0,
        between: int = 0,
    ) -> tuple[Maker, Settings]:
        """What makes new frames beside those of a clip."""
        defaults, checkpoint = self.checkpoint.defaults, self.checkpoint
        windows = Windows.of(checkpoint.grid, defaults.window or defaults.frames, beside=checkpoint.beside)
        sizes = windows.all_sizes(backward=before, forward=after, loop=between)
        shape = _shape(clip.shape[2], clip.shape[1], max(sizes))
        begun, how = self._clip(prompt, shape, seed, settings)
        if checkpoint.beside:
            for count, where in ((before, [1]), (after, [0]), (between, [0, 1])):
                if count:
                    check_beside(checkpoint.known_frames, where, 2)
        else:
            groups = [0, 1] if before or between else list(range(windows.groups_before))
            warn_untrained(checkpoint.known_frames, groups, _warn)
        stages, plan = self._ready(shape, encodes=bool(before or between) or windows.groups_before > 1)
        return (
            Maker(
                stages,
                how,
                prompt=begun.prompt,
                negative=begun.negative,
                seed=begun.seed,
                size=(clip.shape[2], clip.shape[1]),
                windows=windows,
                tile=plan.tile,
            ),
            how,
        )

    def _frames(self, clip: Frames, fps: float | None) -> tuple[np.ndarray, float]:
        """A clip's frames, and their rate. Raises MediaError, UsageError."""
        own = None
        if isinstance(clip, np.ndarray):
            frames = clip[None] if clip.ndim == 3 else clip
            if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames):
                raise UsageError(f"the clip is {clip.shape} {clip.dtype}; it must be (T, H, W, 3) uint8.")
        elif isinstance(clip, str | Path):
            frames, own = read_video(clip)
        else:
            raise UsageError(f"the clip is {clip!r}; it must be a file, or an array (T, H, W, 3) uint8.")
        rate = (own or self.checkpoint.defaults.fps) if fps is None else fps
        return np.ascontiguousarray(frames), limits.number("fps", str(rate), *limits.FPS)


def load_model(name: str | Path = "default", **options: Any) -> Model:
    """A model that stays in memory for many videos; see `Model` for the options. Raises DvgenError."""
    return Model(name, **options)


def generate(prompt: str, *, model: Model | str | Path = "default", **options: Any) -> Video:
    """A video of a prompt; `model` is loaded for it alone where it is not loaded yet.

    options: of `Model` and of `Model.generate`.

    Raises:
        DvgenError: see both.
    """
    if not isinstance(model, Model):
        of_model = {name: options.pop(name) for name in _MODEL_OPTIONS if name in options}
        model = Model(model, **of_model)
    return model.generate(prompt, **options)


_MODEL_OPTIONS = (
    "dtype", "device", "quantize", "memory", "loras", "vae", "text_encoder", "image_encoder", "high_noise", "progress"
)  # fmt: skip


def _path(file: str | Path | None) -> Path | None:
    return None if file is None else Path(file)


def _checked_settings(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Settings whose values can be. Raises UsageError."""
    checks: dict[str, Callable[[Any], Any]] = {
        "steps": lambda value: limits.whole("steps", str(value), 1, limits.MAX_STEPS),
        "solver": lambda value: limits.choice("solver", str(value), limits.SOLVERS),
        "sigmas": lambda value: limits.choice("sigmas", str(value), limits.SIGMAS),
        "shift": lambda value: limits.number("shift", str(value), *limits.SHIFT),
        "guidance": _guidance,
        "guidance_interval": _interval,
        "fast": _fast,
        "preset": lambda value: limits.choice("preset", str(value), tuple(PRESETS)),
    }
    for name in asked:
        if name not in checks:
            limits.choice("setting", name, ("negative", *checks))
    return {name: checks[name](value) for name, value in asked.items() if value is not None}


def _guidance(value: float | Sequence[float]) -> tuple[float, ...]:
    scales = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    if not 1 <= len(scales) <= 2:
        raise UsageError(f"guidance {value}: must be one scale or two, for example 5 or (4, 3).")
    return tuple(limits.number("guidance", str(scale), *limits.GUIDANCE) for scale in scales)


def _interval(value: Sequence[float]) -> tuple[float, float]:
    levels = _pair("guidance_interval", value, "(low, high)")
    low, high = (limits.number("guidance_interval", str(level), 0.0, 1.0) for level in levels)
    if low > high:
        raise UsageError(f"guidance_interval {value}: must be (low, high); the nearest is {(high, low)}.")
    return low, high


def _fast(value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"fast {value!r}: must be True or False.")
    return value


def _pair(name: str, value: Any, meaning: str) -> tuple[Any, Any]:
    """The two values of a pair. Raises UsageError."""
    try:
        first, second = value
    except (TypeError, ValueError):
        raise UsageError(f"{name} {value!r}: must be two numbers, {meaning}.") from None
    return first, second


def _shape(width: int, height: int, frames: int) -> VideoShape:
    """A size and a length that a video can have. Raises UsageError."""
    sides = [limits.whole("size", str(side), MIN_SIDE, MAX_SIDE) for side in (width, height)]
    return VideoShape(
        num_frames=limits.whole("frames", str(frames), 1, limits.MAX_FRAMES), width=sides[0], height=sides[1]
    )


def _read(images: Picture | Mapping[int, Picture] | None) -> list[tuple[Placed, np.ndarray]]:
    """Pictures and the frames that they are. Raises MediaError, UsageError."""
    if images is None:
        return []
    placed = images if isinstance(images, Mapping) else {0: images}
    found = []
    for frame, picture in placed.items():
        if not isinstance(frame, int | np.integer) or frame < -1:
            raise UsageError(f"images {frame}: must be the number of a frame from 0, or -1 for the last.")
        if isinstance(picture, np.ndarray):
            if picture.dtype != np.uint8 or picture.ndim != 3 or picture.shape[-1] != 3:
                raise UsageError(f"images {frame}: is {picture.shape} {picture.dtype}; it must be (H, W, 3) uint8.")
            found.append((Placed(Path("array"), int(frame), "images "), np.ascontiguousarray(picture)))
        elif isinstance(picture, str | Path):
            found.append((Placed(Path(picture), int(frame), "images "), read_picture(picture)))
        else:
            raise UsageError(f"images {frame}: is {picture!r}; it must be a file, or an array (H, W, 3) uint8.")
    return found


def _warn(text: str) -> None:
    warnings.warn(text, stacklevel=2)
