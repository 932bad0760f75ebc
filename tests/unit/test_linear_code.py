"""The linear code: what it is, and autoencoders and transformers that are trained on it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_video.checkpoints.files import save_tensors
from dit_video.errors import CheckpointError, UsageError
from dit_video.shapes import Grid, VideoShape
from dit_video.train import autoencoder, clips, dit
from dit_video.train.config import AutoencoderArch, AutoencoderConfig, DiTArch, DiTTrainConfig, LoopConfig, PhaseConfig
from dit_video.train.data import scene_batch
from dit_video.train.denoised import Denoiser
from dit_video.train.linear_code import FILE, fit_linear_code, load_linear_code

PHASE = PhaseConfig(images=0.5, short_side=(32, 48), frames=(5, 9))
LOOP = LoopConfig(steps=60, warmup=2, log_every=5, ema=0.9, threads=1, sheet_minutes=1e9)
ARCH = AutoencoderArch(dim=8, decoder_dim=8, z_dim=8, patch=4, dim_mult=(1, 2, 2), temporal_downsample=(True, True))
GRID = Grid(stride=(4, 16, 16))


def config(out, **fields) -> AutoencoderConfig:
    return AutoencoderConfig(
        out=str(out), arch=ARCH, loop=LOOP, data=PHASE, batch_pixels=30_000, linear_code=True, **fields
    )


def transformer(vae, out) -> DiTTrainConfig:
    """A tiny transformer's run of one step on the autoencoder in `vae`."""
    return DiTTrainConfig(
        out=str(out),
        autoencoder=str(vae),
        arch=DiTArch(dim=48, num_heads=2, ffn_dim=96, num_layers=1, text_dim=32, text_layers=1, text_heads=2),
        loop=dataclasses.replace(LOOP, steps=1),
        phase=(PHASE,),
        shard_clips=8,
        window=1,
    )


@pytest.fixture(scope="module")
def code():
    patch = pytest.MonkeyPatch()
    patch.setattr(clips, "CODE_CLIPS", 60)
    scenes = clips.SceneClips(config(""), GRID).code_clips(np.random.default_rng(0))
    yield fit_linear_code(scenes, 8, GRID.stride)
    patch.undo()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """An autoencoder's run with a linear code, and the losses that it logged."""
    patch = pytest.MonkeyPatch()
    patch.setattr(autoencoder, "reconstruction_sheet", lambda *_: None)
    patch.setattr(clips, "CODE_CLIPS", 40)
    out, log = tmp_path_factory.mktemp("runs") / "vae", []
    autoencoder.train(config(out), resume=False, report=log.append)
    patch.undo()
    return out, log


def test_it_is_linear_and_has_the_grid_of_the_autoencoder(code):
    a, b = torch.rand(2, 2, 3, 9, 32, 48) * 2 - 1
    zero = code(torch.zeros_like(a))
    assert code(a).shape == (2, 8, 3, 2, 3)
    torch.testing.assert_close(code(0.3 * a + 0.7 * b), 0.3 * code(a) + 0.7 * code(b), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(code(a), zero)


def test_a_still_clip_has_one_latent_frame_again_and_again(code):
    still = torch.rand(1, 3, 1, 32, 48).expand(-1, -1, 9, -1, -1)
    latents = code(still)
    torch.testing.assert_close(latents, latents[:, :, :1].expand_as(latents))


def test_no_latent_sees_what_comes_after_it(code):
    clip = torch.rand(1, 3, 9, 32, 48)
    torch.testing.assert_close(code(clip)[:, :, :2], code(clip[:, :, :5]))


def test_its_scale_suits_the_noise(code):
    scenes = [*clips.SceneClips(config(""), GRID).code_clips(np.random.default_rng(1))][:40]
    latents = [code(video[None])[0] for video, _ in scenes]
    everywhere = torch.cat([x.flatten(1) for x in latents], dim=1)
    inside = torch.cat([x[:, cells] for x, (_, cells) in zip(latents, scenes, strict=True)], dim=1)
    product = everywhere.std(1) * inside.std(1)  # the geometric mean of both is 1 over the clips it was fitted to
    assert ((product > 0.4) & (product < 2.5)).all()


def test_encoder_and_decoder_learn_it(trained):
    out, log = trained
    assert np.mean([line.loss for line in log[-2:]]) < 0.9 * log[0].loss
    vae = autoencoder.load_autoencoder(out)
    assert set(vae.config.latents_mean) == {0.0} and set(vae.config.latents_std) == {1.0}


def test_a_run_that_begins_from_another_keeps_its_code(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "reconstruction_sheet", lambda *_: None)
    loop = dataclasses.replace(LOOP, steps=1)
    autoencoder.train(
        dataclasses.replace(config(tmp_path / "next", init_from=str(trained[0])), loop=loop),
        resume=False,
        report=lambda line: None,
    )
    first, second = (load_linear_code(folder) for folder in (trained[0], tmp_path / "next"))
    assert first is not None and second is not None
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=0, atol=0)


def test_a_transformer_trains_on_the_code_itself(trained, tmp_path, monkeypatch):
    train = transformer(trained[0], tmp_path / "dit")
    models = dit.build(train)
    assert models.code is not None
    monkeypatch.setattr(models.vae, "encode", lambda video: pytest.fail("the encoder was asked"))
    _, stream = dit.prepare(train, models)
    assert stream.next()[0].latents.shape[0] == 8
    assert dit.fingerprint(models.vae, models.code) != dit.fingerprint(models.vae)


