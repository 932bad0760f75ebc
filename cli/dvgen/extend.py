"""`dvgen extend` and `dvgen connect`: new frames before, after and between given ones."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dit_video import limits
from dit_video.errors import UsageError
from dit_video.shapes import VideoShape
from dvgen import clips, console, options, pictures
from dvgen.sampling import Sampling, Text, video_option, what_it_takes, with_sampling

if TYPE_CHECKING:
    from dit_video.extend import Extended, Maker, Windows
    from dit_video.models.wan.pipeline import WanCheckpoint
    from dit_video.models.wan.random import RandomCheckpoint

Clip = Annotated[Path, typer.Argument(metavar="CLIP", help="A video, or a picture.", show_default=False)]
Prompt = Annotated[str, typer.Argument(metavar="[PROMPT]", help='What happens; "-" reads standard input.')]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How many new frames, and where."""

    backward: int = 0
    forward: int = 0
    loop: int = 0

    @property
    def frames(self) -> int:
        """All of them."""
        return self.backward + self.forward + self.loop


@with_sampling(without=["save_latents", "keep_latents", "strict"])
def extend(
    clip: Clip,
    prompt: Prompt = "",
    *,
    forward: Annotated[Text, video_option("--forward", "FRAMES", "New frames after the clip.")] = None,
    backward: Annotated[Text, video_option("--backward", "FRAMES", "New frames before it.")] = None,
    loop: Annotated[Text, video_option("--loop", "FRAMES", "New frames that lead back to its beginning.")] = None,
    sampling: Sampling,
) -> None:
    """Make CLIP longer: after its end, before its beginning, or into a loop.

    The clip's own frames stay as they are, until they are encoded again beside the new ones; size and rate are the
    clip's.
    """
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
    prompt = options.prompt(prompt)
    sampling.check_model()
    sampling.check_output(2, 1.0)
    with console.Speaker(quiet=sampling.quiet) as speaker:
        result = _extend(clip, prompt, Wanted(**new), sampling, speaker)
    _say(result, sampling)


def _extend(path: Path, prompt: str, wanted: Wanted, sampling: Sampling, speaker: console.Speaker) -> "Extended":
    from dit_video.extend import extended, head_frames, write_extended

    checkpoint = sampling.open()
    clip = clips.open_clip(path, "CLIP", speaker.note, fps=checkpoint.defaults.fps)
    name = f"{path.stem} {'loop' if wanted.loop else 'extended'}"
    sampling, maker = _maker(sampling, checkpoint, prompt, clip, wanted, speaker, of=("extend", [path]))
    output = sampling.output_of(name, clip.frames + wanted.frames, clip.fps)
    frames = extended(
        maker,
        clip.read(),
        clip.head(head_frames(maker.windows)),
        backward=wanted.backward,
        forward=wanted.forward,
        loop=wanted.loop,
    )
    new = {option: count or None for option, count in asdict(wanted).items()}
    arguments, place = [str(path.resolve()), prompt], (maker.stages.device, maker.stages.dtype)
    comment = sampling.comment("extend", arguments, checkpoint, maker.settings, place, files=[path], **new)
    return write_extended(
        maker, frames, output, fps=clip.fps, old_frames=clip.frames, overwrite=sampling.overwrite, comment=comment
    )


