"""SentencePiece unigram models (`spiece.model`) as `tokenizers`, read without the sentencepiece package.

The file is one protobuf message, `ModelProto` of google/sentencepiece (src/sentencepiece_model.proto), of which few
fields are needed; the wire format is a page of protobuf's specification.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import Unigram

from dit_video.checkpoints.formats import gguf_field
from dit_video.errors import CheckpointError

_NORMAL, _UNKNOWN, _BYTE = 1, 2, 6  # SentencePiece.Type
_UNIGRAM = 1  # TrainerSpec.ModelType
_SPACE = "▁"


def read_sentencepiece(file: Path) -> Tokenizer:
    """The tokenizer of a T5-like unigram model: sentencepiece's pieces and normaliser, and `</s>` after every text.

    Raises:
        CheckpointError: not a SentencePiece model, not a unigram model, or one without `</s>` or an unknown piece.
    """
    return parse_sentencepiece(file.read_bytes(), file)


def parse_sentencepiece(data: bytes, file: Path) -> Tokenizer:
    """The same from the bytes of the model; `file`, in which they lie, is for messages."""
    try:
        message = list(_fields(data))
        pieces = [_piece(value) for number, value in message if number == 1]
        trainer = dict(_fields(next(value for number, value in message if number == 2)))
        normalizer = dict(_fields(next(value for number, value in message if number == 3)))
    except (ValueError, IndexError, StopIteration, TypeError, struct.error) as error:
        raise CheckpointError(f"{file}: not a readable SentencePiece model.") from error
    if trainer.get(3, _UNIGRAM) != _UNIGRAM:
        raise CheckpointError(f"{file}: not a unigram SentencePiece model.")
    spaces = {"prefix": bool(normalizer.get(3, 1)), "collapse": bool(normalizer.get(4, 1))}
    return _unigram(file, pieces, charsmap=normalizer.get(2), **spaces)


def read_gguf_tokenizer(file: Path) -> Tokenizer:
    """The same from the metadata of a GGUF file: what llama.cpp's conversion keeps of a SentencePiece model.

    Raises:
        CheckpointError: the file has none, or not a unigram model.
    """
    model, names, scores, kinds, charsmap, prefix, collapse = (
        gguf_field(file, f"tokenizer.ggml.{name}")
        for name in (
            *("model", "tokens", "scores", "token_type", "precompiled_charsmap"),
            *("add_space_prefix", "remove_extra_whitespaces"),
        )
    )
    if model != "t5" or not (names and scores and kinds and len(names) == len(scores) == len(kinds)):
        raise CheckpointError(f"{file}: carries no unigram tokenizer.")
    pieces = list(zip(names, map(float, scores), kinds, strict=True))
    return _unigram(
        file,
        pieces,
        charsmap=bytes(value % 256 for value in charsmap) if charsmap else None,
        prefix=prefix is not False,
        collapse=collapse is not False,
    )


def _unigram(
    file: Path, pieces: list[tuple[str, float, int]], *, charsmap: bytes | None, prefix: bool, collapse: bool
) -> Tokenizer:
    """prefix: a space comes before the text. collapse: several spaces are one."""
    kinds = [kind for _, _, kind in pieces]
    names = [text for text, _, _ in pieces]
    if _UNKNOWN not in kinds or "</s>" not in names:
        raise CheckpointError(f"{file}: not a unigram SentencePiece model with an unknown piece and </s>.")
    vocabulary = [(text, score) for text, score, _ in pieces]
    tokenizer = Tokenizer(Unigram(vocabulary, kinds.index(_UNKNOWN), byte_fallback=_BYTE in kinds))
    tokenizer.normalizer = _normalizer(charsmap, prefix, collapse)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, "never", split=False)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", names.index("</s>"))]
    )
    # Pieces that a user defined need no rule of their own: their score of 0 is above that of any others in their place.
    return tokenizer


def _normalizer(charsmap: bytes | None, prefix: bool, collapse: bool) -> normalizers.Normalizer:
    """The compiled character map (NFKC and more), then superfluous spaces away, then a space before the text.

    That space is added here and not by Metaspace, which adds none to a text that begins with one.
    """
    steps: list[normalizers.Normalizer] = []
    if charsmap:
        steps.append(normalizers.Precompiled(charsmap))
    if collapse:
        steps += [normalizers.Strip(), normalizers.Replace(Regex(" {2,}"), " ")]
    return normalizers.Sequence([*steps, normalizers.Prepend(" ")] if prefix else steps)


def _piece(data: bytes) -> tuple[str, float, int]:
    """SentencePiece: its text, log-probability and kind."""
    fields = dict(_fields(data))
    return fields[1].decode(), struct.unpack("<f", fields.get(2, bytes(4)))[0], fields.get(3, _NORMAL)


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The (field number, value) pairs of a protobuf message: int for varints, bytes for everything else."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, position = _varint(data, position)
            yield number, value
            continue
        if wire == 2:
            size, position = _varint(data, position)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if position + size > len(data):
            raise ValueError("cut short")
        yield number, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A base-128 number, low groups first, and the position after it."""
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position
