"""Loading Wan 1.3B from a warm cache, and the memory of a whole run, against diffusers.

    python benchmarks/bench_loading.py [--text-layers 12] [--weights FOLDER] [--rounds 2] [--write]

Random weights in bfloat16 as diffusers keeps them: the transformer of T2V-1.3B, the autoencoder of Wan 2.1, and
UMT5-XXL with `--text-layers` of its 24 layers, so that diffusers, which holds all parts at a time, has room on a
machine of 24 GiB. Every file is read before, so that it is in the system's cache.

Loading is timed in a process for each side, until every page of every weight was touched: diffusers'
`WanPipeline.from_pretrained`, and dvgen's stages one after the other, each freed before the next as in a run. The time
of the whole process, which is what a user waits for, has imports in it. The whole run is the command and
`whole_diffusers.py` with the same prompt, seed, solver and levels; the frames are compared.
"""

import argparse
import gc
import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import harness

if TYPE_CHECKING:
    from torch import nn

HERE = Path(__file__).parent
PROMPT, SIZE, FRAMES, STEPS, SEED = "a red ball moving right on a white background", "416x240", 9, 2, 7
PAGE = 4096
FASTER, SMALLER = 3.0, 2.0  # that we set out for
SAME = 25.0  # dB, in bfloat16, which each side rounds to in other places


def touch(modules: "Iterable[nn.Module]") -> int:
    """Read a byte of every page of every parameter; how many numbers there are."""
    import torch

    total = 0
    for module in modules:
        for parameter in module.parameters():
            total += parameter.numel()
            parameter.detach().flatten().view(torch.uint8)[::PAGE].sum()
    return total


def load(side: str, folder: Path) -> None:
    """Load one side in this process, and say the seconds after its imports, and how many weights there are."""
    if side == "dvgen":
        from dvgen import process

        process.prepare()
    import torch

    if side == "diffusers":
        from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel  # noqa: F401
        from transformers import AutoTokenizer, UMT5EncoderModel  # noqa: F401

        start = time.perf_counter()
        pipeline = WanPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16)
        total = touch(part for part in pipeline.components.values() if isinstance(part, torch.nn.Module))
    else:
        from dit_video.models import open_checkpoint
        from dit_video.models.wan import dit, vae  # noqa: F401
        from dit_video.text import encoders  # noqa: F401

        start, total = time.perf_counter(), 0
        checkpoint = open_checkpoint(folder)
        for stage in (checkpoint.load_text, checkpoint.load_dit, checkpoint.load_vae):
            part = stage(dtype=torch.bfloat16, device=torch.device("cpu"))
            total += touch([getattr(part, "module", part)])
            del part
            gc.collect()
    harness.say(loading=time.perf_counter() - start, weights=total)


def warm(folder: Path) -> None:
    """Read every file once."""
    piece = bytearray(2**24)
    for file in folder.rglob("*.safetensors"):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(piece):
                pass


def compare(folder: Path, rounds: int, report: harness.Report) -> None:
    """Both claims. Raises Differs."""
    import imageio.v3 as imageio

    path = {"PYTHONPATH": os.pathsep.join([str(harness.ROOT), str(harness.ROOT / "cli")]), "DVGEN_CACHE": ""}
    sides = [
        harness.Side(name, [sys.executable, sys.argv[0], "--side", name, "--weights", str(folder)], path)
        for name in ("diffusers", "dvgen")
    ]
    warm(folder)
    runs = harness.in_turn(sides, rounds=rounds)
    theirs, ours = runs["diffusers"], runs["dvgen"]
    count, other = (each[0].said["weights"] for each in (ours, theirs))
    if count != other:
        raise harness.Differs(f"dvgen loaded {count} weights, diffusers {other}.")
    weights = f"{count / 1e9:.1f} billion weights"
    for what, figure in (("", "loading"), (", imports and the end of the process included", "seconds")):
        said = [f"{harness.figures(each, figure):.2f} s" for each in (theirs, ours)]
        report.claim(f"loading Wan 1.3B, {weights}{what}", *said, harness.ratio(theirs, ours, figure), "", FASTER)
    with tempfile.TemporaryDirectory() as name:
        out = Path(name)
        peer = [sys.executable, HERE / "whole_diffusers.py", folder, out / "theirs.mp4", "--prompt", PROMPT]
        peer += ["--size", SIZE, "--frames", FRAMES, "--steps", STEPS, "--seed", SEED, "--dtype", "bfloat16"]
        own = [sys.executable, "-m", "dvgen", "sample", PROMPT, "--model", folder, "--size", SIZE, "--frames", FRAMES]
        own += ["--steps", STEPS, "--guidance", "4", "--negative", "", "--seed", SEED, "--dtype", "bfloat16"]
        own += ["--sigmas", "diffusers", "--fps", "12", "--quiet", "--overwrite", "-o", out / "ours.mp4"]
        whole = [harness.Side("diffusers", [*map(str, peer)], path), harness.Side("dvgen", [*map(str, own)], path)]
        runs = harness.in_turn(whole, rounds=rounds, warmup=False)
        a, b = (imageio.imread(out / f"{each}.mp4") for each in ("ours", "theirs"))
    same = harness.agree("PSNR of the files' frames in dB", harness.psnr(a, b), SAME, at_least=True)
    theirs, ours = runs["diffusers"], runs["dvgen"]
    what = f"Wan 1.3B, {SIZE}, {FRAMES} frames, {STEPS} steps, whole process"
    peaks = [f"{harness.figures(each, 'peak').middle / 2**30:.2f} GiB" for each in (theirs, ours)]
    report.claim(f"{what}: peak memory", *peaks, harness.ratio(theirs, ours, "peak"), same, SMALLER)
    seconds = [f"{harness.figures(each, 'seconds'):.1f} s" for each in (theirs, ours)]
    report.claim(f"{what}: time", *seconds, harness.ratio(theirs, ours), same)


def main() -> None:
    """Both, with weights that are there or are made."""
    parser = harness.parser(__doc__, rounds=2)
    parser.add_argument("--text-layers", type=int, default=12)
    parser.add_argument("--weights", type=Path, help="a folder of make_full_size.py, made if it is not there")
    options: argparse.Namespace = parser.parse_args()
    if options.side:
        load(options.side, options.weights)
        return
    harness.check_dtype("bfloat16")
    from make_full_size import write

    report = harness.Report(
        "loading", "Loading Wan 1.3B, and the memory of a run: dvgen against diffusers", "diffusers"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = options.weights or Path(name) / "wan"
        if not folder.is_dir():
            write("T2V-1.3B", folder, text_encoder="umt5-xxl", layers=None, text_layers=options.text_layers)
        compare(folder, options.rounds, report)
    layers = f"UMT5-XXL has {options.text_layers} of its 24 layers here."
    report.notes.append(" ".join((__doc__ or "").split("\n\n")[3].split()) + " " + layers)
    if options.write:
        report.write()


if __name__ == "__main__":
    main()
