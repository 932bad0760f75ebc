"""What a command says: progress and notes on standard error, results on standard output."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any, Self

from dit_video.errors import MediaError

WIDE, NARROW = 72, 36  # columns from which on bars fit, and from which on the time that is left does
SPOKEN_EVERY = 10.0  # seconds between two lines about the same stage when there is no terminal
SAID = "dvgen.said"  # the logger of what the user is told, whether quiet or not


class Unwritable(MediaError):
    """Standard output cannot be written."""


def result(text: str) -> None:
    """One result on standard output.

    Raises:
        Unwritable: it cannot be written.
        BrokenPipeError: nobody reads it any more.
    """
    with _explained():
        try:
            print(text, flush=True)
        except UnicodeEncodeError:  # a path that this terminal's encoding cannot say goes out as the bytes that it is
            sys.stdout.buffer.write(text.encode("utf-8", "surrogateescape") + b"\n")
            sys.stdout.buffer.flush()


def flush_output() -> None:
    """Write what standard output still holds. Raises as `result` does."""
    if sys.stdout is not None:
        with _explained():
            sys.stdout.flush()


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise Unwritable(f"standard output cannot be written ({error.strerror or error}).") from None


def fail(message: str) -> None:
    """Say what is wrong, on standard error."""
    say(f"Error: {message}")


def discard_output() -> None:
    """Send standard output nowhere, so that Python does not fail when it flushes it at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str) -> None:
    """One line on standard error."""
    # Nobody may be reading standard error any more, or its disk be full, and that is no reason to lose the work.
    if sys.stderr is None:  # closed from the start; print would take standard output instead
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (for the rest of the process)


def aside(text: str) -> None:
    """One line on standard error, above the bars where there are some."""
    if _speaking:
        _speaking[-1].show(text)
    else:
        say(text)


def _log(text: str, *, warning: bool = False) -> None:
    """What the user is told goes into the log too, if there is one."""
    if "logging" in sys.modules:  # nobody imports it in vain
        import logging

        if (logger := logging.getLogger(SAID)).hasHandlers():
            logger.log(logging.WARNING if warning else logging.INFO, "%s", text)


def duration(seconds: float) -> str:
    """ "0.4 s", "12 s", "3 min 20 s" or "2 h 5 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


_speaking: "list[Speaker]" = []  # those that show bars


class Speaker:
    """Progress of a command's stages: bars in a terminal, plain lines elsewhere; when quiet, warnings alone."""

    def __init__(self, *, quiet: bool = False) -> None:
        self.quiet = quiet
        self._bars: Any = _bars() if not quiet and is_terminal(sys.stderr) else None
        self._tasks: dict[str, Any] = {}
        self._started: dict[str, tuple[float, int]] = {}  # when a stage began, and with how many parts done
        self._spoken: dict[str, float] = {}

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
            _speaking.append(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()
            _speaking.remove(self)

    def result(self, text: str) -> None:
        """One result on standard output, while the bars stand still."""
        with self._standing():
            result(text)

    @contextmanager
    def _standing(self) -> Iterator[None]:
        """While something else is written. Those that are full stay above it, the others go on below: bars that are
        started again would wipe out as many lines as they had."""
        if not self._bars:
            yield
            return
        self._bars.stop()
        yield
        old, self._bars, self._tasks = self._bars, _bars(), {}
        for task in old.tasks:
            if not task.finished:
                about = {"completed": int(task.completed), "total": task.total, **task.fields}
                self._tasks[task.description] = self._bars.add_task(task.description, **about)
                self._bars.tasks[-1].start_time = task.start_time
        self._bars.start()

    def note(self, text: str) -> None:
        """One line that the user should see, above the bars."""
        _log(text)
        if not self.quiet:
            self.show(text)

    def warn(self, text: str) -> None:
        """One line that the user would miss later, above the bars; said when quiet too."""
        _log(text, warning=True)
        self.show(text)

    def show(self, text: str) -> None:
        """One line, above the bars."""
        if self._bars:
            self._bars.console.print(text, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            say(text)

    def ask(self, question: str, *, otherwise: bool) -> bool:
        """What a person answers; `otherwise` where nobody can be asked, or the answer is empty."""
        if self.quiet or not is_terminal(sys.stderr) or sys.stdin is None or not sys.stdin.isatty():
            return otherwise
        with self._standing():
            sys.stderr.write(f"{question} [{'Y/n' if otherwise else 'y/N'}] ")
            sys.stderr.flush()
            answer = sys.stdin.readline().strip().lower()
        return answer in ("y", "yes") if answer else otherwise

    def progress(self, stage: str, done: int, total: int) -> None:
        """`done` of `total` parts of a stage are finished; called with 0 when it begins."""
        now = time.monotonic()
        started, first = self._started.setdefault(stage, (now, done))
        left = duration((now - started) / (done - first) * (total - done)) if first < done < total else ""
        if self._bars:
            self._draw(stage, done, total, left)
        elif not self.quiet:
            self._speak(stage, done, total, left)
        if done >= total:
            _log(f"{stage}:{f' {total}' if total > 1 else ''} done in {duration(now - started)}")
            del self._started[stage]

    def _draw(self, stage: str, done: int, total: int, left: str) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, count="", left="")
        # Without a total the bar pulses: how far a single part has come is not known.
        self._bars.update(
            self._tasks[stage],
            completed=done,
            total=None if total == 1 > done else total,
            count=f"{done}/{total}" if total > 1 else "",
            left=f"{left} left" if left else "",
        )

    def _speak(self, stage: str, done: int, total: int, left: str) -> None:
        now = time.monotonic()
        started, _ = self._started[stage]
        if done >= total:
            count = f" {total}" if total > 1 else ""
            say(f"{stage}:{count} done in {duration(now - started)}")
        elif done and now - self._spoken.get(stage, started) >= SPOKEN_EVERY:
            self._spoken[stage] = now
            say(f"{stage}: {done} of {total}, {left} left")


def is_terminal(stream: IO[str] | None) -> bool:
    return stream is not None and stream.isatty() and os.environ.get("TERM") != "dumb"


def _bars() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
    from rich.table import Table
    from rich.text import Text

    class CountOrTime(ProgressColumn):
        """What there is no room for side by side: how many parts, or where there is one, how long it takes."""

        def render(self, task: Task) -> Text:
            taken = task.finished_time if task.finished else task.elapsed
            return Text(task.fields["count"] or duration(taken or 0.0), no_wrap=True)

    class ShortName(ProgressColumn):
        """As much of a stage's name as that leaves room for."""

        def render(self, task: Task) -> Text:
            name = Text(task.description, no_wrap=True)
            name.truncate(max(1, console.width - 10), overflow="ellipsis")
            return name

    class Bars(Progress):
        """Bars that leave out what does not fit, as wide as the terminal is now."""

        def make_tasks_table(self, tasks: Any) -> Table:
            """See `Progress`; it is drawn anew every time."""
            self.columns = layouts[max(least for least in layouts if console.width >= least)]
            return super().make_tasks_table(tasks)

    console = Console(stderr=True)
    left, name = TextColumn("{task.fields[left]}"), TextColumn("{task.description}")
    count = TextColumn("{task.fields[count]:>9}")
    whole = (TextColumn("{task.description:<20}"), BarColumn(bar_width=30), TimeElapsedColumn(), count, left)
    layouts = {WIDE: whole, NARROW: (name, CountOrTime(), left), 0: (ShortName(), CountOrTime())}
    return Bars(*whole, console=console)
