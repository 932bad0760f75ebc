"""From prompts to frames: text, then denoising, then decoding.

Each stage is loaded when it is needed and freed before the next. Clips are denoised as one pack: their patches go
through the transformer together, each clip attending only to itself, so a clip comes out the same whatever else is in
the pack. The solvers are elementwise, so the pack is one flat vector to them.
"""

import gc
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dit_video.checkpoints.parts import Keep
from dit_video.decode import save_latents_of, write_decoded
from dit_video.errors import CheckpointError, DvgenError, UndefinedNumbers, UsageError
from dit_video.flow.guidance import guided, needs_guidance
from dit_video.flow.levels import NUM_TRAIN_TIMESTEPS, Levels, flow_levels
from dit_video.flow.solvers import SOLVERS, State
from dit_video.known import BESIDE, Known, check_beside, encode_beside, encode_frames, encode_known
from dit_video.machine import is_out_of_memory, peak_memory
from dit_video.nn.pixels import pad_frames
from dit_video.plan import PACK_TOKENS
from dit_video.shapes import Grid, VideoShape
from dit_video.text.cache import Embedded, EmbeddingCache
from dit_video.text.encoders import MAX_LENGTH
from dit_video.unfinished import Unfinished

if TYPE_CHECKING:
    from dit_video.models.wan.dit import ImageKeys, TextKeys, WanDiT
    from dit_video.models.wan.vae import WanVAE
    from dit_video.text.encoders import TextEncoder
    from dit_video.text.images import ImageEncoder

    Keys = tuple[TextKeys, ImageKeys | None]  # of prompts, and of the clips' pictures

Progress = Callable[[str, int, int], None]  # (stage, parts done, parts in all); called with 0 done when a stage begins
Note = Callable[[str], None]  # one sentence that the user should see
Reading = tuple[list[str], bool]  # of a prompt: the words that the model never learnt, and whether its end is not read


@dataclass(frozen=True, kw_only=True)
class Clip:
    """One video to make: what it shows, what it must not, its size, and the seed of its noise.

    known: what is given of it. start: normalised latents (C, T, H, W) on the CPU that denoising
    begins with, at the level of `Settings.strength`; without them it begins with noise.
    """

    prompt: str
    negative: str = ""
    shape: VideoShape
    seed: int
    known: Known | None = None
    start: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to denoise.

    solver: a key of `flow.solvers.SOLVERS`. sigmas: "release" or "diffusers". shift: above 0. guidance: one scale, or
    those of the high-noise and of the low-noise expert; 1 is none. guidance_interval: the lowest and the highest noise
    level that is guided. strength: from 0 to 1, the share of the steps that is taken where clips have a start; above 0
    it is one step at least.
    """

    steps: int
    solver: str = "unipc"
    sigmas: str = "release"
    shift: float = 1.0
    guidance: tuple[float, ...] = (1.0,)
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    strength: float = 1.0

    @property
    def first_step(self) -> int:
        """The step that denoising begins with, as in SDEdit (arXiv 2108.01073) and diffusers' Wan video-to-video."""
        taken = min(int(self.steps * self.strength), self.steps)
        return self.steps - (max(1, taken) if self.strength > 0 else 0)


class Checkpoint(Protocol):
    """A model that can be sampled: its arithmetic, and its stages to load.

    boundary: the noise level from which up the first of two experts denoises; None when there is one transformer.
    identity, known_frames, beside, sees_images: see `DescribedModel`.
    """

    @property
    def grid(self) -> Grid: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def boundary(self) -> float | None: ...

    @property
    def identity(self) -> str: ...

    @property
    def known_frames(self) -> str: ...

    @property
    def beside(self) -> bool: ...

    @property
    def sees_images(self) -> bool: ...

    def load_images(self, *, dtype: torch.dtype, device: torch.device) -> "ImageEncoder": ...

    def load_text(self, *, dtype: torch.dtype, device: torch.device) -> "TextEncoder": ...

    def load_dit(self, which: str = "transformer", *, dtype: torch.dtype, device: torch.device) -> "WanDiT": ...

    def load_vae(self, *, dtype: torch.dtype, device: torch.device) -> "WanVAE": ...


def _silent(*_: object) -> None:
    pass


