"""`dvgen sample`: a prompt becomes a video."""

import json
import shlex
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from dit_video.checkpoints.files import find_checkpoint, read_json
from dit_video.errors import UsageError
from dit_video.models.wan.defaults import RELEASES, TINY_DEFAULTS, Defaults
from dit_video.shapes import VideoShape, parse_size
from dit_video.video.output import check_file, check_video
from dvgen import console, options

if TYPE_CHECKING:
    import torch

    from dit_video.generate import Clip, Result, Settings
    from dit_video.models.wan.pipeline import WanCheckpoint
    from dit_video.models.wan.random import RandomCheckpoint
    from dit_video.plan import Plan

SLOW = 600.0  # seconds from which on a video's time is worth a warning

Text = str | None

_option = partial(options.option, show_default=False)
_video = partial(_option, panel="Video")
_sampling = partial(_option, panel="Sampling")
_files = partial(_option, panel="Files")
_machine = partial(_option, panel="Machine")


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
    """A checked command line; None leaves a value to the checkpoint."""

    prompt: str
    negative: str | None
    model: str
    random_weights: bool
    size: tuple[int, int] | None
    frames: int | None
    duration: str | None
    fps: float | None
    steps: int | None
    solver: str | None
    sigmas: str | None
    shift: float | None
    guidance: tuple[float, ...] | None
    guidance_interval: tuple[float, float] | None
    seed: int
    seed_drawn: bool
    dtype: str
    device: str
    output: Path | None
    save_latents: Path | None
    overwrite: bool
    as_json: bool


def sample(
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='What to show; "-" reads standard input.')],
    size: Annotated[Text, _video("--size", "WxH", "Exact size in pixels, such as 640x360.")] = None,
    frames: Annotated[Text, _video("--frames", "N", "Exact number of frames.")] = None,
    duration: Annotated[Text, _video("--duration", "SECONDS", "Instead of --frames.")] = None,
    fps: Annotated[Text, _video("--fps", "F", "Frames per second.")] = None,
    negative: Annotated[Text, _sampling("--negative", "TEXT", "What not to show.")] = None,
    seed: Annotated[
        Text, _sampling("--seed", "N", "The same seed gives the same video; drawn and printed without.")
    ] = None,
    steps: Annotated[Text, _sampling("--steps", "N", "Denoising steps.")] = None,
    solver: Annotated[Text, _sampling("--solver", "NAME", f"{', '.join(options.SOLVERS)}.")] = None,
    sigmas: Annotated[Text, _sampling("--sigmas", "NAME", "Noise levels of the release, or of diffusers.")] = None,
    shift: Annotated[Text, _sampling("--shift", "F", "Above 1: more of the steps at high noise.")] = None,
    guidance: Annotated[
        Text, _sampling("--guidance", "F[,F]", "Scale, or high-noise,low-noise scales; 1 is none.")
    ] = None,
    guidance_interval: Annotated[Text, _sampling("--guidance-interval", "LOW,HIGH", "Noise levels to guide.")] = None,
    model: Annotated[
        str, _files("--model -m", "NAME|PATH", "A diffusers folder; the shipped model without.")
    ] = "default",
    output: Annotated[Path | None, _files("--output -o", "FILE", ".mp4, .webm, .gif, or .png for one frame.")] = None,
    overwrite: Annotated[bool, _files("--overwrite", None, "Replace files that exist.")] = False,
    save_latents: Annotated[
        Path | None, _files("--save-latents", "FILE.safetensors", "Also write the latents.")
    ] = None,
    as_json: Annotated[bool, _files("--json", None, "Print one JSON object instead of the path.")] = False,
    dtype: Annotated[str, _machine("--dtype", "NAME", "float32, bfloat16 or float16, for every stage.")] = "auto",
    device: Annotated[str, _machine("--device", "NAME", "cpu, cuda or mps.")] = "auto",
    random_weights: Annotated[
        bool, _machine("--random-weights", None, "A tiny model of noise: tries the program.")
    ] = False,
    quiet: Annotated[
        bool, _machine("--quiet -q", None, "No progress and no notes; warnings and a drawn seed stay.")
    ] = False,
) -> None:
    """Make a video of PROMPT, with exactly the size and the number of frames asked for.

    What is not given comes from the checkpoint. Standard output gets the path of the video, standard error all else.
    """
    given = options.given
    request = Request(
        prompt=options.prompt(prompt),
        negative=given(negative, options.text),
        model=model,
        random_weights=random_weights,
        size=given(size, parse_size),
        frames=given(frames, options.frames),
        duration=duration,
        fps=given(fps, options.fps),
        steps=given(steps, options.steps),
        solver=given(solver, options.solver),
        sigmas=given(sigmas, options.sigmas),
        shift=given(shift, options.shift),
        guidance=given(guidance, options.guidance),
        guidance_interval=given(guidance_interval, options.interval),
        seed=options.seed(seed),
        seed_drawn=seed is None,
        dtype=options.choice("--dtype", dtype, options.DTYPES),
        device=options.choice("--device", device, options.DEVICES),
        output=output,
        save_latents=save_latents,
        overwrite=overwrite,
        as_json=as_json,
    )
    _check(request)
    with console.Speaker(quiet=quiet) as speaker:
        result = _make(request, speaker)
    console.result(json.dumps(asdict(result), default=str) if as_json else str(result.path))


