"""Wan models as diffusers folders, described from headers and configs alone; `save` writes them.

    model_index.json  transformer/  [transformer_2/]  vae/  text_encoder/  tokenizer/  scheduler/
    [image_encoder/  image_processor/]  [dvgen.json]

transformer is the high-noise expert and transformer_2 the low-noise one where there are two (Wan 2.2 A14B). dvgen.json
is ours: it holds the defaults that diffusers has no field for, and diffusers passes over it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dit_video.checkpoints.files import read_headers, read_json
from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.keymap import detect
from dit_video.checkpoints.parts import Part
from dit_video.errors import CheckpointError, UsageError
from dit_video.limits import SIGMAS, SOLVERS
from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.defaults import Defaults
from dit_video.models.wan.layouts import DIFFUSERS, config_from_diffusers
from dit_video.models.wan.pipeline import WanCheckpoint, check_channels, check_experts, known_frames_of, variant_of
from dit_video.models.wan.vae_layouts import diffusers_layout, from_diffusers_config
from dit_video.models.wan.variants import VARIANTS
from dit_video.shapes import parse_size
from dit_video.text.files import folder_part
from dit_video.text.image_files import FOLDER_LAYOUTS, ImageConfig, image_config_of, read_preparation

SCHEDULERS = {  # diffusers' class -> our solver and the field that holds the shift
    "UniPCMultistepScheduler": ("unipc", "flow_shift"),
    "DPMSolverMultistepScheduler": ("dpmpp-2m", "flow_shift"),
    "FlowMatchEulerDiscreteScheduler": ("euler", "shift"),
}
WEIGHTS = "diffusion_pytorch_model"

_NUMBER = ((int, float), "a number above 0")
_COUNT = (int, "a whole number above 0")
_WORDS = (str, "a string")
_DVGEN_JSON: dict[str, tuple[Any, str]] = {  # key -> its type, and the type in words
    "size": (str, 'a string such as "640x360"'),
    "frames": _COUNT,
    "fps": _NUMBER,
    "steps": _COUNT,
    "guidance": (list, "a list of one number, or two: high-noise, low-noise"),
    "negative": _WORDS,
    "shift": _NUMBER,
    "solver": _WORDS,
    "sigmas": _WORDS,
    "knows": (dict, "an object of lists of words"),
    "window": _COUNT,
    "known_frames": (str, 'one of "any", "first" and "none"'),
    "trained_sides": (list, "a list of two whole numbers: the shorter sides that it was trained on, from and to"),
    "trained_frames": (list, "a list of two whole numbers: the frames that it was trained on, from and to"),
}
_OURS_ALONE = ("knows", "known_frames", "trained_sides", "trained_frames")  # those that are not defaults of sampling
KNOWN_FRAMES = ("any", "first", "none")


def open_folder(path: Path) -> WanCheckpoint:
    """What a diffusers folder holds; reads configs and headers, no weights.

    Raises:
        CheckpointError: a file is missing or damaged, or the parts do not fit one another.
    """
    index = read_json(path / "model_index.json")
    dit = config_from_diffusers(read_json(path / "transformer" / "config.json"))
    vae = from_diffusers_config(read_json(path / "vae" / "config.json"))
    text_dim = read_json(path / "text_encoder" / "config.json").get("d_model")
    experts = ["transformer"] + (["transformer_2"] if (index.get("transformer_2") or [None])[0] else [])
    boundary = index.get("boundary_ratio") if len(experts) == 2 else None
    if len(experts) == 2 and not isinstance(boundary, float):
        raise CheckpointError(f"{path}: two transformers need a boundary_ratio in model_index.json, not {boundary!r}.")
    configs = {part: config_from_diffusers(read_json(path / part / "config.json")) for part in experts}
    check_experts(path, configs)
    check_channels(path, dit, vae)
    if text_dim != dit.text_dim:
        raise CheckpointError(
            f"{path}: the text encoder's d_model is {text_dim}; the transformer's text_dim is {dit.text_dim}."
        )
    layouts = dict.fromkeys(experts, DIFFUSERS) | {"vae": diffusers_layout(vae)}
    parts = {
        part: Part(where=path / part, layout=layout, tensors=_headers(path, part)) for part, layout in layouts.items()
    }
    images = None
    if dit.image_dim is not None:
        images = _images(path, dit)
        tensors = _headers(path, "image_encoder")
        parts["image_encoder"] = Part(
            where=path / "image_encoder", layout=detect(tensors, FOLDER_LAYOUTS), tensors=tensors
        )
    parts["text_encoder"] = folder_part(path / "text_encoder")
    variant = variant_of(dit, vae, boundary, path)
    defaults, knows = defaults_of(path, variant)
    expand_timesteps = bool(index.get("expand_timesteps"))
    usual = known_frames_of(dit, vae, expand_timesteps=expand_timesteps)
    return WanCheckpoint(
        path=path,
        variant=variant,
        dit=dit,
        vae=vae,
        parts=parts,
        images=images,
        components={name: part.summary for name, part in parts.items()},
        tokenizer=path / "tokenizer",
        defaults=defaults,
        boundary=boundary,
        expand_timesteps=expand_timesteps,
        knows=knows,
        trained_sides=_range(path, "trained_sides"),
        trained_frames=_range(path, "trained_frames"),
        known_frames=usual if dit.in_dim > dit.out_dim else _known_frames(path, usual),
    )


def _headers(path: Path, part: str) -> dict[str, TensorInfo]:
    tensors = read_headers(path / part, "model" if part.endswith("_encoder") else WEIGHTS)
    # Early conversions of image-to-video models have these, which no code uses.
    return {name: info for name, info in tensors.items() if not name.endswith("attn2.norm_added_q.weight")}


def _images(path: Path, dit: DiTConfig) -> ImageConfig:
    """The configuration of the image encoder, whose rows the transformer attends to."""
    preparation = read_preparation(path / "image_processor")
    images = image_config_of(read_json(path / "image_encoder" / "config.json"), preparation)
    if images.hidden_size != dit.image_dim:
        raise CheckpointError(
            f"{path}: the image encoder's hidden_size is {images.hidden_size}; the transformer's image_dim is "
            f"{dit.image_dim}."
        )
    if dit.emb_pos not in (None, 2 * images.rows):
        raise CheckpointError(
            f"{path}: the transformer has positions for {dit.emb_pos} rows; two pictures of the image encoder have "
            f"{2 * images.rows}."
        )
    return images


def defaults_of(path: Path, variant: str) -> tuple[Defaults, dict[str, list[str]]]:
    """The variant's defaults, then the scheduler's shift and solver, then dvgen.json; and what the model knows."""
    defaults = VARIANTS[variant].defaults if variant in VARIANTS else Defaults()
    scheduler = read_json(path / "scheduler" / "scheduler_config.json")
    name = scheduler.get("_class_name")
    ours = read_json(path / "dvgen.json") if (path / "dvgen.json").is_file() else {}
    if name in SCHEDULERS:
        solver, shift = SCHEDULERS[name]
        value = scheduler.get(shift) or 1.0
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
            raise CheckpointError(f"{path}: the scheduler's {shift} is {value!r}; it must be a number above 0.")
        defaults = replace(defaults, solver=solver, shift=float(value))
    elif not {"solver", "shift"} <= ours.keys():
        known = ", ".join(SCHEDULERS)
        raise CheckpointError(f"{path}: the scheduler {name!r} is not supported; it must be one of {known}.")
    return _overridden(defaults, ours, path / "dvgen.json"), ours.get("knows", {})


def _known_frames(path: Path, usual: str) -> str:
    """What dvgen.json says, or else what is usual for such a model."""
    ours = read_json(path / "dvgen.json") if (path / "dvgen.json").is_file() else {}
    return ours.get("known_frames", usual)


def _range(path: Path, key: str) -> tuple[int, int] | None:
    """A pair in dvgen.json."""
    found = read_json(path / "dvgen.json").get(key) if (path / "dvgen.json").is_file() else None
    return None if found is None else (found[0], found[1])


def _overridden(defaults: Defaults, ours: Mapping[str, Any], file: Path) -> Defaults:
    """`defaults` with the values of dvgen.json."""
    values = dict(ours)
    for key, value in ours.items():
        if key not in _DVGEN_JSON:
            raise CheckpointError(f"{file}: unknown key {key!r}; the known ones are {', '.join(_DVGEN_JSON)}.")
        kind, rule = _DVGEN_JSON[key]
        wrong = (
            isinstance(value, bool)
            or not isinstance(value, kind)
            or (key == "guidance" and not _is_guidance(value))
            or (key == "known_frames" and value not in KNOWN_FRAMES)
            or (key.startswith("trained_") and not _is_range(value))
            or (key == "knows" and not all(map(_are_words, value.values())))
        )
        if wrong or (kind in (_COUNT[0], _NUMBER[0]) and not value > 0):
            raise CheckpointError(f"{file}: {key} is {value!r}; it must be {rule}.")
    if "size" in values:
        try:
            values["width"], values["height"] = parse_size(values.pop("size"), name="size")
        except UsageError as error:
            raise CheckpointError(f"{file}: {error}") from error
    if "guidance" in values:
        values["guidance"] = tuple(map(float, values["guidance"]))
    for ours_alone in _OURS_ALONE:
        values.pop(ours_alone, None)
    defaults = replace(defaults, **values)
    if defaults.solver not in SOLVERS:
        raise CheckpointError(f"{file}: solver is {defaults.solver!r}; it must be one of {', '.join(SOLVERS)}.")
    if defaults.sigmas not in SIGMAS:
        raise CheckpointError(f"{file}: sigmas is {defaults.sigmas!r}; it must be one of {', '.join(SIGMAS)}.")
    return defaults


def _is_guidance(value: list[Any]) -> bool:
    return len(value) in (1, 2) and all(isinstance(scale, (int, float)) for scale in value)


def _is_range(value: list[Any]) -> bool:
    return len(value) == 2 and all(type(end) is int for end in value) and 0 < value[0] <= value[1]


def _are_words(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) for word in value)


def scheduler_config(shift: float) -> dict[str, Any]:
    """The contents of diffusers' `scheduler/scheduler_config.json` that samples as `unipc` does."""
    return {
        "_class_name": "UniPCMultistepScheduler",
        "num_train_timesteps": 1000,
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "flow_shift": shift,
        "solver_order": 2,
        "solver_type": "bh2",
        "lower_order_final": True,
        "final_sigmas_type": "zero",
        "predict_x0": True,
        "timestep_spacing": "linspace",
    }


def model_index(
    *,
    expand_timesteps: bool,
    boundary: float | None = None,
    beside: bool = False,
    images: bool = False,
    text: str = "UMT5EncoderModel",
) -> dict[str, Any]:
    """The contents of diffusers' `model_index.json`.

    boundary: of two experts. beside: the model takes what is given beside the noise. images: it has an image encoder.
    text: transformers' class of the text encoder.
    """
    nothing = [None, None]
    pictures = {
        "image_encoder": ["transformers", "CLIPVisionModel"] if images else nothing,
        "image_processor": ["transformers", "CLIPImageProcessor"] if images else nothing,
    }
    return {
        "_class_name": "WanImageToVideoPipeline" if beside else "WanPipeline",
        "boundary_ratio": boundary,
        "expand_timesteps": expand_timesteps,
        **(pictures if beside else {}),
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", text],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "transformer_2": nothing if boundary is None else ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
