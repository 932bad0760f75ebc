"""Settings of the whole process that make a run on the CPU faster; they change no result."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from dit_video import allocator

# OpenMP and torch read these when torch is first imported.
ENVIRONMENT = {
    # Threads that spin while they wait made torch up to 20 times slower on a shared machine; threads that sleep at once
    # are woken for every small operation, which made the decoder a third slower. So they spin for at most some 0.1 ms.
    "OMP_WAIT_POLICY": "passive",
    "GOMP_SPINCOUNT": "2000",
    # Linux: large tensors in huge pages; a third off the decoder's time.
    "THP_MEM_ALLOC_ENABLE": "1",
}


def prepare() -> None:
    """Set them, before torch is imported; what the user has set in the environment stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    allocator.keep_freed_memory()


def open_streams() -> None:
    """Let standard streams that are closed lead nowhere, or the next file that is opened would be taken for one."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # which takes the lowest number that is free


@contextmanager
def importing(module: str) -> Iterator[None]:
    """Around the import of a large module: without looking for garbage torch's takes a tenth less.

    What there is then is not looked through later either; the little garbage among it stays. Where the module is there
    already nothing changes.
    """
    if module in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


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
