"""Where models lie: by path, among those that ship with dvgen, and in the Hugging Face cache.

Nothing here imports torch: a name that is wrong is said at once.
"""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dit_video.errors import CheckpointError

SUFFIXES = (".safetensors", ".sft", ".gguf", ".pth", ".pt", ".bin")
"""Of the files of tensors that can be read."""

_PACKAGE = Path(__file__).resolve().parent.parent
_KINDS = (
    "a model is 'default', 'distilled', a diffusers folder, an original one, a file, or a name in the "
    "Hugging Face cache"
)
_ORIGINAL = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.safetensors.index.json")


@dataclass(frozen=True, kw_only=True)
class Named:
    """The files that were named for parts of a model, beside the one of its transformer (of the low-noise expert)."""

    vae: Path | None = None
    text_encoder: Path | None = None
    image_encoder: Path | None = None
    high_noise: Path | None = None

    def check(self, model: Path) -> None:
        """Refuses files that are not there or cannot be read, and any where the model is a diffusers folder.

        Raises:
            CheckpointError: so it is.
        """
        for part, file in vars(self).items():
            if file is None:
                continue
            given = f"--{part.replace('_', '-')} {file}"
            if not file.exists():
                raise CheckpointError(f"{given}: there is no such file.")
            if not file.is_file() or file.suffix.lower() not in SUFFIXES:
                raise CheckpointError(f"{given}: must be a file that ends in {', '.join(SUFFIXES)}.")
            if is_diffusers(model):
                raise CheckpointError(f"{given}: the model {model} is a diffusers folder, which has all of its parts.")


def find_checkpoint(name: str | Path | None = None) -> Path:
    """Where a checkpoint lies: a path, the name of one that ships ("default", also for None), or a cached one.

    Shipped ones lie in the package (`dit_video/_weights/NAME`, a wheel) or beside it (`weights/NAME`, a checkout).

    Raises:
        CheckpointError: there is none.
    """
    name = "default" if name is None else name
    if not str(name).strip():
        raise CheckpointError(f"model {str(name)!r}: must not be empty; {_KINDS}.")
    shipped = [_PACKAGE / "_weights" / name, _PACKAGE.parent / "weights" / name]
    places = shipped if str(name) == "default" else [Path(name), *shipped]
    for place in places:
        if is_model(place):
            return place
    if str(name) == "default":
        raise CheckpointError(
            f"the default checkpoint is neither in {places[0]} nor in {places[1]}; pass --model with the path of one."
        )
    if Path(name).is_file():
        raise CheckpointError(f"{name}: is none of the formats that are read, which end in {', '.join(SUFFIXES)}.")
    if Path(name).exists():
        raise CheckpointError(f"{name}: holds no model_index.json and no {_ORIGINAL[0]}; {_KINDS}.")
    if (cached := _cached(str(name))) is not None:
        return cached
    names = {"default", *(place.name for folder in shipped for place in folder.parent.glob("*") if is_model(place))}
    near = difflib.get_close_matches(str(name), sorted(names), n=1)
    nearest = f"; the nearest is {near[0]}" if near else ""
    fetched = f"; `dvgen download {name}` fetches it if the Hugging Face hub has it" if _on_hub(str(name)) else ""
    raise CheckpointError(f"{name}: there is no such file or folder{nearest}; {_KINDS}{fetched}.")


def is_model(place: Path) -> bool:
    """Whether this may be opened: a folder of diffusers or of the original release, or a file of tensors."""
    if place.is_file():
        return place.suffix.lower() in SUFFIXES
    return is_diffusers(place) or any((place / name).is_file() for name in _ORIGINAL) or has_experts(place)


def is_diffusers(place: Path) -> bool:
    """Whether this is a diffusers folder."""
    return (place / "model_index.json").is_file()


def comfy_name(folder: Path) -> str:
    """What the files of a model are called in ComfyUI's folders, after the folder that these lie in.

    "high_noise" and "low_noise" in a file's name are kept for the two experts of one model.
    """
    return re.sub(r"(high|low)_(noise)", r"\1-\2", folder.resolve().name, flags=re.IGNORECASE)


def has_experts(place: Path) -> bool:
    """Whether this is an original folder of two experts."""
    return (place / "high_noise_model").is_dir() or (place / "low_noise_model").is_dir()


def _cached(name: str) -> Path | None:
    """The newest snapshot of a repository that huggingface_hub downloaded, if it may be opened."""
    snapshots = [place for place in cached_snapshots(name) if is_model(place)]
    return snapshots[0] if snapshots else None


def cached_snapshots(name: str | None = None) -> Iterator[Path]:
    """The folders of what huggingface_hub downloaded, of one repository "OWNER/NAME" or of all; the main one first."""
    from huggingface_hub.constants import HF_HUB_CACHE

    cache = Path(HF_HUB_CACHE)
    pattern = "models--*" if name is None else "models--" + name.replace("/", "--")
    if not cache.is_dir() or any(c in pattern[8:] for c in ("..", "\\")):
        return
    for repository in sorted(cache.glob(pattern)):
        main = repository / "refs" / "main"
        first = repository / "snapshots" / main.read_text().strip() if main.is_file() else None
        if first is not None and first.is_dir():
            yield first
        yield from (each for each in sorted((repository / "snapshots").glob("*")) if each != first and each.is_dir())


def _on_hub(name: str) -> bool:
    """Whether a name that is not found here looks like one that `dvgen download` knows, not like a path."""
    from dit_video.checkpoints.hub import KNOWN

    owner, slash, rest = name.partition("/")
    like_a_path = owner in ("", ".", "..", "~") or Path(owner).exists() or Path(name).suffix in SUFFIXES or "/" in rest
    return name.lower() in KNOWN or bool(slash and rest and not like_a_path)
