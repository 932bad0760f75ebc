"""Command lines together with their checkpoint, with nothing left to do but the arithmetic; for one and for many."""

import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dvgen import budget, console, dry_run, process
from dvgen.clips import ClipFile, tell_coding
from dvgen.pictures import Placed
from dvgen.recipe import Recipe
from dvgen.sampling import Sampling
from dvgen.takes import what_it_takes

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dit_video.clip import Clip, Settings
    from dit_video.course import Course
    from dit_video.denoise import OnDenoised
    from dit_video.extend import Extended, Maker
    from dit_video.make import Result
    from dit_video.models.wan.pipeline import WanCheckpoint
    from dit_video.models.wan.random import RandomCheckpoint
    from dit_video.plan import Plan
    from dit_video.shapes import VideoShape
    from dit_video.stages import Stages
    from dit_video.timing import Clock, Span
    from dit_video.unfinished import Unfinished
    from dit_video.video.sheet import Strip
    from dit_video.windows import Windows
    from dit_video.work import Step

    Checkpoint = WanCheckpoint | RandomCheckpoint
    Place = tuple[torch.device, torch.dtype]


class Request(Protocol):
    """A command line that is checked as far as it can be without torch."""

    @property
    def sampling(self) -> Sampling: ...


@dataclass(frozen=True, kw_only=True)
class Prepared(ABC):
    """A command line that can be carried out; small, whatever pictures and clips it reads.

    command, arguments, options: it, as the recipe has it. files: what it reads. title: what its video is named after.
    plan: of what goes through the model at a time, and windows: how many times. frames: of the video.
    """

    sampling: Sampling
    checkpoint: "Checkpoint"
    place: "Place"
    command: str
    arguments: Sequence[str]
    options: Mapping[str, Any]
    files: Sequence[Path]
    title: str
    prompt: str
    negative: str
    settings: "Settings"
    plan: "Plan"
    windows: int = 1
    frames: int
    fps: float

    @property
    def prompts(self) -> list[str]:
        """What is read: the negative prompt only where there is guidance."""
        return [self.prompt, self.negative] if max(self.settings.guidance) > 1 else [self.prompt]

    @property
    def steps(self) -> "list[Step]":
        """Those of denoising."""
        from dit_video.work import steps_of

        return steps_of(self.settings, self.checkpoint.boundary)

    def tell_fast(self, warn: Callable[[str], None]) -> None:
        """Say so where --fast skips nothing, or --quantize int8 makes nothing faster."""
        from dit_video.limits import why_not_quantize
        from dit_video.work import why_not_fast

        fast = why_not_fast(self.settings, self.checkpoint.boundary)
        for words in filter(None, (fast, why_not_quantize(self.sampling.quantize, self.checkpoint.dit.dim))):
            warn(words)

    @property
    def suffix(self) -> str:
        """Of its video, where no name was given."""
        return ".png" if self.frames == 1 else ".mp4"

    @cached_property
    def recipe(self) -> Recipe | None:
        """The recipe that goes into the file, if one does."""
        arguments = [*self.arguments, self.prompt]
        place, files = self.place, self.files
        found = self.sampling.recipe(
            self.command, arguments, self.checkpoint, self.settings, place, files=files, **self.options
        )
        return found and found.with_tile(self.plan.tile)

    @property
    def comment(self) -> str:
        """The recipe as it is written, or nothing."""
        return self.recipe.text() if self.recipe else ""

    @property
    def each(self) -> "list[Prepared]":
        """It for every video that is asked for, see `Sampling.each`."""
        return [replace(self, sampling=each) for each in self.sampling.each]

    def there_already(self) -> Path | None:
        """Its video, where the same recipe has made it before."""
        return self.sampling.there_already(self.title, self.frames, self.recipe)

    def key(self, output: Path | None) -> str:
        """What tells its latents from all others, but the seed; output: the file, if it was named."""
        from dit_video.checkpoints.files import fingerprint
        from dit_video.unfinished import key_of

        files = fingerprint(self.files)
        named: tuple[object, ...] = self.command, dict(self.options), files, self._division(), self.fps, str(output)
        if self.sampling.quantize:
            named = *named, self.sampling.quantize
        prompts = (self.prompt, self.negative)
        return key_of(
            self.checkpoint, self.settings, prompts=prompts, shape=self.plan.shape, more=named, place=self.place
        )

    def _division(self) -> object:
        """How it is divided into windows."""
        return None

    def stages(self, speaker: console.Speaker, *, several: bool = False) -> "Stages":
        """The stages that it needs; several: they are needed again for the next one."""
        device, dtype = self.place
        return self.sampling.stages(self.checkpoint, device, dtype, speaker, self.plan, keep=self._keeps(several))

    def _keeps(self, several: bool) -> bool:
        """Whether all stages stay in memory, where there is room for them: for the next video, and for the next window
        where they would be copied to a device or compiled again. On a CPU a window is far more work than loading, and
        without what the other stages hold a long clip takes as much memory as a short one.
        """
        from dit_video.machine import memory_for
        from dit_video.plan import weights_bytes

        device, dtype = self.place
        in_windows = self.windows > 1 and (device.type != "cpu" or self.sampling.compile)
        if not (several or in_windows) or self.plan.keep_layers:
            return False
        together = self.plan.nbytes + weights_bytes(self.checkpoint, dtype.itemsize)
        return together < memory_for(device, self.sampling.memory)

    def course(self, *, suffix: str = "", videos: int = 1) -> "Course":
        """What is done for it, and so for `videos` that differ by their seeds alone; suffix: of their files."""
        from dit_video.course import Course
        from dit_video.work import passes_of

        encoded, passes = self._encoded(), passes_of(self.settings, self.checkpoint.boundary)
        return Course(
            shapes=self._shapes() * videos,
            encoded=encoded * videos,
            passes=passes,
            prompts=len(self.unread()) if passes.count else 0,
            suffix=suffix or self.suffix,
            tile=self.plan.tile,
            keeps=self._keeps(videos > 1),
            sees_images=self.checkpoint.sees_images,
            written=self._copied() * videos,
        )

    def expected(self, clock: "Clock", **how: Any) -> "Span":
        """How long it takes; how: see `course`."""
        from dit_video.timing import NOTHING

        return sum(self.course(**how).expected(clock).values(), NOTHING)

    def _shapes(self) -> "list[VideoShape]":
        """Of what goes through the model, one after the other."""
        return [self.plan.shape]

    @abstractmethod
    def _encoded(self) -> list[int]:
        """Of each of them, the frames that are encoded."""

    def _copied(self) -> int:
        """Frames that are written one by one, where they are not those of one clip."""
        return 0

    def unread(self) -> list[str]:
        """The prompts that are not in the cache of what was read before."""
        from dit_video.machine import dtype_name
        from dit_video.text.cache import made_by, users_cache

        device, dtype = self.place
        files = self.checkpoint.text_files
        cache = users_cache(made_by(files, dtype_name(dtype), device.type)) if files else None
        return [prompt for prompt in dict.fromkeys(self.prompts) if cache is None or not cache.has(prompt)]

    @abstractmethod
    def write(
        self, stages: "Stages", output: Path, unfinished: "Unfinished | None", watching: "_Watching | None" = None
    ) -> "Result | Extended":
        """Make the video; unfinished: where the state of denoising is kept meanwhile. Raises DvgenError."""


