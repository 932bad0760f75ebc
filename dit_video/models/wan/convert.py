"""Wan models written in another layout: planned and checked from headers alone, then written tensor by tensor.

    diffusers   see `folder`
    original    config.json  diffusion_pytorch_model*.safetensors  Wan2.?_VAE  models_t5_*  [models_clip_*]
                google/umt5-xxl/, with two experts high_noise_model/ and low_noise_model/ instead of the first two
    comfyui     diffusion_models/NAME (with two experts NAME_high_noise and NAME_low_noise)  vae/NAME_vae
                text_encoders/NAME_umt5  [clip_vision/NAME_clip]

The last two have no place for some of what a diffusers folder says. What they would leave to be guessed wrongly is
refused, or, of an autoencoder, written as diffusers does; what is merely a setting is named in `Conversion.lost`.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

from dit_video import atomic
from dit_video.checkpoints.files import read_json, some, write_json
from dit_video.checkpoints.fused import together
from dit_video.checkpoints.headers import TensorInfo, reason
from dit_video.checkpoints.keymap import Layout
from dit_video.checkpoints.load import check
from dit_video.checkpoints.parts import Part
from dit_video.checkpoints.places import comfy_name, is_diffusers
from dit_video.checkpoints.stored import DTYPES, read_tensor
from dit_video.checkpoints.write import SHARD_BYTES, Planned, Tensors, nbytes, planned, write_shards
from dit_video.errors import CheckpointError
from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.defaults import RELEASES, Defaults
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.folder import model_index, scheduler_config
from dit_video.models.wan.inferred import dit_from_original, dit_from_shapes, vae_from_shapes
from dit_video.models.wan.layouts import (
    DIFFUSERS,
    ORIGINAL,
    config_from_diffusers,
    config_to_diffusers,
    config_to_original,
)
from dit_video.models.wan.pipeline import WanCheckpoint, known_frames_of, variant_of
from dit_video.models.wan.vae import WanVAE
from dit_video.models.wan.vae_layouts import diffusers_config, diffusers_layout, original_layout
from dit_video.models.wan.variants import VARIANTS
from dit_video.text.encoders import load_tokenizer
from dit_video.text.image_files import ORIGINAL as IMAGE_ORIGINAL
from dit_video.text.image_files import (
    ORIGINAL_PREFIX,
    PLAIN,
    PREFIXED,
    ImageConfig,
    Preparation,
    image_fields,
    weights_of,
)
from dit_video.text.layouts import ORIGINAL as TEXT_ORIGINAL
from dit_video.text.layouts import SPIECE, TRANSFORMERS, text_config
from dit_video.text.vocabulary import save_tokenizer

_Small = Path | bytes | Mapping[str, Any]  # a file to copy, bytes, or the contents of JSON
_Files = dict[str, _Small]
Progress = Callable[[str, int, int], object]  # a stage, and how many of its parts are finished

_CODES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
_WEIGHTS = "diffusion_pytorch_model"
_EXPERTS = {"transformer": "high_noise", "transformer_2": "low_noise"}
_TEXT_CLASSES = {"umt5": "UMT5EncoderModel", "t5": "T5EncoderModel"}
_TEXT_CONSTANTS = {"layer_norm_epsilon": 1e-6, "relative_attention_max_distance": 128}  # which no shape tells
_SMALL = (".json", ".txt", ".model")  # of the files beside weights that belong to a diffusers folder
_TOKENIZER = ("tokenizer.json", "spiece.model", "tokenizer_config.json", "special_tokens_map.json")
_ONLY_DIFFUSERS = "only a diffusers folder has room for"


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of a part, and where they go: a path in the folder, without ".safetensors".

    limit: the bytes of a file, beyond which there are several; None for one in any case.
    """

    place: str
    tensors: Tensors
    limit: int | None = None


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """A model as it will be written: everything is checked, nothing is there.

    model: what opens it, a path in `out`. parts: by their names. files: small files by their paths in `out`.
    tokenizer: the folder in `out` for one that is made from `source`. dequantised:
    the parts of which no dtype can be kept, and their dtypes. lost: what the layout has no room for, in words. notes:
    what else there is to say.
    """

    out: Path
    model: str
    parts: Mapping[str, Weights]
    files: Mapping[str, "_Small"]
    tokenizer: str | None = None
    source: Path | TensorInfo
    dequantised: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    lost: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """The bytes of its tensors."""
        return sum(nbytes(weights.tensors) for weights in self.parts.values())

    def write(self, progress: Progress = lambda *_: None) -> None:
        """Writes it; it appears when it is whole, in the place of a folder that was there.

        Raises:
            CheckpointError: a tensor cannot be read, or the folder cannot be written.
        """
        self._check_room()
        try:
            with atomic.replacing_folder(self.out) as folder:
                for place, content in self.files.items():
                    (folder / place).parent.mkdir(parents=True, exist_ok=True)
                    _write_small(folder / place, content)
                if self.tokenizer is not None:
                    save_tokenizer(load_tokenizer(self.source), folder / self.tokenizer)
                for part, weights in self.parts.items():
                    _write_part(folder, part, weights, progress)
        except OSError as error:
            raise CheckpointError(f"{self.out}: cannot be written ({reason(error)}).") from error

    def _check_room(self) -> None:
        free = shutil.disk_usage(self.out.parent).free
        if self.nbytes > free:
            sizes = f"it takes {self.nbytes / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are free there"
            raise CheckpointError(f"{self.out}: {sizes}; choose a folder on another disk.")


