"""`dvgen batch`: many videos by one command, with the model loaded once."""

import json
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_video.errors import DvgenError, UsageError
from dit_video.video.output import SUFFIXES, check_video
from dvgen import chosen, console, jobs, options, sampling
from dvgen.command import ClickUsageError
from dvgen.jobs import Job
from dvgen.logs import with_logging
from dvgen.recipe import read_recipe

if TYPE_CHECKING:
    from torch import Tensor

    from dit_video.clip import Clip
    from dvgen.prepared import Checkpoint, OneClip, Place
    from dvgen.sample import Request

SOME_FAILED = 3
NAME = "{index}-{slug}-{seed}"
CHUNK = 64  # jobs that are denoised before they are decoded, where not all stages fit in memory at once
NOT_OF_A_JOB = (
    "count",
    "sheet",
    "preview_file",
    "overwrite",
    "fresh",
    "save_latents",
    "as_json",
    "quiet",
    "verbose",
    "log_file",
    "expected_model",
)
"""Options that are not for a job, but for the whole command or for none."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job whose options are checked."""

    job: Job
    request: "Request"


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A task that is to be carried out."""

    job: Job
    video: "OneClip"
    path: Path


class Report:
    """What has become of the jobs: a line of JSON for each on standard output, as it ends."""

    def __init__(self, total: int, speaker: console.Speaker) -> None:
        self.total, self.speaker = total, speaker
        self.counts = {"done": 0, "skipped": 0, "failed": 0}
        speaker.progress("jobs", 0, total)

    def end(self, job: Job, status: str, **about: Any) -> None:
        """A job has ended."""
        self.counts[status] += 1
        found = {"index": job.index, "status": status, "prompt": job.prompt, **about}
        console.result(json.dumps(found, default=str, ensure_ascii=False))
        self.speaker.progress("jobs", sum(self.counts.values()), self.total)

    def fail(self, job: Job, error: Exception) -> None:
        """A job has failed."""
        self.speaker.warn(f"{job.where}: {error}")
        self.end(job, "failed", error=str(error))


@with_logging
def batch(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="JOBS", help='.txt, a prompt a line; .jsonl or .csv; or "-" for standard input.', show_default=False
        ),
    ],
    out: Annotated[Path, options.option("--out", "DIR", "Where the videos go.", of="batch")] = Path(),
    name: Annotated[str, options.option("--name", "TEMPLATE", "Of a video, without its suffix.", of="batch")] = NAME,
    part: Annotated[
        str | None,
        options.option("--shard", "I/N", "Only part I of N, for several machines.", show_default=False, of="batch"),
    ] = None,
    keep_going: Annotated[
        bool, options.option("--keep-going", None, "Go on after a job that fails.", of="batch")
    ] = False,
    overwrite: Annotated[bool, options.option("--overwrite", None, "Replace files that exist.")] = False,
    quiet: Annotated[
        bool, options.option("--quiet -q", None, "No progress and no notes.", panel=options.MESSAGES)
    ] = False,
) -> None:
    """Make a video of every job; of jobs that are done already, none.

    A job has a prompt, and under the names of the options of `dvgen sample` whatever else it needs. Options of `sample`
    on this command line are those of all jobs that do not say otherwise. A job without a seed has its number for one.
    Small videos go through the transformer together, which changes none of them. Standard output gets a line of JSON
    for each job as it ends. Exit codes: 0 all done, 3 some failed.
    """
    every = jobs.read_jobs(source)
    if part is not None:
        every = jobs.shard(every, part)
    _check_name(name)
    if not out.is_dir():
        raise UsageError(f"--out {out}: there is no such folder; create it first.")
    with console.Speaker(quiet=quiet) as speaker:
        report = Report(len(every), speaker)
        tasks = list(_checked(every, context.args, keep_going, report))
        for group in _groups(tasks):
            _Run(group, out, name, overwrite, keep_going, speaker, report).run()
    if report.counts["failed"]:
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


def _checked(every: Sequence[Job], common: Sequence[str], keep_going: bool, report: Report) -> Iterator[Task]:
    """The jobs whose options can be; of others it is said, and without `keep_going` nothing is begun."""
    alike: dict[str, Request] = {}  # of jobs that differ by their prompts and seeds alone
    seed_of_all = _context(common, "").params["seed"]
    for job in every:
        own = json.dumps({name: value for name, value in sorted(job.given.items()) if name != "seed"})
        try:
            if own not in alike:
                alike[own] = _request(job, common)
            seed = job.given.get("seed", job.index if seed_of_all is None else seed_of_all)
            shared = replace(alike[own].sampling, seed=options.seed(str(seed)), seed_drawn=False)
            yield Task(job=job, request=replace(alike[own], prompt=options.text(job.prompt), sampling=shared))
        except DvgenError as error:
            if not keep_going:
                raise UsageError(f"{job.where}: {error}") from None
            report.fail(job, error)


def _context(line: Sequence[str], prompt: str) -> Any:
    """Click's context of a command line of `sample`. Raises UsageError."""
    from dvgen.main import command_of

    try:
        return command_of("sample").make_context("sample", [*line, "--", prompt])
    except ClickUsageError as error:
        raise UsageError(error.format_message()) from None


