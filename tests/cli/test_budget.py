"""`--time-budget`: what is given up for a time, in which order, and that it is said, written down and kept to."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvgen import budget
from dvgen.main import app
from typer.testing import CliRunner, Result

from dit_video import unfinished
from dit_video.clip import Settings
from dit_video.errors import UsageError
from dit_video.timing import Span, Timings
from dit_video.work import passes_of, why_not_fast
from tests.program import ROOT, run

SMALL = ["--random-weights", "--size", "48x32", "--frames", "5", "--steps", "12", "--seed", "3"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def one_second_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass through the transformer takes a second, and all else nothing."""
    monkeypatch.setattr(budget, "_is_unmeasured", lambda ready, clock: False)
    monkeypatch.setattr(budget, "_seconds", lambda ready, clock: Span(1.0, 1.0) * ready.course().passes.count)
    monkeypatch.setattr("dit_video.machine.since_start", lambda: 0.0)


def sample(*more: str) -> Result:
    return CliRunner().invoke(app, ["sample", "a red ball", *SMALL, *more])


def passes(settings: Settings) -> int:
    return passes_of(settings, None).count


@pytest.mark.parametrize(
    "settings",
    [
        Settings(steps=20, guidance=(4.0,), shift=3.0),
        Settings(steps=20, guidance=(4.0, 3.0)),
        Settings(steps=20),
        Settings(steps=3, guidance=(2.0,)),
        Settings(steps=20, guidance=(4.0,), guidance_interval=(0.7, 1.0)),
        Settings(steps=8, solver="heun", guidance=(4.0,)),
        Settings(steps=50, guidance=(5.0,), shift=5.0),
    ],
    ids=str,
)
def test_each_candidate_takes_less_than_the_one_before(settings: Settings):
    every = list(budget.candidates(settings))
    assert every[0] == settings
    counts = [passes(each) for each in every]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) >= len(counts) - 2
    fast = [each for each in every if each.fast]
    assert all(why_not_fast(each, None) == "" for each in fast) and bool(fast) == (settings.steps >= 20)
    assert every[-1].steps == min(4, settings.steps) and max(every[-1].guidance) == 1
    assert len(every[-1].guidance) == len(settings.guidance)


@pytest.mark.parametrize(
    ("time", "words", "forwards"),
    [
        ("60s", "nothing is given up", 24),
        ("20s", "9 steps instead of 12", 18),
        ("0.2min", "steps instead of 12, and guidance only at noise levels from 0.6", None),
        ("4.5", "4 steps instead of 12, and no guidance", 4),
    ],
)
def test_what_is_given_up_is_said_done_and_written_down(
    one_second_a_pass: None, time: str, words: str, forwards: int | None
):
    result = sample("--time-budget", time, "-o", "a.mp4", "--json", "--guidance", "4")
    assert result.exit_code == 0, result.output
    assert words in result.stderr
    made = json.loads(result.stdout)
    assert made["forwards"] * budget.RESERVE <= budget.parse(time)
    assert forwards in (None, made["forwards"])
    line = json.loads(CliRunner().invoke(app, ["info", "a.mp4", "--json"]).stdout)["recipe"]["line"]
    assert f"--steps={made['steps']}" in line and not any("budget" in word for word in line)
    again = CliRunner().invoke(app, ["again", "a.mp4", "-o", "b.mp4"])
    assert again.exit_code == 0 and Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()


def test_skipped_steps_are_the_first_that_is_given_up(one_second_a_pass: None):
    result = sample("--steps", "20", "--guidance", "4", "--time-budget", "30s", "-o", "a.mp4", "--json")
    assert result.exit_code == 0 and "--time-budget 30 s: --fast; about 20 s in all" in result.stderr
    assert json.loads(result.stdout)["forwards"] == 20 and json.loads(result.stdout)["steps"] == 20
    again = CliRunner().invoke(app, ["again", "a.mp4", "-o", "b.mp4", "--json"])
    assert again.exit_code == 0 and json.loads(again.stdout)["forwards"] == 20
    assert Path("a.mp4").read_bytes() == Path("b.mp4").read_bytes()


def test_too_little_time_is_refused_with_what_it_takes(one_second_a_pass: None):
    result = sample("--time-budget", "2s", "--guidance", "4")
    assert result.exit_code == 2 and "the nearest is 5s" in result.stderr
    assert sample("--time-budget", "5s", "--guidance", "4").exit_code == 0


