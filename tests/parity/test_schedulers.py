"""Noise levels and whole trajectories against diffusers' schedulers and numbers recorded from the Wan release."""

from functools import partial

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from dit_video.flow.levels import flow_levels
from dit_video.flow.solvers import SOLVERS, State
from dit_video.models.wan.defaults import PRESETS
from dit_video.models.wan.variants import VARIANTS

STEPS = [1, 2, 3, 4, 8, 24, 50]
SHIFTS = [1.0, 3.0, 5.0, 8.0]
GATE = 1e-5


def unipc(shift: float, steps: int):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler


def unipc_on_release_levels(shift: float, steps: int):
    """diffusers' UniPC over the ramp of the release (and of diffusers before 0.37)."""
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(np.float32(0.999).item(), 0, steps + 1)[:-1])
    return scheduler


def dpmpp(shift: float, steps: int, algorithm: str = "dpmsolver++"):
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction",
        use_flow_sigmas=True,
        flow_shift=shift,
        solver_type="midpoint",
        algorithm_type=algorithm,
    )
    scheduler.set_timesteps(steps)
    return scheduler


def dpmpp_on_release_levels(shift: float, steps: int, algorithm: str = "dpmsolver++"):
    """diffusers' DPM-Solver++ over the release's `get_sampling_sigmas`, which start from pure noise."""
    scheduler = dpmpp(shift, steps, algorithm)
    sigmas = np.linspace(1, 0, steps + 1)[:steps]
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0).astype(np.float32))
    scheduler.timesteps = torch.from_numpy(sigmas * 1000).to(torch.int64)
    return scheduler


def euler(shift: float, steps: int):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler


def lcm(shift: float, steps: int):
    scheduler = FlowMatchLCMScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler


def heun(shift: float, steps: int):
    scheduler = FlowMatchHeunDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(steps)
    return scheduler


REFERENCES = {
    ("unipc", "diffusers"): unipc,
    ("unipc", "release"): unipc_on_release_levels,
    ("dpmpp-2m", "diffusers"): dpmpp,
    ("dpmpp-2m", "release"): dpmpp_on_release_levels,
    ("dpmpp-2m-sde", "diffusers"): partial(dpmpp, algorithm="sde-dpmsolver++"),
    ("dpmpp-2m-sde", "release"): partial(dpmpp_on_release_levels, algorithm="sde-dpmsolver++"),
    ("euler", "diffusers"): euler,
    ("heun", "diffusers"): heun,
    ("lcm", "diffusers"): lcm,
}


def toy_velocity(x: Tensor, timestep: float) -> Tensor:
    """A fixed nonlinear transformer: it couples neighbours and depends on the timestep that it is told."""
    t = timestep / 1000
    return 1.3 * torch.tanh(1.7 * x + 0.3 * torch.sin(3 * x.roll(1, -1)) + t) - 0.4 * x + 0.5 * np.cos(5 * t)


def noise(seed: int = 0) -> Tensor:
    return torch.randn(1, 4, 3, 5, 6, generator=torch.Generator().manual_seed(seed))


def reference_trajectory(scheduler) -> list[Tensor]:
    scheduler.set_begin_index(0)  # else two first timesteps that are cut to the same integer skip a level
    x, trajectory = noise(), []
    added = torch.Generator().manual_seed(1)
    stochastic = isinstance(scheduler, DPMSolverMultistepScheduler | FlowMatchLCMScheduler)
    draws = {"generator": added} if stochastic else {}
    for timestep in scheduler.timesteps:
        x = scheduler.step(toy_velocity(x, timestep.item()), timestep, x, return_dict=False, **draws)[0]
        trajectory.append(x)
    return trajectory


def our_trajectory(solver: str, convention: str, shift: float, steps: int) -> list[Tensor]:
    trajectory: list[Tensor] = []
    added = torch.Generator().manual_seed(1)
    SOLVERS[solver](
        lambda x, sigma, timestep: x - sigma * toy_velocity(x, timestep),
        State(0, noise()),
        flow_levels(steps, shift=shift, convention=convention, solver=solver),
        draw=lambda: torch.randn(noise().shape, generator=added),
        on_step=lambda state, total, denoised: trajectory.append(state.x),
    )
    return trajectory


@pytest.mark.parametrize(("solver", "convention"), REFERENCES)
@pytest.mark.parametrize("shift", [*SHIFTS, 0.5, 2.22, 12.0])
def test_levels_equal_the_reference_bit_for_bit(solver: str, convention: str, shift: float):
    for steps in range(1, 61):
        scheduler = REFERENCES[solver, convention](shift, steps)
        sigmas, timesteps = scheduler.sigmas, scheduler.timesteps
        if solver == "heun":  # diffusers lists every level but the first twice
            sigmas = torch.cat([sigmas[:1], sigmas[1:-1:2], sigmas[-1:]])
            timesteps = torch.cat([timesteps[:1], timesteps[1::2]])
        levels = flow_levels(steps, shift=shift, convention=convention, solver=solver)
        assert torch.equal(levels.sigmas, sigmas), f"{steps} steps"
        assert torch.equal(levels.timesteps, timesteps.float()), f"{steps} steps"


