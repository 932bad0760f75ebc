"""LoRA files: low-rank changes W + s B A of a model's matrices (arXiv 2106.09685), merged while the model is loaded.

A file holds two factors for each layer that it changes: A (rank, in), which leads down to the rank, and B (out, rank),
which leads up again. Programs name them differently: `DIALECTS` lists the namings that are read. Headers alone tell
whether a file fits a model, so that is known before any weights are read.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_video.checkpoints.files import save_tensors, some
from dit_video.checkpoints.headers import FLOATS, TensorInfo, read_header, read_metadata
from dit_video.checkpoints.keymap import Layout
from dit_video.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

FILE = "pytorch_lora_weights.safetensors"  # the name that diffusers looks for in a folder
METADATA = "lora_adapter_metadata"  # where diffusers keeps peft's configuration, as JSON


@dataclass(frozen=True, kw_only=True)
class Dialect:
    """How a program names the factors of a layer: prefix, the layer as `layout` (a name) has it, and `down` or `up`."""

    name: str
    layout: str
    prefix: str
    down: str
    up: str

    def split(self, key: str) -> tuple[str, str] | None:
        """The layer of a tensor, and "down" or "up"; None for a name that is not of this dialect."""
        for which, suffix in (("down", self.down), ("up", self.up)):
            if key.startswith(self.prefix) and key.endswith(suffix):
                return key[len(self.prefix) : -len(suffix)], which
        return None


DIFFUSERS = Dialect(
    name="diffusers", layout="diffusers", prefix="transformer.", down=".lora_A.weight", up=".lora_B.weight"
)
BARE = Dialect(name="bare", layout="diffusers", prefix="", down=".lora_A.weight", up=".lora_B.weight")
DIALECTS = (DIFFUSERS, BARE)  # a file has the first of which it has a name: BARE would take those of DIFFUSERS too


@dataclass(frozen=True, kw_only=True)
class Factors:
    """The change of one layer: scale * up @ down."""

    down: TensorInfo
    up: TensorInfo
    scale: float


@dataclass(frozen=True, kw_only=True)
class Lora:
    """A LoRA file as its header describes it, and how strongly it is applied; layers by their names in its dialect."""

    path: Path
    strength: float
    dialect: Dialect
    layers: Mapping[str, Factors]


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A LoRA and what it changes: for each part of a checkpoint that it fits, factors by our name of the weight."""

    lora: Lora
    parts: Mapping[str, Mapping[str, Factors]]


def read_lora(file: Path, strength: float = 1.0) -> Lora:
    """What a LoRA file changes, by its header.

    Raises:
        CheckpointError: the file is missing or damaged, of no known dialect, or its factors do not belong together.
    """
    header = read_header(file)
    if not header:
        raise CheckpointError(f"{file}: holds no tensors, so it is no LoRA.")
    found = [dialect for dialect in DIALECTS if any(map(dialect.split, header))]
    dialect = found[0] if found else DIFFUSERS
    if unknown := [name for name in header if dialect.split(name) is None]:
        raise CheckpointError(f"{file}: {some(unknown, 'no factor of a LoRA that is known')}.")
    pairs: dict[str, dict[str, TensorInfo]] = {}
    for name, info in header.items():
        layer, which = dialect.split(name) or ("", "")
        pairs.setdefault(layer, {})[which] = info
    scales = _Scales(file, dialect)
    return Lora(
        path=file,
        strength=strength,
        dialect=dialect,
        layers={layer: _factors(file, layer, pair, scales) for layer, pair in pairs.items()},
    )


def _factors(file: Path, layer: str, pair: Mapping[str, TensorInfo], scales: "_Scales") -> Factors:
    if len(pair) != 2:
        raise CheckpointError(f"{file}: layer {layer!r} has one factor of two; fetch the file again.")
    down, up = pair["down"], pair["up"]
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1] or 0 in (*down.shape, *up.shape):
        shapes = f"{list(up.shape)} and {list(down.shape)}"
        raise CheckpointError(f"{file}: the factors of layer {layer!r} are {shapes}, which have no product.")
    for info in (down, up):
        if info.dtype not in FLOATS:
            raise CheckpointError(f"{file}: {info.name!r} is {info.dtype}; it must be one of {', '.join(FLOATS)}.")
    return Factors(down=down, up=up, scale=scales.of(layer, down.shape[0]))


