"""`--memory`: what does not fit is streamed, the video stays the same, and it is said."""

from pathlib import Path

import numpy as np
import pytest
import torch
from dvgen import options
from dvgen.main import app
from dvgen.recipe import recipe_in
from safetensors.torch import load_file
from typer.testing import CliRunner

from dit_video import machine, plan
from dit_video.errors import UsageError
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.shapes import MIN_TILE, VideoShape
from dit_video.video.io import read_frames
from tests.tiny import tiny_experts_folder

SMALL = ("--size", "32x32", "--frames", "5", "--steps", "3", "--seed", "1", "--dtype", "float32")


@pytest.mark.parametrize(
    ("text", "nbytes"),
    [("6GiB", 6 * 2**30), ("6gib", 6 * 2**30), ("6G", 6 * 2**30), ("6GB", 6 * 10**9), ("1.5 TiB", 3 * 2**39)],
)
def test_sizes(text: str, nbytes: int):
    assert options.memory(text) == nbytes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("6", "--memory 6: must be a size with its unit, such as 6GiB or 6000MB; the nearest is 6GiB"),
        ("much", "--memory much: must be a size with its unit"),
        ("-6GiB", "must be a size with its unit"),
        ("6MiB", "--memory 6MiB: must be from 512MiB to 1024TiB; the nearest is 512MiB"),
        ("9999999T", "the nearest is 1024TiB"),
    ],
)
def test_no_sizes(text: str, message: str):
    with pytest.raises(UsageError) as caught:
        options.memory(text)
    assert message in str(caught.value)


def test_what_does_not_fit_is_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tiny_experts_folder(tmp_path / "wan")

    def sample(name: str) -> tuple[torch.Tensor, str]:
        latents = tmp_path / f"{name}.safetensors"
        files = ("--model", folder, "-o", tmp_path / f"{name}.mp4", "--save-latents", latents)
        found = CliRunner().invoke(app, ["sample", "a cat", *SMALL, *map(str, files)])
        assert found.exit_code == 0, found.stderr
        return load_file(latents)["latents"], found.stderr

    whole, said = sample("whole")
    assert "are read as they are needed" not in said
    # There is room for the work, and for the layers without the embedding.
    monkeypatch.setattr(plan, "TEXT_WORK", 10**9)
    monkeypatch.setattr(machine, "memory_for", lambda device, limit: 10**9 + 35_000)
    streamed, said = sample("streamed")
    assert "the layers of the text encoder are read as they are needed" in said
    assert torch.equal(whole, streamed)


def test_less_than_any_clip_takes_is_refused(tmp_path: Path):
    arguments = ["sample", "a cat", "--size", "1280x720", "--frames", "97", "--memory", "600MiB"]
    found = CliRunner().invoke(app, [*arguments, "-o", str(tmp_path / "a.mp4")])
    assert found.exit_code == 2 and "of memory, and there are 0.2 GB" in found.stderr
    assert not list(tmp_path.iterdir())


def test_frames_that_were_decoded_in_tiles_are_made_again_in_tiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> str:
        found = CliRunner().invoke(app, list(arguments))
        assert found.exit_code == 0, (found.stderr, found.exception)
        return found.stderr

    def frames(name: str) -> np.ndarray:
        return np.stack(list(read_frames(name)))

    how = (
        "--random-weights",
        "--size",
        "512x32",
        "--frames",
        "5",
        "--steps",
        "1",
        "--seed",
        "1",
        "--dtype",
        "float32",
    )
    line = ("sample", *how, "-o")
    run(*line, "whole.mp4", "--", "--tile=9")
    shape = VideoShape(num_frames=5, height=32, width=512)
    tiled = plan.plan(RandomCheckpoint(), shape, itemsize=4, tile=MIN_TILE)
    with monkeypatch.context() as little:
        little.setattr(machine, "memory_for", lambda device, limit: tiled.nbytes)
        assert "decoded in tiles of 24x24 latents" in run(*line, "a.mp4", "--", "--tile=9")
        said = run("again", "whole.mp4", "-o", "b.mp4")
    assert "frames are decoded in tiles, and those of the recipe were not: they may differ a little" in said
    said = run("again", "a.mp4", "-o", "c.mp4")
    assert "they may differ" not in said
    assert np.array_equal(frames("a.mp4"), frames("b.mp4")) and np.array_equal(frames("a.mp4"), frames("c.mp4"))
    assert not np.array_equal(frames("a.mp4"), frames("whole.mp4"))
    # What memory decides makes no other video: what is done is found again.
    whole, tiles = recipe_in(Path("whole.mp4")), recipe_in(Path("c.mp4"))
    assert tiles.line[-3:] == ("--tile=24", "--", "--tile=9") and "--tile=24" not in whole.line
    assert whole.makes_the_same(tiles) and tiles.with_tile(None) == whole
