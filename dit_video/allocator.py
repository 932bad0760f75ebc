"""The C library's allocator: whether the memory of freed tensors is kept for the next ones."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h
NEVER, USUAL = -1, 65536
LARGE = 2**23
"""Bytes of a tensor that gets memory of its own in `giving_back`."""
ALLOCATOR = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
"""How a user sets the same."""

_state = {"kept": False, "giving back": 0}


def keep_freed_memory() -> bool:
    """Let glibc reuse the memory of freed tensors instead of returning it and asking for zeroed pages again.

    True where it does. Another C library, such as musl, and what the user has set in the environment are left alone.
    """
    if sys.platform != "linux" or any(name in os.environ for name in ALLOCATOR):
        return False
    _state["kept"] = _set(M_MMAP_MAX, 0) and _set(M_TRIM_THRESHOLD, NEVER)
    return bool(_state["kept"])


@contextmanager
def giving_back(large: bool = True) -> Iterator[None]:
    """Within this, where freed memory is kept, that of tensors of LARGE bytes or more is not: of many sizes in turn
    none fits into the pieces that others have left, and those add up to as much again.

    large: whether there are such tensors; else nothing changes.
    """
    if not (large and _state["kept"]):
        yield
        return
    _set(M_MMAP_THRESHOLD, LARGE)
    _set(M_MMAP_MAX, USUAL)
    _state["giving back"] += 1
    try:
        yield
    finally:
        _state["giving back"] -= 1
        if not _state["giving back"]:
            _set(M_MMAP_MAX, 0)


def _set(option: int, value: int) -> bool:
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(option, value))
