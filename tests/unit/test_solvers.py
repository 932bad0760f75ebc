"""Solvers on problems with a known solution, the edges of the noise levels, and guidance."""

import math

import pytest
import torch
from torch import Tensor

from dit_video.errors import UsageError
from dit_video.flow.guidance import guided, needs_guidance
from dit_video.flow.levels import Levels, flow_levels
from dit_video.flow.ramps import CONVENTIONS
from dit_video.flow.solvers import SOLVERS, State

MEAN = torch.linspace(-2, 2, 7, dtype=torch.float64)
STD = torch.linspace(0.5, 1.5, 7, dtype=torch.float64)
ORDERS = {
    "euler": 1,
    "heun": 2,
    "dpmpp-2m": 2,
    "unipc": 3,
}  # of the ODE's; UniPC-p is of order p + 1 thanks to its corrector


def solve(solver: str, denoise, x: Tensor, levels: Levels, **options) -> Tensor:
    """With the same noise in every element, where the solver adds any."""
    generator = torch.Generator().manual_seed(5)
    draw = {"draw": lambda: torch.randn((), generator=generator).expand(x.shape)}
    return SOLVERS[solver](denoise, x if isinstance(x, State) else State(0, x), levels, **(draw | options))


def marginal_std(sigma: float) -> Tensor:
    """The standard deviation of x_sigma = (1 - sigma) x0 + sigma eps for x0 ~ N(MEAN, STD^2), element by element."""
    return torch.sqrt((1 - sigma) ** 2 * STD**2 + sigma**2)


def marginal(z: Tensor, sigma: float) -> Tensor:
    """The flow of a Gaussian world, solved: a sample stays z standard deviations from the mean at every level."""
    return (1 - sigma) * MEAN + marginal_std(sigma) * z


def gaussian_denoiser(x: Tensor, sigma: float, timestep: float) -> Tensor:
    """E[x0 | x_sigma = x]: the perfect denoiser of that world."""
    return MEAN + (1 - sigma) * STD**2 / marginal_std(sigma) ** 2 * (x - (1 - sigma) * MEAN)


def rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()


