"""Denoising that is broken off goes on where it was, bit for bit, and only from what is its own."""

import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from dit_video.checkpoints.files import load_tensors
from dit_video.checkpoints.headers import read_metadata
from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.flow import caching
from dit_video.flow.solvers import SOLVERS, State
from dit_video.models import open_checkpoint
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.processes import this_process
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from dit_video.unfinished import Together, Unfinished, find, key_of
from tests.tiny import tiny_wan21_folder

CPU = torch.device("cpu")
SHAPE = VideoShape(num_frames=5, height=32, width=32)
CLIP = Clip(prompt="a", negative="b", shape=SHAPE, seed=3)


class Stop(BaseException):
    pass


def sample(
    settings: Settings, keep: Unfinished | None = None, stop_after: int | None = None, said: list[str] | None = None
) -> tuple[Any, list[int]]:
    """Latents, and the steps that were reported; it ends at one."""
    steps: list[int] = []
    said = [] if said is None else said

    def progress(stage: str, done: int, total: int) -> None:
        if stage == "steps":
            steps.append(done)
            if done == stop_after:
                raise Stop

    stages = Stages(RandomCheckpoint(), dtype=torch.float32, device=CPU, progress=progress, warn=said.append)
    return sample_latents(stages, [CLIP], settings, unfinished=keep)[0], steps


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVGEN_KEEP_EVERY", "0")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("solver", ["unipc", "dpmpp-2m-sde", "lcm", "heun"])
def test_it_goes_on_bit_for_bit(solver: str, tmp_path: Path):
    settings = Settings(steps=6, solver=solver, guidance=(3.0,))
    whole, steps = sample(settings)
    assert steps == [0, 1, 2, 3, 4, 5, 6]
    for stop_after in (1, 4):
        with pytest.raises(Stop):
            sample(settings, Unfinished(tmp_path, "k", 3), stop_after)
        latents, steps = sample(settings, Unfinished(tmp_path, "k", 3))
        assert steps[0] == stop_after - 1 and torch.equal(latents, whole), "the step that was broken off is done again"
        latents, steps = sample(settings, Unfinished(tmp_path, "k", 3))
        assert steps == [] and torch.equal(latents, whole), "nothing is left to do"
        Unfinished(tmp_path, "k", 3).remove()
        assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("solver", caching.SOLVERS)
def test_it_goes_on_bit_for_bit_where_steps_are_skipped(solver: str, tmp_path: Path):
    """From every step on, those too that go on with a velocity of before the end."""
    settings = Settings(steps=20, solver=solver, guidance=(3.0,), fast=True)
    whole, _ = sample(settings)
    assert not torch.equal(whole, sample(replace(settings, fast=False))[0])
    for stop_after in (1, 6, 7, 12, 17, 19):
        keep = Unfinished(tmp_path, "k", 3)
        with pytest.raises(Stop):
            sample(settings, keep, stop_after)
        latents, steps = sample(settings, Unfinished(tmp_path, "k", 3))
        assert steps[0] == stop_after - 1 and torch.equal(latents, whole), stop_after
        Unfinished(tmp_path, "k", 3).remove()


