"""`dvgen info`: what a checkpoint or a video file holds."""

import json
import shlex
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_video.checkpoints.hashes import kept_hash, together
from dit_video.checkpoints.headers import read_header, read_metadata
from dit_video.checkpoints.places import find_checkpoint, is_diffusers, is_model
from dit_video.errors import CheckpointError, MediaError
from dit_video.video.output import SUFFIXES
from dvgen import console, options
from dvgen.recipe import read_recipe

if TYPE_CHECKING:
    from dit_video.checkpoints.parts import Part

_FORMATS = {"mjpeg": "jpeg", "av1": "avif"}  # of pictures, where ffmpeg's name of the coding is another


def info(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH|NAME",
            help='A checkpoint (folder, file, or name such as "default"), a video or a picture.',
            show_default=False,
        ),
    ],
    hashes: Annotated[
        bool, options.option("--hash", None, "Also the SHA-256 of every file; kept, so that it is read once.")
    ] = False,
    as_json: Annotated[bool, options.option("--json", None, "Print one JSON object.")] = False,
) -> None:
    """Show what a checkpoint is and knows, from its headers alone, or the size and coding of a video or picture."""
    file = Path(path)
    if kept := _latents(file):
        facts = kept
    else:
        facts = _checkpoint(path, hashes) if not file.is_file() or is_model(file) else _video(file)
    if hashes and "sha256" not in facts:
        facts["sha256"] = {str(file): kept_hash(file)}
    console.result(json.dumps(facts, default=str) if as_json else _lines(facts))


def _latents(file: Path) -> dict[str, Any] | None:
    """What a file of latents says of itself, see `dvgen decode`; None of any other file."""
    if not file.is_file() or file.suffix.lower() != ".safetensors":
        return None
    with suppress(CheckpointError, KeyError):
        tensors, about = read_header(file), read_metadata(file)
        if set(tensors) == {"latents"}:
            names = ("width", "height", "frames", "fps", "seed", "model", "prompt")
            return {"path": str(file), "latents": tensors["latents"].shape, **{name: about[name] for name in names}}
    return None


def _video(path: Path) -> dict[str, Any]:
    from dit_video.video.io import probe

    if path.suffix.lower() in (".json", ".toml"):
        raise MediaError(f"{path}: is not a video ({', '.join(SUFFIXES)}) nor a checkpoint; pass the folder.")
    if _is_text(path):  # which ffmpeg draws as a terminal would
        raise MediaError(f"{path}: is text, not a video ({', '.join(SUFFIXES)}) nor a checkpoint.")
    found, recipe = probe(path), read_recipe(path)
    made = {"recipe": asdict(recipe)} if recipe else {}
    if found.seconds is None:
        size = {"width": found.width, "height": found.height, "frames": found.frames}
        return {"path": str(path), **size, "format": _FORMATS.get(found.codec, found.codec), **made}
    return {"path": str(path), **asdict(found), "seconds": round(found.seconds, 3), **made}


def _is_text(path: Path) -> bool:
    with path.open("rb") as file:
        begin = file.read(1024)
    with suppress(UnicodeDecodeError):
        return bool(begin) and "\0" not in begin.decode() and not begin.startswith(b"<svg")
    return False


def _checkpoint(name: str, hashes: bool) -> dict[str, Any]:
    place = find_checkpoint(name)  # a wrong name is said before torch loads
    from dit_video.models import contents, open_checkpoint

    try:
        found = open_checkpoint(name)
    except CheckpointError as error:
        if is_diffusers(place):
            raise
        parts = contents(place)
        found_files = sorted({info.file for part in parts.values() for info in part.tensors.values()})
        digests = {"sha256": {str(file): kept_hash(file) for file in found_files}} if hashes else {}
        return _parts(place, parts) | {"missing": str(error).removeprefix(f"{place}: ")} | digests
    made: dict[str, Any] = {}
    if hashes:
        made["sha256"] = {str(file): kept_hash(file) for file in sorted(found.files)}
        made["content"] = together(found.files, kept_hash)
    return {
        "path": str(found.path),
        "family": found.family,
        "layout": found.layout,
        "variant": found.variant,
        "components": {part: asdict(summary) for part, summary in found.components.items()},
        "took": found.took,
        "transformer": asdict(found.dit),
        "grid": {"stride": found.grid.stride, "patch": found.grid.patch, "latent_channels": found.latent_channels},
        "boundary": found.boundary,
        "known_frames": found.known_frames,
        "trained_on": {"shorter_side": found.trained_sides, "frames": found.trained_frames},
        "defaults": asdict(found.defaults),
        "knows": dict(found.knows),
        **made,
    }


def _parts(place: Path, parts: "Mapping[str, Part]") -> dict[str, Any]:
    """What is there of a model that is not whole."""
    layouts = {part.layout.name for part in parts.values()}
    return {
        "path": str(place),
        "family": "wan",
        "layout": "/".join(sorted(layouts)),
        "components": {kind: asdict(part.summary) for kind, part in parts.items()},
    }


def _lines(facts: dict[str, Any]) -> str:
    """The facts as text: one line each, lists of words joined, what is empty left out."""
    lines = []
    for key, value in facts.items():
        if value is None or value is False or value in ({}, ()):
            continue
        if key == "recipe":
            lines.append(f"{'recipe':12} dvgen {shlex.join(value['line'])}")
            lines.append(f"{'made by':12} {_pairs(value['versions'])}")
        elif key == "sha256":
            lines += [f"{digest}  {file}" for file, digest in value.items()]  # as sha256sum writes it
        elif key == "took":
            lines += [f"{key:12} {part}" for part in value]
        elif not isinstance(value, dict):
            lines.append(f"{key:12} {_text(value)}")
        elif key == "components":
            lines += [f"{part:12} {_weights(summary)}" for part, summary in value.items()]
        elif key == "transformer":
            lines.append(f"{'config':12} {_pairs(value)}")
        elif key == "trained_on":
            known = {of: f"{ends[0]} to {ends[1]}" for of, ends in value.items() if ends}
            lines += [f"{'trained on':12} {_pairs(known)}"] * bool(known)
        elif key == "knows":
            lines += [f"{'knows':12} {kind}: {', '.join(words)}" for kind, words in value.items()]
        else:
            lines.append(f"{key:12} {_pairs(value)}")
    return "\n".join(lines)


def _weights(summary: dict[str, Any]) -> str:
    size, unit = summary["parameters"] / 1e6, "million"
    if size >= 1000:
        size, unit = size / 1000, "billion"
    dtypes = [dtype + " quantised" * (dtype in summary["quantised"]) for dtype in summary["dtypes"]]
    return f"{size:.3g} {unit} parameters, {'/'.join(dtypes)}, {summary['nbytes'] / 1e6:,.1f} MB"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {_text(value)}" for key, value in values.items() if value not in (None, ""))


def _text(value: Any) -> str:
    if isinstance(value, tuple | list):
        return (
            "x".join(map(_text, value)) if all(isinstance(item, int) for item in value) else ",".join(map(_text, value))
        )
    if value is True:
        return "yes"
    return f"{value:g}" if isinstance(value, float) else str(value)
