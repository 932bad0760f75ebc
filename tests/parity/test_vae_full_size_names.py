"""Names and shapes of the public VAEs at full size, on the meta device, against diffusers' own models."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from dit_video.errors import DvgenError
from dit_video.models.wan.vae import VAEConfig, WanVAE
from dit_video.models.wan.vae_layouts import (
    WAN_2_1_VAE,
    WAN_2_2_VAE,
    diffusers_config,
    diffusers_layout,
    from_diffusers_config,
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
