"""LoRA files: low-rank changes W + s B A of a model's matrices (arXiv 2106.09685), merged while the model is loaded.

A file holds two factors for each layer that it changes: A (rank, in), which leads down to the rank, and B (out, rank),
which leads up again; and, for what has no low rank, whole differences. `lora_dialects` knows how programs name them.
Headers alone tell whether a file fits a model, so that is known before any weights are read.
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_video.checkpoints import lora_dialects as dialects
from dit_video.checkpoints.files import read_json, save_tensors, some
from dit_video.checkpoints.headers import FLOATS, TensorInfo, read_header, read_metadata, read_numbers
from dit_video.checkpoints.keymap import Layout
from dit_video.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for in a folder
METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's configuration, as JSON
PEFT_CONFIG = "adapter_config.json"  # where peft itself keeps it, beside the file
EXPERTS = {"transformer": "the high-noise expert", "transformer_2": "the low-noise expert"}


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A change of a weight: scale * up @ down, of more than two axes those behind the second flattened."""

    down: TensorInfo
    up: TensorInfo
    scale: float


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A change of a weight, bias or modulation: scale * tensor."""

    tensor: TensorInfo
    scale: float = 1.0


Change = Factors | Difference


@dataclass(frozen=True, kw_only=True)
class LayerChange:
    """A change of the tensor `leaf` ("weight", "bias" or "modulation") of a layer, by its name in the file."""

    layer: str
    leaf: str
    change: Change


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA file as its header describes it, and how strongly it is applied.

    prefix: of the names in the file. part: the only transformer that it is for, if any; one of `EXPERTS`.
    """

    path: Path
    strength: float
    part: str | None = None
    prefix: str
    changes: tuple[LayerChange, ...]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A LoRA and what it changes: for each part of a checkpoint that it fits, the changes by our name of the tensor.

    left_out: its layers of a kind that the checkpoint does not have.
    """

    lora: Lora
    parts: Mapping[str, Mapping[str, tuple[Change, ...]]]
    left_out: tuple[str, ...] = ()


def read_lora(file: Path, strength: float = 1.0, part: str | None = None) -> Lora:
    """What a LoRA file changes, by its header.

    Raises:
        CheckpointError: the file is missing or damaged, of no known dialect, or its factors do not belong together.
    """
    header = read_header(file)
    if not header:
        raise CheckpointError(f"{file}: holds no tensors, so it is no LoRA.")
    prefix = dialects.prefix_of(header)
    layers: dict[str, dict[str, TensorInfo]] = {}
    unknown = []
    for name, info in header.items():
        if (found := dialects.split(name, prefix)) is None:
            unknown.append(name)
        elif (twin := layers.setdefault(found[0], {}).setdefault(found[1], info)) is not info:
            raise CheckpointError(f"{file}: {twin.name!r} and {name!r} are the same tensor of one layer.")
    if unknown:
        raise CheckpointError(f"{file}: {some(unknown, 'no part of a LoRA that is known')}.")
    scales = _Scales(file, prefix, [tensors["alpha"] for tensors in layers.values() if "alpha" in tensors])
    changes = [change for layer, tensors in layers.items() for change in _changes(file, layer, tensors, scales)]
    return Lora(path=file, strength=strength, part=part, prefix=prefix, changes=tuple(changes))


def _changes(file: Path, layer: str, tensors: Mapping[str, TensorInfo], scales: "_Scales") -> Iterator[LayerChange]:
    for role, info in tensors.items():
        if role != "alpha" and info.dtype not in FLOATS:
            raise CheckpointError(f"{file}: {info.name!r} is {info.dtype}; it must be one of {', '.join(FLOATS)}.")
        if role in dialects.LEAVES:
            yield LayerChange(layer=layer, leaf=dialects.LEAVES[role], change=Difference(tensor=info))
    down, up = tensors.get("down"), tensors.get("up")
    if down is None and up is None:
        if without := [role for role in ("alpha", "up_bias") if role in tensors]:
            name = tensors[without[0]].name
            raise CheckpointError(f"{file}: layer {layer!r} has {name!r}, but no factors; fetch the file again.")
        return
    if down is None or up is None:
        raise CheckpointError(f"{file}: layer {layer!r} has one factor of two; fetch the file again.")
    if min(len(down.shape), len(up.shape)) < 2 or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        shapes = f"{list(up.shape)} and {list(down.shape)}"
        raise CheckpointError(f"{file}: the factors of layer {layer!r} are {shapes}, which have no product.")
    scale = scales.of(layer, down.shape[0], tensors.get("alpha"))
    yield LayerChange(layer=layer, leaf="weight", change=Factors(down=down, up=up, scale=scale))
    if "up_bias" in tensors:  # peft adds it to the product of the factors, before the scale
        yield LayerChange(layer=layer, leaf="bias", change=Difference(tensor=tensors["up_bias"], scale=scale))


class _Scales:
    """The scale of each layer: of its alpha, else of peft's configuration in the file or beside it, else 1.

    diffusers reads the configuration in the same way (utils/peft_utils.py).

    Raises:
        CheckpointError: the configuration makes no sense, an alpha is no number, or peft's file is missing.
    """

    def __init__(self, file: Path, prefix: str, alphas: Sequence[TensorInfo]):
        self.file, self.where = file, f"its {METADATA}"
        self.alphas = read_numbers(file, alphas)
        for name, alpha in self.alphas.items():
            if not isfinite(alpha):
                raise CheckpointError(f"{file}: {name!r} is {alpha}; it must be a finite number.")
        try:
            text = read_metadata(file).get(METADATA)
            values: dict[str, Any] = json.loads(text) if text else {}
            if prefix == dialects.PEFT and not values:
                self.where = f"the {PEFT_CONFIG} beside it"
                values = read_json(file.with_name(PEFT_CONFIG))
            self.config = {key.removeprefix(prefix): value for key, value in values.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise self._damaged(error) from error

    def of(self, layer: str, rank: int, alpha: TensorInfo | None) -> float:
        """alpha / rank, or alpha / sqrt(rank) where the configuration says so (rsLoRA, arXiv 2312.03732)."""
        if alpha is not None:
            return self.alphas[alpha.name] / rank
        value = self.config.get("lora_alpha", rank)
        try:
            for pattern, other in (self.config.get("alpha_pattern") or {}).items():
                if re.fullmatch(rf"(.*\.)?({pattern})", layer):  # as peft matches them
                    value = other
                    break
            return float(value) / (sqrt(rank) if self.config.get("use_rslora") else rank)
        except (ValueError, AttributeError, TypeError, re.error) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> CheckpointError:
        return CheckpointError(f"{self.file}: {self.where} is damaged ({error}).")


def fit(
    loras: Iterable[Lora], parts: Mapping[str, Mapping[str, tuple[int, ...]]], layouts: Iterable[Layout]
) -> tuple[Fitted, ...]:
    """What each LoRA changes.

    Args:
        parts: the shapes of the tensors of each part of a checkpoint that may be changed, by our names.
        layouts: the namings that a LoRA of this family may have.

    Raises:
        CheckpointError: a LoRA fits none of the parts, or not the one that it is for.
    """
    layouts = tuple(layouts)
    return tuple(_fit(lora, parts, layouts) for lora in loras)


def _fit(lora: Lora, parts: Mapping[str, Mapping[str, tuple[int, ...]]], layouts: Sequence[Layout]) -> Fitted:
    if lora.part is not None:
        if lora.part not in parts:
            expert = EXPERTS.get(lora.part, lora.part)
            raise CheckpointError(f"{lora.path}: is for {expert}, which this model does not have.")
        parts = {lora.part: parts[lora.part]}
    layout = dialects.naming(lora.prefix, ((item.layer, item.leaf) for item in lora.changes), layouts)
    found, left_out, errors = {}, {}, []
    for part, shapes in parts.items():
        try:
            found[part], left_out[part] = _by_tensor(lora, shapes, layout)
        except CheckpointError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return Fitted(
        lora=lora, parts=found, left_out=tuple(dict.fromkeys(layer for each in left_out.values() for layer in each))
    )


def _by_tensor(
    lora: Lora, shapes: Mapping[str, tuple[int, ...]], layout: Layout
) -> tuple[dict[str, tuple[Change, ...]], list[str]]:
    """The changes by our names, and the layers of kinds that this model lacks.

    A LoRA of a model that has more of everything is another model's. But one of a model with a further kind of layer in
    it, such as those that attend to an image, does the rest of its work without them: the caller says so.
    """
    kinds = set(map(_kind, shapes))
    found: dict[str, tuple[Change, ...]] = {}
    strange: list[str] = []
    lacking: list[str] = []
    for item in lora.changes:
        name = dialects.ours(layout, item.layer, item.leaf)
        if name is None or (name not in shapes and _kind(name) in kinds):
            strange.append(item.layer)
        elif name not in shapes:
            lacking.append(item.layer)
        else:
            _check_shape(lora, item, shapes[name])
            found[name] = (*found.get(name, ()), item.change)
    strange = list(dict.fromkeys(strange or (() if found else lacking)))
    if strange:
        raise CheckpointError(f"{lora.path}: is a LoRA of another model: {some(strange, 'not in this one', 'layer')}.")
    return found, lacking


def _kind(name: str) -> str:
    """A tensor's name without its numbers."""
    return re.sub(r"\d+", "", name)


