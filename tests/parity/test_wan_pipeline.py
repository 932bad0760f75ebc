"""From a prompt to latents and frames, against diffusers' WanPipeline on the same folder and seed, in float32."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dit_video.clip import Clip, Settings
from dit_video.decode import decode_frames
from dit_video.denoise import sample_latents
from dit_video.models import open_checkpoint
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from tests.tiny import tiny_experts_folder, tiny_ti2v_folder, tiny_wan21_folder

WRITERS = {"wan21": tiny_wan21_folder, "ti2v": tiny_ti2v_folder, "experts": tiny_experts_folder}
SHAPES = {
    "wan21": VideoShape(num_frames=9, height=32, width=48),
    "ti2v": VideoShape(num_frames=9, height=64, width=96),
    "experts": VideoShape(num_frames=5, height=32, width=32),
}
PROMPT, NEGATIVE, SEED = "a red ball moving right on a white background", "blue", 7
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wan")
    return {name: write(root / name) for name, write in WRITERS.items()}


def theirs(folder: Path, shape: VideoShape, steps: int, guidance: tuple[float, ...], output: str) -> torch.Tensor:
    """diffusers' latents (C, T, H, W), or its frames (T, H, W, 3) from 0 to 1."""
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    found = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=shape.height,
        width=shape.width,
        num_frames=shape.num_frames,
        num_inference_steps=steps,
        guidance_scale=guidance[0],
        guidance_scale_2=guidance[1] if len(guidance) > 1 else None,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type=output,
    ).frames
    return torch.as_tensor(found[0])


def ours(folder: Path, shape: VideoShape, steps: int, guidance: tuple[float, ...]) -> tuple[torch.Tensor, Stages]:
    checkpoint = open_checkpoint(folder)
    stages = Stages(checkpoint, dtype=torch.float32, device=CPU)
    settings = Settings(steps=steps, sigmas="diffusers", shift=checkpoint.defaults.shift, guidance=guidance)
    clip = Clip(prompt=PROMPT, negative=NEGATIVE, shape=shape, seed=SEED)
    return sample_latents(stages, [clip], settings)[0], stages


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(
    ("name", "guidance"), [("wan21", (4.0,)), ("wan21", (1.0,)), ("ti2v", (5.0,)), ("experts", (4.0, 3.0))]
)
def test_latents_are_those_of_diffusers(folders: dict[str, Path], name: str, guidance: tuple[float, ...]) -> None:
    shape = SHAPES[name]
    wanted = theirs(folders[name], shape, 6, guidance, "latent")
    found, stages = ours(folders[name], shape, 6, guidance)
    assert found.shape == wanted.shape
    assert relative(found, wanted) < 1e-4
    assert stages.forwards == 6 * (2 if guidance[0] > 1 else 1)


@pytest.mark.parametrize("name", ["wan21", "ti2v"])
def test_frames_are_those_of_diffusers(folders: dict[str, Path], name: str) -> None:
    shape = SHAPES[name]
    wanted = theirs(folders[name], shape, 3, (4.0,), "np")
    latents, stages = ours(folders[name], shape, 3, (4.0,))
    found = np.stack(list(decode_frames(stages.vae, latents, shape)))
    assert found.shape == tuple(wanted.shape) and found.dtype == np.uint8
    # Ours are rounded to 8 bits: half a step, and the gate.
    assert np.abs(found / 255 - wanted.numpy()).max() <= 0.5 / 255 + 1e-4


def test_both_experts_work_at_their_levels(folders: dict[str, Path]) -> None:
    """The guidance scale of one expert matters only if that expert ran."""
    shape = SHAPES["experts"]
    base, _ = ours(folders["experts"], shape, 6, (4.0, 3.0))
    high, _ = ours(folders["experts"], shape, 6, (2.0, 3.0))
    low, _ = ours(folders["experts"], shape, 6, (4.0, 1.0))
    assert relative(high, base) > 1e-2
    assert relative(low, base) > 1e-2
