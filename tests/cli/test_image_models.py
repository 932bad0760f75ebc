"""The command with models that animate pictures: what they make, and what they are not asked for."""

import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from dvgen.main import app
from typer.testing import CliRunner, Result

from dit_video.video.io import probe, write_video
from tests.tiny import tiny_i2v_experts_folder, tiny_i2v_folder

QUICK = ["--steps", "2", "--seed", "3", "--guidance", "3"]
ANIMATES = "this model animates an image, which is the first frame, and takes no other"
LEADS = "this model leads from one image, the first frame, to another, the last"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("wan")
    return {
        "i2v": str(tiny_i2v_folder(root / "i2v")),
        "flf2v": str(tiny_i2v_folder(root / "flf2v", last=True)),
        "a14b": str(tiny_i2v_experts_folder(root / "a14b")),
    }


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("p", "q"):
        iio.imwrite(f"{name}.png", rng.integers(0, 256, (36, 60, 3), dtype=np.uint8))
    for name, frames in (("a", 6), ("b", 3)):
        write_video(f"{name}.mp4", rng.integers(0, 256, (frames, 36, 60, 3), dtype=np.uint8), fps=10)
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def size(path: str) -> tuple[int, int, int]:
    info = probe(path)
    return info.width, info.height, info.frames


@pytest.mark.parametrize(
    ("model", "images"),
    [
        ("i2v", ["p.png"]),
        ("flf2v", ["p.png", "q.png@last"]),
        ("flf2v", ["q.png@5", "p.png@first"]),
        ("a14b", ["p.png"]),
        ("a14b", ["p.png", "q.png@last"]),
    ],
)
def test_pictures_are_animated_at_exactly_the_size_and_length(models: dict[str, str], model: str, images: list[str]):
    options = [word for image in images for word in ("--image", image)]
    found = run("sample", "a red ball", *options, "-m", models[model], "--frames", "6", "--json", "-o", "v.mp4", *QUICK)
    result = json.loads(found.stdout)
    assert size("v.mp4") == (60, 36, 6)
    assert result["forwards"] == 4 and result["seconds"]["encode"] > 0
    assert "trained" not in found.stderr


@pytest.mark.parametrize(
    ("model", "images", "says"),
    [
        ("i2v", [], f"{ANIMATES}; give --image FILE."),
        ("i2v", ["p.png@last"], f"{ANIMATES}; give --image FILE."),
        ("i2v", ["p.png", "q.png@last"], f"{ANIMATES}; give --image FILE."),
        ("i2v", ["p.png@1"], f"{ANIMATES}; give --image FILE."),
        ("flf2v", [], f"{LEADS}; give --image FILE and --image FILE@last."),
        ("flf2v", ["p.png"], f"{LEADS}; give --image FILE and --image FILE@last."),
        ("flf2v", ["p.png", "q.png@2"], f"{LEADS}; give --image FILE and --image FILE@last."),
        ("a14b", ["q.png@last"], "and takes another as the last; give --image FILE, or also --image FILE@last."),
    ],
)
def test_pictures_that_it_cannot_take_are_refused_before_anything_is_loaded(
    models: dict[str, str], model: str, images: list[str], says: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("dit_video.checkpoints.load.Stored", lambda *_, **__: pytest.fail("weights were read"))
    options = [word for image in images for word in ("--image", image)]
    found = run("sample", "x", *options, "-m", models[model], "--frames", "5", "-o", "v.mp4", *QUICK, code=2)
    assert says in " ".join(found.stderr.split()) and found.stdout == ""
    assert not Path("v.mp4").exists()


def test_one_frame_has_no_first_and_last(models: dict[str, str]):
    found = run("sample", "x", "--image", "p.png", "-m", models["flf2v"], "--frames", "1", *QUICK, code=2)
    assert f"{LEADS}, and there is one frame; the nearest is 2." in " ".join(found.stderr.split())
    assert run("sample", "x", "--image", "p.png", "-m", models["i2v"], "--frames", "1", "-o", "v.png", *QUICK)


@pytest.mark.parametrize(
    ("model", "arguments", "frames"),
    [
        ("i2v", ["extend", "a.mp4", "x", "--forward", "7"], 6 + 7),
        ("a14b", ["extend", "a.mp4", "x", "--forward", "90"], 6 + 90),  # in two windows
        ("a14b", ["extend", "a.mp4", "x", "--loop", "5"], 6 + 5),
        ("a14b", ["connect", "a.mp4", "b.mp4", "x", "--frames", "4"], 6 + 4 + 3),
        ("flf2v", ["connect", "a.mp4", "b.mp4", "x", "--frames", "7"], 6 + 7 + 3),
    ],
)
def test_clips_go_on_from_their_frames(models: dict[str, str], model: str, arguments: list[str], frames: int):
    found = json.loads(run(*arguments, "-m", models[model], "--json", "-o", "v.mp4", *QUICK).stdout)
    assert size("v.mp4") == (60, 36, frames) == (found["width"], found["height"], found["frames"])
    assert found["windows"] == (2 if frames > 80 else 1)


@pytest.mark.parametrize(
    ("model", "arguments", "says"),
    [
        ("i2v", ["extend", "a.mp4", "x", "--backward", "4"], ANIMATES),
        ("i2v", ["extend", "a.mp4", "x", "--loop", "4"], ANIMATES),
        ("i2v", ["connect", "a.mp4", "b.mp4", "x", "--frames", "4"], ANIMATES),
        ("a14b", ["extend", "a.mp4", "x", "--backward", "4"], "and takes another as the last."),
        ("flf2v", ["extend", "a.mp4", "x", "--forward", "4"], LEADS),
        (
            "flf2v",
            ["connect", "a.mp4", "b.mp4", "x", "--frames", "99"],
            f"99 new frames: {LEADS}, at once; the most is 76.",
        ),
        ("i2v", ["edit", "a.mp4", "x"], "this model animates images and cannot edit a clip"),
    ],
)
def test_what_else_they_cannot_do_is_refused(models: dict[str, str], model: str, arguments: list[str], says: str):
    found = run(*arguments, "-m", models[model], *QUICK, code=2)
    assert says in " ".join(found.stderr.split())


def test_eval_asks_for_what_they_do(models: dict[str, str]):
    found = run("eval", "--model", models["i2v"], "--prompts", "1", code=2)
    assert "--mode text: this model animates images; the nearest is --mode image." in " ".join(found.stderr.split())
    options = ["--mode", "image", "--prompts", "1", "--size", "64x48", "--frames", "13", "--steps", "1"]
    assert run("eval", "--model", models["i2v"], *options).stdout


def test_info_says_what_may_be_given(models: dict[str, str]):
    facts = json.loads(run("info", models["flf2v"], "--json").stdout)
    assert facts["known_frames"] == "first and last" and facts["transformer"]["emb_pos"] == 10
    assert "image_encoder" in facts["components"]
    assert "first or both" in run("info", models["a14b"]).stdout
