"""Recipes: in every kind of file, shown, left out, and made again to the same frames."""

import json
import shutil
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from dvgen.again import command_line
from dvgen.main import app
from dvgen.recipe import Recipe, read_recipe
from typer.testing import CliRunner, Result

from dit_video.video.io import probe, read_comment, read_frames, write_video
from tests.tiny import tiny_wan21_folder

TINY = ("--random-weights", "--size", "32x32", "--steps", "2")
PROMPT = 'a "red" ball=; #1 \\ and\nновый 😀 --x'


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def frames(path: str | Path) -> np.ndarray:
    return np.stack(list(read_frames(path)))


def line(path: str) -> tuple[str, ...]:
    recipe = read_recipe(Path(path))
    assert recipe is not None
    return recipe.line


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".png"])
def test_every_kind_of_file_holds_it_and_is_made_again(suffix: str):
    count = "1" if suffix == ".png" else "6"
    run("sample", PROMPT, *TINY, "--frames", count, "-o", f"a{suffix}")
    assert line(f"a{suffix}")[-2:] == ("--", PROMPT)
    about = json.loads(run("info", f"a{suffix}", "--json").stdout)
    assert about["recipe"]["line"] == list(line(f"a{suffix}")) and about["frames"] == int(count)
    assert "recipe       dvgen sample --size=32x32" in run("info", f"a{suffix}").stdout
    run("again", f"a{suffix}", "-o", f"b{suffix}")
    assert np.array_equal(frames(f"a{suffix}"), frames(f"b{suffix}")) and line(f"a{suffix}") == line(f"b{suffix}")
    run("sample", "a", *TINY, "--frames", count, "-o", f"c{suffix}", "--no-recipe")
    assert read_recipe(Path(f"c{suffix}")) is None
    said = run("again", f"c{suffix}", code=1).stderr
    assert f"c{suffix}: holds no recipe of dvgen; it was made by something else, or with --no-recipe." in said


def test_other_options_go_before_those_of_the_recipe():
    run("sample", "a cat", *TINY, "--frames", "5", "--seed", "3", "--guidance", "2.5", "-o", "a.mp4")
    run("again", "a.mp4", "--seed", "4", "--duration", "1", "-o", "b.mp4")
    assert probe("b.mp4").frames == 8 and "--seed=4" in line("b.mp4") and "--guidance=2.5" in line("b.mp4")
    said = run("again", "a.mp4", "--seed", "x", code=2).stderr
    assert "--seed x: must be a whole number" in said
    shown = run("again", "a.mp4", "--show", "--fps", "12").stdout
    assert shown.startswith("dvgen sample --size=32x32 --frames=5 ") and "--fps 12" in shown and "--fps=8" not in shown
    assert not Path("a-cat-3.mp4").exists()
    assert run("again", "a.mp4").stdout == "a-cat-3.mp4\n"


def test_every_setting_is_written_as_it_was():
    recipe = Recipe(line=("sample", "--size=32x32", "--shift=0.30000000000000004", "--image=p@0", "--", "x"), model="m")
    assert command_line(recipe, ["--image", "q"]) == [
        *("sample", "--size=32x32", "--shift=0.30000000000000004", "--image", "q", "--", "x"),
    ]
    assert command_line(recipe, ["--model=z"])[1] == "--size=32x32"


@pytest.mark.parametrize("command", ["extend", "connect", "edit"])
def test_other_commands_are_made_again(command: str):
    write_video("clip.mp4", np.random.default_rng(0).integers(0, 255, (5, 32, 48, 3), dtype=np.uint8), fps=8)
    shutil.copy("clip.mp4", "end.mp4")
    clips = ["clip.mp4", "end.mp4"] if command == "connect" else ["clip.mp4"]
    how = {"extend": ("--forward", "4"), "connect": ("--frames", "4"), "edit": ("--strength", "0.7")}[command]
    run(command, *clips, "a prompt", *how, "--random-weights", "--steps", "2", "-o", "a.mp4")
    Path("elsewhere").mkdir()
    run("again", "a.mp4", "-o", "elsewhere/b.mp4")
    assert np.array_equal(frames("a.mp4"), frames("elsewhere/b.mp4"))
    write_video("clip.mp4", np.zeros((5, 32, 48, 3), np.uint8), fps=8, overwrite=True)
    assert "clip.mp4: has changed since." in run("again", "a.mp4", "-o", "c.mp4").stderr
    Path("clip.mp4").unlink()
    assert "clip.mp4: is gone." in run("again", "a.mp4", "-o", "d.mp4", code=1).stderr


def test_another_model_is_noticed(here: Path):
    tiny_wan21_folder(here / "wan")
    run("sample", "a cat", "--model", "wan", "--size", "32x32", "--frames", "5", "--steps", "2", "-o", "a.mp4")
    copied = shutil.copytree(here / "wan", here / "copied", copy_function=shutil.copyfile)  # with other times
    said = run("again", "a.mp4", "-o", "b.mp4", "--model", copied).stderr
    assert "the model is not the one" not in said and np.array_equal(frames("a.mp4"), frames("b.mp4"))
    file = here / "wan" / "transformer" / "diffusion_pytorch_model.safetensors"
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    said = run("again", "a.mp4", "-o", "c.mp4").stderr
    assert "the model is not the one of the recipe: its files differ, and so may the frames." in said


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"dvgen": 3}', '{"dvgen": {"line": [], "model": "x", "files": {}}}'])
def test_comments_of_others_are_no_recipes(text: str):
    for suffix in (".mp4", ".gif", ".png"):
        count = 1 if suffix == ".png" else 3
        write_video(f"a{suffix}", np.zeros((count, 32, 32, 3), np.uint8), fps=8, comment=text)
        assert read_comment(f"a{suffix}") == (text or None) and read_recipe(Path(f"a{suffix}")) is None


def test_files_of_others_are_read():
    ffmpeg = imageio_ffmpeg.get_ffmpeg_exe()
    for name in ("a.gif", "a.mkv", "a.jpg"):
        subprocess.run(
            [ffmpeg, "-v", "error", "-f", "lavfi", "-i", "testsrc=s=32x32:r=5:d=0.2", "-frames:v", "1", name],
            check=True,
        )
        assert read_comment(name) is None


def test_a_gif_with_a_comment_is_whole():
    video = np.random.default_rng(0).integers(0, 255, (4, 32, 32, 3), dtype=np.uint8)
    write_video("a.gif", video, fps=10)
    write_video("b.gif", video, fps=10, comment="x" * 1000)
    assert np.array_equal(frames("a.gif"), frames("b.gif")) and probe("b.gif").frames == 4
    assert read_comment("b.gif") == "x" * 1000
    from PIL import Image

    with Image.open("b.gif") as picture:
        picture.seek(3)
        assert picture.n_frames == 4
