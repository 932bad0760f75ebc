"""Disks that are full or read-only, and encoders that are ended: what was computed stays, and is gone on with."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from dit_video.limits import SECONDS
from dit_video.video.io import write_video
from tests.program import NOBODY, Disk, frames, left, mounted, run, run_here

# The state and the latents take 21 kB each, twice as much while they are written anew, and the video 90 kB.
LINE = ("--random-weights", "--size", "96x96", "--frames", "33", "--steps", "4", "--solver", "euler", "--seed", "1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(SECONDS, "0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The frames of a command that had room."""
    path = tmp_path_factory.mktemp("whole") / "a.mp4"
    run_here("sample", "a", *LINE, "-o", path)
    return frames(path)


def finishes(whole: np.ndarray, disk: Disk, *more: str) -> None:
    """The same command makes the same frames without denoising again, and leaves nothing else."""
    _, said = run_here("sample", "a", *LINE, "-o", "disk/a.mp4", *more)
    assert "load transformer" not in said and "4 of 4 steps of the same command are there" in said
    assert np.array_equal(frames("disk/a.mp4"), whole) and not left(disk.folder)


@pytest.mark.parametrize(("size", "beside"), [(72, True), (16, False)])
def test_a_video_that_does_not_fit(whole: np.ndarray, own_cache: Path, size: int, beside: bool):
    """Its state does, or does not either and goes to the user's cache."""
    with mounted(Path("disk"), size) as disk:
        said = run_here("sample", "a", *LINE, "-o", "disk/a.mp4", code=1)[1].splitlines()
        assert said[-2:] == [
            "all steps are kept; the same command goes on from there.",
            "Error: disk/a.mp4: ffmpeg cannot write it (No space left on device).",
        ]
        assert len(left(disk.folder)) == beside and any(own_cache.rglob("*.state")) != beside
        said = run_here("sample", "a", *LINE, "-o", "disk/a.mp4", code=1)[1]
        assert "all steps are kept" in said and "load transformer" not in said, "as often as it takes"
        disk.resize(1000)
        finishes(whole, disk)
    assert not list(own_cache.rglob("*.state"))


def test_latents_that_do_not_fit(whole: np.ndarray):
    with mounted(Path("disk"), 16) as disk:
        said = run_here("sample", "a", *LINE, "-o", "disk/a.mp4", "--keep-latents", code=1)[1].splitlines()
        assert said[-2] == "all steps are kept; the same command goes on from there."
        assert said[-1] == "Error: disk/a.safetensors: cannot be written (No space left on device)."
        assert not left(disk.folder) and not Path("disk/a.safetensors").exists()
        disk.resize(1000)
        finishes(whole, disk, "--keep-latents")
        assert Path("disk/a.safetensors").is_file()


def test_latents_that_fit_are_enough_for_the_video(whole: np.ndarray, monkeypatch: pytest.MonkeyPatch):
    with mounted(Path("disk"), 64) as disk:
        monkeypatch.setenv(SECONDS, "1000")
        line = ("sample", "a", *LINE, "-o", "disk/a.mp4", "--keep-latents")
        said = run_here(*line, code=1)[1]
        assert "the same command goes on from there, and `dvgen decode disk/a.safetensors` makes the video too" in said
        latents = load_file("disk/a.safetensors")["latents"]
        disk.resize(1000)
        run_here("decode", "disk/a.safetensors", "-o", "elsewhere.mp4")
        assert np.array_equal(frames("elsewhere.mp4"), whole)
        _, said = run_here(*line)
        assert "the latents of the same command are there" in said and "load transformer" not in said
        assert np.array_equal(frames("disk/a.mp4"), whole) and not left(disk.folder)
        assert (load_file("disk/a.safetensors")["latents"] == latents).all()
        said = run_here("sample", "a", *LINE, "-o", "disk/b.mp4", "--save-latents", "disk/a.safetensors", code=1)[1]
        assert "--save-latents disk/a.safetensors: the file exists" in said, "those of another command"


def test_an_extension_that_does_not_fit():
    write_video("clip.mp4", np.full((5, 96, 96, 3), 90, np.uint8), fps=8)
    line = ("extend", "clip.mp4", "a", "--random-weights", "--forward", "40", "--steps", "4", "--seed", "1", "-o")
    run_here(*line, "whole.mp4")
    with mounted(Path("disk"), 16) as disk:
        said = run_here(*line, "disk/a.mp4", code=1)[1].splitlines()
        assert said[-2:] == [
            "all steps are kept; the same command goes on from there.",
            "Error: disk/a.mp4: ffmpeg cannot write it (No space left on device).",
        ]
        disk.resize(1000)
        _, said = run_here(*line, "disk/a.mp4")
        assert "of the same command are there" in said and np.array_equal(frames("disk/a.mp4"), frames("whole.mp4"))
        assert not left(disk.folder)


