"""How programs name what a LoRA file changes: a prefix, a layer, and a suffix that says what the tensor is to it.

| written by                    | name                                                                              |
|-------------------------------|-----------------------------------------------------------------------------------|
| diffusers                     | transformer.LAYER.lora_A.weight                                                   |
| most others                   | diffusion_model.LAYER.lora_down.weight or lora_A.weight, LAYER.alpha              |
| LightX2V, from distillation   | the same, and LAYER.diff of a weight, .diff_b of a bias, .diff_m of a modulation  |
| kohya's trainers              | lora_unet_LAYER.lora_down.weight, LAYER with _ in the place of its dots           |
| DiffSynth-Studio              | LAYER.lora_A.default.weight                                                       |
| peft                          | base_model.model.LAYER.lora_A.weight, and a file adapter_config.json              |

The layers are named as in the model's own files, in whichever layout: every prefix goes with every suffix and layout.
"""

from collections.abc import Iterable
from functools import cache

from dit_video.checkpoints.keymap import Layout, Row
from dit_video.errors import CheckpointError

DIFFUSERS = "transformer."
PEFT = "base_model.model."
PREFIXES = (DIFFUSERS, "model.diffusion_model.", "diffusion_model.", PEFT, "lora_unet__", "lora_unet_", "")
"""A file has the first that one of its names begins with."""
_FLAT = "lora_unet"  # begins the prefixes of layers that are written with _ for their dots

DOWN, UP = ".lora_A.weight", ".lora_B.weight"
_SUFFIXES = {
    DOWN: "down",
    ".lora_A.default.weight": "down",
    ".lora_down.weight": "down",
    UP: "up",
    ".lora_B.default.weight": "up",
    ".lora_up.weight": "up",
    ".lora_B.bias": "up_bias",
    ".lora_B.default.bias": "up_bias",
    ".alpha": "alpha",
    ".diff": "diff",
    ".diff_b": "diff_b",
    ".diff_m": "diff_m",
}
LEAVES = {"diff": "weight", "diff_b": "bias", "diff_m": "modulation"}
"""The tensor of a layer that a difference is added to."""


def prefix_of(names: Iterable[str]) -> str:
    """The prefix of a file with these names."""
    parsed = [name for name in names if _suffix(name)]
    return next(prefix for prefix in PREFIXES if not prefix or any(name.startswith(prefix) for name in parsed))


def split(name: str, prefix: str) -> tuple[str, str] | None:
    """The layer of a tensor, and what it is to it; None for a name that makes no sense behind this prefix.

    The second is one of "down", "up", "up_bias", "alpha", "diff", "diff_b" and "diff_m".
    """
    suffix = _suffix(name)
    if not suffix or not name.startswith(prefix):
        return None
    layer = name[len(prefix) : -len(suffix)]
    return (layer, _SUFFIXES[suffix]) if layer else None


def _suffix(name: str) -> str:
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")


def naming(prefix: str, tensors: Iterable[tuple[str, str]], layouts: Iterable[Layout]) -> Layout:
    """The layout that knows most of the tensors (layer and leaf), as they are written behind `prefix`."""
    tensors = set(tensors)
    known = [flat(layout) if prefix.startswith(_FLAT) else layout for layout in layouts]
    return max(known, key=lambda layout: sum(ours(layout, *tensor) is not None for tensor in tensors))


def ours(layout: Layout, layer: str, leaf: str) -> str | None:
    """Our name of a layer's tensor; None for one that the layout does not have. A layer may be a tensor by itself."""
    for name in (f"{layer}.{leaf}", layer):
        try:
            return layout.to_ours(name)
        except CheckpointError:
            continue
    return None


@cache
def flat(layout: Layout) -> Layout:
    """The layout with _ in the place of the dots of its layers.

    Names have underscores of their own, so there is no way back but by its rows, which match whole names.
    """
    return Layout(layout.name, layout.fingerprint, tuple(Row(row.ours, _flat(row.theirs)) for row in layout.rows))


def _flat(name: str) -> str:
    layer, dot, leaf = name.rpartition(".")
    return layer.replace(".", "_") + dot + leaf
