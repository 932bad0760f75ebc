"""A step and the decoding of a model of Wan 2.1 T2V-1.3B's shape: dvgen against stable-diffusion.cpp on the CPU.

    python benchmarks/bench_sdcpp.py [--steps 1] [--write]

Both sides read the same files, random weights of float16 in the release's names, which are written first (3.1 GB). Both
begin with the same noise, since stable-diffusion.cpp can draw it as torch does, take Euler steps without guidance from
the same levels, and see a text of zeros: that is what stable-diffusion.cpp takes where there is no text encoder. It
computes with the weights as they are; dvgen in float32, or what `--dtype` says. What is timed are the steps and the
decoding, not the reading of files.
"""

import argparse
import json
import os
import re
import sys
import tempfile
import time
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import harness

from dit_video.shapes import parse_size

PACKAGE = "stable-diffusion-cpp-python"
SEED, SHIFT = 7, 3.0
SAME = 45.0  # dB from which frames are the same: stable-diffusion.cpp rounds what goes into a product to float16


def write_weights(folder: Path) -> None:
    """A transformer and an autoencoder of full size, in one file each."""
    import torch
    from safetensors.torch import save_file

    from dit_video.models.wan.dit import WanDiT
    from dit_video.models.wan.vae import WanVAE
    from dit_video.models.wan.variants import VARIANTS

    torch.manual_seed(0)
    variant = VARIANTS["T2V-1.3B"]
    with torch.device("meta"):
        modules = {"transformer": WanDiT(variant.dit), "vae": WanVAE(variant.vae)}
    for part, module in modules.items():
        made = {name: values(name, parameter.shape) for name, parameter in module.named_parameters()}
        save_file(made, folder / f"{part}.safetensors")


def values(name: str, shape: Any) -> Any:
    """Numbers that keep activations in range: norms scale by one, what is added is zero, matrices keep the variance."""
    import torch

    if re.search(r"norm.*weight$|gamma$", name):
        return torch.ones(shape, dtype=torch.float16)
    if len(shape) < 2:
        return torch.zeros(shape, dtype=torch.float16)
    return (torch.randn(shape) * min(shape[1:].numel() ** -0.5, 0.05)).half()


def theirs(folder: Path, size: tuple[int, int], frames: int, steps: int, save: Path) -> None:
    """stable-diffusion.cpp with its Python package."""
    import numpy as np
    from stable_diffusion_cpp import StableDiffusion

    threads = len(os.sched_getaffinity(0))
    files = {"diffusion_model_path": folder / "transformer.safetensors", "vae_path": folder / "vae.safetensors"}
    paths = {name: str(file) for name, file in files.items()}
    model = StableDiffusion(**paths, n_threads=threads, rng_type="cpu", sampler_rng_type="cpu", verbose=False)
    step, stepped = 0.0, 0.0

    def told(number: int, total: int, seconds: float) -> None:
        nonlocal step, stepped
        if number:
            step, stepped = seconds, time.perf_counter()

    images = model.generate_video(
        prompt="",
        width=size[0],
        height=size[1],
        video_frames=frames,
        cfg_scale=1.0,
        sample_method="euler",
        scheduler="discrete",
        sample_steps=steps,
        flow_shift=SHIFT,
        seed=SEED,
        progress_callback=told,
    )
    decode = time.perf_counter() - stepped
    np.save(save, np.stack([np.asarray(image.convert("RGB")) for image in images]))
    harness.say(step=step, decode=decode)


