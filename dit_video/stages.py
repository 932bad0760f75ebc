"""The stages of a checkpoint, each loaded when it is needed and freed before the next."""

import gc
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from dit_video.checkpoints.parts import Keep
from dit_video.errors import DvgenError
from dit_video.machine import is_out_of_memory, peak_memory
from dit_video.nn.graphs import Repeats
from dit_video.shapes import Grid, VideoShape
from dit_video.text.cache import EmbeddingCache
from dit_video.text.library import has_library, import_library
from dit_video.timing import Clock, Task

if TYPE_CHECKING:
    from dit_video.models.wan.dit import WanDiT
    from dit_video.models.wan.vae import WanVAE
    from dit_video.text.encoders import TextEncoder
    from dit_video.text.images import ImageEncoder

_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int], None]  # (stage, parts done, parts in all); called with 0 done when a stage begins
Note = Callable[[str], None]  # one sentence that the user should see
Measured = Callable[[Clock], Task]  # what of a clock's tasks a stage was
Reading = tuple[list[str], bool]  # of a prompt: the words that the model never learnt, and whether its end is not read


class Checkpoint(Protocol):
    """A model that can be sampled: its arithmetic, and its stages to load.

    boundary: the noise level from which up the first of two experts denoises; None when there is one transformer.
    identity, known_frames, beside, sees_images, by_library: see `DescribedModel`.
    """

    @property
    def grid(self) -> Grid: ...

    @property
    def latent_channels(self) -> int: ...

    @property
    def boundary(self) -> float | None: ...

    @property
    def identity(self) -> str: ...

    @property
    def known_frames(self) -> str: ...

    @property
    def beside(self) -> bool: ...

    @property
    def sees_images(self) -> bool: ...

    @property
    def by_library(self) -> frozenset[str]: ...

    def load_images(self, *, dtype: torch.dtype, device: torch.device) -> "ImageEncoder": ...

    def load_text(self, *, dtype: torch.dtype, device: torch.device) -> "TextEncoder": ...

    def load_dit(self, which: str = "transformer", *, dtype: torch.dtype, device: torch.device) -> "WanDiT": ...

    def load_vae(self, *, dtype: torch.dtype, device: torch.device) -> "WanVAE": ...


_PARTS = {"text encoder": "text_encoder", "image encoder": "image_encoder", "autoencoder": "vae"}
"""The parts of a model by what stages are called, where that differs."""


def _silent(*_: object) -> None:
    pass