def _check_shape(lora: Lora, item: LayerChange, shape: tuple[int, ...]) -> None:
    """Refuses a change of another shape than the tensor has. Raises CheckpointError."""
    change = item.change
    if isinstance(change, Difference):
        theirs, what = change.tensor.shape, f"the {item.leaf} of {item.layer!r} as a tensor"
    else:
        theirs, what = (change.up.shape[0], prod(change.down.shape[1:])), f"{item.layer!r} as a matrix"
        shape = shape if len(shape) < 2 else (shape[0], prod(shape[1:]))
        if prod(change.up.shape[2:]) != 1:
            theirs = (*theirs, *change.up.shape[2:])
    if theirs != shape:
        theirs_text, ours = ("x".join(map(str, sides)) for sides in (theirs, shape))
        raise CheckpointError(
            f"{lora.path}: is a LoRA of another model: it changes {what} of {theirs_text}, and this model's is {ours}."
        )


def merged(loras: Sequence[Fitted], part: str, name: str, weight: "Tensor") -> "Tensor":
    """The tensor `name` (ours) of a part with what the LoRAs change of it: float32, or as it was where none does.

    Raises:
        CheckpointError: a factor or a difference cannot be read.
    """
    for fitted in loras:
        for change in fitted.parts.get(part, {}).get(name, ()):
            weight = _added(weight.float(), change, fitted.lora.strength * change.scale)
    return weight


