"""LoRA files: read by their headers, merged while a model is loaded, refused in one sentence where they do not fit."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dit_video.checkpoints.files import save_tensors
from dit_video.checkpoints.headers import read_header
from dit_video.checkpoints.lora import METADATA, describe, read_lora, save_lora
from dit_video.errors import CheckpointError
from dit_video.models.wan.layouts import DIFFUSERS
from dit_video.models.wan.pipeline import WanCheckpoint
from tests.tiny import tiny_experts_folder, tiny_wan21_folder

LAYER, OURS = "blocks.0.attn1.to_q", "blocks.0.self_attn.q.weight"
WIDTH, RANK = 32, 3  # WIDTH of the tiny models


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WanCheckpoint:
    return WanCheckpoint.open(tiny_wan21_folder(tmp_path_factory.mktemp("wan") / "model"))


def factors(layer: str = LAYER, prefix: str = "transformer.", width: int = WIDTH) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(5)
    down, up = (torch.randn(size, generator=generator) for size in ((RANK, width), (width, RANK)))
    return {f"{prefix}{layer}.lora_A.weight": down, f"{prefix}{layer}.lora_B.weight": up}


def write(folder: Path, tensors: dict[str, Tensor], **config: object) -> Path:
    file = folder / "lora.safetensors"
    save_tensors(tensors, file, metadata={METADATA: json.dumps(config)} if config else None)
    return file


def change(model: WanCheckpoint, *loras: tuple[Path, float]) -> Tensor:
    """What is added to the weight `OURS`."""
    with_loras = model.with_loras([read_lora(file, strength) for file, strength in loras])
    before, after = (each.load_dit(dtype=torch.float32).state_dict() for each in (model, with_loras))
    assert [name for name in before if not torch.equal(before[name], after[name])] == [OURS]
    return after[OURS] - before[OURS]


def product(tensors: dict[str, Tensor]) -> Tensor:
    down, up = tensors.values()
    return up @ down


def test_strength_and_prefix(model: WanCheckpoint, tmp_path: Path) -> None:
    for prefix in ("transformer.", ""):
        file = write(tmp_path, factors(prefix=prefix))
        torch.testing.assert_close(change(model, (file, 0.5)), 0.5 * product(factors()), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            change(model, (file, 1.0), (file, -0.5)), 0.5 * product(factors()), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"lora_alpha": 6, "r": 3}, 2.0),
        ({"lora_alpha": 6, "r": 3, "use_rslora": True}, 6 / 3**0.5),
        ({"lora_alpha": 6, "alpha_pattern": {"attn1.to_q": 12}}, 4.0),
        ({"lora_alpha": 6, "alpha_pattern": {"to_k": 12, "q": 12}}, 2.0),
    ],
)
def test_the_scale_is_that_of_peft(model: WanCheckpoint, tmp_path: Path, config: dict, scale: float) -> None:
    file = write(tmp_path, factors(), **{f"transformer.{key}": value for key, value in config.items()})
    torch.testing.assert_close(change(model, (file, 1.0)), scale * product(factors()), rtol=1e-4, atol=1e-5)


def test_the_sum_is_in_float32_and_then_cast(tmp_path: Path) -> None:
    folder = tiny_wan21_folder(tmp_path / "model", dtype=torch.bfloat16)
    tensors = {name: 1e-2 * value for name, value in factors().items()}
    checkpoint, lora = WanCheckpoint.open(folder), read_lora(write(tmp_path, tensors))
    before = checkpoint.load_dit(dtype=torch.bfloat16).state_dict()[OURS]
    after = checkpoint.with_loras([lora]).load_dit(dtype=torch.bfloat16).state_dict()[OURS]
    assert torch.equal(after, torch.addmm(before.float(), *[*tensors.values()][::-1]).bfloat16())


def test_what_is_saved_is_what_is_read(model: WanCheckpoint, tmp_path: Path) -> None:
    down, up = factors().values()
    save_lora({OURS: (down, up)}, tmp_path / "saved.safetensors", DIFFUSERS)
    assert read_header(tmp_path / "saved.safetensors").keys() == factors().keys()
    torch.testing.assert_close(
        change(model, (tmp_path / "saved.safetensors", 1.0)), product(factors()), rtol=1e-4, atol=1e-5
    )


REFUSED: dict[str, tuple[dict[str, Tensor], str]] = {
    "no tensors": ({}, "holds no tensors"),
    "other keys": (
        {**factors(), **{f"transformer.{name}.dora_scale": torch.ones(1) for name in "abcd"}},
        "4 tensors are no part of a LoRA that is known: 'transformer.a.dora_scale', 'transformer.b.dora_scale', "
        "'transformer.c.dora_scale', ...",
    ),
    "no LoRA at all": ({"weight": torch.ones(2)}, "1 tensor is no part of a LoRA that is known: 'weight'"),
    "one factor": (dict([*factors().items()][:1]), f"layer '{LAYER}' has one factor of two"),
    "no product": (
        {**factors(), f"transformer.{LAYER}.lora_A.weight": torch.ones(2, WIDTH)},
        r"\[32, 3\] and \[2, 32\], which have no product",
    ),
    "whole numbers": (
        {name: value.to(torch.int32) for name, value in factors().items()},
        "is I32; it must be one of F64, F32, F16, BF16",
    ),
    "another width": (
        factors(width=48),
        f"is a LoRA of another model: it changes '{LAYER}' as a matrix of 48x48, and this model's is 32x32",
    ),
    "more blocks": (
        factors() | factors("blocks.2.attn1.to_q") | factors("blocks.2.attn1.add_k"),
        "is a LoRA of another model: 2 layers are not in this one: 'blocks.2.attn1.add_k', 'blocks.2.attn1.to_q'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_fit_is_named(model: WanCheckpoint, tmp_path: Path, name: str) -> None:
    tensors, said = REFUSED[name]
    with pytest.raises(CheckpointError, match=said) as error:
        model.with_loras([read_lora(write(tmp_path, tensors))])
    assert str(error.value).startswith(f"{tmp_path / 'lora.safetensors'}: ") and str(error.value).endswith(".")


@pytest.mark.parametrize(
    "config", ["[", "[1]", '{"transformer.lora_alpha": "much"}', '{"transformer.alpha_pattern": 3}']
)
def test_damaged_metadata(tmp_path: Path, config: str) -> None:
    save_tensors(factors(), tmp_path / "lora.safetensors", metadata={METADATA: config})
    with pytest.raises(CheckpointError, match=f"its {METADATA} is damaged"):
        read_lora(tmp_path / "lora.safetensors")


def test_a_truncated_file(tmp_path: Path) -> None:
    file = write(tmp_path, factors())
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="is cut short"):
        read_lora(file)


def test_two_experts_each_have_what_fits(tmp_path: Path) -> None:
    checkpoint = WanCheckpoint.open(tiny_experts_folder(tmp_path / "model"))
    lora = read_lora(write(tmp_path, factors()), 0.5)
    both = checkpoint.with_loras([lora])
    assert describe(both.loras[0], transformers=2).endswith("merged at strength 0.5 into 1 layer of both transformers")
    for which in ("transformer", "transformer_2"):
        before, after = (each.load_dit(which, dtype=torch.float32).state_dict()[OURS] for each in (checkpoint, both))
        torch.testing.assert_close(after - before, 0.5 * product(factors()), rtol=1e-4, atol=1e-5)
