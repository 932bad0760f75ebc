"""Wan folders: what headers and configs say, what is refused and how, and folders of ours that diffusers opens."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import UMT5EncoderModel

from dit_video.errors import CheckpointError
from dit_video.models import open_checkpoint
from dit_video.models.wan.layouts import config_to_diffusers
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.models.wan.save import save_folder
from dit_video.models.wan.vae_layouts import diffusers_config
from dit_video.models.wan.variants import VARIANTS
from dit_video.shapes import Grid
from dit_video.text.image_files import Preparation
from tests.tiny import (
    tiny_experts_folder,
    tiny_i2v_experts_folder,
    tiny_i2v_folder,
    tiny_ti2v_folder,
    tiny_wan21_folder,
)

PARTS = {
    "wan21": tiny_wan21_folder,
    "ti2v": tiny_ti2v_folder,
    "experts": tiny_experts_folder,
    "i2v": tiny_i2v_folder,
    "flf2v": partial(tiny_i2v_folder, last=True),
    "i2v experts": tiny_i2v_experts_folder,
}
HERE: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
DEFAULTS = {
    "size": "64x48",
    "frames": 9,
    "fps": 12.5,
    "steps": 4,
    "guidance": [3],
    "negative": "blurry",
    "shift": 2.5,
    "solver": "euler",
    "sigmas": "diffusers",
    "knows": {"shapes": ["ball"]},
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of each form, as diffusers wrote it; not to be changed."""
    root = tmp_path_factory.mktemp("tiny")
    return {name: write(root / name) for name, write in PARTS.items()}


@pytest.fixture
def folder(tiny: dict[str, Path], tmp_path: Path) -> Path:
    """A Wan 2.1 folder to damage."""
    return Path(shutil.copytree(tiny["wan21"], tmp_path / "wan"))


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps((json.loads(file.read_text()) if file.exists() else {}) | changes))


def test_description_from_headers_alone(tiny: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dit_video.checkpoints.load.Stored", lambda *_, **__: pytest.fail("weights were read"))
    wan21, ti2v = open_checkpoint(tiny["wan21"]), open_checkpoint(tiny["ti2v"])
    assert (wan21.family, wan21.layout, wan21.variant) == ("wan", "diffusers", "custom")
    assert (wan21.grid, wan21.latent_channels) == (Grid(stride=(4, 8, 8)), 16)
    assert (ti2v.grid, ti2v.latent_channels) == (Grid(stride=(4, 16, 16)), 12)
    assert (wan21.expand_timesteps, ti2v.expand_timesteps) == (False, True)
    assert wan21.boundary is ti2v.boundary is None
    assert (wan21.defaults.shift, wan21.defaults.solver, wan21.defaults.sigmas) == (3.0, "unipc", "release")


@pytest.mark.parametrize("form", PARTS)
def test_parameters_are_those_of_the_loaded_modules(tiny: dict[str, Path], form: str) -> None:
    checkpoint = open_checkpoint(tiny[form])
    modules = {"vae": checkpoint.load_vae(**HERE), "text_encoder": checkpoint.load_text(**HERE).module}
    if checkpoint.sees_images:
        modules["image_encoder"] = checkpoint.load_images(**HERE).module
    modules |= {part: checkpoint.load_dit(part, **HERE) for part in checkpoint.components if part.startswith("trans")}
    assert set(checkpoint.components) == set(modules)
    for part, module in modules.items():
        summary = checkpoint.components[part]
        assert summary.parameters == sum(p.numel() for p in module.parameters())
        assert (summary.nbytes, summary.dtypes) == (4 * summary.parameters, ("float32",))


@pytest.mark.parametrize(
    ("form", "known"),
    [
        ("wan21", "none"),
        ("ti2v", "first"),
        ("i2v", "first"),
        ("flf2v", "first and last"),
        ("i2v experts", "first or both"),
    ],
)
def test_frames_that_may_be_given(tiny: dict[str, Path], form: str, known: str) -> None:
    checkpoint = open_checkpoint(tiny[form])
    assert checkpoint.known_frames == known
    assert checkpoint.beside == form.endswith(("2v", "i2v experts")) - (form == "ti2v")
    assert checkpoint.latent_channels == checkpoint.dit.out_dim


def test_image_encoders_that_do_not_fit_are_refused(tiny: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny["flf2v"], tmp_path / "wan"))
    tensors = load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")
    unused = {f"blocks.{i}.attn2.norm_added_q.weight": torch.ones(32) for i in range(2)}  # of early conversions
    save_file(tensors | unused, folder / "transformer" / "diffusion_pytorch_model.safetensors")
    open_checkpoint(folder).load_dit(**HERE)
    config, processor = (
        folder / "image_encoder" / "config.json",
        folder / "image_processor" / "preprocessor_config.json",
    )
    for file, change, message in (
        (config, {"hidden_size": 24}, r"hidden_size is 24; the transformer's image_dim is 20"),
        (config, {"patch_size": 7}, r"positions for 10 rows; two pictures of the image encoder have 34"),
        (config, {"model_type": "siglip"}, r"model_type is 'siglip'; it must be 'clip_vision_model'"),
        (processor, {"crop_size": 20}, r"takes pictures of 28x28, and preprocessor_config\.json makes them 20x20"),
    ):
        before = file.read_text()
        edit_json(file, **change)
        with pytest.raises(CheckpointError, match=message):
            open_checkpoint(folder)
        file.write_text(before)


