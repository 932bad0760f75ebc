"""Image to video against diffusers' WanImageToVideoPipeline, and SDEdit against its WanVideoToVideoPipeline.

On the same folder and seed, in float32.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.known import encode_known
from dit_video.models import open_checkpoint
from dit_video.nn.pixels import to_video
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from tests.tiny import tiny_ti2v_folder, tiny_wan21_folder

PROMPT, NEGATIVE, SEED, GUIDANCE = "a red ball moving right on a white background", "blue", 7, 4.0
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def ti2v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_ti2v_folder(tmp_path_factory.mktemp("wan") / "ti2v")


@pytest.fixture(scope="module")
def wan21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan21_folder(tmp_path_factory.mktemp("wan") / "wan21")


def frames(shape: VideoShape) -> np.ndarray:
    """Frames (T, H, W, 3) uint8 in which every pixel says something."""
    return np.random.default_rng(3).integers(0, 256, (shape.num_frames, shape.height, shape.width, 3), dtype=np.uint8)


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def pipeline(name: str, folder: Path):
    import diffusers

    made = getattr(diffusers, name).from_pretrained(folder, torch_dtype=torch.float32)
    made.set_progress_bar_config(disable=True)
    return made


def options(shape: VideoShape, steps: int) -> dict:
    return {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "height": shape.height,
        "width": shape.width,
        "num_inference_steps": steps,
        "guidance_scale": GUIDANCE,
        "generator": torch.Generator("cpu").manual_seed(SEED),
        "output_type": "latent",
    }


def test_an_image_comes_alive_as_in_diffusers(ti2v: Path) -> None:
    shape = VideoShape(num_frames=9, height=64, width=96)
    picture = frames(shape)[:1]
    their = pipeline("WanImageToVideoPipeline", ti2v)
    wanted = their(Image.fromarray(picture[0]), num_frames=shape.num_frames, **options(shape, 6)).frames[0]

    checkpoint = open_checkpoint(ti2v)
    stages = Stages(checkpoint, dtype=torch.float32, device=CPU)
    known = encode_known(stages.vae, checkpoint.grid, shape, {0: picture})
    clip = Clip(prompt=PROMPT, negative=NEGATIVE, shape=shape, seed=SEED, known=known)
    settings = Settings(steps=6, sigmas="diffusers", shift=checkpoint.defaults.shift, guidance=(GUIDANCE,))
    found = sample_latents(stages, [clip], settings)[0]
    assert found.shape == wanted.shape
    assert relative(found, wanted) < 1e-4
    assert torch.equal(found[:, 0], known.latents[:, 0])


@pytest.mark.parametrize("strength", [0.5, 0.84])
def test_a_clip_is_edited_as_in_diffusers(wan21: Path, strength: float) -> None:
    shape = VideoShape(num_frames=9, height=32, width=48)
    clip_frames = frames(shape)
    their = pipeline("WanVideoToVideoPipeline", wan21)
    video = [Image.fromarray(frame) for frame in clip_frames]
    wanted = their(video=video, strength=strength, **options(shape, 6)).frames[0]

    checkpoint = open_checkpoint(wan21)
    stages = Stages(checkpoint, dtype=torch.float32, device=CPU)
    start = stages.vae.encode(to_video(clip_frames[None]))[0]
    clip = Clip(prompt=PROMPT, negative=NEGATIVE, shape=shape, seed=SEED, start=start)
    settings = Settings(
        steps=6, sigmas="diffusers", shift=checkpoint.defaults.shift, guidance=(GUIDANCE,), strength=strength
    )
    found = sample_latents(stages, [clip], settings)[0]
    assert found.shape == wanted.shape
    assert relative(found, wanted) < 1e-4
