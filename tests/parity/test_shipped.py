"""The checkpoint that ships opens in diffusers' WanPipeline and gives the same latents there."""

import math
from typing import Any

import pytest
import torch

from dit_video.checkpoints.places import find_checkpoint
from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.models import open_checkpoint
from dit_video.shapes import MIN_TILE, VideoShape
from dit_video.stages import Stages

PROMPT = "a red ball moving right on a white background"
BUDGET = 32_000_000


@pytest.mark.parametrize("name", ["default", "distilled"])
def test_the_whole_folder_is_small(name: str):
    files = [path for path in find_checkpoint(name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= BUDGET


def test_the_distilled_model_does_in_four_steps_what_the_other_does_in_twenty():
    """From the same noise its latents are nearer to those with guidance and all steps than those of the other model in
    as few steps are."""
    shape = VideoShape(num_frames=9, height=128, width=192)
    clips = [Clip(prompt=PROMPT, negative="", shape=shape, seed=seed) for seed in range(3)]

    def latents(name: str, **how: Any) -> list[torch.Tensor]:
        checkpoint = open_checkpoint(name)
        settings = Settings(**{"shift": checkpoint.defaults.shift, "solver": "euler", "guidance": (1.0,), **how})
        return sample_latents(Stages(checkpoint, dtype=torch.float32, device=torch.device("cpu")), clips, settings)

    defaults = open_checkpoint("distilled").defaults
    assert (defaults.steps, defaults.guidance, defaults.solver) == (4, (1.0,), "euler")
    whole = latents("default", steps=20, guidance=(4.0,), solver="unipc")
    distilled, few = latents("distilled", steps=4), latents("default", steps=4)
    for aim, near, far in zip(whole, distilled, few, strict=True):
        assert (near - aim).square().mean() < 0.7 * (far - aim).square().mean()


@pytest.mark.parametrize(("width", "height", "frames"), [(96, 64, 9), (64, 96, 1)])
def test_diffusers_gives_the_same_latents(width, height, frames):
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(find_checkpoint("default"), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPT,
        negative_prompt="",
        width=width,
        height=height,
        num_frames=frames,
        num_inference_steps=6,
        guidance_scale=4.0,
        generator=torch.Generator("cpu").manual_seed(5),
        max_sequence_length=512,
        output_type="latent",
    ).frames[0]

    checkpoint = open_checkpoint("default")
    settings = Settings(
        steps=6,
        solver="unipc",
        sigmas="diffusers",
        shift=checkpoint.defaults.shift,
        guidance=(4.0,),
    )
    clip = Clip(prompt=PROMPT, negative="", shape=VideoShape(num_frames=frames, height=height, width=width), seed=5)
    stages = Stages(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    found = sample_latents(stages, [clip], settings)[0]
    assert float((found - expected).abs().max()) < 1e-3


@torch.no_grad()
def test_tiles_decode_as_the_whole_frame():
    vae = open_checkpoint("default").load_vae(dtype=torch.float32)
    latents = torch.randn(1, vae.config.z_dim, 2, 26, 38, generator=torch.Generator().manual_seed(0))
    whole, tiled = (torch.cat(list(vae.decode_stream(latents, tile=tile)), dim=2) for tile in (None, MIN_TILE))
    error = float((whole - tiled).square().mean())
    assert error > 0 and 10 * math.log10(4 / error) > 60
