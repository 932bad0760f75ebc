"""One tiny model in every layout that Wan is published in gives the same latents, bit for bit.

The original names are those that diffusers' own conversion of single files takes; those of llama.cpp come from gguf.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file
from torch import Tensor

from dit_video.checkpoints.places import Named
from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.models import open_checkpoint
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from tests.parity.test_text_forms import llama_name, release_name
from tests.unit.test_convert import with_sentencepiece
from tests.unit.test_stored import write_gguf
from tests.unit.test_wan_release import STEM, folder, narrow_heads, original_dit, original_vae, tensors, under

__all__ = ["folder", "narrow_heads"]  # fixtures
SHAPE = VideoShape(num_frames=5, height=32, width=32)
PARTS = {"transformer": f"{STEM}.safetensors", "text_encoder": "model.safetensors"}
Tensors = dict[str, Tensor]
Change = Callable[[str, Tensor], Tensor]


class Aligned(Stages):
    """Stages whose weights are copies: sums of products depend in their last bits on where in memory a map begins."""

    def _stage(self, name: str, load: Callable[..., Any]) -> Any:
        stage = super()._stage(name, load)
        module = stage if isinstance(stage, torch.nn.Module) else stage.module
        for parameter in module.parameters():
            parameter.data = parameter.data.clone()
        return stage


def latents(path: Path, named: Named | None = None) -> Tensor:
    """What two guided steps make of the model."""
    stages = Aligned(open_checkpoint(path, named), dtype=torch.float32, device=torch.device("cpu"))
    clip = Clip(prompt="a red ball moving right", negative="blue star", shape=SHAPE, seed=3)
    return sample_latents(stages, [clip], Settings(steps=2, shift=3.0, guidance=(4.0,)))[0]


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As diffusers writes it, with a spiece.model."""
    return with_sentencepiece(folder, tmp_path_factory.mktemp("whole") / "wan")


@pytest.fixture(scope="module")
def reference(whole: Path) -> Tensor:
    return latents(whole)


