"""How long the stages of a run take: kept from runs on this machine, and told of others before they begin.

A stage has a size, which its speed depends on, and work, which its time grows with: a pass through the transformer has
the size of its arithmetic, and the work of denoising is that of all passes. What is kept of a run is a few numbers for
each stage, in one file of the user's; of two processes that write at once one may lose what it has to add, and the file
is whole at any time.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from dit_video import atomic
from dit_video.cache import users_folder
from dit_video.place import threads
from dit_video.shapes import VideoShape
from dit_video.work import decode_flops, encode_flops, forward_flops

if TYPE_CHECKING:
    from dit_video.checkpoints.parts import Keep
    from dit_video.plan import Described

FILE = "timing.json"
KEPT = 5  # samples of a stage of one size, give or take a factor of two
MOST = 1000  # samples in all, the newest
CERTAIN = {"denoise": 1.45, "decode": 1.45}
USUAL = 1.6  # as CERTAIN says it of others: by what factor a stage differs from the last ones, either way
BY_SIZE = 0.25  # of that factor more, for every doubling of the size away from what was measured
OF_OTHERS = 3.0  # by what factor a stage differs from what another model has taken here, for its work
UNMEASURED = 4.0  # by what factor it differs from the guess below

FLOPS_PER_CORE, FLOPS_OF_GPU = 5e10, 1e14  # of floating point operations per second, what usually comes out
BYTES_READ = 5e8  # a second
BYTES_MORE = 5e7  # that loading a part takes as long as, beside its own
READING = 0.1  # seconds that reading prompts takes, however small the encoder is
PROGRAM, LIBRARY = 5.0, 3.0  # seconds that importing takes: of all, and of transformers
PIXELS_WRITTEN = 2e7  # a second, of a video file
PROMPT_TOKENS = 16


@dataclass(frozen=True)
class Span:
    """Seconds, from and to. basis: "measured" here with this model, with "another" one, or a "guess"."""

    low: float
    high: float
    basis: str = "measured"

    def __add__(self, other: "Span") -> "Span":
        order = ("measured", "another", "guess")
        return Span(self.low + other.low, self.high + other.high, max(self.basis, other.basis, key=order.index))

    def __mul__(self, times: float) -> "Span":
        return Span(self.low * times, self.high * times, self.basis)

    @property
    def middle(self) -> float:
        """What is most likely."""
        return math.sqrt(self.low * self.high)


NOTHING = Span(0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Something that takes time. model: what of the model its speed depends on. usual: seconds that it may take if
    nothing is known."""

    stage: str
    model: str
    size: float
    work: float
    usual: float

    @property
    def is_loading(self) -> bool:
        """Whether it is done once, before the arithmetic."""
        return self.stage.startswith("load ")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What a task has taken; place: where, see `place_of`."""

    stage: str
    model: str
    place: str
    size: float
    work: float
    seconds: float

    @property
    def rate(self) -> float:
        """Seconds for a unit of work."""
        return self.seconds / self.work


class Timings:
    """The samples in a file; a file that is damaged is as good as none."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> list[Sample]:
        """All of them, the oldest first."""
        try:
            found = json.loads(self.file.read_text(encoding="utf-8"))
            return [sample for each in found["samples"] if (sample := _sample(each))]
        except (OSError, ValueError, LookupError, TypeError, OverflowError):
            return []

    def add(self, samples: Iterable[Sample]) -> None:
        """Keep some more, and of those alike only the newest. Raises OSError."""
        new = [sample for sample in samples if sample.seconds > 0 and sample.work > 0 and sample.size > 0]
        if not new:
            return
        kept: list[Sample] = []
        alike: dict[tuple[str, str, str, int], int] = {}
        for sample in reversed([*self.read(), *new]):
            kind = (sample.stage, sample.model, sample.place, round(math.log2(sample.size)))
            alike[kind] = alike.get(kind, 0) + 1
            if alike[kind] <= KEPT and len(kept) < MOST:
                kept.append(sample)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(self.file) as part:
            part.write_text(json.dumps({"samples": [asdict(sample) for sample in reversed(kept)]}), encoding="utf-8")


