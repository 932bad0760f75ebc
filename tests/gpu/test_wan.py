"""Every stage of Wan models on the GPU in bfloat16 against the CPU in float32, and the whole of them."""

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
from tests.gpu.compare import BF16, DEVICE, error
from tests.tiny import tiny_experts_folder, tiny_i2v_folder, tiny_ti2v_folder, tiny_wan21_folder

pytestmark = pytest.mark.gpu

CPU = torch.device("cpu")
WRITERS = {"wan21": tiny_wan21_folder, "ti2v": tiny_ti2v_folder, "experts": tiny_experts_folder}
PROMPTS = ["a red ball moving right on a white background", "the cat!"]
SHAPES = [(3, 8, 12), (2, 4, 6), (1, 8, 8)]  # latents


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    root = tmp_path_factory.mktemp("wan")
    made = {name: open_checkpoint(write(root / name)) for name, write in WRITERS.items()}
    made["i2v"] = open_checkpoint(tiny_i2v_folder(root / "i2v"))
    made["default"] = open_checkpoint("default")
    return made


NAMES = [*WRITERS, "i2v", "default"]


@pytest.mark.parametrize("name", NAMES)
def test_text_encoder(checkpoints, device, name):
    prompts = PROMPTS[:1] if name == "default" else PROMPTS
    want = checkpoints[name].load_text(dtype=torch.float32).encode(prompts)
    got = checkpoints[name].load_text(dtype=BF16, device=device).encode(prompts)
    for a, b in zip(got, want, strict=True):
        assert error(a, b) < 3e-2


def velocities(checkpoint, dtype, device, pack=True):
    """Of clips of three sizes, the first with its first frame known, together or one by one."""
    dit = checkpoint.load_dit(dtype=dtype, device=device)
    generator = torch.Generator().manual_seed(0)
    config = dit.config
    latents = [torch.randn(config.in_dim, *shape, generator=generator) for shape in SHAPES]
    times = [torch.full((shape[0],), 100.0 + 300 * number) for number, shape in enumerate(SHAPES)]
    times[0][0] = 0.0
    texts = [torch.randn(rows, config.text_dim, generator=generator) for rows in (7, 3, 12)]
    images = {}
    with torch.no_grad():
        text = dit.encode_text([each.to(device) for each in texts])
        if config.image_dim is not None:
            rows = torch.randn(5, config.image_dim, generator=generator)
            images = {"images": dit.encode_images([rows.to(device)])}
        moved = [latent.to(device) for latent in latents]
        if pack:
            told = {**images, "image_index": [0, 0, 0]} if images else {}
            return dit(moved, times, text, [0, 1, 2], **told)
        told = {**images, "image_index": [0]} if images else {}
        return [dit([moved[i]], [times[i]], text, [i], **told)[0] for i in range(3)]


@pytest.mark.parametrize("name", NAMES)
def test_transformer(checkpoints, device, name):
    want = velocities(checkpoints[name], torch.float32, CPU)
    for a, b in zip(velocities(checkpoints[name], BF16, device), want, strict=True):
        assert error(a, b) < 4e-2


@pytest.mark.parametrize("name", NAMES)
def test_transformer_in_float32(checkpoints, device, name):
    want = velocities(checkpoints[name], torch.float32, CPU)
    for a, b in zip(velocities(checkpoints[name], torch.float32, device), want, strict=True):
        assert error(a, b) < 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_packs_equal_their_clips_alone(checkpoints, device, name):
    together, alone = (velocities(checkpoints[name], BF16, device, pack=pack) for pack in (True, False))
    for a, b in zip(together, alone, strict=True):
        assert error(a, b.float()) < 2e-2


@pytest.mark.parametrize("name", ["wan21", "ti2v", "default"])
def test_autoencoder(checkpoints, device, name):
    checkpoint = checkpoints[name]
    exact, vae = checkpoint.load_vae(dtype=torch.float32), checkpoint.load_vae(dtype=BF16, device=device)
    t, h, w = exact.config.stride
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, 3, 3, 3, 4, generator=generator)
    video = torch.nn.functional.interpolate(coarse, (1 + 2 * t, 4 * h, 6 * w), mode="trilinear").clamp(-1, 1)
    latents = exact.encode(video)
    assert error(vae.encode(video.to(device, BF16)), latents) < 5e-2
    with torch.no_grad():
        want = torch.cat(list(exact.decode_stream(latents)), dim=2)
        got = torch.cat(list(vae.decode_stream(latents.to(device, BF16))), dim=2)
        assert error(got, want) < 5e-2
        whole = vae.decode(latents.to(device, BF16)).float().clamp(-1, 1)
        assert error(got, whole) < 2e-2


def sample(checkpoint, dtype, device, shape, steps=4, **options):
    stages = Stages(checkpoint, dtype=dtype, device=device, **options)
    settings = Settings(steps=steps, shift=checkpoint.defaults.shift, guidance=(3.0,))
    clips = [
        Clip(prompt=PROMPTS[0], shape=shape, seed=number)
        for number, shape in enumerate((shape, VideoShape(num_frames=1, height=shape.height, width=shape.width)))
    ]
    latents = sample_latents(stages, clips, settings)
    frames = [np.stack(list(decode_frames(stages.vae, x, clip.shape))) for x, clip in zip(latents, clips, strict=True)]
    return latents, frames


@pytest.mark.parametrize("name", ["wan21", "ti2v", "default"])
def test_whole_pipeline(checkpoints, device, name):
    shape = VideoShape(num_frames=9, height=96, width=128)
    (want, seen), (exact, same), (got, frames) = (
        sample(checkpoints[name], dtype, where, shape)
        for dtype, where in ((torch.float32, CPU), (torch.float32, device), (BF16, device))
    )
    for i in range(2):
        assert error(exact[i], want[i]) < 5e-3
        assert error(got[i], want[i]) < 0.2  # noise is the same; 16 bits for four steps of guidance 3
        assert frames[i].shape == seen[i].shape and frames[i].dtype == np.uint8
        assert np.abs(same[i].astype(int) - seen[i]).mean() < 1
        assert np.abs(frames[i].astype(int) - seen[i]).mean() < 16


def test_frames_arrive_while_the_next_are_decoded(checkpoints, device):
    """The very frames, in their order, whether the program waits for each part or not."""
    from dit_video.nn.pixels import to_frames

    vae = checkpoints["default"].load_vae(dtype=BF16, device=device)
    latents = torch.randn(vae.config.z_dim, 6, 6, 8, generator=torch.Generator().manual_seed(0)).to(device)
    t, h, w = vae.config.stride
    shape = VideoShape(num_frames=1 + 5 * t, height=6 * h, width=8 * w)
    with torch.no_grad():
        parts = [to_frames(chunk[0]) for chunk in vae.decode_stream(latents[None].to(BF16))]
    got = np.stack(list(decode_frames(vae, latents, shape)))
    assert np.array_equal(got, np.concatenate(parts))


def test_the_command(device, tmp_path: Path):
    import subprocess
    import sys

    line = [sys.executable, "-m", "dvgen", "sample", PROMPTS[0], "--size", "96x64", "--frames", "5", "--steps", "3"]
    line += ["--seed", "1", "--device", device.type, "-o", str(tmp_path / "a.mp4")]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "a.mp4").stat().st_size > 0
