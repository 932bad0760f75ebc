"""A batch of 32 small jobs: packed, one by one in the same process, and in a process for each.

    python benchmarks/bench_batch.py [--rounds 3] [--processes] [--write]

The jobs are every one of eight sizes in every one of four lengths, from a picture of 64x64 to 9 frames of 128x128, with
a prompt and a seed each: what a sheet of thumbnails or a first look at many prompts takes. Sizes are those that four
sides of 64 to 128 pixels give in both directions, and most lengths are off the model's grid; nothing of this was chosen
by what came out. Both sides are `dvgen batch` with the model that ships, and differ by `--pack 1`. They leave their
latents too, which are compared. `--processes` adds `dvgen sample` for each job, in one round: minutes.
"""

import argparse
import json
import os
import sys
import tempfile
from itertools import product
from pathlib import Path

import harness

SIZES = ("64x64", "96x64", "64x96", "96x96", "128x64", "128x96", "96x128", "128x128")
FRAMES = (1, 3, 6, 9)
COLOURS = ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
SHAPES = dict(zip(FRAMES, ("ball", "square", "triangle", "star"), strict=True))
WANTED = 1.5
SAME = {"float32": 1e-4, "bfloat16": 0.2}  # relative error of latents; bfloat16's last digits depend on company


def jobs() -> list[dict[str, str | int]]:
    """The values of options of each job."""
    made = []
    for number, (frames, (place, size)) in enumerate(product(FRAMES, enumerate(SIZES)), start=1):
        moving = "" if frames == 1 else "moving right "
        prompt = f"a {COLOURS[place]} {SHAPES[frames]} {moving}on a {COLOURS[place - 3]} background"
        made.append({"prompt": prompt, "size": size, "frames": frames, "seed": number})
    return made


def sides(folder: Path, dtype: str) -> list[harness.Side]:
    """Packed and one by one; both make everything anew."""
    file = folder / "jobs.jsonl"
    file.write_text("".join(json.dumps(job) + "\n" for job in jobs()))
    made = []
    for name, more in (("packed", ()), ("one by one", ("--pack", "1"))):
        out = folder / name.replace(" ", "-")
        out.mkdir()
        command = [sys.executable, "-m", "dvgen", "batch", file, "--out", out, "--name", "{index}", "--quiet"]
        command += ["--overwrite", "--fresh", "--keep-latents", "--dtype", dtype, *more]
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


def processes(folder: Path, dtype: str) -> float:
    """Seconds that a process for each job takes, one after the other."""
    seconds = 0.0
    for number, job in enumerate(jobs(), start=1):
        suffix = ".png" if job["frames"] == 1 else ".mp4"
        command = [sys.executable, "-m", "dvgen", "sample", job["prompt"], "--quiet", "--overwrite", "--dtype", dtype]
        command += [f"--{name}={job[name]}" for name in ("size", "frames", "seed")]
        command += ["--output", folder / f"{number}{suffix}"]
        seconds += harness.run(harness.Side("alone", list(map(str, command)), environment(folder))).seconds
    return seconds


def main() -> None:
    """Both sides in turn, and the processes where they are asked for."""
    parser = harness.parser(__doc__)
    parser.add_argument("--processes", action="store_true", help="compare with a process for each job too")
    parser.add_argument("--dtype", choices=SAME, help="without it the one that dvgen would choose")
    options: argparse.Namespace = parser.parse_args()
    from dit_video.place import foreseen

    dtype = options.dtype or foreseen("cpu", "auto").dtype.name
    report = harness.Report("batch", "A batch of 32 small jobs: packed against one by one", "one by one")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        runs = harness.in_turn(sides(folder, dtype), rounds=options.rounds)
        alone, packed = runs["one by one"], runs["packed"]
        same = agreement(folder, dtype)
        for what, figure in (("the whole command", "seconds"), ("its processor time", "cpu")):
            told = [f"{harness.figures(each, figure):.1f} s" for each in (alone, packed)]
            wanted = WANTED if figure == "seconds" else None
            report.claim(f"32 small jobs, {dtype}: {what}", *told, harness.ratio(alone, packed, figure), same, wanted)
        if options.processes:
            took = processes(folder, dtype)
            each = harness.Spread.of([took / run.seconds for run in packed])
            ours = f"{harness.figures(packed, 'seconds'):.1f} s"
            report.claim(f"32 small jobs, {dtype}: a process for each", f"{took:.1f} s", ours, each)
    tokens = sum(map(tokens_of, jobs()))
    report.notes.append(
        f"{len(jobs())} jobs of {', '.join(SIZES)} pixels in {', '.join(map(str, FRAMES))} frames each, {tokens:,} patches "
        f"in all, with the settings that the model ships with (20 steps, guidance 4). Times are of whole processes, "
        "imports and loading included; both sides read the prompts from the cache of an earlier round, and both decode "
        "and write one video after the other. A process for each job was measured in one round."
    )
    if options.write:
        report.write()


def tokens_of(job: dict[str, str | int]) -> int:
    """The patches of a job's video, by the model that ships."""
    from math import prod

    from dit_video.models.wan.pipeline import WanCheckpoint
    from dit_video.shapes import VideoShape, parse_size

    grid = WanCheckpoint.open(harness.ROOT / "weights" / "default").grid
    width, height = parse_size(str(job["size"]))
    return prod(grid.tokens(grid.latent(VideoShape(num_frames=int(job["frames"]), height=height, width=width))))


if __name__ == "__main__":
    main()
