"""Wan models that are no diffusers folders: original folders, single files, and what is looked for beside them."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dit_video.checkpoints.places import Named
from dit_video.errors import CheckpointError
from dit_video.models import open_checkpoint
from dit_video.models.wan import inferred
from dit_video.models.wan.layouts import DIFFUSERS
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.models.wan.vae_layouts import diffusers_layout
from dit_video.text import image_files
from tests.tiny import tiny_experts_folder, tiny_i2v_experts_folder, tiny_wan21_folder

HERE: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.1 as diffusers writes it, with the latent constants of the release, which no shape tells."""
    path = tiny_wan21_folder(tmp_path_factory.mktemp("wan") / "wan21")
    config = path / "vae" / "config.json"
    fields = json.loads(config.read_text())
    fields |= {"latents_mean": list(WAN.latents_mean), "latents_std": list(WAN.latents_std)}
    config.write_text(json.dumps(fields))
    return path


WAN = inferred.WAN_2_1_VAE


@pytest.fixture(autouse=True)
def narrow_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inferred, "HEAD_DIM", 16)
    monkeypatch.setattr(image_files, "HEAD_DIM", 10)


def tensors(folder: Path, part: str) -> dict[str, Tensor]:
    return load_file(folder / part / ("model.safetensors" if part == "text_encoder" else f"{STEM}.safetensors"))


STEM = "diffusion_pytorch_model"


def original_dit(folder: Path, part: str = "transformer") -> dict[str, Tensor]:
    return {DIFFUSERS.to_ours(name): tensor for name, tensor in tensors(folder, part).items()}


def original_vae(folder: Path) -> dict[str, Tensor]:
    layout = diffusers_layout(open_checkpoint(folder).vae)
    return {layout.to_ours(name): tensor for name, tensor in tensors(folder, "vae").items()}


def under(prefix: str, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in found.items()}


def write_tokenizer(folder: Path, where: Path) -> None:
    where.mkdir(parents=True, exist_ok=True)
    shutil.copy(folder / "tokenizer" / "tokenizer.json", where / "tokenizer.json")


def original_folder(folder: Path, out: Path, *, experts: bool = False) -> Path:
    """The release's own form."""
    out.mkdir()
    fields = {"model_type": "t2v", "num_heads": 2, "dim": 32, "num_layers": 2, "text_len": 512, "eps": 1e-6}
    for part, name in (
        (("transformer", "high_noise_model"), ("transformer_2", "low_noise_model"))
        if experts
        else (("transformer", "."),)
    ):
        place = out / name
        place.mkdir(exist_ok=True)
        (place / "config.json").write_text(json.dumps(fields))
        save_file(original_dit(folder, part), place / f"{STEM}.safetensors")
    torch.save(original_vae(folder), out / "Wan2.1_VAE.pth")
    shutil.copy(folder / "text_encoder" / "model.safetensors", out / "models_t5_umt5-xxl-enc-bf16.safetensors")
    write_tokenizer(folder, out / "google" / "umt5-xxl")
    return out


