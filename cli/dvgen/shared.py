"""The options that all commands which denoise have in common, declared once, and how a command gets them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from dit_video import limits
from dit_video.checkpoints.places import Named
from dit_video.shapes import MAX_SIDE, MIN_TILE
from dit_video.video.output import check_folder
from dvgen import budget, chosen, dry_run, logs, loras, options
from dvgen.chosen import Chosen
from dvgen.problems import Problems
from dvgen.sampling import Sampling

Text = str | None
option = partial(options.option, show_default=False)
video_option = partial(option, panel="Video")
_sampling = partial(option, panel="Sampling")
_files = partial(option, panel="Files")
_machine = partial(option, panel="Machine")
_messages = partial(option, panel=options.MESSAGES)


def _options(
    negative: Annotated[Text, _sampling("--negative", "TEXT", "What not to show.")] = None,
    seed: Annotated[
        Text, _sampling("--seed", "N", "The same seed gives the same video; drawn and printed without.")
    ] = None,
    count: Annotated[Text, _sampling("--count", "N", "Make N videos, with the next seeds.", setting=False)] = None,
    preset: Annotated[
        Text,
        _sampling(
            "--preset",
            "NAME",
            "distilled: 4 steps and no guidance, for models and LoRAs made for that; other options go before.",
        ),
    ] = None,
    steps: Annotated[Text, _sampling("--steps", "N", "Denoising steps.")] = None,
    solver: Annotated[Text, _sampling("--solver", "NAME", f"{', '.join(limits.SOLVERS)}.")] = None,
    sigmas: Annotated[Text, _sampling("--sigmas", "NAME", "Noise levels of the release, or of diffusers.")] = None,
    shift: Annotated[Text, _sampling("--shift", "F", "Above 1: more of the steps at high noise.")] = None,
    guidance: Annotated[
        Text, _sampling("--guidance", "F[,F]", "Scale, or high-noise,low-noise scales; 1 is none.")
    ] = None,
    guidance_interval: Annotated[Text, _sampling("--guidance-interval", "LOW,HIGH", "Noise levels to guide.")] = None,
    fast: Annotated[bool, _sampling("--fast", None, options.FAST_HELP)] = False,
    model: Annotated[str, _files("--model -m", "NAME|PATH", chosen.MODEL_HELP, complete=chosen.complete)] = "default",
    vae: Annotated[Path | None, _files("--vae", "FILE", f"The autoencoder {chosen.BESIDE}")] = None,
    text_encoder: Annotated[Path | None, _files("--text-encoder", "FILE", f"The text encoder {chosen.BESIDE}")] = None,
    image_encoder: Annotated[
        Path | None, _files("--image-encoder", "FILE", f"The image encoder {chosen.BESIDE}")
    ] = None,
    high_noise: Annotated[Path | None, _files("--high-noise", "FILE", chosen.HIGH_NOISE_HELP)] = None,
    lora: Annotated[list[str] | None, _files("--lora", "FILE[:STRENGTH]", loras.HELP)] = None,
    lora_high: Annotated[list[str] | None, _files("--lora-high", "FILE[:STRENGTH]", loras.HIGH_HELP)] = None,
    lora_low: Annotated[list[str] | None, _files("--lora-low", "FILE[:STRENGTH]", loras.LOW_HELP)] = None,
    output: Annotated[
        Path | None, _files("--output -o", "FILE", ".mp4, .webm, .gif, or .png for one frame.", setting=False)
    ] = None,
    keep_latents: Annotated[
        bool, _files("--keep-latents", None, "Leave the latents beside the video; `dvgen decode` makes it of them.")
    ] = False,
    sheet: Annotated[
        Path | None,
        _files("--sheet", "FILE.png", "Also draw frames over time, one row a video, under its prompt.", setting=False),
    ] = None,
    preview_file: Annotated[
        Path | None,
        _files("--preview-file", "FILE.gif", "Show the clip as it stands, every few steps, small.", setting=False),
    ] = None,
    overwrite: Annotated[bool, _files("--overwrite", None, "Replace files that exist.")] = False,
    fresh: Annotated[
        bool, _files("--fresh", None, "Begin anew where the same command was broken off, instead of going on.")
    ] = False,
    save_latents: Annotated[
        Path | None, _files("--save-latents", "FILE.safetensors", "Also write the latents.", setting=False)
    ] = None,
    strict: Annotated[
        bool, _files("--strict", None, "A video that is black, or in which nothing moves, is an error.")
    ] = False,
    no_recipe: Annotated[
        bool,
        _files(
            "--no-recipe",
            None,
            "Do not write into the file how it was made; then nothing tells that it is done.",
        ),
    ] = False,
    expected_model: Annotated[Text, options.option("--expected-model", "ID", "Of `dvgen again`.", hidden=True)] = None,
    tile: Annotated[Text, options.option("--tile", "N", "Latents on a side, of recipes.", hidden=True)] = None,
    as_json: Annotated[bool, _files("--json", None, "Print one JSON object instead of the path.")] = False,
    time_budget: Annotated[
        Text,
        _machine(
            "--time-budget", "TIME", "Such as 60s or 2min: --fast, then fewer steps and less guidance, as it takes."
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        _machine(
            "--dry-run", None, "Say what it would take and what stands in the way, and make nothing.", setting=False
        ),
    ] = False,
    dtype: Annotated[str, _machine("--dtype", "NAME", "float32, bfloat16 or float16, for every stage.")] = "auto",
    device: Annotated[str, _machine("--device", "NAME", "cpu, cuda or mps.")] = "auto",
    memory: Annotated[
        Text, _machine("--memory", "SIZE", "Such as 6GiB: layers that do not fit in it are read as they are needed.")
    ] = None,
    quantize: Annotated[
        str,
        _machine(
            "--quantize", "NAME", "int8 (on the CPU) or fp8 (on a GPU): the transformer multiplies in 8 bits; or none."
        ),
    ] = "none",
    compile: Annotated[
        bool, _machine("--compile", None, "Compile the transformer's blocks first: a minute or two, for many steps.")
    ] = False,
    cuda_graphs: Annotated[
        bool, _machine("--cuda-graphs", None, "Record steps of the same shape on a GPU, and replay them.")
    ] = False,
    random_weights: Annotated[
        bool, _machine("--random-weights", None, "A tiny model of noise: tries the program.")
    ] = False,
    quiet: Annotated[
        bool, _messages("--quiet -q", None, "No progress and no notes; warnings and a drawn seed stay.")
    ] = False,
) -> Sampling:
    given = options.given
    limits.kept_every()  # refused here rather than when it is first asked for
    return Sampling(
        negative=given(negative, options.text),
        model=Chosen(
            name=model,
            named=Named(vae=vae, text_encoder=text_encoder, image_encoder=image_encoder, high_noise=high_noise),
            loras=(
                *loras.parse(lora or []),
                *loras.parse(lora_high or [], "transformer"),
                *loras.parse(lora_low or [], "transformer_2"),
            ),
            random=random_weights,
        ),
        preset=given(preset, options.preset),
        steps=given(steps, options.steps),
        solver=given(solver, options.solver),
        sigmas=given(sigmas, options.sigmas),
        shift=given(shift, options.shift),
        guidance=given(guidance, options.guidance),
        guidance_interval=given(guidance_interval, options.interval),
        fast=fast,
        seed=options.seed(seed),
        seed_drawn=seed is None,
        count=given(count, options.count) or 1,
        time_budget=given(time_budget, budget.parse),
        dtype=options.choice("--dtype", dtype, limits.DTYPES),
        device=options.choice("--device", device, limits.DEVICES),
        memory=given(memory, options.memory),
        quantize=options.quantize(quantize),
        compile=compile,
        cuda_graphs=cuda_graphs,
        output=output,
        save_latents=save_latents,
        keep_latents=keep_latents,
        sheet=sheet,
        preview_file=preview_file,
        overwrite=overwrite,
        fresh=fresh,
        strict=strict,
        no_recipe=no_recipe,
        expected_model=expected_model,
        tile=given(tile, lambda text: options.whole("--tile", text, MIN_TILE, MAX_SIDE)),
        as_json=as_json,
        quiet=quiet,
    )


def parsed(values: Mapping[str, Any]) -> tuple[dict[str, Any], Sampling]:
    """The values of a command's own options, and the checked ones of `Sampling` out of all. Raises DvgenError."""
    rest: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    for name, each in values.items():
        if name not in logs.OPTIONS:
            (ours if name in _OURS else rest)[name] = each
    return rest, _options(**ours)


