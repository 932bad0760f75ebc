"""The benchmarks' own arithmetic, and that the README says what their results say."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def harness(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import harness

    return harness


def test_readme_says_what_the_results_say():
    done = subprocess.run(
        [sys.executable, "benchmarks/summary.py", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_side_is_measured_from_outside_and_by_what_it_says(harness):
    code = "import time; x = bytearray(200 << 20); time.sleep(0.3); print('{\"made\": 7}')"
    held = bytearray(700 << 20)  # what we hold ourselves is not the side's
    found = harness.run(harness.Side("one", [sys.executable, "-c", code]))
    assert held and found.seconds >= 0.3 and found.figure("made") == 7
    assert 200 << 20 <= found.figure("peak") < 600 << 20


def test_a_side_that_fails_is_no_result(harness):
    with pytest.raises(SystemExit, match="one failed with 3"):
        harness.run(harness.Side("one", [sys.executable, "-c", "raise SystemExit(3)"]))


def test_ratios_are_taken_round_by_round(harness):
    theirs = [harness.Run(10.0, 1.0, 1, {}), harness.Run(30.0, 1.0, 1, {})]
    ours = [harness.Run(5.0, 1.0, 1, {}), harness.Run(10.0, 1.0, 1, {})]
    assert harness.ratio(theirs, ours) == harness.Spread(2.0, 2.5, 3.0)
    assert format(harness.Spread(2.0, 2.5, 3.0), ".1f") == "2.5 (2.0 to 3.0)"


def test_what_differs_gets_no_ratio(harness):
    with pytest.raises(harness.Differs, match="at most 0"):
        harness.agree("error", 0.2, 0.1)
    assert harness.agree("error", 0.05, 0.1) == "error 0.05"


def test_every_page_of_results_is_listed():
    pages = {file.name for file in (ROOT / "benchmarks" / "results").glob("*.md")}
    listed = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert pages and not {name for name in pages if f"(../benchmarks/results/{name})" not in listed}