def test_how_pictures_are_prepared_may_be_said_elsewhere_or_not_at_all(tiny: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny["i2v"], tmp_path / "wan"))
    usual = open_checkpoint(folder).images
    file = folder / "image_processor" / "preprocessor_config.json"
    edit_json(file.with_name("processor_config.json"), image_processor=json.loads(file.read_text()))
    file.unlink()
    assert usual is not None and open_checkpoint(folder).images == usual
    shutil.rmtree(file.parent)
    assert open_checkpoint(folder).images == replace(usual, preparation=Preparation(size=(28, 28)))


def test_two_experts(tiny: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(tiny["experts"])
    assert checkpoint.boundary == 0.875
    high, low = (checkpoint.load_dit(which, **HERE).head.head.weight for which in ("transformer", "transformer_2"))
    for weight, which in ((high, "transformer"), (low, "transformer_2")):
        stored = load_file(tiny["experts"] / which / "diffusion_pytorch_model.safetensors")["proj_out.weight"]
        assert torch.equal(weight, stored)
    assert not torch.equal(high, low)


def test_lower_precision_keeps_what_is_computed_in_float32(tiny: dict[str, Path]) -> None:
    dit = open_checkpoint(tiny["wan21"]).load_dit(dtype=torch.bfloat16)
    full = {name for name, p in dit.named_parameters() if p.dtype == torch.float32}
    assert {"time_embedding.0.weight", "blocks.0.modulation", "blocks.1.norm3.bias", "head.head.weight"} <= full
    assert dit.blocks[0].ffn[0].weight.dtype == dit.patch_embedding.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("name", VARIANTS)
def test_public_models_are_known_by_their_configs(tiny: dict[str, Path], folder: Path, name: str) -> None:
    preset = VARIANTS[name]
    folder = folder.rename(folder.with_name(f"Wan-{name}-Diffusers"))
    edit_json(folder / "transformer" / "config.json", **config_to_diffusers(preset.dit))
    edit_json(folder / "vae" / "config.json", **diffusers_config(preset.vae))
    edit_json(folder / "text_encoder" / "config.json", d_model=preset.dit.text_dim)
    if preset.dit.image_dim is not None:
        shutil.copytree(tiny["i2v"] / "image_encoder", folder / "image_encoder")
        edit_json(folder / "image_encoder" / "config.json", hidden_size=1280, image_size=224)
        (folder / "image_processor").mkdir()
        edit_json(folder / "image_processor" / "preprocessor_config.json")
    if preset.boundary is not None:
        shutil.copytree(folder / "transformer", folder / "transformer_2")
        expert = ["diffusers", "WanTransformer3DModel"]
        edit_json(folder / "model_index.json", transformer_2=expert, boundary_ratio=preset.boundary)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.variant == name
    assert checkpoint.defaults == replace(preset.defaults, shift=3.0)  # the scheduler of the folder says 3


@pytest.mark.parametrize(
    ("scheduler", "solver", "shift"),
    [
        ({"_class_name": "UniPCMultistepScheduler", "flow_shift": 8.0}, "unipc", 8.0),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 5.0}, "euler", 5.0),
        ({"_class_name": "DPMSolverMultistepScheduler", "flow_shift": 3}, "dpmpp-2m", 3.0),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "euler", 1.0),
    ],
)
def test_scheduler_gives_solver_and_shift(folder: Path, scheduler: dict[str, Any], solver: str, shift: float) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    defaults = open_checkpoint(folder).defaults
    assert (defaults.solver, defaults.shift) == (solver, shift)


