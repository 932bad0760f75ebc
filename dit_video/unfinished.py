"""Denoising that was broken off: its state in a file beside the output, from which the same command goes on.

The file is there once denoising has taken some seconds, and goes when the video is there. What it belongs to is told by
a key, a hash of all that the latents depend on but the seed, and by the seed, which are both in its name. So a command
that draws its seed finds what an earlier one has left, and takes up its seed. Where there is no place for it beside the
output it goes to the user's cache. A file says which process has written it: that of one that still runs is left alone,
and the same command, given again meanwhile, has a file of its own.
"""

import hashlib
import logging
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import dit_video
from dit_video.cache import users_folder
from dit_video.checkpoints.files import save_tensors
from dit_video.checkpoints.headers import read_header, read_metadata
from dit_video.checkpoints.stored import read_tensor
from dit_video.errors import CheckpointError, DvgenError, UndefinedNumbers
from dit_video.flow.solvers import State
from dit_video.limits import kept_every
from dit_video.processes import runs, this_process

if TYPE_CHECKING:
    from dit_video.clip import Settings
    from dit_video.shapes import VideoShape
    from dit_video.stages import Checkpoint

_log = logging.getLogger(__name__)

_NAME = re.compile(r"\.dvgen-([0-9a-f]{16})-(\d+)\.(\d+)(?:\.\d+)?\.state")


@dataclass
class Unfinished:
    """The state of one clip's denoising in a file.

    part: which clip of a command that makes several one after the other. kept: steps done that a file holds.
    told: it was said what is kept.
    """

    folder: Path
    key: str
    seed: int
    part: int = 0
    kept: int = 0
    told: bool = False
    _began: float = field(default_factory=time.monotonic)
    _worth: bool = False
    _total: int = 0
    _latest: State | None = None

    @property
    def path(self) -> Path:
        """The file: that of the command, or of this process alone where another one has that."""
        name = f".dvgen-{self.key}-{self.seed}.{self.part}"
        usual = self.folder / f"{name}.state"
        taken = any(_is_in_use(folder / usual.name) for folder in folders(self.folder))
        return self.folder / f"{name}.{os.getpid()}.state" if taken else usual

    @property
    def is_in_use(self) -> bool:
        """Whether another process, that still runs, has a state of the same command."""
        return any(map(_is_in_use, self._files("*")))

    @property
    def spare(self) -> Path | None:
        """The file where there is no place for that one; None where nothing is to be kept in the user's cache."""
        folder = _spare(self.folder)
        return None if folder is None else folder / self.path.name

    @property
    def is_done(self) -> bool:
        """Whether a file holds the state after the last step."""
        return 0 < self.kept == self._total

    def of_part(self, part: int) -> "Unfinished":
        """That of another clip of the same command, whose clock goes on."""
        return replace(self, part=part, kept=0, told=False, _worth=False, _total=0, _latest=None)

    def read(self, device: torch.device) -> State | None:
        """Where denoising was broken off; None where there is nothing, or nothing that can be read.

        What is read is ours from now on; that of a process that still runs is not read.
        """
        left = [path for path in self._files(str(self.part)) if not _is_in_use(path)]
        found = [each for path in left if (each := _read(path, device))]
        if not found:
            return None
        state, about = max(found, key=lambda each: each[0].step)
        self._latest, self._total = state, int(about["steps"])
        with suppress(CheckpointError):
            self._write(state)
        self.kept = state.step
        return state

    def saved(self) -> int:
        """How many steps a file holds; 0 where there is none that can be read, and that no other process has."""
        found = [0]
        for path in self._files(str(self.part)):
            if not _is_in_use(path):
                with suppress(KeyError, ValueError):
                    found.append(int(_about(path)["step"]))
        return max(found)

    def _files(self, part: str) -> list[Path]:
        """The files of a part, or of all for "*", of whatever process."""
        name = f".dvgen-{self.key}-{self.seed}.{part}"
        names = (f"{name}.state", f"{name}.*.state")
        return sorted({path for folder in folders(self.folder) for each in names for path in folder.glob(each)})

    def step(self, state: State, total: int) -> None:
        """A step is done: its state is written if it is time, or if it is the last one.

        Raises:
            CheckpointError: it cannot be written.
        """
        self._latest, self._total = state, total
        if self._is_worth_it() and (state.step == total or time.monotonic() - self._began >= kept_every()):
            self.write()

    def write(self) -> bool:
        """Writes the latest state, if denoising has taken long enough for it to be worth anything; whether it has.

        Raises:
            CheckpointError: it cannot be written, and is tried again after as long.
        """
        if self._latest is None or not self._is_worth_it():
            return False
        if self._latest.step > self.kept:
            self._began = time.monotonic()
            self._write(self._latest)
            self.kept = self._latest.step
        return True

    def _write(self, state: State) -> None:
        path = self._written(state)
        _log.debug("step %d of %d is kept in %s", state.step, self._total, path)

    def _written(self, state: State) -> Path:
        every = (state.x, *state.kept)  # some of which may be the same, which a file of tensors may not hold twice
        tensors = {str(number): tensor.cpu().clone() for number, tensor in enumerate(every)}
        about = {"step": str(state.step), "steps": str(self._total), "process": this_process()}
        path, spare = self.path, self.spare
        try:
            save_tensors(tensors, path, metadata=about)
            return path
        except CheckpointError:
            if spare is None:
                raise
            try:
                spare.parent.mkdir(parents=True, exist_ok=True)
                save_tensors(tensors, spare, metadata=about)
                return spare
            except (OSError, CheckpointError):
                pass
            raise  # about the place beside the output, which the user knows

    def _is_worth_it(self) -> bool:
        self._worth = self._worth or self.kept > 0 or time.monotonic() - self._began >= kept_every()
        return self._worth

    def remove(self) -> None:
        """Removes the files of all clips of the command, but those of another process that still runs."""
        for path in self._files("*"):
            if not _is_in_use(path):
                path.unlink(missing_ok=True)


