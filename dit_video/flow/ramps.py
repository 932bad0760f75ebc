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

import struct
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

from dit_video.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Level = TypeVar("Level", float, "Tensor")

NUM_TRAIN_TIMESTEPS = 1000
CONVENTIONS = ("release", "diffusers")

_INTEGER_TIMESTEPS = {"unipc", "dpmpp-2m", "dpmpp-2m-sde"}


def ramp_of(steps: int, *, shift: float, convention: str = "release", solver: str = "unipc") -> list[float]:
    """The levels that `solver` begins its steps at, in float64, decreasing; the 0 after them is not among them.

    Raises:
        UsageError: see `levels.flow_levels`.
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
    rounded = [*map(float32, ramp), 0.0]
    if any(later >= earlier for earlier, later in pairwise(rounded)):
        raise UsageError(
            f"--steps {steps} --shift {shift:g}: neighbouring noise levels coincide in float32; take fewer steps."
        )
    return ramp


def timesteps_of(ramp: Sequence[float], solver: str) -> list[float]:
    """The timesteps that the transformer is told at levels of `ramp_of`, in float32.

    Those of some solvers are whole numbers, cut in float64, before the level is rounded to float32.
    """
    if solver in _INTEGER_TIMESTEPS:
        return [float(int(sigma * NUM_TRAIN_TIMESTEPS)) for sigma in ramp]
    return [float32(float32(sigma) * NUM_TRAIN_TIMESTEPS) for sigma in ramp]


def float32(value: float) -> float:
    """The nearest number that a float32 can be."""
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


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
    first = float32(1 - 1 / NUM_TRAIN_TIMESTEPS)
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
    first, last = (_shifted_float32(float32(end / NUM_TRAIN_TIMESTEPS), shift) for end in (NUM_TRAIN_TIMESTEPS, 1))
    timesteps = _linspace(first * NUM_TRAIN_TIMESTEPS, last * NUM_TRAIN_TIMESTEPS, steps)
    return [shifted(timestep / NUM_TRAIN_TIMESTEPS, shift) for timestep in timesteps]


def _shifted_float32(sigma: float, shift: float) -> float:
    """`shifted` where every operation is rounded to float32, as of tensors."""
    above = float32(float32(shift) * sigma)
    return float32(above / float32(1 + float32(float32(shift - 1) * sigma)))


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