def convert(checkpoint: WanCheckpoint, out: Path, layout: str, *, dtype: str = "keep") -> Conversion:
    """How a model will be written in a layout: "diffusers", "original" or "comfyui".

    dtype: of all numbers that are not whole; "keep" for those that they have, bfloat16 where they are quantised.

    Raises:
        CheckpointError: the layout has no room for what the model is, a tensor is missing, unexpected or mis-shaped, or
            a file of the model lies in `out`, whose place the result takes.
    """
    _check(checkpoint, out)
    made = _LAYOUTS[layout](checkpoint, out, _CODES.get(dtype))
    quantised = {name: summary.quantised for name, summary in checkpoint.components.items() if summary.quantised}
    return replace(made, dequantised=quantised)


def _check(checkpoint: WanCheckpoint, out: Path) -> None:
    """Refuses what is incomplete, or would be overwritten. Raises CheckpointError."""
    place = out.resolve()
    for part in checkpoint.parts.values():
        for info in part.tensors.values():
            if place in info.file.resolve().parents:
                raise CheckpointError(f"{out}: holds {info.file}, which is to be converted; choose another folder.")
    for name in _transformers(checkpoint):
        part = checkpoint.parts[name]
        check(partial(WanDiT, checkpoint.dit), part.tensors, part.layout)
    check(partial(WanVAE, checkpoint.vae), checkpoint.parts["vae"].tensors, checkpoint.parts["vae"].layout)
    text = checkpoint.parts["text_encoder"]
    told = text_config(text)
    biased = told["num_layers"] if told["model_type"] == "umt5" else 1
    wanted = _names(TRANSFORMERS, told["num_layers"], {"relative_attention_bias": biased})
    _refuse_missing(text, text.shapes, wanted)
    if checkpoint.images is not None:
        images = weights_of(checkpoint.parts["image_encoder"])
        _refuse_missing(images, images.shapes, _names(PLAIN, checkpoint.images.num_hidden_layers, {}))


def _names(layout: Layout, layers: int, fewer: Mapping[str, int]) -> Iterator[str]:
    """All of our names that a table stands for; fewer: in how many layers those with a word are."""
    for row in layout.rows:
        count = next((count for word, count in fewer.items() if word in row.ours), layers)
        for index in range(count if "{i}" in row.ours else 1):
            for kind in ("weight", "bias") if "{p}" in row.ours else ("",):
                yield row.ours.format(i=index, p=kind)


def _refuse_missing(part: Part, there: Mapping[str, Any], wanted: Iterator[str]) -> None:
    if missing := [name for name in wanted if name not in there]:
        raise CheckpointError(f"{part.where}: {some(missing, 'missing')}.")


def _transformers(checkpoint: WanCheckpoint) -> list[str]:
    return [name for name in checkpoint.parts if name.startswith("transformer")]


def _renamed(part: Part, layout: Layout, dtype: str | None) -> dict[str, Planned | bytes]:
    """The tensors of a part by their names in another layout."""
    ours = {part.layout.to_ours(name): info for name, info in part.tensors.items()}
    return {name: planned(first, dtype, *then) for name, (first, *then) in together(ours, layout).items()}


def _renamed_images(part: Part, dtype: str | None) -> dict[str, Planned | bytes]:
    """Those of an image encoder by the names of public files, which every version of transformers reads."""
    return _renamed(weights_of(part), PREFIXED, dtype)


