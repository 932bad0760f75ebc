"""What this machine offers: devices, the dtype that suits them, and memory."""

import os
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video.errors import UsageError
from dit_video.place import Device, DType

if TYPE_CHECKING:
    import torch

PROGRAM_BYTES = 450_000_000  # of this program and its libraries: 260 MB were measured, and what small tensors leave
RESERVE_BYTES = 512_000_000  # of what is free, for everything else on the machine


def peak_memory(device: "torch.device") -> dict[str, int]:
    """The most memory of this process so far, in bytes: "host" where the system counts it, "device" on CUDA."""
    found: dict[str, int] = {}
    if sys.platform != "win32":
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        found["host"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    if device.type == "cuda":
        import torch

        found["device"] = torch.cuda.max_memory_allocated(device)
    return found


def since_start() -> float:
    """Seconds since this process began; where the system does not tell, those that it has computed."""
    stat = Path("/proc/self/stat")
    if not stat.is_file() or not hasattr(time, "CLOCK_BOOTTIME") or not hasattr(os, "sysconf"):
        return time.process_time()
    began = int(stat.read_text().rpartition(")")[2].split()[19])  # in ticks of the clock, since the machine began
    return time.clock_gettime(time.CLOCK_BOOTTIME) - began / os.sysconf("SC_CLK_TCK")


def is_out_of_memory(error: Exception) -> bool:
    """Whether this is "out of memory", which torch says in several ways."""
    phrases = ("out of memory", "not enough memory", "can't allocate memory", "could not create a primitive")  # oneDNN
    return isinstance(error, MemoryError) or any(phrase in str(error).lower() for phrase in phrases)


def pick_device(name: str) -> "torch.device":
    """The device of "auto" (CUDA where there is one, else the CPU: nothing was ever run on MPS), "cpu", "cuda", "mps".

    Raises:
        UsageError: this machine does not have it.
    """
    import torch

    present = devices()
    if name != "auto" and name not in present:
        raise UsageError(f"--device {name}: PyTorch finds no such device on this machine; the nearest is {present[0]}.")
    return torch.device(("cuda" if "cuda" in present else "cpu") if name == "auto" else name)


def devices() -> list[str]:
    """The kinds of device that PyTorch finds on this machine, the fastest first."""
    import torch

    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind, here in found.items() if here]


def pick_dtype(name: str, device: "torch.device") -> "torch.dtype":
    """The dtype of that name; "auto" is bfloat16 where the hardware multiplies it faster, else float32."""
    import torch

    if name != "auto":
        return getattr(torch, name)
    if device.type == "cpu":
        can: dict[str, bool] = dict(getattr(torch.cpu, "get_capabilities", dict)())  # older torch does not tell
        return torch.bfloat16 if can.get("amx_bf16") or can.get("avx512_bf16") else torch.float32
    return torch.bfloat16 if device.type == "cuda" else torch.float32


def dtype_name(dtype: "torch.dtype | DType") -> str:
    """Its name without the library's, as options take it."""
    return str(dtype).removeprefix("torch.")


def memory_for(device: "torch.device | Device", limit: int | None) -> int:
    """The bytes that a stage may take: of `limit` for the whole process, or of what is free, less a reserve."""
    if limit is not None:
        return max(limit - (PROGRAM_BYTES if device.type == "cpu" else 0), 0)
    free = available_memory(device)
    return free - min(RESERVE_BYTES, free // 10)


def available_memory(device: "torch.device | Device") -> int:
    """The memory of a device that can be had now, in bytes; for the CPU at most what its control group may use."""
    if isinstance(device, Device):
        if device.free is not None and device.type == "cuda":
            return device.free
    elif device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    if not hasattr(os, "sysconf"):
        return 2**63 - 1  # Windows does not say; nothing is refused there
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.is_file():  # Linux: what could be had without swapping, the disk cache included
        total = 1024 * int(re.findall(r"MemAvailable:\s+(\d+) kB", meminfo.read_text())[0])
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(total, int(text)) if text.isdecimal() else total
