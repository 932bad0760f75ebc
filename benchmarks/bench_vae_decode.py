"""Decode time of dit_video's WanVAE and of diffusers' AutoencoderKLWan: same random weights, same latents, one run.

    python benchmarks/bench_vae_decode.py [--size 640x384] [--frames 49] [--threads 2] [--form unshuffle4|unshuffle2]

Prints the best wall and processor seconds of each over a few rounds, their ratios, and the largest difference between
the results. Where other work shares the machine, the processor seconds are the steadier ones.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin are far slower on a shared machine

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


def timed(runs: dict[str, Callable[[], Tensor]], rounds: int) -> tuple[dict[str, Timing], dict[str, Tensor]]:
    """The best Timing of each run over `rounds` rounds of all of them in turn, and what each returned last."""
    timings: dict[str, list[Timing]] = {name: [] for name in runs}
    results = {}
    for _ in range(rounds):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            results[name] = run()
            timings[name].append(Timing(time.perf_counter() - wall, time.process_time() - cpu))
    best = {name: Timing(min(t.wall for t in each), min(t.cpu for t in each)) for name, each in timings.items()}
    return best, results


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="640x384")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
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

    runs = {
        "diffusers": lambda: theirs.decode(latents).sample,
        "ours, frame by frame": lambda: torch.cat(list(ours.decode_stream(latents)), dim=2),
        "ours, 4 latent frames at a time": lambda: torch.cat(list(ours.decode_stream(latents, chunk=4)), dim=2),
        "ours, whole clip": lambda: ours.decode(latents).clamp(-1, 1),
    }
    timings, results = timed(runs, options.rounds)
    reference = timings["diffusers"]
    for name, timing in timings.items():
        ratio = f"{reference.wall / timing.wall:5.1f}x wall {reference.cpu / timing.cpu:5.1f}x cpu"
        gap = (results[name] - results["diffusers"]).abs().max()
        print(f"{name:32} {timing.wall:7.2f} s wall {timing.cpu:7.2f} s cpu {ratio}   largest difference {gap:.1e}")


if __name__ == "__main__":
    main()
