"""A text encoder's files, known without torch: its weights by their headers, and its tokenizer."""

import re
import unicodedata
from pathlib import Path

from dit_video.checkpoints.files import read_headers, read_json
from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.parts import Part
from dit_video.text.layouts import TRANSFORMERS, text_part

MAX_LENGTH = 512  # of Wan, special tokens included
LAYERS, ROWS = "encoder.block", "shared"  # the names of the list of its layers, and of its embedding

SMALL = 1_000_000  # bytes of a tokenizer's file that is read at once


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


def unknown_words(tokenizer: Path | TensorInfo | None, prompt: str) -> list[str]:
    """The words of a prompt that a small word-level tokenizer has no token for, as `TextEncoder.unknown_words` says it,
    but read without its library; none where another kind of tokenizer, or a large one, would have to be asked."""
    file = tokenizer / "tokenizer.json" if isinstance(tokenizer, Path) and tokenizer.is_dir() else None
    if file is None or not file.is_file() or file.stat().st_size > SMALL:
        return []
    model = read_json(file).get("model")
    if not isinstance(model, dict) or model.get("type") != "WordLevel" or not isinstance(model.get("vocab"), dict):
        return []
    words = dict.fromkeys(re.findall(r"[^\W_]+", unicodedata.normalize("NFC", prompt)))
    return [word for word in words if word.lower() not in model["vocab"]]
