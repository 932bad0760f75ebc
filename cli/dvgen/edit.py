"""`dvgen edit`: a clip changed as a prompt says (SDEdit)."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dit_video import limits
from dit_video.errors import UsageError
from dit_video.shapes import VideoShape
from dvgen import clips, console, options, prepared
from dvgen.logs import with_logging
from dvgen.sampling import Sampling
from dvgen.shared import Text, video_option, with_sampling

if TYPE_CHECKING:
    from dvgen.prepared import Checkpoint, Place


@with_logging
@with_sampling()
def edit(
    clip: Annotated[Path, typer.Argument(metavar="CLIP", help="A video, or a picture.", show_default=False)],
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='What to show; "-" reads standard input.')],
    *,
    strength: Annotated[
        Text,
        video_option("--strength", "0..1", f"How much may change: 0 nothing, 1 all; {limits.STRENGTH:g} without."),
    ] = None,
    sampling: Sampling,
) -> None:
    """Change CLIP as PROMPT says; size, length and rate stay.

    The clip is covered by as much noise as the strength says, and the noise removed with the prompt in view.
    """
    request = request_of(clip, options.prompt(prompt), strength=strength, sampling=sampling)
    with console.Speaker(quiet=sampling.quiet) as speaker:
        prepared.make(request, prepare, speaker)


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked command line."""

    clip: Path
    prompt: str
    strength: float
    sampling: Sampling


def request_of(clip: Path, prompt: str, *, strength: Text, sampling: Sampling) -> Request:
    """Options as they were typed, checked as far as they can be without torch. Raises DvgenError."""
    amount = limits.STRENGTH if strength is None else options.strength(strength)
    clips.check_there(clip, "CLIP")
    sampling.check_model()
    sampling.check_output(1, 1.0)
    return Request(clip=clip, prompt=prompt, strength=amount, sampling=sampling)


def prepare(request: Request, checkpoint: "Checkpoint", place: "Place", speaker: console.Speaker) -> prepared.OneClip:
    """What a request means for a checkpoint. Raises DvgenError."""
    if checkpoint.beside:
        raise UsageError("this model animates images and cannot edit a clip; use a text-to-video model.")
    sampling = request.sampling
    clip = clips.open_clip(request.clip, "CLIP", speaker.note, fps=checkpoint.defaults.fps)
    shape = VideoShape(num_frames=clip.frames, height=clip.size[1], width=clip.size[0])
    return prepared.OneClip(
        sampling=sampling,
        checkpoint=checkpoint,
        place=place,
        command="edit",
        arguments=[str(request.clip.resolve())],
        options={"strength": request.strength},
        files=[request.clip],
        title=f"{request.clip.stem} {request.prompt}",
        prompt=request.prompt,
        negative=sampling.negative_of(checkpoint),
        settings=sampling.settings(checkpoint, strength=request.strength),
        plan=sampling.plan(checkpoint, shape, *place, encodes=clip.frames > 1),
        frames=clip.frames,
        fps=clip.fps,
        start=clip,
    )
