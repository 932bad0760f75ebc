"""All that is to be measured on a GPU, by one command of under ten minutes.

    python benchmarks/gpu_all.py [--out FOLDER] [--only dit,vae] [--no-tests] [--write] [--device cpu --tiny]

Says the device, its driver and the versions, then runs the parts of gpu_parts.py and tests/gpu, each in a process and a
box of time of its own. What a part has said is in FOLDER/gpu.json and gpu.md at once ($OUT, or out/), so a part that
fails, or runs out of its time, loses nothing of the others; it is named, and the exit code is 1. `--write` puts the
claims into benchmarks/results/. `--device cpu --tiny` goes the same way on tiny shapes without a GPU: it shows that the
script works, and its figures mean nothing.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness import ROOT, Report, Spread, versions

LIMIT = 585.0  # seconds of everything
TESTS = 90  # seconds of tests/gpu at most
SLOW = 6  # times longer a CPU may take
LEAST = 5.0  # seconds that a part is not begun with


def about(device: str) -> dict[str, str]:
    """What is measured on: device, driver, versions."""
    import torch

    found = {"device": device, "driver": "none", "cuda": str(torch.version.cuda), "versions": versions()}
    found["system"] = platform.platform()
    if device == "cuda":
        if not torch.cuda.is_available():
            raise SystemExit("PyTorch finds no CUDA device; `--device cpu --tiny` shows that the script works.")
        properties = torch.cuda.get_device_properties(0)
        capability = f"{properties.major}.{properties.minor}"
        found["device"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, capability {capability}"
        ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            found["driver"] = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            found["driver"] = "not told"
    return found


class Results:
    """What has been said so far, in its files whenever something is added."""

    def __init__(self, folder: Path, machine: dict[str, str]) -> None:
        self.folder, self.machine = folder, machine
        self.parts: dict[str, dict[str, Any]] = {}
        folder.mkdir(parents=True, exist_ok=True)
        self.keep()

    def keep(self) -> None:
        """Write both files."""
        everything = {"machine": self.machine, "parts": self.parts}
        (self.folder / "gpu.json").write_text(json.dumps(everything, indent=1) + "\n")
        lines = ["# On a GPU", "", *(f"- {name}: {value}" for name, value in self.machine.items()), ""]
        for name, part in self.parts.items():
            lines += [f"## {name}: {part['state']}, {part['seconds']:.0f} s", ""]
            lines += [f"- {words(each)}" for each in part["said"]] + [""]
            lines += ["```", part["error"], "```", ""] if part["error"] else []
        (self.folder / "gpu.md").write_text("\n".join(lines))


def words(said: dict[str, Any]) -> str:
    """A figure as a line of text."""
    kind, what = said["kind"], said["what"]
    if kind == "claim":
        theirs, ours = (Spread.of([1000 * x for x in said[side]]) for side in ("theirs", "ours"))
        wanted = f", set out for {said['wanted']:g}x" if said["wanted"] else ""
        line = f"{what}: {said['peer']} {theirs:.1f} ms, {said['side']} {ours:.1f} ms, {of(said):.2f}x{wanted}"
        return f"{line}; {said['agreement']}"
    if kind == "seconds":
        return f"{what}: {Spread.of([1000 * x for x in said['seconds']]):.1f} ms"
    return f"{what}: {said['gib']:.2f} GiB" if kind == "peak" else what


def of(claim: dict[str, Any]) -> Spread:
    """The ratio of a claim, round by round."""
    return Spread.of([a / b for a, b in zip(claim["theirs"], claim["ours"], strict=True)])


def run(name: str, command: Sequence[str], seconds: float, results: Results, environment: dict[str, str]) -> None:
    """Run a part, and keep what it says as it says it."""
    part = results.parts[name] = {"state": "running", "seconds": 0.0, "said": [], "error": ""}
    started = time.monotonic()
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)  # and what it has started

    clock = threading.Timer(seconds, stop)
    clock.start()
    other: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith('{"kind"'):
            part["said"].append(json.loads(line))
            print(f"{name}: {words(part['said'][-1])}", flush=True)
            results.keep()
        elif line.strip():
            other.append(line.rstrip())
    code = process.wait()
    clock.cancel()
    part["seconds"] = time.monotonic() - started
    part["state"] = f"stopped after {seconds:.0f} s" if late.is_set() else "failed" if code else "done"
    part["error"] = "\n".join(other[-12:]) if part["state"] != "done" else ""
    if name == "tests" and other:
        part["said"].append({"kind": "note", "what": other[-1].strip("= ")})
    print(f"{name}: {part['state']}, {part['seconds']:.0f} s", flush=True)
    if part["error"]:
        print(part["error"], flush=True)
    results.keep()


def side(options: argparse.Namespace) -> None:
    """One part, in this process."""
    import torch
    from gpu_bench import Bench
    from gpu_parts import PARTS
    from harness import say

    from dit_video.errors import UsageError

    try:
        PARTS[options.side][0](Bench(torch.device(options.device), options.tiny))
    except UsageError as refused:  # what this device does not have is no failure
        say(kind="note", what=f"not measured: {refused}")


def write(results: Results, arguments: Sequence[str]) -> None:
    """The claims and all else that was said, as benchmarks/results/gpu.md and .json."""
    told = "; ".join(f"{name} {value}" for name, value in results.machine.items())
    report = Report("gpu", "On a GPU: Wan 1.3B at 832x480 in 81 frames, bfloat16", "peer", notes=[told])
    for part in results.parts.values():
        for each in part["said"]:
            if each["kind"] != "claim":
                report.notes.append(words(each))
                continue
            theirs, ours = (f"{Spread.of(each[name]):.3f} s" for name in ("theirs", "ours"))
            what = f"{each['what']}: {each['side']} against {each['peer']}"
            report.claim(what, theirs, ours, of(each), each["agreement"], each["wanted"])
    report.write(arguments)


def main() -> int:
    """Run the parts; 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "out")))
    parser.add_argument("--only", help="parts, with commas between")
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/gpu.md and .json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side(options)
        return 0
    if options.device == "cpu" and not options.tiny:
        parser.error("--device cpu takes --tiny: the rest would take hours")
    if options.write and options.tiny:
        parser.error("--write takes no --tiny: its figures mean nothing")
    started = time.monotonic()
    results = Results(options.out, about(options.device))
    for name, value in results.machine.items():
        print(f"{name}: {value}", flush=True)
    from gpu_parts import PARTS

    boxes = {name: box for name, (_, box) in PARTS.items()}
    wanted = options.only.split(",") if options.only else [*boxes]
    if unknown := set(wanted) - set(boxes):
        parser.error(f"--only {', '.join(sorted(unknown))}: the parts are {', '.join(boxes)}")
    queue = [(name, [*sys.orig_argv, "--side", name], boxes[name]) for name in wanted]
    if not options.no_tests:
        pytest = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu", "tests/unit/test_streaming.py"]
        queue.insert(min(2, len(queue)), ("tests", pytest, TESTS))
    slow = SLOW if options.device == "cpu" else 1
    for name, command, box in queue:
        left = LIMIT * slow - (time.monotonic() - started)
        if left < LEAST:
            results.parts[name] = {"state": "no time was left", "seconds": 0.0, "said": [], "error": ""}
            results.keep()
            print(f"{name}: no time was left", flush=True)
            continue
        run(name, command, min(box * slow, left), results, {"GPU_TESTS_ON": options.device})
    if options.write:
        write(results, sys.argv[1:])
    print(f"{options.out / 'gpu.md'}: {time.monotonic() - started:.0f} s in all", flush=True)
    return int(any(part["state"] != "done" for part in results.parts.values()))


if __name__ == "__main__":
    sys.exit(main())
