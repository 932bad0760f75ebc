"""Maps of files whose pages are let go: the numbers stay, and nothing else is touched."""

import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dit_video.checkpoints.headers import read_header
from dit_video.checkpoints.maps import let_go
from dit_video.checkpoints.stored import Stored
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.text import encoders


def resident_of_files() -> int:
    return 1024 * int(re.findall(r"RssFile:\s+(\d+)", Path("/proc/self/status").read_text())[0])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux is told")
def test_pages_of_a_file_are_let_go_and_read_again(tmp_path: Path):
    written = {"a": torch.randn(2**22), "b": torch.randn(3, 5)}
    save_file(written, tmp_path / "some.safetensors")
    with Stored(tmp_path / "some.safetensors") as stored:
        tensors = {name: stored.raw(info) for name, info in read_header(tmp_path / "some.safetensors").items()}
    memory = {name: tensor.clone() for name, tensor in tensors.items()}
    held = resident_of_files()
    let_go([*tensors.values(), *memory.values()])
    assert held - resident_of_files() > 0.9 * written["a"].nbytes
    for name, tensor in written.items():
        assert torch.equal(memory[name], tensor), "what is no map is no business of it"
        assert torch.equal(tensors[name], tensor)


def test_a_text_encoder_lets_go_of_each_layer_as_it_reads_its_last_prompt(monkeypatch: pytest.MonkeyPatch):
    encoder, gone = RandomCheckpoint().load_text(dtype=torch.float32, device="cpu"), []
    monkeypatch.setattr(encoders, "let_go", lambda tensors: gone.append(len(list(tensors))))
    layers = len(encoder.module.encoder.block)
    encoder.encode(["a red ball", "a blue ball", "a white ball"])
    assert len(gone) == layers and min(gone) > 0
    encoder.encode(["a red ball"], more=True)
    assert len(gone) == layers
    encoder.encode(["a red ball", ""])
    assert len(gone) == 3 * layers
