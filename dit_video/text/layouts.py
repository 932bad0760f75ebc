"""UMT5 and T5 text encoders in the layouts that people have: names of tensors, and the configuration from their shapes.

Our names are those of transformers, which ComfyUI's files have too. The original release of Wan names its own module
(wan/modules/t5.py), and llama.cpp's GGUF files have names of theirs (gguf-py, `MODEL_TENSOR.ENC_*`).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.keymap import Layout, Row, identity
from dit_video.checkpoints.parts import Part
from dit_video.errors import CheckpointError

_ATTENTION = "encoder.block.{i}.layer.0.SelfAttention"
_FEED_FORWARD = "encoder.block.{i}.layer.1.DenseReluDense"
_OURS = (  # transformers, the original release, llama.cpp
    ("shared", "token_embedding", "token_embd"),
    (f"{_ATTENTION}.q", "blocks.{i}.attn.q", "enc.blk.{i}.attn_q"),
    (f"{_ATTENTION}.k", "blocks.{i}.attn.k", "enc.blk.{i}.attn_k"),
    (f"{_ATTENTION}.v", "blocks.{i}.attn.v", "enc.blk.{i}.attn_v"),
    (f"{_ATTENTION}.o", "blocks.{i}.attn.o", "enc.blk.{i}.attn_o"),
    (f"{_ATTENTION}.relative_attention_bias", "blocks.{i}.pos_embedding.embedding", "enc.blk.{i}.attn_rel_b"),
    ("encoder.block.{i}.layer.0.layer_norm", "blocks.{i}.norm1", "enc.blk.{i}.attn_norm"),
    (f"{_FEED_FORWARD}.wi_0", "blocks.{i}.ffn.gate.0", "enc.blk.{i}.ffn_gate"),
    (f"{_FEED_FORWARD}.wi_1", "blocks.{i}.ffn.fc1", "enc.blk.{i}.ffn_up"),
    (f"{_FEED_FORWARD}.wo", "blocks.{i}.ffn.fc2", "enc.blk.{i}.ffn_down"),
    ("encoder.block.{i}.layer.1.layer_norm", "blocks.{i}.norm2", "enc.blk.{i}.ffn_norm"),
    ("encoder.final_layer_norm", "norm", "enc.output_norm"),
)


def _rows(column: int) -> tuple[Row, ...]:
    return tuple(Row(f"{names[0]}.weight", f"{names[column]}.weight") for names in _OURS)


TRANSFORMERS = Layout(
    "transformers",
    "encoder.block.0.layer.0.SelfAttention.q.weight",
    identity(row.ours for row in _rows(0)),
)
ORIGINAL = Layout("original", "blocks.0.attn.q.weight", _rows(1))
LLAMA_CPP = Layout("llama.cpp", "enc.blk.0.attn_q.weight", _rows(2))
TEXT_LAYOUTS = (TRANSFORMERS, ORIGINAL, LLAMA_CPP)

SPIECE = "spiece_model"  # ComfyUI's files carry the tokenizer, as bytes
TWIN, _SHARED = "encoder.embed_tokens.weight", "shared.weight"


@dataclass(frozen=True, kw_only=True)
class TextPart:
    """A text encoder without what is no weight of its own; spiece: the tokenizer that its file carries."""

    part: Part
    spiece: TensorInfo | None


def text_part(part: Part) -> TextPart:
    """A text encoder as it was found in a file, its tokenizer apart."""
    tensors = dict(part.tensors)
    spiece = tensors.pop(SPIECE, None)
    if TWIN in tensors:  # the embedding under its second name
        twin = tensors.pop(TWIN)
        tensors.setdefault(_SHARED, twin)
    return TextPart(part=replace(part, tensors=tensors), spiece=spiece)


def text_width(part: Part) -> int:
    """The width of the embeddings. Raises CheckpointError."""
    return text_config(text_part(part).part)["d_model"]


def text_config(part: Part) -> dict[str, Any]:
    """The fields of transformers' UMT5Config or T5Config that shapes tell, and "model_type".

    Raises:
        CheckpointError: the shapes are not those of such an encoder.
    """
    shapes = part.shapes
    try:
        first, last = (_ATTENTION.format(i=i) + "." for i in (0, _count(shapes) - 1))
        buckets, heads = shapes[first + "relative_attention_bias.weight"]
        vocabulary, width = shapes[_SHARED]
        every = last + "relative_attention_bias.weight" in shapes
        return {
            "model_type": "umt5" if every else "t5",  # UMT5 has a bias of its own in every layer
            "vocab_size": vocabulary,
            "d_model": width,
            "d_kv": shapes[first + "q.weight"][0] // heads,
            "d_ff": shapes[_FEED_FORWARD.format(i=0) + ".wi_0.weight"][0],
            "num_layers": _count(shapes),
            "num_heads": heads,
            "relative_attention_num_buckets": buckets,
            "feed_forward_proj": "gated-gelu",
        }
    except KeyError as missing:
        raise CheckpointError(f"{part.where}: lacks the tensor {missing}, which every UMT5 encoder has.") from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{part.where}: its shapes are not those of a UMT5 encoder ({error}).") from None


def _count(shapes: Mapping[str, tuple[int, ...]]) -> int:
    found = {int(match.group(1)) for name in shapes if (match := re.match(r"encoder\.block\.(\d+)\.", name))}
    if found != set(range(len(found))) or not found:
        raise ValueError(f"blocks {sorted(found)[:5]}")
    return len(found)
