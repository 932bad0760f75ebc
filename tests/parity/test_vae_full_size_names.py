"""Names and shapes of the public VAEs at full size, on the meta device, against diffusers' own models."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan
from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

from dit_video.errors import DvgenError
from dit_video.models.wan.configs import VAEConfig
from dit_video.models.wan.inferred import vae_from_shapes
from dit_video.models.wan.vae import WanVAE
from dit_video.models.wan.vae_layouts import (
    WAN_2_1_VAE,
    WAN_2_2_VAE,
    diffusers_config,
    diffusers_layout,
    from_diffusers_config,
    original_layout,
)

# What diffusers' own conversion script (convert_wan_to_diffusers.py, `vae22_diffusers_config`) writes for the 2.2 VAE.
WAN_2_2_DIFFUSERS = dict(
    base_dim=160, decoder_base_dim=256, z_dim=48, is_residual=True, in_channels=12, out_channels=12, patch_size=2,
    scale_factor_spatial=16, temperal_downsample=[False, True, True], dim_mult=[1, 2, 4, 4], num_res_blocks=2,
)  # fmt: skip


@pytest.mark.parametrize(
    ("config", "theirs", "parameters"), [(WAN_2_1_VAE, {}, 126.9e6), (WAN_2_2_VAE, WAN_2_2_DIFFUSERS, 704.7e6)]
)
def test_full_size(config: VAEConfig, theirs: dict, parameters: float):
    with torch.device("meta"):
        reference = AutoencoderKLWan(**theirs).state_dict()
        ours = WanVAE(config).state_dict()
    layout = diffusers_layout(config)
    assert {layout.to_ours(name): value.shape for name, value in reference.items()} == {
        name: value.shape for name, value in ours.items()
    }
    assert {layout.to_theirs(name) for name in ours} == set(reference)
    assert sum(value.numel() for value in ours.values()) == pytest.approx(parameters, rel=1e-3)


def test_original_names_of_2_1_are_those_that_diffusers_takes():
    """Its conversion of single files gives each the name that our table gives it; it does not know 2.2."""
    with torch.device("meta"):
        ours = list(WanVAE(WAN_2_1_VAE).state_dict())
    layout = diffusers_layout(WAN_2_1_VAE)
    assert convert_wan_vae_to_diffusers({name: name for name in ours}) == {
        layout.to_theirs(name): name for name in ours
    }
    original = original_layout(WAN_2_1_VAE)
    assert all(original.to_ours(name) == name == original.to_theirs(name) for name in ours)


def test_original_names_of_2_2():
    """wan/modules/vae2_2.py: levels of blocks, of which the last one samples; ends are called as in 2.1."""
    with torch.device("meta"):
        ours, plain = (set(WanVAE(config).state_dict()) for config in (WAN_2_2_VAE, WAN_2_1_VAE))
    layout, original = diffusers_layout(WAN_2_2_VAE), original_layout(WAN_2_2_VAE)
    block = {"residual.0.gamma", "residual.3.gamma"}
    block |= {f"residual.{i}.{p}" for i in (2, 6) for p in ("weight", "bias")}
    widened = {f"shortcut.{p}" for p in ("weight", "bias")}
    sampling = {f"resample.1.{p}" for p in ("weight", "bias")}
    in_time = sampling | {f"time_conv.{p}" for p in ("weight", "bias")}
    levels = {
        "encoder.downsamples.{}.downsamples.{}.": [
            [block, block, sampling],
            [block | widened, block, in_time],
            [block | widened, block, in_time],
            [block, block],
        ],
        "decoder.upsamples.{}.upsamples.{}.": [
            [block, block, block, in_time],
            [block, block, block, in_time],
            [block | widened, block, block, sampling],
            [block | widened, block, block],
        ],
    }
    wanted = {
        prefix.format(level, place) + name
        for prefix, all_levels in levels.items()
        for level, places in enumerate(all_levels)
        for place, names in enumerate(places)
        for name in names
    }
    wanted |= {name for name in plain if ".downsamples." not in name and ".upsamples." not in name}
    assert ours == wanted and len(ours) == 196
    assert all(original.to_ours(name) == name == original.to_theirs(name) for name in ours)
    assert layout.to_theirs("encoder.downsamples.1.downsamples.2.time_conv.bias") == (
        "encoder.down_blocks.1.downsampler.time_conv.bias"
    )
    assert layout.to_theirs("decoder.upsamples.0.upsamples.2.residual.6.weight") == (
        "decoder.up_blocks.0.resnets.2.conv2.weight"
    )


@pytest.mark.parametrize("config", [WAN_2_1_VAE, WAN_2_2_VAE])
def test_config_is_read_off_the_shapes(config: VAEConfig):
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in WanVAE(config).state_dict().items()}
    assert vae_from_shapes(Path("x"), shapes) == config


def test_constants_of_2_1_are_diffusers_defaults():
    with torch.device("meta"):
        defaults = AutoencoderKLWan().config
    assert from_diffusers_config(defaults) == WAN_2_1_VAE
    assert from_diffusers_config({}) == WAN_2_1_VAE


@pytest.mark.parametrize("config", [WAN_2_1_VAE, WAN_2_2_VAE])
def test_config_both_ways(config: VAEConfig):
    assert from_diffusers_config(diffusers_config(config)) == config
    assert len(config.latents_mean) == len(config.latents_std) == config.z_dim


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"attn_scales": [0.5]}, "attn_scales is \\[0.5\\]"),
        ({"is_residual": True, "patch_size": 2}, "in_channels"),
        ({"z_dim": 12}, "latents_mean"),
        ({"new_field": 1}, "unknown field 'new_field'"),
    ],
)
def test_what_is_not_a_wan_vae_is_refused(change: dict, words: str):
    raw = diffusers_config(WAN_2_1_VAE) | change
    with pytest.raises(DvgenError, match=words):
        from_diffusers_config(raw)
