"""A batch of 32 small jobs: packed, one by one in the same process, in a process for each, and by diffusers.

    python benchmarks/bench_batch.py [--rounds 2] [--processes 8] [--diffusers] [--write]

The jobs are every one of eight sizes in every one of four lengths, from a picture of 96x96 to 17 frames of 192x128,
with a prompt and a seed each: what a sheet of thumbnails or a first look at many prompts takes. Both sides are `dvgen
batch` with the model that ships, and differ by `--pack 1`; they leave their latents too, which are compared.
`--processes N` adds `dvgen sample` for N of the jobs, evenly chosen, and `--diffusers` the same jobs one by one in one
process of diffusers; both are measured once.
"""

import argparse
import json
import os
import sys
import tempfile
from itertools import product
from pathlib import Path

import harness

MODEL = harness.ROOT / "weights" / "default"
SIZES = ("96x96", "128x96", "96x128", "128x128", "160x96", "160x128", "192x96", "192x128")
FRAMES = (1, 9, 12, 17)
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
SHAPES = dict(zip(FRAMES, ("ball", "square", "triangle", "star"), strict=True))
WANTED = 1.5
SAME = {"float32": 1e-4, "bfloat16": 0.2}  # relative error of latents; bfloat16's last digits depend on company
SAME_FILES = 35.0  # dB from which files are the same: of both sides, each coded with losses of its own


def jobs() -> list[dict[str, str | int]]:
    """The values of options of each job."""
    made = []
    for number, (frames, (place, size)) in enumerate(product(FRAMES, enumerate(SIZES)), start=1):
        moving = "" if frames == 1 else "moving right "
        prompt = f"a {COLOURS[place]} {SHAPES[frames]} {moving}on a {COLOURS[place - 3]} background"
        made.append({"prompt": prompt, "size": size, "frames": frames, "seed": number})
    return made


def name_of(number: int, job: dict[str, str | int]) -> str:
    """The file of a job, counted from 1."""
    return f"{number}{'.png' if job['frames'] == 1 else '.mp4'}"


def sides(folder: Path, dtype: str) -> list[harness.Side]:
    """Packed and one by one; both make everything anew."""
    file = folder / "jobs.jsonl"
    file.write_text("".join(json.dumps(job) + "\n" for job in jobs()))
    made = []
    for name, more in (("packed", ()), ("one by one", ("--pack", "1"))):
        out = folder / name.replace(" ", "-")
        out.mkdir()
        command = [sys.executable, "-m", "dvgen", "batch", file, "--out", out, "--name", "{index}", "--quiet"]
        command += ["--overwrite", "--fresh", "--keep-latents", "--dtype", dtype, "--sigmas", "diffusers", *more]
        made.append(harness.Side(name, list(map(str, command)), environment(folder)))
    return made


def environment(folder: Path) -> dict[str, str]:
    """Of dvgen's processes: this checkout, and a cache of prompts of their own."""
    path = os.pathsep.join([str(harness.ROOT), str(harness.ROOT / "cli")])
    return {"PYTHONPATH": path, "DVGEN_CACHE": str(folder / "cache")}


def agreement(folder: Path, dtype: str) -> str:
    """How far the latents of packed jobs are from those of jobs alone, at worst. Raises Differs."""
    from safetensors.torch import load_file

    errors = []
    for number in range(1, len(jobs()) + 1):
        a, b = (load_file(folder / side / f"{number}.safetensors")["latents"] for side in ("packed", "one-by-one"))
        errors.append(harness.relative_error(a, b))
    return harness.agree("largest relative error of latents", max(errors), SAME[dtype])


