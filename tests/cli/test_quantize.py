"""--quantize: what it is refused for, and that what was asked for reaches the transformer, the recipe and the plan."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dvgen.dry_run import _basis
from dvgen.main import app
from dvgen.recipe import recipe_in
from typer.testing import CliRunner

from dit_video import api
from dit_video.nn import int8

LINE = ("sample", "a red ball", "--size", "64x64", "--frames", "5", "--steps", "3", "--seed", "1", "--device", "cpu")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many products there were of 8 bits."""
    counted = [0]
    real = int8.Int8.of_rounded

    def call(self: int8.Int8, *arguments: Any) -> Any:
        counted[0] += 1
        return real(self, *arguments)

    monkeypatch.setattr(int8.Int8, "of_rounded", call)
    return counted


def run(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done


def test_it_is_refused_by_name_and_by_device():
    assert "--quantize 'int4': must be one of none, int8, fp8" in run(*LINE, "--quantize", "int4", code=2).stderr
    said = run(*LINE, "--quantize", "fp8", code=2).stderr
    assert "--quantize fp8: multiplies on NVIDIA GPUs" in said and not list(Path().iterdir())
    assert "--quantize fp8: multiplies on NVIDIA GPUs" in run(*LINE, "--quantize", "fp8", "--dry-run", code=1).output
    both = "--quantize", "int8", "--compile"
    assert "only one of the two" in run(*LINE, *both, code=2).stderr and not list(Path().iterdir())
    assert "only one of the two" in run(*LINE, *both, "--dry-run", code=1).output


def test_a_refusal_says_which_file_asked_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "user.toml").write_text('quantize = "fp8"')
    monkeypatch.setenv("DVGEN_CONFIG", "user.toml")
    assert "the nearest is --quantize int8. --quantize is from user.toml" in run(*LINE, code=2).stderr


def test_blocks_multiply_in_int8_and_the_recipe_says_so(products: list[int]):
    assert "--quantize" not in run(*LINE, "-o", "plain.mp4").stderr
    assert products == [0] and "--quantize" not in " ".join(recipe_in(Path("plain.mp4")).line)
    said = run(*LINE, "-o", "small.mp4", "--quantize", "int8").stderr
    assert "--quantize int8: makes this model smaller and not faster, since its layers are only 256 wide." in said
    layers, text, image = 10, 2, 8  # of the shipped model; of cross-attention's keys and values; of a step
    assert products == [layers * (text + 3 * image)]
    assert "--quantize=int8" in recipe_in(Path("small.mp4")).line
    before = Path("small.mp4").read_bytes()
    run("again", "small.mp4", "-o", "third.mp4")
    assert Path("third.mp4").read_bytes() == before != Path("plain.mp4").read_bytes()


def test_a_dry_run_tells_it_and_its_memory():
    line = ("sample", "a", "--dry-run", "--json", "--device", "cpu", "--dtype", "float32")
    plain, small = (json.loads(run(*line, "--quantize", name).stdout) for name in ("none", "int8"))
    assert (plain["quantize"], small["quantize"]) == (None, "int8")
    saved = plain["memory"]["denoise"] - small["memory"]["denoise"]
    assert 0.9 < saved / (3 * 11.2e6) < 1.0  # most of 11.2 million numbers take one byte instead of four
    assert any("multiply in int8" in line for line in small["strategy"])


def test_a_dry_run_does_not_advise_to_measure_what_calibrate_cannot():
    """It measures models as they are stored."""
    line = ("sample", "a", "--random-weights", "--dry-run", "--device", "cpu", "--size", "64x64", "--frames", "5")
    plain, small = (run(*line, "--quantize", name).stdout for name in ("none", "int8"))
    assert "`dvgen calibrate` does" in plain
    assert "calibrate" not in small and "a guess, nothing was measured here\n" in small
    assert _basis("another", None).endswith("another model; `dvgen calibrate` measures this one")
    assert _basis("another", "int8") == "measured here otherwise than with int8"
    assert _basis("measured", "int8") == "measured here with this model"


def test_jobs_of_a_batch_have_their_own(products: list[int]):
    Path("out").mkdir()
    jobs = [{"prompt": "a red ball", "seed": 1}, {"prompt": "a red ball", "seed": 2, "quantize": "int8"}]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    options = [*LINE[2:8], "--device", "cpu"]
    run("batch", "jobs.jsonl", "--out", "out", "--quiet", *options)
    assert products[0] > 0
    lines = [" ".join(recipe_in(file).line) for file in sorted(Path("out").glob("*.mp4"))]
    assert ["--quantize=int8" in line for line in lines] == [False, True]


def test_a_dry_run_refuses_the_jobs_of_a_batch_that_ask_for_what_is_not_there():
    Path("out").mkdir()
    jobs = [{"prompt": "a cat", "quantize": "fp8"}, {"prompt": "a dog", "quantize": "fp8"}, {"prompt": "a bird"}]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    line = ("batch", "jobs.jsonl", "--out", "out", "--random-weights", "--device", "cpu", "--dry-run")
    *said, total = map(json.loads, run(*line, code=1).stdout.splitlines())
    found = {each["index"]: (each["status"], each.get("problems")) for each in said}
    problem = "--quantize fp8: multiplies on NVIDIA GPUs of Ada, Hopper or later, and this is cpu"
    assert [status for _, (status, _) in sorted(found.items())] == ["refused", "refused", "new"]
    assert all(found[index][1][0].startswith(problem) for index in sorted(found)[:2])
    assert (total["total"]["refused"], total["total"]["new"]) == (2, 1)


def test_frames_stay_near_those_of_float32():
    """Of the shipped model: a bound on what 8 bits change, in dB of a whole clip."""
    frames = [
        api.load_model("default", device="cpu", dtype="float32", quantize=name)
        .generate("a red ball moving right on a white background", size=(64, 64), frames=5, steps=6, seed=3)
        .frames
        for name in ("none", "int8")
    ]
    first, second = (np.asarray(each, np.float32) for each in frames)
    error = np.square(first - second).mean()
    assert error > 0 and 10 * np.log10(255**2 / error) > 26
