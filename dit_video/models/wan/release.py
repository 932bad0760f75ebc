"""Wan models as they are released and repackaged: original folders, and files that each hold a part or several.

    original    config.json  diffusion_pytorch_model*.safetensors  Wan2.?_VAE.pth  models_t5_*.pth  [models_clip_*.pth]
                google/umt5-xxl/, with two experts high_noise_model/ and low_noise_model/ instead of the first two
    ComfyUI     diffusion_models/FILE, and beside that folder vae/, text_encoders/ or clip/, clip_vision/

What is missing is looked for where people keep it, by the file's name and then by what its header says, and the first
that fits is taken; `WanCheckpoint.took` says which.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from dit_video.checkpoints.files import read_headers, read_json
from dit_video.checkpoints.formats import gguf_field
from dit_video.checkpoints.headers import summarize
from dit_video.checkpoints.keymap import Layout
from dit_video.checkpoints.parts import Part, read_tensors, split
from dit_video.checkpoints.places import SUFFIXES, Named, cached_snapshots
from dit_video.checkpoints.quantised import peeled
from dit_video.errors import CheckpointError
from dit_video.models.wan.configs import DiTConfig, VAEConfig
from dit_video.models.wan.defaults import RELEASES, Defaults
from dit_video.models.wan.inferred import dit_from_original, dit_from_shapes, vae_from_shapes
from dit_video.models.wan.layouts import LAYOUTS
from dit_video.models.wan.pipeline import WanCheckpoint, check_channels, check_experts, known_frames_of, variant_of
from dit_video.models.wan.vae_layouts import (
    DIFFUSERS_NAMES,
    ORIGINAL_NAMES,
    WAN_2_1_VAE,
    WAN_2_2_VAE,
    diffusers_layout,
    from_diffusers_config,
    original_layout,
)
from dit_video.text.files import has_tokenizer
from dit_video.text.image_files import (
    IMAGE_LAYOUTS,
    PLAIN,
    ImageConfig,
    image_config_of,
    image_fields,
    image_rows,
    read_preparation,
)
from dit_video.text.layouts import TEXT_LAYOUTS, text_part, text_width

KINDS: Mapping[str, tuple[Layout, ...]] = {
    "transformer": LAYOUTS,
    "vae": (ORIGINAL_NAMES, DIFFUSERS_NAMES),
    "text_encoder": TEXT_LAYOUTS,
    "image_encoder": IMAGE_LAYOUTS,
}
_WEIGHTS = "diffusion_pytorch_model"
_UNKNOWN = "is no model that is known; its tensors are not named as those of a Wan model are"
_NOISE = {"transformer": "high_noise", "transformer_2": "low_noise"}
_BOUNDARIES = {16: 0.875, 36: 0.9}  # of the A14B releases, by the channels that their experts take
_VISION = "clip_vision_model"  # transformers' model_type
_TOKENIZERS = ("tokenizer", "google/umt5-xxl", "umt5-xxl")  # folders that may hold one
_MODELS = ("diffusion_models", "unet", "checkpoints")  # ComfyUI's folders of transformers
_FOLDERS = {"vae": ("vae",), "text_encoder": ("text_encoders", "clip"), "image_encoder": ("clip_vision",)}
_WORDS = {"vae": "vae", "text_encoder": "t5", "image_encoder": "clip"}  # in the names of files that may be it
_OPTIONS = {"vae": "--vae", "text_encoder": "--text-encoder", "image_encoder": "--image-encoder"}


@dataclass(frozen=True)
class _Transformers:
    """The transformers by their names, their configurations, and other parts that lie in the same file."""

    parts: dict[str, Part]
    configs: dict[str, DiTConfig]
    others: dict[str, Part]


def open_release(path: Path, named: Named) -> WanCheckpoint:
    """A model out of an original folder or a file, with what was named, and what is found, for the rest of it.

    Raises:
        CheckpointError: a file is missing or damaged, or the parts do not fit one another.
    """
    found = _from_folder(path) if path.is_dir() else _from_file(path, named)
    check_experts(path, found.configs)
    dit = found.configs["transformer"]
    took: list[str] = []
    parts = dict(found.parts)
    if dit.image_dim is None and named.image_encoder is not None:
        raise CheckpointError(f"--image-encoder {named.image_encoder}: the model {path} takes no image encoder.")
    for kind in ("vae", "text_encoder", *(("image_encoder",) if dit.image_dim is not None else ())):
        given = getattr(named, kind)
        if given is not None:
            parts[kind] = _only(given, kind)
            _refuse_misfit(kind, parts[kind], dit)
        elif kind in found.others:
            parts[kind] = found.others[kind]
            _refuse_misfit(kind, parts[kind], dit)
        else:
            parts[kind] = _look_for(kind, path, dit)
            took.append(f"{kind.replace('_', ' ')}: {parts[kind].where}")
    vae, parts["vae"] = _vae(parts["vae"])
    check_channels(path, dit, vae)
    images = _images(parts["image_encoder"], path) if dit.image_dim is not None else None
    text = text_part(parts["text_encoder"])
    parts["text_encoder"] = text.part
    tokenizer = text.spiece or _tokenizer(path, text.part.where)
    if isinstance(tokenizer, Path) and tokenizer != text.part.where:
        took.append(f"tokenizer: {tokenizer}")
    boundary = _BOUNDARIES.get(dit.in_dim) if "transformer_2" in parts else None
    variant = variant_of(dit, vae, boundary, path)
    return WanCheckpoint(
        path=path,
        variant=variant,
        dit=dit,
        vae=vae,
        parts=parts,
        images=images,
        components={name: summarize(part.tensors.values()) for name, part in parts.items()},
        defaults=RELEASES.get(variant, Defaults()),
        boundary=boundary,
        expand_timesteps=vae.residual,
        known_frames=known_frames_of(dit, vae, expand_timesteps=vae.residual),
        layout=parts["transformer"].layout.name,
        took=tuple(took),
        tokenizer=tokenizer,
    )


def contents(path: Path) -> dict[str, Part]:
    """The components of a file, or the transformers of an original folder, whether they make a whole model or not.

    Raises:
        CheckpointError: what is there is damaged, or none of it is known.
    """
    if path.is_dir():
        return _from_folder(path).parts
    if found := split(path, read_tensors(path), KINDS):
        return found
    raise CheckpointError(f"{path}: {_UNKNOWN}.")


# Transformers.


def _from_folder(path: Path) -> _Transformers:
    """An original folder: one transformer, or two experts in folders of their own."""
    folders = {part: path / f"{word}_model" for part, word in _NOISE.items()}
    present = {part: folder for part, folder in folders.items() if folder.is_dir()}
    if len(present) == 1:
        missing = next(folder for part, folder in folders.items() if part not in present)
        raise CheckpointError(f"{path}: holds one expert of two; {missing.name}/ is missing.")
    parts, configs = {}, {}
    for part, folder in (present or {"transformer": path}).items():
        found = split(folder, peeled(read_headers(folder, _WEIGHTS), {}), {"transformer": LAYOUTS})
        parts[part] = _transformer(folder, found)
        configs[part] = _config(parts[part], folder / "config.json")
    return _Transformers(parts, configs, {})


def _from_file(path: Path, named: Named) -> _Transformers:
    """A file that holds a transformer, alone or with other parts, and the other expert where there is one."""
    found = split(path, read_tensors(path), KINDS)
    one = _transformer(path, found)
    others = {kind: part for kind, part in found.items() if kind != "transformer"}
    pair = _pair(path, named)
    if pair is None:
        return _Transformers({"transformer": one}, {"transformer": _config(one)}, others)
    parts = {part: one if file == path else _only(file, "transformer") for part, file in pair.items()}
    configs = {part: _config(each) for part, each in parts.items()}
    return _Transformers(parts, configs, others)


def _pair(path: Path, named: Named) -> dict[str, Path] | None:
    """The files of both experts: `--high-noise` beside `--model`, or the file whose name differs by that word alone."""
    high, low = _NOISE.values()
    if named.high_noise is not None:
        return {"transformer": named.high_noise, "transformer_2": path}
    for this, other, part in ((high, low, "transformer"), (low, high, "transformer_2")):
        if this in path.name:
            twin = path.with_name(path.name.replace(this, other))
            if not twin.is_file():
                raise CheckpointError(f"{path}: is one expert of two; the other one, {twin.name}, is not beside it.")
            files = {part: path, ({*_NOISE} - {part}).pop(): twin}
            return {name: files[name] for name in _NOISE}
    return None


def _transformer(where: Path, found: Mapping[str, Part]) -> Part:
    if "transformer" in found:
        return found["transformer"]
    if found:
        kind = next(iter(found))
        advice = f"pass the transformer's file as --model, and this one as {_OPTIONS[kind]}"
        raise CheckpointError(f"{where}: holds {_a(kind)} and no transformer; {advice}.")
    raise CheckpointError(f"{where}: {_UNKNOWN}.")


def _config(part: Part, file: Path | None = None) -> DiTConfig:
    """The configuration from the shapes, with what an original config.json adds."""
    if file is not None and file.is_file():
        return dit_from_original(file, read_json(file), part.shapes)
    return dit_from_shapes(part.where, part.shapes)


def _only(file: Path, kind: str) -> Part:
    """The part of a kind in a file that was named for it."""
    tensors = read_tensors(file)
    found = split(file, tensors, KINDS)
    if kind not in found:
        raise CheckpointError(f"{file}: must hold {_a(kind)}, and holds {_content(found, tensors)}.")
    return found[kind]


def _a(kind: str) -> str:
    """A kind of part in words, with its article."""
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind.replace('_', ' ')}"


def _content(found: Mapping[str, Part], names: Iterable[str]) -> str:
    """What a file holds that is not what it should, in words."""
    if found:
        return _a(next(iter(found)))
    text = any(name.startswith("text_model.") for name in names)
    return "the text encoder of a CLIP" if text else "none that is known"


# What goes with them.


def _vae(part: Part) -> tuple[VAEConfig, Part]:
    """The autoencoder's configuration, and it with the table of its names."""
    config = part.where.with_name("config.json")
    if part.layout is DIFFUSERS_NAMES and part.where.is_file() and config.is_file():
        vae = from_diffusers_config(read_json(config))
        return vae, replace(part, layout=diffusers_layout(vae))
    if part.layout is DIFFUSERS_NAMES:
        residual = any(".upsampler." in name or ".downsampler." in name for name in part.tensors)
        layout = diffusers_layout(WAN_2_2_VAE if residual else WAN_2_1_VAE)
        named = replace(part, layout=layout)
        vae = vae_from_shapes(part.where, named.shapes)
        return vae, replace(part, layout=diffusers_layout(vae))
    vae = vae_from_shapes(part.where, {name: info.shape for name, info in part.tensors.items()})
    return vae, replace(part, layout=original_layout(vae))