class Stages:
    """The stages of a checkpoint, loaded when first used: one in memory at a time, or all kept for many packs.

    seconds: time spent so far on "load", "text", "encode", "denoise" and "decode". forwards: clips put through the
    transformer so far, counted by the transformer itself. readings, embeds: of the prompts so far, each read once.
    keep_layers: of the parts whose layers are streamed, what stays in memory, see `Plan`. cache: of what the text
    encoder made of prompts. note and warn: where sentences go that may, and that should not, be left out when little
    is to be said.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        keep: bool = False,
        keep_layers: Mapping[str, Keep] | None = None,
        cache: EmbeddingCache | None = None,
        progress: Progress = _silent,
        note: Note = _silent,
        warn: Note = _silent,
    ) -> None:
        self.checkpoint, self.dtype, self.device, self.keep = checkpoint, dtype, device, keep
        self.keep_layers, self.cache = dict(keep_layers or {}), cache
        self.progress, self.note, self.warn = progress, note, warn
        self.seconds: dict[str, float] = defaultdict(float)
        self.readings: dict[str, Reading] = {}
        self.embeds: dict[str, Tensor] = {}
        self._loaded: dict[str, Any] = {}
        self._passes_of_freed = 0

    @property
    def text(self) -> "TextEncoder":
        """The text encoder."""
        return self._stage("text encoder", partial(self.checkpoint.load_text, **self._streamed("text_encoder")))

    @property
    def images(self) -> "ImageEncoder":
        """The image encoder."""
        return self._stage("image encoder", self.checkpoint.load_images)

    @property
    def vae(self) -> "WanVAE":
        """The autoencoder."""
        return self._stage("autoencoder", self.checkpoint.load_vae)

    def dit(self, which: str = "transformer") -> "WanDiT":
        """The transformer, or "transformer_2", the low-noise expert."""
        return self._stage(which, partial(self.checkpoint.load_dit, which, **self._streamed(which)))

    def _streamed(self, part: str) -> dict[str, Any]:
        """What a stage is loaded with beside its place; only checkpoints of files know of it."""
        return {"keep": self.keep_layers[part]} if part in self.keep_layers else {}

    def _stage(self, name: str, load: Callable[..., Any]) -> Any:
        if name not in self._loaded:
            if not self.keep:
                self.free()
            self.progress(f"load {name}", 0, 1)
            with self.timed("load"):
                self._loaded[name] = load(dtype=self.dtype, device=self.device)
            self.progress(f"load {name}", 1, 1)
        return self._loaded[name]

    @property
    def forwards(self) -> int:
        """Clips put through the transformer so far."""
        return self._passes_of_freed + sum(
            stage.passes for name, stage in self._loaded.items() if name.startswith("transformer")
        )

    def free(self) -> None:
        """Drop every loaded stage from memory."""
        if not self._loaded:
            return
        self._passes_of_freed = self.forwards
        self._loaded.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def timed(self, activity: str) -> Iterator[None]:
        """Adds the time of its body, the device's work included, to `seconds[activity]`.

        Loading that happens within counts as loading only.
        """
        started, loading = time.perf_counter(), self.seconds["load"]
        try:
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
        finally:
            self.seconds[activity] += time.perf_counter() - started - (self.seconds["load"] - loading)


@torch.no_grad()
def sample_latents(
    stages: Stages, clips: Sequence[Clip], settings: Settings, *, unfinished: Unfinished | None = None
) -> list[Tensor]:
    """The normalised latents of all clips, denoised as one pack: float32 (C, T, H, W) each, on the padded grid.

    A seed means the same noise on every device, in every pack, and in diffusers, also that which a stochastic solver
    adds on the way.

    Args:
        unfinished: where the state of denoising is kept meanwhile; what is there is gone on with.

    Raises:
        DvgenError: the latents are not finite, or the model animates pictures and there is none.
    """
    if stages.checkpoint.beside and any(clip.known is None or clip.known.channels is None for clip in clips):
        raise UsageError(f"this model {BESIDE[stages.checkpoint.known_frames]}.")
    levels = flow_levels(settings.steps, shift=settings.shift, convention=settings.sigmas, solver=settings.solver)
    first = settings.first_step
    levels = Levels(levels.sigmas[first:], levels.timesteps[first:])
    sigma, total = float(levels.sigmas[0]), len(levels.timesteps)
    noise = _Noise(stages.checkpoint, clips)
    x = _flat([_begin(eps, clip.start, sigma) for eps, clip in zip(noise.draw(), clips, strict=True)]).to(stages.device)
    begin = (unfinished and unfinished.read(stages.device)) or State(0, x)
    prompts = list(dict.fromkeys(text for clip in clips for text in prompts_of(clip, settings)))
    embeds = encode_prompts(stages, prompts) if begin.step < total else []
    denoiser = _Denoiser(stages, clips, settings, prompts, embeds)
    if begin.step == total:
        return denoiser.with_known(denoiser.unpack(begin.x))

    def on_step(state: State, total: int, denoised: Tensor) -> None:
        nonlocal unfinished
        if not bool(torch.isfinite(state.x).all()):
            raise UndefinedNumbers(
                f"step {state.step} of {total} gave infinite or undefined numbers: {_likely(stages.dtype)}."
            )
        stages.progress("steps", state.step, total)
        try:
            if unfinished:
                unfinished.step(state, total)
        except CheckpointError as error:  # no reason to lose the video as well
            stages.warn(f"the state of denoising cannot be kept: {error}")
            unfinished = None

    denoiser.expert(float(levels.timesteps[begin.step]))  # loads it, before the steps are timed
    stages.progress("steps", begin.step, total)
    with stages.timed("denoise"), _kept(unfinished, stages):
        x = SOLVERS[settings.solver](
            denoiser, begin, levels, draw=lambda: _flat(noise.draw()).to(stages.device), on_step=on_step
        )
    return denoiser.with_known(denoiser.unpack(x))


@contextmanager
def _kept(unfinished: Unfinished | None, stages: Stages) -> Iterator[None]:
    """Writes the state of what is broken off, and says so; but not of denoising that would fail again."""
    try:
        yield
    except BaseException as error:
        with suppress(DvgenError):
            if unfinished and not isinstance(error, UndefinedNumbers) and unfinished.write():
                what = "all steps are" if unfinished.is_done else f"{unfinished.kept} steps are"
                stages.warn(f"{what} kept; the same command goes on from there.")
        raise


def _likely(dtype: torch.dtype) -> str:
    return "float16 overflowed; use --dtype bfloat16" if dtype == torch.float16 else "the weights are damaged"


def _begin(noise: Tensor, start: Tensor | None, sigma: float) -> Tensor:
    """What denoising begins with at level `sigma`: noise (C, T, H, W), or a start with noise on it."""
    return noise if start is None else torch.lerp(start, noise, sigma)


def prompts_of(clip: Clip, settings: Settings) -> list[str]:
    """What is read for a clip: the negative prompt only where there is guidance."""
    return [clip.prompt, clip.negative] if max(settings.guidance) > 1 else [clip.prompt]


def encode_prompts(stages: Stages, prompts: list[str]) -> list[Tensor]:
    """The embeddings of prompts, those that are new read now, or taken from the cache. Raises DvgenError."""
    new = [prompt for prompt in prompts if prompt not in stages.embeds]
    readings = {}
    for prompt, found in _read_before(stages, new).items():
        stages.embeds[prompt] = found.embedding.to(stages.device)
        readings[prompt] = found.unknown, found.cut
    if unread := [prompt for prompt in new if prompt not in readings]:
        text = stages.text
        stages.progress("text", 0, 1)
        with stages.timed("text"):
            stages.embeds |= zip(unread, text.encode(unread), strict=True)
        stages.progress("text", 1, 1)
        readings |= {prompt: (text.unknown_words(prompt), text.is_cut(prompt)) for prompt in unread}
        _keep_read(stages, {prompt: Embedded(stages.embeds[prompt], *readings[prompt]) for prompt in unread})
    elif new:
        stages.note("the prompt was read before: its embedding is kept on disk")
    if new:
        _tell_reading(stages, readings)
    return [stages.embeds[prompt] for prompt in prompts]


def _read_before(stages: Stages, prompts: Sequence[str]) -> dict[str, Embedded]:
    """Those of the prompts that are in the cache."""
    found = {prompt: stages.cache.read(prompt) for prompt in prompts} if stages.cache else {}
    return {prompt: embedded for prompt, embedded in found.items() if embedded is not None}


def _keep_read(stages: Stages, found: Mapping[str, Embedded]) -> None:
    if stages.cache is None:
        return
    try:
        for prompt, embedded in found.items():
            stages.cache.write(prompt, embedded)
    except OSError as error:
        stages.note(f"what was read of the prompt is not kept ({error})")


def _tell_reading(stages: Stages, readings: dict[str, Reading]) -> None:
    """Warn of what is new in how prompts were read, and remember it."""
    told = {word for words, _ in stages.readings.values() for word in words}
    stages.readings |= readings
    unknown, cut = _read(readings.values())
    if cut:
        stages.warn(f"the prompt is longer than {MAX_LENGTH} tokens; what comes after them is not read.")
    if not told.issuperset(unknown):
        words = ", ".join(repr(word) for word in unknown)
        plural = "s" * (len(unknown) > 1)
        stages.warn(f"this model never learnt the word{plural} {words}; `dvgen info default` shows what ours knows.")


def _read(readings: Iterable[Reading]) -> Reading:
    """The reading of several prompts together, each word once."""
    every = list(readings)
    return list(dict.fromkeys(word for words, _ in every for word in words)), any(cut for _, cut in every)


def read_prompts(stages: Stages, *prompts: str) -> Reading:
    """How those of the prompts that were read were read, together."""
    return _read(stages.readings[prompt] for prompt in prompts if prompt in stages.readings)


def _latent_size(checkpoint: Checkpoint, clip: Clip) -> tuple[int, int, int, int]:
    shape = checkpoint.grid.latent(clip.shape)
    return checkpoint.latent_channels, shape.frames, shape.height, shape.width


class _Noise:
    """The noise of a pack, each clip's out of a generator of its own on the CPU, in float32."""

    def __init__(self, checkpoint: Checkpoint, clips: Sequence[Clip]) -> None:
        self.sizes = [_latent_size(checkpoint, clip) for clip in clips]
        self.generators = [torch.Generator("cpu").manual_seed(clip.seed) for clip in clips]

    def draw(self) -> list[Tensor]:
        """The next numbers of every clip: (C, T, H, W) each."""
        return [torch.randn(size, generator=g) for size, g in zip(self.sizes, self.generators, strict=True)]


