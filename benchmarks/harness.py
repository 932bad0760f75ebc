"""What every benchmark here does in one way: sides in turn in processes of their own, ratios with their spread, a page.

A benchmark is a script that calls itself: without `--side` it runs its sides through `in_turn`, and with it it measures
one of them and prints its figures as a JSON object on the last line (`say`). What the sides made is compared by the
script, which refuses to print a ratio of things that differ. `Report` writes what came out to `results/NAME.md`, and
the figures to `results/NAME.json`, from which `summary.py` makes the table of the README.
"""

import argparse
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

RESULTS = Path(__file__).parent / "results"
# dB from which frames are the same. In bfloat16 both sides round as they go, in other places, and 20 steps carry that
# on: it only tells that the same video was made.
SAME_FRAMES = {"float32": 50.0, "bfloat16": 25.0}
ROOT = Path(__file__).parent.parent
MEASURED = Path(__file__).parent / "measured.py"
PACKAGES = ("torch", "diffusers", "transformers", "torchao", "stable-diffusion-cpp-python")


class Differs(SystemExit):
    """What the two sides made is not the same, so their times cannot be compared."""


@dataclass(frozen=True)
class Side:
    """One of the things that are compared: a command, and what it is told beside the environment as it is."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """What one run of a side took, seen from outside, and what it said itself."""

    seconds: float
    """Wall time of the whole process."""
    cpu: float
    """Processor seconds of the process and of what it waited for."""
    peak: int
    """The most memory that was resident at a time, in bytes, of the largest process; the kernel's own account."""
    said: Mapping[str, Any]
    """The JSON object on the last line of its standard output, if there is one."""

    def figure(self, name: str) -> float:
        """`seconds`, `cpu` or `peak` from outside, or a number that the run said itself."""
        return float(getattr(self, name) if name in {"seconds", "cpu", "peak"} else self.said[name])


@dataclass(frozen=True)
class Spread:
    """The least, the middle and the greatest of several runs."""

    least: float
    middle: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Of one value or more."""
        return cls(min(values), statistics.median(values), max(values))

    def __format__(self, how: str) -> str:
        """The middle one, with the two others where they look different: `2.51 (2.40 to 2.63)`."""
        least, middle, most = (format(value, how) for value in (self.least, self.middle, self.most))
        return middle if least == most else f"{middle} ({least} to {most})"


def this_script(*arguments: object) -> list[str]:
    """The command that runs the script that was started once more, with its own options and these."""
    return [sys.executable, *sys.argv, *map(str, arguments)]


def say(**figures: object) -> None:
    """What a measured side prints for `in_turn`."""
    print(json.dumps(figures), flush=True)


def run(side: Side) -> Run:
    """Run one side to its end.

    Raises:
        SystemExit: it failed; what it wrote to standard error has been seen.
    """
    with TemporaryDirectory() as folder:
        took = Path(folder) / "took.json"
        command = [sys.executable, "-S", str(MEASURED), str(took), *side.command]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **side.environment}, cwd=ROOT
        )
        if done.returncode:
            raise SystemExit(f"{side.name} failed with {done.returncode}: {' '.join(side.command)}")
        seconds, cpu, peak = json.loads(took.read_text())
    lines = done.stdout.strip().splitlines()
    said = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    return Run(seconds, cpu, peak, said)


def in_turn(sides: Sequence[Side], *, rounds: int, warmup: bool = True) -> dict[str, list[Run]]:
    """Run all sides one after the other, `rounds` times; a first round warms caches of files and is not counted."""
    runs: dict[str, list[Run]] = {side.name: [] for side in sides}
    for number in range(-warmup, rounds):
        for side in sides:
            found = run(side)
            print(
                f"{side.name}: {found.seconds:.2f} s, {found.cpu:.2f} s of processor time, {found.peak / 2**20:.0f} MiB"
                f" {dict(found.said) or ''}{' (not counted)' if number < 0 else ''}",
                file=sys.stderr,
                flush=True,
            )
            if number >= 0:
                runs[side.name].append(found)
    return runs


def figures(runs: Sequence[Run], name: str) -> Spread:
    """One figure of all runs of a side."""
    return Spread.of([each.figure(name) for each in runs])


def ratio(theirs: Sequence[Run], ours: Sequence[Run], name: str = "seconds") -> Spread:
    """How many times theirs is ours, round by round: what slows the machine for a while slows both sides of a round."""
    return Spread.of([a.figure(name) / b.figure(name) for a, b in zip(theirs, ours, strict=True)])


def psnr(a: Any, b: Any) -> float:
    """Between two arrays of frames in uint8, in dB; infinite where they are equal."""
    import numpy as np

    error = np.square(np.asarray(a, np.float32) - np.asarray(b, np.float32)).mean(dtype=np.float64)
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def relative_error(a: Any, b: Any) -> float:
    """Root mean square of the difference of two tensors, as a part of that of the second."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def same_frames(ours: Any, theirs: Any, dtype: str) -> str:
    """That frames (T, H, W, 3) are those of the peer, which may have more rows, columns and frames. Raises Differs."""
    theirs = theirs[: len(ours), : ours.shape[1], : ours.shape[2]]
    return agree("PSNR of the frames in dB", psnr(ours, theirs), SAME_FRAMES[dtype], at_least=True)


