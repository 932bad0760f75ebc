"""TensorBoard's event files, read back by TensorBoard's own reader: the log's curves, and the sheets as pictures."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from dit_video.errors import UsageError
from dit_video.train import config as configs
from dit_video.train.autoencoder import NoData
from dit_video.train.config import LoopConfig
from dit_video.train.loop import CURVES, Run, StepResult, fit
from dit_video.train.optim import EMA, build_optimizers
from dit_video.video.sheet import save_sheet

PICTURE = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def train(folder: Path, steps: int, *, resume: bool = False, **options) -> Run:
    """A loop that fits a line, logs every second step and measures a validation loss at the end."""
    torch.manual_seed(0)
    line = nn.Linear(2, 1)
    options = {"warmup": 1, "log_every": 2, "tensorboard": True} | options
    run = Run(
        folder=folder,
        config=LoopConfig(steps=steps, **options),
        modules={"line": line},
        optimizers=build_optimizers([line], muon_lr=0.0, adam_lr=1e-2, weight_decay=0.0),
        ema=EMA([line], decay=0.9),
        data=NoData(),
    )
    folder.mkdir(exist_ok=True)
    if resume:
        run.resume()

    def step(n: int) -> StepResult:
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(n))
        return StepResult((line(x) - x.sum(1, keepdim=True)).square().mean(), clips=8, tokens=16)

    fit(run, step, lambda path: save_sheet(path, [[PICTURE]], gap=0), lambda line: None, lambda: 0.25)
    return run


def read(folder: Path) -> EventAccumulator:
    events = EventAccumulator(str(folder), size_guidance={"images": 0, "scalars": 0})
    return events.Reload()


def test_curves_are_those_of_the_log_and_sheets_are_pictures(tmp_path: Path):
    train(tmp_path / "run", 6)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    events = read(tmp_path / "run")
    assert set(events.Tags()["scalars"]) == {*CURVES, "validation_loss"}
    for name in (*CURVES, "validation_loss"):
        expected = [(line["step"], line[name]) for line in lines if name in line]
        found = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in found] == [step for step, _ in expected] and found, name
        assert [value for _, value in found] == pytest.approx([value for _, value in expected]), name
    (sheet,) = events.Images("sheet")
    assert sheet.step == 6
    assert (np.asarray(Image.open(io.BytesIO(sheet.encoded_image_string))) == PICTURE).all()


def test_what_a_resumed_run_does_again_is_there_once(tmp_path: Path):
    """The state of step 4 is what is resumed; steps 6 and 8 were logged after it, and are lost."""
    out = tmp_path / "run"
    train(out, 4)
    state = (out / "checkpoint.pt").read_bytes()
    train(out, 8, resume=True)
    (out / "checkpoint.pt").write_bytes(state)
    train(out, 6, resume=True)
    assert [event.step for event in read(out).Scalars("loss")] == [2, 4, 6]


def test_without_the_key_there_are_no_event_files(tmp_path: Path):
    train(tmp_path / "run", 2, tensorboard=False)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoint.pt", "log.jsonl", "sheet-000002.png"
    ]  # fmt: skip


def test_a_missing_package_is_said_with_the_config(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(configs, "find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r"the package tensorboard is not installed: pip install 'dvgen\[tensorboard\]"
    ):
        LoopConfig(steps=1, tensorboard=True)
    LoopConfig(steps=1)


def test_training_does_not_import_it_unasked():
    program = "import sys, dit_video.train.dit, dit_video.train.loop; print('tensorboard' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
