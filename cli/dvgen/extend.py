"""`dvgen extend` and `dvgen connect`: new frames before, after and between given ones."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_video import limits
from dit_video.errors import UsageError
from dit_video.shapes import VideoShape
from dvgen import clips, console, options, pictures, prepared
from dvgen.logs import with_logging
from dvgen.sampling import Sampling
from dvgen.shared import Text, video_option, with_sampling

if TYPE_CHECKING:
    from dit_video.windows import Windows
    from dvgen.prepared import Checkpoint, Place

Clip = Annotated[Path, typer.Argument(metavar="CLIP", help="A video, or a picture.", show_default=False)]
Prompt = Annotated[str, typer.Argument(metavar="[PROMPT]", help='What happens; "-" reads standard input.')]


# The frames of the clips are copied, so latents would not make the video: these commands leave none.
WITHOUT = ("save_latents", "keep_latents", "count", "preview_file")


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked command line of `extend`, or with a second clip of `connect`.

    backward, forward, loop: new frames before the clip, after it, and from its end to the second's beginning, or to its
    own. fit: how the second is made to fit the first.
    """

    clip: Path
    second: Path | None = None
    prompt: str
    backward: int = 0
    forward: int = 0
    loop: int = 0
    fit: str | None = None
    sampling: Sampling


@with_logging
@with_sampling(without=WITHOUT)
def extend(
    clip: Clip,
    prompt: Prompt = "",
    *,
    forward: Annotated[Text, video_option("--forward", "FRAMES", "New frames after the clip.", setting=False)] = None,
    backward: Annotated[Text, video_option("--backward", "FRAMES", "New frames before it.", setting=False)] = None,
    loop: Annotated[
        Text, video_option("--loop", "FRAMES", "New frames that lead back to its beginning.", setting=False)
    ] = None,
    sampling: Sampling,
) -> None:
    """Make CLIP longer: after its end, before its beginning, or into a loop.

    The clip's own frames stay as they are, until they are encoded again beside the new ones; size and rate are the
    clip's.
    """
    _run(request_of(clip, options.prompt(prompt), forward=forward, backward=backward, loop=loop, sampling=sampling))


def request_of(clip: Path, prompt: str, *, forward: Text, backward: Text, loop: Text, sampling: Sampling) -> Request:
    """Options of `extend` as they were typed, checked as far as they can be without torch. Raises DvgenError."""
    new = {
        option: options.whole(f"--{option}", text, 1, limits.MAX_FRAMES)
        for option, text in (("forward", forward), ("backward", backward), ("loop", loop))
        if text is not None
    }
    if not new:
        raise UsageError("nothing to do: give --forward FRAMES, --backward FRAMES or both, or --loop FRAMES.")
    if "loop" in new and len(new) > 1:
        other = next(option for option in new if option != "loop")
        raise UsageError(f"--loop and --{other}: a loop has no end to go on from; only one of the two can be given.")
    clips.check_there(clip, "CLIP")
    sampling.check_model()
    sampling.check_output(2, 1.0)
    before, after, between = (new.get(option, 0) for option in ("backward", "forward", "loop"))
    return Request(clip=clip, prompt=prompt, backward=before, forward=after, loop=between, sampling=sampling)


@with_logging
@with_sampling(without=WITHOUT)
def connect(
    first: Annotated[Path, typer.Argument(metavar="A", help="The clip, or picture, to begin with.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The one to end with.")],
    prompt: Prompt = "",
    *,
    frames: Annotated[Text, video_option("--frames", "N", "New frames between the two.", of="connect")] = None,
    fit: Annotated[Text, video_option("--fit", "RULE", "How B is made to fit A: cover, contain or stretch.")] = None,
    sampling: Sampling,
) -> None:
    """Join A and B by new frames that lead from the last of A to the first of B.

    The frames of both stay as they are, until they are encoded again; size and rate are those of A.
    """
    _run(connect_request_of(first, second, options.prompt(prompt), frames=frames, fit=fit, sampling=sampling))


