"""`dvgen sample`: a prompt, and pictures where there are some, become a video."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_video.errors import UsageError
from dit_video.shapes import VideoShape, parse_size
from dvgen import command, console, options, pictures, prepared
from dvgen.logs import with_logging
from dvgen.sampling import Sampling
from dvgen.shared import Text, video_option, with_sampling

if TYPE_CHECKING:
    from dvgen.prepared import Checkpoint, Place


class Word(str):
    """An argument as it came, which is told from others with the same letters."""


class Command(command.Command):
    """`sample`, which answers a prompt without quotes with the command line that was meant."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in every command, except for arguments beyond the prompt. Raises UsageError."""
        if ctx.resilient_parsing:  # a shell asks what could come next
            return super().parse_args(ctx, args)
        given = [Word(arg) for arg in args]
        ctx.allow_extra_args = True
        try:
            rest = super().parse_args(ctx, list(args))
        except Exception as error:
            if type(error).__name__ == "NoSuchOption":  # of Click, wherever this version of Typer keeps it
                _refuse_dash(args)
            raise
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


def _refuse_dash(args: Sequence[str]) -> None:
    """Says where a prompt goes that begins with a dash, and so was taken for an option. Raises UsageError."""
    prompt = next((arg for arg in args if arg.startswith("-") and " " in arg), None)
    if prompt is not None and "--" not in args:
        options = [shlex.quote(arg) for arg in args if arg is not prompt]
        meant = " ".join(["dvgen sample", *options, "--", _quoted(prompt)])
        raise UsageError(f"a prompt that begins with a dash goes last, after --, or it is an option: {meant}")


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


@with_logging
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
        video_option(
            "--image", "FILE[@FRAME]", "A picture to animate: the first frame, @last, or @N; repeatable.", setting=False
        ),
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
        prepared.make(request, prepare, speaker)


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
        with request.sampling.listing():
            pictures.check_frames(request.images, frames)


def prepare(request: Request, checkpoint: "Checkpoint", place: "Place", speaker: console.Speaker) -> prepared.Prepared:
    """What a request means for a checkpoint: refused where it cannot be, and what the user should know is said.

    Raises:
        DvgenError: so it is.
    """
    from dit_video.windows import longest_whole, sliding
    from dvgen.sliding import Sliding, check_options

    sampling = request.sampling
    fps = request.fps or checkpoint.defaults.fps
    read = pictures.read(request.images)
    shape = _shape(request, checkpoint, fps, read)
    if checkpoint.beside:
        with sampling.listing():
            pictures.check_beside(request.images, checkpoint.known_frames, shape.num_frames)
    settings = sampling.settings(checkpoint)
    sizes = [(image, (pixels.shape[1], pixels.shape[0])) for image, pixels in read]
    given: Mapping[int, pictures.Placed] = {}
    with sampling.listing():
        given = pictures.groups_of(sizes, shape, checkpoint.grid, request.fit, speaker.note)
    if given and not checkpoint.beside:
        pictures.warn_untrained(checkpoint.known_frames, list(given), sampling.warn(speaker))
    division = sliding(checkpoint, shape.num_frames, list(given))
    common: dict[str, Any] = {
        "sampling": sampling,
        "checkpoint": checkpoint,
        "place": place,
        "command": "sample",
        "arguments": [],
        "options": {
            "size": f"{shape.width}x{shape.height}",
            "frames": shape.num_frames,
            "fps": fps,
            "image": [image.text for image in request.images],
            "fit": request.fit if request.images else None,
        },
        "files": [image.path for image in request.images],
        "title": request.prompt,
        "prompt": request.prompt,
        "negative": sampling.negative_of(checkpoint),
        "settings": settings,
        "frames": shape.num_frames,
        "fps": fps,
        "images": request.images,
        "fit": request.fit,
    }
    if division is None:
        plan = sampling.plan(checkpoint, shape, *place, encodes=any(given))
        return prepared.OneClip(plan=plan, **common)
    with sampling.listing():
        check_options(sampling, shape.num_frames, longest_whole(checkpoint))
    lengths = division.whole_sizes(shape.num_frames)
    window = replace(shape, num_frames=max(lengths))
    plan = sampling.plan(checkpoint, window, *place, encodes=any(given) or division.groups_before > 1)
    return Sliding(plan=plan, windows=len(lengths), division=division, **common)


def _shape(
    request: Request,
    checkpoint: "Checkpoint",
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
