"""Memory by length: `dvgen sample` of few and of many frames; the most resident memory of the whole process.

    python benchmarks/bench_length.py [--size 640x360] [--frames 48] [--long 480] [--steps 4]

Prints both peaks and their ratio, and fails where the long clip takes more than 15 % over the short one. The peak does
not depend on the number of steps; try another with --steps.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import harness

PROMPT, LIMIT = "a red ball moving right on a white background", 1.15


def main() -> None:
    """Measure both lengths in turn."""
    parser = harness.parser(__doc__, rounds=1)
    parser.add_argument("--size", default="640x360")
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--long", type=int, default=480)
    parser.add_argument("--steps", type=int, default=4)
    options: argparse.Namespace = parser.parse_args()
    environment = {
        "PYTHONPATH": os.pathsep.join([str(harness.ROOT), str(harness.ROOT / "cli")]),
        "DVGEN_CACHE": "",
    }
    sides = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in (options.frames, options.long):
            line = [sys.executable, "-m", "dvgen", "sample", PROMPT, "--size", options.size, "--frames", frames]
            line += ["--steps", options.steps, "--seed", 7, "--quiet", "--json", "--overwrite"]
            line += ["-o", Path(folder) / f"{frames}.mp4"]
            sides.append(harness.Side(f"{frames} frames", list(map(str, line)), environment))
        runs = harness.in_turn(sides, rounds=options.rounds, warmup=False)
    short, long = (runs[side.name] for side in sides)
    ratio = harness.ratio(long, short, "peak")
    peaks = [f"{harness.figures(each, 'peak').most / 2**20:.0f} MiB" for each in (short, long)]
    report = harness.Report("length", "Memory by length", f"{options.frames} frames")
    what = f"peak memory at {options.size}, {options.long} frames; the ratio is theirs to that of {options.frames}"
    report.claim(what, *peaks, ratio)
    report.notes.append(f"dvgen itself at both lengths, {options.steps} steps; the second column is the long clip.")
    if options.write:
        report.write()
    raise SystemExit(ratio.most > LIMIT)


if __name__ == "__main__":
    main()
