"""`dvgen edit`: a clip changed as a prompt says (SDEdit)."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dit_video import limits
from dit_video.errors import UsageError
from dit_video.shapes import VideoShape
from dvgen import clips, console, options
from dvgen.sampling import Sampling, Text, video_option, what_it_takes, with_sampling

if TYPE_CHECKING:
    from dit_video.make import Result


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
    amount = limits.STRENGTH if strength is None else options.strength(strength)
    clips.check_there(clip, "CLIP")
    prompt = options.prompt(prompt)
    sampling.check_model()
    sampling.check_output(1, 1.0)
    with console.Speaker(quiet=sampling.quiet) as speaker:
        result = _edit(clip, prompt, amount, sampling, speaker)
    console.result(json.dumps(asdict(result), default=str) if sampling.as_json else str(result.path))


def _edit(path: Path, prompt: str, strength: float, sampling: Sampling, speaker: console.Speaker) -> "Result":
    import numpy as np

    from dit_video.clip import Clip
    from dit_video.make import make_clip
    from dit_video.unfinished import key_of

    checkpoint = sampling.open()
    if checkpoint.beside:
        raise UsageError("this model animates images and cannot edit a clip; use a text-to-video model.")
    device, dtype = sampling.place()
    clip = clips.open_clip(path, "CLIP", speaker.note, fps=checkpoint.defaults.fps)
    shape = VideoShape(num_frames=clip.frames, height=clip.size[1], width=clip.size[0])
    settings = sampling.settings(checkpoint, strength=strength)
    plan = sampling.plan(checkpoint, shape, device, dtype, encodes=clip.frames > 1)
    start = np.stack(list(clip.read()))
    prompts, named = (prompt, sampling.negative_of(checkpoint)), ("edit", str(sampling.output))
    key = key_of(checkpoint, settings, prompts=prompts, shape=shape, start=start, more=named, place=(device, dtype))
    sampling, unfinished = sampling.go_on(key, speaker)
    output = sampling.output_of(f"{path.stem} {prompt}", clip.frames, clip.fps)
    sampling.tell_seed(speaker)
    sampling.tell_size(checkpoint, shape, speaker)
    speaker.note(what_it_takes(plan, settings, device))
    arguments, place = [str(path.resolve()), prompt], (device, dtype)
    comment = sampling.comment("edit", arguments, checkpoint, settings, place, files=[path], strength=strength)
    return make_clip(
        sampling.stages(checkpoint, device, dtype, speaker, plan),
        Clip(prompt=prompts[0], negative=prompts[1], shape=shape, seed=sampling.seed),
        settings,
        output,
        fps=clip.fps,
        start=start,
        overwrite=sampling.overwrite,
        save_latents=sampling.latents_of(output),
        model=sampling.model.saved_name,
        tile=plan.tile,
        unfinished=unfinished,
        strict=sampling.strict,
        comment=comment,
    )
