"""Files of every model at full size: their parts are told apart, and every tensor is exactly one of its module's."""

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import UMT5EncoderModel

from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.parts import Part, split
from dit_video.checkpoints.quantised import peeled
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.inferred import dit_from_shapes, vae_from_shapes
from dit_video.models.wan.layouts import DIFFUSERS, LAYOUTS
from dit_video.models.wan.release import KINDS
from dit_video.models.wan.vae import WanVAE
from dit_video.models.wan.vae_layouts import diffusers_layout, original_layout
from dit_video.models.wan.variants import VARIANTS
from dit_video.text.layouts import SPIECE, text_part
from tests.parity.test_text_forms import XXL, infos

Shapes = dict[str, tuple[int, ...]]


def shapes_of(module: nn.Module) -> Shapes:
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


@pytest.fixture(scope="module")
def text() -> Shapes:
    """Of UMT5-XXL under transformers' names, with the embedding under both of them and the tokenizer."""
    with torch.device("meta"):
        return shapes_of(UMT5EncoderModel(XXL)) | {SPIECE: (4_548_313,)}


def found_in(shapes: Shapes) -> dict[str, Part]:
    return split(Path("x"), infos(shapes), KINDS)


def under(prefix: str, shapes: Shapes) -> Shapes:
    return {prefix + name: shape for name, shape in shapes.items()}


@pytest.mark.parametrize("name", VARIANTS)
def test_everything_in_one_file(name: str, text: Shapes):
    preset = VARIANTS[name]
    with torch.device("meta"):
        dit, vae = shapes_of(WanDiT(preset.dit)), shapes_of(WanVAE(preset.vae))
    everything = under("model.diffusion_model.", dit) | under("vae.", vae)
    everything |= under("text_encoders.umt5xxl.transformer.", text)
    parts = found_in(everything)
    assert set(parts) == {"transformer", "vae", "text_encoder"}
    assert sum(len(part.tensors) for part in parts.values()) == len(everything)
    assert parts["transformer"].shapes == dit and dit_from_shapes(Path("x"), dit) == preset.dit
    raw = {key: info.shape for key, info in parts["vae"].tensors.items()}
    layout = original_layout(vae_from_shapes(Path("x"), raw))
    assert vae_from_shapes(Path("x"), raw) == preset.vae and {layout.to_ours(key): raw[key] for key in raw} == vae
    found = text_part(parts["text_encoder"])
    assert found.spiece is not None and found.spiece.shape == text[SPIECE]
    assert found.part.shapes == {key: text[key] for key in text if key not in (SPIECE, "encoder.embed_tokens.weight")}


@pytest.mark.parametrize("prefix", ["", "diffusion_model.", "model.diffusion_model."])
@pytest.mark.parametrize("name", ["T2V-1.3B", "TI2V-5B", "FLF2V-14B", "I2V-A14B"])
def test_a_transformer_alone(name: str, prefix: str):
    with torch.device("meta"):
        dit = shapes_of(WanDiT(VARIANTS[name].dit))
    for names in (dit, {DIFFUSERS.to_theirs(key): shape for key, shape in dit.items()}):
        (part,) = found_in(under(prefix, names)).values()
        assert part.layout in LAYOUTS and set(part.tensors) == set(names)
        assert part.shapes == dit


@pytest.mark.parametrize("name", ["T2V-1.3B", "TI2V-5B"])
def test_an_autoencoder_alone(name: str):
    config = VARIANTS[name].vae
    with torch.device("meta"):
        vae = shapes_of(WanVAE(config))
    for layout in (original_layout(config), diffusers_layout(config)):
        (part,) = found_in({layout.to_theirs(key): shape for key, shape in vae.items()}).values()
        assert part.layout.fingerprint == layout.fingerprint
        assert {layout.to_ours(key): info.shape for key, info in part.tensors.items()} == vae


@pytest.mark.parametrize("mark", ["scale_weight", "weight_scale"])
def test_a_scale_beside_every_matrix(mark: str):
    """fp8_scaled at full size: the scales are told from the weights, and go with them."""
    with torch.device("meta"):
        dit = shapes_of(WanDiT(VARIANTS["T2V-A14B"].dit))
    tensors: dict[str, TensorInfo] = {}
    for name, info in infos(dit).items():
        if name.startswith("blocks.") and len(info.shape) == 2:
            scale = f"{name.removesuffix('weight')}{mark}"
            tensors[scale] = TensorInfo(name=scale, dtype="F32", shape=(1,), file=Path("x"), nbytes=4)
        tensors[name] = info
    assert len(tensors) == len(dit) + 40 * 10
    (part,) = split(Path("x"), peeled(tensors, {}), KINDS).values()
    assert part.shapes == dit
    assert sum(info.scale is not None for info in part.tensors.values()) == 40 * 10
