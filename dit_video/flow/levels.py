"""Noise levels: which sigmas a solver visits, and which timestep the transformer is told at each.

Every schedule is an even ramp of sigma, pushed towards noise by the shift of Esser et al. (arXiv 2403.03206, eq. 23),
and ends in exactly 0. The references differ in the ends of the ramp and in the timesteps:

| solver       | release: Wan2.1, wan/utils/fm_solvers*.py   | diffusers 0.42                                        |
|--------------|---------------------------------------------|-------------------------------------------------------|
| unipc        | .999 to 0; integer timesteps                | 1 to .001, the first lowered by 1e-6; integer         |
| dpmpp-2m     | 1 to 0; integer timesteps                   | .999 to 0; integer timesteps                          |
| dpmpp-2m-sde | has none, so those of dpmpp-2m              | as dpmpp-2m                                           |
| euler, heun  | has none, so ours: 1 to 0; 1000 sigma       | 1 to .001 already shifted, shifted again; 1000 sigma  |
| lcm          | has none, so ours: 1 to 0; 1000 sigma       | as euler                                              |

The lower end of a ramp gives way to the final 0; diffusers' Euler, Heun and LCM keep it and add the 0 after it. Integer
timesteps are cut, not rounded: the transformer is told a level up to .001 below the true one, and one off is visible.

Models that are distilled to four steps are trained at the levels of 1000, 750, 500 and 250 thousandths, shifted by 5:
1 to 0 in four steps, so their sampling is ours of Euler and LCM (LightX2V, lightx2v/models/schedulers/wan/step_distill;
Wan2.2-Lightning, wan/utils/fm_solvers_euler.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from dit_video.errors import UsageError

Level = TypeVar("Level", float, Tensor)

NUM_TRAIN_TIMESTEPS = 1000
CONVENTIONS = ("release", "diffusers")

_INTEGER_TIMESTEPS = {"unipc", "dpmpp-2m", "dpmpp-2m-sde"}


@dataclass(frozen=True)
class Levels:
    """The N + 1 noise levels between N steps, and the N timesteps that the transformer is told.

    sigmas (N + 1,): float32 on the CPU, decreasing, 1 is pure noise, the last is exactly 0.
    timesteps (N,): float32 on the CPU, in 0..1000.
    """

    sigmas: Tensor
    timesteps: Tensor


def flow_levels(steps: int, *, shift: float, convention: str = "release", solver: str = "unipc") -> Levels:
    """The levels that `solver` visits in `steps` steps, bit for bit those of the reference that `convention` names.

    shift: above 0; 1 leaves the ramp even, larger values spend more steps near pure noise.

    Raises:
        UsageError: fewer than one step, a shift that is not above 0, or an unknown convention or solver.
    """
    if steps < 1:
        raise UsageError(f"--steps {steps}: there must be at least one step; the nearest is 1.")
    if not 0 < shift < float("inf"):
        raise UsageError(f"--shift {shift:g}: the shift must be a finite number above 0; 1 means no shift.")
    if convention not in CONVENTIONS:
        raise UsageError(f"--sigmas {convention!r}: must be one of {', '.join(CONVENTIONS)}.")
    if (convention, solver) not in _RAMPS:
        raise UsageError(f"--solver {solver!r}: must be one of {', '.join(sorted({name for _, name in _RAMPS}))}.")

    ramp = _RAMPS[convention, solver](steps, shift)
    sigmas = torch.tensor([*ramp, 0.0], dtype=torch.float64).float()
    if not (sigmas.diff() < 0).all():
        raise UsageError(
            f"--steps {steps} --shift {shift:g}: neighbouring noise levels coincide in float32; take fewer steps."
        )
    if solver in _INTEGER_TIMESTEPS:  # cut in float64, before the level is rounded to float32
        timesteps = torch.tensor([int(sigma * NUM_TRAIN_TIMESTEPS) for sigma in ramp], dtype=torch.float32)
    else:
        timesteps = sigmas[:-1] * NUM_TRAIN_TIMESTEPS
    return Levels(sigmas, timesteps)


def shifted(sigma: Level, shift: float) -> Level:
    """A noise level, or a tensor of them, pushed towards noise: arXiv 2403.03206, eq. 23, with sqrt(m/n) = shift."""
    return shift * sigma / (1 + (shift - 1) * sigma)


def _linspace(start: float, stop: float, count: int) -> list[float]:
    # numpy's own order of operations: a value one ulp lower would be cut to another integer timestep
    step = (stop - start) / max(count - 1, 1)
    values = [index * step + start for index in range(count)]
    return values if count == 1 else [*values[:-1], stop]


def _from_one(steps: int, shift: float) -> list[float]:
    """Wan2.1 `get_sampling_sigmas`."""
    return [shifted(sigma, shift) for sigma in _linspace(1.0, 0.0, steps + 1)[:-1]]


def _from_999(steps: int, shift: float) -> list[float]:
    """Wan2.1 `FlowUniPCMultistepScheduler`: the first training level, 1 - 1/1000, rounded to float32 there."""
    first = torch.tensor(1 - 1 / NUM_TRAIN_TIMESTEPS).item()
    return [shifted(sigma, shift) for sigma in _linspace(first, 0.0, steps + 1)[:-1]]


def _complement_from_999(steps: int, shift: float) -> list[float]:
    """diffusers' `DPMSolverMultistepScheduler` with flow sigmas: 1 - alpha, from the clean end."""
    alphas = _linspace(1.0, 1 / NUM_TRAIN_TIMESTEPS, steps + 1)
    return [shifted(1.0 - alpha, shift) for alpha in reversed(alphas[1:])]


def _above_001(steps: int, shift: float) -> list[float]:
    """diffusers' `UniPCMultistepScheduler` with flow sigmas: level 1 is lowered so that its log-SNR is finite."""
    first, *rest = [shifted(sigma, shift) for sigma in _linspace(1.0, 1 / NUM_TRAIN_TIMESTEPS, steps + 1)[:-1]]
    return [first - 1e-6 if abs(first - 1) < 1e-6 else first, *rest]


def _shifted_twice(steps: int, shift: float) -> list[float]:
    """diffusers' `FlowMatchEulerDiscreteScheduler`: the ramp runs between float32 levels that are already shifted."""
    ends = torch.tensor([NUM_TRAIN_TIMESTEPS, 1], dtype=torch.float32) / NUM_TRAIN_TIMESTEPS
    first, last = (shift * ends / (1 + (shift - 1) * ends)).tolist()
    timesteps = _linspace(first * NUM_TRAIN_TIMESTEPS, last * NUM_TRAIN_TIMESTEPS, steps)
    return [shifted(timestep / NUM_TRAIN_TIMESTEPS, shift) for timestep in timesteps]


_RAMPS: dict[tuple[str, str], Callable[[int, float], list[float]]] = {
    ("release", "unipc"): _from_999,
    ("release", "dpmpp-2m"): _from_one,
    ("release", "dpmpp-2m-sde"): _from_one,
    ("release", "euler"): _from_one,
    ("release", "heun"): _from_one,
    ("release", "lcm"): _from_one,
    ("diffusers", "unipc"): _above_001,
    ("diffusers", "dpmpp-2m"): _complement_from_999,
    ("diffusers", "dpmpp-2m-sde"): _complement_from_999,
    ("diffusers", "euler"): _shifted_twice,
    ("diffusers", "heun"): _shifted_twice,
    ("diffusers", "lcm"): _shifted_twice,
}