@with_sampling(without=["save_latents", "keep_latents", "strict"])
def connect(
    first: Annotated[Path, typer.Argument(metavar="A", help="The clip, or picture, to begin with.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="The one to end with.")],
    prompt: Prompt = "",
    *,
    frames: Annotated[Text, video_option("--frames", "N", "New frames between the two.")] = None,
    fit: Annotated[Text, video_option("--fit", "RULE", "How B is made to fit A: cover, contain or stretch.")] = None,
    sampling: Sampling,
) -> None:
    """Join A and B by new frames that lead from the last of A to the first of B.

    The frames of both stay as they are, until they are encoded again; size and rate are those of A.
    """
    if frames is None:
        raise UsageError("--frames is missing: how many new frames should lead from A to B?")
    count = options.frames(frames)
    rule = None if fit is None else options.choice("--fit", fit, limits.FITS)
    for path, name in ((first, "A"), (second, "B")):
        clips.check_there(path, name)
    prompt = options.prompt(prompt)
    sampling.check_model()
    sampling.check_output(2, 1.0)
    with console.Speaker(quiet=sampling.quiet) as speaker:
        result = _connect(first, second, prompt, count, rule, sampling, speaker)
    _say(result, sampling)


def _connect(
    first: Path, second: Path, prompt: str, count: int, fit: str | None, sampling: Sampling, speaker: console.Speaker
) -> "Extended":
    from dit_video.extend import connected, head_frames, write_extended

    checkpoint = sampling.open()
    a = clips.open_clip(first, "A", speaker.note, fps=checkpoint.defaults.fps)
    b = clips.open_clip(second, "B", speaker.note, fps=a.fps, size=a.size, rate=a.fps, fit=fit)
    old = a.frames + b.frames
    of = ("connect", [first, second])
    sampling, maker = _maker(sampling, checkpoint, prompt, a, Wanted(loop=count), speaker, of=of)
    output = sampling.output_of(f"{first.stem} to {second.stem}", old + count, a.fps)
    frames = connected(maker, a.read(), b.read(), b.head(head_frames(maker.windows)), count)
    arguments = [str(first.resolve()), str(second.resolve()), prompt]
    place, files = (maker.stages.device, maker.stages.dtype), [first, second]
    comment = sampling.comment(
        "connect", arguments, checkpoint, maker.settings, place, files=files, frames=count, fit=fit
    )
    return write_extended(
        maker, frames, output, fps=a.fps, old_frames=old, overwrite=sampling.overwrite, comment=comment
    )


def _maker(
    sampling: Sampling,
    checkpoint: "WanCheckpoint | RandomCheckpoint",
    prompt: str,
    clip: clips.ClipFile,
    wanted: Wanted,
    speaker: console.Speaker,
    *,
    of: tuple[str, list[Path]],
) -> "tuple[Sampling, Maker]":
    """What makes the new frames, and the options with its seed: refuses what does not fit in memory, and says what will
    be done; of: the command, and the files that it reads."""
    from dit_video.checkpoints.files import fingerprint
    from dit_video.extend import Maker, Windows
    from dit_video.machine import memory_for
    from dit_video.plan import weights_bytes
    from dit_video.unfinished import key_of

    device, dtype = sampling.place()
    settings = sampling.settings(checkpoint)
    longest = checkpoint.defaults.window or checkpoint.defaults.frames
    windows = Windows.of(checkpoint.grid, longest, beside=checkpoint.beside)
    sizes = [windows.sizes(wanted.backward, before=False, after=True)]
    sizes += [windows.sizes(wanted.forward or wanted.loop, before=True, after=bool(wanted.loop))]
    every = [size for some in sizes for size in some]
    shape = VideoShape(num_frames=max(every), height=clip.size[1], width=clip.size[0])
    if checkpoint.beside:
        _check_beside(checkpoint.known_frames, wanted, windows)
    encodes = bool(wanted.backward or wanted.loop) or windows.groups_before > 1
    plan = sampling.plan(checkpoint, shape, device, dtype, encodes=encodes)
    command, files = of
    named = (command, fingerprint(files), wanted, windows, str(sampling.output))
    prompts = (prompt, sampling.negative_of(checkpoint))
    key = key_of(checkpoint, settings, prompts=prompts, shape=shape, more=named, place=(device, dtype))
    sampling, unfinished = sampling.go_on(key, speaker)
    sampling.tell_seed(speaker)
    sampling.tell_size(checkpoint, shape, speaker)
    if checkpoint.beside:
        pass  # it is given what it was trained with
    elif wanted.backward or wanted.loop:
        pictures.warn_untrained(checkpoint.known_frames, [0, 1], sampling.warn(speaker))
    else:
        pictures.warn_untrained(checkpoint.known_frames, range(windows.groups_before), sampling.warn(speaker))
    speaker.note(what_it_takes(plan, settings, device, windows=len(every)))
    together = plan.nbytes + weights_bytes(checkpoint, dtype.itemsize)
    several = len(every) > 1 and not plan.keep_layers and together < memory_for(device, sampling.memory)
    return sampling, Maker(
        sampling.stages(checkpoint, device, dtype, speaker, plan, keep=several),
        settings,
        prompt=prompts[0],
        negative=prompts[1],
        seed=sampling.seed,
        size=clip.size,
        windows=windows,
        tile=plan.tile,
        unfinished=unfinished,
    )


def _check_beside(known_frames: str, wanted: Wanted, windows: "Windows") -> None:
    """Refuses what a model that takes pictures beside the noise cannot make. Raises UsageError."""
    from dit_video.known import BESIDE, check_beside

    for count, given in ((wanted.backward, [1]), (wanted.forward, [0]), (wanted.loop, [0, 1])):
        if count:
            check_beside(known_frames, given, 2)
    most = windows.most(before=True, after=True)
    if known_frames == "first and last" and wanted.loop > most:
        raise UsageError(f"{wanted.loop} new frames: this model {BESIDE[known_frames]}, at once; the most is {most}.")


def _say(result: "Extended", sampling: Sampling) -> None:
    console.result(json.dumps(asdict(result), default=str) if sampling.as_json else str(result.path))
