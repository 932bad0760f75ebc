"""Decode time of dit_video's WanVAE and of diffusers' AutoencoderKLWan: same random weights, same latents, one run.

    python benchmarks/bench_vae_decode.py [--size 640x384] [--frames 49] [--threads 2] [--form unshuffle4|unshuffle2]

Prints wall and processor seconds of each, the ratios, and the largest difference between the two results. The
processor seconds are what to trust on a machine that does other work at the same time.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin are far slower on a shared machine
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # huge pages: 15 to 20 % faster, both models

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from dit_video.models.wan.vae import VAEConfig, WanVAE
from dit_video.models.wan.vae_layouts import diffusers_config, diffusers_layout
from dit_video.shapes import parse_size

FORMS = {
    "unshuffle4": VAEConfig(
        dim=32, decoder_dim=32, z_dim=32, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True),
        residual=True, patch=4, latents_mean=(0.0,) * 32, latents_std=(1.0,) * 32,
    ),
    "unshuffle2": VAEConfig(
        dim=24, decoder_dim=24, z_dim=48, dim_mult=(1, 2, 4, 4), num_res_blocks=1, residual=True, patch=2,
        latents_mean=(0.0,) * 48, latents_std=(1.0,) * 48,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Timing:
    """The best of a few runs: wall seconds, and processor seconds of all threads."""

    wall: float
    cpu: float

    def __str__(self) -> str:
        return f"{self.wall:7.2f} s wall {self.cpu:7.2f} s cpu"


def timed(run: Callable[[], Tensor], repeats: int) -> tuple[Timing, Tensor]:
    """The best Timing of `repeats` runs, and the last result."""
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        result = run()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return Timing(min(walls), min(cpus)), result


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="640x384")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--form", choices=FORMS, default="unshuffle4")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config, dtype = FORMS[options.form], getattr(torch, options.dtype)
    theirs = AutoencoderKLWan.from_config(diffusers_config(config)).to(dtype).eval()
    ours = WanVAE(config).to(dtype).eval()
    layout = diffusers_layout(config)
    ours.load_state_dict({layout.to_ours(name): value for name, value in theirs.state_dict().items()})

    width, height = parse_size(options.size)
    t, h, w = config.stride
    latents = torch.randn(1, config.z_dim, 1 + (options.frames - 1) // t, height // h, width // w, dtype=dtype)
    shape = f"{width // w * w}x{height // h * h}x{1 + (latents.shape[2] - 1) * t}"
    print(f"{options.form}, {shape}, {options.dtype}, {options.threads} threads")

    whole, ours_out = timed(lambda: ours.decode(latents).clamp(-1, 1), 3)
    print(f"dit_video, whole clip      {whole}", flush=True)
    stream, _ = timed(lambda: torch.cat(list(ours.decode_stream(latents)), dim=2), 3)
    print(f"dit_video, frame by frame  {stream}", flush=True)
    reference, their_out = timed(lambda: theirs.decode(latents).sample, 2)
    print(f"diffusers                  {reference}")
    print(f"ratio, whole clip:     {reference.wall / whole.wall:.1f} wall, {reference.cpu / whole.cpu:.1f} cpu")
    print(f"ratio, frame by frame: {reference.wall / stream.wall:.1f} wall, {reference.cpu / stream.cpu:.1f} cpu")
    print(f"largest difference: {(ours_out - their_out).abs().max():.1e}")


if __name__ == "__main__":
    main()
