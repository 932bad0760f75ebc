"""Judge trained autoencoders on held-out scenes: what the detector still reads, PSNR inside the objects' boxes, and
decode time.

    python benchmarks/compare_autoencoders.py runs/vae-a runs/vae-b --clips 200

Each line is one autoencoder: agreement of the detector (all four fields right, of those it gets right on the original
pixels) on plain reconstructions and on latents with noise of mean square 0.02 and 0.1; PSNR over the object's box and
over the frame; seconds to decode 640x384x49 in bfloat16.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from dit_video.nn.pixels import pad_frames, to_frames, to_video
from dit_video.scenes.detector import detect, score
from dit_video.scenes.render import render
from dit_video.scenes.world import sample_scene
from dit_video.shapes import Grid, VideoShape
from dit_video.train.autoencoder import load_autoencoder
from dit_video.train.data import object_mask

NOISES = (0.0, 0.02, 0.1)  # mean squares, relative to unit latents


def psnr(error: torch.Tensor) -> float:
    """Decibels for errors of pixels in [-1, 1]."""
    return float(10 * torch.log10(4 / error.square().mean()))


@torch.no_grad()
def judge(folder: Path, *, clips: int, shape: VideoShape, time_decode: bool) -> None:
    """Print one autoencoder's line."""
    vae = load_autoencoder(folder)
    grid = Grid(stride=vae.config.stride)
    padded = grid.padded(shape)
    rng = np.random.default_rng(99)
    agree, asked, inside, whole = dict.fromkeys(NOISES, 0), 0, [], []
    for _ in range(clips):
        scene = sample_scene(
            rng, num_frames=shape.num_frames, size=(shape.width, shape.height), held_out=True, objects=1
        )
        frames = render(scene)
        if not all(score(detect(frames), scene).values()):
            continue
        asked += 1
        video = to_video(pad_frames(frames, padded)[None])
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(video).float()
            for noise in NOISES:
                noisy = latents + noise**0.5 * torch.randn(
                    latents.shape, generator=torch.Generator().manual_seed(asked)
                )
                decoded = vae.decode(noisy).float().clamp(-1, 1)
                pixels = to_frames(decoded[0])[: shape.num_frames, : shape.height, : shape.width]
                agree[noise] += all(score(detect(pixels), scene).values())
                if noise == 0.0:
                    error = (decoded - video)[0]
                    whole.append(psnr(error))
                    inside.append(psnr(error[:, object_mask(scene, padded)]))
    seconds = float("nan")
    if time_decode:
        size = VideoShape(num_frames=49, height=384, width=640)
        latent = grid.latent(size)
        sample = torch.randn(1, vae.config.z_dim, latent.frames, latent.height, latent.width).bfloat16()
        vae.to(torch.bfloat16)
        started = time.perf_counter()
        for _ in vae.decode_stream(sample):
            pass
        seconds = time.perf_counter() - started
    rates = "  ".join(f"agree@{noise:g} {100 * agree[noise] / asked:5.1f}%" for noise in NOISES)
    parameters = sum(p.numel() for p in vae.parameters()) / 1e6
    print(
        f"{folder.name:24s} {parameters:5.2f}M  n={asked}  {rates}  "
        f"box {np.mean(inside):5.2f} dB  frame {np.mean(whole):5.2f} dB  "
        f"decode {seconds:5.2f} s",
        flush=True,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--size", default="256x144")
    parser.add_argument("--frames", type=int, default=24)
    parser.add_argument("--no-time", action="store_true")
    arguments = parser.parse_args()
    width, height = (int(part) for part in arguments.size.split("x"))
    for folder in arguments.folders:
        judge(
            folder,
            clips=arguments.clips,
            shape=VideoShape(num_frames=arguments.frames, height=height, width=width),
            time_decode=not arguments.no_time,
        )
