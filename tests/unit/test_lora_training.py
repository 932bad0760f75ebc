"""Training of a LoRA on a tiny checkpoint of the public form: it learns, the checkpoint stays as it is, a resumed run
is bit for bit the one that was not stopped, and the text encoder is loaded for new captions only.
"""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch

from dit_video.checkpoints.headers import read_header
from dit_video.checkpoints.lora import FILE, read_lora
from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.errors import CheckpointError, DvgenError
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.scenes.files import write_scenes
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from dit_video.text.encoders import TextEncoder
from dit_video.train import dit
from dit_video.train.config import DiTArch, DiTTrainConfig, FilesConfig, LoopConfig, OptimConfig, PhaseConfig
from dit_video.train.dry_run import dry_run
from dit_video.train.seeding import numpy_generator, torch_generator
from tests.tiny import tiny_experts_folder, tiny_ti2v_folder, tiny_wan21_folder
from tests.unit.test_training import leaves

CPU = torch.device("cpu")
REAL_SHEET = dit.draw_sheet


def silent(*_, **__):
    pass


@pytest.fixture(autouse=True)
def no_sheets(monkeypatch):
    monkeypatch.setattr(dit, "draw_sheet", silent)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_wan21_folder(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files") / "clips"
    [*write_scenes(folder, 6, 1, size=(48, 32), num_frames=5)]
    return folder


def config(model, out, **changes):
    loop = {"steps": 8, "bf16": False} | {
        name: changes.pop(name) for name in ("steps", "bf16", "device") if name in changes
    }
    values = {
        "out": str(out),
        "autoencoder": str(model),
        "init_from": str(model),
        "lora": 4,
        "loop": LoopConfig(warmup=1, log_every=2, ema=0.9, threads=1, sheet_minutes=1e9, **loop),
        "optim": OptimConfig(adam_lr=5e-3),
        "phase": (PhaseConfig(images=0.5, short_side=(32, 48), frames=(5, 9)),),
        "shard_clips": 12,
        "window": 2,
        "pack_tokens": 96,
        "known_share": 0.0,
    }
    return DiTTrainConfig(**values | changes)


def digests(folder):
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@torch.no_grad()
def loss(models, packs, config):
    """The same clips, noise and captions every time."""
    each = [
        dit.pack_loss(models, pack, config, numpy_generator(1, 0, n), torch_generator(1, 0, n))
        for n, pack in enumerate(packs)
    ]
    return float(torch.stack(each).mean())


def test_the_loss_falls_and_the_checkpoint_stays(model, tmp_path, monkeypatch):
    built = []
    real = dit.build
    monkeypatch.setattr(dit, "build", lambda *args: built.append(real(*args)) or built[-1])
    before = digests(model)
    wanted = config(model, tmp_path / "run", steps=60)
    dit.train(wanted, resume=False, report=silent)
    assert digests(model) == before

    (models,) = built
    expected = WanCheckpoint.open(model).load_dit(dtype=torch.float32).state_dict()
    found = models.dit.state_dict()
    assert found.keys() == expected.keys()  # the factors are not in it
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert not any(p.requires_grad for p in models.dit.parameters())

    fresh = real(wanted)
    stream = dit.prepare(dataclasses.replace(wanted, out=str(tmp_path / "other")), fresh)[1]
    packs = [stream.next() for _ in range(6)]
    assert loss(models, packs, wanted) < 0.8 * loss(fresh, packs, wanted)


def test_every_linear_layer_of_the_blocks_has_factors(model, tmp_path):
    dit.train(config(model, tmp_path / "run", steps=1), resume=False, report=silent)
    lora = read_lora(tmp_path / "run" / "lora" / FILE)
    attention = [f"{attn}.{layer}" for attn in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")]
    layers = {f"blocks.{block}.{layer}" for block in range(2) for layer in (*attention, "ffn.net.0.proj", "ffn.net.2")}
    assert {change.layer for change in lora.changes} == layers
    assert {each.change.down.shape[0] for each in lora.changes} == {4}


def checkpoint_of(folder):
    return dict(leaves(torch.load(folder / "checkpoint.pt", weights_only=True)))


def assert_same_checkpoint(found, expected):
    first, second = checkpoint_of(found), checkpoint_of(expected)
    assert first.keys() == second.keys()
    assert any(path.startswith("/ema/shadow") for path in first) and any("exp_avg" in path for path in first)
    for path, value in first.items():
        same = torch.equal(value, second[path]) if isinstance(value, torch.Tensor) else value == second[path]
        assert same, path


@pytest.mark.parametrize("bf16", [False, True])
def test_resumed_is_bit_for_bit_the_run_that_was_not_stopped(model, tmp_path, bf16):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    dit.train(config(model, whole, steps=10, bf16=bf16), resume=False, report=silent)
    dit.train(config(model, parts, steps=4, bf16=bf16), resume=False, report=silent)
    dit.train(config(model, parts, steps=10, bf16=bf16), resume=True, report=silent)
    assert_same_checkpoint(parts, whole)
    assert (parts / "lora" / FILE).read_bytes() == (whole / "lora" / FILE).read_bytes()
    modules = {path.split("/")[2] for path in checkpoint_of(whole) if path.startswith("/modules/")}
    assert modules == {"lora"}  # the checkpoint's weights are not stored again


def in_processes(rank, folder, runs):
    torch.set_num_threads(1)
    dit.draw_sheet = silent
    for number, (config, resume) in enumerate(runs):
        meeting = f"file://{folder}/meet-{number}"
        torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
        dit.train(config, resume=resume, report=silent)


def test_two_processes_resume_bit_for_bit(model, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    whole, parts = (config(model, tmp_path / name, steps=6) for name in ("whole", "parts"))
    runs = [(whole, False), (config(model, tmp_path / "parts", steps=3), False), (parts, True)]
    torch.multiprocessing.spawn(in_processes, (str(tmp_path), runs), nprocs=2)
    assert_same_checkpoint(tmp_path / "parts", tmp_path / "whole")


def on_files(model, clips, out, **changes):
    return config(
        model, out, files=FilesConfig(folders=(str(clips),), validation=0.3, max_frames=5), shard_clips=6, **changes
    )


def test_the_text_encoder_is_loaded_for_new_captions_only(model, clips, tmp_path, monkeypatch):
    loaded, real = [], WanCheckpoint.load_text
    monkeypatch.setattr(WanCheckpoint, "load_text", lambda self, **how: loaded.append(self) or real(self, **how))
    out = tmp_path / "run"
    dit.train(on_files(model, clips, out, steps=2), resume=False, report=silent)
    assert len(loaded) == 1
    assert "validation_loss" in (out / "log.jsonl").read_text()
    cached = sorted((out / "text").rglob("*.pt"))
    assert cached and not [*(out / "text").rglob("*.part")]

    dit.train(on_files(model, clips, out, steps=4), resume=True, report=silent)
    assert len(loaded) == 1
    cached[0].write_bytes(cached[0].read_bytes()[:-50])  # as no write of ours leaves it
    dit.train(on_files(model, clips, out, steps=12), resume=True, report=silent)
    assert len(loaded) == 2 and torch.load(cached[0], weights_only=True)["embedding"].ndim == 2
    cached[0].unlink()
    dit.train(on_files(model, clips, out, steps=13), resume=True, report=silent)
    assert len(loaded) == 3 and sorted((out / "text").rglob("*.pt")) == cached


def test_embeddings_are_those_of_sampling_and_of_one_encoder(model, tmp_path):
    other = tiny_ti2v_folder(tmp_path / "other")
    captions = ["a red ball", "", "a red ball"]
    for folder in (model, other):
        models = dit.build(config(folder, tmp_path / "run"))
        expected = WanCheckpoint.open(folder).load_text(dtype=torch.float32).encode(captions)
        for _ in range(2):
            found = models.embed(captions)
            for mine, theirs in zip(found, expected, strict=True):
                assert torch.equal(mine, theirs)
    assert len([*(tmp_path / "run" / "text").rglob("*.pt")]) == 4


def test_the_sheet_is_of_the_adapted_model(model, tmp_path, monkeypatch):
    """Its latents are those of the saved file, merged."""
    drawn = []
    monkeypatch.setattr(dit, "draw_sheet", lambda stages, path, prompts: drawn.append((stages, [*prompts])))
    monkeypatch.setattr(dit.EMA, "swap", silent)  # the sheet's stages outlive the average, which is swapped out again
    dit.train(config(model, tmp_path / "run", steps=20), resume=False, report=silent)
    stages, prompts = drawn[-1]
    checkpoint = WanCheckpoint.open(model)
    merged = checkpoint.with_loras([read_lora(tmp_path / "run" / "lora" / FILE)])
    shape = VideoShape(num_frames=5, height=32, width=32)
    clip, settings = Clip(prompt=prompts[0], shape=shape, seed=1), Settings(steps=2, guidance=(2.0,))
    (found,) = sample_latents(stages, [clip], settings)
    again, base = (Stages(each, dtype=torch.float32, device=CPU) for each in (merged, checkpoint))
    for each in (again, base):
        each.embeds |= stages.embeds
    torch.testing.assert_close(found, sample_latents(again, [clip], settings)[0], rtol=1e-4, atol=1e-4)
    assert float((found - sample_latents(base, [clip], settings)[0]).abs().max()) > 0.1


def test_the_sheet_is_drawn(model, tmp_path, monkeypatch):
    monkeypatch.setattr(dit, "draw_sheet", REAL_SHEET)
    dit.train(config(model, tmp_path / "run", steps=1, bf16=True), resume=False, report=silent)
    assert (tmp_path / "run" / "sheet-000001.png").is_file()
    assert not (tmp_path / "run" / "model").exists()


def test_alpha_is_in_the_saved_factors(model, tmp_path):
    for alpha in (None, 8.0):
        models = dit.build(config(model, tmp_path / "run", lora_alpha=alpha))
        for layer in models.lora.adapters.layers.values():
            torch.nn.init.ones_(layer.up)
        models.lora.adapters.save(tmp_path / str(alpha))
    names = read_header(tmp_path / "None" / FILE)
    first, second = (
        WanCheckpoint.open(model).with_loras([read_lora(tmp_path / name / FILE)]).load_dit(dtype=torch.float32)
        for name in ("None", "8.0")
    )
    base = WanCheckpoint.open(model).load_dit(dtype=torch.float32).state_dict()
    assert len(names) == 40
    for name, weight in first.state_dict().items():
        torch.testing.assert_close(2 * (weight - base[name]), second.state_dict()[name] - base[name])


def test_dry_run_counts_what_is_trained_and_leaves_nothing(model, clips, tmp_path):
    found = dry_run(on_files(model, clips, tmp_path / "run"), note=silent)
    per_block = 8 * 4 * (32 + 32) + 2 * 4 * (32 + 48)
    assert found.parameters == 2 * per_block and found.step_seconds > 0
    assert not (tmp_path / "run").exists()


def test_what_does_not_fit_is_refused(model, tmp_path):
    def refused(said, **changes):
        with pytest.raises(DvgenError, match=said):
            dit.train(dataclasses.replace(config(model, tmp_path / "run"), **changes), resume=False, report=silent)
        assert not (tmp_path / "run").exists()

    experts, ti2v = tiny_experts_folder(tmp_path / "experts"), tiny_ti2v_folder(tmp_path / "ti2v")
    refused("has two transformers, and a LoRA can be trained of one only", init_from=str(experts))
    refused(
        "its latents have 12 channels of 4x16x16 pixels, and the transformer of .* takes 16 of 4x8x8",
        autoencoder=str(ti2v),
    )
    refused("none: there is no such file or folder", init_from="none")
    refused(r"its dim is 32, and this config's \[arch\] has 64; with lora leave \[arch\] out", arch=DiTArch(dim=64))


def test_an_interrupted_cache_goes_on(model, tmp_path, monkeypatch):
    """What was embedded before an interruption is not embedded again."""
    texts = dit.build(config(model, tmp_path / "run")).lora.texts
    captions = ["a red ball", "a blue ball", "a green star", "a cat"]
    real, embedded = TextEncoder.encode, []

    def encode(self, prompts, **how):
        if len(embedded) == 2:
            embedded.append("interrupted")
            raise KeyboardInterrupt
        embedded.extend(prompts)
        return real(self, prompts)

    monkeypatch.setattr(TextEncoder, "encode", encode)
    with pytest.raises(KeyboardInterrupt):
        texts.fill(captions)
    assert len([*(tmp_path / "run" / "text").rglob("*.*")]) == 2
    texts.fill(captions)
    assert sorted(set(embedded) - {"interrupted"}) == sorted(captions) and len(embedded) == 5
    assert texts.encoder is None


def test_a_run_of_another_kind_is_not_resumed(model, tmp_path):
    wanted = config(model, tmp_path / "run", steps=1)
    dit.train(wanted, resume=False, report=silent)
    with pytest.raises(CheckpointError, match="is not of this config's architecture"):
        dit.train(dataclasses.replace(wanted, lora=2), resume=True, report=silent)
    with pytest.raises(CheckpointError, match="run: holds a run with a LoRA; resume it with --lora and its rank"):
        dit.train(dataclasses.replace(wanted, lora=0), resume=True, report=silent)
    shutil.rmtree(tmp_path / "run" / "text")
    with pytest.raises(CheckpointError, match="run: holds a run without a LoRA; resume it so"):
        dit.train(wanted, resume=True, report=silent)


def test_known_frames_that_are_new_to_a_model_are_said(model, tmp_path):
    said = []
    dit.build(dataclasses.replace(config(model, tmp_path / "run"), known_share=0.15), None, said.append)
    assert [line for line in said if "was never trained with known frames; known_share = 0" in line]
    dit.build(config(model, tmp_path / "run"), None, said.append)
    ti2v = tiny_ti2v_folder(tmp_path / "ti2v")
    dit.build(dataclasses.replace(config(ti2v, tmp_path / "run"), known_share=0.15), None, said.append)
    assert len(said) == 1


def test_words_that_the_encoder_never_learnt_are_said(tmp_path):
    said = []
    default = Path(dit.__file__).parents[2] / "weights" / "default"
    models = dit.build(config(default, tmp_path / "run"), None, said.append)
    models.embed(["a red ball", "a zebra"])
    models.embed(["a red ball", "a zebra"])
    assert said == ["the text encoder never learnt these words of the captions: 'zebra'."]
    assert json.loads((default / "dvgen.json").read_text())["known_frames"] == "any"
