"""Training on a user's own files by the command line: autoencoder, transformer on it, and a sample of the result."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from dvgen.main import app
from typer.testing import CliRunner, Result

from dit_video.train import autoencoder, dit
from dit_video.video.io import probe
from dit_video.video.sheet import save_sheet

LOOP = "[loop]\nsteps = {steps}\nwarmup = 1\nlog_every = 2\nthreads = 1\nema = 0.5\ntensorboard = true\n"
FILES = '[files]\nfolders = ["{folder}"]\nvalidation = 0.3\nmax_frames = 9\n'
AUTOENCODER = (
    'out = "{out}/autoencoder"\nbatch_pixels = 60_000\n[arch]\ndim = 8\ndecoder_dim = 8\nz_dim = 8\n'
    "[optim]\nadam_lr = 5e-4\n"
)
TRANSFORMER = (
    'out = "{out}/dit"\nautoencoder = "{out}/autoencoder"\nshard_clips = 6\nwindow = 2\npack_tokens = 96\n'
    "[arch]\ndim = 48\nnum_heads = 2\nffn_dim = 96\nnum_layers = 1\ntext_dim = 32\ntext_layers = 1\ntext_heads = 2\n"
)


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def test_autoencoder_transformer_and_a_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(autoencoder, "STATISTICS_CLIPS", 8)
    gray = np.full((8, 8, 3), 128, np.uint8)  # drawing a sheet has tests of its own
    monkeypatch.setattr(dit, "sample_sheet", lambda model, path, **_: save_sheet(path, [[gray]]))
    clips = tmp_path / "clips"
    run("scenes", clips, "--count", "8", "--size", "70x50", "--frames", "13")
    (clips / "bad.mp4").write_bytes(b"x")
    (clips / "000003.txt").unlink()  # the autoencoder needs no caption, the transformer leaves this one out
    for name, text in (("a", AUTOENCODER), ("t", TRANSFORMER)):
        whole = text + FILES + LOOP
        (tmp_path / f"{name}.toml").write_text(whole.format(out=tmp_path, folder=clips, steps=4))

    told = run("train", "autoencoder", tmp_path / "a.toml", "--dry-run")
    assert not (tmp_path / "autoencoder").exists()
    assert re.search(r"clips +\d+, \d+ more to validate with; 1 files left out\n", told.stdout)
    assert re.search(
        r"pixels +[\d,]+ a step, of [\d.]+ clips; 100% of the clips are cut in time or space\n", told.stdout
    )
    assert re.search(r"memory .*measured\ntime .*, of steps measured at .* of it for their clips\n", told.stdout)
    said = run("train", "autoencoder", tmp_path / "a.toml")
    assert said.stdout == f"{tmp_path / 'autoencoder'}\n"
    assert "bad.mp4: ffmpeg cannot read it" in said.stderr and "000003" not in said.stderr

    said = run("train", "dit", tmp_path / "t.toml")
    assert "000003.mp4: it has no caption" in said.stderr and "2 files were left out." in said.stderr
    for name in ("autoencoder", "dit"):
        assert "validation_loss" in (tmp_path / name / "log.jsonl").read_text()
        assert [*(tmp_path / name).glob("events.out.tfevents.*")]
    model, out = tmp_path / "dit" / "model", tmp_path / "a.mp4"
    run("sample", "a red ball moving right", "--model", model, "--steps", "1", "-o", out)
    found = probe(out)
    assert (found.width, found.height, found.frames) == (70, 50, 9)
    assert json.loads((model / "dvgen.json").read_text())["window"] == 9


def test_what_the_autoencoder_cannot_use_of_files_is_said(tmp_path: Path):
    text = AUTOENCODER.replace("[arch]", "object_weight = 2\n[arch]") + FILES + LOOP
    (tmp_path / "a.toml").write_text(text.format(out=tmp_path, folder=tmp_path / "none", steps=1))
    assert "object_weight is 2, but in [files]" in run("train", "autoencoder", tmp_path / "a.toml", code=2).stderr
    (tmp_path / "a.toml").write_text(
        (AUTOENCODER + FILES + LOOP).format(out=tmp_path, folder=tmp_path / "none", steps=1)
    )
    for more in ([], ["--dry-run"]):
        said = run("train", "autoencoder", tmp_path / "a.toml", *more, code=1).stderr
        assert "none is not a folder" in said and said.count("\n") == 1
    assert not (tmp_path / "autoencoder").exists()
