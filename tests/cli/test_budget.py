"""`--time-budget`: what is given up for a time, in which order, and that it is said, written down and kept to."""

import json
from pathlib import Path

import pytest
from dvgen import budget
from dvgen.main import app
from typer.testing import CliRunner, Result

from dit_video.clip import Settings
from dit_video.errors import UsageError
from dit_video.work import passes_of

SMALL = ["--random-weights", "--size", "48x32", "--frames", "5", "--steps", "12", "--seed", "3"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVGEN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def one_second_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass through the transformer takes a second, and all else nothing."""
    monkeypatch.setattr(budget, "_is_unmeasured", lambda ready, clock: False)
    monkeypatch.setattr(budget, "_seconds", lambda ready, clock: 1.0 * ready.course(videos=1).passes.count)
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
    ],
    ids=str,
)
def test_each_candidate_takes_less_than_the_one_before(settings: Settings):
    every = list(budget.candidates(settings))
    assert every[0] == settings
    counts = [passes(each) for each in every]
    assert counts == sorted(counts, reverse=True) and len(set(counts)) >= len(counts) - 2
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
    assert refused.exit_code == 1 and "the nearest is" in json.loads(refused.stdout)["problems"][0]


def test_what_was_broken_off_goes_on_with_the_settings_that_it_had(
    one_second_a_pass: None, monkeypatch: pytest.MonkeyPatch
):
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
    # By now a pass takes twice as long: begun anew it would be fewer steps.
    monkeypatch.setattr(budget, "_seconds", lambda ready, clock: 2 * real(ready, clock))
    result = sample("--time-budget", "20s", "-o", "a.mp4", "--json", "--guidance", "4")
    assert result.exit_code == 0, result.output
    assert "going on" in result.stderr and json.loads(result.stdout)["steps"] == 9
    fresh = sample("--time-budget", "20s", "-o", "b.mp4", "--json", "--guidance", "4")
    assert json.loads(fresh.stdout)["forwards"] <= 9


def test_a_model_that_was_never_measured_is_measured_first():
    result = sample("--time-budget", "1h", "-o", "a.mp4")
    assert result.exit_code == 0, result.output
    assert "nothing of this model was measured here: measuring" in result.stderr
    again = sample("--time-budget", "1h", "-o", "b.mp4")
    assert again.exit_code == 0 and "measuring" not in again.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("60s", 60), ("90", 90), ("2min", 120), ("1.5h", 5400), (" 5 M ", 300), (".5min", 30)]
)
def test_times_are_read(text: str, seconds: float):
    assert budget.parse(text) == seconds


@pytest.mark.parametrize(("text", "words"), [("soon", "such as 60s"), ("0s", "the nearest is 1s"), ("999h", "168h")])
def test_other_times_are_refused(text: str, words: str):
    with pytest.raises(UsageError, match=words):
        budget.parse(text)