def test_dvgen_json_comes_before_the_rest(folder: Path) -> None:
    edit_json(folder / "dvgen.json", **DEFAULTS)
    edit_json(folder / "scheduler" / "scheduler_config.json", _class_name="SomethingElse")  # all it says is overridden
    checkpoint = open_checkpoint(folder)
    defaults = checkpoint.defaults
    assert (defaults.width, defaults.height, defaults.frames, defaults.fps) == (64, 48, 9, 12.5)
    assert (defaults.steps, defaults.guidance, defaults.negative) == (4, (3.0,), "blurry")
    assert (defaults.shift, defaults.solver, defaults.sigmas) == (2.5, "euler", "diffusers")
    assert checkpoint.knows == {"shapes": ["ball"]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trained_sides": [64]}, r"trained_sides is \[64\]; it must be a list of two whole numbers"),
        ({"trained_frames": [9, 1]}, r"trained_frames is \[9, 1\]; it must be a list of two whole numbers"),
        ({"step": 4}, r"unknown key 'step'; the known ones are size, frames"),
        ({"steps": "4"}, r"steps is '4'; it must be a whole number"),
        ({"steps": 2.5}, r"steps is 2\.5; it must be a whole number"),
        ({"guidance": 5}, r"guidance is 5; it must be a list"),
        ({"guidance": [1, 2, 3]}, r"guidance is \[1, 2, 3\]; it must be a list of one number, or two"),
        ({"guidance": ["high"]}, r"guidance is \['high'\]; it must be a list"),
        ({"size": "64"}, r"must be WIDTHxHEIGHT"),
        ({"solver": "magic"}, r"solver is 'magic'; it must be one of euler, heun"),
        ({"sigmas": "mine"}, r"sigmas is 'mine'; it must be one of release, diffusers"),
    ],
)
def test_dvgen_json_is_checked(folder: Path, change: dict[str, Any], message: str) -> None:
    edit_json(folder / "dvgen.json", **change)
    with pytest.raises(CheckpointError, match=rf"dvgen\.json: .*{message}"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("model_index.json", {"_class_name": "LTXPipeline"}, r"'LTXPipeline' is not supported; it must be one of Wan"),
        (
            "model_index.json",
            {"transformer_2": ["diffusers", "X"]},
            r"need a boundary_ratio in model_index\.json, not None",
        ),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "DDIM"},
            r"the scheduler 'DDIM' is not supported; it must be",
        ),
        ("transformer/config.json", {"in_channels": 33}, r"takes 33 channels and gives 16; it must give the VAE's 16"),
        (
            "transformer/config.json",
            {"text_dim": 32},
            r"the text encoder's d_model is 24; the transformer's text_dim is 32",
        ),
        ("transformer/config.json", {"_class_name": "Other"}, r"'Other'"),
    ],
)
def test_what_does_not_fit_is_refused(folder: Path, file: str, change: dict[str, Any], message: str) -> None:
    edit_json(folder / file, **change)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    "file",
    [
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "scheduler/scheduler_config.json",
    ],
)
def test_missing_and_damaged_files_are_named(folder: Path, file: str) -> None:
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=rf"{file}: .*(is not JSON|is cut short)"):
        open_checkpoint(folder)
    (folder / file).unlink()
    with pytest.raises(CheckpointError, match=rf"{file.rpartition('/')[0]}.*({Path(file).name}).*"):
        open_checkpoint(folder)