def test_a_run_with_a_code_resumes_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "reconstruction_sheet", lambda *_: None)
    monkeypatch.setattr(clips, "CODE_CLIPS", 20)

    def train(name, steps, resume=False):
        asked = dataclasses.replace(config(tmp_path / name), loop=dataclasses.replace(LOOP, steps=steps))
        autoencoder.train(asked, resume=resume, report=lambda line: None)
        return torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["modules"]["vae"]

    whole = train("whole", 4)
    train("parts", 2)
    torch.testing.assert_close(train("parts", 4, resume=True), whole, rtol=0, atol=0)
    free = dataclasses.replace(config(tmp_path / "parts"), linear_code=False)
    with pytest.raises(CheckpointError, match="has a linear code; resume it with linear_code = true"):
        autoencoder.train(free, resume=True, report=lambda line: None)


def test_a_code_that_is_left_over_is_not_used(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "reconstruction_sheet", lambda *_: None)
    monkeypatch.setattr(autoencoder, "STATISTICS_CLIPS", 4)
    out = tmp_path / "run"
    out.mkdir()
    (out / FILE).write_bytes((trained[0] / FILE).read_bytes())
    free = dataclasses.replace(config(out), linear_code=False, loop=dataclasses.replace(LOOP, steps=1))
    autoencoder.train(free, resume=False, report=lambda line: None)
    assert load_linear_code(out) is None


def test_what_would_change_the_code_is_refused_before_there_is_a_folder(tmp_path, monkeypatch):
    other = tmp_path / "free"
    vae = autoencoder.WanVAE(autoencoder.vae_config(ARCH))
    other.mkdir()
    autoencoder.save_autoencoder(vae, other)
    half = config(tmp_path / "half", init_from=str(other), decoder_only=True)
    with pytest.raises(CheckpointError, match=r"has no linear_code.safetensors, so its encoder computes another code"):
        autoencoder.train(half, resume=False, report=lambda line: None)
    odd = dataclasses.replace(config(tmp_path / "half"), arch=dataclasses.replace(ARCH, patch=1))
    with pytest.raises(UsageError, match=r"pixels on a side: it takes multiples of 4; the nearest is 4"):
        thin = dataclasses.replace(odd.arch, dim_mult=(1, 1), temporal_downsample=(True,), patch=1)
        autoencoder.train(dataclasses.replace(odd, arch=thin), resume=False, report=lambda line: None)
    assert not (tmp_path / "half").exists()


def test_a_file_that_is_no_code_is_named(tmp_path):
    save_tensors({"kernel": torch.zeros(1)}, tmp_path / FILE)
    with pytest.raises(CheckpointError, match="has kernel; a linear code has bias and kernel"):
        load_linear_code(tmp_path)


def test_the_share_of_clips_with_two_objects(trained):
    for share, expected in ((0.0, {1}), (1.0, {2})):
        scenes = scene_batch(np.random.default_rng(0), VideoShape(num_frames=5, height=96, width=128), 8, share)
        assert {len(scene.objects) for scene in scenes} == expected


def test_a_decoder_learns_from_what_a_transformer_makes(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(autoencoder, "reconstruction_sheet", lambda *_: None)
    monkeypatch.setattr(dit, "sample_sheet", lambda *_, **__: None)
    loop = dataclasses.replace(LOOP, steps=3)
    train = transformer(trained[0], tmp_path / "dit")
    dit.train(train, resume=False, report=lambda line: None)
    model = str(tmp_path / "dit" / "model")
    after = config(tmp_path / "after", init_from=str(trained[0]), decoder_only=True, denoiser=model)
    asked = []
    monkeypatch.setattr(Denoiser, "__call__", watched(asked, Denoiser.__call__))
    autoencoder.train(dataclasses.replace(after, loop=loop), resume=False, report=lambda line: None)
    assert asked, "no batch was denoised"
    for latents, denoised in asked:
        assert denoised.shape == latents.shape and not torch.equal(denoised, latents)
    first, second = (autoencoder.load_autoencoder(folder) for folder in (trained[0], tmp_path / "after"))
    assert not torch.equal(first.decoder.conv1.weight, second.decoder.conv1.weight)
    assert torch.equal(first.conv1.weight, second.conv1.weight)
    assert load_linear_code(Path(model)) is not None
    other = autoencoder.WanVAE(autoencoder.vae_config(dataclasses.replace(ARCH, z_dim=12)))
    with pytest.raises(CheckpointError, match="was trained on the latents of another autoencoder"):
        Denoiser(Path(model), other)


def test_without_noise_the_denoiser_changes_nothing(trained, tmp_path, monkeypatch):
    vae = autoencoder.load_autoencoder(trained[0])
    monkeypatch.setattr(dit, "sample_sheet", lambda *_, **__: None)
    train = transformer(trained[0], tmp_path / "dit")
    dit.train(train, resume=False, report=lambda line: None)
    denoiser = Denoiser(tmp_path / "dit" / "model", vae)
    denoiser.load("cpu", torch.float32)
    latents = torch.randn(2, 8, 2, 3, 5)
    same = denoiser(latents, ["a red ball", ""], torch.zeros(2), torch.Generator())
    torch.testing.assert_close(same, latents)


def watched(asked, call):
    """`call`, noting latents and results."""

    def noting(self, latents, *rest):
        result = call(self, latents, *rest)
        asked.append((latents, result))
        return result

    return noting


def test_there_is_none_in_another_autoencoder(tmp_path):
    assert load_linear_code(tmp_path) is None