class Together:
    """The states of clips that are denoised as one pack, each in its own file, so that each can go on in other company.

    lengths: how many numbers of the pack's x are each clip's. told: it was said what is kept.
    """

    def __init__(self, parts: Sequence[Unfinished], lengths: Sequence[int]) -> None:
        self.parts, self.lengths, self.told = list(parts), list(lengths), False

    @property
    def kept(self) -> int:
        """Steps done that every file holds."""
        return min(part.kept for part in self.parts)

    @property
    def is_done(self) -> bool:
        """Whether the latest state is that after the last step."""
        return all(part.is_done for part in self.parts)

    def read(self, device: torch.device) -> State | None:
        """Where denoising was broken off; None where not all clips have a state of the same step."""
        found = [part.read(device) for part in self.parts]
        states = [state for state in found if state is not None]
        if len(states) < len(found) or len({(state.step, len(state.kept)) for state in states}) != 1:
            for part in self.parts:
                part.kept = 0
            return None
        kept = zip(*(state.kept for state in states), strict=True)
        return State(states[0].step, torch.cat([state.x for state in states]), tuple(map(torch.cat, kept)))

    def step(self, state: State, total: int) -> None:
        """See `Unfinished.step`."""
        xs, kept = state.x.split(self.lengths), [tensor.split(self.lengths) for tensor in state.kept]
        for number, part in enumerate(self.parts):
            part.step(State(state.step, xs[number], tuple(every[number] for every in kept)), total)

    def write(self) -> bool:
        """See `Unfinished.write`."""
        return all([part.write() for part in self.parts])


@contextmanager
def keeping(
    unfinished: Unfinished | Together | None, warn: Callable[[str], None], *, latents: Path | None = None
) -> Iterator[None]:
    """Writes the state of what is broken off, and says so; but not of what would fail again; latents: their file, where
    it is there already."""
    try:
        yield
    except BaseException as error:
        tell_kept(unfinished, error, warn, latents=latents)
        raise


