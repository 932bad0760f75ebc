"""Models that are files: named, looked for, said, and described by `dvgen info`."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from dvgen.main import app
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from dit_video.models.wan import inferred
from tests.unit.test_wan_release import folder, narrow_heads, original_dit, original_vae, write_tokenizer

__all__ = ["folder", "narrow_heads"]  # fixtures
SMALL = ("--size", "32x32", "--frames", "5", "--steps", "2", "--seed", "1", "--dtype", "float32")


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


@pytest.fixture
def files(folder: Path, tmp_path: Path) -> dict[str, Path]:
    """A model's files, each in a folder of its own, so that none is found without its name."""
    places = {name: tmp_path / name / f"{name}.safetensors" for name in ("dit", "vae", "text")}
    for place in places.values():
        place.parent.mkdir()
    save_file(original_dit(folder), places["dit"])
    save_file(original_vae(folder), places["vae"])
    shutil.copy(folder / "text_encoder" / "model.safetensors", places["text"])
    write_tokenizer(folder, places["text"].parent)
    return places


def test_named_files_make_the_video_of_the_folder(folder: Path, files: dict[str, Path], tmp_path: Path):
    same = ("--shift", "5", "--guidance", "3")
    named = ("--model", files["dit"], "--vae", files["vae"], "--text-encoder", files["text"])
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    said = run("sample", "a cat", *SMALL, *same, *named, "-o", tmp_path / "a.mp4", "--save-latents", ours).stderr
    assert f"took tokenizer: {files['text'].parent}" in said and "took vae" not in said
    run("sample", "a cat", *SMALL, *same, "--model", folder, "-o", tmp_path / "b.mp4", "--save-latents", theirs)
    assert torch.equal(load_file(ours)["latents"], load_file(theirs)["latents"])


def test_what_is_found_beside_is_said(files: dict[str, Path], tmp_path: Path):
    beside = shutil.copy(files["vae"], files["dit"].parent / "my_vae.safetensors")
    named = ("--model", files["dit"], "--text-encoder", files["text"])
    assert f"took vae: {beside}" in run("sample", "a cat", *SMALL, *named, "-o", tmp_path / "a.mp4").stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--vae", "none.safetensors"), "--vae none.safetensors: there is no such file"),
        (("--text-encoder", "a.txt"), "--text-encoder a.txt: must be a file that ends in .safetensors"),
        (("--image-encoder", "a.safetensors"), "is a diffusers folder, which has all of its parts"),
        (
            ("--high-noise", "a.safetensors", "--random-weights"),
            "and --high-noise a.safetensors: only one",
        ),
    ],
)
def test_files_that_cannot_be_named(
    arguments: tuple[str, ...], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("a.txt", "a.safetensors"):
        (tmp_path / name).write_text("")
    found = CliRunner().invoke(app, ["sample", "a cat", *arguments, "-o", "a.mp4"])
    assert found.exit_code in (1, 2) and message in found.stderr
    assert not (tmp_path / "a.mp4").exists()


def test_two_scales_of_a_file_with_one_transformer(files: dict[str, Path], tmp_path: Path):
    named = ("--model", files["dit"], "--vae", files["vae"], "--text-encoder", files["text"])
    said = run("sample", "a cat", *SMALL, *named, "--guidance", "4,3", "-o", tmp_path / "a.mp4", code=2).stderr
    assert "--guidance 4,3: this model has one transformer and takes one scale; the nearest is 4" in said


def test_info_of_files(files: dict[str, Path]):
    beside = shutil.copy(files["vae"], files["dit"].parent / "my_vae.safetensors")
    about = json.loads(run("info", files["dit"], "--json").stdout)
    assert about["layout"] == "original" and set(about["components"]) == {"transformer"}
    assert about["missing"] == "its text encoder is not beside it; name it with --text-encoder."
    text = run("info", files["text"]).stdout
    assert "text_encoder " in text and "pass the transformer's file as --model, and this one as --text-encoder" in text
    shutil.copy(files["text"], files["dit"].parent / "my_t5.safetensors")
    shutil.copy(files["text"].parent / "tokenizer.json", files["dit"].parent)
    whole = run("info", files["dit"]).stdout
    assert "missing" not in whole and f"took         vae: {beside}" in whole


def test_info_says_what_is_quantised(files: dict[str, Path]):
    weights = load_file(files["dit"])
    name = "blocks.0.ffn.0.weight"
    weights[name] = weights[name].to(torch.float8_e4m3fn)
    weights["blocks.0.ffn.0.scale_weight"] = torch.tensor([1.0])
    save_file(weights, files["dit"])
    about = json.loads(run("info", files["dit"], "--json").stdout)
    assert about["components"]["transformer"]["quantised"] == ["float8_e4m3fn"]
    assert "float8_e4m3fn quantised" in run("info", files["dit"]).stdout


def test_info_of_files_that_are_no_models(tmp_path: Path):
    save_file({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    (tmp_path / "b.safetensors").write_bytes(b"\x10\0\0\0")
    assert "is no model that is known" in run("info", tmp_path / "a.safetensors", code=1).stderr
    assert "b.safetensors" in run("info", tmp_path / "b.safetensors", code=1).stderr


def test_the_width_of_heads_is_that_of_the_releases(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()
    assert inferred.HEAD_DIM == 128


def test_sizes_that_a_model_was_not_trained_on(folder: Path, tmp_path: Path):
    path = Path(shutil.copytree(folder, tmp_path / "wan"))
    (path / "dvgen.json").write_text(json.dumps({"trained_sides": [32, 64], "trained_frames": [1, 9]}))
    for size, frames, words in (
        ("32x64", "9", None),
        ("16x64", "5", "shorter sides of 32 to 64 pixels"),
        ("64x32", "13", "1 to 9 frames"),
        ("80x96", "13", "shorter sides of 32 to 64 pixels and 1 to 9 frames"),
    ):
        line = ("--model", path, "--size", size, "--frames", frames, "--steps", "1", "-q", "--overwrite")
        said = run("sample", "a cat", *line, "-o", tmp_path / "a.mp4").stderr
        wanted = f"{size}, {frames} frames: this model was trained on {words}, and others may come out badly."
        assert (wanted in said) if words else "was trained on" not in said, said
