"""The jobs of one model: made in packs, each claimed before it is begun, so that other processes can help."""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import typer

from dit_video.claims import Claims
from dit_video.errors import DvgenError, MediaError
from dit_video.latents import is_of
from dit_video.video.output import check_video
from dvgen import chosen, edit, extend, options, process, sample
from dvgen.board import Board
from dvgen.jobs import Job
from dvgen.prepared import OneClip, Prepared
from dvgen.recipe import read_recipe
from dvgen.tasks import Task

if TYPE_CHECKING:
    from torch import Tensor

    from dit_video.clip import Clip
    from dit_video.extend import Extended
    from dit_video.make import Result
    from dit_video.unfinished import Unfinished
    from dvgen.prepared import Checkpoint, Place, Prepare

    Denoised = tuple["Ready", Unfinished, Clip, Tensor]

T = TypeVar("T")

SOME_FAILED = 3
CHUNK = 64  # jobs of which the packs are made; also those that are denoised before they are decoded, where need be
LOOKED_EVERY = 1.0  # seconds, at jobs that other processes make
TOLD = ("path", "width", "height", "frames", "new_frames", "fps", "seed", "tokens", "unknown_words", "prompt_cut")
"""What is told of a finished job, as far as its command has it."""

PREPARE: "dict[str, Prepare]" = {
    "sample": sample.prepare,
    "extend": extend.prepare,
    "connect": extend.prepare,
    "edit": edit.prepare,
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Options of the whole batch. out: the folder. name: the template of names. pack: the most jobs of a pack."""

    out: Path
    name: str
    pack: int
    overwrite: bool
    fresh: bool
    keep_going: bool


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A task that is to be carried out.

    was: what the file was before, None where there was none. alone: in no pack, since it is made in windows, or its
    latents are there already.
    """

    job: Job
    video: Prepared
    path: Path
    was: tuple[int, int] | None
    alone: bool


class Run:
    """Makes the tasks of one model. paths: of all jobs that had their names so far, with the number of the job."""

    def __init__(self, rules: Rules, board: Board, claims: Claims, paths: dict[Path, int]) -> None:
        self.rules, self.board, self.claims, self.paths = rules, board, claims, paths

    def run(self, tasks: Sequence[Task]) -> None:
        """Make all of them, those last that other processes make, or have not made."""
        shared = tasks[0].request.sampling
        self.board.progress("load program", 0, 1)
        with process.importing("torch"):
            from dit_video import make as _  # noqa: F401 (what takes long to import)

        checkpoint, place = shared.open(), shared.place()
        self.board.progress("load program", 1, 1)
        every = [each for task in tasks if (each := self._prepared(task, checkpoint, place)) is not None]
        if not every:
            return
        chosen.tell(checkpoint, self.board.note, self.board.warn)
        self._open(every)
        waiting = self._round(every)
        while waiting:
            self.board.note(f"another process makes {len(waiting)} of the jobs: waiting for it")
            time.sleep(LOOKED_EVERY)
            waiting = self._round(waiting)

    def _open(self, every: Sequence[Ready]) -> None:
        """The stages, with what there is room for."""
        from dit_video.machine import dtype_name, memory_for
        from dit_video.plan import tokens_together, weights_bytes
        from dit_video.stages import Stages
        from dit_video.text.cache import made_by, users_cache
        from dit_video.timing import users_clock

        first = every[0].video
        (device, dtype), checkpoint = first.place, first.checkpoint
        sampling = first.sampling
        available = memory_for(device, sampling.memory)
        largest = max((each.video.plan for each in every), key=lambda plan: plan.nbytes)
        self.keep = largest.nbytes + weights_bytes(checkpoint, dtype.itemsize) < available
        self.most = tokens_together(checkpoint, itemsize=dtype.itemsize, available=available)
        files = checkpoint.text_files
        self.stages = Stages(
            checkpoint,
            dtype=dtype,
            device=device,
            keep=self.keep,
            keep_layers=largest.keep_layers,
            cache=users_cache(made_by(files, dtype_name(dtype), device.type)) if files else None,
            clock=users_clock(checkpoint, dtype_name(dtype), device.type, largest.keep_layers, sampling.quantize),
            quantize=sampling.quantize,
            compile=sampling.compile,
            graphs=sampling.cuda_graphs,
            progress=self.board.progress,
            warn=self.board.warn,
        )
        self.texts = Counter(text for each in every for text in each.video.prompts)
        if not self.keep:  # the text encoder is loaded once, whatever it takes
            for texts in _parts(list(self.texts), CHUNK):
                self._read(texts)
                if self.stages.cache:
                    self.stages.embeds.clear()

    def _read(self, texts: Iterable[str]) -> None:
        from dit_video.prompts import encode_prompts

        encode_prompts(self.stages, list(dict.fromkeys(texts)))

    def _prepared(self, task: Task, checkpoint: "Checkpoint", place: "Place") -> Ready | None:
        """A task with its name, unless it is done or cannot be."""
        job, rules = task.job, self.rules
        try:
            video = PREPARE[job.command](task.request, checkpoint, place, self.board)
            shared, path = video.sampling, path_of(job, video, rules.out, rules.name)
            if (other := self.paths.setdefault(path, job.index)) != job.index:
                raise MediaError(f"{path}: is the name of job {other} too; give one of them another --output.")
            was = _stamp(path)
            if was and not rules.overwrite and is_made_by(path, video):
                self.board.end(job, "skipped", path=path)
                return None
            check_video(path, video.frames, fps=video.fps, overwrite=rules.overwrite)
            video = replace(video, sampling=replace(shared, output=path, overwrite=rules.overwrite))
            unfinished = self._unfinished(path, video)
            latents = video.sampling.latents_of(path, unfinished)
            decoded = (
                latents is not None and not was and is_of(latents, unfinished, video.sampling.seed) and not rules.fresh
            )
            video.tell_fast(lambda words: self.board.warn(f"{job.where}: {words}"))
            return Ready(job=job, video=video, path=path, was=was, alone=decoded or not isinstance(video, OneClip))
        except DvgenError as error:
            self._failed(job, error)
            return None

    def _round(self, every: Sequence[Ready]) -> list[Ready]:
        """Make what no other process makes; the rest."""
        held: list[Ready] = []
        for chunk in _parts(every, CHUNK):
            made: list[Denoised] = []
            for pack in self._packs(chunk):
                ours = [each for each in pack if self._is_ours(each, held)]
                if not ours:
                    continue
                self._read(text for each in ours for text in each.video.prompts)
                pairs = [(each, self._unfinished(each.path, each.video)) for each in ours]
                for each, unfinished in pairs:
                    if self.rules.fresh:
                        unfinished.remove()
                    elif there := unfinished.saved():
                        self.board.note(f"{each.job.where}: {there} steps are there: going on (--fresh begins anew)")
                if ours[0].alone:
                    self._write(*pairs[0])
                    continue
                made += self._denoise(pairs)
                if self.keep:
                    self._decode(made)
                    made = []
            self._decode(made)
            self._forget(each for each in chunk if each not in held)
        return held

    def _packs(self, chunk: Sequence[Ready]) -> Iterator[list[Ready]]:
        """Jobs with the same settings that are as far, up to so many jobs and tokens together."""
        alike: dict[Any, list[Ready]] = {}
        for number, each in enumerate(chunk):
            steps = 0 if each.alone else self._unfinished(each.path, each.video).saved()
            alike.setdefault(number if each.alone else (each.video.settings, steps), []).append(each)
        for several in alike.values():
            pack: list[Ready] = []
            tokens = 0
            for each in several:
                if len(pack) == self.rules.pack or (pack and tokens + each.video.plan.tokens > self.most):
                    yield pack
                    pack, tokens = [], 0
                pack.append(each)
                tokens += each.video.plan.tokens
            yield pack

    def _is_ours(self, each: Ready, held: list[Ready]) -> bool:
        """Whether a job is still to be done, and this process has it now; held: those of others are added."""
        try:
            if not self.claims.take(each.path):
                self.board.elsewhere(each.job)
                held.append(each)
                return False
        except OSError as error:
            self._failed(each.job, MediaError(f"{each.path}: cannot be written ({error.strerror or error})."))
            return False
        if _stamp(each.path) in (each.was, None):
            return True
        try:  # it has appeared since, so another process has made it
            if (found := is_made_by(each.path, each.video)) is not False:
                self.board.end(each.job, "skipped", path=each.path)
                self.claims.release(each.path)
            elif not self.rules.overwrite:
                raise MediaError(f"{each.path}: the file exists; choose another name or pass --overwrite.")
            return found is False
        except DvgenError as error:
            self._failed(each.job, error, each.path)
            return False

    def _unfinished(self, path: Path, video: Prepared) -> "Unfinished":
        from dit_video.unfinished import Unfinished

        return Unfinished(path.parent, video.key(path), video.sampling.seed)

    def _write(self, each: Ready, unfinished: "Unfinished") -> None:
        """A job that is in no pack, from its beginning to its end."""
        self.board.begin([each.job])
        try:
            self._done(each, each.video.write(self.stages, each.path, unfinished))
        except DvgenError as error:
            self._failed(each.job, error, each.path)

    def _denoise(self, pack: "Sequence[tuple[Ready, Unfinished]]") -> "list[Denoised]":
        """The latents of a pack; where that fails each of its jobs is tried alone."""
        from dit_video.denoise import latent_size, sample_latents
        from dit_video.stages import explained_memory
        from dit_video.unfinished import Together

        ready = [each for each, _ in pack]
        self.board.begin(each.job for each in ready)
        sizes = [latent_size(self.stages.checkpoint, each.video.plan.shape) for each in ready]
        together = Together([unfinished for _, unfinished in pack], list(map(prod, sizes)))
        try:
            with explained_memory(ready[0].video.plan.shape):
                clips = [each.video.encoded(self.stages) for each in ready if isinstance(each.video, OneClip)]
                latents = sample_latents(self.stages, clips, ready[0].video.settings, unfinished=together)
            return [(*one, clip, found.cpu()) for one, clip, found in zip(pack, clips, latents, strict=True)]
        except DvgenError as error:
            if len(pack) == 1:
                self._failed(ready[0].job, error, ready[0].path)
                return []
        return [found for one in pack for found in self._denoise([one])]

    def _decode(self, made: "Sequence[Denoised]") -> None:
        for number, (each, unfinished, clip, latents) in enumerate(made):
            assert isinstance(each.video, OneClip)
            self.board.begin([each.job])
            there = latents.to(self.stages.device)
            try:
                self._done(each, each.video.write_latents(self.stages, clip, there, each.path, unfinished))
            except DvgenError as error:
                self._failed(each.job, error, each.path)
            except BaseException:  # Ctrl-C: those that are denoised, and not decoded, are kept too
                for _, other, _, _ in made[number + 1 :]:
                    with suppress(DvgenError):
                        other.write()
                raise

    def _done(self, each: Ready, found: "Result | Extended") -> None:
        self.board.end(each.job, "done", **{name: getattr(found, name) for name in TOLD if hasattr(found, name)})
        self.claims.release(each.path)

    def _failed(self, job: Job, error: DvgenError, path: Path | None = None) -> None:
        self.board.fail(job, error)
        if path:
            self.claims.release(path)
        if not self.rules.keep_going:
            raise typer.Exit(SOME_FAILED)

    def _forget(self, ended: Iterable[Ready]) -> None:
        """Lets go of what was made of texts that no other job needs."""
        for each in ended:
            for text in each.video.prompts:
                self.texts[text] -= 1
                if not self.texts[text]:
                    self.stages.embeds.pop(text, None)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def path_of(job: Job, video: Prepared, out: Path, template: str) -> Path:
    """The file of a job: what it names, or in the folder `out` one that is named after a template."""
    name = template.format(index=job.index, slug=options.slug(video.title), seed=video.sampling.seed)
    return video.sampling.output or out / f"{name}{video.suffix}"


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when a file is replaced; None where there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def is_made_by(path: Path, video: Prepared) -> bool | None:
    """Whether a file was made by this recipe; None where recipes are not written. Raises MediaError."""
    recipe = video.recipe
    if recipe is None:
        return None
    found = read_recipe(path)
    return found is not None and found.makes_the_same(recipe)
