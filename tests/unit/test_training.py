"""Training end to end at a tiny size: the loss falls, and a run that was stopped and resumed is bit for bit the run
that was not.
"""

import dataclasses
import re
import shutil

import numpy as np
import pytest
import torch

from dit_video.checkpoints.files import load_tensors, save_tensors
from dit_video.errors import CheckpointError, UsageError
from dit_video.flow.loss import add_noise, flow_loss, sample_sigmas
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.shapes import Grid
from dit_video.train import autoencoder, dit, dry_run, dry_run_autoencoder, loop
from dit_video.train.clips import SceneClips
from dit_video.train.config import (
    AutoencoderArch,
    AutoencoderConfig,
    DistilConfig,
    DiTArch,
    DiTTrainConfig,
    LoopConfig,
    OptimConfig,
    PhaseConfig,
)
from dit_video.train.optim import EMA, build_optimizers, orthogonalise
from dit_video.video.io import probe

PHASE = PhaseConfig(images=0.5, short_side=(32, 48), frames=(5, 9))
LOOP = LoopConfig(steps=40, warmup=4, log_every=5, ema=0.9, threads=1, sheet_minutes=1e9)
ARCH = AutoencoderArch(dim=8, decoder_dim=8, z_dim=8, patch=4, dim_mult=(1, 2, 2), temporal_downsample=(True, True))


REAL_SHEET = dit.sample_sheet


def silent(*_, **__):
    pass


@pytest.fixture(autouse=True, scope="module")
def no_sheets():
    patch = pytest.MonkeyPatch()
    patch.setattr(autoencoder, "reconstruction_sheet", silent)
    patch.setattr(dit, "sample_sheet", silent)
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
        drop_share=0.5,
    )


def test_the_autoencoder_learns(trained):
    _, log = trained
    assert np.mean([line.loss for line in log[-2:]]) < 0.8 * log[0].loss


def test_the_finished_autoencoder_has_unit_latents(trained):
    vae = autoencoder.load_autoencoder(trained[0])
    video = SceneClips(AutoencoderConfig(out="", loop=LOOP, data=PHASE), Grid(stride=vae.config.stride)).first_look()[
        :8
    ]
    latents = vae.encode(video)
    assert 0.5 < float(latents.std()) < 2.0
    assert max(vae.config.latents_std) != min(vae.config.latents_std)


def test_the_transformer_learns(trained, tmp_path):
    log = []
    dit.train(dit_config(trained[0], tmp_path / "dit", steps=60), resume=False, report=log.append)
    assert np.mean([line.loss for line in log[-3:]]) < 0.9 * log[0].loss


def leaves(state, path=""):
    """Every value of a checkpoint with its place: weights, average, optimisers, data and step."""
    if isinstance(state, dict | list | tuple):
        for key, value in state.items() if isinstance(state, dict) else enumerate(state):
            yield from leaves(value, f"{path}/{key}")
    else:
        yield path, state


def assert_same_checkpoint(found, expected):
    first, second = (
        dict(leaves(torch.load(folder / "checkpoint.pt", weights_only=True))) for folder in (found, expected)
    )
    assert first.keys() == second.keys()
    assert any(path.startswith("/ema/shadow") for path in first) and any("momentum" in path for path in first)
    for path, value in first.items():
        same = torch.equal(value, second[path]) if isinstance(value, torch.Tensor) else value == second[path]
        assert same, path


