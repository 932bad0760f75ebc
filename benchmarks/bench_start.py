"""From the command to the first denoising step, and to the help: dvgen against diffusers on the model that ships.

    python benchmarks/bench_start.py [--rounds 5] [--write]

The first step is seen from outside. dvgen's log (`--log-file`) has a line when it begins; diffusers is
`whole_diffusers.py`, which notes when its transformer is first called. Both are counted from before the process is
started. Prompt, noise, levels and dtype are the same, and so must be the frames, which are compared before they are
coded. The help is that of the command that comes with each.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import harness

HERE, MODEL = Path(__file__).parent, harness.ROOT / "weights" / "default"
PROMPT, SEED, STEPS = "a red ball moving right on a white background", 7, 2
SIZE, FRAMES, PADDED_SIZE, PADDED_FRAMES = "256x144", 24, "256x160", 25  # asked of dvgen, and of diffusers
LINE = "the first step begins"  # in the log
SIDES = ("diffusers", "dvgen", "dvgen, prompt read before")
HELPS = {"help of diffusers": ("diffusers.commands.diffusers_cli",), "help of dvgen": ("dvgen",)}


def command(side: str, dtype: str, folder: Path) -> list[str]:
    """What is started; diffusers leaves its frames in theirs.npy."""
    common: list[object] = ["--steps", STEPS, "--seed", SEED, "--dtype", dtype]
    if side == "diffusers":
        video = [HERE / "whole_diffusers.py", MODEL, folder / "theirs.mp4", "--prompt", PROMPT, "--size", PADDED_SIZE]
        video += ["--frames", PADDED_FRAMES, "--first-step", folder / "first", "--save", folder / "theirs.npy"]
    else:
        video = ["-m", "dvgen", "sample", PROMPT, "--size", SIZE, "--frames", FRAMES, "--sigmas", "diffusers"]
        video += ["--quiet", "--overwrite", "--log-file", folder / "log", "-o", folder / "ours.mp4"]
    return [sys.executable, *map(str, [*video, *common])]


def first_step(side: str, dtype: str, folder: Path) -> None:
    """Run a side, and say how many seconds after its start its first step began."""
    for name in ("first", "log"):
        (folder / name).unlink(missing_ok=True)
    line, started = command(side, dtype, folder), time.time()
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)
    if side == "diffusers":
        begun = float((folder / "first").read_text())
    else:
        (found,) = [line for line in (folder / "log").read_text().splitlines() if LINE in line]
        begun = datetime.strptime(found[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()
    harness.say(first_step=begun - started)


def save_frames(dtype: str, file: Path) -> None:
    """The frames of dvgen before they are coded, by its Python interface."""
    import numpy as np

    from dit_video.api import generate
    from dit_video.shapes import parse_size

    how = {"seed": SEED, "steps": STEPS, "dtype": dtype, "sigmas": "diffusers"}
    np.save(file, generate(PROMPT, size=parse_size(SIZE), frames=FRAMES, **how).frames)


def measure(dtype: str, report: harness.Report, rounds: int) -> None:
    """Lines of the report. Raises Differs."""
    import numpy as np

    path = {"PYTHONPATH": os.pathsep.join([str(harness.ROOT), str(harness.ROOT / "cli")])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        caches = {side: str(folder / "cache") if "before" in side else "" for side in SIDES}
        sides = [
            harness.Side(
                side, harness.this_script("--side", side, "--save", folder), path | {"DVGEN_CACHE": caches[side]}
            )
            for side in SIDES
        ]
        helps = [harness.Side(side, [sys.executable, "-m", *words, "--help"], path) for side, words in HELPS.items()]
        runs = harness.in_turn([*sides, *helps], rounds=rounds)
        own = harness.this_script("--side", "frames", "--save", folder / "ours.npy")
        harness.run(harness.Side("frames of dvgen", own, path))
        theirs, ours = np.load(folder / "theirs.npy"), np.load(folder / "ours.npy")
    theirs = theirs[: len(ours), : ours.shape[1], : ours.shape[2]]
    same = harness.agree(
        "PSNR of the frames in dB", harness.psnr(ours, theirs), harness.SAME_FRAMES[dtype], at_least=True
    )
    for side in SIDES[1:]:
        what = f"to the first step, {dtype}{side.removeprefix('dvgen')}"
        seconds = [f"{harness.figures(runs[each], 'first_step'):.2f} s" for each in ("diffusers", side)]
        report.claim(what, *seconds, harness.ratio(runs["diffusers"], runs[side], "first_step"), same)
    theirs_help, ours_help = (runs[side] for side in HELPS)
    seconds = [f"{harness.figures(each, 'seconds'):.2f} s" for each in (theirs_help, ours_help)]
    report.claim("`--help`", *seconds, harness.ratio(theirs_help, ours_help))


def main() -> None:
    """All of it."""
    parser = harness.parser(__doc__, rounds=5)
    parser.add_argument("--dtype", default="float32", help="bfloat16 only where the processor multiplies it")
    options: argparse.Namespace = parser.parse_args()
    if options.side == "frames":
        save_frames(options.dtype, options.save)
    elif options.side:
        first_step(options.side, options.dtype, options.save)
    else:
        report = harness.Report(
            f"start_{options.dtype}", "The start: dvgen against diffusers on the model that ships", "diffusers"
        )
        measure(options.dtype, report, options.rounds)
        report.notes.append(
            f"{SIZE} in {FRAMES} frames, which diffusers, asked for what dvgen computes, makes as {PADDED_SIZE} in "
            f"{PADDED_FRAMES}; {STEPS} steps of UniPC, guidance 4, in {options.dtype}. Times are from before "
            "the process is started to when the transformer is first called, files in the system's cache. diffusers: "
            "`whole_diffusers.py`, with `torch.inference_mode`, loading with little memory, all cores; its help is "
            "that of `diffusers-cli`. Set out for: the first step after 5 s, after 3.5 s where the prompt was read "
            "before, and the help after 0.25 s."
        )
        if options.write:
            report.write()


if __name__ == "__main__":
    main()
