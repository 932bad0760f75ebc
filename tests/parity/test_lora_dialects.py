"""LoRA files of other programs against diffusers' `load_lora_weights` of the same file, in float32."""

from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dit_video.checkpoints.files import save_tensors
from dit_video.checkpoints.lora import read_lora
from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.models import open_checkpoint
from dit_video.models.wan.defaults import PRESETS
from dit_video.models.wan.layouts import DIFFUSERS
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from tests.parity.test_lora import CPU, PROMPT, SEED, outputs, pipeline
from tests.parity.test_wan_dit import difference
from tests.tiny import tiny_experts_folder, tiny_wan21_folder

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("peft")

GATE = 1e-5
BLOCK = [f"{attention}.{layer}" for attention in ("self_attn", "cross_attn") for layer in "qkvo"] + ["ffn.0", "ffn.2"]
OTHERS = [
    "time_projection.1",
    "head.head",
    *(f"{name}.{n}" for name in ("text_embedding", "time_embedding") for n in "02"),
]
NAMINGS = {"lora_A": ".lora_B.weight", "lora_down": ".lora_up.weight"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan21_folder(tmp_path_factory.mktemp("wan") / "model")


@pytest.fixture(scope="module")
def weights(model: Path) -> dict[str, Tensor]:
    return dict(open_checkpoint(model).load_dit(dtype=torch.float32).state_dict())


def lora(
    weights: dict[str, Tensor], file: Path, layers: Iterable[str], *, down: str, alpha: bool, diff_b: bool
) -> dict[str, Tensor]:
    """What is in a file by the original names, of ranks from 2 to 4."""
    generator, tensors = torch.Generator().manual_seed(4), {}
    for n, layer in enumerate(layers):
        (out, into), rank = weights[f"{layer}.weight"].shape, 2 + n % 3
        tensors[f"{layer}.{down}.weight"] = torch.randn(rank, into, generator=generator) / into**0.5
        tensors[f"{layer}{NAMINGS[down]}"] = 0.3 * torch.randn(out, rank, generator=generator)
        if alpha:
            tensors[f"{layer}.alpha"] = torch.tensor(1.0 + n % 5)
        if diff_b:
            tensors[f"{layer}.diff_b"] = 0.2 * torch.randn(out, generator=generator)
    return tensors


def merged(model: Path, weights: dict[str, Tensor], file: Path, strength: float = 1.0) -> dict[str, Tensor]:
    """The tensors that the LoRA changed, by our names."""
    found = open_checkpoint(model).with_loras([read_lora(file, strength)]).load_dit(dtype=torch.float32).state_dict()
    return {name: tensor for name, tensor in found.items() if not torch.equal(tensor, weights[name])}


def check(model: Path, weights: dict[str, Tensor], file: Path, strength: float = 1.0) -> set[str]:
    """Compares both the weights, which diffusers fuses, and what the transformer makes. The changed weights' names."""
    theirs = pipeline(model)
    theirs.load_lora_weights(file)
    theirs.set_adapters(theirs.get_active_adapters(), strength)
    found, wanted = outputs(model, theirs.transformer, (file, strength))
    assert difference(found, wanted) < GATE
    assert difference(outputs(model, pipeline(model).transformer)[1], wanted) > 1e-2
    theirs.fuse_lora()
    theirs.unload_lora_weights()
    ours = merged(model, weights, file, strength)
    for name, tensor in theirs.transformer.state_dict().items():
        name = DIFFUSERS.to_ours(name)
        torch.testing.assert_close(ours.get(name, weights[name]), tensor, rtol=0, atol=GATE)
    return set(ours)


@pytest.mark.parametrize("down", NAMINGS)
@pytest.mark.parametrize("alpha", [False, True])
def test_original_names(model: Path, weights: dict[str, Tensor], tmp_path: Path, down: str, alpha: bool) -> None:
    layers = [f"blocks.{n}.{layer}" for n in range(2) for layer in BLOCK]
    if not alpha:  # diffusers does not know that these can have one
        layers += OTHERS
    file = tmp_path / "lora.safetensors"
    tensors = lora(weights, file, layers, down=down, alpha=alpha, diff_b=False)
    save_tensors({f"diffusion_model.{name}": tensor for name, tensor in tensors.items()}, file)
    assert check(model, weights, file, 0.7) == {f"{layer}.weight" for layer in layers}


@pytest.mark.parametrize("alpha", [False, True])
def test_differences_of_biases(model: Path, weights: dict[str, Tensor], tmp_path: Path, alpha: bool) -> None:
    """As in LightX2V's files, with the last layer as a difference: to diffusers a product with the identity."""
    layers = [f"blocks.{n}.{layer}" for n in range(2) for layer in BLOCK]
    file = tmp_path / "lora.safetensors"
    tensors = lora(weights, file, layers, down="lora_down", alpha=alpha, diff_b=True)
    tensors["head.head.diff"] = 0.1 * torch.randn(weights["head.head.weight"].shape)
    tensors["head.head.diff_b"] = 0.1 * torch.randn(weights["head.head.bias"].shape)
    save_tensors({f"diffusion_model.{name}": tensor for name, tensor in tensors.items()}, file)
    changed = {f"{layer}.{leaf}" for layer in [*layers, "head.head"] for leaf in ("weight", "bias")}
    assert check(model, weights, file) == changed


def test_kohya(model: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    layers = [f"blocks.{n}.{layer}" for n in range(2) for layer in BLOCK]
    file = tmp_path / "lora.safetensors"
    tensors = lora(weights, file, layers, down="lora_down", alpha=True, diff_b=False)
    flat = {}
    for name, tensor in tensors.items():
        layer = next(layer for layer in layers if name.startswith(f"{layer}."))
        flat["lora_unet_" + layer.replace(".", "_") + name.removeprefix(layer)] = tensor
    save_tensors(flat, file)
    assert check(model, weights, file, -1.3) == {f"{layer}.weight" for layer in layers}


def distilled_latents(model: Path, solver: str, *files: tuple[str, Path]) -> tuple[Tensor, Tensor]:
    """Ours with the preset, and theirs with the scheduler that works as `solver` does, over the levels themselves."""
    preset = PRESETS["distilled"]
    theirs, shape = pipeline(model), VideoShape(num_frames=5, height=32, width=32)
    scheduler = {"lcm": diffusers.FlowMatchLCMScheduler, "euler": diffusers.FlowMatchEulerDiscreteScheduler}[solver]
    theirs.scheduler = scheduler(shift=preset.shift)
    set_timesteps = theirs.scheduler.set_timesteps
    theirs.scheduler.set_timesteps = lambda *_, device, **__: set_timesteps(
        sigmas=[1.0, 0.75, 0.5, 0.25], device=device
    )
    generator = torch.Generator("cpu").manual_seed(SEED)
    step = theirs.scheduler.step  # the pipeline does not hand its generator on
    if solver == "lcm":
        theirs.scheduler.step = lambda *args, **options: step(*args, generator=generator, **options)
    for part, file in files:
        theirs.load_lora_weights(file, load_into_transformer_2=part == "transformer_2", adapter_name=part)
    wanted = theirs(
        prompt=PROMPT, height=shape.height, width=shape.width, num_frames=shape.num_frames, guidance_scale=1.0,
        num_inference_steps=4, generator=generator, output_type="latent",
    ).frames[0]  # fmt: skip
    checkpoint = open_checkpoint(model).with_loras([read_lora(file, part=part) for part, file in files])
    defaults = preset.over(checkpoint.defaults, experts=checkpoint.boundary is not None)
    assert defaults.solver == solver
    settings = Settings(
        steps=defaults.steps, solver=solver, sigmas=defaults.sigmas, shift=defaults.shift, guidance=defaults.guidance
    )
    stages = Stages(checkpoint, dtype=torch.float32, device=CPU)
    return sample_latents(stages, [Clip(prompt=PROMPT, shape=shape, seed=SEED)], settings)[0], wanted


def test_distilled(model: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    tensors = lora(
        weights, file, ["blocks.0.self_attn.q", "blocks.1.ffn.2"], down="lora_down", alpha=True, diff_b=False
    )
    save_tensors({f"diffusion_model.{name}": tensor for name, tensor in tensors.items()}, file)
    assert difference(*distilled_latents(model, "lcm", ("transformer", file))) < 1e-4


def test_distilled_experts_have_a_lora_each(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Also without them, and with both the other way round, which is told from the right way."""
    model, files = tiny_experts_folder(tmp_path / "model"), {}
    for n, part in enumerate(("transformer", "transformer_2")):
        files[part] = tmp_path / f"{part}.safetensors"
        layers = [f"blocks.{n}.self_attn.q", f"blocks.{n}.ffn.2"]
        tensors = lora(weights, files[part], layers, down="lora_A", alpha=False, diff_b=False)
        save_tensors({f"diffusion_model.{name}": tensor for name, tensor in tensors.items()}, files[part])
    found, wanted = distilled_latents(model, "euler", *files.items())
    assert difference(found, wanted) < 1e-4
    swapped, _ = distilled_latents(model, "euler", *zip(files, [*files.values()][::-1], strict=True))
    plain, _ = distilled_latents(model, "euler")
    assert difference(swapped, wanted) > 1e-3 and difference(plain, wanted) > 1e-3
