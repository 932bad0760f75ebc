"""Tests of what runs on a GPU alone, or otherwise there: `python -m pytest -m gpu`."""

import pytest
import torch

from tests.gpu.compare import DEVICE


@pytest.fixture
def device() -> torch.device:
    """The device that is compared with the CPU."""
    if DEVICE.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("PyTorch finds no CUDA device")
    return DEVICE


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """A CUDA device, of what no CPU can stand for."""
    if device.type != "cuda":
        pytest.skip("only CUDA has this")
    return device
