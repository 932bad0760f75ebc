"""`--dry-run`: what a command would compute, what it takes, and what stands in its way, told from headers alone."""

import json
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from dit_video.errors import DvgenError
from dvgen import budget, console
from dvgen.download import size
from dvgen.problems import Problems
from dvgen.takes import steps_in_words, ways

if TYPE_CHECKING:
    from dit_video.place import Foreseen
    from dit_video.timing import Span
    from dvgen.prepared import Prepare, Prepared, Request
    from dvgen.sampling import Sampling

BYTES_OF_PIXEL = {
    ".mp4": 0.15,
    ".webm": 0.1,
    ".gif": 0.6,
    ".png": 2.0,
}  # of a file, for every pixel of a frame; at most
KEPT = {"unipc": 4, "dpmpp-2m": 2, "dpmpp-2m-sde": 2}  # tensors of the state of denoising; one of other solvers
BASES = {
    "measured": "measured here with this model",
    "another": "measured here with another model",
    "guess": "a guess, nothing was measured here",
}
ADVICE = {"another": "`dvgen calibrate` measures this one", "guess": "`dvgen calibrate` does"}
STAGES = {"text": "the prompt", "encode": "encoding", "denoise": "denoising", "decode": "decoding"}


class Heard(console.Speaker):
    """A speaker that keeps what it is told, and says nothing."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.notes: list[str] = []
        self.warnings: list[str] = []

    def note(self, text: str) -> None:
        """Kept."""
        self.notes.append(text)

    def warn(self, text: str) -> None:
        """Kept."""
        self.warnings.append(text)


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a dry run found: facts by their names for --json, and lines of a label and a text to read."""

    problems: list[str]
    warnings: list[str]
    facts: Mapping[str, Any]
    lines: list[tuple[str, str]]


@contextmanager
def explained(problems: Problems, *, as_json: bool) -> Iterator[None]:
    """What ends a dry run early is a problem too, and all that can be said. Raises typer.Exit."""
    try:
        yield
    except console.Unwritable:
        raise  # there is nowhere to tell it
    except DvgenError as error:
        problems.add(str(error))
        _tell(Report(problems=problems.found, warnings=[], facts={}, lines=[]), as_json)


def show(request: "Request", prepare: "Prepare") -> None:
    """Say what carrying out a command line would be.

    Raises:
        DvgenError: so little fits that nothing more can be said of it.
        typer.Exit: it would be refused.
    """
    from dit_video.limits import check_graphs, check_quantize
    from dit_video.place import foreseen

    sampling, heard = request.sampling, Heard()
    assert sampling.problems is not None
    light = "torch" not in sys.modules
    checkpoint = sampling.open()
    if light and "torch" in sys.modules:
        heard.note("torch had to open a file of its own kind, which takes longer than any other")
    place = None
    with sampling.listing():
        place = foreseen(sampling.device, sampling.dtype)
    place = place or foreseen("cpu", sampling.dtype)
    with sampling.listing():
        check_graphs(sampling.cuda_graphs, place.device.type)
    with sampling.listing():
        check_quantize(sampling.quantize, place.device.type, place.dtype.name, compiled=sampling.compile)
    ready = prepare(request, checkpoint, (place.device, place.dtype), heard)  # type: ignore[arg-type]
    ready = budget.foreseen(ready, heard.note)
    _tell(report(ready, place, heard), sampling.as_json)


def report(ready: "Prepared", place: "Foreseen", heard: Heard) -> Report:
    """What is known of a command line that is prepared. Raises DvgenError."""
    from dvgen import chosen

    sampling, plan, checkpoint = ready.sampling, ready.plan, ready.checkpoint
    problems = sampling.problems or Problems()
    with problems.listed():
        chosen.tell(checkpoint, heard.note, heard.warnings.append)
    if words := checkpoint.untrained(plan.shape):
        heard.warnings.append(words)
    ready.tell_fast(heard.warnings.append)
    if words := _unknown_words(ready):
        heard.warnings.append(words)
    outputs: list[Path] = []
    there: list[Path] = []
    for each in ready.each:
        with problems.listed():
            if sampling.count > 1 and (file := each.there_already()):
                heard.note(f"{file}: is there already, made by the same recipe")
                there.append(file)
                continue
            outputs.append(each.sampling.output_of(ready.title, ready.frames, ready.fps))
            each.sampling.latents_of(outputs[-1])
    output, left = next(iter(outputs or there), sampling.output), sampling.count - len(there)
    ready = replace(ready, sampling=replace(sampling, count=left))
    disk = _disk(ready, output)
    if disk["needed"] > disk["free"]:
        problems.add(f"{disk['folder']}: about {size(disk['needed'])} are needed, and {size(disk['free'])} are free.")
    facts: dict[str, Any] = {
        "command": ready.command,
        "model": {"path": str(getattr(checkpoint, "path", "random weights")), "variant": _variant(ready)},
        "path": None if output is None else str(_named(sampling, output)),
        "videos": left,
        **_computed(ready),
        "device": str(place.device),
        "dtype": place.dtype.name,
        "quantize": sampling.quantize,
        "seed": None if sampling.seed_drawn else sampling.seed,
        "memory": _memory(ready),
        "disk": disk,
        "strategy": _strategy(ready, place),
        "seconds": _seconds(ready, output),
        "notes": heard.notes,
    }
    return Report(problems=problems.found, warnings=heard.warnings, facts=facts, lines=_lines(facts, ready))


