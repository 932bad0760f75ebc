"""What `dvgen sample --memory` takes: the memory of the whole process, sampled while it runs, and the time of a step.

    python benchmarks/make_full_size.py T2V-14B /tmp/wan-14b
    python benchmarks/bench_memory.py /tmp/wan-14b --memory 6GiB --size 416x240 --frames 9 --steps 2

RssAnon of /proc is the memory that a process has to itself; maps of files come beside it, and the system takes those
back when it needs the room. The most of it must stay within --memory. A step is put beside the time that it takes to
read the transformer's files once, from a disk whose cache was emptied of them. Linux only.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from dvgen import options

INTERVAL = 0.02  # seconds between samples
PIECE = 2**24


def rss_anon(pid: int) -> int:
    """The memory of a process that no file stands behind, shared or not, in bytes; 0 when it is gone."""
    try:
        return 1024 * sum(
            map(int, re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text()))
        )
    except OSError:
        return 0


def forget(files: list[Path]) -> None:
    """Empty the disk cache of these files."""
    for file in files:
        with file.open("rb") as stream:
            os.fsync(stream.fileno())
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def seconds_to_read(files: list[Path]) -> float:
    """How long reading files once takes, when none of them is in memory."""
    forget(files)
    piece, start = bytearray(PIECE), time.perf_counter()
    for file in files:
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(piece):
                pass
    forget(files)
    return time.perf_counter() - start


def run(arguments: list[str]) -> tuple[dict, int, float]:
    """The JSON object that `dvgen sample` prints, the most of its RssAnon in bytes, and its seconds."""
    start, most = time.perf_counter(), 0
    process = subprocess.Popen([sys.executable, "-m", "dvgen", "sample", *arguments], stdout=subprocess.PIPE, text=True)
    while process.poll() is None:
        most = max(most, rss_anon(process.pid))
        time.sleep(INTERVAL)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(process.returncode)
    return json.loads(process.stdout.read()), most, time.perf_counter() - start


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--memory", default="6GiB")
    parser.add_argument("--size", default="416x240")
    parser.add_argument("--frames", default="9")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--guidance", default="5")
    arguments = parser.parse_args()
    files = sorted((arguments.model / "transformer").glob("*.safetensors"))
    size, limit = sum(file.stat().st_size for file in files), options.memory(arguments.memory)
    reading = seconds_to_read(files)
    print(f"transformer: {size / 1e9:.1f} GB in {len(files)} files, read once in {reading:.1f} s", flush=True)
    with TemporaryDirectory() as folder:
        given = ["a red ball", "--model", arguments.model, "--memory", arguments.memory, "--size", arguments.size]
        given += ["--frames", arguments.frames, "--steps", arguments.steps, "--guidance", arguments.guidance]
        given += ["--seed", 1, "--json", "--output", Path(folder) / "a.mp4"]
        os.environ["DVGEN_CACHE"] = str(Path(folder) / "cache")
        about, most, seconds = run([str(each) for each in given])
    for name, value in about["seconds"].items():
        print(f"{name:>8}: {value:7.1f} s")
    print(f"   whole: {seconds:7.1f} s; a step {about['seconds']['denoise'] / arguments.steps:.1f} s")
    print(f"RssAnon at most {most / 2**30:.2f} GiB of {limit / 2**30:.2f} GiB: {'within' if most <= limit else 'OVER'}")
    raise SystemExit(most > limit)


if __name__ == "__main__":
    main()
