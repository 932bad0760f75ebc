"""Training configurations: TOML files read into frozen dataclasses, strictly (an unknown key is an error that names
the nearest known one).
"""

import dataclasses
import difflib
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from dit_video.errors import DvgenError, UsageError
from dit_video.scenes.world import SECOND_OBJECT_SHARE
from dit_video.shapes import MAX_SIDE, MIN_SIDE, VideoShape

T = TypeVar("T")

MAX_RANK = 1024  # of a LoRA


def _at_least(name: str, value: float, low: float) -> None:
    if not value >= low:
        raise UsageError(f"{name} is {value:g}: must be at least {low:g}; the nearest is {low:g}.")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        nearest = min(max(value, low), high)
        raise UsageError(f"{name} is {value:g}: must be from {low:g} to {high:g}; the nearest is {nearest:g}.")


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast to train; every length is in optimiser steps unless it says minutes.

    The learning rate warms up, stays, and falls linearly to zero over the last `decay` steps. A run stops early after
    `minutes` and can be resumed; it saves its state every `save_minutes`, writes a sample sheet every `sheet_minutes`,
    and measures its loss on clips that are kept from training, if there are any, every `validate_minutes`.
    """

    steps: int
    warmup: int = 100
    decay: int = 0
    minutes: float = float("inf")
    save_minutes: float = 5.0
    sheet_minutes: float = 10.0
    validate_minutes: float = 10.0
    log_every: int = 20
    clip_grad: float = 1.0
    ema: float = 0.999
    seed: int = 0
    device: str = "cpu"
    threads: int = 0
    """CPU threads of this process; 0 leaves torch's choice."""
    bf16: bool = True
    """Matrix products in bfloat16 (weights, their average and the optimisers stay float32), where the processor
    multiplies it."""
    fuse: bool = False
    """Compile the transformer's elementwise functions: a quarter faster, needs a C++ compiler."""
    tensorboard: bool = False
    """Also write the log and the sample sheets for TensorBoard; needs the package of that name."""

    def __post_init__(self) -> None:
        if self.tensorboard and find_spec("tensorboard") is None:
            raise UsageError(
                "tensorboard is true, but the package tensorboard is not installed: pip install 'dvgen[tensorboard]', "
                "or leave it out."
            )
        _at_least("steps", self.steps, 1)
        _at_least("log_every", self.log_every, 1)
        for name in (
            "warmup",
            "decay",
            "seed",
            "threads",
            "minutes",
            "save_minutes",
            "sheet_minutes",
            "validate_minutes",
        ):
            _at_least(name, getattr(self, name), 0)
        _within("ema", self.ema, 0, 1)
        if self.device.partition(":")[0] not in ("cpu", "cuda"):
            raise UsageError(f"device is {self.device!r}: must be cpu or cuda; the nearest is cpu.")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Learning rates: Muon for the matrices of the transformer's blocks and the autoencoder's convolutions (0 turns it
    off), AdamW for the rest.
    """

    adam_lr: float = 1e-3
    muon_lr: float = 0.0
    text_lr: float = 2e-4
    """AdamW's for the text encoder and the embedding of its output: at adam_lr words change faster than they can be
    learnt.
    """
    weight_decay: float = 0.0
    """Of the matrices that Muon updates."""

    def __post_init__(self) -> None:
        for name in ("adam_lr", "muon_lr", "text_lr", "weight_decay"):
            _at_least(name, getattr(self, name), 0)
        if self.weight_decay and not self.muon_lr:
            raise UsageError(f"weight_decay is {self.weight_decay:g}, but without Muon (muon_lr = 0) it must be 0.")


@dataclass(frozen=True, kw_only=True)
class PhaseConfig:
    """A mixture of clips: the share of images, the ranges of the shorter side (pixels) and of the length (frames),
    and favourite shapes.

    `common` lists shapes as "256x144x24", or with a weight as "40 * 256x144x24"; a share `common_share` of the clips
    has one of them.
    """

    images: float = 0.3
    short_side: tuple[int, int] = (64, 160)
    frames: tuple[int, int] = (5, 25)
    max_pixels: int = 1_500_000
    common: tuple[str, ...] = ()
    common_share: float = 0.0
    first_shard: int = 0
    """The phase begins with this shard of the data (shards count up as training goes on)."""
    second_object: float = SECOND_OBJECT_SHARE
    """Share of the clips with two objects."""

    def __post_init__(self) -> None:
        for shape in self.common:
            parse_weighted_shape(shape)
        _within("images", self.images, 0, 1)
        _within("second_object", self.second_object, 0, 1)
        _within("common_share", self.common_share, 0, 1)
        for name, least in (("short_side", 16), ("frames", 1)):
            low, high = getattr(self, name)
            _at_least(f"{name} begins with", low, least)
            _at_least(f"{name} ends with", high, low)
        _at_least("max_pixels", self.max_pixels, 32 * 32)
        _at_least("first_shard", self.first_shard, 0)


@dataclass(frozen=True, kw_only=True)
class FilesConfig:
    """Folders of videos and pictures to train on, instead of the procedural world: see `train.files`."""

    folders: tuple[str, ...]
    fps: float = 0.0
    """Frames per second that all videos are read at; 0 leaves each its own."""
    min_frames: int = 5
    """Shorter rests of long videos are left out."""
    max_frames: int = 97
    """Longer videos become several clips."""
    max_pixels: int = 2_000_000
    """Pixels times frames of a clip; larger ones are scaled down."""
    short_side: tuple[int, int] | None = None
    """Range of the shorter side that each clip is scaled down to, drawn anew each time it is used; its own without."""
    validation: float = 0.0
    """Share of the files that are kept from training, for the validation loss."""

    def __post_init__(self) -> None:
        if not self.folders:
            raise UsageError("folders is empty: name at least one folder of videos or pictures.")
        _at_least("fps", self.fps, 0)
        _at_least("min_frames", self.min_frames, 1)
        _at_least("max_frames", self.max_frames, self.min_frames)
        _at_least("max_pixels", self.max_pixels, MIN_SIDE * MIN_SIDE)
        _within("validation", self.validation, 0, 0.9)
        if self.short_side is not None:
            _at_least("short_side begins with", self.short_side[0], MIN_SIDE)
            _at_least("short_side ends with", self.short_side[1], self.short_side[0])


@dataclass(frozen=True, kw_only=True)
class AutoencoderArch:
    """Geometry of the causal VAE to train from scratch: see `models.wan.configs.VAEConfig`."""

    dim: int = 32
    decoder_dim: int = 32
    z_dim: int = 32
    dim_mult: tuple[int, ...] = (1, 2, 2)
    temporal_downsample: tuple[bool, ...] = (True, True)
    num_res_blocks: int = 1
    residual: bool = True
    patch: int = 4

    def __post_init__(self) -> None:
        for name in ("dim", "decoder_dim", "z_dim", "num_res_blocks", "patch"):
            _at_least(name, getattr(self, name), 1)
        for factor in self.dim_mult:
            _at_least("dim_mult", factor, 1)


@dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """Everything `dvgen train autoencoder` reads."""

    out: str
    arch: AutoencoderArch = field(default_factory=AutoencoderArch)
    loop: LoopConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    data: PhaseConfig = field(default_factory=PhaseConfig)
    files: FilesConfig | None = None
    """Folders to train on; without them the procedural world is trained on, as `data` says."""
    batch_pixels: int = 600_000
    """Pixels times frames in a step; of files, what is larger than a quarter of it is cut (`train.file_clips`)."""
    latent_noise: float = 0.25
    """Standard deviation of the noise put on the latents while training, relative to each channel's own; drawn per
    clip as |N(0, 1)| times this.
    """
    object_weight: float | None = None
    """Weight of the pixels in and around the objects, relative to the background: 4 without; of files nothing is known
    of objects.
    """
    edge_weight: float = 0.0
    """Weight of the error of the differences between neighbouring pixels."""
    linear_code: bool = False
    """Give the latents instead of finding them: the encoder learns a linear code, the decoder to read it."""
    init_from: str = ""
    """A run or a diffusers folder to begin with."""
    decoder_only: bool = False
    """Leave the encoder of `init_from` as it is, and its latents: a transformer that was trained on them still fits."""
    denoiser: str = ""
    """A diffusers folder whose transformer was trained on these latents: the decoder also learns from what that makes
    of noisy ones.
    """
    denoise_from: float = 0.8
    """The highest noise level that it denoises from."""

    def __post_init__(self) -> None:
        if self.denoiser and not self.decoder_only:
            raise UsageError("denoiser is given, but decoder_only is false: its transformer fits one encoder alone.")
        _within("denoise_from", self.denoise_from, 0, 1)
        if self.decoder_only and not self.init_from:
            raise UsageError(
                "decoder_only is true, but init_from is empty: name the autoencoder whose encoder to keep."
            )
        _at_least("batch_pixels", self.batch_pixels, 1)
        for name in ("latent_noise", "edge_weight"):
            _at_least(name, getattr(self, name), 0)
        if self.object_weight is not None:
            _at_least("object_weight", self.object_weight, 0)
            if self.files is not None:
                raise UsageError(
                    f"object_weight is {self.object_weight:g}, but in [files] nothing tells where objects are: "
                    "leave it out."
                )
        if self.files is not None and self.data != PhaseConfig():
            raise UsageError("[data] and [files]: only one of the two can be given; [data] is the procedural world.")


@dataclass(frozen=True, kw_only=True)
class DiTArch:
    """Geometry of the diffusion transformer and its text encoder to train from scratch."""

    dim: int = 256
    num_heads: int = 4
    ffn_dim: int = 1024
    num_layers: int = 10
    text_dim: int = 128
    text_layers: int = 2
    text_heads: int = 4
    text_ffn: int = 256

    def __post_init__(self) -> None:
        for field_ in dataclasses.fields(self):
            _at_least(field_.name, getattr(self, field_.name), 1)
        for width, heads, unit in (("dim", "num_heads", 2), ("text_dim", "text_heads", 1)):
            step = getattr(self, heads) * unit  # RoPE turns pairs
            if getattr(self, width) % step:
                nearest = -(-getattr(self, width) // step) * step
                rule = f"must be a multiple of {step}, for {getattr(self, heads)} heads; the nearest is {nearest}"
                raise UsageError(f"{width} is {getattr(self, width)}: {rule}.")


@dataclass(frozen=True, kw_only=True)
class DistilConfig:
    """How the transformer of `init_from` learns to take few steps without guidance, see `train.distil`."""

    steps: int = 4
    """That the distilled model takes, one for each window of noise levels."""
    shift: float = 3.0
    """Of the levels between them."""
    guidance: float = 4.0
    """That is learnt."""
    substeps: int = 5
    """That the model which is learnt from takes in a window."""
    begin_share: float = 0.75
    """Share of the clips at their window's first level, where sampling steps from; the others are anywhere in it."""
    teacher: str = ""
    """The folder of the model that is learnt from; without it `init_from` as it was. With it distillation goes on from
    a model that was distilled before.
    """

    def __post_init__(self) -> None:
        for name in ("steps", "substeps", "guidance"):
            _at_least(name, getattr(self, name), 1)
        _at_least("shift", self.shift, 0.01)
        _within("begin_share", self.begin_share, 0, 1)


