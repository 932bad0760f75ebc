"""The whole process, from the command to the MP4: dvgen against diffusers on the model that ships.

    python benchmarks/bench_whole.py [--rounds 3] [--write]

diffusers is `whole_diffusers.py`, a script as its documentation has it. Both have the same prompt, noise, solver,
levels, steps, guidance and dtype. diffusers rounds sizes down to its grid, so it is asked for what dvgen computes for a
size: as many patches. dvgen keeps nothing from one run to the next here; what it takes where the prompt was read before
is told beside for the small size, where it shows. Frames are compared as they are before they are coded, those of dvgen
made once more, by its Python interface.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import harness

HERE, MODEL = Path(__file__).parent, harness.ROOT / "weights" / "default"
PROMPT, SEED, STEPS = "a red ball moving right on a white background", 7, 20
CASES = {  # asked of dvgen, and of diffusers; the ratio that we set out for
    "256x144, 24 frames": ("256x144", 24, "256x160", 25, 3.0),
    "640x360, 48 frames": ("640x360", 48, "640x384", 49, 2.5),
}
SMALL = "256x144, 24 frames"
ROUNDS = {SMALL: 3, "640x360, 48 frames": 1}  # minutes each of the larger one


def sides(case: str, dtype: str, folder: Path) -> list[harness.Side]:
    """The three commands of a case; diffusers leaves its frames in theirs.npy."""
    size, frames, padded, padded_frames, _ = CASES[case]
    theirs = [sys.executable, HERE / "whole_diffusers.py", MODEL, folder / "theirs.mp4", "--prompt", PROMPT]
    theirs += ["--size", padded, "--frames", padded_frames, "--steps", STEPS, "--seed", SEED, "--dtype", dtype]
    theirs += ["--save", folder / "theirs.npy"]
    ours = [sys.executable, "-m", "dvgen", "sample", PROMPT, "--size", size, "--frames", frames, "--steps", STEPS]
    ours += ["--seed", SEED, "--dtype", dtype, "--sigmas", "diffusers", "--quiet", "--json", "--overwrite"]
    ours += ["-o", folder / "ours.mp4"]
    path = {"PYTHONPATH": os.pathsep.join([str(harness.ROOT), str(harness.ROOT / "cli")])}
    kept = {"DVGEN_CACHE": str(folder / "cache")}
    three = [
        harness.Side("diffusers", list(map(str, theirs)), path),
        harness.Side("dvgen", list(map(str, ours)), path | {"DVGEN_CACHE": ""}),
        harness.Side("dvgen, prompt read before", list(map(str, ours)), path | kept),
    ]
    return three if case == SMALL else three[:2]


def save_frames(case: str, dtype: str, file: Path) -> None:
    """The frames of dvgen before they are coded, by its Python interface."""
    import numpy as np

    from dit_video.api import generate
    from dit_video.shapes import parse_size

    size, frames, *_ = CASES[case]
    how = {"seed": SEED, "steps": STEPS, "dtype": dtype, "sigmas": "diffusers"}
    np.save(file, generate(PROMPT, size=parse_size(size), frames=frames, **how).frames)


def measure(case: str, dtype: str, report: harness.Report, rounds: int) -> None:
    """One case: its line of the report. Raises Differs."""
    import numpy as np

    *_, wanted = CASES[case]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compared = sides(case, dtype, folder)
        own = harness.this_script("--side", case, "--save", folder / "ours.npy")
        # whose cache then has the prompt for the third side
        harness.run(harness.Side("frames of dvgen", own, {**compared[-1].environment}))
        runs = harness.in_turn(compared, rounds=rounds or ROUNDS[case], warmup=False)
        theirs, ours = np.load(folder / "theirs.npy"), np.load(folder / "ours.npy")
    theirs = theirs[: len(ours), : ours.shape[1], : ours.shape[2]]
    same = harness.agree(
        "PSNR of the frames in dB", harness.psnr(ours, theirs), harness.SAME_FRAMES[dtype], at_least=True
    )
    for side in list(runs)[1:]:
        suffix = side.removeprefix("dvgen")
        seconds = [f"{harness.figures(runs[each], 'seconds'):.1f} s" for each in ("diffusers", side)]
        report.claim(f"{case}, {dtype}{suffix}", *seconds, harness.ratio(runs["diffusers"], runs[side]), same, wanted)
    memory = [f"{harness.figures(runs[each], 'peak').most / 2**20:.0f} MiB" for each in ("diffusers", "dvgen")]
    ratio = harness.ratio(runs["diffusers"], runs["dvgen"], "peak")
    report.claim(f"{case}, {dtype}: peak resident memory", *memory, ratio)


def refuse(dtype: str) -> None:
    """A dtype that this processor does not multiply says nothing of either side."""
    import torch

    from dit_video.nn.linear import multiplies

    if not multiplies(getattr(torch, dtype), "cpu"):
        raise SystemExit(f"--dtype {dtype}: this processor does not multiply it; use float32.")


def main() -> None:
    """All cases, or those that are named."""
    parser = harness.parser(__doc__, rounds=0)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; repeatable")
    parser.add_argument(
        "--dtype", choices=harness.SAME_FRAMES, default="float32", help="bfloat16 where the processor multiplies it"
    )
    options: argparse.Namespace = parser.parse_args()
    refuse(options.dtype)
    if options.side:
        save_frames(options.side, options.dtype, options.save)
        return
    report = harness.Report(
        f"whole_{options.dtype}", "The whole process: dvgen against diffusers on the model that ships", "diffusers"
    )
    for case in options.case or CASES:
        measure(case, options.dtype, report, options.rounds)
    report.notes.append(
        f"{STEPS} steps of UniPC, guidance 4, seed {SEED}, in {options.dtype}; float32 is dvgen's default on "
        "processors that do not multiply bfloat16. diffusers: `whole_diffusers.py`, with `torch.inference_mode`, "
        "loading with little memory, all cores. It computes 640x384 in 49 frames and 256x160 in 25, which is what "
        "dvgen computes for 640x360 in 48 and 256x144 in 24 and crops. Times are of the whole process, imports and the "
        "writing of the MP4 with the same coding included."
    )
    if options.write:
        report.write()


if __name__ == "__main__":
    main()
