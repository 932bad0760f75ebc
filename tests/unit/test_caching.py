"""Step caching: which steps are skipped, and that it is said where none is."""

import pytest
import torch

from dit_video.clip import Settings
from dit_video.flow.caching import LEAST_STEPS, SOLVERS, computed_steps
from dit_video.flow.levels import flow_levels
from dit_video.flow.solvers import SOLVERS as ALL_SOLVERS
from dit_video.flow.solvers import State
from dit_video.work import steps_of, why_not_fast


def numbers(steps: int, first: int = 0, solver: str = "unipc") -> list[int]:
    found = computed_steps([None] * steps, first, solver)
    assert len(found) == steps - first
    return [first + number for number, is_computed in enumerate(found) if is_computed]


def test_the_steps_of_the_shipped_model():
    assert numbers(20) == [0, 1, 2, 3, 4, 5, 7, 9, 13, 17]


@pytest.mark.parametrize("steps", [20, 24, 30, 37, 50, 100, 1000])
def test_half_or_less_is_computed_the_noisiest_first(steps: int):
    found = numbers(steps)
    apart = [later - one for one, later in zip(found, [*found[1:], steps], strict=True)]
    assert len(found) <= steps / 2 and apart[:-1] == sorted(apart[:-1]) and max(apart) <= steps / 4


def test_a_run_that_begins_late_begins_with_a_computed_step():
    assert numbers(20, first=11) == [11, 13, 17] and numbers(20, first=19) == [19] and numbers(20, first=20) == []


def test_another_expert_or_the_end_of_guidance_is_a_new_velocity():
    settings = Settings(steps=20, shift=3.0, guidance=(4.0, 3.0), guidance_interval=(0.45, 1.0), fast=True)
    steps = steps_of(settings, 0.7)
    computed = [number for number, step in enumerate(steps) if step.computed]
    changes = [number for number in range(1, 20) if steps[number].part != steps[number - 1].part]
    ends = [number for number in range(1, 20) if steps[number].guided != steps[number - 1].guided]
    assert len(changes) == len(ends) == 1 and {*changes, *ends} <= set(computed) - {0, 1, 2, 3, 4, 5, 7, 9, 13, 17}


@pytest.mark.parametrize("solver", ALL_SOLVERS)
def test_where_nothing_is_skipped_it_is_said_why(solver: str):
    few, many = (Settings(steps=steps, solver=solver, fast=True) for steps in (LEAST_STEPS - 1, LEAST_STEPS))
    assert why_not_fast(Settings(steps=4, solver=solver), None) == ""
    if solver in SOLVERS:
        assert why_not_fast(many, None) == "" and f"it begins at {LEAST_STEPS}" in why_not_fast(few, None)
    else:
        assert f"not with the solver {solver}" in why_not_fast(many, None)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_velocity_that_does_not_change_loses_nothing(solver: str):
    """On a straight path the velocity of one level is that of all, so a solver ends where it would have."""
    levels = flow_levels(20, shift=3.0, solver=solver)
    noise, clean = torch.randn(50, generator=torch.Generator().manual_seed(0)), torch.linspace(-1, 1, 50)
    x = torch.lerp(clean, noise, float(levels.sigmas[0]))
    end = ALL_SOLVERS[solver](
        lambda x, sigma, _: x - sigma * (noise - clean), State(0, x), levels, draw=lambda: torch.zeros(50)
    )
    assert torch.allclose(end, clean, atol=1e-5)