# diffusers.


def _to_diffusers(checkpoint: WanCheckpoint, out: Path, dtype: str | None) -> Conversion:
    transformers = _transformers(checkpoint)
    layouts = dict.fromkeys(transformers, DIFFUSERS) | {
        "vae": diffusers_layout(checkpoint.vae),
        "text_encoder": TRANSFORMERS,
    }
    tensors = {name: _renamed(checkpoint.parts[name], layout, dtype) for name, layout in layouts.items()}
    same = is_diffusers(checkpoint.path)
    if checkpoint.images is not None:
        part = checkpoint.parts["image_encoder"]
        as_it_is: dict[str, Planned | bytes] = {name: planned(info, dtype) for name, info in part.tensors.items()}
        tensors["image_encoder"] = as_it_is if same else _renamed_images(part, dtype)
    parts = {
        name: Weights(
            place=f"{name}/{'model' if name.endswith('_encoder') else _WEIGHTS}", tensors=each, limit=SHARD_BYTES
        )
        for name, each in tensors.items()
    }
    base = Conversion(out=out, model=".", parts=parts, files={}, source=checkpoint.tokenizer)
    if same:
        return replace(base, files=_small_files(checkpoint, out, parts, dtype), lost=_left_behind(checkpoint.path))
    if len(transformers) > 1 and checkpoint.boundary is None:
        raise CheckpointError(f"{checkpoint.path}: has two experts, and no release tells from which noise level on.")
    _refuse_change(checkpoint, config_from_diffusers(config_to_diffusers(checkpoint.dit)), "diffusers")
    notes: tuple[str, ...] = ()
    if checkpoint.images is not None and checkpoint.images.preparation.resample is None:
        notes = ("pictures: diffusers scales them with a low-pass filter, which the release has not",)
    return replace(base, files=_made_files(checkpoint, out, parts), tokenizer="tokenizer", notes=notes)


def _small_files(checkpoint: WanCheckpoint, out: Path, parts: Mapping[str, Weights], dtype: str | None) -> _Files:
    """What a diffusers folder has beside its tensors, as it is but for the dtypes that it says, and for the defaults
    that only its own name told."""
    path = checkpoint.path
    folders = [path / name for name in _components(path) if (path / name).is_dir()]
    found = [path / "model_index.json", path / "dvgen.json"]
    found += [file for folder in folders for file in sorted(folder.rglob("*")) if file.suffix in _SMALL]
    files: _Files = {
        file.relative_to(path).as_posix(): file
        for file in found
        if file.is_file() and not file.name.endswith(".index.json")
    }
    for name in parts:
        place = f"{name}/config.json"
        config = read_json(path / place)
        told = {key: _torch_name(parts[name].tensors) for key in ("dtype", "torch_dtype") if config.get(key)}
        if dtype is not None and told:  # transformers runs a model in the dtype that this says
            files[place] = config | told
    ours = read_json(path / "dvgen.json") if "dvgen.json" in files else {}
    if unsaid := {key: value for key, value in _unlike(checkpoint, out).items() if key not in ours}:
        files["dvgen.json"] = ours | unsaid
    return files


def _components(path: Path) -> list[str]:
    """The folders of the parts that model_index.json names."""
    index = read_json(path / "model_index.json")
    return [name for name, about in index.items() if isinstance(about, list) and about and about[0] is not None]


def _left_behind(path: Path) -> tuple[str, ...]:
    """What lies in a diffusers folder and is none of its parts."""
    known = {*_components(path), "model_index.json", "dvgen.json"}
    others = sorted(place.name for place in path.iterdir() if place.name not in known and place.name[0] != ".")
    return (f"{', '.join(others)}: no part of the model, and left behind",) if others else ()