def _images(part: Part, path: Path) -> ImageConfig:
    """The image encoder's configuration: what is beside it in a diffusers folder, or else what its shapes tell.

    Pictures are prepared as an image_processor/ of the model or beside the encoder says, or else as by the release.
    """
    near = [path, *part.where.parents[:2]]
    preparation = next((found for place in near if (found := read_preparation(place / "image_processor"))), None)
    config = part.where.with_name("config.json")
    if part.layout is PLAIN and config.is_file() and (told := read_json(config)).get("model_type") == _VISION:
        return image_config_of(told, preparation)
    return image_config_of(image_fields(part), preparation)


def _misfit(kind: str, part: Part, dit: DiTConfig) -> str | None:
    """What keeps a part from this transformer, in words."""
    if kind == "vae":
        channels = _vae(part)[0].z_dim
        return None if channels == dit.out_dim else f"its latents have {channels} channels, not {dit.out_dim}"
    if kind == "image_encoder":
        return _images_misfit(part, dit)
    width = text_width(part)
    return None if width == dit.text_dim else f"its embeddings are {width} wide, not {dit.text_dim}"


def _images_misfit(part: Part, dit: DiTConfig) -> str | None:
    rows, width = image_rows(part)
    if width != dit.image_dim:
        return f"its rows are {width} wide, not {dit.image_dim}"
    if dit.emb_pos not in (None, 2 * rows):
        return f"two pictures become {2 * rows} rows, not {dit.emb_pos}"
    return None


