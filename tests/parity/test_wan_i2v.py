"""Models that animate pictures against diffusers' WanImageToVideoPipeline on the same folder and seed, in float32.

Wan 2.1 I2V with its image encoder, FLF2V with two pictures, and Wan 2.2 I2V with two experts and no image encoder.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.make import encode_given
from dit_video.models import open_checkpoint
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from tests.tiny import tiny_i2v_experts_folder, tiny_i2v_folder

PROMPT, NEGATIVE, SEED = "a red ball moving right on a white background", "blue", 7
SHAPE = VideoShape(num_frames=9, height=32, width=48)
CPU = torch.device("cpu")
PICTURES = np.random.default_rng(3).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
FIRST, LAST = {0: PICTURES[:1]}, {2: np.repeat(PICTURES[1:], 4, axis=0)}
GIVEN = {"first": FIRST, "first and last": FIRST | LAST}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("wan")
    return {
        "I2V": tiny_i2v_folder(root / "i2v"),
        "FLF2V": tiny_i2v_folder(root / "flf2v", last=True),
        "A14B": tiny_i2v_experts_folder(root / "a14b"),
    }


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def theirs(folder: Path, guidance: tuple[float, ...], last: bool) -> torch.Tensor:
    """diffusers' latents (C, T, H, W)."""
    from diffusers import WanImageToVideoPipeline

    pipeline = WanImageToVideoPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        Image.fromarray(PICTURES[0]),
        last_image=Image.fromarray(PICTURES[1]) if last else None,
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        height=SHAPE.height,
        width=SHAPE.width,
        num_frames=SHAPE.num_frames,
        num_inference_steps=6,
        guidance_scale=guidance[0],
        guidance_scale_2=guidance[1] if len(guidance) > 1 else None,
        generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="latent",
    ).frames[0]


def ours(folder: Path, guidance: tuple[float, ...], given: dict[int, np.ndarray], *, blind: bool = False):
    """Our latents, with `blind` of an image encoder that sees nothing; and what was loaded and done."""
    checkpoint = open_checkpoint(folder)
    stages = Stages(checkpoint, dtype=torch.float32, device=CPU)
    known = encode_given(stages, SHAPE, given)
    if blind:
        known = replace(known, images=torch.zeros_like(known.images))
    clip = Clip(prompt=PROMPT, negative=NEGATIVE, shape=SHAPE, seed=SEED, known=known)
    settings = Settings(steps=6, sigmas="diffusers", shift=checkpoint.defaults.shift, guidance=guidance)
    return sample_latents(stages, [clip], settings)[0], stages


@pytest.mark.parametrize(
    ("name", "guidance", "frames"),
    [
        ("I2V", (4.0,), "first"),
        ("I2V", (1.0,), "first"),
        ("FLF2V", (4.0,), "first and last"),
        ("A14B", (4.0, 3.0), "first"),
        ("A14B", (4.0, 3.0), "first and last"),
    ],
)
def test_latents_are_those_of_diffusers(
    folders: dict[str, Path], name: str, guidance: tuple[float, ...], frames: str
) -> None:
    wanted = theirs(folders[name], guidance, "last" in frames)
    found, stages = ours(folders[name], guidance, GIVEN[frames])
    assert found.shape == wanted.shape
    assert relative(found, wanted) < 1e-4
    assert stages.forwards == 6 * (2 if guidance[0] > 1 else 1)


def test_every_part_of_what_is_given_counts(folders: dict[str, Path]) -> None:
    """The comparison above would not see an image encoder, or a picture, that made no difference."""
    base, _ = ours(folders["FLF2V"], (4.0,), GIVEN["first and last"])
    blind, _ = ours(folders["FLF2V"], (4.0,), GIVEN["first and last"], blind=True)
    swapped, _ = ours(folders["FLF2V"], (4.0,), {0: PICTURES[1:], 2: np.repeat(PICTURES[:1], 4, axis=0)})
    assert relative(blind, base) > 1e-2 and relative(swapped, base) > 1e-2
    with_last, _ = ours(folders["A14B"], (4.0, 3.0), GIVEN["first and last"])
    without, _ = ours(folders["A14B"], (4.0, 3.0), FIRST)
    assert relative(without, with_last) > 1e-2


def test_the_image_encoder_sees_a_picture_as_it_came(folders: dict[str, Path]) -> None:
    """As in the release and in diffusers, where only the clip has the picture at its own size."""
    stages = Stages(open_checkpoint(folders["I2V"]), dtype=torch.float32, device=CPU, keep=True)
    original = np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)
    fitted = encode_given(stages, SHAPE, FIRST)
    found = encode_given(stages, SHAPE, FIRST, {0: original})
    assert found.images is not None and fitted.images is not None
    assert torch.equal(found.images, stages.images.encode(original[None])[0].cpu())
    assert not torch.equal(found.images, fitted.images) and torch.equal(found.channels, fitted.channels)


def test_clips_of_different_pictures_are_packed(folders: dict[str, Path]) -> None:
    checkpoint = open_checkpoint(folders["I2V"])
    stages = Stages(checkpoint, dtype=torch.float32, device=CPU, keep=True)
    clips = [
        Clip(prompt=PROMPT, shape=shape, seed=seed, known=encode_given(stages, shape, {0: picture[None]}))
        for seed, (shape, picture) in enumerate(
            [(SHAPE, PICTURES[0]), (replace(SHAPE, num_frames=5), PICTURES[1]), (SHAPE, PICTURES[1])]
        )
    ]
    settings = Settings(steps=3, guidance=(4.0,))
    for clip, together in zip(clips, sample_latents(stages, clips, settings), strict=True):
        assert relative(together, sample_latents(stages, [clip], settings)[0]) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_lower_precision_stays_near_float32(folders: dict[str, Path], dtype: torch.dtype) -> None:
    checkpoint = open_checkpoint(folders["FLF2V"])
    found = []
    for each in (torch.float32, dtype):
        stages = Stages(checkpoint, dtype=each, device=CPU)
        known = encode_given(stages, SHAPE, GIVEN["first and last"])
        clip = Clip(prompt=PROMPT, shape=SHAPE, seed=SEED, known=known)
        found.append(sample_latents(stages, [clip], Settings(steps=2, guidance=(1.0,)))[0])
    assert ((found[1] - found[0]).norm() / found[0].norm()).item() < (0.05 if dtype == torch.bfloat16 else 0.01)