@dataclass(frozen=True, kw_only=True)
class OneClip(Prepared):
    """All frames are made at a time. images, fit: pictures that are frames of it. start: the clip that it begins
    with."""

    images: Sequence[Placed] = ()
    fit: str = "cover"
    start: ClipFile | None = None

    def _encoded(self) -> list[int]:
        from dit_video.groups import encoded_frames, group_of

        frames, stride = self.plan.shape.num_frames, self.checkpoint.grid.stride[0]
        if self.start is not None or (self.images and self.checkpoint.beside):
            return [frames]
        return [encoded_frames({group_of(image.of(frames), stride) for image in self.images}, stride)]

    def encoded(self, stages: "Stages") -> "Clip":
        """The clip, with what is given of it. Raises DvgenError."""
        from dit_video.clip import Clip
        from dit_video.make import with_frames
        from dvgen import pictures

        shape, grid = self.plan.shape, self.checkpoint.grid
        clip = Clip(prompt=self.prompt, negative=self.negative, shape=shape, seed=self.sampling.seed)
        read = pictures.read(self.images)
        given = pictures.given(read, shape, grid, self.fit, lambda _: None)
        start = None if self.start is None else self.start.head(shape.num_frames)
        return with_frames(stages, clip, given, pictures.seen(read, shape, grid), start)

    def write(
        self, stages: "Stages", output: Path, unfinished: "Unfinished | None", watching: "_Watching | None" = None
    ) -> "Result":
        """See `Prepared`."""
        from dit_video.make import make_clip
        from dit_video.stages import explained_memory

        with explained_memory(self.plan.shape):
            clip = self.encoded(stages)
        watch, show = (watching.watch, watching.show) if watching else (None, None)
        shown: dict[str, Any] = {"watch": watch, "show": show, "fresh": self.sampling.fresh}
        return make_clip(stages, clip, self.settings, output, **shown, **self._how(output, unfinished))

    def write_latents(
        self, stages: "Stages", clip: "Clip", latents: "Tensor", output: Path, unfinished: "Unfinished | None"
    ) -> "Result":
        """Make the video of latents (C, T, H, W) that are there. Raises DvgenError."""
        from dit_video.make import write_clip

        return write_clip(stages, clip, latents, self.settings, output, **self._how(output, unfinished))

    def _how(self, output: Path, unfinished: "Unfinished | None") -> dict[str, Any]:
        return {
            "fps": self.fps,
            "overwrite": self.sampling.overwrite,
            "save_latents": self.sampling.latents_of(output, unfinished),
            "model": self.sampling.model.saved_name,
            "tile": self.plan.tile,
            "unfinished": unfinished,
            "strict": self.sampling.strict,
            "comment": self.comment,
        }