def gaussian_noise() -> Tensor:
    return torch.randn(200, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def interior_error(solver: str, steps: int) -> float:
    """The error after `steps` even steps of lambda from sigma .95 to .05, before the last step to 0."""
    sigmas = torch.cat([torch.sigmoid(torch.linspace(3, -3, steps + 1, dtype=torch.float64)), torch.zeros(1)])
    z, seen = gaussian_noise(), []
    solve(
        solver,
        gaussian_denoiser,
        marginal(z, sigmas[0].item()),
        Levels(sigmas, 1000 * sigmas[:-1]),
        on_step=lambda state, total, denoised: seen.append(state.x),
    )
    return rms(seen[steps - 1] - marginal(z, sigmas[steps].item()))


@pytest.mark.parametrize("solver", ORDERS)
def test_order_of_convergence(solver: str):
    order = math.log2(interior_error(solver, 64) / interior_error(solver, 128))
    assert order == pytest.approx(ORDERS[solver], abs=0.1)


@pytest.mark.parametrize("solver", ORDERS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_whole_run_reaches_the_known_solution(solver: str, convention: str):
    def error(steps: int) -> float:
        levels = flow_levels(steps, shift=3.0, convention=convention, solver=solver)
        z = gaussian_noise()
        solved = solve(solver, gaussian_denoiser, marginal(z, levels.sigmas[0].item()), levels)
        return rms(solved - marginal(z, 0.0))

    assert error(256) < error(32) < error(8) < 0.3
    assert error(256) < (0.01 if solver == "euler" else 0.001)


def test_sde_samples_the_known_distribution():
    levels = flow_levels(64, shift=3.0, convention="release", solver="dpmpp-2m-sde")
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(4000, 7, generator=generator, dtype=torch.float64)
    draws = lambda: torch.randn(4000, 7, generator=generator, dtype=torch.float64)  # noqa: E731
    samples = solve("dpmpp-2m-sde", gaussian_denoiser, x, levels, draw=draws)
    assert ((samples.mean(0) - MEAN) / STD).abs().max() < 0.06
    assert (samples.std(0) / STD - 1).abs().max() < 0.06
    independent = torch.corrcoef(torch.stack([samples[:, 0], x[:, 0]]))[0, 1]
    assert independent.abs() < 0.1  # what it began with is forgotten: that is how errors fade


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_ends_exactly_on_the_last_estimate(solver: str, convention: str, steps: int):
    estimates = []

    def denoise(x: Tensor, sigma: float, timestep: float) -> Tensor:
        estimates.append(torch.tanh(x) - sigma)
        return estimates[-1]

    levels = flow_levels(steps, shift=5.0, convention=convention, solver=solver)
    x = solve(solver, denoise, torch.randn(4, generator=torch.Generator().manual_seed(1)), levels)
    assert torch.equal(x, estimates[-1])
    assert len(estimates) == (2 * steps - 1 if solver == "heun" else steps)


@pytest.mark.parametrize("solver", SOLVERS)
def test_tells_the_timestep_of_every_level(solver: str):
    levels = flow_levels(5, shift=3.0, convention="release", solver=solver)
    asked = []

    def denoise(x: Tensor, sigma: float, timestep: float) -> Tensor:
        asked.append((sigma, timestep))
        return 0.5 * x

    solve(solver, denoise, torch.ones(1), levels)
    known = list(zip(levels.sigmas.tolist(), levels.timesteps.tolist(), strict=False))
    expected = [known[0], *(level for level in known[1:] for _ in range(2))] if solver == "heun" else known
    assert asked == expected


@pytest.mark.parametrize("solver", SOLVERS)
def test_elements_do_not_see_each_other(solver: str):
    levels = flow_levels(6, shift=5.0, convention="release", solver=solver)

    def denoise(x: Tensor, sigma: float, timestep: float) -> Tensor:
        return torch.sin(2 * x) * (1 - sigma)

    clips = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(2))
    together = solve(solver, denoise, clips, levels)
    alone = torch.stack([solve(solver, denoise, clip, levels) for clip in clips])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("solver", SOLVERS)
def test_reports_every_step(solver: str):
    levels = flow_levels(4, shift=5.0, convention="release", solver=solver)
    seen: list[tuple[int, int]] = []
    last = []

    def on_step(state: State, total: int, denoised: Tensor) -> None:
        seen.append((state.step, total))
        last.append((state.x, denoised))

    x = solve(solver, lambda x, sigma, timestep: torch.cos(x), torch.ones(3), levels, on_step=on_step)
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert torch.equal(last[-1][0], x)
    assert torch.equal(last[-1][1], x)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("steps", [1, 2, 50, 1000])
@pytest.mark.parametrize("shift", [0.5, 1.0, 12.0])
def test_levels_fall_to_exactly_zero(solver: str, convention: str, steps: int, shift: float):
    levels = flow_levels(steps, shift=shift, convention=convention, solver=solver)
    assert len(levels.timesteps) == steps == len(levels.sigmas) - 1
    assert levels.sigmas[-1].item() == 0
    assert (levels.sigmas.diff() < 0).all()
    assert 0.998 < levels.sigmas[0].item() <= 1
    assert ((1000 * levels.sigmas[:-1] - levels.timesteps).abs() < 1.001).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": 0}, ["--steps 0", "at least one"]),
        ({"shift": 0.0}, ["--shift 0", "above 0"]),
        ({"shift": math.nan}, ["--shift nan"]),
        ({"convention": "comfy"}, ["'comfy'", "release, diffusers"]),
        ({"solver": "ddim"}, ["'ddim'", "dpmpp-2m, dpmpp-2m-sde, euler, heun, lcm, unipc"]),
        ({"steps": 100_000, "shift": 1000.0}, ["coincide", "fewer steps"]),
    ],
)
def test_refuses_what_makes_no_levels(change: dict, words: list[str]):
    wanted = {"steps": 4, "shift": 5.0, "convention": "release", "solver": "unipc"} | change
    with pytest.raises(UsageError) as caught:
        flow_levels(**wanted)
    assert all(word in str(caught.value) for word in words)


def test_guidance_extrapolates_from_the_unconditional():
    cond, uncond = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 3.0])
    assert guided(cond, uncond, 4.0).tolist() == [2.5, -1.0]
    assert torch.equal(guided(cond, uncond, 1.0), cond)


def test_guidance_interval_includes_its_ends():
    assert [needs_guidance(sigma, 5.0, (0.25, 0.75)) for sigma in (0.2, 0.25, 0.5, 0.75, 0.8)] == [0, 1, 1, 1, 0]
    assert needs_guidance(1.0, 5.0)
    assert not needs_guidance(0.5, 1.0)
    assert not needs_guidance(0.5, 1.0, (0.0, 1.0))


@pytest.mark.parametrize("solver", SOLVERS)
def test_from_the_middle_the_rest_is_bit_for_bit_the_same(solver: str):
    levels, states = flow_levels(7, shift=5.0, convention="release", solver=solver), []

    def run(begin: State, seen: list[State]) -> Tensor:
        added = torch.Generator().manual_seed(1)
        return solve(
            solver,
            lambda x, sigma, timestep: torch.cos(x * timestep),
            begin,
            levels,
            draw=lambda: torch.randn(5, generator=added),
            on_step=lambda state, total, denoised: seen.append(state),
        )

    whole = run(State(0, torch.linspace(-2, 2, 5)), states)
    assert [state.step for state in states] == [1, 2, 3, 4, 5, 6, 7]
    for state in states:
        later: list[State] = []
        assert torch.equal(run(state, later), whole)
        assert [each.step for each in later] == list(range(state.step + 1, 8))
