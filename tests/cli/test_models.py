"""`dvgen models`: what is there, what it lacks, and what is nobody's."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from dvgen.main import app
from safetensors.torch import save_file
from typer.testing import CliRunner

from dit_video.models import open_checkpoint
from dit_video.models.wan.convert import convert
from dit_video.models.wan.inferred import WAN_2_1_VAE
from tests.tiny import tiny_experts_folder
from tests.unit.test_lora_files import factors
from tests.unit.test_wan_release import folder, narrow_heads, original_dit, original_vae, write_tokenizer

__all__ = ["folder", "narrow_heads"]  # fixtures
SHIPPED = ("default", "distilled")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, and an empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def listed() -> dict[str, dict[str, Any]]:
    """By kind and name."""
    found = CliRunner().invoke(app, ["models", "--json"])
    assert found.exit_code == 0, (found.stderr, found.exception)
    return {kind: {each["name"]: each for each in group} for kind, group in json.loads(found.stdout).items()}


def test_the_shipped_models_are_there():
    found = listed()["models"]
    assert tuple(found) == SHIPPED
    for each in found.values():
        assert (each["family"], each["layout"], each["missing"]) == ("wan", "diffusers", None)
        assert each["bytes"] < 32_000_000 and each["dtype"] == "float16"
    text = CliRunner().invoke(app, ["models"]).stdout
    assert text.split()[:3] == ["model", "default", "wan"] and text.count("\n") == len(SHIPPED)


def test_every_name_opens(folder: Path, here: Path):
    shutil.copytree(folder, here / "weights" / "mine")
    snapshot = here.parent / "hub" / "models--some--Wan" / "snapshots" / "abc"
    shutil.copytree(folder, snapshot)
    shutil.copytree(folder, snapshot.with_name("old"))
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "main").write_text("abc")
    found = listed()["models"]
    assert list(found) == [*SHIPPED, "weights/mine", "some/Wan", str(snapshot.with_name("old"))]
    for name, each in found.items():
        assert open_checkpoint(name).path.resolve() == Path(each["path"]).resolve() and each["missing"] is None


def test_comfyuis_folders(folder: Path, here: Path):
    models = here / "weights" / "ComfyUI" / "models"
    for kind in ("diffusion_models", "vae", "text_encoders", "loras"):
        (models / kind).mkdir(parents=True)
    save_file(original_dit(folder), models / "diffusion_models" / "wan.safetensors")
    first = listed()["models"]["weights/ComfyUI/models/diffusion_models/wan.safetensors"]
    assert first["missing"].startswith("its ") and "name it with --" in first["missing"]
    assert (first["family"], first["layout"]) == ("wan", "original")
    save_file(original_vae(folder), models / "vae" / "wan_vae.safetensors")
    shutil.copy(folder / "text_encoder" / "model.safetensors", models / "text_encoders" / "umt5.safetensors")
    write_tokenizer(folder, models / "text_encoders")
    save_file(factors(), models / "loras" / "style.safetensors")
    found = listed()
    name = "weights/ComfyUI/models/diffusion_models/wan.safetensors"
    assert found["models"][name]["missing"] is None
    assert {Path(each).name: part["variant"] for each, part in found["parts"].items()} == {
        "wan_vae.safetensors": "vae",
        "umt5.safetensors": "text encoder",
        "style.safetensors": "LoRA",
    }


def test_two_experts_are_one_model(here: Path):
    (here / "weights").mkdir()
    source = tiny_experts_folder(here / "source")
    config = json.loads((source / "vae" / "config.json").read_text())
    config |= {"latents_mean": WAN_2_1_VAE.latents_mean, "latents_std": WAN_2_1_VAE.latents_std}
    (source / "vae" / "config.json").write_text(json.dumps(config))
    convert(open_checkpoint(source), here / "weights" / "two", "comfyui").write()
    found = [name for name in listed()["models"] if name not in SHIPPED]
    assert len(found) == 1 and "diffusion_models/two_" in found[0]


def test_what_is_damaged_is_said_and_what_is_foreign_is_not_shown(folder: Path, here: Path):
    damaged = Path(shutil.copytree(folder, here / "weights" / "damaged"))
    (damaged / "transformer" / "config.json").write_text("{")
    (here / "weights" / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    foreign = here.parent / "hub" / "models--some--BERT" / "snapshots" / "abc"
    foreign.mkdir(parents=True)
    save_file({"embeddings": torch.zeros(2)}, foreign / "model.safetensors")
    found = listed()
    assert "transformer/config.json" in found["models"]["weights/damaged"]["missing"]
    assert set(found["unknown"]) == {"weights/cut.safetensors"} and "BERT" not in json.dumps(found)
