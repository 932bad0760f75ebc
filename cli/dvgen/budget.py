"""`--time-budget`: the settings that fit in a time, by what stages have taken on this machine."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video.errors import UsageError
from dvgen import console

if TYPE_CHECKING:
    from dit_video.clip import Settings
    from dit_video.timing import Clock, Span
    from dvgen.prepared import Prepared

LEAST_STEPS = 4
NOISY = 0.6  # the noise level from which up guidance stays the longest: there is decided what is where
RESERVE = 1.1  # by how much longer than usual a run may take
CALIBRATION = 0.1  # share of the budget that goes into measuring, where nothing was measured
UNITS = {"s": 1, "sec": 1, "m": 60, "min": 60, "h": 3600}
LIMITS = (1, 7 * 24 * 3600)  # seconds


def parse(text: str) -> float:
    """The seconds of "60s", "2min", "1.5h" or "90". Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*(s|sec|m|min|h)?", text.strip().lower())
    if match is None:
        raise UsageError(f"--time-budget {text[:60]}: must be a time such as 60s, 2min or 1.5h.")
    seconds = float(match[1]) * UNITS[match[2] or "s"]
    if not LIMITS[0] <= seconds <= LIMITS[1]:
        nearest = f"{LIMITS[0]}s" if seconds < LIMITS[0] else f"{LIMITS[1] // 3600}h"
        raise UsageError(f"--time-budget {text[:60]}: must be from 1 second to 168 hours; the nearest is {nearest}.")
    return seconds


def candidates(settings: "Settings") -> Iterator["Settings"]:
    """Settings that take less and less time, the given ones first.

    At first steps are skipped, as by --fast, which changes the frames the least. Then half of the steps are given up
    before any guidance; then guidance at low noise, which decides the least (arXiv 2404.07724); then more steps, and at
    last all guidance.
    """
    from dit_video.work import passes_of, why_not_fast

    yield settings
    fewest = passes_of(settings, None).count
    for each in _given_up(settings):
        found = replace(each, fast=False) if why_not_fast(each, None) else each
        if (count := passes_of(found, None).count) < fewest:
            fewest = count
            yield found


