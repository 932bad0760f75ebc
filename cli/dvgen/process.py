"""Settings of the whole process that make a run on the CPU faster; they change no result."""

import atexit
import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# OpenMP and torch read these when torch is first imported.
ENVIRONMENT = {
    # Threads that spin while they wait made torch up to 20 times slower on a shared machine; threads that sleep at once
    # are woken for every small operation, which made the decoder a third slower. So they spin for at most some 0.1 ms.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "2000",
    # Linux: large tensors in huge pages; a third off the decoder's time.
    "THP_MEM_ALLOC_ENABLE": "1",
}
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
NEVER = -1
# Bytes. What is larger gets memory of its own and gives it back: pieces of freed memory that none of the large tensors
# of an autoencoder fits into took a third of all, and zeroed huge pages cost such tensors no time that shows.
LARGE = 2**23
ALLOCATOR = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
"""How a user sets the same."""


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


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """End the process after SystemExit from within as soon as threads and exit handlers registered since are done.

    Python would then take apart all that is loaded, which frees nothing that the system would not, and takes a second
    once torch is.
    """
    codes: list[int] = []

    def leave() -> None:
        if codes:
            if logging := sys.modules.get("logging"):
                logging.shutdown()
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError, ValueError, AttributeError):  # nobody reads it, it is closed, there is none
                    stream.flush()
            os._exit(codes[0])

    atexit.register(leave)  # the last to be called of those that are registered from now on
    try:
        yield
    except SystemExit as end:
        if isinstance(end.code, int):
            codes.append(end.code)
        raise


def keep_freed_memory() -> bool:
    """Let glibc reuse the memory of freed tensors below LARGE instead of returning it and asking for it again, zeroed.

    True where the C library has taken it; another one, such as musl, is left as it is.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_THRESHOLD, LARGE)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
