"""`dvgen info`, `scenes`, `eval` and `train`: that they say and write what they should."""

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from dvgen.main import app
from typer.testing import CliRunner, Result

from dit_video.scenes.world import held_out
from dit_video.video.io import probe
from tests.tiny import tiny_experts_folder, tiny_ti2v_folder


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


@pytest.fixture(scope="module")
def ti2v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_ti2v_folder(tmp_path_factory.mktemp("models") / "ti2v")
    (folder / "dvgen.json").write_text(json.dumps({"knows": {"shapes": ["ball", "star"]}, "steps": 2, "size": "64x32"}))
    return folder


def test_info_of_a_checkpoint(ti2v: Path):
    text = run("info", ti2v).stdout
    for words in ("wan", "diffusers", "custom", "float32", "knows        shapes: ball, star", "steps 2", "patch 1x2x2"):
        assert words in text
    about = json.loads(run("info", ti2v, "--json").stdout)
    assert about["components"]["vae"]["parameters"] > 1000
    assert about["grid"]["stride"] == [4, 16, 16]
    assert about["defaults"]["width"] == 64


def test_info_of_two_experts(tmp_path: Path):
    about = json.loads(run("info", tiny_experts_folder(tmp_path / "wan"), "--json").stdout)
    assert about["boundary"] == 0.875 and {"transformer", "transformer_2"} <= set(about["components"])


def test_info_of_a_video(tmp_path: Path):
    run("scenes", tmp_path / "out", "--count", "1", "--size", "34x32", "--frames", "6", "--fps", "8")
    about = json.loads(run("info", tmp_path / "out" / "000000.mp4", "--json").stdout)
    assert (about["width"], about["height"], about["frames"], about["fps"]) == (34, 32, 6, 8)
    assert about["codec"] == "h264" and about["seconds"] == 0.75
    assert "h264" in run("info", tmp_path / "out" / "000000.mp4").stdout


@pytest.mark.parametrize(("suffix", "form"), [(".png", "png"), (".jpg", "jpeg"), (".gif", "gif")])
def test_info_of_a_picture_has_no_rate(tmp_path: Path, suffix: str, form: str):
    path = tmp_path / f"a{suffix}"
    iio.imwrite(path, np.zeros((32, 48, 3), np.uint8))
    about = json.loads(run("info", path, "--json").stdout)
    assert about == {"path": str(path), "width": 48, "height": 32, "frames": 1, "format": form}
    lines = run("info", path).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["path", "width", "height", "frames", "format"]


def test_info_of_something_else(tmp_path: Path):
    (tmp_path / "a.txt").write_text("no video")
    (tmp_path / "a.safetensors").write_text("no folder")
    for name in ("a.txt", "a.safetensors"):
        assert name in run("info", tmp_path / name, code=1).stderr


