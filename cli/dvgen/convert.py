"""`dvgen convert`: a model written in another layout."""

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_video.checkpoints.places import Named, comfy_name, find_checkpoint, is_model
from dit_video.errors import CheckpointError
from dvgen import chosen, console, options
from dvgen.logs import with_logging

if TYPE_CHECKING:
    from dit_video.models.wan.convert import Conversion

LAYOUTS = ("diffusers", "original", "comfyui")
DTYPES = ("keep", "float32", "bfloat16", "float16")
COMFY_FOLDERS = ("diffusion_models", "vae", "text_encoders", "clip_vision")
_option = options.option


@with_logging
def convert(
    model: Annotated[
        str, typer.Argument(metavar="IN", help="The model: a folder, a file or a name.", show_default=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.", show_default=False)],
    layout: Annotated[str, _option("--layout", "NAME", f"{', '.join(LAYOUTS)}.", show_default=False, of="convert")],
    dtype: Annotated[
        str,
        _option("--dtype", "NAME", "float32, bfloat16 or float16, for every part; keep: as they are.", of="convert"),
    ] = "keep",
    vae: Annotated[
        Path | None, _option("--vae", "FILE", "The autoencoder of IN; looked for beside it without.", setting=False)
    ] = None,
    text_encoder: Annotated[
        Path | None, _option("--text-encoder", "FILE", "The text encoder, as --vae.", setting=False)
    ] = None,
    image_encoder: Annotated[
        Path | None, _option("--image-encoder", "FILE", "The image encoder, as --vae.", setting=False)
    ] = None,
    high_noise: Annotated[
        Path | None,
        _option(
            "--high-noise", "FILE", "The high-noise one of two transformers, where IN is the other.", setting=False
        ),
    ] = None,
    overwrite: Annotated[bool, _option("--overwrite", None, "Replace a model that is in OUT.")] = False,
    as_json: Annotated[bool, _option("--json", None, "Print one JSON object instead of the path.")] = False,
    quiet: Annotated[
        bool, _option("--quiet -q", None, "No progress and no notes; what is lost is said.", panel=options.MESSAGES)
    ] = False,
) -> None:
    """Write a model as a diffusers folder, as the original release's, or as files for ComfyUI."""
    options.choice("--layout", layout, LAYOUTS)
    options.choice("--dtype", dtype, DTYPES)
    check_folder(out, overwrite=overwrite)
    named = Named(vae=vae, text_encoder=text_encoder, image_encoder=image_encoder, high_noise=high_noise)
    named.check(find_checkpoint(model))  # a wrong name is said before torch loads
    with console.Speaker(quiet=quiet) as speaker:
        speaker.progress("load program", 0, 1)
        from dit_video.models import open_checkpoint
        from dit_video.models.wan.convert import convert

        speaker.progress("load program", 1, 1)
        checkpoint = open_checkpoint(model, named)
        chosen.tell(checkpoint, speaker.note, speaker.warn)
        conversion = convert(checkpoint, out, layout, dtype=dtype)
        conversion.write(speaker.progress)
        for note in _notes(conversion, dtype):
            speaker.note(note)
        for lost in conversion.lost:
            speaker.warn(lost)
    console.result(json.dumps(_facts(conversion, layout)) if as_json else str(out))


def check_folder(out: Path, *, overwrite: bool) -> None:
    """Refuses a folder that cannot be written, or that holds something else than a model.

    Raises:
        CheckpointError: so it is.
    """
    if out.name in ("", ".."):
        raise CheckpointError(f"{out}: must be a new folder; name one, such as {out / 'model'}.")
    if not out.parent.is_dir():
        raise CheckpointError(f"{out}: the folder {out.parent} does not exist; create it first.")
    if os.path.lexists(out):
        if not overwrite:
            raise CheckpointError(f"{out}: exists; choose another name or pass --overwrite.")
        if out.is_symlink() or not out.is_dir() or not _may_be_replaced(out):
            raise CheckpointError(f"{out}: exists and is no folder of one model; choose another name.")
    if not os.access(out.parent, os.W_OK | os.X_OK):
        raise CheckpointError(f"{out}: the folder {out.parent} is not writable; choose another one.")


def _may_be_replaced(out: Path) -> bool:
    """Whether it is empty, a diffusers or an original folder, or has ComfyUI's folders with this one model in them."""
    if is_model(out):
        return True
    name = comfy_name(out)
    for folder in out.iterdir():
        if folder.name not in COMFY_FOLDERS or not folder.is_dir():
            return False
        if any(not file.name.startswith((name, "tokenizer.json", "config.json")) for file in folder.iterdir()):
            return False
    return True


def _notes(conversion: "Conversion", dtype: str) -> list[str]:
    """What is to be said of a model that was written."""
    notes = list(conversion.notes)
    if conversion.dequantised:
        parts = [f"{part.replace('_', ' ')} ({'/'.join(kinds)})" for part, kinds in conversion.dequantised.items()]
        notes.append(f"dequantised to {'bfloat16' if dtype == 'keep' else dtype}: {', '.join(parts)}")
    if conversion.model != ".":
        notes.append(f"--model {conversion.out / conversion.model} opens it")
    return notes


def _facts(conversion: "Conversion", layout: str) -> dict[str, Any]:
    out = conversion.out
    return {
        "path": str(out),
        "layout": layout,
        "model": str(out / conversion.model),
        "files": {
            file.relative_to(out).as_posix(): file.stat().st_size for file in sorted(out.rglob("*")) if file.is_file()
        },
        "dequantised": conversion.dequantised,
        "lost": conversion.lost,
        "notes": conversion.notes,
    }
