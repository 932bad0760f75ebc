"""`dvgen batch`: many videos by one command, with the model loaded once."""

import string
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_video import limits
from dit_video.errors import UsageError
from dit_video.video.output import SUFFIXES
from dvgen import console, jobs, options
from dvgen.logs import with_logging

if TYPE_CHECKING:
    from dvgen.tasks import Task

NAME = "{index}-{slug}-{seed}"


@with_logging
def batch(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="JOBS", help='.txt, a prompt a line; .jsonl or .csv; or "-" for standard input.', show_default=False
        ),
    ],
    out: Annotated[
        Path, options.option("--out", "DIR", "Where the videos go; a folder that is there.", of="batch")
    ] = Path(),
    name: Annotated[str, options.option("--name", "TEMPLATE", "Of a video, without its suffix.", of="batch")] = NAME,
    part: Annotated[
        str | None,
        options.option("--shard", "I/N", "Only part I of N, for several machines.", show_default=False, of="batch"),
    ] = None,
    pack: Annotated[
        str | None,
        options.option(
            "--pack",
            "N",
            "At most N videos through the transformer together; 1 for each alone. Usually as many as memory allows.",
            show_default=False,
            of="batch",
        ),
    ] = None,
    keep_going: Annotated[
        bool, options.option("--keep-going", None, "Go on after a job that fails.", of="batch")
    ] = False,
    overwrite: Annotated[bool, options.option("--overwrite", None, "Replace files that exist.")] = False,
    fresh: Annotated[bool, options.option("--fresh", None, "Begin anew with jobs that were broken off.")] = False,
    dry_run: Annotated[
        bool,
        options.option("--dry-run", None, "Say what each job would take, and all together; make none.", setting=False),
    ] = False,
    quiet: Annotated[
        bool, options.option("--quiet -q", None, "No progress and no notes.", panel=options.MESSAGES)
    ] = False,
) -> None:
    """Make a video of every job; of jobs that are done already, none.

    A job is a line: a prompt, or the values of options by their long names, with "prompt" and, for extend, connect and
    edit instead of sample, "command" and the clips as "clip" or "a" and "b"; paths are taken from the current folder.
    Options of these commands that are given here are those of all jobs that do not say otherwise. A job without a seed
    has its number for one. Small videos go through the transformer together, which changes none of them.

    Given again, the command goes on: with what is missing, and with jobs that were broken off from where they were.
    Several can work in one folder at a time, and none makes what another does. Standard output gets a line of JSON for
    each job as it ends. Exit codes: 0 all done, 3 some failed, 130 Ctrl-C.
    """
    # Here, because other commands' help should not wait for it.
    from dit_video.claims import Claims
    from dvgen import dry_batch
    from dvgen.board import Board
    from dvgen.run import CHUNK, SOME_FAILED, Rules, Run
    from dvgen.tasks import Task, checked

    limits.kept_every()
    every = jobs.read_jobs(source)
    if part is not None:
        every = jobs.shard(every, part)
    _check_name(name)
    together = CHUNK if pack is None else options.whole("--pack", pack, 1, CHUNK)
    if not out.is_dir():
        raise UsageError(f"--out {out}: there is no such folder; create it first.")
    tasks, wrong = [], []
    for found in checked(every, context.args, out, lambda text: None if quiet else console.aside(text)):
        if isinstance(found, Task):
            tasks.append(found)
        else:
            wrong.append(found)
    if dry_run:
        dry_batch.show(_groups(tasks), wrong, dry_batch.Rules(out=out, name=name, overwrite=overwrite))
        return
    for job, error in wrong if not keep_going else []:
        raise UsageError(f"{job.where}: {error}")  # before anything is begun
    rules = Rules(out=out, name=name, pack=together, overwrite=overwrite, fresh=fresh, keep_going=keep_going)
    paths: dict[Path, int] = {}
    with Board(every, quiet=quiet) as board, Claims() as claims:
        for job, error in wrong:
            board.fail(job, error)
        for group in _groups(tasks):
            Run(rules, board, claims, paths).run(group)
    if board.counts["failed"]:
        raise typer.Exit(SOME_FAILED)


def _check_name(template: str) -> None:
    """Refuses a template with unknown fields, or in which jobs are not told apart. Raises UsageError."""
    known = ("index", "slug", "seed")
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise UsageError(f"--name {template}: is no template ({error}).") from None
    if strange := [field for field in fields if field not in known]:
        raise UsageError(f"--name {template}: knows no {{{strange[0]}}}; it may have {{index}}, {{slug}} and {{seed}}.")
    if "index" not in fields:
        raise UsageError(f"--name {template}: needs {{index}}, so that no two videos have one name; such as {NAME}.")
    if "/" in template or Path(template).suffix.lower() in SUFFIXES:
        raise UsageError(f"--name {template}: must be a name without folders and without a suffix; such as {NAME}.")
    try:
        template.format(index=1, slug="a", seed=1)
    except (ValueError, LookupError) as error:
        raise UsageError(f"--name {template}: cannot be filled in ({error}); such as {NAME}.") from None


def _groups(tasks: "Sequence[Task]") -> "list[list[Task]]":
    """Tasks of one model on one device, in the order in which the first of each comes."""
    groups: dict[Any, list[Task]] = {}
    for task in tasks:
        shared = task.request.sampling
        place = shared.dtype, shared.device, shared.memory, shared.compile, shared.cuda_graphs, shared.quantize
        groups.setdefault((shared.model, *place), []).append(task)
    return list(groups.values())
