"""`--fast`: in every command that denoises, said beforehand and written down."""

import json
from pathlib import Path

import pytest
from dvgen.main import app
from typer.testing import CliRunner, Result

from tests.program import ROOT

TINY = ["--random-weights", "--guidance", "4", "--steps", "20", "--seed", "3"]
SIZE = ["--size", "48x32", "--frames", "5"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVGEN_CACHE", str(tmp_path / "cache"))


def dvgen(*line: str) -> Result:
    result = CliRunner().invoke(app, [*line])
    assert result.exit_code == 0, result.output
    return result


def test_every_command_skips_steps():
    result = dvgen("sample", "a ball", *TINY, *SIZE, "--fast", "-o", "a.mp4", "--json")
    assert json.loads(result.stdout)["forwards"] == 20 and "20 steps, of which 10 are computed" in result.stderr
    extended = dvgen("extend", "a.mp4", "a ball", *TINY, "--forward", "4", "--fast", "-o", "b.mp4", "--json")
    connected = dvgen("connect", "a.mp4", "a.mp4", "a", *TINY, "--frames", "4", "--fast", "-o", "c.mp4", "--json")
    for made in (extended, connected):
        found = json.loads(made.stdout)
        assert found["forwards"] == 20 * found["windows"]
    edited = dvgen("edit", "a.mp4", "a box", *TINY, "--strength", "0.5", "--fast", "-o", "d.mp4", "--json")
    assert json.loads(edited.stdout)["forwards"] == 6


def test_it_is_off_unless_it_is_given_and_goes_into_the_recipe():
    dvgen("sample", "a ball", *TINY, *SIZE, "-o", "whole.mp4")
    dvgen("sample", "a ball", *TINY, *SIZE, "--fast", "-o", "fast.mp4")
    assert Path("whole.mp4").read_bytes() != Path("fast.mp4").read_bytes()
    lines = {
        name: json.loads(dvgen("info", f"{name}.mp4", "--json").stdout)["recipe"]["line"] for name in ("whole", "fast")
    }
    assert "--fast" in lines["fast"] and "--fast" not in lines["whole"]
    again = dvgen("again", "fast.mp4", "-o", "again.mp4", "--json")
    assert json.loads(again.stdout)["forwards"] == 20
    assert Path("again.mp4").read_bytes() == Path("fast.mp4").read_bytes()


def test_a_dry_run_counts_what_is_computed():
    found = json.loads(dvgen("sample", "a ball", *TINY, *SIZE, "--fast", "--dry-run", "--json").stdout)
    assert (found["steps"], found["computed_steps"], found["forwards"]) == (20, 10, 20)
    whole = json.loads(dvgen("sample", "a ball", *TINY, *SIZE, "--dry-run", "--json").stdout)
    assert (whole["steps"], whole["computed_steps"], whole["forwards"]) == (20, 20, 40)
    assert found["disk"]["state"] > whole["disk"]["state"], "the velocity is kept too"
    text = dvgen("sample", "a ball", *TINY, *SIZE, "--fast", "--dry-run").stdout
    assert "20 steps, of which 10 are computed, of unipc: 20 passes through the transformer" in text


@pytest.mark.parametrize("more", [["--steps", "4"], ["--solver", "heun", "--steps", "20"]], ids=str)
def test_where_nothing_is_skipped_it_is_said(more: list[str]):
    line = ["sample", "a ball", *TINY, *SIZE, "--fast", *more]
    assert "--fast skips nothing: " in dvgen(*line, "-o", "a.mp4").stderr
    assert "--fast skips nothing: " in " ".join(json.loads(dvgen(*line, "--dry-run", "--json").stdout)["warnings"])


def test_jobs_say_it_each_for_itself():
    jobs = [{"prompt": "one", "fast": True}, {"prompt": "two"}, {"prompt": "three", "fast": True, "steps": 4}]
    Path("jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    Path("out").mkdir()
    result = dvgen("batch", "jobs.jsonl", "--out", "out", *TINY, *SIZE)
    assert "jobs.jsonl, line 3: --fast skips nothing" in result.stderr
    dvgen("sample", "one", *TINY, *SIZE, "--fast", "-o", "one.mp4")
    (made,) = Path("out").glob("*one*.mp4")
    assert made.read_bytes() == Path("one.mp4").read_bytes()


def test_eval_asks_for_the_same_with_it():
    model = str(ROOT / "weights" / "default")
    line = ["eval", "--model", model, "--prompts", "1", "--size", "64x64", "--frames", "12", "--fast"]
    assert "all" in dvgen(*line, "-q").stdout
    assert "--fast skips nothing" in dvgen(*line, "--steps", "1").stderr
    refused = CliRunner().invoke(app, [*line, "--reconstruct"])
    assert refused.exit_code == 2 and "--reconstruct and --fast" in str(refused.output)