def _given_up(settings: "Settings") -> Iterator["Settings"]:
    """The same with some that take no less than those before, and some of so few steps that none is skipped."""
    least = min(LEAST_STEPS, settings.steps)
    half = max(least, settings.steps // 2)
    settings = replace(settings, fast=True)
    for steps in range(settings.steps, half - 1, -1):
        yield replace(settings, steps=steps)
    low, high = settings.guidance_interval
    guided = max(settings.guidance) > 1
    if guided and low < NOISY < high:
        settings = replace(settings, guidance_interval=(NOISY, high))
    for steps in range(half, least - 1, -1):
        yield replace(settings, steps=steps)
    if guided:
        yield replace(settings, steps=least, guidance=(1.0,) * len(settings.guidance))


def settled(ready: "Prepared", speaker: console.Speaker) -> "Prepared":
    """A command line with settings that fit in the rest of its budget; what was given up is said.

    Where the same command was broken off, they are those that it had. Where nothing of the model was measured on this
    machine, that is done first.

    Raises:
        UsageError: nothing fits.
    """
    from dit_video.machine import since_start

    sampling = ready.sampling
    if sampling.time_budget is None:
        return ready
    found = None if sampling.fresh else _begun(ready)
    if found is None:
        clock = _clock(ready)
        if _is_unmeasured(ready, clock):
            fitted(ready, clock, over=since_start(), hopeful=True)  # else measuring it were in vain
            _calibrate(ready, CALIBRATION * sampling.time_budget, speaker)
            clock = _clock(ready)
        found = fitted(ready, clock, over=since_start())
        about = console.duration(since_start() + _seconds(found, clock).middle)
        words = f"{traded(ready.settings, found.settings)}; about {about} in all"
        sampling.warn(speaker)(f"--time-budget {console.duration(sampling.time_budget)}: {words}")
    return found


def foreseen(ready: "Prepared", note: Callable[[str], None]) -> "Prepared":
    """The same before anything is loaded, by what was measured before or else is guessed. Raises UsageError."""
    if ready.sampling.time_budget is None:
        return ready
    words = f"to fit in {console.duration(ready.sampling.time_budget)}"
    with ready.sampling.listing():
        found = fitted(ready, _clock(ready))
        note(f"{words}: {traded(ready.settings, found.settings)}")
        return found
    *_, least = candidates(ready.settings)
    note(f"{words}, this is the least that it can be: {traded(ready.settings, least)}")
    return replace(ready, settings=least)


def fitted(ready: "Prepared", clock: "Clock", *, over: float | None = None, hopeful: bool = False) -> "Prepared":
    """A command line with settings whose time fits in its budget.

    over: seconds since the program began, when it is loaded; None before that, of a dry run. hopeful: everything takes
    the least that it may.

    Raises:
        UsageError: none of them does.
    """
    budget, needed = ready.sampling.time_budget, 0.0
    assert budget is not None
    begun = clock.expected(clock.program()).middle if over is None else over
    for settings in candidates(ready.settings):
        found = replace(ready, settings=settings)
        needed = begun + RESERVE * _seconds(found, clock).middle
        if begun + _seconds(found, clock).low <= budget if hopeful else needed <= budget:
            return found
    least = f"{ready.plan.shape} takes about {console.duration(needed)} with the fewest steps and no guidance"
    raise UsageError(f"--time-budget {budget:g}s: {least}; the nearest is {int(needed) + 1}s, or ask for less.")


def traded(before: "Settings", after: "Settings") -> str:
    """What was given up, in words."""
    parts = []
    if after.fast and not before.fast:
        parts.append("--fast")
    if after.steps != before.steps:
        parts.append(f"{after.steps} steps instead of {before.steps}")
    if after.guidance != before.guidance:
        parts.append("no guidance")
    elif after.guidance_interval != before.guidance_interval:
        parts.append(f"guidance only at noise levels from {after.guidance_interval[0]:g}")
    return ", and ".join(parts) or "nothing is given up"


def _begun(ready: "Prepared") -> "Prepared | None":
    """It with the settings that it was broken off with, if it was."""
    from dit_video.unfinished import find, folders

    sampling = ready.sampling
    folder = sampling.output.parent if sampling.output else Path()
    if not any(path for place in folders(folder) for path in place.glob(".dvgen-*.state")):
        return None
    for settings in candidates(ready.settings):
        found = replace(ready, settings=settings)
        if find(folder, found.key(sampling.output), None if sampling.seed_drawn else sampling.seed):
            return found
    return None


def _seconds(ready: "Prepared", clock: "Clock") -> "Span":
    """How long it takes from when the program is loaded, and transformers if it is."""
    from dit_video.text.library import has_library

    tasks = ready.course(videos=ready.sampling.count).tasks(clock)
    done = [clock.program(), *([clock.library()] if has_library() else [])]
    return clock.expected(*(task for each in tasks.values() for task in each if task not in done))


def _clock(ready: "Prepared") -> "Clock":
    from dit_video.machine import dtype_name
    from dit_video.timing import users_clock

    device, dtype = ready.place
    quantize = ready.sampling.quantize
    return users_clock(ready.checkpoint, dtype_name(dtype), device.type, ready.plan.keep_layers, quantize)


def _is_unmeasured(ready: "Prepared", clock: "Clock") -> bool:
    course = ready.course(videos=1)
    denoise = course.tasks(clock).get("denoise", [])
    return clock.expected(*denoise).basis != "measured"


def _calibrate(ready: "Prepared", seconds: float, speaker: console.Speaker) -> None:
    """Measure the model for about so many seconds. Raises DvgenError."""
    from dit_video.calibrate import calibrate
    from dit_video.stages import explained_memory
    from dvgen.dry_run import Heard

    speaker.note(f"nothing of this model was measured here: measuring for about {console.duration(seconds)}")
    stages = ready.stages(Heard())  # what there is to say of the model is said when it makes the video
    stages.progress = speaker.progress
    stages.cache = None  # a prompt is read
    assert stages.clock is not None
    with explained_memory(ready.plan.shape):
        calibrate(stages, ready.checkpoint, seconds=seconds)
    stages.clock.keep()
    stages.free()
