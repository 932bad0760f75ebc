"""Decode time of dit_video's WanVAE and of diffusers' AutoencoderKLWan: same random weights, same latents, one run.

    python benchmarks/bench_vae_decode.py [--size 640x384] [--frames 49] [--threads 2] [--form unshuffle4|unshuffle2]

Each side runs in processes of its own, in turn, `--rounds` times: diffusers in the environment as it is, dit_video with
the settings of the `dvgen` command's process (dvgen/process.py: huge pages, freed memory kept), and diffusers once more
with those settings, so that the part that they play can be seen. Prints the best wall and processor seconds of each,
their ratios, and the largest difference between the results. Where other work shares the machine, the processor seconds
are the steadier.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dvgen import process

SIDES = {  # what runs, and whether with the settings of the command's process
    "diffusers": ("diffusers", False),
    "diffusers, our process": ("diffusers", True),
    "ours, frame by frame": ("stream", True),
    "ours, whole clip": ("whole", True),
}
FORMS: dict[str, dict[str, Any]] = {
    "unshuffle4": {"dim": 32, "z_dim": 32, "dim_mult": (1, 2, 2), "temporal_downsample": (True, True), "patch": 4},
    "unshuffle2": {"dim": 24, "z_dim": 48, "dim_mult": (1, 2, 4, 4), "patch": 2},
}


def measure(options: argparse.Namespace) -> None:
    """One side, in this process: prints wall and processor seconds of the second of two runs; saves what came out."""
    if options.prepare:
        process.prepare()
    import torch
    from diffusers import AutoencoderKLWan

    from dit_video.models.wan.configs import VAEConfig
    from dit_video.models.wan.vae import WanVAE
    from dit_video.models.wan.vae_layouts import diffusers_config, diffusers_layout
    from dit_video.shapes import parse_size

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    form = FORMS[options.form]
    channels = form["z_dim"]
    config = VAEConfig(
        **form, decoder_dim=form["dim"], num_res_blocks=1, residual=True, latents_mean=(0.0,) * channels,
        latents_std=(1.0,) * channels,
    )  # fmt: skip
    dtype = getattr(torch, options.dtype)
    theirs = AutoencoderKLWan.from_config(diffusers_config(config)).to(dtype).eval()
    ours = WanVAE(config).to(dtype).eval()
    layout = diffusers_layout(config)
    ours.load_state_dict({layout.to_ours(name): value for name, value in theirs.state_dict().items()})
    width, height = parse_size(options.size)
    t, h, w = config.stride
    latents = torch.randn(1, channels, 1 + (options.frames - 1) // t, height // h, width // w, dtype=dtype)
    runs: dict[str, Callable[[], torch.Tensor]] = {
        "diffusers": lambda: theirs.decode(latents).sample,
        "stream": lambda: torch.cat(list(ours.decode_stream(latents)), dim=2),
        "whole": lambda: ours.decode(latents).clamp(-1, 1),
    }
    with torch.inference_mode():
        runs[options.side]()
        wall, cpu = time.perf_counter(), time.process_time()
        decoded = runs[options.side]()
        print(time.perf_counter() - wall, time.process_time() - cpu)
    torch.save(decoded.float(), options.save)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="640x384")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--form", choices=FORMS, default="unshuffle4")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--save", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure(options)
        return

    import torch

    print(f"{options.form}, {options.size}, {options.frames} frames, {options.dtype}, {options.threads} threads")
    best: dict[str, tuple[float, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{i}.pt" for i, name in enumerate(SIDES)}
        for _ in range(options.rounds):
            for name, (side, prepare) in SIDES.items():
                command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--save", str(files[name])]
                command += ["--prepare"] if prepare else []
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                wall, cpu = (float(part) for part in done.stdout.split())
                before = best.get(name, (wall, cpu))
                best[name] = min(before[0], wall), min(before[1], cpu)
        reference, expected = best["diffusers"], torch.load(files["diffusers"])
        for name, (wall, cpu) in best.items():
            ratio = f"{reference[0] / wall:5.1f}x wall {reference[1] / cpu:5.1f}x cpu"
            gap = (torch.load(files[name]) - expected).abs().max()
            print(f"{name:24} {wall:7.2f} s wall {cpu:7.2f} s cpu {ratio}   largest difference {gap:.1e}", flush=True)


if __name__ == "__main__":
    main()