class _Denoiser:
    """denoise(x, sigma, timestep) of a pack, x and the result flat: its clips' (C, T, H, W) one after the other."""

    def __init__(
        self, stages: Stages, clips: Sequence[Clip], settings: Settings, prompts: list[str], embeds: list[Tensor]
    ) -> None:
        self.stages, self.settings, self.embeds = stages, settings, embeds
        self.sizes = [_latent_size(stages.checkpoint, clip) for clip in clips]
        self.cond = [prompts.index(clip.prompt) for clip in clips]
        self.uncond = [prompts.index(clip.negative) for clip in clips if clip.negative in prompts]
        grid = stages.checkpoint.grid
        tokens = sum(math.prod(grid.tokens(grid.latent(clip.shape))) for clip in clips)
        self.together = 2 * tokens <= PACK_TOKENS
        self.keys: dict[str, Keys] = {}
        self.known = [clip.known and clip.known.to(stages.device) for clip in clips]

    def expert(self, timestep: float) -> "tuple[WanDiT, Keys, float]":
        """The transformer for a timestep, its keys of the prompts and of the clips' pictures, its guidance scale."""
        boundary = self.stages.checkpoint.boundary
        low_noise = boundary is not None and timestep < boundary * NUM_TRAIN_TIMESTEPS
        which = "transformer_2" if low_noise else "transformer"
        dit = self.stages.dit(which)
        if which not in self.keys:
            images = [known.images for known in self.known if known is not None and known.images is not None]
            self.keys = {which: (dit.encode_text(self.embeds), dit.encode_images(images) if images else None)}
        return dit, self.keys[which], self.settings.guidance[-1 if low_noise else 0]

    def __call__(self, x: Tensor, sigma: float, timestep: float) -> Tensor:
        dit, keys, scale = self.expert(timestep)
        latents = [
            clean if known is None or known.channels is None else torch.cat([clean, known.channels])
            for clean, known in zip(self.with_known(self.unpack(x)), self.known, strict=True)
        ]
        times = [self._times(timestep, clip) for clip in range(len(self.sizes))]
        if not needs_guidance(sigma, scale, self.settings.guidance_interval):
            velocity = self._predict(dit, keys, latents, times, self.cond)
        elif self.together:
            cond, uncond = self._predict(dit, keys, latents * 2, times * 2, self.cond + self.uncond).chunk(2)
            velocity = guided(cond, uncond, scale)
        else:
            cond, uncond = (self._predict(dit, keys, latents, times, prompts) for prompts in (self.cond, self.uncond))
            velocity = guided(cond, uncond, scale)
        return _flat(self.with_known(self.unpack(x - sigma * velocity)))

    def _predict(
        self, dit: "WanDiT", keys: "Keys", latents: list[Tensor], times: list[Tensor], prompts: list[int]
    ) -> Tensor:
        """The flat velocity of the pack, or of the pack twice over, with a prompt for each of its clips."""
        text, images = keys
        if images is None:
            return _flat(dit(latents, times, text, prompts))
        index = [clip % len(self.sizes) for clip in range(len(latents))]
        return _flat(dit(latents, times, text, prompts, images=images, image_index=index))

    def _times(self, timestep: float, clip: int) -> Tensor:
        """The timestep of each latent frame of a clip: 0 of those that are known."""
        times, known = torch.full((self.sizes[clip][1],), timestep), self.known[clip]
        return times if known is None else times.masked_fill(known.frames.cpu(), 0.0)

    def with_known(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents (C, T, H, W) with what is known of each clip in its place."""
        return [
            x if known is None else torch.where(known.frames[None, :, None, None], known.latents, x)
            for x, known in zip(latents, self.known, strict=True)
        ]

    def unpack(self, x: Tensor) -> list[Tensor]:
        """The clips' latents (C, T, H, W), out of the flat pack."""
        parts = x.split([math.prod(size) for size in self.sizes])
        return [part.view(size) for part, size in zip(parts, self.sizes, strict=True)]


def _flat(latents: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in latents])


