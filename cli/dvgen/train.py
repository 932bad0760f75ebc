"""`dvgen train`: the two trainings that made the shipped model."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from dvgen import console, options, pages
from dvgen.command import Command
from dvgen.logs import with_logging

if TYPE_CHECKING:
    from dit_video.train.dry_run import DryRun
    from dit_video.train.dry_run_autoencoder import AutoencoderDryRun
    from dit_video.train.loop import Progress


class Trainings(TyperGroup):
    """The trainings; help as in `main`."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Help."""
        pages.import_drawing()
        super().format_help(ctx, formatter)


app = typer.Typer(
    cls=Trainings,
    help="Train an autoencoder or a transformer from a TOML config.",
    no_args_is_help=True,
    add_completion=False,
)

Config = Annotated[
    Path, typer.Argument(metavar="CONFIG.toml", help="What to train, on what, how long.", show_default=False)
]
Resume = Annotated[bool, options.option("--resume", None, "Go on from the run's last checkpoint.", setting=False)]
Quiet = Annotated[bool, options.option("--quiet -q", None, "Print errors and the result only.", panel=options.MESSAGES)]
DryRunOption = Annotated[
    bool, options.option("--dry-run", None, "Only say what it would take: clips, tokens, memory, time.", setting=False)
]


@app.command(cls=Command)
@with_logging
def autoencoder(config: Config, resume: Resume = False, dry_run: DryRunOption = False, quiet: Quiet = False) -> None:
    """Train the causal video autoencoder on the procedural world, or on folders of videos and pictures."""
    from dit_video.train.config import AutoencoderConfig, load_config

    wanted = load_config(config, AutoencoderConfig)  # a mistake in it is said before torch loads
    speaker = console.Speaker(quiet=quiet)
    if dry_run:
        from dit_video.train.dry_run_autoencoder import dry_run as measure

        console.result(_autoencoder_table(measure(wanted, note=speaker.warn)))
        return
    from dit_video.train import autoencoder as training

    note = speaker.warn if _first_process() else lambda _: None
    _say(training.train(wanted, resume=resume, report=_reporter(speaker), note=note))


@app.command(cls=Command)
@with_logging
def dit(
    config: Config,
    resume: Resume = False,
    dry_run: DryRunOption = False,
    quiet: Quiet = False,
    lora: Annotated[
        str | None,
        options.option(
            "--lora",
            "RANK",
            "Train low-rank changes of the model that init_from names.",
            show_default=False,
            setting=False,
        ),
    ] = None,
) -> None:
    """Train the diffusion transformer and its text encoder on the latents of an autoencoder, or fine-tune one."""
    from dit_video.train.config import MAX_RANK, DiTTrainConfig, load_config

    given = {} if lora is None else {"lora": options.whole("--lora", lora, 1, MAX_RANK)}
    wanted = load_config(config, DiTTrainConfig, given)
    speaker = console.Speaker(quiet=quiet)
    if dry_run:
        from dit_video.train.dry_run import dry_run as measure

        console.result(_dry_run_table(measure(wanted, note=speaker.warn)))
        return
    from dit_video.train import dit as training

    note = speaker.warn if _first_process() else lambda _: None
    _say(training.train(wanted, resume=resume, report=_reporter(speaker), note=note))


def _dry_run_table(found: "DryRun") -> str:
    passes = "" if found.passes is None else f", {found.passes:.1f} passes"
    return _table(
        {
            "clips": _clips(found),
            "tokens": f"{found.tokens_per_clip:,.0f} a clip",
            "packs": f"{found.clips_per_pack:.1f} clips each, {found.padding:.1%} of their room empty",
            "parameters": f"{found.parameters / 1e6:,.1f} million",
            "steps": f"{found.steps:,}: {found.clips_seen:,} clips{passes}",
            "memory": f"{found.memory / 1e9:,.1f} GB, measured",
            "encoding": f"{console.duration(found.encode_seconds)} a clip, measured",
            "time": f"{console.duration(found.seconds)}, of steps measured at {console.duration(found.step_seconds)}",
        }
    )


def _autoencoder_table(found: "AutoencoderDryRun") -> str:
    cut = "" if found.clips is None else f"; {found.cut:.0%} of the clips are cut in time or space"
    measured = f"{console.duration(found.step_seconds)}, {console.duration(found.data_seconds)} of it for their clips"
    return _table(
        {
            "clips": _clips(found),
            "pixels": f"{found.pixels:,.0f} a step, of {found.clips_per_step:.1f} clips{cut}",
            "parameters": f"{found.parameters / 1e6:,.1f} million",
            "steps": f"{found.steps:,}: {found.clips_seen:,} clips",
            "memory": f"{found.memory / 1e9:,.1f} GB, measured",
            "time": f"{console.duration(found.seconds)}, of steps measured at {measured}",
        }
    )


def _clips(found: "DryRun | AutoencoderDryRun") -> str:
    world = "the procedural world, without end"
    data = world if found.clips is None else f"{found.clips:,}, {found.validation_clips:,} more to validate with"
    return data + (f"; {found.skipped:,} files left out" if found.skipped else "")


def _table(rows: dict[str, str]) -> str:
    return "\n".join(f"{name:12} {text}" for name, text in rows.items())


def _say(folder: Path) -> None:
    if _first_process():  # every process has the same result
        console.result(str(folder))


def _first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"  # torchrun's


def _reporter(speaker: console.Speaker) -> Any:
    def report(line: "Progress") -> None:
        speaker.note(
            f"step {line.step}/{line.steps}  loss {line.loss:.4f}  rate {line.learning_rate:.2e}  "
            f"gradient {line.grad_norm:.2f}  {line.clips_per_second:.1f} clips/s  "
            f"{line.tokens_per_second:,.0f} tokens/s  {console.duration(line.seconds_left)} left"
        )

    return report