class Stages:
    """The stages of a checkpoint, loaded when first used: one in memory at a time, or all kept for many packs.

    seconds: time spent so far on "load", "text", "encode", "denoise" and "decode". forwards: clips put through the
    transformer so far, counted by the transformer itself. readings, embeds: of the prompts so far, each read once.
    keep_layers: of the parts whose layers are streamed, what stays in memory, see `Plan`. cache: of what the text
    encoder made of prompts. clock: told what stages take, for later runs. compile: transformers' blocks are compiled.
    graphs: calls of transformers that repeat are CUDA graphs, but of those whose layers are streamed. quantize: a name
    in `nn.linear.SCHEMES`, of how the blocks of transformers multiply. note and warn:
    where sentences go that may, and that should not, be left out when little is to be said.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: torch.device,
        keep: bool = False,
        keep_layers: Mapping[str, Keep] | None = None,
        cache: EmbeddingCache | None = None,
        clock: Clock | None = None,
        compile: bool = False,
        graphs: bool = False,
        quantize: str | None = None,
        progress: Progress = _silent,
        note: Note = _silent,
        warn: Note = _silent,
    ) -> None:
        self.checkpoint, self.dtype, self.device, self.keep = checkpoint, dtype, device, keep
        self.keep_layers, self.cache = dict(keep_layers or {}), cache
        self.clock, self.compile, self.graphs, self.quantize = clock, compile, graphs, quantize
        self.progress, self.note, self.warn = progress, note, warn
        self.seconds: dict[str, float] = defaultdict(float)
        self.readings: dict[str, Reading] = {}
        self.embeds: dict[str, Tensor] = {}
        self._loaded: dict[str, Any] = {}
        self._passes_of_freed = 0

    @property
    def text(self) -> "TextEncoder":
        """The text encoder."""
        return self._stage("text encoder", partial(self.checkpoint.load_text, **self._streamed("text_encoder")))

    @property
    def images(self) -> "ImageEncoder":
        """The image encoder."""
        return self._stage("image encoder", self.checkpoint.load_images)

    @property
    def vae(self) -> "WanVAE":
        """The autoencoder."""
        return self._stage("autoencoder", self.checkpoint.load_vae)

    def dit(self, which: str = "transformer") -> "WanDiT":
        """The transformer, or "transformer_2", the low-noise expert."""
        return self._stage(which, partial(self._load_dit, which))

    def _load_dit(self, which: str, **place: Any) -> "WanDiT":
        quantize: dict[str, Any] = {"quantize": self.quantize} if self.quantize else {}
        dit = self.checkpoint.load_dit(which, **self._streamed(which), **quantize, **place)
        if self.quantize:
            _log.info("%s: its blocks multiply in %s", which, self.quantize)
        if self.compile:
            dit.compile_blocks()
        if self.graphs and which in self.keep_layers:
            self.warn(f"{which}: its layers are streamed, so that its steps are not recorded as CUDA graphs")
        elif self.graphs:
            dit.graphs = Repeats()
        return dit

    def _streamed(self, part: str) -> dict[str, Any]:
        """What a stage is loaded with beside its place; only checkpoints of files know of it."""
        return {"keep": self.keep_layers[part]} if part in self.keep_layers else {}

    def _stage(self, name: str, load: Callable[..., Any]) -> Any:
        if name not in self._loaded:
            if not self.keep:
                self.free()
            self.progress(f"load {name}", 0, 1)
            part = _PARTS.get(name, name)
            if part in self.checkpoint.by_library:
                self._import_library()
            with self.timed("load", lambda clock: clock.load(part)):
                self._loaded[name] = load(dtype=self.dtype, device=self.device)
            _log.info("%s: as %s on %s", name, str(self.dtype).removeprefix("torch."), self.device)
            self.progress(f"load {name}", 1, 1)
        return self._loaded[name]

    def _import_library(self) -> None:
        """Apart from an encoder's weights, since it takes as long for a small one as for a large one."""
        if not has_library():
            with self.timed("load", lambda clock: clock.library()):
                import_library()

    @property
    def forwards(self) -> int:
        """Clips put through the transformer so far."""
        return self._passes_of_freed + sum(
            stage.passes for name, stage in self._loaded.items() if name.startswith("transformer")
        )

    def count_anew(self) -> None:
        """Forget what was counted so far, in seconds and forwards: what follows is told by itself."""
        self.seconds.clear()
        self._passes_of_freed -= self.forwards

    def free(self) -> None:
        """Drop every loaded stage from memory."""
        if not self._loaded:
            return
        self._passes_of_freed = self.forwards
        self._loaded.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    @contextmanager
    def timed(self, activity: str, measured: Measured | None = None) -> Iterator[None]:
        """Adds the time of its body, the device's work included, to `seconds[activity]`.

        Loading that happens within counts as loading only. measured: the task that the body was, for the clock; asked
        for when it has ended well.
        """
        started, loading = time.perf_counter(), self.seconds["load"]
        try:
            yield
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            compiling = self.compile and activity == "denoise"  # which says nothing of the next run
            if self.clock and measured and not compiling:
                taken = time.perf_counter() - started - (self.seconds["load"] - loading)
                self.clock.took(measured(self.clock), taken)
        finally:
            took = time.perf_counter() - started - (self.seconds["load"] - loading)
            self.seconds[activity] += took
            most = [f"{nbytes / 1e9:.2f} GB ({where})" for where, nbytes in peak_memory(self.device).items()]
            _log.info("%s: %.2f s; the most memory so far: %s", activity, took, ", ".join(most) or "not known")


@contextmanager
def explained_memory(shape: VideoShape) -> Iterator[None]:
    """Turns "out of memory", which torch says in several ways, into a sentence. Raises DvgenError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        advice = "ask for a smaller --size or fewer --frames, or use --dtype bfloat16"
        raise DvgenError(f"{shape}: there is not enough memory for it; {advice}.") from error
