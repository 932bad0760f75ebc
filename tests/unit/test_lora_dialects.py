"""Namings of LoRA files: each gives what plain arithmetic on the weights gives, and what makes no sense is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dit_video.checkpoints.files import save_tensors
from dit_video.checkpoints.keymap import Layout, Row
from dit_video.checkpoints.lora import PEFT_CONFIG, Lora, describe, describe_left_out, fit, read_lora
from dit_video.checkpoints.lora_dialects import flat
from dit_video.errors import CheckpointError
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.layouts import DIFFUSERS, LAYOUTS, ORIGINAL
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.models.wan.variants import VARIANTS
from tests.tiny import tiny_experts_folder, tiny_wan21_folder

Tensors = dict[str, Tensor]
WIDTH, RANK, STRENGTH = 32, 3, 0.7  # WIDTH of the tiny models
LAYERS = ("blocks.0.self_attn.q", "blocks.1.cross_attn.o", "blocks.1.ffn.2", "time_projection.1", "patch_embedding")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> WanCheckpoint:
    return WanCheckpoint.open(tiny_wan21_folder(tmp_path_factory.mktemp("wan") / "model"))


@pytest.fixture(scope="module")
def weights(model: WanCheckpoint) -> Tensors:
    return dict(model.load_dit(dtype=torch.float32).state_dict())


def write(folder: Path, tensors: Tensors) -> Path:
    save_tensors(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def random(*size: int) -> Tensor:
    seed = sum(n * side for n, side in enumerate(size, start=3))
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def factors(weights: Tensors, layer: str, rank: int = RANK) -> tuple[Tensor, Tensor]:
    """Factors in the shapes that peft gives them: of a convolution's, the second spreads over no pixels."""
    out, *rest = weights[f"{layer}.weight"].shape
    return random(rank, *rest), random(out, rank, *[1 for _ in rest[1:]])


def diffusers(weights: Tensors) -> Tensors:
    found = {}
    for layer in LAYERS:
        name = "transformer." + DIFFUSERS.to_theirs(f"{layer}.weight").removesuffix(".weight")
        found[f"{name}.lora_A.weight"], found[f"{name}.lora_B.weight"] = factors(weights, layer)
    return found


def original(prefix: str, down: str, up: str) -> Callable[[Tensors], Tensors]:
    def names(weights: Tensors) -> Tensors:
        found = {}
        for layer in LAYERS:
            found[f"{prefix}{layer}{down}"], found[f"{prefix}{layer}{up}"] = factors(weights, layer)
        return found

    return names


def kohya(prefix: str, layout: Layout) -> Callable[[Tensors], Tensors]:
    def names(weights: Tensors) -> Tensors:
        found = {}
        for layer in LAYERS:
            flattened = layout.to_theirs(f"{layer}.weight").removesuffix(".weight").replace(".", "_")
            down, up = factors(weights, layer)
            found[f"{prefix}{flattened}.lora_down.weight"], found[f"{prefix}{flattened}.lora_up.weight"] = down, up
        return found

    return names


DOWN_UP = (".lora_down.weight", ".lora_up.weight")
A_B = (".lora_A.weight", ".lora_B.weight")
WRITERS: dict[str, Callable[[Tensors], Tensors]] = {
    "diffusers": diffusers,
    "original, down and up": original("diffusion_model.", *DOWN_UP),
    "original, A and B": original("diffusion_model.", *A_B),
    "in an all-in-one file": original("model.diffusion_model.", *A_B),
    "without a prefix": original("", *DOWN_UP),
    "DiffSynth-Studio": original("", ".lora_A.default.weight", ".lora_B.default.weight"),
    "kohya": kohya("lora_unet_", ORIGINAL),
    "kohya, of diffusers' names": kohya("lora_unet_", DIFFUSERS),
    "kohya, two underscores": kohya("lora_unet__", ORIGINAL),
}


