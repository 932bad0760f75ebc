"""Commands that were ended in the middle: the same command goes on, and the result is that of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dvgen import console
from safetensors.torch import load_file

from dit_video.video.io import read_frames

LINE = ("--random-weights", "--size", "96x96", "--frames", "33", "--steps", "100", "--json")
FRAMES = np.stack([np.full((40, 48, 3), 20 * n, np.uint8) for n in range(5)])


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(*arguments: str, every: str = "0") -> "subprocess.Popen[str]":
    environment = os.environ | {"DVGEN_KEEP_EVERY": every, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "dvgen", *arguments]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*arguments: str, every: str = "0") -> tuple[dict[str, Any], str]:
    """The object that it prints, and what it says."""
    process = start(*arguments, every=every)
    out, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return json.loads(out), said


def states() -> list[Path]:
    return sorted(Path().glob(".dvgen-*"))


def wait_for_state(process: "subprocess.Popen[str]") -> None:
    while process.poll() is None and not any(path.suffix == ".state" for path in states()):
        time.sleep(0.01)


def frames(path: str) -> np.ndarray:
    return np.stack(list(read_frames(path)))


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal")
@pytest.mark.parametrize("times", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_time_the_same_command_goes_on_bit_for_bit(times: int):
    """At random points of denoising, of decoding, and of the end of writing, in turns."""
    sample = ("sample", "a", *LINE, "--seed", "1", "-o", "a.mp4", "--save-latents", "a.safetensors", "--overwrite")
    took = finish(*sample, every="1000")[0]["seconds"]
    whole, latents = frames("a.mp4"), load_file("a.safetensors")["latents"]
    rng, found = random.Random(times), []
    for number in range(times):
        phase = ("denoise", "decode", "write")[number % 3]
        process = start(*sample, *(["--fresh"] if phase == "denoise" else []))
        if phase == "denoise":
            wait_for_state(process)
            time.sleep(rng.uniform(0, 0.8) * took["denoise"])
        else:
            assert process.stderr is not None
            next(line for line in process.stderr if line.startswith("load autoencoder: done"))
            share = (0, 0.7) if phase == "decode" else (0.7, 1.1)
            time.sleep(rng.uniform(*share) * took["decode"])
        process.kill()
        process.communicate()
        found.append((phase, len(states())))
        assert frames("a.mp4").shape == whole.shape, "the file is the old one or the new one"
    finish(*sample)
    assert np.array_equal(frames("a.mp4"), whole) and torch.equal(load_file("a.safetensors")["latents"], latents)
    assert any(count for _, count in found), found
    assert not states(), (found, "neither states nor what was being written")


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_by_a_signal_it_says_how_to_go_on_and_takes_up_the_drawn_seed(number: signal.Signals):
    process = start("sample", "a", *LINE)
    wait_for_state(process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "steps are kept; the same command goes on from there" in said
    (state,) = states()
    seed = int(state.name.split("-")[2].split(".")[0])
    assert f"seed {seed} (drawn)" in said
    found, said = finish("sample", "a", *LINE)
    assert found["seed"] == seed and "of 100 steps of the same command are there" in said and not states()
    assert finish("sample", "a", *LINE)[0]["seed"] != seed


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal")
def test_fresh_begins_anew_and_other_commands_leave_it_alone():
    process = start("sample", "a", *LINE, "--seed", "1")
    wait_for_state(process)
    process.kill()
    process.communicate()
    (state,) = states()
    for other in (("--guidance", "2"), ("--seed", "2"), ("-o", "b.mp4")):
        _, said = finish("sample", "a", *LINE, *({"--seed": ()}.get(other[0], ("--seed", "1"))), *other)
        assert "are there" not in said and state.exists(), other
    _, said = finish("sample", "a", *LINE, "--seed", "1", "--fresh")
    assert "are there" not in said and not states()


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal")
def test_what_was_being_written_goes_where_there_is_no_state():
    line = ("sample", "a", *LINE, "--steps", "1", "--seed", "1", "-o", "a.mp4")
    process = start(*line, every="1000")
    while process.poll() is None and not states():
        time.sleep(0.001)
    process.kill()
    process.communicate()
    assert [path.suffix for path in states()] == [".part"]
    finish(*line, every="1000")
    assert not states()


@pytest.mark.skipif(os.name != "posix", reason="only there can a process be asked whether it runs")
def test_the_same_twice_at_once_is_made_twice():
    line = ("sample", "a", *LINE, "--seed", "1", "-o", "a.mp4")
    first = start(*line)
    wait_for_state(first)
    first.send_signal(signal.SIGSTOP)
    (state,) = states()
    before = state.read_bytes()
    found, said = finish(*line)
    assert found["path"] == "a.mp4" and "another process is making the same" in said and "are there" not in said
    assert states() == [state] and state.read_bytes() == before
    first.send_signal(signal.SIGCONT)
    out, said = first.communicate(timeout=300)
    assert first.returncode == 0 and json.loads(out)["path"] == "a-2.mp4" and "another file took this name" in said
    assert np.array_equal(frames("a.mp4"), frames("a-2.mp4")) and not states()


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal")
def test_windows_that_are_done_are_not_denoised_again():
    from dit_video.video.io import write_video

    write_video("clip.mp4", FRAMES, fps=8)
    line = ("--random-weights", "--forward", "40", "--steps", "30", "--seed", "1", "--json")
    whole = finish("extend", "clip.mp4", "x", *line, "-o", "whole.mp4", every="1000")[0]
    process = start("extend", "clip.mp4", "x", *line, "-o", "b.mp4")
    while process.poll() is None and not [path for path in states() if path.name.endswith(".1.state")]:
        time.sleep(0.01)
    process.kill()
    process.communicate()
    found, said = finish("extend", "clip.mp4", "x", *line, "-o", "b.mp4")
    assert "in window 2" in said and found["forwards"] < whole["forwards"]
    assert np.array_equal(frames("b.mp4"), frames("whole.mp4"))
    assert not states()


def test_a_person_is_asked(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(console, "is_terminal", lambda stream: True)
    monkeypatch.setattr(console, "_bars", lambda: None)

    class Typed:
        def __init__(self, answer: str) -> None:
            self.answer = answer

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return self.answer

    for answer, otherwise, meant in (
        ("\n", True, True),
        ("n\n", True, False),
        ("", False, False),
        ("YES\n", False, True),
    ):
        monkeypatch.setattr(sys, "stdin", Typed(answer))
        assert console.Speaker().ask("Go on?", otherwise=otherwise) is meant
    assert console.Speaker(quiet=True).ask("Go on?", otherwise=True) is True
