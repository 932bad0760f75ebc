"""Noise levels: which sigmas a solver visits, and which timestep the transformer is told at each, as tensors.

`ramps` knows them as numbers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dit_video.flow.ramps import ramp_of, timesteps_of


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
    ramp = ramp_of(steps, shift=shift, convention=convention, solver=solver)
    sigmas = torch.tensor([*ramp, 0.0], dtype=torch.float64).float()
    return Levels(sigmas, torch.tensor(timesteps_of(ramp, solver), dtype=torch.float32))
