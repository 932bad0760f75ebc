"""What a run takes, told beforehand: passes and arithmetic, and time by what was measured."""

import json
import math
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dit_video import machine, place
from dit_video.calibrate import calibrate
from dit_video.checkpoints.headers import Summary
from dit_video.clip import Settings
from dit_video.course import Course
from dit_video.denoise import held_levels
from dit_video.flow import caching
from dit_video.flow.caching import LEAST_STEPS
from dit_video.flow.guidance import needs_guidance
from dit_video.flow.levels import Levels, flow_levels
from dit_video.flow.ramps import NUM_TRAIN_TIMESTEPS
from dit_video.flow.solvers import SOLVERS, State
from dit_video.limits import SIGMAS
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.models.wan.vae import WanVAE
from dit_video.models.wan.vae_layers import CausalConv3d
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from dit_video.timing import KEPT, Clock, Sample, Span, Task, Timings, estimate, users_clock
from dit_video.work import Passes, decode_flops, encode_flops, passes_of

SHAPE = VideoShape(num_frames=9, height=64, width=96)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("sigmas", SIGMAS)
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.3, 0.8)])
@pytest.mark.parametrize("boundary", [None, 0.875])
@pytest.mark.parametrize("fast", [False, True])
def test_passes_are_those_that_the_solver_makes(
    solver: str, sigmas: str, interval: tuple[float, float], boundary: float | None, fast: bool
):
    for steps, strength in ((1, 1.0), (7, 1.0), (10, 0.5), (10, 0.0), (20, 1.0), (24, 0.7)):
        settings = Settings(
            steps=steps,
            solver=solver,
            sigmas=sigmas,
            shift=3.0,
            guidance=(4.0, 1.0) if boundary else (4.0,),
            guidance_interval=interval,
            fast=fast,
            strength=strength,
        )
        whole = flow_levels(steps, shift=3.0, convention=sigmas, solver=solver)
        levels = Levels(whole.sigmas[settings.first_step :], whole.timesteps[settings.first_step :])
        held = held_levels(settings, boundary, levels)
        assert bool(held) == (fast and steps >= LEAST_STEPS and solver in caching.SOLVERS)
        made: dict[str, int] = {}

        def denoise(
            x: torch.Tensor, sigma: float, timestep: float, made=made, settings=settings, held=held
        ) -> torch.Tensor:
            if sigma in held:
                return 0.5 * x
            low = boundary is not None and timestep < boundary * NUM_TRAIN_TIMESTEPS
            both = needs_guidance(sigma, settings.guidance[-1 if low else 0], interval)
            part = "transformer_2" if low else "transformer"
            made[part] = made.get(part, 0) + (2 if both else 1)
            return 0.5 * x

        if len(levels.timesteps):
            SOLVERS[solver](denoise, State(0, torch.ones(3)), levels, draw=lambda: torch.zeros(3))
        assert passes_of(settings, boundary) == Passes(made)


@pytest.mark.parametrize("residual", [False, True])
def test_arithmetic_of_the_autoencoder_is_about_that_of_its_convolutions(residual: bool):
    config = RandomCheckpoint().vae
    if not residual:
        config = replace(config, residual=False, patch=1)
    vae, side = WanVAE(config).eval(), config.stride[1]
    shape = VideoShape(num_frames=5, height=2 * side, width=4 * side)
    counted: list[float] = []

    def count(module: CausalConv3d, _: object, out: torch.Tensor) -> None:
        counted.append(2.0 * module.weight.numel() * out.numel() / len(module.weight))

    for module in vae.modules():
        if isinstance(module, CausalConv3d):
            module.register_forward_hook(count)
    with torch.no_grad():
        vae.decode(torch.zeros(1, config.z_dim, 2, 2, 4))
        assert decode_flops(config, shape) == pytest.approx(sum(counted), rel=0.3)
        counted.clear()
        vae.encode(torch.zeros(1, 3, 5, 2 * side, 4 * side))
        assert encode_flops(config, shape) == pytest.approx(sum(counted), rel=0.3)


def sample(size: float, rate: float, *, model: str = "a", stage: str = "denoise") -> Sample:
    return Sample(stage=stage, model=model, place="here", size=size, work=2 * size, seconds=2 * size * rate)


TASK = Task(stage="denoise", model="a", size=1024.0, work=10_240.0, usual=100.0)