def test_scenes_come_with_captions_and_are_repeatable(tmp_path: Path):
    for name, more in (("a", []), ("b", []), ("c", ["--seed", "1"])):
        out = run("scenes", tmp_path / name, "--count", "4", "--size", "48x32", "--frames", "9", *more).stdout
        assert out == f"{tmp_path / name}\n"
    files = {name: {path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in "abc"}
    assert sorted(files["a"]) == sorted(f"{n:06d}.{kind}" for n in range(4) for kind in ("mp4", "txt"))
    assert files["a"] == files["b"] and files["a"] != files["c"]
    assert all(len(files["a"][f"{n:06d}.txt"].split()) > 3 for n in range(4))


def test_scenes_are_native_without_a_size(tmp_path: Path):
    run("scenes", tmp_path / "out", "--count", "6")
    found = [probe(path) for path in sorted((tmp_path / "out").glob("*.mp4"))]
    assert len({(clip.width, clip.height, clip.frames) for clip in found}) == len(found) > 3


def test_eval_writes_table_json_and_sheet(ti2v: Path, tmp_path: Path):
    files = ["--json", tmp_path / "a.json", "--sheet", tmp_path / "a.png"]
    found = run("eval", "--model", ti2v, "--prompts", "5", "--size", "64x64", "--frames", "5", *files)
    assert found.stdout.count("\n") == 6 and "95 % interval" in found.stdout
    about = json.loads((tmp_path / "a.json").read_text())
    assert about["rates"]["all"]["total"] == 5 and about["rates"]["all"]["right"] == 0, (
        "an untrained model knows nothing"
    )
    for clip in about["clips"]:
        assert held_out(*(clip["wanted"][field] for field in ("shape", "colour", "motion")))
    assert probe(tmp_path / "a.png").frames == 1
    assert "a.json" in run("eval", "--model", ti2v, *files, code=1).stderr
    table = run("eval", "--model", ti2v, "--prompts", "2", "--size", "64x64", "--frames", "5", "--reconstruct", "-q")
    assert table.stderr == "" and "motion" in table.stdout


def test_eval_of_pictures_does_not_score_motion(ti2v: Path, tmp_path: Path):
    small = ["--prompts", "2", "--size", "64x64", "--reconstruct", "-q"]
    found = run("eval", "--model", ti2v, *small, "--frames", "1", "--json", tmp_path / "a.json")
    names = [line.split()[0] for line in found.stdout.splitlines()]
    assert names == ["right", "background", "colour", "shape", "all", "motion"]
    assert found.stdout.endswith("\nmotion is not scored: it takes clips of 5 frames or more, not 1\n")
    about = json.loads((tmp_path / "a.json").read_text())
    assert "motion" not in about["rates"] and "motion" not in about["by_value"]


@pytest.mark.parametrize("how", [["--reconstruct"], ["--steps", "1"]], ids=["reconstruct", "sample"])
def test_eval_of_two_objects(ti2v: Path, tmp_path: Path, how: list[str]):
    small = ["--prompts", "2", "--size", "64x64", "--frames", "5", "-q", "--objects", "2"]
    files = ["--json", tmp_path / "a.json", "--sheet", tmp_path / "a.png"]
    found = run("eval", "--model", ti2v, *small, *how, *files)
    assert found.stdout.endswith("\na field is right when it is right for both objects\n")
    for clip in json.loads((tmp_path / "a.json").read_text())["clips"]:
        first, second = clip["wanted"]
        assert held_out(first["shape"], first["colour"], first["motion"]) and first["colour"] != second["colour"]
        assert len(clip["found"]) == 2
    assert probe(tmp_path / "a.png").frames == 1


def test_sample_of_a_folder_uses_its_defaults(ti2v: Path, tmp_path: Path):
    found = run("sample", "a cat on a beach", "-m", ti2v, "--frames", "3", "-o", tmp_path / "a.mp4", "--json")
    about = json.loads(found.stdout)
    assert (about["width"], about["height"], about["steps"]) == (64, 32, 2)
    assert probe(tmp_path / "a.mp4").frames == 3


def test_the_shipped_model_says_what_it_never_learnt_and_what_it_knows(tmp_path: Path):
    still = ["--size", "64x64", "--frames", "1", "--steps", "1", "-o", tmp_path / "a.png"]
    found = run("sample", "a cat on a beach", *still)
    assert re.search(r"never learnt the words 'cat', 'beach'; `dvgen info default`", found.stderr)
    assert found.stderr.count("never learnt") == 1 and probe(tmp_path / "a.png").frames == 1
    quiet = [*still, "--overwrite", "--quiet", "--seed", "1"]
    found = run("sample", "a cat on a beach", *quiet)
    assert (
        found.stderr.startswith("this model never learnt the words 'cat', 'beach';") and found.stderr.count("\n") == 1
    )
    assert found.stdout == f"{tmp_path / 'a.png'}\n"
    found = run("sample", "a cat on a beach", *quiet, "--json")
    assert found.stderr == "" and json.loads(found.stdout)["unknown_words"] == ["cat", "beach"]
    assert "never learnt" not in run("sample", "a red ball on a white background", *still, "--overwrite").stderr
    knows = json.loads(run("info", "default", "--json").stdout)["knows"]
    assert "ball" in knows["objects"] and "gray" in knows["backgrounds"] and "bouncing" in knows["motions"]
    assert "motions: still, moving left" in run("info", "default").stdout


@pytest.mark.slow
def test_a_wheel_carries_the_default_checkpoint(tmp_path: Path):
    """Unpacked in an empty folder, it samples with no other file of this project in reach."""
    root = Path(__file__).parents[2]
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(root)]
    subprocess.run(build, check=True)
    (wheel,) = tmp_path.glob("dvgen-*.whl")
    place = tmp_path / "elsewhere"
    zipfile.ZipFile(wheel).extractall(place)
    program = (
        "import sys, dit_video; print(dit_video.__file__); import dvgen.main; sys.argv[0] = 'dvgen'; dvgen.main.run()"
    )
    command = ["-c", program, "sample", "a red ball", "--size", "32x32", "--frames", "1", "--steps", "1", "-o", "a.png"]
    environment = {**os.environ, "PYTHONPATH": str(place)}
    done = subprocess.run(
        [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [str(place / "dit_video" / "__init__.py"), "a.png"]
    assert probe(tmp_path / "a.png").width == 32
