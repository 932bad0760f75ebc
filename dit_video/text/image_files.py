"""An image encoder's files, known without torch: names of tensors, its shape, and how pictures are prepared for it.

Our names of the tensors are those of transformers' version 5; public files have a prefix before them, ComfyUI's too.
The original release of Wan names its own module (wan/modules/clip.py), which stores queries, keys and values as one
tensor, in a file that holds CLIP's text encoder besides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from math import isqrt
from pathlib import Path
from typing import Any

from dit_video.checkpoints.files import read_json
from dit_video.checkpoints.keymap import Layout, Row, identity
from dit_video.checkpoints.parts import Part
from dit_video.errors import CheckpointError

_LAYER = (
    *(f"self_attn.{part}_proj.{{p}}" for part in ("q", "k", "v", "out")),
    *("layer_norm1.{p}", "layer_norm2.{p}", "mlp.fc1.{p}", "mlp.fc2.{p}"),
)
_NAMES = (
    "embeddings.class_embedding",
    "embeddings.patch_embedding.weight",
    "embeddings.position_embedding.weight",
    "pre_layrnorm.{p}",
    *(f"encoder.layers.{{i}}.{name}" for name in _LAYER),
    "post_layernorm.{p}",
)
_COUNT = "embeddings.position_ids"  # from 0, of older files
_OF_CLIP = ("visual_projection.weight", "text_model.*", "text_projection.weight", "logit_scale")  # beside the encoder
PLAIN = Layout("clip", _NAMES[0], identity(_NAMES), ignored=(_COUNT, *_OF_CLIP))
PREFIXED = Layout(
    "vision_model",
    f"vision_model.{_NAMES[0]}",
    tuple(Row(name, f"vision_model.{name}") for name in _NAMES),
    ignored=(f"vision_model.{_COUNT}", *_OF_CLIP),
)
ORIGINAL = Layout(
    "original",
    "cls_embedding",
    (
        Row("embeddings.class_embedding", "cls_embedding", lead=2),
        Row("embeddings.patch_embedding.weight", "patch_embedding.weight"),
        Row("embeddings.position_embedding.weight", "pos_embedding", lead=1),
        Row("pre_layrnorm.{p}", "pre_norm.{p}"),
        *(
            Row(f"encoder.layers.{{i}}.self_attn.{part}_proj.{{p}}", "transformer.{i}.attn.to_qkv.{p}", piece=(k, 3))
            for k, part in enumerate("qkv")
        ),
        Row("encoder.layers.{i}.self_attn.out_proj.{p}", "transformer.{i}.attn.proj.{p}"),
        Row("encoder.layers.{i}.layer_norm1.{p}", "transformer.{i}.norm1.{p}"),
        Row("encoder.layers.{i}.layer_norm2.{p}", "transformer.{i}.norm2.{p}"),
        Row("encoder.layers.{i}.mlp.fc1.{p}", "transformer.{i}.mlp.0.{p}"),
        Row("encoder.layers.{i}.mlp.fc2.{p}", "transformer.{i}.mlp.2.{p}"),
        Row("post_layernorm.{p}", "post_norm.{p}"),
    ),
    ignored=("head", "textual.*", "log_scale"),
)
ORIGINAL_PREFIX = "visual."  # of the image encoder in the release's file
FOLDER_LAYOUTS = (PLAIN, PREFIXED)
IMAGE_LAYOUTS = (PLAIN, ORIGINAL)
"""Of files, where what comes before a name is told by `parts.split`."""

FILTERS, BICUBIC = range(6), 3  # Pillow's numbers of its filters
HEAD_DIM = 80  # of ViT-H/14, which no shape tells


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """How a picture becomes the encoder's input; the defaults are the original release's (wan/modules/clip.py).

    size: (height, width) that it is scaled to, or the length of its shorter side. crop: (height, width) that is cut out
    of its middle. resample: Pillow's number of a filter, or None for bicubic interpolation without a low-pass. mean,
    std: of red, green and blue from 0 to 1.
    """

    size: tuple[int, int] | int = (224, 224)
    crop: tuple[int, int] | None = None
    resample: int | None = None
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of what comes out of square pictures."""
        return self.crop or ((self.size, self.size) if isinstance(self.size, int) else self.size)


def preparation_of(raw: Mapping[str, Any]) -> Preparation:
    """The preparation that a `preprocessor_config.json` of transformers' CLIPImageProcessor says.

    Raises:
        CheckpointError: it leaves a step out, or says something that is not one.
    """
    file = "preprocessor_config.json"
    for step in ("do_resize", "do_rescale", "do_normalize"):
        if not raw.get(step, True):
            raise CheckpointError(f"{file}: {step} is {raw[step]!r}; pictures cannot be prepared without it.")
    try:
        size, crop = raw.get("size", 224), raw.get("crop_size", 224)
        if isinstance(size, int):  # in older files
            size = {"shortest_edge": size}
        wanted = Preparation(
            size=_side(size["shortest_edge"]) if "shortest_edge" in size else _pair(size),
            crop=_pair(crop) if raw.get("do_center_crop", True) else None,
            resample=_filter(raw.get("resample", BICUBIC)),
            mean=tuple(map(float, raw.get("image_mean", Preparation.mean))),
            std=tuple(map(float, raw.get("image_std", Preparation.std))),
        )
        if len(wanted.mean) != 3 or len(wanted.std) != 3 or not all(wanted.std):
            raise ValueError(f"image_mean {wanted.mean}, image_std {wanted.std}")
        if abs(255 * raw.get("rescale_factor", 1 / 255) - 1) > 1e-6:
            raise ValueError(f"rescale_factor {raw['rescale_factor']}")
        smallest = (wanted.size, wanted.size) if isinstance(wanted.size, int) else wanted.size
        if any(cut > side for cut, side in zip(wanted.shape, smallest, strict=True)):
            raise ValueError(f"crop_size {wanted.crop} of size {wanted.size}")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{file}: does not say how CLIP's pictures are prepared ({error}).") from None
    return wanted