def test_the_nearer_to_what_was_measured_the_narrower():
    guess = estimate(TASK, "here", [sample(1024, 1e-3, stage="decode")])
    other = estimate(TASK, "here", [sample(64, 1e-3, model="b")])
    far = estimate(TASK, "here", [sample(64, 1e-3)])
    near = estimate(TASK, "here", [sample(1024, 1e-3)])
    assert (guess.basis, other.basis, far.basis, near.basis) == ("guess", "another", "measured", "measured")
    widths = [span.high / span.low for span in (guess, other, far, near)]
    assert widths == sorted(widths, reverse=True) and len(set(widths)) == 4
    assert guess.middle == pytest.approx(100) and near.middle == pytest.approx(10.24)
    assert estimate(TASK, "elsewhere", [sample(1024, 1e-3)]) == guess
    assert (guess + near).basis == "guess" and (near * 2).high == 2 * near.high


def test_between_two_sizes_it_lies_between_and_what_varied_is_less_certain():
    between = estimate(TASK, "here", [sample(256, 4e-3), sample(4096, 1e-3)])
    assert between.middle == pytest.approx(2e-3 * TASK.work)
    steady = estimate(TASK, "here", [sample(1024, 1e-3)])
    varied = estimate(TASK, "here", [sample(1024, 1e-3), sample(1024, 3e-3)])
    assert varied.low == pytest.approx(steady.low) and varied.high == pytest.approx(3 * steady.high)


def test_only_the_newest_samples_are_kept(tmp_path: Path):
    timings = Timings(tmp_path / "deep" / "timing.json")
    for rate in range(1, 2 * KEPT):
        timings.add([sample(1000, rate), sample(9000, rate), replace(sample(1000, rate), seconds=0.0)])
    found = timings.read()
    assert len(found) == 2 * KEPT and {each.rate for each in found} == {*range(KEPT, 2 * KEPT)}
    for damage in ("", "{", '{"samples": [{"stage": 1}]}', '{"samples": 3}', "[]"):
        timings.file.write_text(damage)
        assert timings.read() == []
    whole = vars(sample(10, 1))
    damaged = [{**whole, "work": math.nan}, {**whole, "stage": ["a"]}, {**whole, "place": None}, {**whole, "model": 3}]
    timings.file.write_text(json.dumps({"samples": [*damaged, whole]}))
    assert timings.read() == [sample(10, 1)]
    timings.file.write_text(json.dumps({"samples": [{**whole, "size": 10**400}]}))
    assert timings.read() == []
    timings.file.write_text(json.dumps({"samples": [*damaged, whole]}))
    timings.add([sample(10, 2)])
    assert len(timings.read()) == 2


def test_several_processes_keep_the_file_whole(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from dit_video.timing import Sample, Timings\n"
        "for n in range(40):\n"
        "    timings = Timings(Path(sys.argv[1]))\n"
        "    assert n == 0 or timings.read(), 'half-written'\n"
        "    timings.add([Sample(stage=sys.argv[2], model='m', place='p', size=n + 1, work=1, seconds=1)])\n"
    )
    file = tmp_path / "timing.json"
    running = [subprocess.Popen([sys.executable, "-c", code, str(file), name]) for name in "abc"]
    assert [process.wait(60) for process in running] == [0, 0, 0]
    assert Timings(file).read() and [path.name for path in tmp_path.iterdir()] == ["timing.json"]


