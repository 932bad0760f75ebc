"""Settings of the whole process that make a run on the CPU faster; they change no result."""

import ctypes
import os
import sys

# OpenMP and torch read these when torch is first imported.
ENVIRONMENT = {
    # Threads that spin while they wait made torch up to 20 times slower on a shared machine; threads that sleep at once
    # are woken for every small operation, which made the decoder a third slower. So they spin for at most some 0.1 ms.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "2000",
    # Linux: large tensors in huge pages; a third off the decoder's time.
    "THP_MEM_ALLOC_ENABLE": "1",
}
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER = -1
ALLOCATOR = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")  # how a user sets the same


def prepare() -> None:
    """Set them, before torch is imported; what the user has set in the environment stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if sys.platform == "linux" and not any(name in os.environ for name in ALLOCATOR):
        keep_freed_memory()


def open_streams() -> None:
    """Let standard streams that are closed lead nowhere, or the next file that is opened would be taken for one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # which takes the lowest number that is free


def keep_freed_memory() -> bool:
    """Let glibc reuse the memory of freed tensors instead of returning it and asking for zeroed pages again.

    True where the C library has taken it; another one, such as musl, is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