def changed(whole: Path, out: Path, change: Change) -> Path:
    """The folder with other numbers in the matrices of its transformer and its text encoder."""
    shutil.copytree(whole, out)
    for part, file in PARTS.items():
        found = {n: change(n, t) if is_matrix(n, t) else t for n, t in load_file(whole / part / file).items()}
        save_file(found, out / part / file, {"format": "pt"})
    return out


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Of those that files of fewer bits have in fewer bits."""
    return tensor.ndim == 2 and "block" in name and "bias" not in name and "modulation" not in name


def text(whole: Path) -> Tensors:
    """Without the second name of the embedding."""
    return {n: t for n, t in tensors(whole, "text_encoder").items() if "embed_tokens" not in n}


def spiece_tensor(whole: Path) -> Tensors:
    data = (whole / "tokenizer" / "spiece.model").read_bytes()
    return {"spiece_model": torch.frombuffer(bytearray(data), dtype=torch.uint8)}


def test_original_names_are_those_that_diffusers_takes(whole: Path):
    """Its conversion makes of them the tensors that the folder has; that of autoencoders knows the full size alone."""
    made, wanted = convert_wan_transformer_to_diffusers(original_dit(whole)), tensors(whole, "transformer")
    assert set(made) == set(wanted)
    assert all(torch.equal(made[name], wanted[name]) for name in wanted)


def test_an_original_folder(whole: Path, reference: Tensor, tmp_path: Path):
    fields = {"model_type": "t2v", "num_heads": 2, "dim": 32, "num_layers": 2, "text_len": 512, "eps": 1e-6}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    save_file(original_dit(whole), tmp_path / f"{STEM}.safetensors")
    torch.save(original_vae(whole), tmp_path / "Wan2.1_VAE.pth")
    torch.save({release_name(n): t for n, t in text(whole).items()}, tmp_path / "models_t5_umt5-xxl-enc-bf16.pth")
    shutil.copytree(whole / "tokenizer", tmp_path / "google" / "umt5-xxl")
    assert torch.equal(latents(tmp_path), reference)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model.", "diffusion_model."])
def test_comfyuis_files(whole: Path, reference: Tensor, tmp_path: Path, prefix: str):
    for name in ("diffusion_models", "vae", "text_encoders"):
        (tmp_path / name).mkdir()
    model = tmp_path / "diffusion_models" / "wan2.1_t2v_1.3B_fp16.safetensors"
    save_file(under(prefix, original_dit(whole)), model)
    save_file(original_vae(whole), tmp_path / "vae" / "wan_2.1_vae.safetensors")
    save_file(text(whole) | spiece_tensor(whole), tmp_path / "text_encoders" / "umt5_xxl_fp16.safetensors")
    assert torch.equal(latents(model), reference)


def test_everything_in_one_file(whole: Path, reference: Tensor, tmp_path: Path):
    everything = under("model.diffusion_model.", original_dit(whole)) | under("vae.", original_vae(whole))
    everything |= under("text_encoders.umt5xxl.transformer.", text(whole) | spiece_tensor(whole))
    save_file(everything, tmp_path / "wan.safetensors")
    assert torch.equal(latents(tmp_path / "wan.safetensors"), reference)


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0"])
def test_gguf(whole: Path, reference: Tensor, tmp_path: Path, kind: str):
    """Transformer and text encoder: the same as a folder of the numbers that they stand for."""
    quantised = gguf.GGMLQuantizationType[kind]

    def fits(tensor: Tensor) -> bool:
        return kind != "Q8_0" or tensor.shape[-1] % 32 == 0

    def change(name: str, tensor: Tensor) -> Tensor:
        if not fits(tensor):
            return tensor
        return torch.from_numpy(gguf.dequantize(gguf.quantize(tensor.numpy(), quantised), quantised).copy())

    wanted = latents(changed(whole, tmp_path / "wanted", change))
    assert torch.equal(wanted, reference) == (kind == "F32")
    dit = original_dit(whole)
    kinds = {n: quantised for n, t in dit.items() if is_matrix(n, t) and fits(t)}
    assert len(kinds) == 20 if kind != "Q8_0" else 16 <= len(kinds) < 20
    model = write_gguf(tmp_path / "wan.gguf", dit, kinds)
    save_file(original_vae(whole), tmp_path / "vae.safetensors")
    words = text(whole)
    text_kinds = {llama_name(n): quantised for n, t in words.items() if is_matrix(n, t) and fits(t)}
    write_gguf(tmp_path / "umt5.gguf", {llama_name(n): t for n, t in words.items()}, text_kinds)
    shutil.copytree(whole / "tokenizer", tmp_path / "tokenizer")
    assert torch.equal(latents(model, Named(text_encoder=tmp_path / "umt5.gguf")), wanted)


@pytest.mark.parametrize("convention", ["older", "newer"])
def test_fp8_scaled(whole: Path, reference: Tensor, tmp_path: Path, convention: str):
    """The same as a folder of the dequantised weights, q * scale."""

    def stored(tensor: Tensor) -> tuple[Tensor, Tensor]:
        scale = tensor.abs().max() / 448
        return (tensor / scale).to(torch.float8_e4m3fn), scale

    def change(name: str, tensor: Tensor) -> Tensor:
        q, scale = stored(tensor)
        return q.float() * scale

    def scaled(weights: Tensors) -> Tensors:
        made = dict(weights)
        for name in [n for n, t in weights.items() if is_matrix(n, t)]:
            layer = name.removesuffix(".weight")
            made[name], scale = stored(weights[name])
            if convention == "older":
                made |= {f"{layer}.scale_weight": scale.view(1), f"{layer}.scale_input": torch.full((1,), 3.0)}
            else:
                about = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
                made |= {f"{layer}.weight_scale": scale, f"{layer}.input_scale": torch.tensor(3.0)}
                made |= {f"{layer}.comfy_quant": about}
        return made | ({"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)} if convention == "older" else {})

    wanted = latents(changed(whole, tmp_path / "wanted", change))
    assert not torch.equal(wanted, reference)
    model = tmp_path / "wan2.1_t2v_1.3B_fp8_scaled.safetensors"
    save_file(scaled(original_dit(whole)), model)
    save_file(original_vae(whole), tmp_path / "wan_2.1_vae.safetensors")
    save_file(scaled(text(whole)) | spiece_tensor(whole), tmp_path / "umt5_xxl_fp8_e4m3fn_scaled.safetensors")
    assert torch.equal(latents(model), wanted)