@dataclass(frozen=True, kw_only=True)
class InWindows(Prepared):
    """What is made window by window; plan is of the longest one."""

    division: "Windows"

    def _division(self) -> object:
        return self.division

    def _copied(self) -> int:
        return self.frames

    def _maker(self, stages: "Stages", unfinished: "Unfinished | None") -> "Maker":
        from dit_video.extend import Maker

        return Maker(
            stages,
            self.settings,
            prompt=self.prompt,
            negative=self.negative,
            seed=self.sampling.seed,
            size=(self.plan.shape.width, self.plan.shape.height),
            windows=self.division,
            tile=self.plan.tile,
            unfinished=unfinished,
            strict=self.sampling.strict,
        )


@dataclass(frozen=True, kw_only=True)
class Windowed(InWindows):
    """New frames beside those of clips, window by window.

    first, second: the clips. backward, forward, loop: new frames before the first, after it, and from its end to the
    second's beginning, or to its own.
    """

    first: ClipFile
    second: ClipFile | None = None
    backward: int = 0
    forward: int = 0
    loop: int = 0

    def _shapes(self) -> "list[VideoShape]":
        sizes = self.division.all_sizes(backward=self.backward, forward=self.forward, loop=self.loop)
        return [replace(self.plan.shape, num_frames=size) for size in sizes]

    def _encoded(self) -> list[int]:
        from dit_video.groups import STILL_GROUPS

        shapes, windows = self._shapes(), self.division
        if self.checkpoint.beside:
            return [shape.num_frames for shape in shapes]
        backward = len(windows.sizes(self.backward, before=False, after=True))
        found = [0] * backward + [windows.before] * (len(shapes) - backward)  # what is known before the new frames
        led = [*range(backward), *([len(shapes) - 1] if self.loop else [])]  # those that lead to known frames
        for number in led:
            found[number] += 1 + STILL_GROUPS * windows.stride + windows.after
        return found

    def write(
        self, stages: "Stages", output: Path, unfinished: "Unfinished | None", watching: "_Watching | None" = None
    ) -> "Extended":
        """See `Prepared`."""
        from dit_video.decode import shown
        from dit_video.extend import connected, extended, write_extended
        from dit_video.windows import head_frames

        for clip in (self.first, self.second) if self.second else (self.first,):
            tell_coding(clip, output, stages.note)
        maker = self._maker(stages, unfinished)
        head = (self.second or self.first).head(head_frames(self.division))
        if self.second:
            frames = connected(maker, self.first.read(), self.second.read(), head, self.loop)
        else:
            new = {"backward": self.backward, "forward": self.forward, "loop": self.loop}
            frames = extended(maker, self.first.read(), head, **new)
        if watching and watching.show:
            frames = shown(frames, watching.show)
        old = self.frames - self.backward - self.forward - self.loop
        overwrite = self.sampling.overwrite
        return write_extended(
            maker, frames, output, fps=self.fps, old_frames=old, overwrite=overwrite, comment=self.comment
        )