def processes(folder: Path, dtype: str, count: int) -> float:
    """Seconds that a process for a job takes, in the mean of `count` of them, one after the other."""
    every = list(enumerate(jobs(), start=1))
    some = [every[(2 * place + 1) * len(every) // (2 * count)] for place in range(count)]
    seconds = 0.0
    for number, job in some:
        command = [sys.executable, "-m", "dvgen", "sample", job["prompt"], "--quiet", "--overwrite", "--dtype", dtype]
        command += [f"--{name}={job[name]}" for name in ("size", "frames", "seed")]
        command += ["--sigmas", "diffusers", "--output", folder / name_of(number, job)]
        seconds += harness.run(harness.Side("alone", list(map(str, command)), environment(folder))).seconds
    return seconds / count


def by_diffusers(out: Path, dtype: str) -> None:
    """All jobs by diffusers, its model loaded once; sizes and lengths as dvgen computes them, on the model's grid."""
    import imageio
    import numpy as np
    import torch
    from diffusers import WanPipeline

    from dit_video.models.wan.pipeline import WanCheckpoint
    from dit_video.shapes import VideoShape, parse_size

    grid = WanCheckpoint.open(MODEL).grid
    pipeline = WanPipeline.from_pretrained(MODEL, torch_dtype=getattr(torch, dtype))
    pipeline.set_progress_bar_config(disable=True)
    for number, job in enumerate(jobs(), start=1):
        width, height = parse_size(str(job["size"]))
        padded = grid.padded(VideoShape(num_frames=int(job["frames"]), height=height, width=width))
        with torch.inference_mode():
            frames = pipeline(
                prompt=job["prompt"],
                negative_prompt="",
                width=padded.width,
                height=padded.height,
                num_frames=padded.num_frames,
                num_inference_steps=20,
                guidance_scale=4.0,
                generator=torch.Generator("cpu").manual_seed(int(job["seed"])),
                output_type="np",
            ).frames[0]
        pixels = (frames * 255).round().astype(np.uint8)[: int(job["frames"]), :height, :width]
        path = out / name_of(number, job)
        if len(pixels) == 1:
            imageio.imwrite(path, pixels[0])
            continue
        coding = {"codec": "libx264", "quality": None, "macro_block_size": 1}
        with imageio.get_writer(path, fps=12, ffmpeg_params=["-crf", "16", "-preset", "medium"], **coding) as writer:
            for frame in pixels:
                writer.append_data(frame)


def same_files(ours: Path, theirs: Path) -> str:
    """How far the files of dvgen and of diffusers agree, at worst. Raises Differs."""
    from dit_video.video.io import read_video

    names = [name_of(number, job) for number, job in enumerate(jobs(), start=1)]
    found = [harness.psnr(read_video(ours / name)[0], read_video(theirs / name)[0]) for name in names]
    return harness.agree("least PSNR of the files in dB", min(found), SAME_FILES, at_least=True)


def main() -> None:
    """Both sides in turn, and the others where they are asked for."""
    parser = harness.parser(__doc__, rounds=2)
    parser.add_argument("--processes", type=int, default=0, help="compare with a process for each of so many jobs too")
    parser.add_argument("--diffusers", action="store_true", help="compare with diffusers too")
    parser.add_argument("--dtype", choices=SAME, default="float32", help="bfloat16 where the processor multiplies it")
    options: argparse.Namespace = parser.parse_args()
    harness.check_dtype(options.dtype)
    if options.side:
        by_diffusers(options.save, options.dtype)
        return
    dtype = options.dtype
    report = harness.Report(
        f"batch_{options.dtype}", "A batch of 32 small jobs: packed against one by one", "one by one"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        both = sides(folder, dtype)
        harness.run(both[0])  # reads the prompts
        runs = harness.in_turn(both, rounds=options.rounds, warmup=False)
        alone, packed = runs["one by one"], runs["packed"]
        same, ours = agreement(folder, dtype), f"{harness.figures(packed, 'seconds'):.1f} s"
        for what, figure, wanted in (
            ("`dvgen batch --pack 1`", "seconds", WANTED),
            ("the same, processor time", "cpu", None),
        ):
            told = [f"{harness.figures(each, figure):.1f} s" for each in (alone, packed)]
            report.claim(f"32 small jobs, {dtype}: {what}", *told, harness.ratio(alone, packed, figure), same, wanted)
        if options.processes:
            took = len(jobs()) * processes(folder, dtype, options.processes)
            each = harness.Spread.of([took / run.seconds for run in packed])
            what = f"32 small jobs, {dtype}: `dvgen sample` for each, 32 times the mean of {options.processes}"
            report.claim(what, f"{took:.1f} s", ours, each)
        if options.diffusers:
            out = folder / "diffusers"
            out.mkdir()
            path = {"PYTHONPATH": environment(folder)["PYTHONPATH"]}
            command = harness.this_script("--side", "diffusers", "--save", out)
            took = harness.run(harness.Side("diffusers", command, path)).seconds
            each = harness.Spread.of([took / run.seconds for run in packed])
            what = f"32 small jobs, {dtype}: diffusers, one by one in one process"
            report.claim(what, f"{took:.1f} s", ours, each, same_files(folder / "packed", out))
    tokens = sum(map(tokens_of, jobs()))
    report.notes.append(
        f"{len(jobs())} jobs of {', '.join(SIZES)} pixels in {', '.join(map(str, FRAMES))} frames each, {tokens:,} "
        "patches in all, with the settings that the model ships with (20 steps, guidance 4) and diffusers' levels. "
        "Times are of whole processes, imports and loading included; those of dvgen find what an earlier run made of "
        "the prompts. Processes for each job were measured once."
    )
    if options.diffusers:
        report.notes.append(
            "diffusers was measured once, loaded with little memory, in `torch.inference_mode`, with all cores; it "
            "reads every prompt."
        )
    if options.write:
        report.write()


def tokens_of(job: dict[str, str | int]) -> int:
    """The patches of a job's video, by the model that ships."""
    from math import prod

    from dit_video.models.wan.pipeline import WanCheckpoint
    from dit_video.shapes import VideoShape, parse_size

    grid = WanCheckpoint.open(MODEL).grid
    width, height = parse_size(str(job["size"]))
    return prod(grid.tokens(grid.latent(VideoShape(num_frames=int(job["frames"]), height=height, width=width))))


if __name__ == "__main__":
    main()