def _made_files(checkpoint: WanCheckpoint, out: Path, parts: Mapping[str, Weights]) -> _Files:
    """The files beside the tensors of a diffusers folder for a model that was none."""
    text = text_config(checkpoint.parts["text_encoder"])
    text_class = _TEXT_CLASSES[text["model_type"]]
    index = model_index(
        expand_timesteps=checkpoint.expand_timesteps,
        boundary=checkpoint.boundary,
        beside=checkpoint.beside,
        images=checkpoint.images is not None,
        text=text_class,
    )
    dtypes = {name: _torch_name(parts[name].tensors) for name in parts if name.endswith("_encoder")}
    files: _Files = {
        "model_index.json": index,
        "scheduler/scheduler_config.json": scheduler_config(checkpoint.defaults.shift),
        "vae/config.json": diffusers_config(checkpoint.vae),
        "text_encoder/config.json": {
            "architectures": [text_class],
            **text,
            **_TEXT_CONSTANTS,
            "torch_dtype": dtypes["text_encoder"],
        },
    }
    for name in _transformers(checkpoint):
        files[f"{name}/config.json"] = config_to_diffusers(checkpoint.dit)
    if (images := checkpoint.images) is not None:
        files["image_encoder/config.json"] = _image_config(images) | {"torch_dtype": dtypes["image_encoder"]}
        files["image_processor/preprocessor_config.json"] = _preprocessor(images.preparation)
    if (spiece := _spiece(checkpoint.tokenizer)) is not None:
        files["tokenizer/spiece.model"] = spiece
    if ours := _unlike(checkpoint, out):
        files["dvgen.json"] = ours
    return files


def _torch_name(tensors: Tensors) -> str:
    """torch's name of the dtype that most of a part's numbers have."""
    largest = max((each for each in tensors.values() if isinstance(each, Planned)), key=lambda each: each.nbytes)
    return str(DTYPES[largest.dtype]).removeprefix("torch.")


def _image_config(images: ImageConfig) -> dict[str, Any]:
    shape = {each.name: getattr(images, each.name) for each in fields(images) if each.name != "preparation"}
    return {"architectures": ["CLIPVisionModel"], "model_type": "clip_vision_model", **shape}


def _preprocessor(how: Preparation) -> dict[str, Any]:
    """What transformers' CLIPImageProcessor is to do; it has Pillow's filters alone, of which bicubic is the third."""
    sides = {"shortest_edge": how.size} if isinstance(how.size, int) else dict(zip(_SIDES, how.size, strict=True))
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": sides,
        "resample": 3 if how.resample is None else how.resample,
        "do_center_crop": how.crop is not None,
        "crop_size": dict(zip(_SIDES, how.shape, strict=True)),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(how.mean),
        "image_std": list(how.std),
    }


_SIDES = ("height", "width")


def _unlike(checkpoint: WanCheckpoint, out: Path) -> dict[str, Any]:
    """What dvgen.json must say for a model whose defaults are not the usual ones; the scheduler says the rest."""
    ours, usual = checkpoint.defaults, _release_defaults(checkpoint, out)
    found: dict[str, Any] = {}
    for name in _differing(ours, usual):
        value = getattr(ours, name)
        if name in ("width", "height"):
            found["size"] = f"{ours.width}x{ours.height}"
        elif name not in ("solver", "shift"):
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def _differing(ours: Defaults, usual: Defaults) -> list[str]:
    return [each.name for each in fields(Defaults) if getattr(ours, each.name) != getattr(usual, each.name)]


# The original release's, and ComfyUI's.


def _to_original(checkpoint: WanCheckpoint, out: Path, dtype: str | None) -> Conversion:
    parts: dict[str, Weights] = {}
    files: _Files = {}
    notes = ["what the release keeps in pickles (.pth) is written as .safetensors"]
    transformers = _transformers(checkpoint)
    for name in transformers:
        part = checkpoint.parts[name]
        place = f"{_EXPERTS[name]}_model/" if len(transformers) > 1 else ""
        files[f"{place}config.json"] = made = config_to_original(checkpoint.dit, _model_type(checkpoint))
        _refuse_change(checkpoint, dit_from_original(out, made, part.shapes), "original")
        tensors = _renamed(part, ORIGINAL, dtype)
        parts[name] = Weights(place=f"{place}{_WEIGHTS}", tensors=tensors, limit=SHARD_BYTES)
    name = f"Wan{'2.2' if checkpoint.vae.residual else '2.1'}_VAE"
    parts["vae"], vae_files, vae_notes = _vae(checkpoint, name, name, dtype)
    _refuse_text(checkpoint)
    text = _renamed(checkpoint.parts["text_encoder"], TEXT_ORIGINAL, dtype)
    parts["text_encoder"] = Weights(place="models_t5_umt5-xxl-enc", tensors=text)
    if checkpoint.images is not None:
        _refuse_images(checkpoint.parts["image_encoder"], checkpoint.images)
        images = _renamed(weights_of(checkpoint.parts["image_encoder"]), IMAGE_ORIGINAL, dtype)
        parts["image_encoder"] = Weights(
            place="models_clip_open-clip-xlm-roberta-large-vit-huge-14",
            tensors={ORIGINAL_PREFIX + name: each for name, each in images.items()},
        )
        notes.append("image encoder: written alone; the release's file holds CLIP's text encoder besides")
    folder, source = "google/umt5-xxl", checkpoint.tokenizer
    kept = isinstance(source, Path) and (source / "tokenizer.json").is_file()
    if kept and isinstance(source, Path):
        files |= {f"{folder}/{name}": source / name for name in _TOKENIZER if (source / name).is_file()}
    elif (spiece := _spiece(source)) is not None:
        files[f"{folder}/spiece.model"] = spiece
    return Conversion(
        out=out,
        model=".",
        parts=parts,
        files=files | vae_files,
        tokenizer=None if kept else folder,
        source=source,
        lost=_lost(checkpoint, out),
        notes=(*notes, *vae_notes),
    )