Prepare = Callable[[Any, "Checkpoint", "Place", console.Speaker], Prepared]


def make(request: Request, prepare: Prepare, speaker: console.Speaker) -> None:
    """Carry out one command line; each video that is made is told on standard output. Raises DvgenError."""
    if request.sampling.problems:
        dry_run.show(request, prepare)
        return
    first = "torch" not in sys.modules
    speaker.progress("load program", 0, 1)
    with process.importing("torch"):
        from dit_video import make as _  # noqa: F401 (what takes long to import)
    from dit_video.machine import since_start

    checkpoint, place = request.sampling.open(), request.sampling.place()
    speaker.progress("load program", 1, 1)
    ready = prepare(request, checkpoint, place, speaker)
    begun = since_start()  # before what may wait for an answer
    ready = budget.settled(ready, speaker)
    sampling, unfinished = request.sampling.go_on(ready.key(request.sampling.output), speaker)
    every = replace(ready, sampling=sampling).each
    several = len(every) > 1
    parts = [unfinished.of_part(number) for number in range(len(every))] if several else [unfinished]
    there = [each.there_already() if several else None for each in every]
    outputs = [file or _output(each, part) for each, part, file in zip(every, parts, there, strict=True)]
    sampling.tell_seed(speaker)
    sampling.tell_size(checkpoint, ready.plan.shape, speaker)
    ready.tell_fast(sampling.warn(speaker))
    stages = ready.stages(speaker, several=several)
    assert stages.clock is not None
    if first:
        stages.clock.took(stages.clock.program(), begun)
    speaker.note(what_it_takes(ready.plan, ready.steps, ready.expected(stages.clock), windows=ready.windows))
    strips: list[Strip] = []
    for each, part, output, old in zip(every, parts, outputs, there, strict=True):
        watching = _Watching(each, stages, speaker, output)
        strips.append(watching.strip)
        if old:
            speaker.note(f"{old}: is there already, made by the same recipe")
            watching.look_at(old)
            about = {"path": str(old), "seed": each.sampling.seed, "skipped": True}
            speaker.result(json.dumps(about) if sampling.as_json else str(old))
            continue
        result = each.write(stages, output, part, watching)
        speaker.result(json.dumps(asdict(result), default=str) if sampling.as_json else str(result.path))
        stages.count_anew()
    if sampling.sheet:
        from dit_video.video.sheet import write_sheet

        write_sheet(sampling.sheet, strips, overwrite=sampling.overwrite)


def _output(ready: Prepared, unfinished: "Unfinished") -> Path:
    """The file to write. Raises UsageError, MediaError: it cannot be written, or its latents cannot."""
    output = ready.sampling.output_of(ready.title, ready.frames, ready.fps)
    ready.sampling.latents_of(output, unfinished)
    return output


class _Watching:
    """What is shown of a video while it is made: some of its frames on the sheet, and the preview."""

    def __init__(self, ready: Prepared, stages: "Stages", speaker: console.Speaker, output: Path) -> None:
        from dit_video.video.sheet import Strip

        self.strip = Strip(f"{ready.prompt}   seed {ready.sampling.seed}", ready.frames)
        self.show = self.strip if ready.sampling.sheet else None
        self.watch: OnDenoised | None = None
        if file := ready.sampling.preview_file:
            from dit_video.cache import users_folder
            from dit_video.preview import Preview, preview_map

            to_pixels = preview_map(lambda: stages.vae, ready.checkpoint.vae_identity, users_folder("preview"))
            warn = ready.sampling.warn(speaker)
            self.watch = Preview(file, ready.plan.shape, ready.fps, to_pixels, warn, of=output)

    def look_at(self, file: Path) -> None:
        """The sheet has frames of a video that is there already too. Raises MediaError."""
        from dit_video.video.io import read_frames

        if self.show:
            for number, frame in enumerate(read_frames(file)):
                self.show(number, frame)
