"""The `dvgen` command. Nothing heavy is imported here: `dvgen --help` answers at once, and bad input is refused before torch loads."""

import os
import sys
from typing import Annotated, Any

# Waiting OpenMP threads must sleep, not spin: on a shared machine spinning made torch up to 20 times slower. OpenMP reads these
# when torch is first imported, so they are set before any command runs.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "0")

import typer
from typer.core import TyperGroup

import dit_video
from dit_video.errors import DvgenError
from dvgen import console, evaluate, info, sample, scenes, train

# Click's class of wrong usage, wherever this version of Typer keeps Click.
ClickUsageError: Any = typer.BadParameter.__mro__[1]

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


class Commands(TyperGroup):
    """The one place where errors become a sentence on standard error and an exit code: 2 wrong usage, 1 all else, 130 Ctrl-C."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        """Run a command line and exit with its code."""
        try:
            code = super().main(*args, standalone_mode=False, **extra)
            if sys.stdout is not None:
                sys.stdout.flush()
        except ClickUsageError as error:
            command = error.ctx.command_path if error.ctx else "dvgen"
            code = console.fail(f"{error.format_message()} See '{command} --help'.", code=2)
        except DvgenError as error:
            code = console.fail(str(error), code=error.exit_code)
        except BrokenPipeError:
            code = console.reader_left()
        except OSError as error:
            code = console.fail(str(error), code=1)
        if code == INTERRUPTED:
            console.fail("stopped.", code=INTERRUPTED)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    name="dvgen",
    cls=Commands,
    help="Text to video in a terminal: a diffusion transformer over spacetime patches.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.result(f"dvgen {dit_video.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Text to video in a terminal: a diffusion transformer over spacetime patches."""


app.command()(sample.sample)
app.command()(info.info)
app.command("eval")(evaluate.evaluate)
app.command()(scenes.scenes)
app.add_typer(train.app, name="train")


def run() -> None:
    """The console script."""
    app()