@pytest.mark.parametrize(("solver", "convention"), REFERENCES)
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize("steps", STEPS)
def test_trajectory_equals_the_reference(solver: str, convention: str, shift: float, steps: int):
    theirs = reference_trajectory(REFERENCES[solver, convention](shift, steps))
    if solver == "heun":  # diffusers counts its two halves of a step as steps
        theirs = [*theirs[1::2], theirs[-1]]
    ours = our_trajectory(solver, convention, shift, steps)
    assert len(ours) == len(theirs) == steps
    for step, (x, reference) in enumerate(zip(ours, theirs, strict=True)):
        assert (x - reference).abs().max() / reference.abs().max() < GATE, f"after step {step}"


# Printed by Wan2.1 at 9737cba: FlowUniPCMultistepScheduler(shift=1).set_timesteps(steps, shift=shift), and
# FlowDPMSolverMultistepScheduler(shift=1).set_timesteps(sigmas=get_sampling_sigmas(steps, shift)).
RELEASE: list[tuple[str, int, float, list[float], list[int]]] = [
    (
        "unipc",
        4,
        5.0,
        [0.9997998476028442, 0.9372654557228088, 0.8330553770065308, 0.6246873736381531, 0.0],
        [999, 937, 833, 624],
    ),
    ("unipc", 3, 8.0, [0.9998748898506165, 0.9410102367401123, 0.7997598052024841, 0.0], [999, 941, 799]),
    ("dpmpp-2m", 4, 5.0, [1.0, 0.9375, 0.8333333134651184, 0.625, 0.0], [1000, 937, 833, 625]),
    ("dpmpp-2m", 3, 8.0, [1.0, 0.9411764740943909, 0.800000011920929, 0.0], [1000, 941, 800]),
]


@pytest.mark.parametrize(("solver", "steps", "shift", "sigmas", "timesteps"), RELEASE)
def test_release_levels_as_recorded(solver: str, steps: int, shift: float, sigmas: list[float], timesteps: list[int]):
    levels = flow_levels(steps, shift=shift, convention="release", solver=solver)
    assert levels.sigmas.tolist() == sigmas
    assert levels.timesteps.tolist() == timesteps


@pytest.mark.parametrize(
    ("solver", "scheduler"), [("euler", FlowMatchEulerDiscreteScheduler), ("lcm", FlowMatchLCMScheduler)]
)
def test_four_steps_of_distilled_models(solver: str, scheduler: type):
    """The levels that LightX2V lists, 1000, 750, 500 and 250 before the shift, given to diffusers as they are."""
    preset = PRESETS["distilled"]
    reference = scheduler(shift=preset.shift)
    reference.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    levels = flow_levels(preset.steps, shift=preset.shift, convention=preset.sigmas, solver=solver)
    assert torch.allclose(levels.sigmas, reference.sigmas, rtol=0, atol=1e-7)
    assert torch.allclose(levels.timesteps, reference.timesteps, rtol=0, atol=1e-4)
    assert levels.timesteps.tolist() == pytest.approx([1000, 937.5, 2500 / 3, 625])
    theirs = reference_trajectory(reference)
    ours = our_trajectory(solver, preset.sigmas, preset.shift, preset.steps)
    for x, wanted in zip(ours, theirs, strict=True):
        assert (x - wanted).abs().max() / wanted.abs().max() < GATE


def test_distilled_experts_work_at_two_levels_each():
    """The text-to-video model's boundary lies behind the second, as LightX2V's boundary_step_index of 2 says."""
    preset = PRESETS["distilled"]
    levels = flow_levels(preset.steps, shift=preset.shift, convention=preset.sigmas, solver=preset.experts_solver)
    boundary = VARIANTS["T2V-A14B"].boundary
    assert boundary is not None
    assert [timestep >= 1000 * boundary for timestep in levels.timesteps.tolist()] == [True, True, False, False]


def test_the_gate_tells_the_conventions_apart():
    release, diffusers = (our_trajectory("unipc", name, 5.0, 4)[-1] for name in ("release", "diffusers"))
    assert (release - diffusers).abs().max() / diffusers.abs().max() > 10 * GATE


def test_integer_timesteps_are_cut_not_rounded():
    levels = flow_levels(50, shift=5.0, convention="release", solver="unipc")
    exact = 1000 * levels.sigmas[:-1]
    assert (levels.timesteps == exact.floor()).all()
    assert (levels.timesteps != exact.round()).any()
