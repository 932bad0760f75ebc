"""`--fast`: dvgen against itself without it, on the model that ships: time, and how far the frames differ.

    python benchmarks/bench_fast.py [--rounds 2] [--write]

Both sides are the command with the same prompt, seed and settings, in turn. Denoising is what the command says of
itself, the whole process is timed from outside. Frames are compared as they are before they are coded, made once more
by the Python interface: of one prompt in the large case, of PROMPTS held-out ones with other seeds in the small one,
beyond those that the steps were chosen on.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path

import harness

PROMPT, SEED = "a red ball moving right on a white background", 7
CASES = {"256x144, 24 frames": ("256x144", 24), "640x360, 48 frames": ("640x360", 48)}
PROMPTS, CHOSEN_ON = (
    16,
    8,
)  # of held-out ones: those that are compared, and those before them that the steps were chosen on
FIRST_SEED = 1000
LEAST = 32.0  # dB, the mean, from which frames count as the same
WANTED = 2.0


def commands(case: str, dtype: str, folder: Path) -> list[harness.Side]:
    """Without --fast, and with it."""
    size, frames = CASES[case]
    line = [sys.executable, "-m", "dvgen", "sample", PROMPT, "--size", size, "--frames", str(frames)]
    line += ["--seed", str(SEED), "--dtype", dtype, "--quiet", "--json", "--overwrite", "-o", str(folder / "made.mp4")]
    path = os.pathsep.join([str(harness.ROOT), str(harness.ROOT / "cli")])
    environment = {"PYTHONPATH": path, "DVGEN_CACHE": str(folder / "cache")}
    return [harness.Side("without", line, environment), harness.Side("fast", [*line, "--fast"], environment)]


def compare(case: str, dtype: str) -> None:
    """Say the PSNR of each prompt's frames with --fast and without."""
    from dit_video.api import load_model
    from dit_video.evaluate import fixed_questions
    from dit_video.shapes import VideoShape, parse_size

    size, frames = CASES[case]
    width, height = parse_size(size)
    asked = [(PROMPT, SEED)]
    if case == next(iter(CASES)):
        shape = VideoShape(num_frames=frames, height=height, width=width)
        questions = fixed_questions(CHOSEN_ON + PROMPTS, shape, first_seed=FIRST_SEED)[CHOSEN_ON:]
        asked = [(question.prompt, question.seed) for question in questions]
    model, found = load_model(dtype=dtype), []
    for prompt, seed in asked:
        how = {"size": (width, height), "frames": frames, "seed": seed}
        whole, fast = (model.generate(prompt, fast=fast, **how).frames for fast in (False, True))
        found.append(harness.psnr(fast, whole))
    harness.say(psnr=found)


def denoising(runs: list[harness.Run]) -> list[float]:
    """The seconds of denoising that each run says."""
    return [float(run.said["seconds"]["denoise"]) for run in runs]


def measure(case: str, dtype: str, report: harness.Report, rounds: int) -> None:
    """One case: its lines of the report. Raises Differs."""
    with tempfile.TemporaryDirectory() as name:
        sides = commands(case, dtype, Path(name))
        own = harness.Side("frames", harness.this_script("--side", case), sides[0].environment)
        psnr = harness.run(own).said["psnr"]
        runs = harness.in_turn(sides, rounds=rounds)
    mean = statistics.mean(psnr)
    same = harness.agree(f"PSNR in dB of {len(psnr)} prompts: worst {min(psnr):.1f}, mean", mean, LEAST, at_least=True)
    without, fast = denoising(runs["without"]), denoising(runs["fast"])
    ratio = harness.Spread.of([a / b for a, b in zip(without, fast, strict=True)])
    seconds = [f"{harness.Spread.of(each):.2f} s" for each in (without, fast)]
    report.claim(f"{case}, {dtype}: denoising", *seconds, ratio, same, WANTED)
    seconds = [f"{harness.figures(runs[each], 'seconds'):.1f} s" for each in ("without", "fast")]
    report.claim(f"{case}, {dtype}: whole process", *seconds, harness.ratio(runs["without"], runs["fast"]), same)
    report.notes.append(f"{case}, PSNR of each prompt: {', '.join(f'{each:.1f}' for each in psnr)} dB.")


def main() -> None:
    """All cases, or those that are named."""
    parser = harness.parser(__doc__, rounds=2)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; repeatable")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    harness.check_dtype(options.dtype)
    if options.side:
        compare(options.side, options.dtype)
        return
    report = harness.Report(
        f"fast_{options.dtype}", "Skipped steps: dvgen with `--fast` against dvgen without", "dvgen without `--fast`"
    )
    for case in options.case or CASES:
        measure(case, options.dtype, report, options.rounds)
    report.notes.append(
        "The default settings of the model that ships, 20 steps of UniPC with guidance 4, of which 10 are computed; "
        "prompts were read before. The steps that are skipped were chosen on 8 prompts of training and on the first 8 "
        "held-out ones; the 16 held-out prompts here are those after them."
    )
    if options.write:
        report.write()


if __name__ == "__main__":
    main()