def test_a_dry_run_says_what_would_be_given_up(one_second_a_pass: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dit_video.timing.PROGRAM", 0.001)
    result = sample("--time-budget", "20s", "--dry-run", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 0 and found["steps"] == 9
    assert any("9 steps instead of 12" in note for note in found["notes"])
    refused = sample("--time-budget", "1s", "--dry-run", "--json")
    found = json.loads(refused.stdout)
    assert refused.exit_code == 1 and "the nearest is" in found["problems"][0]
    assert found["steps"] == 4 and "this is the least that it can be: 4 steps instead of 12" in found["notes"][-1]


@pytest.mark.parametrize("in_the_cache", [False, True])
def test_what_was_broken_off_goes_on_with_the_settings_that_it_had(
    one_second_a_pass: None, monkeypatch: pytest.MonkeyPatch, in_the_cache: bool
):
    """Also where the output's disk was full, so that its state went to the user's cache."""
    monkeypatch.setenv("DVGEN_KEEP_EVERY", "0")
    real, calls = budget._seconds, []

    def stopping(*args, **more):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return original(*args, **more)

    from dit_video.models.wan.dit import WanDiT

    original = WanDiT.forward
    with monkeypatch.context() as patch:
        patch.setattr(WanDiT, "forward", stopping)
        assert sample("--time-budget", "20s", "-o", "a.mp4", "--guidance", "4").exit_code == 130
    (state,) = Path().glob(".dvgen-*.state")
    if in_the_cache:
        spare = unfinished.folders(Path())[1]
        spare.mkdir(parents=True)
        state.rename(spare / state.name)
    # By now a pass takes twice as long: begun anew it would be fewer steps.
    monkeypatch.setattr(budget, "_seconds", lambda ready, clock: real(ready, clock) * 2)
    result = sample("--time-budget", "20s", "-o", "a.mp4", "--json", "--guidance", "4")
    assert result.exit_code == 0, result.output
    assert "going on" in result.stderr and json.loads(result.stdout)["steps"] == 9
    fresh = sample("--time-budget", "20s", "-o", "b.mp4", "--json", "--guidance", "4")
    assert json.loads(fresh.stdout)["forwards"] <= 9


def test_a_model_that_was_never_measured_is_measured_first():
    result = sample("--time-budget", "1h", "-o", "a.mp4", "--preset", "distilled")
    assert result.exit_code == 0, result.output
    assert "nothing of this model was measured here: measuring" in result.stderr
    assert result.stderr.count("preset distilled:") == 1
    again = sample("--time-budget", "1h", "-o", "b.mp4")
    assert again.exit_code == 0 and "measuring" not in again.stderr


def test_measuring_says_nothing_of_its_own_prompts():
    shipped = ["sample", "a red ball", "--size", "64x48", "--frames", "5", "--seed", "3", "--time-budget", "1h"]
    result = CliRunner().invoke(app, [*shipped, "-o", "a.mp4"])
    assert result.exit_code == 0, result.output
    assert "measuring" in result.stderr and "never learnt" not in result.stderr


def test_nothing_is_measured_where_the_time_is_over_already(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dit_video.machine.since_start", lambda: 3.4)
    monkeypatch.setattr(budget, "_calibrate", lambda *_: pytest.fail("measured in vain"))
    result = sample("--time-budget", "3s", "-o", "a.mp4")
    assert result.exit_code == 2 and "measuring" not in result.stderr and "the nearest is" in result.stderr


def test_the_time_of_the_program_is_that_of_importing_it(tmp_path: Path):
    """Not that of measuring a model, nor of waiting for an answer."""
    code = (
        "import time\n"
        "from dvgen import budget\n"
        "from dvgen.main import run\n"
        "def slow(ready, speaker):\n"
        "    from dit_video.machine import since_start\n"
        "    print(since_start())\n"
        "    time.sleep(2)\n"
        "    return ready\n"
        "budget.settled = slow\n"
        "run()\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "cli"), *sys.path])
    line = [sys.executable, "-c", code, "sample", "a", *SMALL, "--steps", "1", "-o", "a.mp4", "-q"]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    begun = float(done.stdout.splitlines()[0])
    kept = {each.stage: each.seconds for each in Timings(tmp_path / "cache" / "timing.json").read()}
    assert 0 < begun - 1 < kept["program"] <= begun + 0.001
    assert kept["load library"] > kept["load text_encoder"]


@pytest.mark.slow  # since another process may take the time of either
def test_a_run_takes_as_long_as_was_foreseen_after_measuring():
    """A generous bound: within twice the range, for each activity that takes a while."""
    line = ["sample", "a red ball", "--random-weights", "--steps", "10", "--seed", "1", "-o", "a.mp4", "--json"]
    run("calibrate", "--random-weights", "-q")
    said = json.loads(run(*line, "--dry-run")[0])["seconds"]
    assert said.pop("basis") == "measured"
    began = time.perf_counter()
    took = json.loads(run(*line)[0])["seconds"]
    took["total"] = time.perf_counter() - began
    for activity in ("total", "load", "denoise", "decode"):
        low, high = said[activity]
        assert low / 2 <= took[activity] <= 2 * high, (activity, said, took)


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("90", 90), ("2min", 120), ("1.5h", 5400), (" 5 M ", 300), (".5min", 30)]
)
def test_times_are_read(text: str, seconds: float):
    assert budget.parse(text) == seconds


@pytest.mark.parametrize(("text", "words"), [("soon", "such as 60s"), ("0s", "the nearest is 1s"), ("999h", "168h")])
def test_other_times_are_refused(text: str, words: str):
    with pytest.raises(UsageError, match=words):
        budget.parse(text)
