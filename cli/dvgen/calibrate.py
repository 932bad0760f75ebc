"""`dvgen calibrate`: measures how fast a model is here, for what --dry-run says of time."""

import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

from dit_video import limits
from dit_video.checkpoints.places import Named
from dvgen import chosen, console, options
from dvgen.chosen import Chosen
from dvgen.logs import with_logging

if TYPE_CHECKING:
    from dit_video.timing import Span

SECONDS = 10.0


@with_logging
def calibrate(
    model: Annotated[
        str, options.option("--model -m", "NAME|PATH", chosen.MODEL_HELP, complete=chosen.complete)
    ] = "default",
    dtype: Annotated[str, options.option("--dtype", "NAME", "float32, bfloat16 or float16.")] = "auto",
    device: Annotated[str, options.option("--device", "NAME", "cpu, cuda or mps.")] = "auto",
    random_weights: Annotated[
        bool, options.option("--random-weights", None, "A tiny model of noise: tries the program.")
    ] = False,
    as_json: Annotated[bool, options.option("--json", None, "Print one JSON object.")] = False,
    quiet: Annotated[
        bool, options.option("--quiet -q", None, "No progress and no notes.", panel=options.MESSAGES)
    ] = False,
) -> None:
    """Measure for some seconds how fast a model is on this machine, for what --dry-run says of time.

    Every video that is made is measured too, so this is for models that have made none yet. What was measured is kept
    in the user's cache. Standard output gets what the model's default video would take.
    """
    options.choice("--dtype", dtype, limits.DTYPES)
    options.choice("--device", device, limits.DEVICES)
    which = Chosen(name=model, named=Named(), loras=(), random=random_weights)
    which.check(None)
    with console.Speaker(quiet=quiet) as speaker:
        found = _measured(which, device, dtype, speaker)
    if as_json:
        console.result(json.dumps(found))
    else:
        low, high = found["seconds"]
        size = f"{found['width']}x{found['height']}, {found['frames']} frames, {found['steps']} steps"
        console.result(f"{size}: {console.duration(low)} to {console.duration(high)}")


def _measured(which: Chosen, device_name: str, dtype_name: str, speaker: console.Speaker) -> dict[str, Any]:
    first = "torch" not in sys.modules
    speaker.progress("load program", 0, 1)
    from dit_video import machine
    from dit_video.calibrate import calibrate, growing
    from dit_video.clip import settings_of
    from dit_video.course import Course
    from dit_video.plan import check_memory, weights_bytes
    from dit_video.stages import Stages, explained_memory
    from dit_video.timing import NOTHING, users_clock
    from dit_video.work import passes_of

    checkpoint = which.open()
    device = machine.pick_device(device_name)
    dtype = machine.pick_dtype(dtype_name, device)
    speaker.progress("load program", 1, 1)
    begun = machine.since_start()
    available = machine.memory_for(device, None)
    *_, whole = growing(checkpoint)
    plan = check_memory(
        checkpoint,
        next(growing(checkpoint)),
        itemsize=dtype.itemsize,
        available=available,
        holds=device.type != "cpu",
        encodes=True,
    )
    place = (machine.dtype_name(dtype), device.type)
    stages = Stages(
        checkpoint,
        dtype=dtype,
        device=device,
        keep=not plan.keep_layers and plan.nbytes + weights_bytes(checkpoint, dtype.itemsize) < available,
        keep_layers=plan.keep_layers,
        clock=users_clock(checkpoint, *place, plan.keep_layers),
        progress=speaker.progress,
        note=speaker.note,
    )
    assert stages.clock is not None
    with explained_memory(whole):
        made = calibrate(stages, checkpoint, seconds=SECONDS)
    if first:
        stages.clock.took(stages.clock.program(), begun)
    stages.clock.keep()
    settings = settings_of(checkpoint.defaults, experts=checkpoint.boundary is not None)
    passes = passes_of(settings, checkpoint.boundary)
    course = Course(shapes=[whole], encoded=[0], passes=passes, prompts=2, suffix=".mp4")
    clock = users_clock(checkpoint, *place, plan.keep_layers)
    total: Span = sum(course.expected(clock).values(), NOTHING)
    speaker.note(f"measured: {', '.join(map(str, made))}")
    size = {"width": whole.width, "height": whole.height, "frames": whole.num_frames, "steps": settings.steps}
    return {**size, "seconds": [round(total.low, 2), round(total.high, 2)], "place": clock.place}
