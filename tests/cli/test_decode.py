"""`dvgen decode`, and what happens when decoding fails."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dvgen.main import app
from safetensors.torch import save_file
from typer.testing import CliRunner, Result

from dit_video import decode, denoise, stages
from dit_video.limits import SECONDS
from dit_video.models.wan.vae import WanVAE
from dit_video.shapes import MIN_TILE
from dit_video.video.io import probe, read_frames, write_video

LINE = ("sample", "a cat", "--random-weights", "--size", "48x40", "--frames", "6", "--steps", "2", "--seed", "1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def frames(path: str) -> np.ndarray:
    return np.stack(list(read_frames(path)))


def test_the_video_of_kept_latents_is_the_one_that_was_made():
    run(*LINE, "-o", "a.mp4", "--keep-latents")
    assert sorted(path.name for path in Path().iterdir()) == ["a.mp4", "a.safetensors"]
    assert run("decode", "a.safetensors", "-o", "b.mp4").stdout == "b.mp4\n"
    assert np.array_equal(frames("a.mp4"), frames("b.mp4")) and probe("b.mp4").fps == probe("a.mp4").fps
    assert "the file exists" in run("decode", "a.safetensors", code=1).stderr
    about = json.loads(run("decode", "a.safetensors", "--overwrite", "--json").stdout)
    assert (about["path"], about["width"], about["height"], about["frames"]) == ("a.mp4", 48, 40, 6)


def test_latents_without_their_video_are_taken_up_unless_all_is_to_begin_anew():
    line = (*LINE, "-o", "a.mp4", "--keep-latents")
    run(*line)
    for more, taken in (((), True), (("--fresh",), False)):
        Path("a.mp4").unlink()
        said = run(*line, *more).stderr
        assert ("only their video is made" in said) is taken and ("load transformer" in said) is not taken


def test_latents_are_not_trusted_by_what_their_file_says():
    line, file = (*LINE, "-o", "a.mp4", "--keep-latents"), Path("a.safetensors")
    run(*line)
    whole, video = file.read_bytes(), frames("a.mp4")
    damaged = whole[:-64] + bytes(64)
    file.write_bytes(damaged)
    assert "a.safetensors: is damaged" in run("decode", file, "-o", "b.mp4", code=1).stderr
    run(*line, "--overwrite")
    assert file.read_bytes()[-1000:] == whole[-1000:], "what was made anew is written"
    file.write_bytes(damaged)
    Path("a.mp4").unlink()
    assert "a.safetensors: is damaged" in run(*line).stderr
    assert file.read_bytes()[-1000:] == whole[-1000:] and np.array_equal(frames("a.mp4"), video)


def test_the_model_is_found_from_any_folder(here: Path, monkeypatch: pytest.MonkeyPatch):
    from tests.tiny import tiny_wan21_folder

    tiny_wan21_folder(here / "wan")
    line = ("sample", "a cat", "--model", "wan", "--size", "32x32", "--frames", "5", "--steps", "2", "--seed", "1")
    run(*line, "-o", "a.mp4", "--keep-latents")
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    run("decode", here / "a.safetensors", "-o", "b.mp4")
    assert np.array_equal(frames("../a.mp4"), frames("b.mp4"))
    said = run("decode", here / "a.safetensors", "-o", "c.mp4", "--model", "default", code=1).stderr
    assert "holds latents [16, 2, 4, 4]; 32x32, 5 frames has latents" in said and "name the one that made them" in said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.safetensors",), "none.safetensors: "),
        (("weights.safetensors",), "is no file of latents that dvgen wrote"),
        (("cut.safetensors",), "cut.safetensors: "),
        (("a.safetensors", "--model", "nowhere"), "nowhere: there is no such file or folder"),
        (("a.safetensors", "-o", "b.avi"), "must end in .mp4"),
        (("a.safetensors", "--dtype", "int3"), "--dtype 'int3'"),
    ],
)
def test_what_cannot_be_decoded(arguments: tuple[str, ...], message: str):
    run(*LINE, "-o", "a.gif", "--save-latents", "a.safetensors")
    save_file({"latents": torch.zeros(2)}, "weights.safetensors")
    Path("cut.safetensors").write_bytes(Path("a.safetensors").read_bytes()[:60])
    before = sorted(Path().iterdir())
    found = CliRunner().invoke(app, ["decode", *arguments])
    assert found.exit_code in (1, 2) and message in found.stderr and found.stderr.count("Error: ") == 1
    assert sorted(Path().iterdir()) == before


def test_both_ways_to_keep_latents():
    said = run(*LINE, "-o", "a.mp4", "--keep-latents", "--save-latents", "b.safetensors", code=2).stderr
    assert "--keep-latents and --save-latents b.safetensors: only one of the two can be given" in said


SAID_OF_MEMORY = (
    "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    "could not create a primitive",  # oneDNN, of a convolution that there is no room for
)


@pytest.fixture(params=SAID_OF_MEMORY, ids=["torch", "oneDNN"])
def little_memory(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> list[int | None]:
    """Whole frames do not fit; the sizes of tiles that were tried."""
    tried: list[int | None] = []
    real = WanVAE.decode_stream

    def stream(self: WanVAE, latents: torch.Tensor, *, tile: int | None = None) -> Any:
        tried.append(tile)
        chunks = real(self, latents, tile=tile)
        yield next(chunks)
        if tile is None:
            raise RuntimeError(request.param)
        yield from chunks

    monkeypatch.setattr(WanVAE, "decode_stream", stream)
    return tried


def test_what_does_not_fit_whole_is_decoded_in_tiles(little_memory: list[int | None]):
    large = (*LINE[:3], "--size", "512x480", "--frames", "5", "--steps", "1", "--seed", "1")
    said = run(*large, "-o", "a.mp4").stderr
    assert little_memory == [None, MIN_TILE] and "ran out of memory: again in tiles of 24x24 latents" in said
    assert probe("a.mp4").frames == 5 and [path.name for path in Path().iterdir()] == ["a.mp4"]


def test_new_frames_that_do_not_fit_whole_are_decoded_in_tiles_too(little_memory: list[int | None]):
    write_video("clip.png", np.full((1, 480, 512, 3), 90, np.uint8), fps=8)
    line = ("extend", "clip.png", "a", "--random-weights", "--forward", "4", "--steps", "1", "--seed", "1")
    said = run(*line, "-o", "a.mp4").stderr
    assert little_memory == [None, MIN_TILE] and "ran out of memory: again in tiles of 24x24 latents" in said
    assert probe("a.mp4").frames == 5


def test_what_does_not_fit_in_tiles_either_is_said(little_memory: list[int | None]):
    said = run(*LINE, "-o", "a.mp4", code=1).stderr
    assert little_memory == [None] and "there is not enough memory for it" in said and not list(Path().iterdir())


def test_a_disk_that_is_full_leaves_what_is_done_and_the_command_finishes_it(monkeypatch: pytest.MonkeyPatch):
    from dit_video.errors import MediaError

    def full(*_: Any, **__: Any) -> None:
        raise MediaError("a.mp4: ffmpeg cannot write it (No space left on device).")

    monkeypatch.setenv(SECONDS, "0")
    with monkeypatch.context() as patch:
        patch.setattr(decode, "write_video", full)
        said = run(*LINE, "-o", "a.mp4", code=1).stderr
    assert "all steps are kept; the same command goes on from there" in said and "No space left" in said
    (state,) = Path().iterdir()
    assert state.name.endswith(".state")
    loaded: list[str] = []
    real = stages.Stages._stage
    monkeypatch.setattr(stages.Stages, "_stage", lambda self, name, load: loaded.append(name) or real(self, name, load))
    run(*LINE, "-o", "a.mp4")
    assert set(loaded) == {"autoencoder"} and [path.name for path in Path().iterdir()] == ["a.mp4"]


@pytest.mark.parametrize(("pixels", "words"), [(0, "is black all over"), (90, "does not move: all frames are alike")])
def test_a_video_of_nothing_is_a_warning_and_an_error_where_it_must_be(
    pixels: int, words: str, monkeypatch: pytest.MonkeyPatch
):
    real = decode.Frames.get
    monkeypatch.setattr(decode.Frames, "get", lambda frames: (np.full_like(real(frames)[0], pixels), True))
    said = run(*LINE, "-o", "a.mp4", "-q").stderr
    assert f"a.mp4: the video {words}." in said and probe("a.mp4").frames == 6
    said = run(*LINE, "-o", "b.mp4", "--strict", code=1).stderr
    assert f"b.mp4: the video {words}" in said and "--strict" in said
    assert [path.name for path in Path().iterdir() if not path.name.startswith(".")] == ["a.mp4"]


def test_undefined_numbers_name_the_step(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(SECONDS, "0")
    real = denoise._Denoiser.__call__

    def broken(self: Any, x: torch.Tensor, sigma: float, timestep: float) -> torch.Tensor:
        return real(self, x, sigma, timestep) * (torch.nan if sigma < 0.9 else 1)

    monkeypatch.setattr(denoise._Denoiser, "__call__", broken)
    said = run(*LINE, "-o", "a.mp4", code=1).stderr
    assert "step 2 of 2 gave infinite or undefined numbers: the weights are damaged." in said
    assert "goes on from there" not in said
    for path in Path().iterdir():
        os.unlink(path)


def test_undefined_frames_name_the_frame(monkeypatch: pytest.MonkeyPatch):
    real = WanVAE.decode_stream
    monkeypatch.setattr(
        WanVAE,
        "decode_stream",
        lambda self, latents, **how: (chunk * torch.inf for chunk in real(self, latents, **how)),
    )
    said = run(*LINE, "-o", "a.mp4", code=1).stderr
    assert "decoding frame 1 of 6 gave infinite or undefined numbers" in said and not list(Path().iterdir())


def test_info_tells_what_latents_are_of_and_refuses_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    options = ["--random-weights", "--size", "48x32", "--frames", "5", "--steps", "1", "--seed", "3"]
    line = [*options, "--save-latents", "a.safetensors", "-o", "a.mp4"]
    assert CliRunner().invoke(app, ["sample", "a red ball", *line]).exit_code == 0
    found = json.loads(CliRunner().invoke(app, ["info", "a.safetensors", "--json"]).stdout)
    assert (found["width"], found["frames"], found["seed"], found["prompt"]) == ("48", "5", "3", "a red ball")
    Path("a.txt").write_text("not a video\n" * 30)
    refused = CliRunner().invoke(app, ["info", "a.txt"])
    assert refused.exit_code == 1 and "is text, not a video" in refused.stderr
