"""The table of a batch: what it shows in terminals of every size, and the plain lines without one."""

import io
import json
import re
from typing import Any

import pytest
from dvgen import board, console
from dvgen.board import Board
from dvgen.jobs import Job
from rich.console import Console


def jobs(count: int) -> list[Job]:
    prompt = "a red ball moving right on a white background, number"
    return [
        Job(index=index, where=f"line {index}", command="sample", given={"prompt": f"{prompt} {index}"})
        for index in range(1, count + 1)
    ]


def drawn(shown: Board, width: int, height: int = 24) -> list[str]:
    out = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    out.print(shown.table(width, height))
    text: str = out.file.getvalue()  # type: ignore[attr-defined]
    return text.splitlines()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)


def test_states_are_shown(terminal: None, capsys: pytest.CaptureFixture[str]):
    every = jobs(6)
    shown = Board(every)
    assert drawn(shown, 80)[-1].strip() == "6 queued"
    shown.end(every[0], "skipped")
    shown.elsewhere(every[1])
    shown.begin(every[2:5])
    shown.progress("load transformer", 0, 1)
    assert drawn(shown, 80)[-1] == "1 queued, 3 running, 1 elsewhere, 1 skipped; load transformer"
    shown.progress("load transformer", 1, 1)
    shown.progress("steps", 0, 8)
    shown.progress("steps", 2, 8)
    rows = drawn(shown, 80)
    assert [row.split()[-1] for row in rows[:2]] == ["skipped", "elsewhere"]
    assert all(re.search(r"2/8, [\d.]+ s left$", row.rstrip()) for row in rows[2:5]), rows
    assert rows[5].rstrip().endswith("queued") and rows[6].startswith("1 queued, 3 running, 1 elsewhere, 1 skipped; ")
    shown.begin([every[2]])
    assert [row.split()[-1] for row in drawn(shown, 80)[2:5]] == ["running", "decode", "decode"]
    shown.end(every[2], "done")
    shown.fail(every[3], ValueError("broken"))
    assert [row.split()[-1] for row in drawn(shown, 80)[2:4]] == ["done", "failed"]
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(each["index"], each["status"]) for each in told] == [(1, "skipped"), (3, "done"), (4, "failed")]


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("height", [5, 24, 60])
def test_every_line_fits(width: int, height: int, terminal: None):
    every = jobs(500)
    shown = Board(every)
    shown.begin(every[300:310])
    shown.progress("steps", 0, 50)
    shown.progress("steps", 20, 50)
    lines = drawn(shown, width, height)
    assert all(len(line) < width for line in lines) and len(lines) < height
    assert len(lines) <= board.MOST_ROWS + 1
    if width >= 40:
        assert any(line.strip().startswith("301 a red") and "20/50" in line for line in lines), lines


def test_the_window_follows_what_runs(terminal: None):
    every = jobs(100)
    shown = Board(every)

    def first() -> int:
        return int(drawn(shown, 80)[0].split()[0])

    assert first() == 1
    shown.begin(every[50:52])
    assert first() == 51 - board.BEFORE
    shown.begin(every[98:])
    assert first() == 101 - board.MOST_ROWS, "to the last one, and no further"
    for job in every:
        shown.end(job, "done")
    assert first() == 101 - board.MOST_ROWS


def test_a_terminal_that_gets_narrower_loses_no_line_and_keeps_none(terminal: None, monkeypatch: pytest.MonkeyPatch):
    """What rich is told of the height of what is there; the attribute is its own, so this test looks after it."""
    shown = Board(jobs(3))
    live: Any = shown._bars
    sizes = [(80, 24)]
    monkeypatch.setattr(type(live.console), "size", property(lambda self: sizes[-1]))
    live._live_render._shape = (79, 4)
    live.get_renderable()
    assert live._live_render._shape == (79, 4)
    sizes.append((30, 24))
    live.get_renderable()
    assert live._live_render._shape == (79, 12), "each line of 79 is three of 30"


def test_without_a_terminal_there_are_plain_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "SPOKEN_EVERY", 0.0)
    every = jobs(2)
    with Board(every) as shown:
        shown.begin(every)
        shown.progress("load transformer", 0, 1)
        shown.progress("load transformer", 1, 1)
        for step in range(4):
            shown.progress("steps", step, 3)
        for job in every:
            shown.note("the same for all")
            shown.end(job, "done")
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("load transformer: done in") and said.count("the same for all") == 1
    assert [line.split(",")[0] for line in said if line.startswith("steps")] == ["steps: 1 of 3", "steps: 2 of 3"]
    assert said[-1].startswith("jobs: 2 done in")