def _model_type(checkpoint: WanCheckpoint) -> str:
    """The word of the release for what a model does."""
    if checkpoint.beside:
        return "i2v" if checkpoint.dit.emb_pos is None else "flf2v"
    return "ti2v" if checkpoint.expand_timesteps else "t2v"


def _to_comfyui(checkpoint: WanCheckpoint, out: Path, dtype: str | None) -> Conversion:
    name = comfy_name(out)
    parts: dict[str, Weights] = {}
    transformers = _transformers(checkpoint)
    for which in transformers:
        part = checkpoint.parts[which]
        _refuse_change(checkpoint, dit_from_shapes(out, part.shapes), "comfyui")
        file = f"{name}_{_EXPERTS[which]}" if len(transformers) > 1 else name
        parts[which] = Weights(place=f"diffusion_models/{file}", tensors=_renamed(part, ORIGINAL, dtype))
    parts["vae"], files, notes = _vae(checkpoint, f"vae/{name}_vae", f"{name}_vae", dtype)
    _refuse_text(checkpoint)
    text, source = _renamed(checkpoint.parts["text_encoder"], TRANSFORMERS, dtype), checkpoint.tokenizer
    if (spiece := _spiece(source)) is not None:
        text[SPIECE] = spiece
    else:
        told = "the tokenizer lies beside the text encoder as tokenizer.json"
        notes += (f"{told}: ComfyUI reads sentencepiece files alone, and there is none",)
        files["text_encoders/tokenizer.json"] = load_tokenizer(source).to_str(pretty=True).encode()
    parts["text_encoder"] = Weights(place=f"text_encoders/{name}_umt5", tensors=text)
    if checkpoint.images is not None:
        _refuse_images(checkpoint.parts["image_encoder"], checkpoint.images)
        images = _renamed_images(checkpoint.parts["image_encoder"], dtype)
        parts["image_encoder"] = Weights(place=f"clip_vision/{name}_clip", tensors=images)
    model = f"{parts[transformers[-1]].place}.safetensors"
    lost = _lost(checkpoint, out / model)
    return Conversion(out=out, model=model, parts=parts, files=files, source=source, lost=lost, notes=notes)


def _refuse_change(checkpoint: WanCheckpoint, read: DiTConfig, layout: str) -> None:
    """Raises CheckpointError: the transformer would be read back as another one."""
    for each in fields(DiTConfig):
        value, guessed = getattr(checkpoint.dit, each.name), getattr(read, each.name)
        if value != guessed:
            rule = f"the {layout} layout has no room for it and means {guessed}"
            raise CheckpointError(f"{checkpoint.path}: {each.name} is {value}; {rule}.")
    if layout == "diffusers":
        return
    if checkpoint.expand_timesteps != checkpoint.vae.residual:
        rule = f"{_ONLY_DIFFUSERS} a model that has one without the other"
        raise CheckpointError(
            f"{checkpoint.path}: noise levels per latent frame go with a VAE of the 2.2 form; {rule}."
        )
    usual = {variant.dit.in_dim: variant.boundary for variant in VARIANTS.values() if variant.boundary}
    if checkpoint.boundary is not None and checkpoint.boundary != usual.get(checkpoint.dit.in_dim):
        rule = f"the {layout} layout has no room for it and means {usual.get(checkpoint.dit.in_dim)}"
        raise CheckpointError(f"{checkpoint.path}: the boundary of its experts is {checkpoint.boundary}; {rule}.")