def test_what_takes_no_time_is_not_kept(tmp_path: Path):
    with pytest.raises(Stop):
        sample(Settings(steps=4), Unfinished(tmp_path, "k", 3), stop_after=2)
    sample(Settings(steps=4), Unfinished(tmp_path, "k", 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("at_once")
def test_a_damaged_state_is_as_good_as_none(tmp_path: Path):
    keep, settings = Unfinished(tmp_path, "k", 3), Settings(steps=4)
    whole, _ = sample(settings, keep)
    data = keep.path.read_bytes()
    for damaged in (b"", data[:-7], data[:40], b"\xff" * 100):
        keep.path.write_bytes(damaged)
        assert Unfinished(tmp_path, "k", 3).read(CPU) is None and find(tmp_path, "k", None) is None
        latents, steps = sample(settings, Unfinished(tmp_path, "k", 3))
        assert steps[0] == 0 and torch.equal(latents, whole)


def state(folder: Path, key: str, seed: int, part: int = 0, **about: str) -> Path:
    path = Unfinished(folder, key, seed, part=part).path
    save_file({"0": torch.zeros(2)}, path, {"step": "2", "steps": "9", "process": "1@elsewhere"} | about)
    return path


def test_what_earlier_commands_left(tmp_path: Path):
    key, other = "0" * 16, "1" * 16
    assert find(tmp_path, key, None) is None
    for seed, written in ((5, 100), (7, 300), (6, 200)):
        os.utime(state(tmp_path, key, seed, process="1@elsewhere"), (written, written))
    os.utime(state(tmp_path, key, 7, part=2, step="4"), (400, 400))
    os.utime(state(tmp_path, other, 9), (500, 500))
    found = find(tmp_path, key, None)
    assert found is not None and (found.seed, found.part, found.step, found.steps) == (7, 2, 4, 9)
    found = find(tmp_path, key, 6)
    assert found is not None and (found.seed, found.part) == (6, 0)
    assert find(tmp_path, key, 8) is None
    Unfinished(tmp_path, key, 7).remove()
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.skipif(os.name != "posix", reason="only there can a process be asked whether it runs")
def test_what_still_runs_is_left_alone(tmp_path: Path):
    key = "0" * 16
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as running:
        state(tmp_path, key, 5, process=f"{running.pid}@{socket.gethostname()}")
        assert find(tmp_path, key, None) is None
        running.communicate(b"\n")
    assert find(tmp_path, key, None) is not None


@pytest.mark.skipif(sys.platform != "linux", reason="where the system tells when a process began")
def test_a_number_that_was_given_again_hides_no_state(tmp_path: Path):
    state(tmp_path, "0" * 16, 5, process=f"{os.getppid()}.1@{socket.gethostname()}")
    assert find(tmp_path, "0" * 16, None) is not None


@pytest.mark.usefixtures("at_once")
def test_a_state_that_cannot_be_written_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVGEN_CACHE", "")  # where else it would go
    said: list[str] = []
    latents, steps = sample(Settings(steps=3), Unfinished(tmp_path / "gone", "k", 3), said=said)
    assert steps[-1] == 3 and torch.equal(latents, sample(Settings(steps=3))[0])
    (line,) = said
    assert line.startswith("the state of denoising cannot be kept: ") and "No such file" in line


@pytest.mark.usefixtures("at_once")
def test_where_there_is_no_place_beside_the_output_the_cache_takes_it(tmp_path: Path, own_cache: Path):
    key, said = "0" * 16, list[str]()
    gone = Unfinished(tmp_path / "gone", key, 3)
    with pytest.raises(Stop):
        sample(Settings(steps=4), gone, stop_after=3, said=said)
    assert said == ["2 steps are kept; the same command goes on from there."]
    (file,) = own_cache.rglob("*.state")
    assert file == gone.spare and find(tmp_path, key, 3) is None, "another folder's"
    for folder in ("gone", "other"):
        (tmp_path / folder).mkdir()
    assert find(tmp_path / "other", key, 3) is None
    found = find(tmp_path / "gone", key, 3)
    assert found is not None and (found.step, found.steps) == (2, 4)
    latents, steps = sample(Settings(steps=4), Unfinished(tmp_path / "gone", key, 3))
    assert steps == [2, 3, 4] and torch.equal(latents, sample(Settings(steps=4))[0])
    assert gone.path.exists(), "there is a place for it now"
    gone.remove()
    assert not gone.path.exists() and not file.exists()


@pytest.mark.usefixtures("at_once")
def test_a_place_that_is_free_again_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVGEN_CACHE", "")
    keep, said = Unfinished(tmp_path / "later", "k", 3), list[str]()
    real = Unfinished.step

    def step(self: Unfinished, state: Any, total: int) -> None:
        if state.step == 3:
            keep.folder.mkdir()
        real(self, state, total)

    monkeypatch.setattr(Unfinished, "step", step)
    sample(Settings(steps=4), keep, said=said)
    assert len(said) == 1 and keep.is_done and keep.path.exists()


@pytest.mark.usefixtures("at_once")
def test_what_is_taken_up_is_ours(tmp_path: Path):
    with pytest.raises(Stop):
        sample(Settings(steps=4), Unfinished(tmp_path, "k", 3), stop_after=2)
    keep = Unfinished(tmp_path, "k", 3)
    tensors, about = load_tensors(keep.path)
    save_file(tensors, keep.path, about | {"process": "1@elsewhere"})
    assert keep.read(CPU) is not None and read_metadata(keep.path)["process"] == this_process()


@pytest.mark.usefixtures("at_once")
@pytest.mark.skipif(os.name != "posix", reason="only there can a process be asked whether it runs")
def test_beside_one_that_runs_the_same_has_a_state_of_its_own(tmp_path: Path):
    key, settings = "0" * 16, Settings(steps=4)
    theirs = state(tmp_path, key, 3, process=f"{os.getppid()}@{socket.gethostname()}")
    before = theirs.read_bytes()
    keep = Unfinished(tmp_path, key, 3)
    assert keep.is_in_use and keep.saved() == 0 and not Unfinished(tmp_path, key, 4).is_in_use
    with pytest.raises(Stop):
        sample(settings, keep, stop_after=3)
    assert keep.saved() == 2 and theirs.read_bytes() == before
    found = find(tmp_path, key, None)
    assert found is not None and (found.seed, found.part, found.step) == (3, 0, 2), "its own can be taken up"
    latents, steps = sample(settings, Unfinished(tmp_path, key, 3))
    assert steps == [2, 3, 4] and torch.equal(latents, sample(settings)[0])
    keep.remove()
    assert list(tmp_path.iterdir()) == [theirs]


def test_the_key_is_another_for_whatever_changes_the_latents(tmp_path: Path):
    folder = tiny_wan21_folder(tmp_path / "wan")
    usual: dict[str, Any] = {
        "checkpoint": open_checkpoint(folder),
        "settings": Settings(steps=4),
        "prompts": ("a", "b"),
        "shape": SHAPE,
        "place": (CPU, torch.float32),
    }
    key = key_of(**usual)
    assert key == key_of(**usual | {"checkpoint": open_checkpoint(folder)}) and len(key) == 16
    others = [
        {"settings": Settings(steps=5)},
        {"settings": Settings(steps=4, guidance=(2.0,))},
        {"prompts": ("a", "c")},
        {"shape": VideoShape(num_frames=9, height=32, width=32)},
        {"place": (CPU, torch.bfloat16)},
        {"more": "a.mp4"},
        {"more": "b.mp4"},
        {"checkpoint": RandomCheckpoint()},
    ]
    keys = [key_of(**usual | other) for other in others]
    os.utime(folder / "transformer" / "diffusion_pytorch_model.safetensors", (1, 1))
    keys.append(key_of(**usual | {"checkpoint": open_checkpoint(folder)}))
    assert len({key, *keys}) == len(keys) + 1
    assert load_file(folder / "transformer" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("solver", SOLVERS)
def test_clips_of_a_pack_go_on_in_other_company(solver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVGEN_KEEP_EVERY", "0")
    shapes = [SHAPE, VideoShape(num_frames=9, height=48, width=32), VideoShape(num_frames=1, height=64, width=64)]
    clips = [Clip(prompt="abc"[number], shape=shape, seed=number) for number, shape in enumerate(shapes)]
    settings = Settings(steps=6, solver=solver)
    stages = Stages(RandomCheckpoint(), dtype=torch.float32, device=CPU)
    whole = sample_latents(stages, clips, settings)

    def together(*numbers: int) -> Together:
        parts = [Unfinished(tmp_path, f"{number:016x}", number) for number in numbers]
        return Together(parts, [whole[number].numel() for number in numbers])

    class Ended(Exception):
        pass

    def end(step: int, total: int, _: object) -> None:
        if step == 4:  # that of step 3 is kept
            raise Ended

    with pytest.raises(Ended):
        sample_latents(stages, clips, settings, unfinished=together(0, 1, 2), watch=end)
    assert [part.saved() for part in together(0, 1, 2).parts] == [3, 3, 3]
    before = stages.forwards
    (alone,) = sample_latents(stages, [clips[2]], settings, unfinished=together(2))
    assert stages.forwards - before == (5 if solver == "heun" else 3)
    pair = sample_latents(stages, [clips[1], clips[0]], settings, unfinished=together(1, 0))
    for found, expected in zip([pair[1], pair[0], alone], whole, strict=True):
        assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_clips_that_are_not_as_far_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVGEN_KEEP_EVERY", "0")
    parts = [Unfinished(tmp_path, f"{number:016x}", number) for number in range(2)]
    for number, part in enumerate(parts):
        part.step(State(2 + number, torch.zeros(4)), 9)
    again = Together([Unfinished(tmp_path, f"{number:016x}", number) for number in range(2)], [4, 4])
    assert again.read(CPU) is None and again.kept == 0
    again.step(State(1, torch.ones(8)), 9)
    assert [part.saved() for part in again.parts] == [1, 1], "what is there is replaced"
