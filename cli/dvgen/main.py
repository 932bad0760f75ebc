"""The `dvgen` command.

Nothing heavy is imported when it starts: `--help` answers at once, and bad input is refused before torch loads.
"""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import dit_video
from dit_video.errors import DvgenError
from dvgen import console, pages, process
from dvgen.commands import LISTED, ClickUsageError, Imported

process.prepare()  # nothing has imported torch yet

INTERRUPTED = 130  # the shell's convention: 128 + SIGINT


class Commands(TyperGroup):
    """All commands, imported when they are called.

    Where errors become a sentence on standard error and an exit code: 2 wrong usage, 1 anything else, 130 Ctrl-C.
    """

    def __init__(self, **about: Any) -> None:
        super().__init__(**about)
        self.commands: Any = Imported()

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Help, in which commands are only listed."""
        pages.import_drawing()
        with self._only_listed():
            super().format_help(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """What a shell may offer: commands that begin so, which are only listed."""
        with self._only_listed():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _only_listed(self) -> Iterator[None]:
        imported, self.commands = self.commands, {each.name: each.entry() for each in LISTED}
        try:
            yield
        finally:
            self.commands = imported

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run a command line and exit with its code."""
        try:
            code = super().main(*args, **{**extra, "standalone_mode": False})
            console.flush_output()
        except ClickUsageError as error:
            code = error.exit_code
            if message := error.format_message():  # it has none where it has shown the help instead
                console.fail(f"{message} See '{error.ctx.command_path if error.ctx else 'dvgen'} --help'.")
        except DvgenError as error:
            code = error.exit_code
            console.fail(str(error))
        except BrokenPipeError:  # whoever read our standard output has left: there is nobody to tell
            code = 1
            console.discard_output()
        except OSError as error:
            code = 1
            where = f"{error.filename}: " if error.filename else ""
            console.fail(f"{where}{error.strerror}." if error.strerror else str(error))
        if code == INTERRUPTED:
            console.say("stopped.")
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    name="dvgen",
    cls=Commands,
    help="Text to video in a terminal: a diffusion transformer over spacetime patches.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.result(f"dvgen {dit_video.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Text to video in a terminal: a diffusion transformer over spacetime patches."""


def _stop(number: int, _: object) -> None:
    raise SystemExit(128 + number)


def run() -> None:
    """The console script."""
    process.open_streams()
    # As after Ctrl-C, nothing half-written may stay when a shell or a batch system ends us.
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _stop)
    with process.leaving_at_once():
        app(prog_name="dvgen")


@cache
def group() -> Any:
    """All commands, for those that read the options of others."""
    return typer.main.get_command(app)


def command_of(name: str) -> Any:
    """A command by its name, for another one that reads its options."""
    return group().commands[name]
