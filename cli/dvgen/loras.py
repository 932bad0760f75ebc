"""`--lora FILE[:STRENGTH]` and its kin: LoRAs, read by their headers before anything heavy is imported."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video.checkpoints.lora import EXPERTS, FILE, Lora, describe, describe_left_out, read_lora
from dit_video.errors import CheckpointError, UsageError
from dvgen import options

if TYPE_CHECKING:
    from dit_video.models.wan.described import DescribedModel

HELP = "Low-rank changes to merge into the transformer, in every usual naming; STRENGTH is 1 without; repeatable."
HIGH_HELP = "The same, only into the high-noise one of two transformers."
LOW_HELP = "The same, only into the low-noise one."
OPTIONS = {"transformer": "--lora-high", "transformer_2": "--lora-low", None: "--lora"}
STRENGTH = (-10.0, 10.0)


def parse(texts: Sequence[str], part: str | None = None) -> tuple[Lora, ...]:
    """The LoRAs of `--lora`, or of the option for one transformer of two.

    Raises:
        UsageError: a strength that is not a number, or out of range.
        CheckpointError: a file that is missing, damaged, or no LoRA.
    """
    return tuple(_parse(text, part) for text in texts)


def _parse(text: str, part: str | None) -> Lora:
    option = OPTIONS[part]
    name, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists() or not Path(name).exists():  # a name may have a colon of its own
        name, strength = text, "1"
    path = Path(name)
    if path.is_dir():
        nearest = f"; the nearest is {path / FILE}" if (path / FILE).is_file() else ""
        raise CheckpointError(f"{option} {name}: this is a folder, and a LoRA is a .safetensors file{nearest}.")
    if not path.is_file():
        raise CheckpointError(f"{option} {name}: there is no such file.")
    return read_lora(path, options.number(f"{option} {name}, strength", strength, *STRENGTH), part)


def given(lora: Lora) -> str:
    """A LoRA as it was given on the command line, without its strength."""
    return f"{OPTIONS[lora.part]} {lora.path}"


def check_experts(loras: Sequence[Lora], boundary: float | None) -> None:
    """Refuses LoRAs for one transformer of two where there is only one.

    Raises:
        UsageError: there is one.
    """
    for lora in loras:
        if lora.part and boundary is None:
            rule = f"this model has one transformer, and {EXPERTS[lora.part]} is one of two; use --lora"
            raise UsageError(f"{given(lora)}: {rule}.")


def tell(checkpoint: "DescribedModel", note: Callable[[str], None], warn: Callable[[str], None]) -> None:
    """Say what is merged into what, and warn of what is not."""
    for fitted in checkpoint.loras:
        note(describe(fitted, transformers=1 if checkpoint.boundary is None else 2))
        if left_out := describe_left_out(fitted):
            warn(left_out)
