"""Random numbers that depend on (seed, process, step) alone, so that a resumed run draws what it would have drawn."""

import numpy as np
import torch


def numpy_generator(seed: int, rank: int, step: int) -> np.random.Generator:
    """A numpy generator for one step of one process."""
    return np.random.default_rng((seed, rank, step))


def torch_generator(seed: int, rank: int, step: int) -> torch.Generator:
    """A CPU torch generator for one step of one process, independent of `numpy_generator`'s."""
    state = np.random.SeedSequence((seed, rank, step, 1)).generate_state(2, np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)