def ours(folder: Path, size: tuple[int, int], frames: int, steps: int, dtype_name: str, save: Path) -> None:
    """dvgen: the same by its transformer and autoencoder."""
    from dvgen.process import prepare

    prepare()
    import numpy as np
    import torch
    from safetensors import safe_open
    from torch import nn

    from dit_video.models.wan.dit import WanDiT
    from dit_video.models.wan.vae import WanVAE
    from dit_video.models.wan.variants import VARIANTS
    from dit_video.nn.linear import multiplies
    from dit_video.nn.pixels import to_frames

    dtype, variant = getattr(torch, dtype_name), VARIANTS["T2V-1.3B"]
    if not multiplies(dtype, "cpu"):
        raise SystemExit(f"--dtype {dtype_name}: this processor does not multiply it; use float32.")

    def load(module: nn.Module, file: Path) -> None:
        with safe_open(file, framework="pt") as tensors:
            state = {name: tensors.get_tensor(name).to(dtype) for name in tensors.keys()}  # noqa: SIM118
        module.load_state_dict(state, strict=True, assign=True)

    with torch.device("meta"):
        dit, vae = WanDiT(variant.dit), WanVAE(variant.vae)
    load(dit, folder / "transformer.safetensors")
    load(vae, folder / "vae.safetensors")
    with torch.no_grad():
        text = dit.encode_text([torch.zeros(1, variant.dit.text_dim)])
        latent = (16, (frames + 3) // 4, size[1] // 8, size[0] // 8)
        x = torch.randn((1, *latent), generator=torch.Generator("cpu").manual_seed(SEED))[0]
        levels = [SHIFT * t / (1 + (SHIFT - 1) * t) for t in flow_times(steps)] + [0.0]
        start = time.perf_counter()
        for sigma, following in pairwise(levels):
            (velocity,) = dit([x], [torch.full((latent[1],), 1000 * sigma)], text, [0])
            x = x + (following - sigma) * velocity
        step = (time.perf_counter() - start) / steps
        start = time.perf_counter()
        video = torch.cat([part[0].float() for part in vae.decode_stream(x[None].to(dtype))], dim=1)
        pixels = to_frames(video)
        decode = time.perf_counter() - start
    np.save(save, pixels)
    harness.say(step=step, decode=decode)


def flow_times(steps: int) -> list[float]:
    """stable-diffusion.cpp's levels before their shift, `discrete`: whole steps of a thousand, from the last down."""
    if steps == 1:
        return [1.0]
    return [(999 - number * 999 / (steps - 1) + 1) / 1000 for number in range(steps)]


def main() -> None:
    """Both sides, or the one that is named."""
    parser = harness.parser(__doc__, rounds=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--size", type=parse_size, default="416x240")
    parser.add_argument("--frames", type=int, default=9)
    parser.add_argument("--dtype", default="float32", help="of dvgen's products; bfloat16 where they are multiplied")
    parser.add_argument("--folder", type=Path, help="where the weights are, or are written; else a temporary one")
    options: argparse.Namespace = parser.parse_args()
    if options.side == "weights":
        write_weights(options.folder)
    elif options.side == "sdcpp":
        theirs(options.folder, options.size, options.frames, options.steps, options.save)
    elif options.side == "dvgen":
        ours(options.folder, options.size, options.frames, options.steps, options.dtype, options.save)
    elif find_spec("stable_diffusion_cpp") is None:
        raise SystemExit(f"{PACKAGE} is not installed: pip install {PACKAGE} builds it, with a C++ compiler and CMake.")
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """Both sides in turn, and the report."""
    import numpy as np

    with tempfile.TemporaryDirectory() as name:
        folder, made = Path(options.folder or name), Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        path = {"PYTHONPATH": os.pathsep.join([str(harness.ROOT), str(harness.ROOT / "cli"), *filter(None, sys.path)])}
        if not (folder / "vae.safetensors").is_file():
            harness.run(harness.Side("weights", harness.this_script("--side", "weights", "--folder", folder), path))
        files = {side: made / f"{side}.npy" for side in ("sdcpp", "dvgen")}
        sides = [
            harness.Side(side, harness.this_script("--side", side, "--folder", folder, "--save", file), path)
            for side, file in files.items()
        ]
        runs = harness.in_turn(sides, rounds=options.rounds, warmup=False)
        a, b = (np.load(file) for file in files.values())
    size = "x".join(map(str, options.size))
    same = harness.agree("PSNR of the frames in dB", harness.psnr(a, b), SAME, at_least=True)
    report = harness.Report("sdcpp", "dvgen against stable-diffusion.cpp on the CPU", "stable-diffusion.cpp")
    for what, figure in (("a step", "step"), ("decoding", "decode")):
        seconds = [f"{harness.figures(runs[side], figure):.1f} s" for side in files]
        ratio = harness.ratio(runs["sdcpp"], runs["dvgen"], figure)
        report.claim(f"T2V-1.3B, {size} in {options.frames} frames: {what}", *seconds, ratio, same)
    memory = [f"{harness.figures(runs[side], 'peak').most / 2**20:.0f} MiB" for side in files]
    report.claim("peak resident memory of the process", *memory, harness.ratio(runs["sdcpp"], runs["dvgen"], "peak"))
    said = json.dumps({side: [dict(run.said) for run in each] for side, each in runs.items()})
    report.notes.append(
        f"Random weights of float16, {options.steps} Euler step(s) without guidance, a text of zeros, the same noise, "
        f"all cores. dvgen computes in {options.dtype}; stable-diffusion.cpp with the weights as they are, for "
        "which it rounds activations to float16. Its flash attention is for saving memory on a CPU, where its "
        "documentation says that it is slower, and is off, as it is by default. "
        f"{options.rounds} round(s): {said}."
    )
    if options.write:
        report.write()


if __name__ == "__main__":
    main()
