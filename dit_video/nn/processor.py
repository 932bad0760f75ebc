"""What the processor computes with, as far as it decides which of two ways is the faster one."""

import torch


def has_avx512() -> bool:
    """Whether torch uses AVX-512 here."""
    return torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def has_amx() -> bool:
    """Whether there are AMX's tiles, in which oneDNN multiplies 16 and 8 bits."""
    return torch.cpu._is_amx_tile_supported()