def changes(model: WanCheckpoint, weights: Tensors, file: Path) -> Tensors:
    """What a LoRA adds, by our names of the tensors that it changes."""
    found = model.with_loras([read_lora(file, STRENGTH)]).load_dit(dtype=torch.float32).state_dict()
    return {name: found[name] - before for name, before in weights.items() if not torch.equal(found[name], before)}


def check(found: Tensors, wanted: Tensors) -> None:
    assert found.keys() == wanted.keys()
    for name, change in wanted.items():
        torch.testing.assert_close(found[name], change, rtol=1e-5, atol=1e-5)


def wanted(weights: Tensors, scale: float = 1.0) -> Tensors:
    found = {}
    for layer in LAYERS:
        weight = weights[f"{layer}.weight"]
        down, up = factors(weights, layer)
        found[f"{layer}.weight"] = STRENGTH * scale * (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    return found


@pytest.mark.parametrize("name", WRITERS)
def test_every_naming(model: WanCheckpoint, weights: Tensors, tmp_path: Path, name: str) -> None:
    tensors = WRITERS[name](weights)
    check(changes(model, weights, write(tmp_path, tensors)), wanted(weights))


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "diffusers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64])
def test_alpha(model: WanCheckpoint, weights: Tensors, tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    """A number without an axis, or one of length 1."""
    tensors = WRITERS[name](weights)
    layers = {key.rsplit(".lora", 1)[0] for key in tensors}
    alphas = {f"{layer}.alpha": torch.full((1,) * (n % 2), 6).to(dtype) for n, layer in enumerate(sorted(layers))}
    check(changes(model, weights, write(tmp_path, tensors | alphas)), wanted(weights, scale=6 / RANK))


@pytest.mark.parametrize("prefix", ["diffusion_model.", ""])
def test_whole_differences(model: WanCheckpoint, weights: Tensors, tmp_path: Path, prefix: str) -> None:
    """Of weights (norms too), biases and modulations, beside factors of a layer: alpha is only of the factors."""
    layer = "blocks.1.ffn.0"
    down, up = factors(weights, layer)
    differences = {
        "blocks.0.self_attn.norm_q.diff": "blocks.0.self_attn.norm_q.weight",
        "blocks.0.norm3.diff": "blocks.0.norm3.weight",
        "blocks.0.norm3.diff_b": "blocks.0.norm3.bias",
        "blocks.1.ffn.0.diff_b": "blocks.1.ffn.0.bias",
        "blocks.1.diff_m": "blocks.1.modulation",
        "head.diff_m": "head.modulation",
        "head.head.diff": "head.head.weight",
        "blocks.0.modulation.diff": "blocks.0.modulation",
    }
    tensors = {prefix + name: random(*weights[ours].shape) for name, ours in differences.items()}
    alone = {f"{prefix}{layer}.lora_down.weight": down, f"{prefix}{layer}.lora_up.weight": up}
    alone[f"{prefix}{layer}.alpha"] = torch.tensor(1.5)
    found = {ours: STRENGTH * tensors[prefix + name] for name, ours in differences.items()}
    found[f"{layer}.weight"] = STRENGTH * 1.5 / RANK * up @ down
    file = write(tmp_path, tensors | alone)
    check(changes(model, weights, file), found)
    fitted = model.with_loras([read_lora(file, STRENGTH)]).loras[0]
    assert describe(fitted, transformers=1) == f"{file}: merged at strength 0.7 into 7 layers of the transformer"
    assert describe_left_out(fitted) == ""


def test_a_difference_is_added_to_the_product(model: WanCheckpoint, weights: Tensors, tmp_path: Path) -> None:
    layer = "blocks.0.self_attn.q"
    tensors = original("diffusion_model.", *DOWN_UP)(weights)
    tensors = {name: tensor for name, tensor in tensors.items() if layer in name}
    tensors[f"diffusion_model.{layer}.diff"] = random(WIDTH, WIDTH)
    found = wanted(weights)[f"{layer}.weight"] + STRENGTH * random(WIDTH, WIDTH)
    check(changes(model, weights, write(tmp_path, tensors)), {f"{layer}.weight": found})


def test_a_bias_of_the_factors_has_their_scale(model: WanCheckpoint, weights: Tensors, tmp_path: Path) -> None:
    tensors = original("diffusion_model.", *A_B)(weights)
    layer = "blocks.0.self_attn.q"
    tensors = {name: tensor for name, tensor in tensors.items() if layer in name}
    tensors |= {f"diffusion_model.{layer}.lora_B.bias": random(WIDTH), f"diffusion_model.{layer}.alpha": torch.ones(1)}
    product = wanted(weights, scale=1 / RANK)[f"{layer}.weight"]
    bias = STRENGTH / RANK * random(WIDTH)
    check(changes(model, weights, write(tmp_path, tensors)), {f"{layer}.weight": product, f"{layer}.bias": bias})


def test_peft_keeps_its_configuration_beside_the_file(model: WanCheckpoint, weights: Tensors, tmp_path: Path) -> None:
    tensors = {name.replace("transformer.", "base_model.model.", 1): each for name, each in diffusers(weights).items()}
    file = write(tmp_path, tensors)
    with pytest.raises(CheckpointError, match=rf"{PEFT_CONFIG}: cannot be read"):
        read_lora(file)
    (tmp_path / PEFT_CONFIG).write_text(json.dumps({"r": RANK, "lora_alpha": 12, "alpha_pattern": {}}))
    check(changes(model, weights, file), wanted(weights, scale=12 / RANK))
    (tmp_path / PEFT_CONFIG).write_text(json.dumps({"lora_alpha": "much"}))
    with pytest.raises(CheckpointError, match=f"the {PEFT_CONFIG} beside it is damaged"):
        read_lora(file)


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)
def test_underscores_lead_back_to_every_name(layout: Layout) -> None:
    """Of the largest model: there are as many names with underscores as with dots."""
    with torch.device("meta"):
        names = WanDiT(VARIANTS["T2V-14B"].dit).state_dict().keys()
    flattened = {flat(layout).to_theirs(name): name for name in names}
    assert len(flattened) == len(names)
    assert all(flat(layout).to_ours(theirs) == name for theirs, name in flattened.items())
    assert flat(ORIGINAL).to_theirs("blocks.3.self_attn.norm_q.weight") == "blocks_3_self_attn_norm_q.weight"


# A model in which blocks also attend to sound, as a layout knows it once it has such rows.
WITH_SOUND = Layout(
    "original",
    ORIGINAL.fingerprint,
    (*ORIGINAL.rows, *(Row(name, name) for name in ["blocks.{i}.cross_attn.k_sound.{p}"])),
)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
def test_layers_that_attend_to_sound(tmp_path: Path, prefix: str) -> None:
    """They are used where the model has them, and else left out, which is said; without the rows they are strange."""

    def name(layer: str) -> str:
        return prefix + (layer if prefix.endswith(".") else layer.replace(".", "_"))

    layers = [name(f"blocks.{n}.cross_attn.{which}") for n in range(2) for which in ("k", "k_sound")]
    tensors = {}
    for layer in layers:
        tensors |= {f"{layer}.lora_down.weight": random(RANK, 8), f"{layer}.lora_up.weight": random(8, RANK)}
    lora = read_lora(write(tmp_path, tensors))
    shapes = {f"blocks.{n}.cross_attn.{which}.weight": (8, 8) for n in range(2) for which in ("k", "k_sound")}
    (whole,) = fit([lora], {"transformer": shapes}, [DIFFUSERS, WITH_SOUND])
    assert whole.parts["transformer"].keys() == shapes.keys() and not whole.left_out
    fewer = {ours: shape for ours, shape in shapes.items() if "sound" not in ours}
    (fitted,) = fit([lora], {"transformer": fewer}, [DIFFUSERS, WITH_SOUND])
    assert fitted.parts["transformer"].keys() == fewer.keys()
    assert describe(fitted, transformers=1).endswith("into 2 layers of the transformer")
    said = f"2 layers are left out, of a kind that this model lacks: '{layers[1][len(prefix) :]}', "
    assert said in describe_left_out(fitted)
    with pytest.raises(CheckpointError, match=r"2 layers are not in this one: 'blocks.0.cross.attn.k_sound"):
        fit([lora], {"transformer": fewer}, [DIFFUSERS, ORIGINAL])
    sound = {each: tensor for each, tensor in tensors.items() if "sound" in each}
    with pytest.raises(CheckpointError, match="is a LoRA of another model: 2 layers are not in this one"):
        fit([read_lora(write(tmp_path, sound))], {"transformer": fewer}, [DIFFUSERS, WITH_SOUND])


LAYER = "diffusion_model.blocks.0.self_attn.q"
PAIR = {f"{LAYER}.lora_down.weight": random(RANK, WIDTH), f"{LAYER}.lora_up.weight": random(WIDTH, RANK)}
REFUSED: dict[str, tuple[Tensors, str]] = {
    "alpha alone": (
        PAIR | {"diffusion_model.blocks.0.self_attn.k.alpha": torch.ones(())},
        "layer 'blocks.0.self_attn.k' has 'diffusion_model.blocks.0.self_attn.k.alpha', but no factors",
    ),
    "alpha of a difference": (
        {f"{LAYER}.diff": random(WIDTH, WIDTH), f"{LAYER}.alpha": torch.ones(())},
        "but no factors",
    ),
    "a bias of no factors": ({f"{LAYER}.lora_B.bias": random(WIDTH)}, "lora_B.bias', but no factors"),
    "many alphas": (PAIR | {f"{LAYER}.alpha": torch.ones(2)}, r"is \[2\] of F32; it must be one number"),
    "alpha of another dtype": (
        PAIR | {f"{LAYER}.alpha": torch.ones((), dtype=torch.bool)},
        r"is \[\] of BOOL; it must be one number, one of F64, F32",
    ),
    "endless alpha": (PAIR | {f"{LAYER}.alpha": torch.tensor(torch.inf)}, "alpha' is inf; it must be a finite number"),
    "no alpha": (PAIR | {f"{LAYER}.alpha": torch.tensor(torch.nan)}, "alpha' is nan; it must be a finite number"),
    "one factor": (dict([*PAIR.items()][:1]), "layer 'blocks.0.self_attn.q' has one factor of two"),
    "factors of two namings": (
        {f"{LAYER}.lora_A.weight": random(RANK, WIDTH), f"lora_unet_x{DOWN_UP[1]}": random(WIDTH, RANK)},
        "1 tensor is no part of a LoRA that is known: 'lora_unet_x.lora_up.weight'",
    ),
    "the same factor twice": (
        PAIR | {f"{LAYER}.lora_A.weight": random(RANK, WIDTH)},
        "lora_A.weight' and '.*lora_down.weight' are the same tensor|are the same tensor of one layer",
    ),
    "other ranks": (PAIR | {f"{LAYER}.lora_up.weight": random(WIDTH, 4)}, "which have no product"),
    "a factor that is a vector": (PAIR | {f"{LAYER}.lora_up.weight": random(WIDTH)}, "which have no product"),
    "a second factor with pixels": (
        {f"{LAYER}.lora_down.weight": random(RANK, WIDTH, 1), f"{LAYER}.lora_up.weight": random(WIDTH, RANK, 2)},
        "as a matrix of 32x32x2, and this model's is 32x32",
    ),
    "another width": (
        {f"{LAYER}.lora_down.weight": random(RANK, 48), f"{LAYER}.lora_up.weight": random(48, RANK)},
        "is a LoRA of another model: it changes 'blocks.0.self_attn.q' as a matrix of 48x48, and this model's is 32x32",
    ),
    "a difference of another shape": (
        {f"{LAYER}.diff_b": random(48)},
        "it changes the bias of 'blocks.0.self_attn.q' as a tensor of 48, and this model's is 32",
    ),
    "a modulation of another shape": (
        {"diffusion_model.head.diff_m": random(1, 6, WIDTH)},
        "it changes the modulation of 'head' as a tensor of 1x6x32, and this model's is 1x2x32",
    ),
    "a matrix for a norm": (
        {name.replace("self_attn.q", "self_attn.norm_q"): tensor for name, tensor in PAIR.items()},
        "'blocks.0.self_attn.norm_q' as a matrix of 32x32, and this model's is 32",
    ),
    "more blocks": (
        {name.replace("blocks.0", "blocks.2"): tensor for name, tensor in PAIR.items()},
        "is a LoRA of another model: 1 layer is not in this one: 'blocks.2.self_attn.q'",
    ),
    "another family": (
        {f"transformer.single_blocks.0.linear1{suffix}": random(RANK, RANK) for suffix in A_B},
        "is a LoRA of another model: 1 layer is not in this one: 'single_blocks.0.linear1'",
    ),
    "another family, kohya": (
        {f"lora_unet_double_blocks_0_img_attn_qkv{suffix}": random(RANK, RANK) for suffix in DOWN_UP},
        "is a LoRA of another model: 1 layer is not in this one: 'double_blocks_0_img_attn_qkv'",
    ),
    "a text encoder's": (
        PAIR | {"lora_te_text_model.lora_up.weight": random(RANK, RANK)},
        "1 tensor is no part of a LoRA that is known: 'lora_te_text_model.lora_up.weight'",
    ),
    "no layer": ({"lora_A.weight": random(RANK, RANK)}, "1 tensor is no part of a LoRA that is known"),
    "an empty layer": (
        {f"diffusion_model{suffix}": random(RANK, RANK) for suffix in A_B},
        "2 tensors are no part of a LoRA",
    ),
    "LoKr": (
        {
            f"{LAYER}.lokr_w1": random(RANK, RANK),
            f"{LAYER}.lokr_w2": random(RANK, RANK),
            f"{LAYER}.alpha": torch.ones(1),
        },
        "2 tensors are no part of a LoRA that is known: '.*lokr_w1'",
    ),
    "whole numbers": ({f"{LAYER}.diff": torch.ones(WIDTH, WIDTH, dtype=torch.int8)}, "is I8; it must be one of F64"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_sense_is_named(model: WanCheckpoint, tmp_path: Path, name: str) -> None:
    tensors, said = REFUSED[name]
    with pytest.raises(CheckpointError, match=said) as error:
        model.with_loras([read_lora(write(tmp_path, tensors))])
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'lora.safetensors'}: ") and message.endswith(".") and "\n" not in message


@pytest.mark.parametrize("part", ["transformer", "transformer_2"])
def test_only_one_expert(tmp_path: Path, part: str) -> None:
    experts = WanCheckpoint.open(tiny_experts_folder(tmp_path / "model"))

    def load(*loras: Lora) -> dict[str, Tensor]:
        model, name = experts.with_loras(loras), "blocks.0.self_attn.q.weight"
        return {
            each: model.load_dit(each, dtype=torch.float32).state_dict()[name] for each in model.parts if "tr" in each
        }

    file = write(tmp_path, PAIR)
    before, after = load(), load(read_lora(file, 1.0, part))
    product = PAIR[f"{LAYER}.lora_up.weight"] @ PAIR[f"{LAYER}.lora_down.weight"]
    torch.testing.assert_close(after[part] - before[part], product, rtol=1e-5, atol=1e-5)
    (other,) = before.keys() - {part}
    assert torch.equal(after[other], before[other])
    fitted = experts.with_loras([read_lora(file, 1.0, part)]).loras[0]
    expert = {"transformer": "high-noise", "transformer_2": "low-noise"}[part]
    assert describe(fitted, transformers=2).endswith(f"into 1 layer of the {expert} expert alone")


def test_an_expert_that_is_not_there(model: WanCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="is for the low-noise expert, which this model does not have"):
        model.with_loras([read_lora(write(tmp_path, PAIR), 1.0, "transformer_2")])