def test_a_cache_that_is_full_is_no_failure(monkeypatch: pytest.MonkeyPatch):
    with mounted(Path("cache"), 16) as disk:
        disk.fill()
        monkeypatch.setenv("DVGEN_CACHE", str(disk.folder.resolve()))
        line = ("sample", "a red ball", "--size", "64x64", "--frames", "5", "--steps", "1", "--seed", "1", "-o")
        _, said = run_here(*line, "a.mp4")
        assert "what was read of the prompt is not kept" in said and "No space left" in said
        assert frames("a.mp4").shape == (5, 64, 64, 3) and not list(disk.folder.rglob("*.part"))


def test_temporary_files_that_do_not_fit(monkeypatch: pytest.MonkeyPatch):
    """New frames before a clip wait in one."""
    write_video("clip.mp4", np.full((5, 96, 96, 3), 90, np.uint8), fps=8)
    with mounted(Path("temporary"), 64) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk.folder.resolve()))
        line = ("extend", "clip.mp4", "a", "--random-weights", "--backward", "9", "--steps", "1", "--seed", "1")
        said = run_here(*line, "-o", "a.mp4", code=1)[1].splitlines()
        assert said[-1].startswith("Error: ") and said[-1].endswith("(No space left on device).")
        disk.resize(10_000)
        run_here(*line, "-o", "a.mp4")
    assert frames("a.mp4").shape == (14, 96, 96, 3)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="processes are looked for as Linux lists them")
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_an_encoder_that_is_ended_while_it_writes(suffix: str):
    line = (
        "sample",
        "a",
        "--random-weights",
        "--size",
        "160x160",
        "--frames",
        "97",  # as many as are made at once
        "--steps",
        "2",
        "--seed",
        "1",
        "-o",
    )
    run_here(*line, f"whole{suffix}")
    ended: list[int] = []

    def end() -> None:
        while not ended:
            for part in Path().glob(f".dvgen-{os.getpid()}*.part"):
                found = subprocess.run(["pgrep", "-f", part.name], capture_output=True, text=True).stdout.split()
                if found:
                    os.kill(int(found[0]), signal.SIGKILL)
                    ended.append(int(found[0]))

    thread = threading.Thread(target=end, daemon=True)
    thread.start()
    said = run_here(*line, f"a{suffix}", code=1)[1].splitlines()
    thread.join(timeout=60)
    assert ended and said[-2] == "all steps are kept; the same command goes on from there."
    assert said[-1].startswith(f"Error: a{suffix}: ffmpeg ") and len(left(Path())) == 1
    _, said = run_here(*line, f"a{suffix}")
    assert "load transformer" not in said and not left(Path())
    assert np.array_equal(frames(f"a{suffix}"), frames(f"whole{suffix}"))


def refused(*arguments: str | Path, **options: object) -> str:
    """The only line of a command that must be refused before the program is loaded."""
    _, said = run(*arguments, code=1, **options)
    (line,) = said.splitlines()
    return line


def test_a_read_only_folder_is_refused_before_the_work():
    with mounted(Path("disk"), 64) as disk:
        write_video("disk/there.mp4", np.full((2, 16, 16, 3), 90, np.uint8), fps=8)
        disk.protect()
        for name in ("a.mp4", "there.mp4"):
            line = refused("sample", "a", "--random-weights", "-o", f"disk/{name}", "--overwrite")
            assert line.startswith(f"Error: --output disk/{name}: the folder disk is not writable (Read-only")
        line = refused("sample", "a", "--random-weights", "-o", "a.mp4", "--save-latents", "disk/a.safetensors")
        assert line.startswith("Error: --save-latents disk/a.safetensors: the folder disk is not writable")
        line = refused("sample", "a", "--random-weights", cwd=disk.folder)
        assert line.startswith(f"Error: without --output: the folder {disk.folder.resolve()} is not writable")


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that takes no file, whoever asks")
def test_a_folder_that_is_no_place_for_files_is_refused_before_the_work():
    line = refused("sample", "a", "--random-weights", "-o", "/proc/a.mp4")
    assert line.startswith("Error: --output /proc/a.mp4: the folder /proc is not writable (")


def test_a_user_without_permission(here: Path):
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for folder in [here, *here.parents]:
        folder.chmod(folder.stat().st_mode | 0o055)
    os.seteuid(NOBODY)
    try:
        _, said = run_here("sample", "a", "--random-weights", "-o", "a.mp4", code=1)
    finally:
        os.seteuid(0)
    assert said == "Error: --output a.mp4: the folder . is not writable (Permission denied); choose another one.\n"
