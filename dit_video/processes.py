"""Names of processes among those of all machines, by which what ended ones have left is told from what is in use.

A number alone does not tell: it is given again, after the machine was off or in another container at the same time. So
the name also says, where the system tells it, when the process began and in which space of numbers.
"""

import os
import socket
from contextlib import suppress

_BEGAN, _FIRST = 22, 3  # fields of /proc/PID/stat: the time since the machine was on, and the first after the name


def this_process() -> str:
    """The name of this process, NUMBER@HOST or NUMBER.BEGAN.SPACE@HOST."""
    number = os.getpid()
    return ".".join([str(number), *_more(number)]) + f"@{socket.gethostname()}"


def runs(process: str) -> bool | None:
    """Whether a process of that name runs besides this one; None where this cannot be told, as on another machine."""
    identity, _, host = process.partition("@")
    text, *more = identity.split(".")
    if not text.isdecimal() or host != socket.gethostname():
        return None
    number, ours = int(text), _more(os.getpid())
    if more[1:] and ours[1:] and more[1] != ours[1]:  # numbers of another space, as of another container
        return None
    if number == os.getpid():
        return False  # this one, or an earlier one, which had the same number
    if os.name != "posix":
        return None
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    began = _more(number)[:1]
    return not more or not began or began == more[:1]


def _more(number: int) -> list[str]:
    """When a process of this machine began, and the space of our numbers, as far as the system tells."""
    found = []
    with suppress(OSError, IndexError):
        with open(f"/proc/{number}/stat", errors="replace") as file:
            found.append(file.read().rpartition(")")[2].split()[_BEGAN - _FIRST])
        found.append(os.readlink("/proc/self/ns/pid").strip("pid:[]"))
    return found
