"""The device that the tests of this folder compare with the CPU, and how near is near."""

import os

import torch
from torch import Tensor

DEVICE = torch.device(os.environ.get("GPU_TESTS_ON", "cuda"))
"""`GPU_TESTS_ON=cpu` runs what a CPU can run of them, in bfloat16 against float32: it tests the tests."""

BF16 = torch.bfloat16


def error(got: Tensor, want: Tensor) -> float:
    """Root mean square of the difference, as a part of that of `want`; refuses what is not finite."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    assert got.shape == want.shape and bool(torch.isfinite(got).all())
    return float((got - want).norm() / want.norm())
