"""`dvgen sample`: a prompt, and pictures where there are some, become a video."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dit_video.errors import UsageError
from dit_video.shapes import VideoShape, parse_size
from dvgen import console, options, pictures
from dvgen.sampling import Sampling, Text, video_option, what_it_takes, with_sampling

if TYPE_CHECKING:
    import numpy as np
    import torch

    from dit_video.clip import Clip, Settings
    from dit_video.make import Result
    from dit_video.models.wan.pipeline import WanCheckpoint
    from dit_video.models.wan.random import RandomCheckpoint
    from dit_video.plan import Plan
    from dit_video.stages import Stages
    from dvgen.recipe import Recipe


class Word(str):
    """An argument as it came, which is told from others with the same letters."""


class Command(TyperCommand):
    """`sample`, which answers a prompt without quotes with the command line that was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in every command, except for arguments beyond the prompt. Raises UsageError."""
        given = [Word(arg) for arg in args]
        ctx.allow_extra_args = True
        rest = super().parse_args(ctx, list(args))
        if not ctx.args:
            return rest
        values, others, _ = self.make_parser(ctx).parse_args(list(given))
        words = [values["prompt"], *others]
        prompt = " ".join(" ".join(words).split())
        line = ["dvgen", "sample"]
        for arg in given:
            if arg is words[0]:
                line.append(_quoted(prompt))
            elif not any(arg is word for word in words):
                line.append(shlex.quote(arg))
        raise UsageError(f"the prompt is {len(words)} arguments and must be one, in quotes: {' '.join(line)}")


def _quoted(prompt: str) -> str:
    """In double quotes, which every shell knows, where nothing in it needs more."""
    return shlex.quote(prompt) if set(prompt) & set('"$`\\!%') else f'"{prompt}"'


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked command line; None leaves a value to the checkpoint, or to the first picture."""

    prompt: str
    size: tuple[int, int] | None
    frames: int | None
    duration: str | None
    fps: float | None
    images: tuple[pictures.Placed, ...]
    fit: str
    sampling: Sampling


@with_sampling()
def sample(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='What to show; "-" reads standard input.')],
    *,
    size: Annotated[Text, video_option("--size", "WxH", "Exact size in pixels, such as 640x360.")] = None,
    frames: Annotated[Text, video_option("--frames", "N", "Exact number of frames.")] = None,
    duration: Annotated[Text, video_option("--duration", "SECONDS", "Instead of --frames.")] = None,
    fps: Annotated[Text, video_option("--fps", "F", "Frames per second.")] = None,
    image: Annotated[
        list[str] | None,
        video_option("--image", "FILE[@FRAME]", "A picture to animate: the first frame, @last, or @N; repeatable."),
    ] = None,
    fit: Annotated[Text, video_option("--fit", "RULE", pictures.FIT_HELP)] = None,
    sampling: Sampling,
) -> None:
    """Make a video of PROMPT, with exactly the size and the number of frames asked for.

    What is not given comes from the checkpoint. Standard output gets the path of the video, standard error all else.
    """
    request = request_of(
        options.prompt(prompt),
        size=size,
        frames=frames,
        duration=duration,
        fps=fps,
        image=image,
        fit=fit,
        sampling=sampling,
    )
    with console.Speaker(quiet=sampling.quiet) as speaker:
        result = _make(request, speaker)
    console.result(json.dumps(asdict(result), default=str) if sampling.as_json else str(result.path))


def request_of(
    prompt: str,
    *,
    size: Text,
    frames: Text,
    duration: Text,
    fps: Text,
    image: list[str] | None,
    fit: Text,
    sampling: Sampling,
) -> Request:
    """Options as they were typed, checked as far as they can be without torch. Raises DvgenError."""
    given = options.given
    request = Request(
        prompt=prompt,
        size=given(size, parse_size),
        frames=given(frames, options.frames),
        duration=duration,
        fps=given(fps, options.fps),
        images=pictures.parse(image or []),
        fit=pictures.parse_fit(fit, needed="--image" if not image else ""),
        sampling=sampling,
    )
    _check(request)
    return request