def test_resumed_is_bit_for_bit_the_run_that_was_not_stopped(trained, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    dit.train(dit_config(trained[0], whole, steps=14), resume=False, report=silent)
    dit.train(dit_config(trained[0], parts, steps=6), resume=False, report=silent)
    dit.train(dit_config(trained[0], parts, steps=14), resume=True, report=silent)
    state = torch.load(whole / "checkpoint.pt", weights_only=True)
    assert state["data"][0]["round"] >= 1  # the comparison covers a change of the data window
    assert_same_checkpoint(parts, whole)


def test_the_autoencoder_resumes_bit_for_bit(tmp_path):
    def config(name, steps):
        loop, optim = dataclasses.replace(LOOP, steps=steps), OptimConfig(adam_lr=5e-4, muon_lr=0.005)
        return AutoencoderConfig(
            out=str(tmp_path / name), arch=ARCH, loop=loop, optim=optim, data=PHASE, batch_pixels=30_000
        )

    autoencoder.train(config("whole", 6), resume=False, report=silent)
    autoencoder.train(config("parts", 3), resume=False, report=silent)
    autoencoder.train(config("parts", 6), resume=True, report=silent)
    assert_same_checkpoint(tmp_path / "parts", tmp_path / "whole")


def test_an_autoencoder_begins_from_another(trained, tmp_path):
    config = AutoencoderConfig(
        out=str(tmp_path / "next"), arch=ARCH, loop=dataclasses.replace(LOOP, steps=1), optim=OptimConfig(adam_lr=0.0),
        data=PHASE, batch_pixels=30_000, init_from=str(trained[0]),
    )  # fmt: skip
    autoencoder.train(config, resume=False, report=silent)
    first, second = (autoencoder.load_autoencoder(folder) for folder in (trained[0], tmp_path / "next"))
    torch.testing.assert_close(second.state_dict(), first.state_dict(), rtol=1e-5, atol=1e-6)
    loop = dataclasses.replace(LOOP, steps=4)  # among them a clip, for the layers that look back in time
    half = dataclasses.replace(
        config, out=str(tmp_path / "half"), loop=loop, optim=OptimConfig(adam_lr=1e-3), decoder_only=True
    )
    autoencoder.train(half, resume=False, report=silent)
    third = autoencoder.load_autoencoder(tmp_path / "half")
    assert third.config == first.config
    same = {name for name, value in third.state_dict().items() if torch.equal(value, first.state_dict()[name])}
    assert same == {name for name in first.state_dict() if name.startswith(("encoder.", "conv1."))}
    with pytest.raises(CheckpointError, match="other parameters free"):
        autoencoder.train(dataclasses.replace(half, decoder_only=False), resume=True, report=silent)
    other = dataclasses.replace(config, out=str(tmp_path / "other"), arch=dataclasses.replace(ARCH, z_dim=12))
    with pytest.raises(CheckpointError, match="its z_dim is 8, and this config's \\[arch\\] has 12"):
        autoencoder.train(other, resume=False, report=silent)
    assert not (tmp_path / "other").exists()


def test_a_transformer_begins_from_another(trained, tmp_path):
    config = dit_config(trained[0], tmp_path / "first", steps=1)
    dit.train(config, resume=False, report=silent)
    model = tmp_path / "first" / "model"
    start = dit.build(dataclasses.replace(config, init_from=str(model)))
    expected = WanCheckpoint.open(model).load_dit(dtype=torch.float32).state_dict()
    torch.testing.assert_close(start.dit.state_dict(), expected)
    wide = dataclasses.replace(config, init_from=str(model), arch=dataclasses.replace(config.arch, text_ffn=48))
    with pytest.raises(CheckpointError, match="its text encoder is of another size"):
        dit.build(wide)
    notes = []
    deep = dataclasses.replace(config, init_from=str(model), arch=dataclasses.replace(config.arch, num_layers=4))
    assert config.arch.num_layers < 4 and len(dit.build(deep, note=notes.append).dit.blocks) == 4
    assert len(notes) == 1 and "deepened to 4" in notes[0]
    with pytest.raises(CheckpointError, match="of another size than this config's"):
        dit.build(dataclasses.replace(deep, arch=dataclasses.replace(config.arch, ffn_dim=48)))
    with pytest.raises(CheckpointError, match="no channel that keeps the padding out"):
        dit.build(dataclasses.replace(config, init_from=str(without_guards(model, tmp_path / "free"))))


def test_a_transformer_learns_from_another_than_it_began_as(trained, tmp_path):
    config = dit_config(trained[0], tmp_path / "first", steps=1)
    dit.train(config, resume=False, report=silent)
    model, other = tmp_path / "first" / "model", tmp_path / "other"
    shutil.copytree(model, other)
    file = other / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors, _ = load_tensors(file)
    save_tensors({name: value + 1 for name, value in tensors.items()}, file)

    def built(teacher):
        return dit.build(dataclasses.replace(config, init_from=str(model), distil=DistilConfig(teacher=teacher)))

    def weights(folder):
        return WanCheckpoint.open(folder).load_dit(dtype=torch.float32).state_dict()

    for teacher, source in (("", model), (str(other), other)):
        models = built(teacher)
        torch.testing.assert_close(models.dit.state_dict(), weights(model))
        torch.testing.assert_close(models.teacher.dit.state_dict(), weights(source))
        assert not any(each.requires_grad for each in models.teacher.dit.parameters())
    for key, wrong in (
        ("init_from", {"init_from": "none"}),
        ("[distil] teacher", {"distil": DistilConfig(teacher="none")}),
    ):
        with pytest.raises(CheckpointError, match=re.escape(f"{key} = 'none': must be a diffusers folder")):
            dit.build(dataclasses.replace(config, **{"init_from": str(model), **wrong}))
    file = other / "text_encoder" / "model.safetensors"
    tensors, _ = load_tensors(file)
    save_tensors({name: value * 1.5 for name, value in tensors.items()}, file)
    with pytest.raises(CheckpointError, match="its text encoder is not that of init_from"):
        built(str(other))


def without_guards(model, out):
    """A copy of a model's folder whose first block's query norm is an ordinary one."""
    shutil.copytree(model, out)
    file = out / "transformer" / "diffusion_pytorch_model.safetensors"
    tensors, _ = load_tensors(file)
    tensors["blocks.0.attn2.norm_q.weight"] = torch.ones_like(tensors["blocks.0.attn2.norm_q.weight"])
    save_tensors(tensors, file)
    return out


def train_in_processes(rank, folder, runs):
    """One of two processes that train the runs (config, resume), one after the other."""
    torch.set_num_threads(1)
    dit.sample_sheet = silent
    for number, (config, resume) in enumerate(runs):
        meeting = f"file://{folder}/meet-{number}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
        dit.train(config, resume=resume, report=silent)


def test_two_processes_resume_bit_for_bit(trained, tmp_path, monkeypatch):
    """Each has data of its own, and is at another place of it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    whole, parts = (dit_config(trained[0], tmp_path / name, steps=9) for name in ("whole", "parts"))
    first = dit_config(trained[0], tmp_path / "parts", steps=5)
    runs = [(whole, False), (first, False), (parts, True)]
    torch.multiprocessing.spawn(train_in_processes, (str(tmp_path), runs), nprocs=2)
    state = torch.load(tmp_path / "whole" / "checkpoint.pt", weights_only=True)
    assert len(state["data"]) == 2
    assert_same_checkpoint(tmp_path / "parts", tmp_path / "whole")
    monkeypatch.delenv("WORLD_SIZE")
    with pytest.raises(CheckpointError, match="was written by 2 processes, not 1"):
        dit.train(parts, resume=True, report=silent)


def test_the_exported_model_draws_the_sheet(trained, tmp_path):
    dit.train(dit_config(trained[0], tmp_path / "run", steps=1), resume=False, report=silent)
    sheet = tmp_path / "sheet.png"
    prompts = ("a red ball moving right", "a blue square")
    where = {"device": torch.device("cpu"), "dtype": torch.float32}
    REAL_SHEET(tmp_path / "run" / "model", sheet, prompts=prompts, **where)
    found = probe(sheet)
    assert (found.width, found.height) == (5 * (192 + 4), 2 * (128 + 4))


def test_a_run_is_not_overwritten(trained, tmp_path):
    config = dit_config(trained[0], tmp_path / "run", steps=1)
    dit.train(config, resume=False, report=silent)
    with pytest.raises(CheckpointError, match="holds a run already; pass --resume"):
        dit.train(config, resume=False, report=silent)


def test_a_checkpoint_of_something_else_is_refused(trained, tmp_path):
    out = tmp_path / "run"
    config = dit_config(trained[0], out, steps=1)
    dit.train(config, resume=False, report=silent)
    without = dataclasses.replace(config, optim=OptimConfig(adam_lr=3e-3))
    with pytest.raises(CheckpointError, match="was trained with Muon"):
        dit.train(without, resume=True, report=silent)
    (out / "checkpoint.pt").write_bytes((trained[0] / "checkpoint.pt").read_bytes())
    with pytest.raises(CheckpointError, match="is not of this config's architecture"):
        dit.train(config, resume=True, report=silent)
    (out / "checkpoint.pt").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: cannot be read"):
        dit.train(config, resume=True, report=silent)


def test_a_cached_shard_of_other_settings_is_made_anew(trained, tmp_path):
    config = dit_config(trained[0], tmp_path / "run")

    def shapes(config):
        return [example.latents.shape for example in dit.prepare(config, dit.build(config))[1].shards.load(0)]

    first = shapes(config)
    assert shapes(config) == first
    images = dataclasses.replace(config, phase=(dataclasses.replace(PHASE, images=1.0),))
    assert {shape[1] for shape in shapes(images)} == {1} != {shape[1] for shape in first}


@pytest.mark.parametrize("able", [True, False])
def test_a_processor_without_bfloat16_computes_in_float32_and_it_is_said(trained, tmp_path, monkeypatch, able):
    monkeypatch.setattr(loop, "multiplies", lambda *_: able)
    losses, said = [], []

    def loss(*given, **_):
        losses.append(next(each for each in given if hasattr(each, "loop")).loop.bf16)
        raise ZeroDivisionError

    for place in (dit, dry_run):
        monkeypatch.setattr(place, "pack_loss", loss)
    monkeypatch.setattr(autoencoder, "reconstruction_loss", loss)
    coder = AutoencoderConfig(out=str(tmp_path / "vae"), arch=ARCH, loop=LOOP, data=PHASE, batch_pixels=60_000)
    transformer = dit_config(trained[0], tmp_path / "dit")
    for train in (
        lambda: autoencoder.train(coder, resume=False, report=silent, note=said.append),
        lambda: dry_run_autoencoder.dry_run(coder, note=said.append),
        lambda: dit.train(transformer, resume=False, report=silent, note=said.append),
        lambda: dry_run.dry_run(transformer, note=said.append),
    ):
        with pytest.raises(ZeroDivisionError):
            train()
    assert losses == [able] * 4
    assert said == ["bf16 is true, but this processor does not multiply bfloat16: training computes in float32."] * (
        0 if able else 4
    )


def test_nothing_to_resume(trained, tmp_path):
    with pytest.raises(CheckpointError, match=r"has no checkpoint\.pt to resume"):
        dit.train(dit_config(trained[0], tmp_path / "none"), resume=True, report=silent)
    config = dit_config(tmp_path / "no-autoencoder", tmp_path / "none")
    with pytest.raises(CheckpointError, match="no-autoencoder"):
        dit.train(config, resume=False, report=silent)
    if not torch.cuda.is_available():
        config = dit_config(trained[0], tmp_path / "none", device="cuda")
        with pytest.raises(UsageError, match="device is 'cuda': PyTorch finds none"):
            dit.train(config, resume=False, report=silent)
    assert not (tmp_path / "none").exists()


def test_levels_are_logit_normal_and_shifted():
    sigmas = sample_sigmas(4000, mean=0.0, std=1.0, shift=3.0, generator=torch.Generator().manual_seed(0))
    assert sigmas.min() > 0 and sigmas.max() < 1
    assert float(sigmas.median()) == pytest.approx(0.75, abs=0.005)  # 3 * 0.5 / (1 + 2 * 0.5)


def test_a_share_of_the_levels_is_nearly_noise():
    draw = dict(mean=0.0, std=1.0, shift=1.0)
    sigmas = sample_sigmas(4000, **draw, generator=torch.Generator().manual_seed(0), noise_share=0.1)
    usual = sample_sigmas(4000, **draw, generator=torch.Generator().manual_seed(0))
    assert float((usual > 0.98).float().mean()) < 0.001
    nearly = sigmas[sigmas > 0.98]
    assert len(nearly) / len(sigmas) == pytest.approx(0.1, abs=0.001)
    assert float((nearly > 0.9975).float().mean()) == pytest.approx(0.5, abs=0.01) and float(nearly.max()) <= 1
    assert float(sigmas[sigmas <= 0.98].mean()) == pytest.approx(0.5, abs=0.005)


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


def test_text_has_a_rate_of_its_own():
    blocks = torch.nn.ModuleDict({"blocks": torch.nn.Linear(4, 4), "text_embedding": torch.nn.Linear(4, 4)})
    encoder = torch.nn.Linear(4, 4)
    text = [*encoder.parameters(), *blocks["text_embedding"].parameters()]
    muon, adam = build_optimizers(
        [blocks, encoder], muon_lr=0.02, adam_lr=2e-3, weight_decay=0.0, text=text, text_lr=2e-4
    )
    rates = {
        id(p): group["initial_lr"]
        for optimizer in (muon, adam)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert [rates[id(p)] for p in text] == [2e-4] * 4
    assert (rates[id(blocks["blocks"].weight)], rates[id(blocks["blocks"].bias)]) == (0.02, 2e-3)
    assert len(rates) == 6


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
