"""`--lora FILE[:STRENGTH]`: LoRAs, read by their headers before anything heavy is imported."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video.checkpoints.lora import FILE, Lora, describe, read_lora
from dit_video.errors import CheckpointError
from dvgen import options

if TYPE_CHECKING:
    from dit_video.models.wan.described import DescribedModel

HELP = "Low-rank changes to merge into the transformer; STRENGTH is 1 without; repeatable."
STRENGTH = (-10.0, 10.0)


def parse(texts: Sequence[str]) -> tuple[Lora, ...]:
    """The LoRAs of `--lora`.

    Raises:
        UsageError: a strength that is not a number, or out of range.
        CheckpointError: a file that is missing, damaged, or no LoRA.
    """
    return tuple(map(_parse, texts))


def _parse(text: str) -> Lora:
    name, colon, strength = text.rpartition(":")
    if not colon or Path(text).exists() or not Path(name).exists():  # a name may have a colon of its own
        name, strength = text, "1"
    path = Path(name)
    if path.is_dir():
        nearest = f"; the nearest is {path / FILE}" if (path / FILE).is_file() else ""
        raise CheckpointError(f"--lora {name}: this is a folder, and a LoRA is a .safetensors file{nearest}.")
    if not path.is_file():
        raise CheckpointError(f"--lora {name}: there is no such file.")
    return read_lora(path, options.number(f"--lora {name}, strength", strength, *STRENGTH))


def tell(checkpoint: "DescribedModel", note: Callable[[str], None]) -> None:
    """Say what is merged into what."""
    for fitted in checkpoint.loras:
        note(describe(fitted, transformers=1 if checkpoint.boundary is None else 2))
