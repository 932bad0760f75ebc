"""`dvgen models`: the models on this machine that `--model` opens, and what others lack."""

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from dit_video.checkpoints.files import read_json
from dit_video.checkpoints.places import SUFFIXES, cached_snapshots, find_checkpoint, is_diffusers, is_model
from dit_video.errors import CheckpointError, DvgenError
from dvgen import console, options
from dvgen.download import size

if TYPE_CHECKING:
    from dit_video.checkpoints.headers import Summary

DEPTH = 6  # of folders in weights/: ComfyUI's are weights/ComfyUI/models/diffusion_models/ and one of the user's own
_LORA = "LoRA"
_GROUPS = {"model": "models", "part": "parts", "unknown": "unknown"}
_BROKEN = (DvgenError, OSError, ValueError, TypeError, LookupError, AttributeError)
"""What opening a file can end with: one whose fields are of wrong types must not end the whole list."""

_COLUMNS = ("name", "family", "variant", "layout", "dtype", "size", "missing")


@dataclass(frozen=True, kw_only=True)
class Found:
    """Something that lies where models do.

    name: what --model takes. kind: "model"; "part", which a model needs or is changed by; or "unknown". variant: of a
    part, what it is. dtype: that most bytes of the transformer, or of the part, are in. bytes: of all that is there of
    it, also in other files. missing: what keeps it from being run, in words; None of a model that can be.
    """

    name: str
    path: Path
    kind: str = "model"
    family: str | None = None
    variant: str | None = None
    layout: str | None = None
    dtype: str | None = None
    quantised: bool = False
    bytes: int = 0
    missing: str | None = None


def models(as_json: Annotated[bool, options.option("--json", None, "Print one JSON object.")] = False) -> None:
    """List the models that --model opens: the shipped one, those in weights/, and those in the Hugging Face cache.

    Only headers are read. What lacks something is listed with what it lacks, and files that are parts of models apart.
    """
    found = list(_found())
    if as_json:
        console.result(json.dumps({group: _objects(found, kind) for kind, group in _GROUPS.items()}))
    elif console.is_terminal(sys.stdout):
        _draw(found)
    else:
        console.result("\n".join(_lines(found)))


# Looking.


def _found() -> Iterator[Found]:
    """Everything, each once; of two experts in two files the first."""
    seen: set[Any] = set()
    for name, place, ours in _places():
        place_itself = place.resolve()
        if place_itself in seen:
            continue
        seen.add(place_itself)
        found, transformers = _describe(name, place)
        foreign = found.kind == "unknown" or (found.kind == "model" and not found.family) or found.variant == _LORA
        if foreign and not ours:  # the cache is full of models for other programs
            continue
        if transformers and transformers in seen:
            continue
        seen.add(transformers)
        yield found


def _places() -> Iterator[tuple[str, Path, bool]]:
    """Names for --model, what they stand for, and whether it is there for us alone."""
    try:
        default = find_checkpoint("default")
    except CheckpointError:
        default = None
    if default is not None:
        yield "default", default, True
        for place in _walk(default.parent):
            yield _short(place.name, place), place, True
    for place in _walk(Path("weights")):
        yield str(place), place, True
    for snapshot in cached_snapshots():
        repository = snapshot.parents[1].name.removeprefix("models--").replace("--", "/")
        for place in _walk(snapshot):
            yield _short(repository, place), place, False


def _walk(folder: Path, depth: int = DEPTH) -> Iterator[Path]:
    """The models in a folder, or the folder itself; nothing is looked for inside a model."""
    if is_model(folder):
        yield folder
        return
    try:
        entries = sorted(folder.iterdir()) if folder.is_dir() else []
    except OSError:  # not ours to read
        return
    for entry in entries:
        if entry.is_dir() and depth and not entry.name.startswith("."):
            yield from _walk(entry, depth - 1)
        elif is_model(entry) and not entry.name.startswith("."):
            yield entry


def _short(name: str, place: Path) -> str:
    """A name that --model takes for this place: the short one, where it stands for it, or else its path."""
    try:
        return name if find_checkpoint(name) == place else str(place)
    except CheckpointError:
        return str(place)


# Describing.