def tell_kept(
    unfinished: Unfinished | Together | None,
    error: BaseException,
    warn: Callable[[str], None],
    *,
    latents: Path | None = None,
) -> None:
    """Says, once, what an error has left; see `keeping`."""
    if unfinished is None or isinstance(error, UndefinedNumbers) or unfinished.told:
        return
    unfinished.told = True
    with suppress(DvgenError):
        unfinished.write()
    if latents:
        command = f"dvgen decode {shlex.quote(str(latents))}"
        warn(f"the latents are kept; the same command goes on from there, and `{command}` makes the video too.")
    elif unfinished.kept:
        what = "all steps are" if unfinished.is_done else f"{unfinished.kept} steps are"
        warn(f"{what} kept; the same command goes on from there.")


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an earlier command has left: its seed, and how far its last clip has come."""

    seed: int
    part: int
    step: int
    steps: int


def find(folder: Path, key: str, seed: int | None) -> Found | None:
    """The latest of what earlier commands have left of the same, with this seed or with any; not of those that still
    run."""
    found = sorted(_found(folder, key), key=lambda each: each[0], reverse=True)
    return next((each for _, each in found if seed in (None, each.seed)), None)


def _found(folder: Path, key: str) -> Iterator[tuple[float, Found]]:
    for path in (path for place in folders(folder) for path in place.glob(f".dvgen-{key}-*.state")):
        match = _NAME.fullmatch(path.name)
        if match is None or _is_in_use(path):
            continue
        try:
            about, written = _about(path), path.stat().st_mtime
            step, steps = int(about["step"]), int(about["steps"])
        except (OSError, KeyError, ValueError):
            continue
        yield written, Found(seed=int(match[2]), part=int(match[3]), step=step, steps=steps)


def _read(path: Path, device: torch.device) -> tuple[State, dict[str, str]] | None:
    """The state in a file, and what the file says of it; None where it cannot be read."""
    try:
        tensors = read_header(path)
        about = read_metadata(path)
        found = [read_tensor(tensors[f"{number}"]).to(device, copy=True) for number in range(len(tensors))]
        int(about["steps"])
        return State(int(about["step"]), found[0], tuple(found[1:])), about
    except (CheckpointError, OSError, KeyError, ValueError):
        return None


def _about(path: Path) -> dict[str, str]:
    """What a state says of itself; nothing where it cannot be read."""
    try:
        read_header(path)
        return read_metadata(path)
    except (CheckpointError, OSError):
        return {}


def _is_in_use(path: Path) -> bool:
    """Whether a file is the state of another process, that still runs."""
    return runs(_about(path).get("process", "")) is True


def _spare(folder: Path) -> Path | None:
    """A folder of the user's cache that stands for one of outputs."""
    place = users_folder("unfinished")
    return None if place is None else place / hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:16]


def folders(folder: Path) -> list[Path]:
    """Where states may be of commands whose output is in a folder."""
    spare = _spare(folder)
    return [folder] if spare is None else [folder, spare]


def key_of(
    checkpoint: "Checkpoint",
    settings: "Settings",
    *,
    prompts: tuple[str, str],
    shape: "VideoShape",
    place: tuple[torch.device, torch.dtype],
    more: object = None,
) -> str:
    """A hash of all that the latents of a clip depend on, bit for bit, but the seed.

    prompts: what to show and what not. more: what else tells two commands apart, such as the files that they read and
    the name of the output.
    """
    device, dtype = place
    about = (
        *(checkpoint.identity, settings, prompts, shape, more),
        *(str(dtype), device.type, torch.get_num_threads(), torch.__version__, dit_video.__version__),
    )
    return hashlib.sha256(repr(about).encode()).hexdigest()[:16]
