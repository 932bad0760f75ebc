"""A text encoder's files, known without torch: its weights by their headers, and its tokenizer."""

from pathlib import Path

from dit_video.checkpoints.files import read_headers, read_json
from dit_video.checkpoints.parts import Part
from dit_video.text.layouts import TRANSFORMERS, text_part

MAX_LENGTH = 512  # of Wan, special tokens included
LAYERS, ROWS = "encoder.block", "shared"  # the names of the list of its layers, and of its embedding


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a file that `load_tokenizer` reads."""
    return bool(tokenizer_files(folder))


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of a folder that `load_tokenizer` reads; the first one is enough."""
    return [file for name in ("tokenizer.json", "spiece.model") if (file := folder / name).is_file()]


def folder_part(folder: Path) -> Part:
    """The encoder in a folder of transformers.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    read_json(folder / "config.json")
    return text_part(Part(where=folder, layout=TRANSFORMERS, tensors=read_headers(folder, "model"))).part