def _describe(name: str, place: Path) -> tuple[Found, frozenset[Path]]:
    """What a place holds, and where its transformers are."""
    from dit_video.models import contents, open_checkpoint

    try:
        if place.is_file() and (part := _part(name, place)) is not None:
            return part, frozenset()
        whole = open_checkpoint(place)
    except _BROKEN as error:
        missing = _words(error, place)
    else:
        about = {"family": whole.family, "variant": whole.variant, "layout": whole.layout} | _summary(whole.components)
        where = frozenset(part.where for kind, part in whole.parts.items() if kind.startswith("transformer"))
        return Found(name=name, path=place, **about), where
    if is_diffusers(place):
        about = {"family": _family(place), "layout": "diffusers", "bytes": _bytes(place)}
        return Found(name=name, path=place, missing=missing, **about), frozenset()
    try:
        parts = contents(place)
    except _BROKEN:
        return Found(name=name, path=place, kind="unknown", bytes=_bytes(place), missing=missing), frozenset()
    about = _summary({kind: part.summary for kind, part in parts.items()})
    layout = parts["transformer"].layout.name
    return Found(name=name, path=place, family="wan", layout=layout, missing=missing, **about), frozenset()


def _words(error: Exception, place: Path) -> str:
    """What keeps a place from being opened, in short."""
    if isinstance(error, DvgenError):
        return str(error).removeprefix(f"{place}: ").removeprefix(f"{place}/")
    return f"a file in it is damaged ({type(error).__name__}: {error})."


def _part(name: str, file: Path) -> Found | None:
    """A file that is no model of its own; None for one that holds a transformer.

    Raises:
        CheckpointError: it is damaged, or none of it is known.
    """
    from dit_video.checkpoints.lora import read_lora
    from dit_video.models import contents

    try:
        parts = contents(file)
    except CheckpointError:
        try:
            changes = read_lora(file).changes
        except CheckpointError:
            changes = ()
        if not changes:
            raise
        return Found(name=name, path=file, kind="part", variant=_LORA, bytes=_bytes(file))
    if "transformer" in parts:
        return None
    what = " and ".join(kind.replace("_", " ") for kind in parts)
    layout = "/".join(sorted({part.layout.name for part in parts.values()}))
    family = "wan" if "vae" in parts else None  # text encoders serve many
    about = _summary({kind: part.summary for kind, part in parts.items()})
    return Found(name=name, path=file, kind="part", family=family, variant=what, layout=layout, **about)


def _summary(components: "Mapping[str, Summary]") -> dict[str, Any]:
    """The dtype of the first component, and the bytes of all."""
    first = components.get("transformer") or next(iter(components.values()))
    dtype = first.dtypes[0] if first.dtypes else None
    total = sum(component.nbytes for component in components.values())
    return {"dtype": dtype, "quantised": dtype in first.quantised, "bytes": total}


def _family(folder: Path) -> str | None:
    """The family of a diffusers folder that does not open, by the class of its pipeline."""
    try:
        pipeline = read_json(folder / "model_index.json").get("_class_name")
    except CheckpointError:
        return None
    return "wan" if str(pipeline).startswith("Wan") else None


def _bytes(place: Path) -> int:
    """Of the files of tensors in a place."""
    files = [place] if place.is_file() else [file for file in place.rglob("*") if file.suffix.lower() in SUFFIXES]
    try:
        return sum(file.stat().st_size for file in files if file.is_file())
    except OSError:
        return 0


# Showing.


def _objects(found: list[Found], kind: str) -> list[dict[str, Any]]:
    return [
        {key: str(value) if key == "path" else value for key, value in asdict(each).items() if key != "kind"}
        for each in found
        if each.kind == kind
    ]


def _cells(found: Found) -> list[str]:
    """In the order of `_COLUMNS`."""
    dtype = f"{found.dtype}{' quantised' * found.quantised}" if found.dtype else None
    cells = (found.name, found.family, found.variant, found.layout, dtype, size(found.bytes), found.missing)
    return [cell or "" for cell in cells]


def _lines(found: list[Found]) -> Iterator[str]:
    """A line for each, its kind first, in columns; "-" for what is not known, nothing where nothing is missing."""
    rows = [[each.kind, *_cells(each)] for each in found]
    rows = [[*(cell or "-" for cell in row[:-1]), row[-1]] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _draw(found: list[Found]) -> None:
    """Tables, without the columns that are empty; what is missing is a sentence, and stands below."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    screen = Console()
    for kind, title in _GROUPS.items():
        group = [each for each in found if each.kind == kind]
        rows = [_cells(each) for each in group]
        used = [number for number in range(len(_COLUMNS) - 1) if any(row[number] for row in rows)]
        table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        for number in used:
            justify: Literal["left", "right"] = "right" if _COLUMNS[number] == "size" else "left"
            table.add_column(_COLUMNS[number], overflow="fold", justify=justify)
        for row in rows:
            table.add_row(*(Text(row[number]) for number in used))  # not markup: names may have brackets
        if rows:
            screen.print(table)
        for each in group:
            if each.missing:
                screen.print(Text(f"{each.name}: {each.missing}"))
