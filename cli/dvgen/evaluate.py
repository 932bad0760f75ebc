"""`dvgen eval`: how often a model shows what its prompt says."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from dit_video import limits
from dit_video.atomic import replacing
from dit_video.checkpoints.lora import Lora
from dit_video.checkpoints.places import find_checkpoint
from dit_video.errors import UsageError
from dit_video.shapes import VideoShape, parse_size
from dit_video.video.output import check_file
from dvgen import console, loras, options
from dvgen.chosen import complete
from dvgen.logs import with_logging

if TYPE_CHECKING:
    from numpy import ndarray

    from dit_video.clip import Settings
    from dit_video.evaluate import Answer
    from dit_video.models.wan.defaults import Defaults

MAX_PROMPTS = 100_000
MAX_OBJECTS = 2  # that the world's clips have
MIN_FRAMES = 12  # that show a motion before a seam and behind it
SPLITS = ("held-out", "training")
FRAMES = {"text": 24, "image": 24, "extend": 48, "connect": 36, "edit": 24}  # by mode, where nothing is said
Text = str | None
_option = options.option


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked command line; `overrides` holds the settings that were given, by their names in `Settings`."""

    model: str
    loras: tuple[Lora, ...]
    count: int
    split: str
    mode: str
    objects: int
    shape: VideoShape
    first_seed: int
    overrides: dict[str, Any]
    reconstruct: bool
    dtype: str
    device: str


@with_logging
def evaluate(
    model: Annotated[
        str,
        _option(
            "--model -m", "NAME|PATH", "A diffusers folder that learnt the world.", complete=complete, panel="Files"
        ),
    ] = "default",
    lora: Annotated[
        list[str] | None, _option("--lora", "FILE[:STRENGTH]", loras.HELP, show_default=False, panel="Files")
    ] = None,
    prompts: Annotated[
        str, _option("--prompts", "N", "How many of the fixed prompts.", of="eval", panel="Questions")
    ] = "300",
    split: Annotated[
        str,
        _option(
            "--split",
            "NAME",
            "held-out: combinations and wordings new to the model; or training.",
            of="eval",
            panel="Questions",
        ),
    ] = "held-out",
    mode: Annotated[
        str, _option("--mode", "NAME", f"What is asked for: {', '.join(FRAMES)}.", of="eval", panel="Questions")
    ] = "text",
    objects: Annotated[
        str, _option("--objects", "1|2", "Things in every clip; 2: right when both are.", of="eval", panel="Questions")
    ] = "1",
    size: Annotated[str, _option("--size", "WxH", "Size of every clip.", of="eval", panel="Questions")] = "256x144",
    frames: Annotated[
        Text,
        _option(
            "--frames",
            "N",
            "Length of every clip; 24, of extend 48, half of it given, of connect 36.",
            of="eval",
            panel="Questions",
        ),
    ] = None,
    strength: Annotated[
        Text, _option("--strength", "0..1", "How much an edit may change.", of="eval", panel="Questions")
    ] = None,
    seed: Annotated[
        str, _option("--seed", "N", "Of the first clip; the others count up.", of="eval", panel="Questions")
    ] = "0",
    steps: Annotated[
        Text, _option("--steps", "N", "This and the next three: the checkpoint's own without.", panel="Sampling")
    ] = None,
    solver: Annotated[Text, _option("--solver", "NAME", f"{', '.join(limits.SOLVERS)}.", panel="Sampling")] = None,
    shift: Annotated[
        Text, _option("--shift", "F", "Above 1: more of the steps at high noise.", panel="Sampling")
    ] = None,
    guidance: Annotated[Text, _option("--guidance", "F", "Guidance scale; 1 is none.", panel="Sampling")] = None,
    fast: Annotated[bool, _option("--fast", None, options.FAST_HELP, panel="Sampling")] = False,
    reconstruct: Annotated[
        bool, _option("--reconstruct", None, "The autoencoder alone, on the true scenes.", of="eval", panel="Questions")
    ] = False,
    as_json: Annotated[
        Path | None,
        _option("--json", "FILE.json", "Also write the rates and every answer.", setting=False, panel="Files"),
    ] = None,
    sheet: Annotated[
        Path | None,
        _option("--sheet", "FILE.png", "Also draw the first clips, right ones green.", setting=False, panel="Files"),
    ] = None,
    overwrite: Annotated[bool, _option("--overwrite", None, "Replace files that exist.", panel="Files")] = False,
    dtype: Annotated[
        str, _option("--dtype", "NAME", "float32, bfloat16 or float16, for every stage.", panel="Machine")
    ] = "auto",
    device: Annotated[str, _option("--device", "NAME", "cpu, cuda or mps.", panel="Machine")] = "auto",
    quiet: Annotated[bool, _option("--quiet -q", None, "No progress and no notes.", panel=options.MESSAGES)] = False,
) -> None:
    """Sample fixed prompts and score them with the detector; what it cannot tell counts as wrong."""
    wanted = {
        "steps": options.given(steps, options.steps),
        "solver": options.given(solver, options.solver),
        "shift": options.given(shift, options.shift),
        "guidance": options.given(guidance, options.guidance),
        "fast": fast or None,
        "strength": options.given(strength, options.strength),
    }
    from dit_video.scenes.world import MAX_SIDE, MIN_SIDE

    width, height = parse_size(size)
    near = [min(max(side, MIN_SIDE), MAX_SIDE) for side in (width, height)]
    if near != [width, height]:
        rule = f"the world has sides of {MIN_SIDE} to {MAX_SIDE}"
        raise UsageError(f"--size {width}x{height}: {rule}; the nearest is {near[0]}x{near[1]}.")
    length = FRAMES.get(mode, 24) if frames is None else options.frames(frames)
    request = Request(
        model=model,
        loras=loras.parse(lora or []),
        count=options.whole("--prompts", prompts, 1, MAX_PROMPTS),
        split=options.choice("--split", split, SPLITS),
        mode=options.choice("--mode", mode, tuple(FRAMES)),
        objects=options.whole("--objects", objects, 1, MAX_OBJECTS),
        shape=VideoShape(num_frames=length, height=height, width=width),
        first_seed=options.whole("--seed", seed, 0, limits.MAX_SEED - MAX_PROMPTS),
        overrides={name: value for name, value in wanted.items() if value is not None},
        reconstruct=reconstruct,
        dtype=options.choice("--dtype", dtype, limits.DTYPES),
        device=options.choice("--device", device, limits.DEVICES),
    )
    _check(request)
    for option, path, suffix in (("--json", as_json, ".json"), ("--sheet", sheet, ".png")):
        if path:
            check_file(path, (suffix,), overwrite=overwrite, option=option)

    from dit_video import evaluate as evaluation

    with console.Speaker(quiet=quiet) as speaker:
        answers, strips = _answer(request, speaker)
    if as_json:
        with replacing(as_json) as part:
            part.write_text(json.dumps(evaluation.report(answers), indent=1) + "\n")
    if sheet:
        evaluation.save_sheet(sheet, answers, strips, overwrite=overwrite)
    console.result(evaluation.table(answers))


