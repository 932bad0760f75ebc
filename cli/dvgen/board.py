"""What becomes of the jobs of a batch: a live table in a terminal, plain lines elsewhere, a line of JSON for each."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dvgen import console
from dvgen.jobs import Job

LOOKS = {
    "queued": "dim",
    "running": "bold cyan",
    "elsewhere": "dim",
    "done": "green",
    "skipped": "dim green",
    "failed": "red",
}
"""The states of a job. elsewhere: another process makes it. skipped: it was made before."""

ENDED = ("done", "skipped", "failed")
MOST_ROWS, MOST_COLUMNS = 20, 110
NARROW = 60  # columns, under which times are said shortly
BEFORE = 2  # rows shown before the first that runs
REFRESHES = 4  # per second


@dataclass
class _Row:
    """A job as the table shows it."""

    job: Job
    state: str = "queued"
    note: str = ""


class Board(console.Speaker):
    """The jobs of a batch and what becomes of them; notes and warnings are said once each, above the table."""

    def __init__(self, jobs: Sequence[Job], *, quiet: bool = False) -> None:
        super().__init__(quiet=quiet)
        self._rows = {job.index: _Row(job) for job in jobs}
        self.counts = Counter({"queued": len(jobs)})
        self._running: list[_Row] = []
        self._stage = ""
        self._began: float | None = None
        self._share = 0.0  # of the running jobs, what is done
        self._said: set[str] = set()
        if self._bars:
            self._bars = _live(self)
        self.progress("jobs", 0, len(jobs))

    def show(self, text: str) -> None:
        """As `Speaker.show`; what many jobs have in common is said once."""
        if text not in self._said:
            self._said.add(text)
            super().show(text)

    def begin(self, jobs: Iterable[Job]) -> None:
        """Jobs run from now on, and no others."""
        self._began = time.monotonic() if self._began is None else self._began
        self._share = 0.0
        self._started.pop("steps", None)  # of jobs that have failed
        for row in self._running:
            if row.state == "running":
                self._set(row, "queued")
                row.note = "to decode"  # when its turn comes
        self._running = [self._rows[job.index] for job in jobs]
        for row in self._running:
            self._set(row, "running")

    def elsewhere(self, job: Job) -> None:
        """Another process makes a job."""
        self._set(self._rows[job.index], "elsewhere")

    def end(self, job: Job, state: str, **about: Any) -> None:
        """A job has ended: done, skipped or failed."""
        row = self._rows[job.index]
        self._set(row, state)
        self._running = [other for other in self._running if other is not row]
        found = {"index": job.index, "command": job.command, "status": state, "prompt": job.prompt, **about}
        line = json.dumps(found, default=str, ensure_ascii=False)
        if self._bars and sys.stdout is not None and sys.stdout.isatty():
            self._bars.console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)
        else:
            console.result(line)
        self.progress("jobs", sum(self.counts[state] for state in ENDED), len(self._rows))

    def fail(self, job: Job, error: Exception) -> None:
        """A job has failed."""
        self.warn(f"{job.where}: {error}")
        self.end(job, "failed", error=str(error))

    def _set(self, row: _Row, state: str) -> None:
        self.counts[row.state] -= 1
        self.counts[state] += 1
        row.state, row.note = state, ""

    def _draw(self, stage: str, done: int, total: int, left: str) -> None:
        if stage == "jobs":
            return
        if stage in ("steps", "decode") and self._running:
            self._stage = ""
            self._share = done / total if stage == "steps" else self._share
            for row in self._running:
                row.note = f"{'' if stage == 'steps' else 'decode '}{done}/{total}{', ' if left else ''}{left}"
        else:
            self._stage = "" if done >= total else stage

    def _speak(self, stage: str, done: int, total: int, left: str) -> None:
        if stage == "jobs" and done >= total:
            ended = ", ".join(f"{self.counts[state]} {state}" for state in ENDED if self.counts[state])
            console.say(f"jobs: {ended} in {console.duration(time.monotonic() - self._started[stage][0])}")
        elif done < total or stage == "jobs" or stage.startswith("load"):  # others are over and over again
            super()._speak(stage, done, total, left)

    def table(self, width: int, height: int) -> Any:
        """The table as rich draws it, in a terminal of so many columns and lines."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        table = Table.grid(padding=(0, 1))
        table.width = min(width - 1, MOST_COLUMNS)  # a line that fills the terminal is two when it gets narrower
        table.add_column(justify="right", no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.add_column(no_wrap=True)
        for row in self._window(max(1, min(height - 4, MOST_ROWS))):
            words = f"{row.note} left" if row.note.count(",") and width >= NARROW else row.note
            state = words or row.state
            look = LOOKS[row.state]
            title = row.job.prompt or row.job.command
            table.add_row(Text(f"{row.job.index}", "dim"), Text(" ".join(title.split())), Text(state, look))
        totals = ", ".join(f"{self.counts[state]} {state}" for state in LOOKS if self.counts[state])
        line = Text("; ".join(filter(None, [totals, self._stage, self._left()])), "bold", no_wrap=True)
        line.truncate(width - 1, overflow="ellipsis")
        return Group(table, line)

    def _left(self) -> str:
        """How long all jobs may still take, if the others are as those so far."""
        made = self.counts["done"] + self._share * self.counts["running"]
        rest = sum(self.counts[state] for state in LOOKS if state not in ENDED) - self._share * self.counts["running"]
        if not made or not rest or self._began is None:
            return ""
        return f"{console.duration((time.monotonic() - self._began) / made * rest)} left"

    def _window(self, size: int) -> list[_Row]:
        """So many rows around the first that runs, or that will."""
        rows = list(self._rows.values())
        if len(rows) <= size:
            return rows
        first = next((at for at, row in enumerate(rows) if row.state == "running"), None)
        if first is None:
            first = next((at for at, row in enumerate(rows) if row.state not in ENDED), len(rows))
        start = min(max(first - min(BEFORE, size // 4), 0), len(rows) - size)
        return rows[start : start + size]


def _live(board: Board) -> Any:
    from rich.console import Console
    from rich.live import Live

    out = Console(stderr=True)
    lives: list[Any] = []  # the one below, once it is there
    widths = [out.width]

    def draw() -> Any:
        width, height = out.size
        shape = lives[0]._live_render._shape if lives else None
        if shape is not None and width < widths[0]:
            # A terminal that gets narrower breaks the lines that are there, so that more of them are to be replaced.
            broken = -(-min(widths[0] - 1, MOST_COLUMNS) // width)
            lives[0]._live_render._shape = shape[0], shape[1] * broken
        widths[0] = width
        return board.table(width, height)

    live = Live(
        get_renderable=draw,
        console=out,
        refresh_per_second=REFRESHES,
        redirect_stdout=False,  # results may go into a file
        redirect_stderr=False,
        vertical_overflow="crop",
    )
    lives.append(live)
    return live
