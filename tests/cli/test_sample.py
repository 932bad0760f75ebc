"""`dvgen sample --random-weights`: exact sizes, names, seeds, streams, and the real program a few times."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from dvgen import evaluate, options
from dvgen.main import app
from imageio_ffmpeg import get_ffmpeg_exe
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from dit_video.evaluate import SPLITS
from dit_video.flow.ramps import CONVENTIONS
from dit_video.flow.solvers import SOLVERS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "cli"), *sys.path])}
ENVIRONMENT["DVGEN_KEEP_EVERY"] = "3600"  # on a busy machine the ten seconds may pass, after which a state is kept
QUICK = ["--random-weights", "--steps", "1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    found = CliRunner().invoke(app, [*arguments], input=stdin)
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def sample(*arguments: str, prompt: str = "a red ball", **options: object) -> Result:
    return run("sample", prompt, *QUICK, *arguments, **options)


def probe(path: Path | str) -> tuple[int, int, int]:
    """Width, height and frames, as ffmpeg itself decodes and reports them."""
    done = subprocess.run([get_ffmpeg_exe(), "-i", path, "-f", "null", "-"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = re.search(r"Video: .*?, (\d+)x(\d+)", done.stderr)
    frames = re.findall(r"frame=\s*(\d+)", done.stderr)
    assert size and frames, done.stderr
    return int(size[1]), int(size[2]), int(frames[-1])


@pytest.mark.parametrize(
    ("size", "frames", "suffix"),
    [
        ("16x16", 1, ".png"),
        ("16x16", 2, ".mp4"),
        ("17x19", 5, ".mp4"),
        ("100x36", 9, ".mp4"),
        ("33x64", 3, ".webm"),
        ("64x48", 6, ".gif"),
        ("31x33", 1, ".png"),
        ("45x80", 12, ".mp4"),
        ("127x16", 4, ".mp4"),
        ("130x70", 7, ".webm"),
    ],
)
def test_exact_sizes(size: str, frames: int, suffix: str):
    found = sample("--size", size, "--frames", str(frames), "-o", f"clip{suffix}", "--seed", "1")
    assert found.stdout == f"clip{suffix}\n"
    assert probe(f"clip{suffix}") == (*map(int, size.split("x")), frames)


@pytest.mark.parametrize(("duration", "fps", "frames"), [("0.5", "10", 5), ("0.01", "60", 1), ("1.04", "5", 5)])
def test_duration_gives_frames(duration: str, fps: str, frames: int):
    found = sample("--duration", duration, "--fps", fps, "--size", "16x16", "--json", "-o", "a.mp4")
    assert json.loads(found.stdout)["frames"] == frames == probe("a.mp4")[2]
    assert json.loads(found.stdout)["fps"] == float(fps)


def test_json_is_one_object_with_what_was_done():
    found = sample("--size", "50x40", "--frames", "6", "--seed", "5", "--guidance", "3", "--json", "--steps", "2")
    about = json.loads(found.stdout)
    keys = "path width height frames fps seed grid tokens steps forwards unknown_words prompt_cut seconds peak_memory"
    assert set(about) == set(keys.split())
    assert about["unknown_words"] == [] and about["prompt_cut"] is False
    assert (about["width"], about["height"], about["frames"], about["seed"]) == (50, 40, 6, 5)
    assert (about["steps"], about["forwards"]) == (2, 4)
    assert about["tokens"] == about["grid"][0] * about["grid"][1] * about["grid"][2] > 0
    assert set(about["seconds"]) == {"load", "text", "denoise", "decode"}
    assert about["peak_memory"]["host"] > 1e7
    assert probe(about["path"]) == (50, 40, 6)


def test_prompt_and_seed_decide_the_frames(folder: Path):
    def made(name: str, prompt: str, *more: str) -> bytes:
        sample(*more, "--size", "48x32", "--frames", "1", "-o", name, prompt=prompt)
        return (folder / name).read_bytes()

    first = made("1.png", "a red ball", "--seed", "1")
    assert made("2.png", "a red ball", "--seed", "1") == first
    assert made("3.png", "a red ball", "--seed", "2") != first
    assert made("4.png", "a blue ball", "--seed", "1") != first


def test_made_names_are_numbered(folder: Path):
    small = ["--size", "16x16", "--seed", "9"]
    names = [sample(*small, "--frames", "2", prompt="A red ball, moving LEFT!").stdout.strip() for _ in range(2)]
    assert names == ["a-red-ball-moving-left-9.mp4", "a-red-ball-moving-left-9-2.mp4"]
    assert sample(*small, "--frames", "1", prompt="").stdout == "video-9.png\n"
    assert sample(*small, "--frames", "1", prompt="красный/../мяч").stdout == "красный-мяч-9.png\n"
    long = sample(*small, "--frames", "1", prompt="very " * 200).stdout.strip()
    assert len(long) < 80 and (folder / long).is_file()


def test_a_seed_is_drawn_and_printed():
    first, second = (sample("--size", "16x16", "--frames", "1") for _ in range(2))
    seeds = [re.search(r"seed (\d+) \(drawn\)", found.stderr) for found in (first, second)]
    assert seeds[0] and seeds[1] and seeds[0][1] != seeds[1][1]
    assert first.stdout == f"a-red-ball-{seeds[0][1]}.png\n"


def test_quiet_keeps_a_drawn_seed(folder: Path):
    """What would be lost is said: that seed, where no JSON object has it, and never one that was given."""
    again = ["--size", "16x16", "--frames", "1", "-o", "a.png", "--overwrite", "--quiet"]
    found = sample(*again)
    line = re.fullmatch(r"seed (\d+) \(drawn\)\n", found.stderr)
    assert line and found.stdout == "a.png\n"
    first = (folder / "a.png").read_bytes()
    assert sample(*again, "--seed", line[1]).stderr == "" and (folder / "a.png").read_bytes() == first
    told = sample(*again, "--json")
    assert told.stderr == "" and json.loads(told.stdout)["seed"] != int(line[1])


def test_prompt_from_standard_input():
    found = run("sample", *QUICK, "--size", "16x16", "--frames", "1", "--seed", "3", "-", stdin="a green star\n")
    assert found.stdout == "a-green-star-3.png\n"


def test_options_may_stand_anywhere():
    found = run("sample", "--seed", "3", "--size", "16x16", "a star", "--frames", "1", *QUICK)
    assert found.stdout == "a-star-3.png\n"


def test_overwrite_and_save_latents(folder: Path):
    again = ["--size", "16x16", "--frames", "2", "-o", "a.mp4", "--save-latents", "a.safetensors"]
    sample(*again)
    before = (folder / "a.mp4").read_bytes(), load_file("a.safetensors")["latents"]
    sample(*again, code=1)
    assert (folder / "a.mp4").read_bytes() == before[0]
    sample(*again, "--overwrite")
    assert (folder / "a.mp4").read_bytes() != before[0]
    assert (load_file("a.safetensors")["latents"] != before[1]).any()
    assert sorted(path.name for path in folder.iterdir()) == ["a.mp4", "a.safetensors"]


def test_progress_is_plain_lines_on_standard_error():
    found = sample("--size", "17x16", "--frames", "2", "--seed", "1")
    lines = found.stderr.splitlines()
    stages = ["load program", "load text encoder", "text", "load transformer", "steps", "load autoencoder", "decode"]
    assert [line.split(":")[0] for line in lines if ": " in line and "done in" in line] == stages
    assert "\x1b" not in found.stderr and "\r" not in found.stderr
    assert any("4:4:4" in line for line in lines), "odd sizes come with a note"
    assert any("cropped and trimmed" in line for line in lines)
    assert sample("--size", "16x16", "--frames", "2", "--seed", "1", "--quiet").stderr == ""


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("sigmas", CONVENTIONS)
def test_every_solver_runs(solver: str, sigmas: str):
    more = ["--solver", solver, "--sigmas", sigmas, "--steps", "3", "--shift", "2", "--guidance-interval", "0.1,0.9"]
    sample(*more, "--size", "16x16", "--frames", "1")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_every_dtype_runs(dtype: str):
    sample("--dtype", dtype, "--size", "32x32", "--frames", "5", "-o", "a.mp4")
    assert probe("a.mp4") == (32, 32, 5)


def test_names_checked_early_are_the_names_that_exist():
    """The command line keeps its own lists, so as not to import torch."""
    assert set(options.SOLVERS) == set(SOLVERS)
    assert options.SIGMAS == CONVENTIONS
    assert set(evaluate.SPLITS) == set(SPLITS)


def test_what_does_not_fit_says_what_it_would_take(folder: Path):
    found = run("sample", "a", "--random-weights", "--size", "16384x16384", "--frames", "100000", code=2)
    assert re.search(r"takes about [\d,]+ GB of memory, and there are [\d,.]+ GB; ", found.stderr)
    nearest = re.search(r"the nearest of this shape is (\d+)x(\d+)|no size of this length fits", found.stderr)
    assert nearest and "Traceback" not in found.stderr
    assert list(folder.iterdir()) == []


def test_one_scale_for_one_transformer():
    found = sample("--guidance", "4,3", code=2)
    assert "--guidance 4,3" in found.stderr and "nearest is 4" in found.stderr


def program(*arguments: str, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "dvgen", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    return subprocess.Popen(command, **(pipes | options))


def test_the_real_program(folder: Path):
    """The smoke test of a continuous integration, at the size of the demo: under 20 s on two cores."""
    before = os.times()
    process = program("sample", "a red ball", "--random-weights", "--size", "640x360", "--frames", "48", "--seed", "1")
    stdout, stderr = process.communicate(timeout=120)
    after = os.times()
    assert sum(after[2:4]) - sum(before[2:4]) < 40  # seconds of the processor: two cores for 20 s
    assert process.returncode == 0, stderr
    assert stdout == "a-red-ball-1.mp4\n"
    assert probe("a-red-ball-1.mp4") == (640, 360, 48)
    assert [path.name for path in folder.iterdir()] == ["a-red-ball-1.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_bars_are_drawn_in_a_terminal(folder: Path):
    ours, theirs = os.openpty()
    process = program("sample", "a", *QUICK, "--size", "32x32", "--frames", "2", "--seed", "1", stderr=theirs)
    os.close(theirs)
    drawn = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 65536):
            drawn += part
    os.close(ours)
    assert process.wait(timeout=60) == 0 and process.stdout.read() == "a-1.mp4\n"
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn.decode())
    for stage in ("load program", "load text encoder", "text", "load transformer", "steps", "decode"):
        assert re.search(rf"^\r?{stage} +━+", text, re.MULTILINE), (stage, text)
    assert "\r" in text and "seed 1" in text


def test_interrupt_ends_with_130_and_leaves_nothing(folder: Path):
    process = program("sample", "a", "--random-weights", "--size", "192x192", "--frames", "17", "--steps", "1000")
    for line in process.stderr:
        if line.startswith("load transformer"):
            break
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr and "stopped" in stderr
    assert list(folder.iterdir()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_being_ended_while_the_file_is_written_leaves_nothing(folder: Path, number: signal.Signals):
    process = program("sample", "a", *QUICK, "--size", "64x64", "--frames", "4000")
    while process.poll() is None and not list(folder.glob(".dvgen-*")):
        time.sleep(0.02)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number, stderr
    assert "Traceback" not in stderr and list(folder.iterdir()) == []


def test_an_empty_standard_input_is_refused_and_an_empty_prompt_is_not():
    found = run("sample", *QUICK, "-", stdin="\n", code=2)
    assert "standard input is empty" in found.stderr
    sample("--size", "16x16", "--frames", "1", "-o", "a.png", prompt="")
    assert probe("a.png") == (16, 16, 1)


def test_a_link_to_nothing_is_a_taken_name(folder: Path):
    (folder / "a.mp4").symlink_to("nowhere/x.mp4")
    found = run("sample", "a", *QUICK, "-o", "a.mp4", code=1)
    assert "a.mp4: the file exists" in found.stderr


def test_the_note_about_odd_sizes_is_a_warning():
    found = sample("--size", "17x16", "--frames", "2", "-q", "-o", "a.mp4")
    assert "4:4:4" in found.stderr


def test_readers_that_leave_break_nothing(folder: Path):
    """The video is there although nobody reads what is said about it."""
    process = program("sample", "a", *QUICK, "--size", "16x16", "--frames", "2", "-o", "a.mp4")
    process.stdout.close()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert probe("a.mp4") == (16, 16, 2)
    process = program("--help", stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=60) == 1


def test_help_is_quick_and_imports_nothing_heavy():
    names = "torch", "numpy", "transformers", "imageio", "rich"
    cached = {**ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": ""}  # as for a person, modules are compiled once
    script = f"import sys, dvgen.main; print(sorted(set({names}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.stdout == "[]\n", done.stderr
    seconds = []  # of the processor: what a person waits for on a machine that is not busy with other things
    for _ in range(5):
        before = os.times()
        assert "sample" in program("--help", env=cached).communicate()[0]
        after = os.times()
        seconds.append(sum(after[2:4]) - sum(before[2:4]))
    assert min(seconds) < 0.5


@pytest.mark.parametrize("command", [[], ["sample"], ["info"], ["eval"], ["scenes"], ["train"], ["train", "dit"]])
def test_every_command_has_help(command: list[str]):
    assert "Usage: " in run(*command, "--help").stdout


def test_version():
    assert re.fullmatch(r"dvgen \d+\.\d+\.\d+\n", run("--version").stdout)