def _sample(found: Mapping[str, object]) -> Sample | None:
    values = {each.name: found[each.name] for each in fields(Sample)}
    numbers = [values[name] for name in ("size", "work", "seconds")]
    if not all(isinstance(number, int | float) and math.isfinite(number) and number > 0 for number in numbers):
        return None
    if not all(isinstance(values[name], str) for name in ("stage", "model", "place")):
        return None
    return Sample(**values)  # type: ignore[arg-type]


def users_timings() -> Timings | None:
    """Those of whoever runs this, if they are to be kept, see `users_folder`."""
    file = users_folder(FILE)
    return None if file is None else Timings(file)


def users_clock(
    model: "Described",
    dtype: str,
    device: str,
    keep_layers: "Mapping[str, Keep] | None" = None,
    quantize: str | None = None,
) -> "Clock":
    """A clock that knows, and keeps, the timings of whoever runs this; see `Clock`."""
    timings = users_timings()
    return Clock(model, device=device, dtype=dtype, keep_layers=keep_layers, quantize=quantize, timings=timings)


def place_of(device: str, dtype: str) -> str:
    """Where something is computed, in one word; device, dtype: names, such as "cpu" and "float32"."""
    return f"{device}/{dtype}/{threads()}" if device == "cpu" else f"{device}/{dtype}"


def estimate(task: Task, place: str, samples: Sequence[Sample]) -> Span:
    """How long a task takes, by what was measured before.

    Between two sizes that were measured its speed lies between theirs; beyond all of them, and the farther the more, it
    is less certain. Four of five runs should be within.
    """
    here = [sample for sample in samples if (sample.stage, sample.place) == (task.stage, place)]
    same = [sample for sample in here if sample.model == task.model]
    factor = CERTAIN.get(task.stage, USUAL)
    if same:
        low, high, distance = _between(math.log2(task.size), same)
        factor *= 1 + BY_SIZE * min(distance, 4.0)
        return Span(low * task.work / factor, high * task.work * factor)
    if here:
        rate = median(sample.rate for sample in here)
        return Span(rate * task.work / OF_OTHERS, rate * task.work * OF_OTHERS, "another")
    return Span(task.usual / UNMEASURED, task.usual * UNMEASURED, "guess")


def _between(size: float, samples: Sequence[Sample]) -> tuple[float, float, float]:
    """The lowest and the highest seconds for a unit of work at a size, and how far it is from one that was measured, in
    doublings: what samples of about the nearest size have taken, or between those of the nearest on both sides."""
    by_size: dict[float, list[float]] = {}
    for sample in samples:
        by_size.setdefault(round(4 * math.log2(sample.size)) / 4, []).append(sample.rate)
    below = max((each for each in by_size if each <= size + 0.125), default=None)
    above = min((each for each in by_size if each >= size - 0.125), default=None)
    if below is None or above is None or below == above:
        near = below if below is not None else above
        assert near is not None
        return min(by_size[near]), max(by_size[near]), abs(near - size)
    share = min(max((size - below) / (above - below), 0.0), 1.0)
    low, high = (
        math.exp((1 - share) * math.log(pick(by_size[below])) + share * math.log(pick(by_size[above])))
        for pick in (min, max)
    )
    return low, high, min(size - below, above - size) / 2