def _refuse_misfit(kind: str, part: Part, dit: DiTConfig) -> None:
    if problem := _misfit(kind, part, dit):
        raise CheckpointError(f"{part.where}: does not fit this transformer: {problem}.")


def _look_for(kind: str, path: Path, dit: DiTConfig) -> Part:
    """The first part of a kind that fits, of the places where people keep them."""
    problems = []
    for file in _candidates(kind, path):
        try:
            found = split(file, read_tensors(file), KINDS)
            problem = _misfit(kind, found[kind], dit) if kind in found else f"it holds no {kind.replace('_', ' ')}"
        except CheckpointError as error:
            problem = str(error).removeprefix(f"{file}: ").rstrip(".")
        if problem is None:
            return found[kind]
        problems.append(f"{file}: {problem}")
    tried = f" ({'; '.join(problems[:2])})" if problems else ""
    raise CheckpointError(
        f"{path}: its {kind.replace('_', ' ')} is not beside it{tried}; name it with {_OPTIONS[kind]}."
    )


def _candidates(kind: str, path: Path) -> Iterator[Path]:
    """Files whose names say that they may be it, nearest first."""
    seen: set[Path] = set()
    for folder in places(path, _FOLDERS[kind]):
        for file in sorted(folder.iterdir()) if folder.is_dir() else []:
            likely = _WORDS[kind] in file.name.lower() and file.suffix.lower() in SUFFIXES
            if likely and file != path and file not in seen:
                seen.add(file)
                yield file


def _tokenizer(path: Path, text: Path) -> Path:
    """The folder or the GGUF file that holds the tokenizer of a text encoder without one of its own."""
    if text.suffix.lower() == ".gguf" and gguf_field(text, "tokenizer.ggml.tokens"):
        return text
    near = [text if text.is_dir() else text.parent, *places(path, ("tokenizer",))]
    for folder in near:
        for place in (folder, *(folder / name for name in _TOKENIZERS)):
            if has_tokenizer(place):
                return place
    advice = "put its tokenizer.json or spiece.model beside it (of google/umt5-xxl)"
    raise CheckpointError(f"{text}: carries no tokenizer, and there is none near it; {advice}.")


def places(path: Path, names: tuple[str, ...]) -> Iterator[Path]:
    """The folders in which what goes with a model may lie, nearest first: its own, those of the given names beside
    ComfyUI's folder of models, in weights/, and in the Hugging Face cache."""
    base = path if path.is_dir() else path.parent
    yield base
    roots = [base]
    comfy = next((parent for parent in base.resolve().parents if parent.name in _MODELS), None)
    if base.resolve().name in _MODELS:
        comfy = base.resolve()
    if comfy is not None:
        roots.append(comfy.parent)
    for root in (*roots, Path("weights"), *(snapshot / "split_files" for snapshot in cached_snapshots())):
        yield from (root / name for name in names)
    yield Path("weights")
    yield from cached_snapshots()