def _named(sampling: "Sampling", output: Path) -> Path:
    """The name of the file that is written, with SEED where that of a run would be, which draws another one."""
    if not sampling.seed_drawn or output == sampling.output:
        return output
    before, _, after = output.name.rpartition(f"-{sampling.seed}")
    return output.with_name(f"{before}-SEED{after}")


def _variant(ready: "Prepared") -> str:
    return str(getattr(ready.checkpoint, "variant", "random"))


def _computed(ready: "Prepared") -> dict[str, Any]:
    """What is made, and of what arithmetic; by the names of the results of a run, where it has them."""
    plan, settings = ready.plan, ready.settings
    course = ready.course(videos=ready.sampling.count)
    padded = plan.padded
    return {
        "width": plan.shape.width,
        "height": plan.shape.height,
        "frames": ready.frames,
        "fps": ready.fps,
        "padded": {"width": padded.width, "height": padded.height, "frames": padded.num_frames},
        "grid": plan.grid,
        "tokens": plan.tokens,
        "windows": ready.windows,
        "steps": settings.steps - settings.first_step,
        "computed_steps": sum(step.computed for step in ready.steps),
        "forwards": course.passes.count * len(course.shapes),
        "flops": plan.pass_flops * course.passes.count * len(course.shapes),
        "prompts_to_read": course.prompts,
        "loads": course.loads(),
    }


def _memory(ready: "Prepared") -> dict[str, int]:
    """Bytes that each stage takes, and that there are."""
    from dit_video.machine import memory_for

    plan = ready.plan
    found = {"text": plan.text_bytes, "encode": plan.encode_bytes, "denoise": plan.denoise_bytes}
    found |= {"decode": plan.decode_bytes, "available": memory_for(ready.place[0], ready.sampling.memory)}
    return found


def _disk(ready: "Prepared", output: Path | None) -> dict[str, Any]:
    """Bytes of what is written, at most, and that are free there."""
    from dit_video.work import size_of_latents

    plan, sampling, grid = ready.plan, ready.sampling, ready.checkpoint.grid
    suffix = output.suffix.lower() if output else ready.suffix
    video = int(ready.frames * plan.shape.width * plan.shape.height * BYTES_OF_PIXEL.get(suffix, 2.0)) + 100_000
    latent = grid.latent(plan.shape)
    one = size_of_latents(ready.checkpoint.latent_channels, (latent.frames, latent.height, latent.width))
    kept = one * bool(sampling.keep_latents or sampling.save_latents)
    skips = not all(step.computed for step in ready.steps)
    state = one * (KEPT.get(ready.settings.solver, 1) + skips) * ready.windows
    folder = output.parent if output else Path()
    while not folder.exists():
        folder = folder.parent
    found = {"video": video, "latents": kept, "state": state, "needed": (video + kept) * sampling.count + state}
    return {"folder": str(folder), **found, "free": shutil.disk_usage(folder).free}


def _strategy(ready: "Prepared", place: "Foreseen") -> list[str]:
    """How it is done and why, in sentences."""
    from dit_video.plan import PACK_TOKENS

    course = ready.course(videos=ready.sampling.count)
    found = [place.why, *place.unknown]
    if ready.sampling.quantize:
        found.append(f"the blocks of the transformer multiply in {ready.sampling.quantize}: asked for")
    if max(ready.settings.guidance) > 1:
        together = 2 * ready.plan.tokens <= PACK_TOKENS
        found.append("with and without the prompt " + ("in one pass" if together else "one after the other"))
    if len(course.passes.by_part) > 1:
        found.append(" and ".join(f"{count} passes of the {part}" for part, count in course.passes.by_part.items()))
    if not course.prompts:
        found.append("the prompt was read before: its embedding is kept on disk")
    several = len(course.shapes) > 1
    found.append("all stages stay in memory" if course.keeps else "one stage is in memory at a time")
    if several:
        found.append(f"{len(course.shapes)} clips go through the model, one after the other")
    return [*found, *(ways(ready.plan) or ["all weights of a stage fit in memory, and whole frames are decoded"])]