@dataclass(frozen=True, kw_only=True)
class DiTTrainConfig:
    """Everything `dvgen train dit` reads."""

    out: str
    autoencoder: str
    """A folder with the trained autoencoder: a run of `dvgen train autoencoder`, or a diffusers folder."""
    arch: DiTArch = field(default_factory=DiTArch)
    loop: LoopConfig
    optim: OptimConfig = field(default_factory=OptimConfig)
    phase: tuple[PhaseConfig, ...] = (PhaseConfig(),)
    files: FilesConfig | None = None
    """Folders to train on; without them the procedural world is trained on, as `phase` says."""
    shard_clips: int = 2048
    window: int = 8
    """Shards that are in use at a time: each clip is seen this often, with new noise and another wording each time."""
    pack_tokens: int = 3072
    level_mean: float = 0.0
    level_std: float = 1.0
    shift: float = 1.5
    noise_share: float = 0.0
    """Share of the clips that are nearly or all noise (levels from 0.98 to 1), where the caption decides."""
    caption_dropout: float = 0.1
    known_share: float = 0.15
    """Share of the videos in which some latent frames are known, at level 0: the first, a beginning, an end, both, or a
    random subset.
    """
    object_weight: float = 1.0
    """Loss weight of the patches that hold an object, at noise levels low enough that their place is known; 1 weighs
    all alike.
    """
    drop_share: float = 0.0
    """Share of the clips that lose tokens (NaViT)."""
    drop_rate: float = 0.5
    """Share of their tokens that these lose where the noise hides the objects."""
    drop_background: float = 0.5
    """Share of their background tokens that these lose where the noise leaves objects to be seen."""
    init_from: str = ""
    lora: int = 0
    """Train low-rank changes of this rank to the transformer of `init_from`, and nothing else; 0 trains all."""
    lora_alpha: float | None = None
    """The changes are scaled by lora_alpha / lora; without it by 1."""
    distil: DistilConfig | None = None
    """Teach the transformer of `init_from` to take few steps without guidance; its text encoder stays as it is."""

    def __post_init__(self) -> None:
        for name in ("shard_clips", "window", "pack_tokens"):
            _at_least(name, getattr(self, name), 1)
        self._check_lora()
        if self.distil and (not self.init_from or self.lora):
            other = "lora" if self.lora else "init_from"
            rule = "only one of the two can be given" if self.lora else "is empty: name the model to begin from"
            raise UsageError(f"[distil] and {other}: {rule}.")
        _at_least("shift", self.shift, 0.01)
        _at_least("level_std", self.level_std, 0)
        _at_least("object_weight", self.object_weight, 0)
        for name in ("caption_dropout", "known_share", "noise_share", "drop_share", "drop_rate", "drop_background"):
            _within(name, getattr(self, name), 0, 1)
        if not self.phase or self.phase[0].first_shard != 0:
            raise UsageError("the first [[phase]] must have first_shard = 0.")

    def _check_lora(self) -> None:
        _within("lora", self.lora, 0, MAX_RANK)
        if self.lora_alpha is not None:
            _at_least("lora_alpha", self.lora_alpha, 1e-3)
            if not self.lora:
                raise UsageError(f"lora_alpha is {self.lora_alpha:g}, but lora is 0: give a rank, such as lora = 16.")
        if self.lora and not self.init_from:
            raise UsageError(f"lora is {self.lora}, but init_from is empty: name the model to fine-tune.")
        if self.lora and self.optim.muon_lr:
            raise UsageError(
                f"muon_lr is {self.optim.muon_lr:g}, but a LoRA is trained by AdamW alone (adam_lr): leave it out."
            )