def assert_same(found: WanCheckpoint, folder: Path) -> None:
    """The stages of a checkpoint are those of a diffusers folder, bit for bit."""
    wanted = open_checkpoint(folder)
    assert (found.dit, found.vae) == (wanted.dit, wanted.vae)
    for part in [name for name in found.parts if name.startswith("transformer")]:
        torch.testing.assert_close(
            found.load_dit(part, **HERE).state_dict(), wanted.load_dit(part, **HERE).state_dict(), rtol=0, atol=0
        )
    torch.testing.assert_close(
        found.load_vae(**HERE).state_dict(), wanted.load_vae(**HERE).state_dict(), rtol=0, atol=0
    )
    prompts = ["a red ball moving right", "the cat!"]
    for ours, theirs in zip(
        found.load_text(**HERE).encode(prompts), wanted.load_text(**HERE).encode(prompts), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_an_original_folder(folder: Path, tmp_path: Path):
    found = open_checkpoint(original_folder(folder, tmp_path / "Wan2.1"))
    assert (found.layout, found.boundary, found.expand_timesteps) == ("original", None, False)
    assert [line.split(":")[0] for line in found.took] == ["vae", "text encoder", "tokenizer"]
    assert_same(found, folder)


def test_an_original_folder_of_two_experts(tmp_path: Path):
    experts = tiny_experts_folder(tmp_path / "experts")
    config = experts / "vae" / "config.json"
    fields = json.loads(config.read_text()) | {"latents_mean": WAN.latents_mean, "latents_std": WAN.latents_std}
    config.write_text(json.dumps(fields))
    found = open_checkpoint(original_folder(experts, tmp_path / "Wan2.2", experts=True))
    assert found.boundary == 0.875 and {"transformer", "transformer_2"} <= set(found.parts)
    assert_same(found, experts)
    shutil.rmtree(tmp_path / "Wan2.2" / "low_noise_model")
    with pytest.raises(CheckpointError, match="holds one expert of two; low_noise_model/ is missing"):
        open_checkpoint(tmp_path / "Wan2.2")


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_comfy_files(folder: Path, tmp_path: Path, prefix: str):
    models = tmp_path / "models"
    for name in ("diffusion_models", "vae", "text_encoders"):
        (models / name).mkdir(parents=True)
    model = models / "diffusion_models" / "wan2.1_t2v_1.3B_fp16.safetensors"
    save_file(under(prefix, original_dit(folder)), model)
    save_file(original_vae(folder), models / "vae" / "wan_2.1_vae.safetensors")
    shutil.copy(folder / "text_encoder" / "model.safetensors", models / "text_encoders" / "umt5_xxl.safetensors")
    write_tokenizer(folder, models / "text_encoders")
    found = open_checkpoint(model)
    assert found.took == (
        f"vae: {models}/vae/wan_2.1_vae.safetensors",
        f"text encoder: {models}/text_encoders/umt5_xxl.safetensors",
        f"tokenizer: {models}/text_encoders",
    )
    assert_same(found, folder)


def test_everything_in_one_file(folder: Path, tmp_path: Path):
    file = tmp_path / "all.safetensors"
    text = tensors(folder, "text_encoder")
    save_file(
        under("model.diffusion_model.", original_dit(folder))
        | under("vae.", original_vae(folder))
        | under("text_encoders.umt5xxl.transformer.", text),
        file,
    )
    write_tokenizer(folder, tmp_path)
    found = open_checkpoint(file)
    assert found.took == (f"tokenizer: {tmp_path}",)
    assert_same(found, folder)


def test_files_that_are_named(folder: Path, tmp_path: Path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    save_file(original_dit(folder), tmp_path / "a" / "x.safetensors")
    save_file(tensors(folder, "vae"), tmp_path / "b" / "v.safetensors")  # under diffusers' names
    shutil.copy(folder / "text_encoder" / "model.safetensors", tmp_path / "b" / "t.safetensors")
    write_tokenizer(folder, tmp_path / "b")
    with pytest.raises(CheckpointError, match="its vae is not beside it; name it with --vae"):
        open_checkpoint(tmp_path / "a" / "x.safetensors")
    vae, text = tmp_path / "b" / "v.safetensors", tmp_path / "b" / "t.safetensors"
    found = open_checkpoint(tmp_path / "a" / "x.safetensors", Named(vae=vae, text_encoder=text))
    assert_same(found, folder)
    with pytest.raises(CheckpointError, match="must hold a vae, and holds a text encoder"):
        open_checkpoint(tmp_path / "a" / "x.safetensors", Named(vae=text, text_encoder=text))
    with pytest.raises(CheckpointError, match="holds a vae and no transformer; pass the transformer's file as --model"):
        open_checkpoint(vae)
    with pytest.raises(CheckpointError, match=r"--vae .*: the model .* is a diffusers folder"):
        open_checkpoint(folder, Named(vae=vae))


def test_a_file_of_something_else(tmp_path: Path):
    save_file({"a.weight": torch.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match="is no model that is known"):
        open_checkpoint(tmp_path / "m.safetensors")


def test_a_config_that_disagrees(folder: Path, tmp_path: Path):
    out = original_folder(folder, tmp_path / "wan")
    fields = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(fields | {"num_layers": 3}))
    with pytest.raises(CheckpointError, match="num_layers is 3; the tensors beside it have 2"):
        open_checkpoint(out)


def test_a_name_in_the_hugging_face_cache(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--Wan-AI--Tiny-Diffusers"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree(folder, repository / "snapshots" / "abc")
    assert open_checkpoint("Wan-AI/Tiny-Diffusers").path == repository / "snapshots" / "abc"
    with pytest.raises(CheckpointError, match="there is no such file or folder; a model is"):
        open_checkpoint("Wan-AI/Other")


@pytest.mark.parametrize("form", ["diffusers", "original"])
def test_experts_of_different_models(form: str, tmp_path: Path):
    path, other = tiny_experts_folder(tmp_path / "wan"), tiny_i2v_experts_folder(tmp_path / "other")
    if form == "original":
        path = original_folder(path, tmp_path / "original", experts=True)
        save_file(original_dit(other, "transformer_2"), path / "low_noise_model" / f"{STEM}.safetensors")
    else:
        shutil.rmtree(path / "transformer_2")
        shutil.copytree(other / "transformer_2", path / "transformer_2")
    with pytest.raises(CheckpointError, match="not the experts of one model; in_dim is 16 in one and 36 in the other"):
        open_checkpoint(path)
