"""Step caching: steps that go on with the velocity of the step before, so that the transformer is not run for them.

TeaCache (arXiv 2411.19108), MagCache (arXiv 2506.09045) and EasyCache (arXiv 2507.02860) decide on the way, by how much
something has changed. Here it is decided beforehand, by the number of a step alone: a clip then comes out the same in
every pack, a run that was broken off goes on to the same bits, and what it takes is known before it begins. Nothing in
it was fitted to a model, so it is the same for all.

The velocity is kept whole, guidance included; docs/decisions/0006 says what else was tried.
"""

import math
from collections.abc import Hashable, Sequence

SOLVERS = ("unipc", "dpmpp-2m", "euler")
"""Those that evaluate each level once and draw no noise, so that the velocity of a level can stand for the next."""

LEAST_STEPS = 20
"""The fewest steps of which some are skipped: with fewer each of them changes too much."""

WHOLE = 0.28
"""The share of the steps, the noisiest, all of which are computed: there is decided what is where."""

SPACINGS = ((0.5, 0.1), (1.0, 0.2))
"""How far from one another those that follow are computed, as a share of all steps: up to a share, and a spacing."""


def computed_steps(kinds: Sequence[Hashable], first: int, solver: str) -> list[bool]:
    """Whether each step of a ramp from `first` on is computed; of a whole ramp about half of them are.

    kinds: of every step, what makes its velocity: which transformer, and whether it is guided. Where that changes, so
        does the velocity, and the step is computed.
    first: the step that denoising begins with, which is computed.
    """
    steps = len(kinds)
    if solver not in SOLVERS or steps < LEAST_STEPS:
        return [True] * (steps - first)
    spaced = _spaced(steps)
    return [step == first or step in spaced or kinds[step] != kinds[step - 1] for step in range(first, steps)]


def _spaced(steps: int) -> set[int]:
    """The numbers of the steps that are computed of so many; of 20: 0 to 5, 7, 9, 13 and 17."""
    found = set(range(math.ceil(WHOLE * steps)))
    for end, spacing in SPACINGS:
        apart = max(2, round(spacing * steps))
        while (step := max(found) + apart) <= end * steps and step < steps:
            found.add(step)
    return found
