"""The worked example of docs/training.md, command by command, at a few steps: its own config, but for its length."""

import re
from pathlib import Path

import pytest
from dvgen.main import app
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from typer.testing import CliRunner, Result

from dit_video.video.io import probe

ROOT = Path(__file__).parents[2]


def run(*arguments: str, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def config(steps: int) -> None:
    """The example's config with `steps` steps, beside the weights that it names."""
    text = (ROOT / "configs" / "example-files.toml").read_text()
    for key, value in (("steps", steps), ("warmup", 1), ("decay", 0), ("log_every", 2), ("shard_clips", 8)):
        text, count = re.subn(rf"^{key} = \d+", f"{key} = {value}", text, flags=re.MULTILINE)
        assert count == 1, key
    Path("example-files.toml").write_text(text)


def test_the_worked_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("weights").symlink_to(ROOT / "weights")
    small = ["--size", "64x48", "--frames", "9"]
    assert run("scenes", "clips", "--count", "12", "--seed", "1", *small).stdout == "clips\n"

    config(steps=3)
    told = run("train", "dit", "example-files.toml", "--dry-run").stdout
    assert not Path("runs").exists()
    assert [line.split()[0] for line in told.splitlines()] == [
        "clips", "tokens", "packs", "parameters", "steps", "memory", "encoding", "time"
    ]  # fmt: skip
    assert re.search(r"packs +[\d.]+ clips each, [\d.]+% of their room empty", told)

    out = Path("runs/example-files")
    assert run("train", "dit", "example-files.toml").stdout == f"{out}\n"
    assert "pass --resume" in run("train", "dit", "example-files.toml", code=1).stderr
    config(steps=5)
    said = run("train", "dit", "example-files.toml", "--resume").stderr
    assert "step 5/5" in said and "step 2/5" not in said
    assert len([*(out / "latents").rglob("*.pt")]) >= 8

    events = EventAccumulator(str(out)).Reload()
    assert [event.step for event in events.Scalars("validation_loss")] == [3, 5]
    assert [event.step for event in events.Images("sheet")] == [3, 5]
    assert probe(out / "sheet-000005.png").width == 5 * (192 + 4)

    run("sample", "a red ball moving right on a white background", "--model", f"{out}/model", "-o", "ball.mp4")
    found = probe("ball.mp4")
    assert (found.width, found.height, found.frames) == (64, 48, 9)
