"""How often a run takes as long as its dry run said.

    python benchmarks/bench_estimates.py [benchmarks/results/estimates.md]

In an empty cache: one `dvgen calibrate`, and then commands of the shipped model, each as a dry run and for good, which
is itself measured and so known to those after it. A total is the time of the whole process.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

PROMPTS = ("a red ball moving right on a white background", "a blue star on a green background")
COMMANDS = (
    "sample {0} --steps 8",
    "sample {0} --size 128x128 --frames 9 --steps 20",
    "sample {1} --frames 1 --steps 12 --size 320x180",
    "sample {0} --size 320x180 --frames 33 --steps 6",
    "sample {1} --solver heun --steps 4 --frames 13",
    "sample {0} --guidance 1 --steps 10 --size 192x192",
    "sample {1} --frames 48 --steps 5",
    "extend CLIP {0} --forward 12 --steps 5",
    "edit CLIP {1} --strength 0.5 --steps 10",
    "sample {0} --size 384x216 --frames 25 --steps 4 --dtype float32",
    "sample {1} --steps 16",
)


def run(line: list[str], folder: Path) -> tuple[dict[str, Any], float]:
    """What a command says, and the seconds that it took."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "dvgen", *line]
    found = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return (json.loads(found.stdout) if "--json" in line else {}), time.perf_counter() - began


def main() -> None:
    """Run all and write the table."""
    rows, hits, of_stages = [], 0, [0, 0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["DVGEN_CACHE"] = str(folder / "cache")
        run(["sample", PROMPTS[0], "--frames", "25", "--steps", "2", "-o", "clip.mp4", "-q"], folder)
        for file in (folder / "cache").glob("**/*.*"):
            file.unlink()
        _, seconds = run(["calibrate", "-q"], folder)
        print(f"calibrate: {seconds:.1f} s")
        for number, text in enumerate(COMMANDS):
            words = text.replace("CLIP", "clip.mp4").split()
            line = [PROMPTS[int(word[1])] if word.startswith("{") else word for word in words]
            line += [
                "--seed",
                "1",
                "-o",
                f"{number}.mp4" if "--frames 1 " not in text else f"{number}.png",
                "--json",
                "-q",
            ]
            dry, took = run([*line, "--dry-run"], folder)
            real, seconds = run(line, folder)
            assert dry["forwards"] == real["forwards"] and (dry["width"], dry["frames"]) == (
                real["width"],
                real["frames"],
            )
            low, high = dry["seconds"]["total"]
            hits += low <= seconds <= high
            stages = {key: real["seconds"][key] for key in real["seconds"] if key in dry["seconds"]}
            inside = sum(dry["seconds"][key][0] <= each <= dry["seconds"][key][1] for key, each in stages.items())
            of_stages = [of_stages[0] + inside, of_stages[1] + len(stages)]
            denoise = dry["seconds"]["denoise"]
            rows.append(
                f"| `{text.format('A', 'B')}` | {low:.1f} to {high:.1f} | {seconds:.1f} | "
                f"{'yes' if low <= seconds <= high else 'no'} | {denoise[0]:.1f} to {denoise[1]:.1f} | "
                f"{real['seconds']['denoise']:.1f} | {took:.1f} |"
            )
            print(rows[-1], flush=True)
    head = "| command | expected s | took s | inside | denoising expected s | took s | dry run s |\n" + "|---" * 7 + "|"
    stages = f"{of_stages[0]} of {of_stages[1]} single stages"
    text = f"{head}\n" + "\n".join(rows) + f"\n\nInside: {hits} of {len(rows)} runs, and {stages}.\n"
    print(text)
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(f"# What dry runs say of time\n\n{__doc__.partition('.md]')[2].strip()}\n\n{text}")


if __name__ == "__main__":
    main()