@pytest.mark.parametrize(("part", "name"), [("transformer", "blocks.1.attn2.to_k.bias"), ("vae", "quant_conv.bias")])
def test_missing_and_misshaped_tensors_are_named(folder: Path, part: str, name: str) -> None:
    file = folder / part / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    whole = tensors.pop(name)
    load = (lambda: open_checkpoint(folder).load_dit(**HERE)) if part == "transformer" else (
        lambda: open_checkpoint(folder).load_vae(**HERE)
    )  # fmt: skip
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=rf"{part}: 1 tensor is missing: '{name}'\.$"):
        load()
    save_file(tensors | {name: torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=rf"tensor '{name}' is \[3\]; it must be \[{len(whole)}\]\.$"):
        load()
    save_file(tensors | {name: whole, "img_emb.proj": torch.zeros(3)}, file)
    with pytest.raises(CheckpointError, match=r"'img_emb\.proj': 0 rows of the diffusers layout match it"):
        load()


@pytest.mark.parametrize("form", ["wan21", "ti2v"])
def test_saved_folder_opens_here_and_in_diffusers(tiny: dict[str, Path], tmp_path: Path, form: str) -> None:
    from diffusers import WanPipeline

    source = open_checkpoint(tiny[form])
    dit, vae, text = source.load_dit(**HERE), source.load_vae(**HERE), source.load_text(**HERE)
    out = tmp_path / "out"
    for _ in range(2):  # the second replaces the first
        save_folder(
            out,
            dit=dit,
            vae=vae,
            text=UMT5EncoderModel.from_pretrained(tiny[form] / "text_encoder"),
            tokenizer=text.tokenizer,
            defaults={key: value for key, value in DEFAULTS.items() if key not in ("shift", "solver")},
            shift=3.0,
            vae_dtype=torch.float16,
            expand_timesteps=source.expand_timesteps,
        )
    saved = open_checkpoint(out)
    assert (saved.dit, saved.vae, saved.expand_timesteps) == (source.dit, source.vae, source.expand_timesteps)
    assert (saved.defaults.shift, saved.defaults.solver, saved.defaults.steps) == (3.0, "unipc", 4)
    assert [summary.dtypes for summary in saved.components.values()] == [("float32",), ("float16",), ("float32",)]
    assert load_file(out / "transformer" / "diffusion_pytorch_model.safetensors").keys() == (
        load_file(tiny[form] / "transformer" / "diffusion_pytorch_model.safetensors").keys()
    )

    def frames(folder: Path) -> Any:
        pipeline = WanPipeline.from_pretrained(folder)
        pipeline.vae.float()
        pipeline.set_progress_bar_config(disable=True)
        seed = torch.Generator("cpu").manual_seed(5)
        return pipeline(
            "a red ball", height=32, width=32, num_frames=5, num_inference_steps=2, generator=seed, output_type="pt"
        ).frames

    theirs, ours = frames(tiny[form]), frames(out)
    assert theirs.std() > 0.1
    assert (theirs - ours).abs().max() < 0.02  # the VAE was rounded to float16


def test_interrupted_save_leaves_the_old_folder(tiny: dict[str, Path], folder: Path, monkeypatch) -> None:
    source = open_checkpoint(tiny["wan21"])
    text = source.load_text(**HERE)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dit_video.models.wan.save.save_tokenizer", interrupted)
    module = UMT5EncoderModel.from_pretrained(tiny["wan21"] / "text_encoder")
    parts = {"dit": source.load_dit(**HERE), "vae": source.load_vae(**HERE), "text": module}
    with pytest.raises(KeyboardInterrupt):
        save_folder(folder, **parts, tokenizer=text.tokenizer, defaults={}, shift=1.0)
    assert WanCheckpoint.open(folder).components == source.components
    assert list(folder.parent.iterdir()) == [folder]