def _added(weight: "Tensor", change: Change, scale: float) -> "Tensor":
    """weight (out, ...) + scale * change, in float32 on the weight's device."""
    import torch

    from dit_video.checkpoints.stored import read_tensor

    def read(info: TensorInfo) -> "Tensor":
        return read_tensor(info).to(weight.device, torch.float32)

    if isinstance(change, Difference):
        return torch.add(weight, read(change.tensor), alpha=scale)
    up, down = read(change.up).flatten(1), read(change.down).flatten(1)  # (out, r), (r, in)
    return torch.addmm(weight.flatten(1), up, down, alpha=scale).view(weight.shape)


def describe(fitted: Fitted, transformers: int) -> str:
    """What is done with a LoRA in a checkpoint of one or two transformers, in words."""
    lora, (first, *others) = fitted.lora, fitted.parts
    where = "both transformers" if others else "the transformer"
    if transformers == 2 and not others:
        where = f"{EXPERTS.get(first, first)} alone"
    count = len({item.layer for item in lora.changes} - set(fitted.left_out))
    layers = f"{count} layer{'s' * (count > 1)} of {where}"
    return f"{lora.path}: merged at strength {lora.strength:g} into {layers}"


def describe_left_out(fitted: Fitted) -> str:
    """Which layers of a LoRA are not used, in words; empty when all are."""
    if not fitted.left_out:
        return ""
    return f"{fitted.lora.path}: {some(fitted.left_out, 'left out, of a kind that this model lacks', 'layer')}"


def save_lora(layers: Mapping[str, tuple["Tensor", "Tensor"]], file: Path, layout: Layout) -> None:
    """Writes factors (A, B) by our names of the weights that B A is added to, so that diffusers' `load_lora_weights`
    reads them; the scale is 1.

    Args:
        layout: the one of diffusers.

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {}
    for name, (down, up) in layers.items():
        layer = dialects.DIFFUSERS + layout.to_theirs(name).removesuffix(".weight")
        tensors[layer + dialects.DOWN] = down.detach().cpu().contiguous()
        tensors[layer + dialects.UP] = up.detach().cpu().contiguous()
    save_tensors(tensors, file)