_OURS = frozenset(inspect.signature(_options).parameters)


def _checked(values: Mapping[str, Any], problems: Problems | None = None) -> Sampling:
    """Options that can be carried out here; problems: where those of a dry run are listed. Raises DvgenError."""
    found = replace(_options(**values), problems=problems)
    if found.output is None:  # the name is made later, in this folder
        with found.listing():
            check_folder(Path.cwd(), "without --output")
    return found


def with_sampling(*, without: Sequence[str] = ()) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options above, but those named in `without`; its argument `sampling` holds them, checked."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        ours = {name: p for name, p in inspect.signature(_options).parameters.items() if name not in without}
        theirs = {name: p for name, p in inspect.signature(command).parameters.items() if name != "sampling"}
        hints = get_type_hints(_options, include_extras=True) | get_type_hints(command, include_extras=True)

        @wraps(command)
        def run(**values: Any) -> None:
            rest = {name: values[name] for name in theirs}
            given = {name: values[name] for name in ours}
            if not values["dry_run"]:
                command(**rest, sampling=_checked(given))
                return
            problems = Problems()
            with dry_run.explained(problems, as_json=values["as_json"]):
                command(**rest, sampling=_checked(given, problems))

        parameters = [
            p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in (*theirs.values(), *ours.values())
        ]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        vars(run)["__signature__"] = inspect.Signature(parameters)
        return run

    return decorate