def _check(request: Request) -> None:
    """Refuses what can be refused before torch is imported."""
    scales = request.overrides.get("guidance", ())
    if len(scales) > 1:
        given = ",".join(f"{scale:g}" for scale in scales)
        raise UsageError(f"--guidance {given}: eval takes one scale; the nearest is {scales[0]:g}.")
    if request.reconstruct and request.overrides:
        unused = next(iter(request.overrides))
        raise UsageError(f"--reconstruct and --{unused}: only one of the two can be given; nothing is denoised.")
    if request.reconstruct and request.loras:
        given = f"--reconstruct and --lora {request.loras[0].path}"
        raise UsageError(f"{given}: only one of the two can be given; nothing is denoised.")
    if request.reconstruct and request.mode != "text":
        raise UsageError(f"--reconstruct and --mode {request.mode}: only one of the two can be given.")
    if request.objects > 1 and request.mode != "text":
        given = f"--objects {request.objects} and --mode {request.mode}"
        raise UsageError(f"{given}: only one of the two can be given; --mode {request.mode} is about one object.")
    if "strength" in request.overrides and request.mode != "edit":
        raise UsageError(f"--strength and --mode {request.mode}: only an edit has a strength; add --mode edit.")
    if request.mode != "text" and request.shape.num_frames < MIN_FRAMES:
        rule = f"--mode {request.mode} takes clips of {MIN_FRAMES} frames or more"
        raise UsageError(f"--frames {request.shape.num_frames}: {rule}; the nearest is {MIN_FRAMES}.")
    find_checkpoint(request.model)


def _answer(request: Request, speaker: console.Speaker) -> "tuple[list[Answer], list[ndarray]]":
    """The answers to all questions, and the frames of the first clips."""
    from dit_video import evaluate as evaluation
    from dit_video.machine import memory_for, pick_device, pick_dtype
    from dit_video.models import open_checkpoint
    from dit_video.plan import check_memory
    from dit_video.stages import Stages, explained_memory
    from dit_video.work import why_not_fast

    checkpoint, shape = open_checkpoint(request.model).with_loras(request.loras), request.shape
    if checkpoint.beside and not request.reconstruct and request.mode != "image":
        raise UsageError(f"--mode {request.mode}: this model animates images; the nearest is --mode image.")
    device = pick_device(request.device)
    dtype = pick_dtype(request.dtype, device)
    plan = check_memory(
        checkpoint,
        shape,
        itemsize=dtype.itemsize,
        available=memory_for(device, None),
        holds=device.type != "cpu",
        encodes=request.mode not in ("text", "image"),
    )
    tile = plan.tile
    with explained_memory(shape):
        loras.tell(checkpoint, speaker.note, speaker.warn)
        stages = Stages(
            checkpoint,
            dtype=dtype,
            device=device,
            keep=True,
            keep_layers=plan.keep_layers,
            note=speaker.note,
            warn=speaker.warn,
        )
        questions = evaluation.fixed_questions(
            request.count, shape, split=request.split, first_seed=request.first_seed, objects=request.objects
        )
        if request.reconstruct:
            return evaluation.reconstruct(stages, questions, shape, tile=tile, progress=speaker.progress)
        settings = _settings(checkpoint.defaults, request.overrides, request.mode)
        if words := why_not_fast(settings, checkpoint.boundary):
            speaker.warn(words)
        negative = checkpoint.defaults.negative
        if request.mode != "text":
            from dit_video.evaluate_modes import Bench, answer_modes

            window = checkpoint.defaults.window or checkpoint.defaults.frames
            bench = Bench(stages, settings, shape, negative, window, tile)
            return answer_modes(request.mode, bench, questions, speaker.progress)
        return evaluation.evaluate(
            stages, questions, shape, settings, negative=negative, tile=tile, progress=speaker.progress
        )


def _settings(defaults: "Defaults", overrides: dict[str, Any], mode: str) -> "Settings":
    from dit_video.clip import Settings

    if mode == "edit":
        overrides = {"strength": limits.STRENGTH} | overrides

    values = {name: getattr(defaults, name) for name in ("steps", "solver", "sigmas", "shift", "guidance")}
    return Settings(**values | overrides)