def test_a_clock_remembers_what_it_was_told(own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    model = RandomCheckpoint()
    clock = users_clock(model, "float32", "cpu")
    task = clock.denoise(SHAPE, passes=4)
    assert clock.expected(task).basis == "guess"
    clock.took(task, 8.0)
    clock.keep()
    later = users_clock(model, "float32", "cpu")
    assert later.expected(later.denoise(SHAPE, passes=8)).middle == pytest.approx(16.0, rel=0.01)
    assert users_clock(model, "bfloat16", "cpu").expected(task).basis == "guess", "another dtype"
    assert later.expected(later.denoise(SHAPE, SHAPE, passes=8)).middle == pytest.approx(16.0, rel=0.01)
    wider = replace(model, dit=replace(model.dit, ffn_dim=1024))
    other = users_clock(wider, "float32", "cpu")
    assert other.expected(other.denoise(SHAPE, passes=1)).basis == "another"
    monkeypatch.setenv("DVGEN_CACHE", "")
    nowhere = users_clock(model, "float32", "cpu")
    nowhere.took(task, 1.0)
    nowhere.keep()
    assert nowhere.expected(task).basis == "guess"
    monkeypatch.setenv("DVGEN_CACHE", str(own_cache / "file"))
    (own_cache / "file").write_text("in the way")
    blocked = users_clock(model, "float32", "cpu")
    blocked.took(task, 1.0)
    blocked.keep()  # no reason to fail


def test_a_small_model_tells_how_long_a_large_one_takes_to_load(own_cache: Path):
    """What does not grow with the bytes does not grow with the bytes: importing, opening, the first use."""

    def model(scale: float) -> RandomCheckpoint:
        parts = {"text_encoder": 350_000, "transformer": 3_000_000, "vae": 1_000_000}
        sizes = {name: int(size * scale) for name, size in parts.items()}
        found = {name: Summary(parameters=size, nbytes=4 * size, dtypes=()) for name, size in sizes.items()}
        return replace(RandomCheckpoint(), components=found)

    small = users_clock(model(1), "float32", "cpu")
    loaded = ["text_encoder", "transformer", "vae"]
    assert [task.stage for task in small.loads(loaded)] == ["load library", *(f"load {part}" for part in loaded)]
    assert [task.stage for task in small.loads(["vae", "vae"])] == ["load vae"] * 2
    for _ in range(3):
        for task, seconds in zip(small.loads(loaded), (4.5, 0.05, 0.1, 0.08), strict=True):
            small.took(task, seconds)
        small.took(small.text(2), 0.2)
    small.keep()
    large = users_clock(model(8000), "float32", "cpu")
    span = large.expected(*large.loads(loaded))
    assert large.expected(large.library()).basis == "measured" and span.basis == "another"
    assert span.low > 4.5 and span.high < 1000  # of 139 GB, as a guess says too
    assert large.expected(large.text(2)).high < 60


@pytest.mark.parametrize("keep", [False, True])
def test_a_calibration_keeps_how_long_the_first_loading_took(
    keep: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Files are in the system's cache after it, and what torch does once is done."""
    model, timings, calls = RandomCheckpoint(), Timings(tmp_path / "timing.json"), []
    clock = Clock(model, device="cpu", dtype="float32", timings=timings)
    load = RandomCheckpoint.load_dit

    def slow_at_first(*args: object, **more: object) -> object:
        calls.append(1)
        time.sleep(0.5 if len(calls) == 1 else 0.0)
        return load(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(RandomCheckpoint, "load_dit", slow_at_first)
    stages = Stages(model, dtype=torch.float32, device=torch.device("cpu"), keep=keep, clock=clock)
    assert len(calibrate(stages, model, seconds=0.0)) == 1 and len(calls) == (1 if keep else 2)
    clock.keep()
    found = timings.read()
    (loaded,) = (each.seconds for each in found if each.stage == "load transformer")
    assert loaded >= 0.5
    assert sum(each.stage == "denoise" for each in found) == 1, "the first has what is done but once"


def test_what_is_loaded_depends_on_what_stays():
    def loads(**more: object) -> list[str]:
        how = {"shapes": [SHAPE, SHAPE], "encoded": [1, 1], "passes": Passes({"transformer": 2}), "prompts": 1}
        return Course(**{**how, "suffix": ".mp4", **more}).loads()  # type: ignore[arg-type]

    assert loads() == ["vae", "text_encoder", "transformer", "vae", "transformer", "vae"]
    assert loads(keeps=True) == ["vae", "text_encoder", "transformer"]
    assert loads(prompts=0, encoded=[0, 0]) == ["transformer", "vae", "transformer", "vae"]
    course = Course(shapes=[SHAPE], encoded=[0], passes=Passes({}), prompts=0, suffix=".mp4")
    clock = Clock(RandomCheckpoint(), device="cpu", dtype="float32")
    assert set(course.expected(clock)) == {"program", "load", "decode"}
    assert all(isinstance(span, Span) and 0 < span.low < span.high for span in course.expected(clock).values())


def test_what_is_foreseen_of_this_machine_is_what_torch_decides():
    found = place.foreseen("auto", "auto")
    device = machine.pick_device("auto")
    assert (found.device.type, found.dtype.name) == (
        device.type,
        machine.dtype_name(machine.pick_dtype("auto", device)),
    )
    assert place.foreseen("cpu", "float16").dtype.itemsize == torch.float16.itemsize
    assert str(place.foreseen("cpu", "bfloat16").dtype) == str(torch.bfloat16)
    near = machine.memory_for(torch.device("cpu"), None)
    assert machine.memory_for(place.Device("cpu"), None) == pytest.approx(near, rel=0.1)
    assert machine.memory_for(place.Device("cuda", 10**10), None) < 10**10


@pytest.mark.parametrize(
    ("flags", "faster"), [("fpu avx512_bf16", True), ("amx_bf16", True), ("avx512f bf16", False), (None, None)]
)
def test_flags_of_the_processor_tell(flags: str | None, faster: bool | None, monkeypatch: pytest.MonkeyPatch):
    text = f"processor\t: 0\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    monkeypatch.setattr(place.sys, "platform", "linux")
    monkeypatch.setattr(place.Path, "is_file", lambda _: flags is not None)
    monkeypatch.setattr(place.Path, "read_text", lambda _: text)
    assert place.multiplies_bfloat16() is faster
    found = place.foreseen("cpu", "auto")
    assert found.dtype.name == ("bfloat16" if faster else "float32") and bool(found.unknown) == (faster is None)