def _check(request: Request) -> None:
    """Refuses what can be refused before torch is imported."""
    if request.duration is not None and request.frames is not None:
        given = f"--frames {request.frames} and --duration {request.duration}"
        raise UsageError(f"{given}: only one of the two can be given.")
    ours = request.sampling.check_model()
    rates, frames = request.sampling.rates(ours, request.fps), request.frames
    if request.duration is not None:
        options.check_duration(request.duration, rates)
        if len(rates) == 1:
            frames = options.frames_of_duration(request.duration, rates[0])
    elif frames is None:
        frames = ours.get("frames")
    # What cannot be told yet is checked again later.
    request.sampling.check_output(frames if isinstance(frames, int) else 1, request.fps or 1.0)
    if isinstance(frames, int):
        pictures.check_frames(request.images, frames)


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A request together with its checkpoint: all but the arithmetic. given, seen: see `encode_given`."""

    request: Request
    clip: "Clip"
    settings: "Settings"
    fps: float
    plan: "Plan"
    given: "Mapping[int, np.ndarray]"
    seen: "Mapping[int, np.ndarray]"
    recipe: "Recipe | None"
    path: Path | None = None

    def encoded(self, stages: "Stages") -> "Clip":
        """The clip with what is given of it. Raises DvgenError."""
        from dit_video.make import encode_given

        if not self.given:
            return self.clip
        return replace(self.clip, known=encode_given(stages, self.clip.shape, self.given, self.seen))


def prepare(
    request: Request,
    checkpoint: "WanCheckpoint | RandomCheckpoint",
    device: "torch.device",
    dtype: "torch.dtype",
    speaker: console.Speaker,
) -> Prepared:
    """What a request means for a checkpoint: refused where it cannot be, and what the user should know is said.

    Raises:
        DvgenError: so it is.
    """
    from dit_video.clip import Clip

    sampling = request.sampling
    fps = request.fps or checkpoint.defaults.fps
    read = pictures.read(request.images)
    shape = _shape(request, checkpoint, fps, read)
    if checkpoint.beside:
        pictures.check_beside(request.images, checkpoint.known_frames, shape.num_frames)
    settings = sampling.settings(checkpoint)
    given = pictures.given(read, shape, checkpoint.grid, request.fit, speaker.note)
    plan = sampling.plan(checkpoint, shape, device, dtype, encodes=any(given))
    if given and not checkpoint.beside:
        pictures.warn_untrained(checkpoint.known_frames, list(given), sampling.warn(speaker))
    prompts = request.prompt, sampling.negative_of(checkpoint)
    recipe = sampling.recipe(
        "sample",
        [request.prompt],
        checkpoint,
        settings,
        (device, dtype),
        files=[image.path for image in request.images],
        size=f"{shape.width}x{shape.height}",
        frames=shape.num_frames,
        fps=fps,
        image=[image.text for image in request.images],
        fit=request.fit if request.images else None,
    )
    return Prepared(
        request=request,
        clip=Clip(prompt=prompts[0], negative=prompts[1], shape=shape, seed=sampling.seed),
        settings=settings,
        fps=fps,
        plan=plan,
        given=given,
        seen=pictures.seen(read, shape, checkpoint.grid),
        recipe=recipe,
    )


def _make(request: Request, speaker: console.Speaker) -> "Result":
    sampling = request.sampling
    speaker.progress("load program", 0, 1)
    from dit_video.make import make_clip
    from dit_video.unfinished import key_of

    checkpoint = sampling.open()
    device, dtype = place = sampling.place()
    speaker.progress("load program", 1, 1)
    ready = prepare(request, checkpoint, device, dtype, speaker)
    settings, shape, fps, plan = ready.settings, ready.clip.shape, ready.fps, ready.plan
    prompts, named = (ready.clip.prompt, ready.clip.negative), ("sample", str(sampling.output), fps)
    key = key_of(checkpoint, settings, prompts=prompts, shape=shape, given=ready.given, more=named, place=place)
    sampling, unfinished = sampling.go_on(key, speaker)
    if sampling.seed != request.sampling.seed:
        ready = prepare(replace(request, sampling=sampling), checkpoint, device, dtype, speaker)
    output = sampling.output_of(request.prompt, shape.num_frames, fps)
    sampling.tell_seed(speaker)
    sampling.tell_size(checkpoint, shape, speaker)
    speaker.note(what_it_takes(plan, settings, device))
    return make_clip(
        sampling.stages(checkpoint, device, dtype, speaker, plan),
        ready.clip,
        settings,
        output,
        fps=fps,
        given=ready.given,
        seen=ready.seen,
        overwrite=sampling.overwrite,
        save_latents=sampling.latents_of(output),
        model=sampling.model.saved_name,
        tile=plan.tile,
        unfinished=unfinished,
        strict=sampling.strict,
        comment=ready.recipe.text() if ready.recipe else "",
    )


def _shape(
    request: Request,
    checkpoint: "WanCheckpoint | RandomCheckpoint",
    fps: float,
    read: "Sequence[tuple[pictures.Placed, Any]]",
) -> VideoShape:
    """Size and length: what was asked for, the first picture's size, and the checkpoint's defaults for the rest."""
    defaults = checkpoint.defaults
    width, height = request.size or (pictures.size_of(*read[0]) if read else (defaults.width, defaults.height))
    frames = request.frames or defaults.frames
    if request.duration is not None:
        frames = options.frames_of_duration(request.duration, fps)
    return VideoShape(num_frames=frames, height=height, width=width)
