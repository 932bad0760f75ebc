"""What is done, in detail: `--verbose` on standard error, `--log-file FILE` in a file, through Python's logging.

The loggers of the library stay silent otherwise. The file also gets what the user was told, and errors with their
traceback.
"""

import inspect
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from dit_video.errors import DvgenError, UsageError
from dvgen import console, options

LOGGERS = ("dit_video", "dvgen")
OPTIONS = ("verbose", "log_file")
"""The options that are added."""

FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


def _options(
    verbose: Annotated[
        bool,
        options.option(
            "--verbose -v", None, "Say what is done: files, strategy, times, memory.", panel=options.MESSAGES
        ),
    ] = False,
    log_file: Annotated[
        Path | None,
        options.option(
            "--log-file", "FILE", "Add the same to FILE, with times of day.", panel=options.MESSAGES, show_default=False
        ),
    ] = None,
) -> None:
    pass


def with_logging(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command --verbose and --log-file, for which its class cares, see `listening`."""
    hints = get_type_hints(command, include_extras=True) | get_type_hints(_options, include_extras=True)
    theirs, ours = (inspect.signature(each).parameters for each in (command, _options))
    parameters = [
        p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
        for p in (*theirs.values(), *ours.values())
    ]

    @wraps(command)
    def run(**values: Any) -> None:
        command(**{name: value for name, value in values.items() if name not in OPTIONS})

    run.__annotations__ = {p.name: p.annotation for p in parameters}
    vars(run)["__signature__"] = inspect.Signature(parameters)
    return run


@contextmanager
def listening(verbose: bool, file: Path | None, about: Callable[[], Iterator[str]]) -> Iterator[None]:
    """Within it the loggers are heard, if anybody wants to; about: what is written first.

    Raises:
        UsageError: the file cannot be written.
    """
    if not verbose and file is None:
        yield
        return
    import logging

    handlers: list[logging.Handler] = [_screen()] if verbose else []
    if file is not None:
        try:
            handlers.append(_kinds()[1](file, encoding="utf-8"))
        except OSError as error:
            reason = error.strerror or error
            raise UsageError(f"--log-file {file}: cannot be written ({reason}); choose another file.") from None
        handlers[-1].setFormatter(logging.Formatter(FORMAT))
    loggers = [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.DEBUG if file is not None else logging.INFO)
        for handler in handlers:
            logger.addHandler(handler)
    own, started = logging.getLogger("dvgen"), time.monotonic()
    try:
        for line in about():
            own.info("%s", line)
        yield
        own.info("done in %s", console.duration(time.monotonic() - started))
    except BaseException as error:
        _log_end(own, error)
        raise
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
            for handler in handlers:
                logger.removeHandler(handler)
        for handler in handlers:
            handler.close()


def _log_end(logger: Any, error: BaseException) -> None:
    """An error with its traceback; an end by a signal, or with an exit code that is no error, in a line."""
    code = getattr(error, "exit_code", getattr(error, "code", None))
    if isinstance(error, Exception) and (isinstance(error, DvgenError) or code is None):
        logger.error("%s", error, exc_info=error)
    elif isinstance(error, KeyboardInterrupt):
        logger.info("stopped by Ctrl-C")
    else:
        logger.info("ended with exit code %s", code)


def _screen() -> Any:
    return _kinds()[0]()


@cache
def _kinds() -> tuple[Any, Any]:
    """The two kinds of handlers; logging is not imported before somebody wants it."""
    import logging

    class Screen(logging.Handler):
        """Lines on standard error, above the bars, without what is there already."""

        def __init__(self) -> None:
            super().__init__(logging.INFO)
            self.started = time.monotonic()

        def emit(self, record: logging.LogRecord) -> None:
            """Show one line; the traceback of an error is for the file."""
            if record.name != console.SAID and record.levelno < logging.ERROR:
                console.aside(f"[{time.monotonic() - self.started:7.2f} s] {record.getMessage()}")

    class File(logging.FileHandler):
        """Lines at the end of a file; where it cannot be written any more, that is said once, and work goes on."""

        def handleError(self, record: logging.LogRecord) -> None:
            """Say it, and hear no more."""
            console.aside(f"the log {self.baseFilename} cannot be written any more ({sys.exc_info()[1]}).")
            self.setLevel(logging.CRITICAL + 1)

        def close(self) -> None:
            """Close it; of what cannot be written it was said."""
            with suppress(OSError):
                super().close()

    return Screen, File