def parse_shape(text: str) -> VideoShape:
    """The shape of "256x144x24": width, height, frames.

    Raises:
        UsageError: not three whole numbers joined by x, or out of range.
    """
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if not match:
        raise UsageError(f"shape {text!r}: must be WIDTHxHEIGHTxFRAMES, for example 256x144x24.")
    width, height, frames = (int(part) for part in match.groups())
    near = [min(max(side, MIN_SIDE), MAX_SIDE) for side in (width, height)] + [max(frames, 1)]
    if near != [width, height, frames]:
        rule = f"sides must be from {MIN_SIDE} to {MAX_SIDE}, and frames at least 1"
        raise UsageError(f"shape {text}: {rule}; the nearest is {'x'.join(map(str, near))}.")
    return VideoShape(num_frames=frames, height=height, width=width)


def parse_weighted_shape(text: str) -> tuple[VideoShape, int]:
    """The shape and the weight of "40 * 256x144x24"; without a weight it is 1.

    Raises:
        UsageError: the weight is not a whole number from 1 up, or the shape is none.
    """
    weight, star, shape = text.rpartition("*")
    if star and not (weight.strip().isdecimal() and int(weight) > 0):
        raise UsageError(f"common shape {text!r}: its weight must be a whole number from 1 up, as in 2 * 256x144x24.")
    return parse_shape(shape.strip()), int(weight) if star else 1


