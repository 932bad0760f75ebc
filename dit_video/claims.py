"""Who works on a file that is not there yet: a claim in a small file beside it, so that no two processes make the same.

A claim names its process, is touched as long as that runs, and goes with it or is taken over after it. It is made by
what every file system does at once or not at all, creating a file that is not there, and nothing else: whoever takes
over an abandoned claim does not replace it but creates the next one, which has a number more, and that succeeds for one
alone. What was claimed may be finished by the time that a claim succeeds, so look again then.
"""

import hashlib
import os
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Self

from dit_video.processes import runs, this_process

TOUCHED_EVERY = 10.0  # seconds
ABANDONED_AFTER = 60.0  # seconds of watching a claim that nobody touches


@dataclass(frozen=True)
class _Seen:
    """A claim of another process: when it was touched, and since when it has looked so to us."""

    touched: int
    since: float


class Claims:
    """What this process works on. All are given up when the block ends."""

    def __init__(self) -> None:
        self._held: dict[Path, list[Path]] = {}  # the claims of a file, ours last
        self._seen: dict[Path, _Seen] = {}
        self._ended = threading.Event()
        self._toucher = threading.Thread(target=self._touch, daemon=True)

    def __enter__(self) -> Self:
        self._toucher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        for path in list(self._held):
            self.release(path)

    def take(self, path: Path) -> bool:
        """Claim a file; False while another process, that still runs, has claimed it.

        Raises:
            OSError: no file can be created beside it.
        """
        while True:
            passed = []
            for claim in _claims_of(path):
                try:
                    descriptor = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
                    break
                except FileExistsError:
                    if not self._is_abandoned(claim):
                        return False
                    passed.append(claim)
            self._held[path] = [*passed, claim]
            with os.fdopen(descriptor, "w") as file:
                file.write(this_process())
            if all(map(self._is_abandoned, passed)):
                return True
            # Who held this claim has just given up, and removed those that were passed: others may take them now.
            del self._held[path]
            claim.unlink(missing_ok=True)

    def release(self, path: Path) -> None:
        """Give up a claim, if it is held; the last of its files goes last, see `take`."""
        for claim in self._held.pop(path, []):
            with suppress(OSError):  # Windows does not remove what another process is just looking at
                claim.unlink(missing_ok=True)

    def _is_abandoned(self, claim: Path) -> bool:
        try:
            process, touched = claim.read_text(), claim.stat().st_mtime_ns
        except (OSError, UnicodeError):  # just given up
            return False
        if runs(process) is False:
            return True
        seen = self._seen.get(claim)
        if seen is None or seen.touched != touched:
            # By our own clock, since that of another machine may be wrong.
            self._seen[claim] = _Seen(touched, time.monotonic())
            return False
        return time.monotonic() - seen.since > ABANDONED_AFTER

    def _touch(self) -> None:
        while not self._ended.wait(TOUCHED_EVERY):
            for claims in list(self._held.values()):
                with suppress(OSError):
                    os.utime(claims[-1])


def _claims_of(path: Path) -> Iterator[Path]:
    """The names of the claims of a file, in their order."""
    key = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]  # a name may be too long for anything beside it
    for number in count(1):
        yield path.with_name(f".dvgen-{key}.{number}.claim")
