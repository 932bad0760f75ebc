"""The model that a command line chooses: --model, the files of its parts, and the LoRAs merged into it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_video.checkpoints.files import read_json
from dit_video.checkpoints.lora import Lora
from dit_video.checkpoints.places import Named, cached_snapshots, find_checkpoint, is_diffusers, is_model
from dit_video.clip import refuse_two_scales
from dit_video.errors import CheckpointError, UsageError
from dvgen import loras

if TYPE_CHECKING:
    from dit_video.models.wan.described import DescribedModel
    from dit_video.models.wan.pipeline import WanCheckpoint
    from dit_video.models.wan.random import RandomCheckpoint

RANDOM = "random weights"  # what latents say of the model that made them
MODEL_HELP = "A folder, a file or a name, see `dvgen models`; the shipped model without."
BESIDE = "of --model FILE; looked for beside it without."
HIGH_NOISE_HELP = "The high-noise one of two transformers, where --model is the low-noise one."


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A model as it was given: its name, the files named for its parts, its LoRAs; or random weights instead."""

    name: str
    named: Named
    loras: tuple[Lora, ...]
    random: bool

    @property
    def saved_name(self) -> str:
        """What finds it again from any folder: the name of a shipped or cached model, or a whole path."""
        if self.random:
            return RANDOM
        path = Path(self.name)
        return str(path.resolve()) if self.name != "default" and path.exists() else self.name

    def line(self) -> dict[str, Any]:
        """The options that choose it, by their names, with whole paths."""
        if self.random:
            return {"random-weights": True}
        parts = {name.replace("_", "-"): file.resolve() for name, file in vars(self.named).items() if file}
        merged: dict[str, list[str]] = {}
        for lora in self.loras:
            merged.setdefault(loras.OPTIONS[lora.part].removeprefix("--"), []).append(
                f"{lora.path.resolve()}:{lora.strength!r}"
            )
        return {"model": self.saved_name, **parts, **merged}

    def check(self, guidance: tuple[float, ...] | None) -> dict[str, Any]:
        """Refuses what does not fit, before torch is imported; the contents of dvgen.json, if there is one.

        Raises:
            UsageError, CheckpointError: it does not fit, or there is no such model.
        """
        if self.random:
            self._check_random()
            return {}
        place = find_checkpoint(self.name)
        self.named.check(place)
        if not is_diffusers(place):  # how many transformers there are is told by the headers of all files
            return {}
        if len(guidance or ()) > 1 and not read_json(place / "model_index.json").get("boundary_ratio"):
            refuse_two_scales(guidance or ())
        return read_json(place / "dvgen.json") if (place / "dvgen.json").is_file() else {}

    def _check_random(self) -> None:
        given = None
        if self.name != "default":
            given = f"--model {self.name}"
        elif self.loras:
            given = loras.given(self.loras[0])
        elif files := [(part, file) for part, file in vars(self.named).items() if file]:
            given = f"--{files[0][0].replace('_', '-')} {files[0][1]}"
        if given:
            raise UsageError(f"--random-weights and {given}: only one of the two can be given.")

    def open(self) -> "WanCheckpoint | RandomCheckpoint":
        """The checkpoint, its LoRAs fitted. Raises UsageError, CheckpointError."""
        if self.random:
            from dit_video.models.wan.random import RandomCheckpoint

            return RandomCheckpoint()
        from dit_video.models import open_checkpoint

        checkpoint = open_checkpoint(self.name, self.named)
        loras.check_experts(self.loras, checkpoint.boundary)
        return checkpoint.with_loras(self.loras)


def complete(begun: str) -> list[str]:
    """Names and paths for --model that begin so, for a shell to offer."""
    names = {"default"}
    with suppress(CheckpointError):
        names |= {place.name for place in find_checkpoint("default").parent.iterdir() if is_model(place)}
    for snapshot in filter(is_model, cached_snapshots()):
        names.add(snapshot.parents[1].name.removeprefix("models--").replace("--", "/"))
    paths = [f"{path}{'/' * path.is_dir()}" for path in Path().glob(f"{escape(begun)}*") if is_offered(path)]
    return sorted(name for name in names if name.startswith(begun)) + sorted(paths)


def is_offered(path: Path) -> bool:
    """Whether a path can be a model, or lead to one."""
    return path.is_dir() or is_model(path)


def tell(checkpoint: "DescribedModel", note: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Say what was found for parts that were not named, what is merged into what, and warn of what is not."""
    for part in checkpoint.took:
        note(f"took {part}")
    loras.tell(checkpoint, note, warn)