def read_preparation(folder: Path) -> Preparation | None:
    """How pictures are prepared, as transformers' image processor in a folder says, or its processor of text and
    images; None where there is neither.

    Raises:
        CheckpointError: see `preparation_of`.
    """
    if (file := folder / "preprocessor_config.json").is_file():
        return preparation_of(read_json(file))
    if (file := folder / "processor_config.json").is_file():
        return preparation_of(read_json(file).get("image_processor") or {})
    return None


def _filter(value: Any) -> int:
    if value not in FILTERS:
        raise ValueError(f"a resample of {value!r}")
    return int(value)


def _pair(value: Any) -> tuple[int, int]:
    """(height, width), which older files give as one number where they are alike."""
    return (_side(value["height"]), _side(value["width"])) if isinstance(value, Mapping) else (_side(value),) * 2


def _side(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"a side of {value!r}")
    return value


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """The shape of an image encoder, in transformers' names, and its preparation; the defaults are Wan's ViT-H/14."""

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_hidden_layers: int = 32
    num_attention_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    preparation: Preparation = field(default_factory=Preparation)

    @property
    def rows(self) -> int:
        """The rows that a picture becomes: one for each patch, and one for all of it."""
        return 1 + (self.image_size // self.patch_size) ** 2


def image_config_of(raw: Mapping[str, Any], preparation: Preparation | None) -> ImageConfig:
    """The configuration in a `config.json` of transformers' CLIPVisionModel; without a preparation the release's.

    Raises:
        CheckpointError: another kind of encoder, a field missing, or a preparation that gives pictures of another size.
    """
    kind = raw.get("model_type")
    if kind != "clip_vision_model":
        raise CheckpointError(f"image encoder: model_type is {kind!r}; it must be 'clip_vision_model'.")
    names = [each.name for each in fields(ImageConfig) if each.name != "preparation"]
    if missing := [name for name in names if name not in raw]:
        raise CheckpointError(f"image encoder: its config.json lacks {missing[0]!r}, which a CLIP encoder must have.")
    square = (raw["image_size"],) * 2
    preparation = preparation or Preparation(size=square)
    config = ImageConfig(**{name: raw[name] for name in names}, preparation=preparation)
    if preparation.shape != square:
        height, width = preparation.shape
        rule = f"it takes pictures of {config.image_size}x{config.image_size}"
        raise CheckpointError(f"image encoder: {rule}, and preprocessor_config.json makes them {width}x{height}.")
    return config


def image_fields(part: Part) -> dict[str, Any]:
    """The fields of transformers' CLIPVisionConfig for an encoder of a file: what shapes tell, and what ViT-H/14 has.

    Raises:
        CheckpointError: the shapes are not those of such an encoder, or its heads are unknown.
    """
    shapes = part.shapes
    try:
        width, channels, *patch = shapes["embeddings.patch_embedding.weight"]
        patches = shapes["embeddings.position_embedding.weight"][0] - 1
        side = isqrt(patches)
        if channels != 3 or patch != [patch[0]] * 2 or not side or side**2 != patches:
            raise ValueError(f"{patches} patches of {'x'.join(map(str, [channels, *patch]))}")
        if width % HEAD_DIM:
            raise ValueError(f"{width} wide, with heads that are not {HEAD_DIM} wide")
        found = ImageConfig(
            hidden_size=width,
            intermediate_size=shapes["encoder.layers.0.mlp.fc1.weight"][0],
            num_hidden_layers=part.layers("encoder.layers").count,
            num_attention_heads=width // HEAD_DIM,
            image_size=side * patch[0],
            patch_size=patch[0],
        )
    except KeyError as missing:
        raise CheckpointError(f"{part.where}: lacks the tensor {missing}, which every CLIP encoder has.") from None
    except (ValueError, IndexError) as error:
        raise CheckpointError(f"{part.where}: its shapes are not those of a ViT-H/14 of CLIP ({error}).") from None
    shape = {each.name: getattr(found, each.name) for each in fields(found) if each.name != "preparation"}
    return {"model_type": "clip_vision_model", **shape}


def image_rows(part: Part) -> tuple[int, int]:
    """The rows that a picture becomes, and their width. Raises CheckpointError."""
    name = "embeddings.position_embedding.weight"
    rows, *width = part.shapes.get(name) or (0,)
    if len(width) != 1:
        raise CheckpointError(f"{part.where}: lacks the matrix {name!r}, which every CLIP encoder has.")
    return rows, width[0]


def weights_of(part: Part) -> Part:
    """The encoder alone, of a part that may have what is passed over."""
    used = {name: info for name, info in part.tensors.items() if not part.layout.ignores(name)}
    return replace(part, tensors=used)
