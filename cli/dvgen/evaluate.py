"""`dvgen eval`: how often a model shows what its prompt says."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_video.atomic import replacing
from dit_video.checkpoints.files import find_checkpoint
from dit_video.errors import UsageError
from dit_video.shapes import VideoShape, parse_size
from dvgen import console, options

if TYPE_CHECKING:
    from dit_video.generate import Settings
    from dit_video.models.wan.defaults import Defaults

MAX_PROMPTS = 100_000
SPLITS = ("held-out", "training")
Text = str | None


def _option(names: str, metavar: str | None, text: str) -> Any:
    return typer.Option(*names.split(), metavar=metavar or "", help=text)


def evaluate(
    model: Annotated[str, _option("--model -m", "NAME|PATH", "A diffusers folder that learnt the world.")] = "default",
    prompts: Annotated[str, _option("--prompts", "N", "How many of the fixed prompts.")] = "300",
    split: Annotated[
        str, _option("--split", "NAME", "held-out: combinations and wordings new to the model; or training.")
    ] = "held-out",
    size: Annotated[str, _option("--size", "WxH", "Size of every clip.")] = "256x144",
    frames: Annotated[str, _option("--frames", "N", "Length of every clip.")] = "24",
    seed: Annotated[str, _option("--seed", "N", "Of the first clip; the others count up.")] = "0",
    steps: Annotated[Text, _option("--steps", "N", "This and the next three: the checkpoint's own without.")] = None,
    solver: Annotated[Text, _option("--solver", "NAME", f"{', '.join(options.SOLVERS)}.")] = None,
    shift: Annotated[Text, _option("--shift", "F", "Above 1: more of the steps at high noise.")] = None,
    guidance: Annotated[Text, _option("--guidance", "F", "Guidance scale; 1 is none.")] = None,
    reconstruct: Annotated[bool, _option("--reconstruct", None, "The autoencoder alone, on the true scenes.")] = False,
    as_json: Annotated[Path | None, _option("--json", "FILE.json", "Also write the rates and every answer.")] = None,
    sheet: Annotated[
        Path | None, _option("--sheet", "FILE.png", "Also draw the first clips, right ones green.")
    ] = None,
    overwrite: Annotated[bool, _option("--overwrite", None, "Replace files that exist.")] = False,
    dtype: Annotated[str, _option("--dtype", "NAME", "float32, bfloat16 or float16, for every stage.")] = "auto",
    device: Annotated[str, _option("--device", "NAME", "cpu, cuda or mps.")] = "auto",
    quiet: Annotated[bool, _option("--quiet -q", None, "Print errors and the table only.")] = False,
) -> None:
    """Sample fixed prompts and score them with the detector; what it cannot tell counts as wrong."""
    count = options.whole("--prompts", prompts, 1, MAX_PROMPTS)
    width, height = parse_size(size)
    shape = VideoShape(num_frames=options.frames(frames), height=height, width=width)
    scale = options.given(guidance, options.guidance)
    if scale and len(scale) > 1:
        raise UsageError(f"--guidance {guidance}: eval takes one scale; the nearest is {scale[0]:g}.")
    overrides = {
        "steps": options.given(steps, options.steps),
        "solver": options.given(solver, options.solver),
        "shift": options.given(shift, options.shift),
        "guidance": scale,
    }
    first_seed = options.whole("--seed", seed, 0, options.MAX_SEED - MAX_PROMPTS)
    if reconstruct and any(value is not None for value in overrides.values()):
        unused = next(name for name, value in overrides.items() if value is not None)
        raise UsageError(f"--reconstruct and --{unused}: only one of the two can be given; nothing is denoised.")
    options.choice("--split", split, SPLITS)
    options.choice("--dtype", dtype, options.DTYPES)
    options.choice("--device", device, options.DEVICES)
    for option, path, suffix in (("--json", as_json, ".json"), ("--sheet", sheet, ".png")):
        if path:
            options.check_file(option, path, (suffix,), overwrite=overwrite)
    find_checkpoint(model)

    from dit_video import evaluate as evaluation
    from dit_video.generate import Stages, explained_memory
    from dit_video.machine import available_memory, pick_device, pick_dtype
    from dit_video.models import open_checkpoint
    from dit_video.plan import check_memory

    checkpoint = open_checkpoint(model)
    place = pick_device(device)
    kind = pick_dtype(dtype, place)
    check_memory(checkpoint, shape, itemsize=kind.itemsize, available=available_memory(place))
    with console.Speaker(quiet=quiet) as speaker, explained_memory(shape):
        stages = Stages(checkpoint, dtype=kind, device=place, keep=True, note=speaker.note)
        questions = evaluation.fixed_questions(count, shape, split=split, first_seed=first_seed)
        if reconstruct:
            answers, strips = evaluation.reconstruct(stages, questions, shape, progress=speaker.progress)
        else:
            settings = _settings(checkpoint.defaults, overrides)
            answers, strips = evaluation.evaluate(
                stages,
                questions,
                shape,
                settings,
                negative=checkpoint.defaults.negative,
                progress=speaker.progress,
            )
    if as_json:
        with replacing(as_json) as part:
            part.write_text(json.dumps(evaluation.report(answers), indent=1) + "\n")
    if sheet:
        evaluation.save_sheet(sheet, answers, strips, overwrite=overwrite)
    console.result(evaluation.table(answers))


def _settings(defaults: "Defaults", overrides: dict) -> "Settings":
    from dit_video.generate import Settings

    values = {name: getattr(defaults, name) for name in ("steps", "solver", "sigmas", "shift", "guidance")}
    return Settings(**values | {name: value for name, value in overrides.items() if value is not None})
