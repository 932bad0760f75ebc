"""Names and shapes of the public DiTs at full size, on the meta device, against diffusers' own models."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import WanTransformer3DModel
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

from dit_video.checkpoints.keymap import detect
from dit_video.errors import CheckpointError
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.inferred import dit_from_shapes
from dit_video.models.wan.layouts import (
    DIFFUSERS,
    LAYOUTS,
    ORIGINAL,
    config_from_diffusers,
    config_to_diffusers,
)
from dit_video.models.wan.variants import VARIANTS

# The transformer/config.json of the public diffusers folders, as far as it differs from the class's defaults (14B).
PUBLIC = {
    "T2V-1.3B": (dict(num_attention_heads=12, ffn_dim=8960, num_layers=30, text_dim=4096), 1.419e9),
    "T2V-14B": (dict(text_dim=4096), 14.289e9),
    "TI2V-5B": (
        dict(num_attention_heads=24, ffn_dim=14336, num_layers=30, text_dim=4096, in_channels=48, out_channels=48),
        5.000e9,
    ),
    "I2V-14B-480P": (dict(in_channels=36, image_dim=1280, added_kv_proj_dim=5120), 16.391e9),
    "FLF2V-14B": (dict(in_channels=36, image_dim=1280, added_kv_proj_dim=5120, pos_embed_seq_len=514), 16.391e9),
    "I2V-A14B": (dict(in_channels=36), 14.289e9),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_full_size(name):
    fields, parameters = PUBLIC[name]
    with torch.device("meta"):
        reference = WanTransformer3DModel(**fields)
        ours = WanDiT(VARIANTS[name].dit).state_dict()
    theirs = reference.state_dict()
    assert config_from_diffusers(reference.config) == VARIANTS[name].dit
    assert {DIFFUSERS.to_ours(key): value.shape for key, value in theirs.items()} == {
        key: value.shape for key, value in ours.items()
    }
    assert {DIFFUSERS.to_theirs(key) for key in ours} == set(theirs)
    assert all(ORIGINAL.to_ours(key) == key == ORIGINAL.to_theirs(key) for key in ours)
    assert sum(value.numel() for value in ours.values()) == pytest.approx(parameters, rel=1e-3)
    assert detect(theirs, LAYOUTS) is DIFFUSERS and detect(ours, LAYOUTS) is ORIGINAL


@pytest.mark.parametrize("name", VARIANTS)
def test_original_names_are_those_that_diffusers_takes(name):
    """Its conversion of single files gives each the name that our table gives it."""
    with torch.device("meta"):
        ours = dict.fromkeys(WanDiT(VARIANTS[name].dit).state_dict())
    ours.pop("img_emb.emb_pos", None)  # which that conversion leaves as it is
    made = convert_wan_transformer_to_diffusers({key: key for key in ours})
    assert made == {DIFFUSERS.to_theirs(key): key for key in ours}


def test_names_of_the_release():
    """A few names of Wan-Video/Wan2.1's 1.3B file, with the norms that diffusers calls the other way round."""
    with torch.device("meta"):
        ours = WanDiT(VARIANTS["T2V-1.3B"].dit).state_dict()
    assert len(ours) == 825
    for name in (
        "blocks.29.cross_attn.norm_k.weight",
        "time_projection.1.bias",
        "text_embedding.2.weight",
        "head.head.bias",
    ):
        assert name in ours
    assert DIFFUSERS.to_theirs("blocks.3.norm3.bias") == "blocks.3.norm2.bias"


def test_names_of_the_image_to_video_releases():
    """A few names of Wan2.1-I2V-14B's and FLF2V-14B's files beside those of a text-to-video model."""
    with torch.device("meta"):
        t2v, i2v, flf2v, a14b = (
            {name: tuple(value.shape) for name, value in WanDiT(VARIANTS[variant].dit).state_dict().items()}
            for variant in ("T2V-14B", "I2V-14B-480P", "FLF2V-14B", "I2V-A14B")
        )
    assert i2v.keys() - t2v.keys() == {
        *(f"img_emb.proj.{layer}.{p}" for layer in (0, 1, 3, 4) for p in ("weight", "bias")),
        *(f"blocks.{i}.cross_attn.{part}_img.{p}" for i in range(40) for part in "kv" for p in ("weight", "bias")),
        *(f"blocks.{i}.cross_attn.norm_k_img.weight" for i in range(40)),
    }
    assert flf2v.keys() - i2v.keys() == {"img_emb.emb_pos"} and flf2v["img_emb.emb_pos"] == (1, 514, 1280)
    assert a14b.keys() == t2v.keys() and a14b["patch_embedding.weight"] == (5120, 36, 1, 2, 2)
    assert i2v["img_emb.proj.1.weight"] == (1280, 1280) and i2v["img_emb.proj.3.weight"] == (5120, 1280)


@pytest.mark.parametrize("name", ["I2V-14B-480P", "FLF2V-14B", "I2V-A14B"])
def test_image_to_video_configs_are_read_off_the_shapes(name):
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in WanDiT(VARIANTS[name].dit).state_dict().items()}
    assert dit_from_shapes(Path(name), shapes) == VARIANTS[name].dit


@pytest.mark.parametrize("config", [preset.dit for preset in VARIANTS.values()], ids=VARIANTS)
def test_config_both_ways(config):
    small_heads = replace(config, num_heads=2 * config.num_heads, cross_attn_norm=False)
    for shape in (config, small_heads):
        assert config_from_diffusers(config_to_diffusers(shape)) == shape


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_dim": 1280}, "added_kv_proj_dim = None and image_dim = 1280"),
        ({"added_kv_proj_dim": 1536}, "added_kv_proj_dim = 1536 and image_dim = None"),
        ({"pos_embed_seq_len": 514}, "positions are those of an image encoder's rows"),
        ({"qk_norm": "rms_norm"}, "rms_norm_across_heads"),
        ({"_class_name": "LTXVideoTransformer3DModel"}, "LTXVideo"),
        ({"patch_size": [2, 2, 2]}, r"patch_size \[2, 2, 2\]"),
        ({"attention_head_dim": 63}, "attention_head_dim 63"),
    ],
)
def test_what_cannot_be_loaded_is_refused(change, words):
    with pytest.raises(CheckpointError, match=words):
        config_from_diffusers({**config_to_diffusers(VARIANTS["T2V-1.3B"].dit), **change})


def test_a_missing_field_is_named():
    fields = config_to_diffusers(VARIANTS["T2V-1.3B"].dit)
    del fields["ffn_dim"]
    with pytest.raises(CheckpointError, match="ffn_dim"):
        config_from_diffusers(fields)
