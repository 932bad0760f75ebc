"""The VAE against diffusers' AutoencoderKLWan on tiny random weights: both forms, values and gradients, in float32."""

import pytest
import torch
from diffusers import AutoencoderKLWan

from dit_video.models.wan.configs import VAEConfig
from dit_video.models.wan.vae import WanVAE
from dit_video.models.wan.vae_layouts import diffusers_config, diffusers_layout, from_diffusers_config

GATE = 2e-5
FORMS = {
    "2.1": (False, 1, (1, 2, 4, 4)),
    "2.1, three levels": (False, 1, (1, 2, 2)),
    "2.2, unshuffle 2": (True, 2, (1, 2, 4, 4)),
    "2.2, unshuffle 4": (True, 4, (1, 2, 2)),
    "2.2, unshuffle 4, four levels": (True, 4, (1, 2, 4, 4)),
    "2.2, channels unchanged by the first level": (True, 2, (1, 1, 4, 4)),
}


def config_of(form: str, **changes) -> VAEConfig:
    residual, patch, dim_mult = FORMS[form]
    fields = dict(dim=8, decoder_dim=12, z_dim=6, num_res_blocks=2) if residual else dict(dim=8, decoder_dim=8, z_dim=6)
    return VAEConfig(
        **(fields | changes),
        dim_mult=dim_mult,
        temporal_downsample=(False, True, True)[-len(dim_mult) + 1 :],
        residual=residual,
        patch=patch,
        latents_mean=(0.3, -0.2, 0.1, 0.0, 0.5, -0.4),
        latents_std=(1.5, 0.8, 1.1, 2.0, 0.9, 1.2),
    )


def pair(form: str, **changes) -> tuple[AutoencoderKLWan, WanVAE]:
    """diffusers' model with random weights that keep its pixels inside the clamp, and ours with the same weights."""
    torch.manual_seed(0)
    config = config_of(form, **changes)
    theirs = AutoencoderKLWan.from_config(diffusers_config(config)).eval()
    for parameter in theirs.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    theirs.decoder.conv_out.weight.data *= 0.1
    ours = WanVAE(from_diffusers_config(theirs.config)).eval()
    layout = diffusers_layout(config)
    ours.load_state_dict({layout.to_ours(name): value for name, value in theirs.state_dict().items()})
    return theirs, ours


def gap(value: torch.Tensor, reference: torch.Tensor) -> float:
    assert value.shape == reference.shape
    return ((value - reference).abs().max() / reference.abs().max()).item()


@pytest.mark.parametrize("frames", [1, 5, 13])
@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_encode_and_decode(form: str, frames: int):
    theirs, ours = pair(form)
    side = ours.config.stride[1]
    video = torch.rand(2, 3, frames, 3 * side, 4 * side) * 2 - 1
    posterior = theirs.encode(video).latent_dist
    mean, logvar = ours.encode_moments(video)
    assert gap(mean, posterior.mean) < GATE
    assert gap(logvar.clamp(-30, 20), posterior.logvar) < GATE

    latents = torch.randn_like(mean)
    reference = theirs.decode(ours.unwhiten(latents)).sample
    assert reference.abs().max() < 1, "the comparison must not be flattered by the clamp"
    assert gap(ours.decode(latents), reference) < GATE


@pytest.mark.parametrize("form", ["2.1", "2.2, unshuffle 2", "2.2, unshuffle 4"])
@pytest.mark.parametrize("frames", [1, 9])
def test_gradients(form: str, frames: int):
    theirs, ours = pair(form)
    side = ours.config.stride[1]
    video = torch.rand(2, 3, frames, 2 * side, 3 * side) * 2 - 1
    mean, _ = ours.encode_moments(video)
    (ours.decode(ours.whiten(mean)) - video).square().mean().backward()
    (theirs.decode(theirs.encode(video).latent_dist.mean).sample - video).square().mean().backward()
    layout, named = diffusers_layout(ours.config), dict(ours.named_parameters())
    for name, parameter in theirs.named_parameters():
        if parameter.grad is not None and parameter.grad.abs().max() > 1e-6:
            assert gap(named[layout.to_ours(name)].grad, parameter.grad) < 1e-3, name


@torch.no_grad()
def test_whitening_is_the_pipelines():
    _, ours = pair("2.2, unshuffle 2")
    mean = torch.randn(1, 6, 2, 3, 4)
    centre, spread = (torch.tensor(c).view(1, -1, 1, 1, 1) for c in (ours.config.latents_mean, ours.config.latents_std))
    assert torch.allclose(ours.whiten(mean), (mean - centre) * (1 / spread), atol=1e-6)
    assert torch.allclose(ours.unwhiten(ours.whiten(mean)), mean, atol=1e-6)