def _request(job: Job, common: Sequence[str]) -> "Request":
    """A job as a command line of `sample`. Raises DvgenError."""
    from dvgen.sample import request_of

    line = list(common)
    given = dict(job.given)
    if (command := given.pop("command", "sample")) != "sample":
        raise UsageError(f"command {command}: a batch makes videos with sample alone.")
    for name, value in given.items():
        for each in value if isinstance(value, list) else [value]:
            flags = {True: f"--{name}", False: options.opposite(name)}
            line.append(flags[each] if isinstance(each, bool) else f"--{name}={each}")
    context = _context(line, job.prompt)
    for name in NOT_OF_A_JOB:
        if context.get_parameter_source(name).name == "COMMANDLINE":
            raise UsageError(f"--{name.replace('_', '-')}: is not for jobs.")
    rest, shared = sampling.parsed(context.params)
    return request_of(**rest, sampling=replace(shared, as_json=False, quiet=True))


def _groups(tasks: Sequence[Task]) -> list[list[Task]]:
    """Tasks of one model on one device, in the order in which the first of each comes."""
    groups: dict[Any, list[Task]] = {}
    for task in tasks:
        shared = task.request.sampling
        groups.setdefault((shared.model, shared.dtype, shared.device, shared.memory), []).append(task)
    return list(groups.values())