class _Scales:
    """The scale of each layer, of the configuration that peft leaves in the file; 1 where there is none, as diffusers
    reads it (utils/peft_utils.py).

    Raises:
        CheckpointError: the configuration makes no sense.
    """

    def __init__(self, file: Path, dialect: Dialect):
        self.file = file
        try:
            text = read_metadata(file).get(METADATA)
            values: dict[str, Any] = json.loads(text) if text else {}
            self.config = {key.removeprefix(dialect.prefix): value for key, value in values.items()}
        except (ValueError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{file}: its {METADATA} is damaged ({error}).") from error

    def of(self, layer: str, rank: int) -> float:
        """alpha / rank, or alpha / sqrt(rank) where the configuration says so (rsLoRA, arXiv 2312.03732)."""
        alpha = self.config.get("lora_alpha", rank)
        try:
            for pattern, value in (self.config.get("alpha_pattern") or {}).items():
                if re.fullmatch(rf"(.*\.)?({pattern})", layer):  # as peft matches them
                    alpha = value
                    break
            return float(alpha) / (sqrt(rank) if self.config.get("use_rslora") else rank)
        except (ValueError, AttributeError, TypeError, re.error) as error:
            raise CheckpointError(f"{self.file}: its {METADATA} is damaged ({error}).") from error


def fit(
    loras: Iterable[Lora], parts: Mapping[str, Mapping[str, tuple[int, ...]]], layouts: Iterable[Layout]
) -> tuple[Fitted, ...]:
    """What each LoRA changes.

    Args:
        parts: the shapes of the tensors of each part of a checkpoint that may be changed, by our names.
        layouts: among them those that the dialects name.

    Raises:
        CheckpointError: a LoRA fits none of the parts.
    """
    known = {layout.name: layout for layout in layouts}
    return tuple(_fit(lora, parts, known[lora.dialect.layout]) for lora in loras)


def _fit(lora: Lora, parts: Mapping[str, Mapping[str, tuple[int, ...]]], layout: Layout) -> Fitted:
    found, errors = {}, []
    for part, shapes in parts.items():
        try:
            found[part] = _factors_by_weight(lora, shapes, layout)
        except CheckpointError as error:
            errors.append(error)
    if not found:
        raise errors[0]
    return Fitted(lora=lora, parts=found)


def _factors_by_weight(lora: Lora, shapes: Mapping[str, tuple[int, ...]], layout: Layout) -> dict[str, Factors]:
    found, strange = {}, []
    for layer, factors in lora.layers.items():
        try:
            found[layout.to_ours(f"{layer}.weight")] = factors
        except CheckpointError:
            strange.append(layer)
    strange += [layout.to_theirs(name).removesuffix(".weight") for name in found if name not in shapes]
    if strange:
        raise CheckpointError(f"{lora.path}: is a LoRA of another model: {some(strange, 'not in this one', 'layer')}.")
    for name, factors in found.items():
        theirs = (factors.up.shape[0], factors.down.shape[1])
        if theirs != shapes[name]:
            layer, ours = layout.to_theirs(name).removesuffix(".weight"), "x".join(map(str, shapes[name]))
            raise CheckpointError(
                f"{lora.path}: is a LoRA of another model: it changes {layer!r} as a matrix of "
                f"{'x'.join(map(str, theirs))}, and this model's is {ours}."
            )
    return found


def merged(loras: Sequence[Fitted], part: str, name: str, weight: "Tensor") -> "Tensor":
    """The weight `name` (ours) of a part with what the LoRAs change of it: float32, or as it was where none does.

    Raises:
        CheckpointError: a factor cannot be read.
    """
    import torch

    from dit_video.checkpoints.stored import read_tensor

    for fitted in loras:
        if (factors := fitted.parts.get(part, {}).get(name)) is None:
            continue
        up, down = (read_tensor(info).to(weight.device, torch.float32) for info in (factors.up, factors.down))
        weight = torch.addmm(weight.float(), up, down, alpha=fitted.lora.strength * factors.scale)
    return weight


def describe(fitted: Fitted, transformers: int) -> str:
    """What is done with a LoRA in a checkpoint of one or two transformers, in words."""
    found = [*fitted.parts]
    where = f"{found[0]} alone, since it does not fit the other one"
    if len(found) == transformers:
        where = "the transformer" if len(found) == 1 else "both transformers"
    count = len(fitted.lora.layers)
    layers = f"{count} layer{'s' * (count > 1)} of {where}"
    return f"{fitted.lora.path}: merged at strength {fitted.lora.strength:g} into {layers}"


def save_lora(layers: Mapping[str, tuple["Tensor", "Tensor"]], file: Path, layout: Layout) -> None:
    """Writes factors (A, B) by our names of the weights that B A is added to, so that diffusers' `load_lora_weights`
    reads them; the scale is 1.

    Args:
        layout: the one of the dialect "diffusers".

    Raises:
        CheckpointError: the file cannot be written.
    """
    tensors = {}
    for name, (down, up) in layers.items():
        layer = DIFFUSERS.prefix + layout.to_theirs(name).removesuffix(".weight")
        tensors[layer + DIFFUSERS.down] = down.detach().cpu().contiguous()
        tensors[layer + DIFFUSERS.up] = up.detach().cpu().contiguous()
    save_tensors(tensors, file)
