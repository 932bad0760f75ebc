"""`dvgen decode`: the video of latents that were kept."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dit_video import limits
from dit_video.checkpoints.headers import read_header, read_metadata
from dit_video.checkpoints.places import find_checkpoint
from dit_video.errors import CheckpointError, UsageError
from dit_video.shapes import VideoShape
from dit_video.video.output import check_video
from dvgen import chosen, console, options
from dvgen.logs import with_logging
from dvgen.recipe import Recipe, parse

if TYPE_CHECKING:
    from dit_video.models.wan.pipeline import WanCheckpoint
    from dit_video.models.wan.random import RandomCheckpoint
    from dit_video.video.io import WrittenVideo


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A file of latents: (channels, frames, height, width) of them, and the video that they stand for.

    recipe: of that video, which is written into it.
    """

    latents: tuple[int, ...]
    shape: VideoShape
    fps: float
    model: str
    recipe: Recipe | None


@with_logging
def decode(
    latents: Annotated[
        Path, typer.Argument(metavar="LATENTS", help="A file of --keep-latents or --save-latents.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        options.option(
            "--output -o", "FILE", ".mp4, .webm, .gif, or .png for one frame.", show_default=False, setting=False
        ),
    ] = None,
    model: Annotated[
        str | None,
        options.option(
            "--model -m", "NAME|PATH", "Another place of the model that made them.", show_default=False, setting=False
        ),
    ] = None,
    overwrite: Annotated[bool, options.option("--overwrite", None, "Replace files that exist.")] = False,
    strict: Annotated[
        bool, options.option("--strict", None, "A video that is black, or in which nothing moves, is an error.")
    ] = False,
    dtype: Annotated[str, options.option("--dtype", "NAME", "float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, options.option("--device", "NAME", "cpu, cuda or mps.")] = "auto",
    memory: Annotated[
        str | None,
        options.option("--memory", "SIZE", "Such as 6GiB: frames are decoded in tiles.", show_default=False),
    ] = None,
    as_json: Annotated[bool, options.option("--json", None, "Print one JSON object instead of the path.")] = False,
    quiet: Annotated[
        bool, options.option("--quiet -q", None, "No progress and no notes.", panel=options.MESSAGES)
    ] = False,
) -> None:
    """Make the video of LATENTS, at the size, length and rate that they were made for.

    The model is that which made them; only its autoencoder is loaded.
    """
    kept = _read(latents, model)
    output = output or latents.with_suffix(".png" if kept.shape.num_frames == 1 else ".mp4")
    check_video(output, kept.shape.num_frames, fps=kept.fps, overwrite=overwrite, option="--output")
    options.choice("--dtype", dtype, limits.DTYPES)
    options.choice("--device", device, limits.DEVICES)
    limit = options.given(memory, options.memory)
    if kept.model != chosen.RANDOM:
        find_checkpoint(kept.model)
    with console.Speaker(quiet=quiet) as speaker:
        written = _decode(latents, kept, output, (device, dtype, limit), overwrite, strict, speaker)
    console.result(json.dumps(asdict(written), default=str) if as_json else str(written.path))


def _read(file: Path, model: str | None) -> Kept:
    """What a file says of itself. Raises CheckpointError, UsageError."""
    tensors, about = read_header(file), read_metadata(file)
    try:
        shape = VideoShape(num_frames=int(about["frames"]), height=int(about["height"]), width=int(about["width"]))
        found, fps = tensors["latents"].shape, float(about["fps"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{file}: is no file of latents that dvgen wrote.") from error
    model = model or about.get("model")
    if model is None:
        raise UsageError(f"{file}: does not say which model made it; name it with --model.")
    return Kept(latents=found, shape=shape, fps=fps, model=model, recipe=parse(about.get("comment")))


def _decode(
    file: Path,
    kept: Kept,
    output: Path,
    place: tuple[str, str, int | None],
    overwrite: bool,
    strict: bool,
    speaker: console.Speaker,
) -> "WrittenVideo":
    speaker.progress("load program", 0, 1)
    from dit_video.decode import write_decoded
    from dit_video.latents import read_latents
    from dit_video.machine import dtype_name, memory_for, pick_device, pick_dtype
    from dit_video.plan import decoding_tile
    from dit_video.stages import Stages, explained_memory

    checkpoint = _open(kept.model)
    speaker.progress("load program", 1, 1)
    grid = checkpoint.grid
    latent = grid.latent(kept.shape)
    wanted = (checkpoint.latent_channels, latent.frames, latent.height, latent.width)
    if kept.latents != wanted:
        rule = f"{kept.shape} has latents {list(wanted)} in the model {kept.model}"
        raise CheckpointError(f"{file}: holds latents {list(kept.latents)}; {rule}; name the one that made them.")
    device, recipe = pick_device(place[0]), kept.recipe
    as_it_was = recipe is not None and place[1] == "auto" and recipe.option("device") == device.type
    dtype = pick_dtype((recipe.option("dtype") if recipe and as_it_was else None) or place[1], device)
    tile = decoding_tile(checkpoint, kept.shape, itemsize=dtype.itemsize, available=memory_for(device, place[2]))
    stages = Stages(
        checkpoint, dtype=dtype, device=device, progress=speaker.progress, note=speaker.note, warn=speaker.warn
    )
    if recipe:
        its_tile = recipe.option("tile") or ""
        tile = tile or (int(its_tile) if its_tile.isdecimal() else None)
        recipe = recipe.with_tile(tile)
        if (recipe.option("device"), recipe.option("dtype")) != (device.type, dtype_name(dtype)):
            speaker.note("the recipe is not written into the video, as it names another device or dtype")
            recipe = None
    comment = recipe.text() if recipe else ""
    latents = read_latents(file).to(device)
    with explained_memory(kept.shape):
        return write_decoded(
            stages,
            latents,
            kept.shape,
            output,
            fps=kept.fps,
            overwrite=overwrite,
            tile=tile,
            strict=strict,
            comment=comment,
        )


def _open(name: str) -> "WanCheckpoint | RandomCheckpoint":
    return chosen.Chosen(name=name, named=chosen.Named(), loras=(), random=name == chosen.RANDOM).open()
