"""Training end to end at a tiny size: the loss falls, and a run that was stopped and resumed is bit for bit the run
that was not.
"""

import dataclasses

import numpy as np
import pytest
import torch

from dit_video.errors import CheckpointError
from dit_video.flow.loss import add_noise, flow_loss, sample_sigmas
from dit_video.train import autoencoder, dit
from dit_video.train.config import (
    AutoencoderArch,
    AutoencoderConfig,
    DiTArch,
    DiTTrainConfig,
    LoopConfig,
    OptimConfig,
    PhaseConfig,
)
from dit_video.train.optim import EMA, orthogonalise

PHASE = PhaseConfig(images=0.5, short_side=(32, 48), frames=(5, 9))
LOOP = LoopConfig(steps=40, warmup=4, log_every=5, ema=0.9, threads=1, sheet_minutes=1e9)
ARCH = AutoencoderArch(dim=8, decoder_dim=8, z_dim=8, patch=4, dim_mult=(1, 2, 2), temporal_downsample=(True, True))


@pytest.fixture(autouse=True, scope="module")
def no_sheets():
    patch = pytest.MonkeyPatch()
    patch.setattr(autoencoder, "reconstruction_sheet", lambda vae, path: None)
    patch.setattr(dit, "sample_sheet", lambda models, path: None)
    patch.setattr(autoencoder, "STATISTICS_CLIPS", 8)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A tiny autoencoder's run and the losses that it logged."""
    out = tmp_path_factory.mktemp("runs") / "vae"
    config = AutoencoderConfig(
        out=str(out), arch=ARCH, loop=LOOP, optim=OptimConfig(adam_lr=5e-4), data=PHASE, batch_pixels=60_000
    )
    log = []
    autoencoder.train(config, resume=False, report=log.append)
    return out, log


def dit_config(vae_folder, out, **loop):
    return DiTTrainConfig(
        out=str(out),
        autoencoder=str(vae_folder),
        arch=DiTArch(
            dim=48, num_heads=2, ffn_dim=96, num_layers=2, text_dim=32, text_layers=1, text_heads=2, text_ffn=32
        ),
        loop=dataclasses.replace(LOOP, **loop),
        optim=OptimConfig(adam_lr=3e-3, muon_lr=0.02),
        phase=(PHASE,),
        shard_clips=24,
        window=2,
        pack_tokens=96,
        object_weight=2.0,
    )


def test_the_autoencoder_learns(trained):
    _, log = trained
    assert np.mean([line.loss for line in log[-2:]]) < 0.8 * log[0].loss


def test_the_finished_autoencoder_has_unit_latents(trained):
    vae = autoencoder.load_autoencoder(trained[0])
    video = autoencoder.first_look(AutoencoderConfig(out="", loop=LOOP, data=PHASE))[:8]
    latents = vae.encode(video)
    assert 0.5 < float(latents.std()) < 2.0
    assert max(vae.config.latents_std) != min(vae.config.latents_std)


def test_the_transformer_learns(trained, tmp_path):
    log = []
    dit.train(dit_config(trained[0], tmp_path / "dit", steps=60), resume=False, report=log.append)
    assert np.mean([line.loss for line in log[-3:]]) < 0.9 * log[0].loss


def final_weights(folder):
    state = torch.load(folder / "checkpoint.pt", weights_only=True)
    return {
        f"{part}.{name}": tensor for part, module in state["modules"].items() for name, tensor in module.items()
    }, state


def test_resumed_is_bit_for_bit_the_run_that_was_not_stopped(trained, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    dit.train(dit_config(trained[0], whole, steps=14), resume=False, report=lambda line: None)
    dit.train(dit_config(trained[0], parts, steps=6), resume=False, report=lambda line: None)
    dit.train(dit_config(trained[0], parts, steps=14), resume=True, report=lambda line: None)
    expected, state = final_weights(whole)
    found, _ = final_weights(parts)
    assert state["data"]["round"] >= 1  # the comparison covers a change of the data window
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, found[name]), name


def test_nothing_to_resume(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no checkpoint\.pt to resume"):
        dit.train(dit_config(trained[0], tmp_path / "none"), resume=True, report=lambda line: None)


def test_levels_are_logit_normal_and_shifted():
    sigmas = sample_sigmas(4000, mean=0.0, std=1.0, shift=3.0, generator=torch.Generator().manual_seed(0))
    assert sigmas.min() > 0 and sigmas.max() < 1
    assert float(sigmas.median()) == pytest.approx(0.75, abs=0.005)  # 3 * 0.5 / (1 + 2 * 0.5)


def test_known_frames_carry_no_loss_and_no_noise():
    clean, noise = torch.zeros(2, 3, 2, 2), torch.ones(2, 3, 2, 2)
    sigma = torch.tensor([0.0, 0.5, 0.5])
    noisy = add_noise(clean, noise, sigma)
    assert torch.equal(noisy[:, 0], clean[:, 0]) and float(noisy[:, 1].mean()) == 0.5
    wrong = noise.clone()
    wrong[:, 0] = 100.0
    assert float(flow_loss([wrong], [clean], [noise], [sigma], [None])) == 0.0


def test_orthogonalise_brings_singular_values_near_one():
    matrices = torch.randn(3, 24, 64, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalise(matrices).float())
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_the_average_follows_and_swaps():
    module = torch.nn.Linear(2, 2)
    average = EMA([module], decay=0.5)
    before = module.weight.detach().clone()
    with torch.no_grad():
        module.weight += 1
    average.update()
    average.swap()
    assert torch.allclose(module.weight, before + 0.9)  # the first update moves by 9/10
    average.swap()
    assert torch.allclose(module.weight, before + 1)