def agree(what: str, measured: float, limit: float, *, at_least: bool = False) -> str:
    """What is to be said of how far the sides agree.

    Raises:
        Differs: they do not.
    """
    if not (measured >= limit if at_least else measured <= limit):
        raise Differs(f"{what} is {measured:.4g}; {'at least' if at_least else 'at most'} {limit:.4g} counts as equal.")
    return f"{what} {measured:.3g}"


def check_dtype(name: str) -> None:
    """Refuse to measure a dtype on the CPU that its processor does not multiply: torch emulates it there.

    Raises:
        SystemExit: so it is.
    """
    import torch

    from dit_video.nn.linear import multiplies

    if not multiplies(getattr(torch, name), "cpu"):
        raise SystemExit(f"--dtype {name}: this processor does not multiply it; the nearest is float32.")


INSTRUCTIONS = {"avx512f": "AVX-512", "avx512_bf16": "bf16", "avx512_vnni": "VNNI", "amx_bf16": "AMX"}


def processor() -> str:
    """The machine in words: processor, cores, instructions that matter here, memory."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return f"{os.cpu_count()} cores, {platform.platform()}"
    name, flags = re.search(r"model name\s*: (.*)", text), re.search(r"flags\s*: (.*)", text)
    known = [said for flag, said in INSTRUCTIONS.items() if flags and flag in flags[1].split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    model = name[1] if name else platform.machine()
    has = ", ".join(known) or "no AVX-512"
    return f"{os.cpu_count()} cores of {model} ({has}), {memory:.0f} GiB"


def versions() -> str:
    """Python's and those of the packages that are compared, as far as they are there."""
    found = [f"Python {platform.python_version()}"]
    for name in PACKAGES:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(found)


@dataclass(frozen=True)
class Claim:
    """One line of the README's table: what is compared, both figures, their ratio, and how far the sides agree."""

    what: str
    theirs: str
    ours: str
    ratio: Spread
    agreement: str = ""
    wanted: float | None = None
    """The ratio that we set out for."""


@dataclass
class Report:
    """The results of one benchmark; `write` replaces what stood there."""

    name: str
    """Of the files in results/."""
    title: str
    peer: str
    """What we are compared with, in a word or two."""
    claims: list[Claim] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Paragraphs under the table: what was run, and what is to be known of it."""
    measured: dict[str, Any] = field(default_factory=dict)
    """What else results/NAME.json holds, for plots and the like."""

    def claim(self, what: str, theirs: str, ours: str, ratio: Spread, agreement: str = "", wanted: float | None = None):
        """Add a line, and print it."""
        self.claims.append(Claim(what, theirs, ours, ratio, agreement, wanted))
        print(f"{what}: {self.peer} {theirs}, dvgen {ours}: {ratio:.2f}x {agreement}", flush=True)

    def write(self, arguments: Sequence[str] | None = None) -> None:
        """Write results/NAME.md and results/NAME.json."""
        given = " ".join(sys.argv[1:] if arguments is None else arguments)
        command = f"python benchmarks/{Path(sys.argv[0]).name} {given}".strip()
        machine = f"{date.today()}, {processor()}; {versions()}."
        rows = [f"| | {self.peer} | dvgen | ratio | set out for | agreement |", "|---|---|---|---|---|---|"]
        for each in self.claims:
            wanted = "" if each.wanted is None else f"{each.wanted:g}x"
            cells = [each.what, each.theirs, each.ours, f"{each.ratio:.2f}", wanted, each.agreement]
            rows.append(f"| {' | '.join(cells)} |")
        RESULTS.mkdir(exist_ok=True)
        table = ["\n".join(rows)] if self.claims else []
        text = "\n\n".join([f"# {self.title}", f"`{command}`, {machine}", *table, *self.notes])
        (RESULTS / f"{self.name}.md").write_text(text + "\n")
        about: dict[str, Any] = {"title": self.title, "peer": self.peer, "command": command, "machine": machine}
        about["claims"] = [asdict(each) for each in self.claims]
        about |= {"measured": self.measured} if self.measured else {}
        (RESULTS / f"{self.name}.json").write_text(json.dumps(about, indent=1) + "\n")


def parser(doc: str | None, *, rounds: int = 3) -> argparse.ArgumentParser:
    """Of a script's own options, with those that all of them have: --rounds, --write, and --side, which is hidden."""
    made = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=rounds)
    made.add_argument("--write", action="store_true", help="write benchmarks/results/")
    made.add_argument("--side", help=argparse.SUPPRESS)
    made.add_argument("--save", type=Path, help=argparse.SUPPRESS)
    return made