def connect_request_of(
    first: Path, second: Path, prompt: str, *, frames: Text, fit: Text, sampling: Sampling
) -> Request:
    """Options of `connect` as they were typed, checked as far as they can be without torch. Raises DvgenError."""
    if frames is None:
        raise UsageError("--frames is missing: how many new frames should lead from A to B?")
    count = options.frames(frames)
    rule = None if fit is None else options.choice("--fit", fit, limits.FITS)
    for path, name in ((first, "A"), (second, "B")):
        clips.check_there(path, name)
    sampling.check_model()
    sampling.check_output(2, 1.0)
    return Request(clip=first, second=second, prompt=prompt, loop=count, fit=rule, sampling=sampling)


def _run(request: Request) -> None:
    with console.Speaker(quiet=request.sampling.quiet) as speaker:
        prepared.make(request, prepare, speaker)


def prepare(request: Request, checkpoint: "Checkpoint", place: "Place", speaker: console.Speaker) -> prepared.Windowed:
    """What a request means for a checkpoint: refused where it cannot be, and what the user should know is said.

    Raises:
        DvgenError: so it is.
    """
    from dit_video.windows import Windows

    sampling, note = request.sampling, speaker.note
    clip = clips.open_clip(request.clip, "A" if request.second else "CLIP", note, fps=checkpoint.defaults.fps)
    second = request.second and clips.open_clip(
        request.second, "B", note, fps=clip.fps, size=clip.size, rate=clip.fps, fit=request.fit
    )
    longest = checkpoint.defaults.window or checkpoint.defaults.frames
    windows = Windows.of(checkpoint.grid, longest, beside=checkpoint.beside)
    sizes = windows.all_sizes(backward=request.backward, forward=request.forward, loop=request.loop)
    if checkpoint.beside:
        _check_beside(checkpoint.known_frames, request, windows)  # so it is given what it was trained with
    elif request.backward or request.loop:
        pictures.warn_untrained(checkpoint.known_frames, [0, 1], sampling.warn(speaker))
    else:
        pictures.warn_untrained(checkpoint.known_frames, range(windows.groups_before), sampling.warn(speaker))
    encodes = bool(request.backward or request.loop) or windows.groups_before > 1
    shape = VideoShape(num_frames=max(sizes), height=clip.size[1], width=clip.size[0])
    return prepared.Windowed(
        sampling=sampling,
        checkpoint=checkpoint,
        place=place,
        **_line(request),
        prompt=request.prompt,
        negative=sampling.negative_of(checkpoint),
        settings=sampling.settings(checkpoint),
        plan=sampling.plan(checkpoint, shape, *place, encodes=encodes),
        windows=len(sizes),
        frames=clip.frames + (second.frames if second else 0) + request.backward + request.forward + request.loop,
        fps=clip.fps,
        first=clip,
        second=second or None,
        backward=request.backward,
        forward=request.forward,
        loop=request.loop,
        division=windows,
    )


def _line(request: Request) -> dict[str, Any]:
    """The command line of a request, as `Prepared` has it."""
    files = [request.clip, request.second] if request.second else [request.clip]
    if request.second:
        command, title = "connect", f"{request.clip.stem} to {request.second.stem}"
        new: dict[str, Any] = {"frames": request.loop, "fit": request.fit}
    else:
        command, title = "extend", f"{request.clip.stem} {'loop' if request.loop else 'extended'}"
        new = {name: getattr(request, name) or None for name in ("backward", "forward", "loop")}
    arguments = [str(path.resolve()) for path in files]
    return {"command": command, "title": title, "options": new, "arguments": arguments, "files": files}


def _check_beside(known_frames: str, request: Request, windows: "Windows") -> None:
    """Refuses what a model that takes pictures beside the noise cannot make. Raises UsageError."""
    from dit_video.groups import BESIDE, check_beside

    for count, given in ((request.backward, [1]), (request.forward, [0]), (request.loop, [0, 1])):
        if count:
            check_beside(known_frames, given, 2)
    most = windows.most(before=True, after=True)
    if known_frames == "first and last" and request.loop > most:
        raise UsageError(f"{request.loop} new frames: this model {BESIDE[known_frames]}, at once; the most is {most}.")
