"""`dvgen batch --dry-run`: a line for every job, and one for all of them; see `dry_run`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dit_video.errors import DvgenError
from dit_video.video.output import check_video
from dvgen import console
from dvgen.dry_run import Heard, rounded
from dvgen.jobs import Job
from dvgen.problems import Problems
from dvgen.run import PREPARE, is_made_by, path_of
from dvgen.tasks import Task

if TYPE_CHECKING:
    from dit_video.timing import Clock, Span
    from dvgen.prepared import Checkpoint, Place, Prepared

ALONE = ("denoise", "decode", "encode", "write")
"""Activities that every job takes; the others are shared by all jobs of a model."""


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Options of the whole batch. out: the folder. name: the template of names."""

    out: Path
    name: str
    overwrite: bool


def show(groups: Sequence[Sequence[Task]], wrong: Sequence[tuple[Job, DvgenError]], rules: Rules) -> None:
    """Say what a batch would be; groups: its jobs by their models.

    Raises:
        DvgenError: a model cannot be opened.
        typer.Exit: a job would be refused.
    """
    from dit_video.timing import NOTHING

    counts = {"new": 0, "skipped": 0, "refused": 0}
    total, forwards = NOTHING, 0
    for job, error in wrong:
        counts["refused"] += 1
        _tell(job, "refused", problems=[str(error)])
    for tasks in groups:
        seconds, more = _group(tasks, rules, counts)
        total, forwards = total + seconds, forwards + more
    about = {"jobs": sum(counts.values()), **counts, "forwards": forwards}
    console.result(json.dumps({"total": about | {"seconds": rounded(total), "basis": total.basis}}))
    if counts["refused"]:
        raise typer.Exit(1)


def _group(tasks: Sequence[Task], rules: Rules, counts: dict[str, int]) -> "tuple[Span, int]":
    """The jobs of one model: how long all of them take, and their passes."""
    from dit_video.limits import check_quantize
    from dit_video.place import foreseen
    from dit_video.timing import NOTHING, users_clock

    shared = tasks[0].request.sampling
    checkpoint, found = shared.open(), foreseen(shared.device, shared.dtype)
    try:
        check_quantize(shared.quantize, found.device.type, found.dtype.name, compiled=shared.compile)
    except DvgenError as error:
        counts["refused"] += len(tasks)
        for task in tasks:
            _tell(task.job, "refused", problems=[str(error)])
        return NOTHING, 0
    place: Any = (found.device, found.dtype)
    clock = users_clock(checkpoint, found.dtype.name, found.device.type, quantize=shared.quantize)
    total, forwards = NOTHING, 0
    unread: set[str] = set()
    largest: Prepared | None = None
    for task in tasks:
        ready, path, problems = _prepared(task, checkpoint, place, rules)
        if ready is None or problems:
            counts["refused"] += 1
            _tell(task.job, "refused", problems=problems)
            continue
        if path is None:
            counts["skipped"] += 1
            _tell(task.job, "skipped")
            continue
        counts["new"] += 1
        largest = ready if largest is None or ready.plan.nbytes > largest.plan.nbytes else largest
        unread |= set(ready.unread())
        seconds, passes = _alone(ready, clock, path.suffix)
        total, forwards = total + seconds, forwards + passes
        size = {"width": ready.plan.shape.width, "height": ready.plan.shape.height, "frames": ready.frames}
        _tell(task.job, "new", path=path, **size, tokens=ready.plan.tokens, forwards=passes, seconds=rounded(seconds))
    if largest is not None:
        total = total + _shared(largest, clock, len(unread))
    return total, forwards


def _prepared(
    task: Task, checkpoint: "Checkpoint", place: "Place", rules: Rules
) -> "tuple[Prepared | None, Path | None, list[str]]":
    """A job together with its model, its file, None where it is there already, and what it would be refused for."""
    problems = Problems()
    request = replace(task.request, sampling=replace(task.request.sampling, problems=problems))
    ready: Prepared | None = None
    path: Path | None = None
    with problems.listed():
        ready = PREPARE[task.job.command](request, checkpoint, place, Heard())
        path = path_of(task.job, ready, rules.out, rules.name)
        if path.exists() and not rules.overwrite and is_made_by(path, ready):
            return ready, None, problems.found
        check_video(path, ready.frames, fps=ready.fps, overwrite=rules.overwrite)
    return ready, path, problems.found


def _alone(ready: "Prepared", clock: "Clock", suffix: str) -> "tuple[Span, int]":
    """How long the stages of one job take, and its passes."""
    from dit_video.timing import NOTHING

    course = ready.course(suffix=suffix)
    spans = course.expected(clock)
    each = [span for name, span in spans.items() if name in ALONE]
    return sum(each, NOTHING), course.passes.count * len(course.shapes)


def _shared(largest: "Prepared", clock: "Clock", prompts: int) -> "Span":
    """How long it takes to begin, to load every part once, and to read the texts that are new."""
    parts = list(dict.fromkeys([*largest.course().loads(), *(["text_encoder"] if prompts else [])]))
    tasks = [clock.program(), *clock.loads(parts), *([clock.text(prompts)] if prompts else [])]
    return clock.expected(*tasks)


def _tell(job: Job, status: str, **about: Any) -> None:
    found = {"index": job.index, "status": status, "prompt": job.prompt, **about}
    console.result(json.dumps(found, default=str, ensure_ascii=False))