def _vae(
    checkpoint: WanCheckpoint, place: str, name: str, dtype: str | None
) -> tuple[Weights, _Files, tuple[str, ...]]:
    """The autoencoder under the release's names, what goes with it, and what is to be said.

    One with other constants than a release's is written as diffusers does, with the config.json that holds them.
    """
    part = checkpoint.parts["vae"]
    try:
        told = vae_from_shapes(part.where, part.shapes)
    except CheckpointError:  # no release has its channels
        told = None
    if told == checkpoint.vae:
        return Weights(place=place, tensors=_renamed(part, original_layout(told), dtype)), {}, ()
    weights = Weights(place=f"vae/{name}", tensors=_renamed(part, diffusers_layout(checkpoint.vae), dtype))
    note = (
        "VAE: whitens latents with constants of its own, so it is written as in a diffusers folder, which dvgen reads"
    )
    return weights, {"vae/config.json": diffusers_config(checkpoint.vae)}, (note,)


def _refuse_text(checkpoint: WanCheckpoint) -> None:
    """Refuses a text encoder of which its shapes do not tell all. Raises CheckpointError."""
    part = checkpoint.parts["text_encoder"]
    if not part.where.is_dir():
        return
    file = part.where / "config.json"
    told = read_json(file)
    for key, value in (text_config(part) | _TEXT_CONSTANTS).items():
        if told.get(key, value) != value:
            rule = f"{_ONLY_DIFFUSERS} that; elsewhere it means {value!r}"
            raise CheckpointError(f"{file}: {key} is {told[key]!r}; {rule}.")


def _refuse_images(part: Part, images: ImageConfig) -> None:
    """Refuses an image encoder of which its shapes do not tell all. Raises CheckpointError."""
    for key, value in image_fields(weights_of(part)).items():
        if (told := getattr(images, key, value)) != value:
            rule = f"{_ONLY_DIFFUSERS} that; elsewhere it means {value!r}"
            raise CheckpointError(f"{part.where}: {key} is {told!r}; {rule}.")


def _spiece(source: Path | TensorInfo) -> bytes | None:
    """The sentencepiece file that a tokenizer was made from, if it is at hand."""
    if isinstance(source, TensorInfo):
        return bytes(read_tensor(source).tolist())
    file = source / "spiece.model"
    return file.read_bytes() if file.is_file() else None


def _release_defaults(checkpoint: WanCheckpoint, place: Path) -> Defaults:
    """The settings that a model without any of its own has, when it lies at `place`."""
    return RELEASES.get(variant_of(checkpoint.dit, checkpoint.vae, checkpoint.boundary, place), Defaults())


def _lost(checkpoint: WanCheckpoint, place: Path) -> tuple[str, ...]:
    """What only a diffusers folder has room for."""
    usual, found = _release_defaults(checkpoint, place), []
    if unlike := _differing(checkpoint.defaults, usual):
        found.append(f"defaults ({', '.join(unlike)})")
    if checkpoint.knows:
        found.append("known words")
    usual_frames = known_frames_of(checkpoint.dit, checkpoint.vae, expand_timesteps=checkpoint.expand_timesteps)
    if checkpoint.known_frames != usual_frames:
        found.append(f"known frames ({checkpoint.known_frames})")
    if checkpoint.trained_sides or checkpoint.trained_frames:
        found.append("trained sizes")
    if (images := checkpoint.images) is not None and images.preparation != Preparation(size=(images.image_size,) * 2):
        found.append("the preparation of pictures")
    lost = [f"{', '.join(found)}: {_ONLY_DIFFUSERS} them"] if found else []
    return (*lost, *(_left_behind(checkpoint.path) if is_diffusers(checkpoint.path) else ()))


_LAYOUTS: Mapping[str, Callable[[WanCheckpoint, Path, str | None], Conversion]] = {
    "diffusers": _to_diffusers,
    "original": _to_original,
    "comfyui": _to_comfyui,
}


# Writing.


def _write_small(file: Path, content: _Small) -> None:
    if isinstance(content, Path):
        shutil.copyfile(content, file)
    elif isinstance(content, bytes):
        file.write_bytes(content)
    else:
        write_json(file, content)


def _write_part(folder: Path, part: str, weights: Weights, progress: Progress) -> None:
    stage, total, written = part.replace("_", " "), len(weights.tensors), 0

    def done() -> None:
        nonlocal written
        written += 1
        progress(stage, written, total)

    progress(stage, 0, total)
    place = folder / weights.place
    place.parent.mkdir(parents=True, exist_ok=True)
    write_shards(place.parent, place.name, weights.tensors, limit=weights.limit, done=done)
