"""Run a command, and write what it took to a file: seconds, processor seconds, bytes resident at most.

    python -S benchmarks/measured.py FILE COMMAND...

A process of its own, for it is small: Linux counts what a process held when it started another one as that one's too,
which after torch was imported is more than what is measured.
"""

import json
import os
import sys
import time

if __name__ == "__main__":
    start = time.perf_counter()
    child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
    _, status, used = os.wait4(child, 0)
    seconds = time.perf_counter() - start
    with open(sys.argv[1], "w") as file:
        json.dump([seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024], file)
    code = os.waitstatus_to_exitcode(status)
    sys.exit(code if code >= 0 else 128 - code)
