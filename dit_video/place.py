"""Where a run would compute, told without torch: what stands for its devices and dtypes before it is imported.

Torch itself decides in a run. Here the system is asked the same: the processor's flags, and NVIDIA's own tool.
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from dit_video.errors import UsageError

ITEMSIZES = {"float32": 4, "bfloat16": 2, "float16": 2}
FASTER_BFLOAT16 = ("amx_bf16", "avx512_bf16")  # of the processor's flags, one of which is enough
ASKED = 3.0  # seconds that NVIDIA's tool may take


@dataclass(frozen=True)
class Device:
    """Stands for a torch.device: its kind, and for a GPU the bytes of its memory that are free, if they are known."""

    type: str
    free: int | None = None

    def __str__(self) -> str:
        return self.type


@dataclass(frozen=True)
class DType:
    """Stands for a torch.dtype."""

    name: str

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return ITEMSIZES[self.name]

    def __str__(self) -> str:
        return f"torch.{self.name}"


@dataclass(frozen=True, kw_only=True)
class Foreseen:
    """A place, why it is that one, and what could not be told of it, as sentences."""

    device: Device
    dtype: DType
    why: str
    unknown: tuple[str, ...] = ()


def foreseen(device: str, dtype: str) -> Foreseen:
    """The device and the dtype that a run with these names takes, see `machine.pick_device` and `machine.pick_dtype`.

    Raises:
        UsageError: this machine does not have the device.
    """
    free = free_of_gpu() if device in ("auto", "cuda") else None
    present = {"cpu": True, "cuda": free is not None, "mps": _has_mps()}
    if device != "auto" and not present[device]:
        nearest = next(kind for kind in ("cuda", "mps", "cpu") if present[kind])
        raise UsageError(f"--device {device}: there is no such device on this machine; the nearest is {nearest}.")
    kind = device if device != "auto" else "cuda" if present["cuda"] else "cpu"
    unknown = []
    reasons = [f"{kind}: " + ("asked for" if device != "auto" else "the fastest that is here")]
    found = dtype
    if dtype != "auto":
        reasons.append(f"{dtype}: asked for")
    elif kind != "cpu":
        found = "bfloat16" if kind == "cuda" else "float32"
        reasons.append(f"{found}: usual on {kind}")
    else:
        faster = multiplies_bfloat16()
        found = "bfloat16" if faster else "float32"
        reasons.append(f"{found}: " + ("which this processor multiplies faster" if faster else "usual on the CPU"))
        if faster is None:
            unknown.append("whether this processor multiplies bfloat16 faster is known to torch alone")
    return Foreseen(device=Device(kind, free), dtype=DType(found), why="; ".join(reasons), unknown=tuple(unknown))


def multiplies_bfloat16() -> bool | None:
    """Whether the processor multiplies bfloat16 faster than float32; None where only torch can tell."""
    if sys.platform == "darwin":
        return False  # none that does ever came with it: those are x86's
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return None
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", info.read_text(), re.MULTILINE)
    return flags is not None and any(flag in flags[1].split() for flag in FASTER_BFLOAT16)


@cache
def free_of_gpu() -> int | None:
    """The free memory of the first GPU that torch could use, in bytes; None where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not re.match(r"[\w-]", visible.strip() if visible.strip() != "-1" else ""):
        return None
    if not _built_with_cuda():
        return None
    which = visible.split(",")[0].strip() if visible else "0"
    ask = ["nvidia-smi", "--query-gpu=memory.free", "--format=csv,noheader,nounits", f"--id={which}"]
    try:
        answer = subprocess.run(ask, capture_output=True, text=True, timeout=ASKED, check=True).stdout
        return int(answer.split()[0]) * 2**20
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return None


def _built_with_cuda() -> bool:
    """Whether the torch that is installed was built for NVIDIA's GPUs, as its own file says."""
    spec = find_spec("torch")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        file = Path(folder) / "version.py"
        if file.is_file():
            return re.search(r"^cuda\b[^=]*=\s*['\"]", file.read_text(), re.MULTILINE) is not None
    return False


def _has_mps() -> bool:
    return sys.platform == "darwin" and os.uname().machine == "arm64"


def threads() -> int:
    """The threads that torch takes on the CPU: what the environment says, or one for each core that may be used."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
