"""Maps of files whose pages are not needed any more, so that they count no longer as memory of this process."""

import ctypes
import re
import sys
from bisect import bisect_right
from collections.abc import Iterable
from mmap import PAGESIZE
from pathlib import Path

from torch import Tensor

MADV_DONTNEED = 4  # of Linux
_REGION = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")


def let_go(tensors: Iterable[Tensor]) -> None:
    """Let the system take back the pages of those tensors that are maps of files; it reads them again, from its cache
    of the disk or from the disk, when they are used again.

    What was written into such a map is lost. Other tensors stay as they are: each is looked up in the system's own list
    of maps. Linux only; elsewhere nothing happens.
    """
    if sys.platform != "linux":
        return
    regions = _file_maps()
    starts = [start for start, _ in regions]
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    for tensor in tensors:
        if tensor.device.type != "cpu" or not tensor.nbytes:
            continue
        begin, end = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        place = bisect_right(starts, begin) - 1
        if place < 0 or end > regions[place][1]:
            continue
        begin, end = -(-begin // PAGESIZE) * PAGESIZE, end // PAGESIZE * PAGESIZE  # whole pages of its own
        if begin < end:
            advise(begin, end - begin, MADV_DONTNEED)


def _file_maps() -> list[tuple[int, int]]:
    """First address and end of every map of a file, in order."""
    found = (_REGION.match(line) for line in Path("/proc/self/maps").read_text().splitlines())
    return [(int(each[1], 16), int(each[2], 16)) for each in found if each and each[3] != "0"]