@dataclass(frozen=True, kw_only=True)
class Result:
    """What `generate` made.

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


def generate(
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
    save_latents: Path | None = None,
    model: str = "",
    tile: int | None = None,
    unfinished: Unfinished | None = None,
    strict: bool = False,
    comment: str = "",
) -> Result:
    """Makes one video file; with `save_latents` also a file of its latents, which is there before decoding begins.

    Args:
        given, seen: frames that are given, see `encode_given`.
        start: frames (T, H, W, 3) uint8 of the clip's shape, to begin with at the level of `Settings.strength`.
        model: what the latents say of the model that made them.
        tile: see `decode_frames`.
        unfinished: see `sample_latents`; gone when the file is there.
        strict, comment: see `write_decoded`.

    Raises:
        DvgenError: a stage that cannot be loaded, too little memory, latents that are not finite, or a file that cannot
            be written.
    """
    with explained_memory(clip.shape):
        clip = _with_frames(stages, clip, given, seen, start)
        latents = sample_latents(stages, [clip], settings, unfinished=unfinished)[0]
        if save_latents:
            about = {"prompt": clip.prompt, "negative": clip.negative, "seed": str(clip.seed), "model": model}
            save_latents_of(latents, save_latents, clip.shape, fps=fps, about=about)
        with _kept(unfinished, stages):
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
            )
    if unfinished:
        unfinished.remove()
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


def _with_frames(
    stages: Stages,
    clip: Clip,
    given: Mapping[int, np.ndarray] | None,
    seen: Mapping[int, np.ndarray] | None,
    start: np.ndarray | None,
) -> Clip:
    """The clip with the latents of what is given, and of what it starts from."""
    if not given and start is None:
        return clip
    known = encode_given(stages, clip.shape, given, seen) if given else None
    if start is None:
        return replace(clip, known=known)
    with stages.timed("encode"):
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
    with stages.timed("encode"):
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


@contextmanager
def explained_memory(shape: VideoShape) -> Iterator[None]:
    """Turns "out of memory", which torch says in several ways, into a sentence. Raises DvgenError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "ask for a smaller --size or fewer --frames, or use --dtype bfloat16"
        raise DvgenError(f"{shape}: there is not enough memory for it; {advice}.") from error