class _Run:
    """The tasks of one model."""

    def __init__(
        self,
        tasks: Sequence[Task],
        out: Path,
        name: str,
        overwrite: bool,
        keep_going: bool,
        speaker: console.Speaker,
        report: Report,
    ) -> None:
        self.tasks, self.out, self.name = tasks, out, name
        self.overwrite, self.keep_going, self.speaker, self.report = overwrite, keep_going, speaker, report

    def run(self) -> None:
        """Make all of them."""
        from dit_video.machine import dtype_name, memory_for
        from dit_video.plan import tokens_together, weights_bytes
        from dit_video.prompts import encode_prompts
        from dit_video.stages import Stages
        from dit_video.text.cache import made_by, users_cache

        shared = self.tasks[0].request.sampling
        self.speaker.progress("load program", 0, 1)
        checkpoint = shared.open()
        device, dtype = place = shared.place()
        self.speaker.progress("load program", 1, 1)
        ready = [each for task in self.tasks if (each := self._prepared(task, checkpoint, place)) is not None]
        if not ready:
            return
        available = memory_for(device, shared.memory)
        largest = max((each.video.plan for each in ready), key=lambda plan: plan.nbytes)
        keep = largest.nbytes + weights_bytes(checkpoint, dtype.itemsize) < available
        chosen.tell(checkpoint, self.speaker.note, self.speaker.warn)
        files = checkpoint.text_files
        self.stages = Stages(
            checkpoint,
            dtype=dtype,
            device=device,
            keep=keep,
            keep_layers=largest.keep_layers,
            cache=users_cache(made_by(files, dtype_name(dtype), device.type)) if files else None,
            note=self.speaker.note,
            warn=self.speaker.warn,
        )
        prompts = dict.fromkeys(text for each in ready for text in each.video.prompts)
        encode_prompts(self.stages, list(prompts))
        most = tokens_together(checkpoint, itemsize=dtype.itemsize, available=available)
        packs = list(_packs(ready, most))
        if keep:
            for pack in packs:
                self._decode(self._denoise(pack))
            return
        for chunk in _chunks(packs, CHUNK):
            self._decode([each for pack in chunk for each in self._denoise(pack)])

    def _prepared(self, task: Task, checkpoint: "Checkpoint", place: "Place") -> "Ready | None":
        """A task with its name, unless it is done or cannot be."""
        from dvgen.sample import prepare

        try:
            video = prepare(task.request, checkpoint, place, self.speaker)
            shared, recipe = video.sampling, video.recipe
            name = self.name.format(index=task.job.index, slug=options.slug(video.title), seed=shared.seed)
            path = self.out / (shared.output or f"{name}{video.suffix}")
            if path.exists() and not self.overwrite:
                found = read_recipe(path)
                if found and recipe and (found.line, found.model) == (recipe.line, recipe.model):
                    self.report.end(task.job, "skipped", path=path)
                    return None
            check_video(path, video.frames, fps=video.fps, overwrite=self.overwrite)
            shared = replace(shared, output=path, overwrite=self.overwrite)
            return Ready(job=task.job, video=replace(video, sampling=shared), path=path)
        except DvgenError as error:
            self._failed(task.job, error)
            return None

    def _denoise(self, pack: "Sequence[Ready]") -> "list[tuple[Ready, Clip, Tensor]]":
        """The latents of a pack; where that fails each of its jobs is tried alone."""
        from dit_video.denoise import sample_latents
        from dit_video.stages import explained_memory

        try:
            with explained_memory(pack[0].video.plan.shape):
                clips = [each.video.encoded(self.stages) for each in pack]
                latents = sample_latents(self.stages, clips, pack[0].video.settings)
            return [(each, clip, found.cpu()) for each, clip, found in zip(pack, clips, latents, strict=True)]
        except DvgenError as error:
            if len(pack) == 1:
                self._failed(pack[0].job, error)
                return []
        return [found for each in pack for found in self._denoise([each])]

    def _decode(self, made: "Sequence[tuple[Ready, Clip, Tensor]]") -> None:
        for ready, clip, latents in made:
            try:
                found = ready.video.write_latents(
                    self.stages, clip, latents.to(self.stages.device), ready.path, unfinished=None
                )
            except DvgenError as error:
                self._failed(ready.job, error)
                continue
            names = ("path", "width", "height", "frames", "fps", "seed", "tokens", "unknown_words", "prompt_cut")
            self.report.end(ready.job, "done", **{name: getattr(found, name) for name in names})

    def _failed(self, job: Job, error: DvgenError) -> None:
        self.report.fail(job, error)
        if not self.keep_going:
            raise typer.Exit(SOME_FAILED)


def _packs(ready: "Sequence[Ready]", most: int) -> "Iterator[list[Ready]]":
    """Neighbours with the same settings, up to so many tokens together."""
    pack: list[Ready] = []
    tokens = 0
    for each in ready:
        if pack and (pack[0].video.settings != each.video.settings or tokens + each.video.plan.tokens > most):
            yield pack
            pack, tokens = [], 0
        pack.append(each)
        tokens += each.video.plan.tokens
    if pack:
        yield pack


def _chunks(packs: "Sequence[list[Ready]]", most: int) -> "Iterator[list[list[Ready]]]":
    """Packs of at most so many jobs together, or one."""
    chunk: list[list[Ready]] = []
    for pack in packs:
        if chunk and sum(map(len, chunk)) + len(pack) > most:
            yield chunk
            chunk = []
        chunk.append(pack)
    if chunk:
        yield chunk