def load_config(path: Path, kind: type[T], given: Mapping[str, Any] | None = None) -> T:
    """Read a TOML file into the dataclass `kind`; what is given on the command line takes the place of its keys.

    Raises:
        DvgenError: the file cannot be read.
        UsageError: TOML syntax, unknown or missing key, a value of the wrong type or out of range.
    """
    try:
        with path.open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise DvgenError(f"config {path}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"config {path}: not valid TOML: {error}.") from None
    return _build(kind, {**values, **(given or {})}, str(path))


def _build(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if not isinstance(value, dict):
            raise UsageError(f"{where}: must be a table, not {value!r}.")
        hints = typing.get_type_hints(kind)
        for key in value:
            if key not in hints:
                near = difflib.get_close_matches(key, hints, n=1, cutoff=0.0)[0]
                raise UsageError(f"{where}: unknown key {key!r}; the nearest known one is {near!r}.")
        for item in dataclasses.fields(kind):
            required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
            if required and item.name not in value:
                raise UsageError(f"{where}: the key {item.name!r} is required.")
        fields = {key: _build(hints[key], item, f"{where}: {key}") for key, item in value.items()}
        try:
            return kind(**fields)
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from None
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        if not isinstance(value, list):
            raise UsageError(f"{where}: must be a list, not {value!r}.")
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis else list(inner)
        if len(kinds) != len(value):
            raise UsageError(f"{where}: must have {len(kinds)} values, not {len(value)}.")
        return tuple(_build(each, item, where) for each, item in zip(kinds, value, strict=True))
    if isinstance(kind, types.UnionType):  # X | None: absent, or an X; TOML has no null
        return _build(next(each for each in typing.get_args(kind) if each is not type(None)), value, where)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UsageError(f"{where}: must be of type {getattr(kind, '__name__', kind)}, not {value!r}.")
    return value