def _check(request: Request) -> None:
    """Refuses what can be refused before torch is imported."""
    if request.duration is not None and request.frames is not None:
        given = f"--frames {request.frames} and --duration {request.duration}"
        raise UsageError(f"{given}: only one of the two can be given.")
    if request.random_weights and request.model != "default":
        raise UsageError(f"--random-weights and --model {request.model}: only one of the two can be given.")
    ours: dict[str, Any] = {}
    if not request.random_weights:
        folder = find_checkpoint(request.model)
        if len(request.guidance or ()) > 1 and not (read_json(folder / "model_index.json").get("boundary_ratio")):
            _refuse_two_scales(request.guidance or ())
        if (folder / "dvgen.json").is_file():
            ours = read_json(folder / "dvgen.json")
    rates, frames = _rates(request, ours), request.frames
    if request.duration is not None:
        options.check_duration(request.duration, rates)
    elif frames is None:
        frames = ours.get("frames")
    if request.output:
        frames = frames if isinstance(frames, int) else 1  # what cannot be told yet is checked again later
        fps = request.fps or 1.0
        check_video(request.output, frames, fps=fps, overwrite=request.overwrite, option="--output")
    if request.save_latents:
        suffixes = (".safetensors",)
        check_file(request.save_latents, suffixes, overwrite=request.overwrite, option="--save-latents")


def _rates(request: Request, ours: dict[str, Any]) -> list[float]:
    """The frames per second of the clip: one, or those of all releases where the checkpoint must be opened to tell."""
    if request.fps is not None:
        return [request.fps]
    if request.random_weights:
        return [TINY_DEFAULTS.fps]
    fps = ours.get("fps")
    if isinstance(fps, int | float) and fps > 0:
        return [float(fps)]
    return sorted({defaults.fps for defaults in (Defaults(), *RELEASES.values())})


def _refuse_two_scales(guidance: tuple[float, ...]) -> None:
    text = ",".join(f"{scale:g}" for scale in guidance)
    raise UsageError(
        f"--guidance {text}: this model has one transformer and takes one scale; the nearest is {guidance[0]:g}."
    )


def _make(request: Request, speaker: console.Speaker) -> "Result":
    speaker.progress("load program", 0, 1)
    from dit_video.generate import Stages, generate
    from dit_video.machine import available_memory, pick_device, pick_dtype
    from dit_video.plan import check_memory

    checkpoint = _open(request)
    device = pick_device(request.device)
    dtype = pick_dtype(request.dtype, device)
    speaker.progress("load program", 1, 1)

    fps = request.fps or checkpoint.defaults.fps
    clip, settings = _resolve(request, checkpoint, fps)
    suffix = ".png" if clip.shape.num_frames == 1 else ".mp4"
    output = request.output or options.made_name(clip.prompt, clip.seed, suffix, Path())
    check_video(output, clip.shape.num_frames, fps=fps, overwrite=request.overwrite, option="--output")
    warn = speaker.note if request.as_json else speaker.warn  # the JSON object has what the warnings say
    if request.seed_drawn:
        warn(f"seed {clip.seed} (drawn)")
    else:
        speaker.note(f"seed {clip.seed}")
    plan = check_memory(checkpoint, clip.shape, itemsize=dtype.itemsize, available=available_memory(device))
    speaker.note(_what_it_takes(plan, settings, device))

    stages = Stages(checkpoint, dtype=dtype, device=device, progress=speaker.progress, note=speaker.note, warn=warn)
    return generate(
        stages,
        clip,
        settings,
        output,
        fps=fps,
        overwrite=request.overwrite,
        save_latents=request.save_latents,
        tile=plan.tile,
    )


def _open(request: Request) -> "WanCheckpoint | RandomCheckpoint":
    if request.random_weights:
        from dit_video.models.wan.random import RandomCheckpoint

        return RandomCheckpoint()
    from dit_video.models import open_checkpoint

    return open_checkpoint(request.model)


def _resolve(request: Request, checkpoint: "WanCheckpoint | RandomCheckpoint", fps: float) -> "tuple[Clip, Settings]":
    """The clip and the settings: what was asked for, and the checkpoint's defaults for the rest."""
    from dit_video.generate import Clip, Settings

    defaults = checkpoint.defaults
    width, height = request.size or (defaults.width, defaults.height)
    frames = request.frames or defaults.frames
    if request.duration is not None:
        frames = options.frames_of_duration(request.duration, fps)
    guidance = request.guidance or defaults.guidance
    if len(guidance) > 1 and checkpoint.boundary is None:
        _refuse_two_scales(guidance)
    clip = Clip(
        prompt=request.prompt,
        negative=defaults.negative if request.negative is None else request.negative,
        shape=VideoShape(num_frames=frames, height=height, width=width),
        seed=request.seed,
    )
    settings = Settings(
        steps=request.steps or defaults.steps,
        solver=request.solver or defaults.solver,
        sigmas=request.sigmas or defaults.sigmas,
        shift=request.shift or defaults.shift,
        guidance=guidance,
        guidance_interval=request.guidance_interval or (0.0, 1.0),
    )
    return clip, settings


def _what_it_takes(plan: "Plan", settings: "Settings", device: "torch.device") -> str:
    """One line about what is computed."""
    from dit_video.plan import expected_seconds

    line = f"{plan.shape}: {'x'.join(map(str, plan.grid))} = {plan.tokens:,} patches, {settings.steps} steps"
    if plan.padded != plan.shape:
        line += f"; computed as {plan.padded}, then cropped and trimmed"
    if plan.tile:
        line += f"; decoded in tiles of {plan.tile}x{plan.tile} latents, since whole frames do not fit in memory"
    evaluations = 2 * settings.steps - 1 if settings.solver == "heun" else settings.steps
    passes = evaluations * (2 if max(settings.guidance) > 1 else 1)
    seconds = expected_seconds(plan, passes, device)
    return line + (f"; this may take {console.duration(seconds)}" if seconds > SLOW else "")