class Clock:
    """The tasks of a model at a place: how long they take, as far as is known, and what they have taken.

    Args:
        model: as its headers describe it.
        device, dtype: names, such as "cpu" and "float32".
        keep_layers: of the parts whose layers are streamed, see `Plan`.
        quantize: how the blocks of transformers multiply, see `Stages`.
        timings: where samples are read and kept; None for none.
    """

    def __init__(
        self,
        model: "Described",
        *,
        device: str,
        dtype: str,
        keep_layers: "Mapping[str, Keep] | None" = None,
        quantize: str | None = None,
        timings: Timings | None = None,
    ) -> None:
        self.model, self.timings, self.quantize = model, timings, quantize
        self.keep_layers = dict(keep_layers or {})
        self.place = place_of(device, dtype)
        self.flops = FLOPS_PER_CORE * threads() if device == "cpu" else FLOPS_OF_GPU
        self._known = timings.read() if timings else []
        self._taken: list[Sample] = []
        self._hears: Callable[[Task], bool] = lambda _: True

    def program(self) -> Task:
        """Starting Python and importing what computes."""
        return Task(stage="program", model="", size=1, work=1, usual=PROGRAM)

    def library(self) -> Task:
        """Importing transformers, see `DescribedModel.by_library`."""
        return Task(stage="load library", model="", size=1, work=1, usual=LIBRARY)

    def load(self, part: str) -> Task:
        """Loading a part, such as "transformer" or "vae", without its library."""
        summary = self.model.components.get(part)
        nbytes = (summary.nbytes if summary else 0) + BYTES_MORE
        usual = nbytes / BYTES_READ
        return Task(stage=f"load {part}", model=self._key(nbytes, part), size=nbytes, work=nbytes, usual=usual)

    def loads(self, parts: Sequence[str]) -> list[Task]:
        """Loading parts one after the other in a process that has loaded none."""
        needed = not self.model.by_library.isdisjoint(parts)
        return [self.library()] * needed + [self.load(part) for part in parts]

    def text(self, prompts: int) -> Task:
        """Reading prompts."""
        summary = self.model.components.get("text_encoder")
        flops = 2.0 * PROMPT_TOKENS * (summary.parameters if summary else 0)
        key, work = self._key(flops, "text_encoder"), READING * self.flops + flops * prompts
        return Task(stage="text", model=key, size=max(flops, 1.0), work=work, usual=work / self.flops)

    def encode(self, shape: VideoShape) -> Task:
        """Encoding a clip."""
        flops = encode_flops(self.model.vae, self.model.grid.padded(shape))
        return Task(stage="encode", model=self._key(self.model.vae), size=flops, work=flops, usual=flops / self.flops)

    def denoise(self, *shapes: VideoShape, passes: int) -> Task:
        """Clips through the transformer, so many times all of them together, each with and without its prompt."""
        grid = self.model.grid
        tokens = [math.prod(grid.tokens(grid.latent(shape))) for shape in shapes]
        flops = sum(forward_flops(self.model.dit, count) for count in tokens) / len(tokens)
        key = self._key(self.model.dit, "transformer")
        return Task(stage="denoise", model=key, size=flops, work=flops * passes, usual=flops * passes / self.flops)

    def decode(self, shape: VideoShape, suffix: str, *, tile: int | None = None) -> Task:
        """Decoding a clip into a file that ends in `suffix`, such as ".mp4", or with "" into no file."""
        flops = decode_flops(self.model.vae, self.model.grid.padded(shape))
        usual = flops / self.flops + math.prod((shape.num_frames, shape.height, shape.width)) / PIXELS_WRITTEN
        key = self._key((self.model.vae, suffix, tile and "tiles"))
        return Task(stage="decode", model=key, size=flops, work=flops, usual=usual)

    def write(self, frames: int, width: int, height: int, suffix: str) -> Task:
        """Reading and writing frames that are copied."""
        pixels = float(frames * width * height)
        return Task(stage="write", model=suffix, size=pixels, work=pixels, usual=2 * pixels / PIXELS_WRITTEN)

    def expected(self, *tasks: Task) -> Span:
        """How long tasks take together."""
        return sum((estimate(task, self.place, self._known) for task in tasks), NOTHING)

    @contextmanager
    def hearing(self, wanted: Callable[[Task], bool]) -> Iterator[None]:
        """Within it only of some tasks is remembered what they have taken."""
        before, self._hears = self._hears, wanted
        try:
            yield
        finally:
            self._hears = before

    def took(self, task: Task, seconds: float) -> None:
        """A task has taken so long."""
        if not self._hears(task):
            return
        self._taken.append(
            Sample(
                stage=task.stage,
                model=task.model,
                place=self.place,
                size=task.size,
                work=task.work,
                seconds=round(seconds, 4),
            )
        )

    def keep(self) -> None:
        """Keep what tasks have taken so far, where it can be kept."""
        taken, self._taken = self._taken, []
        if self.timings:
            with suppress(OSError):  # what a run has made is there, and this is not worth a word
                self.timings.add(taken)

    def _key(self, about: object, part: str = "") -> str:
        how: tuple[object, ...] = about, "streamed" if part in self.keep_layers else ""
        if self.quantize and part.startswith("transformer"):
            how = *how, self.quantize
        return hashlib.sha256(repr(how).encode()).hexdigest()[:12]