def _seconds(ready: "Prepared", output: Path | None) -> dict[str, Any]:
    """How long each activity takes, and all together, from and to; "basis": how that is known."""
    from dit_video.machine import dtype_name
    from dit_video.timing import NOTHING, users_clock

    device, dtype = ready.place
    clock = users_clock(
        ready.checkpoint, dtype_name(dtype), device.type, ready.plan.keep_layers, ready.sampling.quantize
    )
    suffix = output.suffix.lower() if output else ""
    spans = ready.course(suffix=suffix, videos=ready.sampling.count).expected(clock)
    total: Span = sum(spans.values(), NOTHING)
    every = {**spans, "total": total}
    found: dict[str, Any] = {name: rounded(span) for name, span in every.items()}
    return {**found, "basis": total.basis}


def rounded(span: "Span") -> list[float]:
    """From and to."""
    return [round(span.low, 2), round(span.high, 2)]


def _unknown_words(ready: "Prepared") -> str:
    """A sentence about words that the model never learnt, where that is told quickly."""
    from dit_video.text.files import unknown_words

    tokenizer = getattr(ready.checkpoint, "tokenizer", None)
    words = [word for prompt in ready.prompts for word in unknown_words(tokenizer, prompt)]
    listed = ", ".join(repr(word) for word in dict.fromkeys(words))
    return f"this model never learnt the word{'s' * (len(words) > 1)} {listed}." if words else ""


def _lines(facts: Mapping[str, Any], ready: "Prepared") -> list[tuple[str, str]]:
    padded, memory, disk, seconds = (facts[name] for name in ("padded", "memory", "disk", "seconds"))
    times = f"{facts['videos']} times " if facts["videos"] > 1 else ""
    video = f"{times}{facts['width']}x{facts['height']}, {facts['frames']} frames at {facts['fps']:g} per second"
    grid = f"{'x'.join(map(str, facts['grid']))} = {facts['tokens']:,} patches"
    clips = f"{facts['windows']} windows of at most " if facts["windows"] > 1 else ""
    stages = [f"{word} {size(memory[name])}" for name, word in STAGES.items() if memory[name]]
    files = [f"{word} {size(disk[word])}" for word in ("video", "latents", "state") if disk[word]]
    passes = f"{facts['forwards']} passes through the transformer"
    lines = [
        ("model", f"{facts['model']['path']} ({facts['model']['variant']})"),
        ("video", f"{video}, in {facts['path']}"),
        ("computed", f"{clips}{padded['width']}x{padded['height']}, {padded['frames']} frames: {grid}"),
        ("steps", f"{steps_in_words(ready.steps)}, of {ready.settings.solver}: {passes}"),
        *(("how", way) for way in facts["strategy"]),
        ("memory", f"{', '.join(stages)}; of {size(memory['available'])}"),
        ("disk", f"{', '.join(files)} at most; {size(disk['free'])} are free"),
        *(("time", f"{name} {_range(*seconds[name])}") for name in seconds if name not in ("total", "basis")),
        ("time", f"in all {_range(*seconds['total'])}: {_basis(seconds['basis'], facts['quantize'])}"),
        *(("note", note) for note in facts["notes"]),
    ]
    return lines


def _basis(basis: str, quantize: str | None) -> str:
    """How times are known, and what measures them: not `dvgen calibrate` where blocks are quantised, which it takes as
    they are stored."""
    if quantize and basis == "another":
        return f"measured here otherwise than with {quantize}"
    return BASES[basis] if quantize or basis not in ADVICE else f"{BASES[basis]}; {ADVICE[basis]}"


def _range(low: float, high: float) -> str:
    return f"{console.duration(low)} to {console.duration(high)}"


def _tell(found: Report, as_json: bool) -> None:
    """Say it, as a table or one object. Raises typer.Exit where a run would be refused."""
    refused = bool(found.problems)
    if as_json:
        head = {"refused": refused, "problems": found.problems, "warnings": found.warnings}
        console.result(json.dumps({**head, **found.facts}, default=str, ensure_ascii=False))
    else:
        lines = [*found.lines, *(("warning", text) for text in found.warnings)]
        lines += [("problem", text) for text in found.problems]
        done = "it is there already" if found.facts.get("videos") == 0 else "it would be made"
        lines.append(("so", "it would be refused" if refused else done))
        _table(lines)
    if refused:
        raise typer.Exit(1)


def _table(lines: list[tuple[str, str]]) -> None:
    """Aligned lines, which on a terminal are wrapped and coloured; a label is not repeated."""
    rows = [
        (label if number == 0 or lines[number - 1][0] != label else "", text)
        for number, (label, text) in enumerate(lines)
    ]
    if not console.is_terminal(sys.stdout):
        console.result("\n".join(f"{label:10}{text}" for label, text in rows))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    colours = {"problem": "bold red", "warning": "yellow"}
    for (label, text), (kind, _) in zip(rows, lines, strict=True):
        table.add_row(Text(label, style="bold"), Text(text, style=colours.get(kind, "")))
    Console().print(table)
