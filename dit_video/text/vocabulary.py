"""A text side small enough to train from nothing: a word tokenizer over a fixed vocabulary and a small UMT5 encoder.

Both are stored the way public checkpoints store theirs, so the folder opens in diffusers and in `TextEncoder` alike.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import Tensor

from dit_video.text.files import MAX_LENGTH
from dit_video.text.layouts import TWIN
from dit_video.text.library import quiet_transformers
from dit_video.text.t5 import CONFIGS, T5Encoder

if TYPE_CHECKING:
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

PAD, EOS, UNKNOWN = "<pad>", "</s>", "<unk>"  # ids 0, 1, 2, as UMT5's configuration expects of the first two

_SEPARATORS = Regex(r"[^\p{L}\p{N}]+")


def build_word_tokenizer(words: Sequence[str]) -> Tokenizer:
    """A tokenizer with one token per word: `<pad>` 0, `</s>` 1, `<unk>` 2, then `words` in order, each once.

    Text is lowercased and cut at everything that is neither a letter nor a digit, so punctuation leaves no token and
    "up-left" reads as "up left"; a hyphenated entry of `words` adds its parts. Every text ends in `</s>`, also when it
    is cut to 512 tokens.
    """
    normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    pre_tokenizer = pre_tokenizers.Split(_SEPARATORS, behavior="removed")
    parts = [part for word in words for part, _ in pre_tokenizer.pre_tokenize_str(normalizer.normalize_str(word))]
    ids = {token: index for index, token in enumerate(dict.fromkeys([PAD, EOS, UNKNOWN, *parts]))}

    tokenizer = Tokenizer(WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {EOS}", pair=f"$A {EOS} $B {EOS}", special_tokens=[(EOS, ids[EOS])]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in (PAD, EOS, UNKNOWN)])
    tokenizer.enable_truncation(MAX_LENGTH)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`, which transformers opens as a `PreTrainedTokenizerFast`."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "pad_token": PAD,
        "eos_token": EOS,
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def build_umt5(*, vocab_size: int, d_model: int, layers: int, heads: int, d_kv: int, d_ff: int) -> "UMT5EncoderModel":
    """A randomly initialised float32 UMT5 encoder without dropout, drawn from torch's global generator.

    UMT5 (Chung et al., arXiv 2304.09151) is T5 v1.1 with a relative position bias in every layer; the initialisation is
    that of transformers' `UMT5PreTrainedModel`, which follows Mesh TensorFlow.
    """
    from transformers.models.umt5.configuration_umt5 import UMT5Config
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

    config = UMT5Config(
        vocab_size=vocab_size,
        d_model=d_model,
        num_layers=layers,
        num_heads=heads,
        d_kv=d_kv,
        d_ff=d_ff,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        pad_token_id=0,
        eos_token_id=1,
    )
    return UMT5EncoderModel(config)


def to_sample_with(module: "UMT5EncoderModel") -> T5Encoder:
    """An encoder of transformers as samples are made with, with the same weights."""
    encoder = T5Encoder(CONFIGS["umt5"].over(module.config.to_dict()))
    encoder.load_state_dict({name: tensor for name, tensor in module.state_dict().items() if name != TWIN})
    return encoder


def take_weights(module: "UMT5EncoderModel", encoder: T5Encoder) -> None:
    """Give an encoder of transformers the weights of one that samples are made with.

    Raises:
        RuntimeError: it is of another size.
    """
    weights = encoder.state_dict()
    module.load_state_dict({**weights, TWIN: weights["shared.weight"]})


def has_weights(module: "UMT5EncoderModel", encoder: T5Encoder) -> bool:
    """Whether an encoder of transformers has the very weights of one that samples are made with."""
    weights = encoder.state_dict()
    mine, theirs = module.state_dict(), {**weights, TWIN: weights["shared.weight"]}
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def save_text_encoder(module: "UMT5EncoderModel", folder: Path) -> None:
    """Writes `config.json` and `model.safetensors`, which `TextEncoder` and diffusers' pipelines open."""
    with quiet_transformers():
        module.save_pretrained(folder)


def embed_batch(module: "UMT5EncoderModel", ids: Sequence[Sequence[int]]) -> list[Tensor]:
    """The embeddings (L_i, d_model) of token sequences of lengths L_i, in one forward; differentiable.

    The batch is padded to its longest sequence and the padding masked, so each sequence gets the numbers it gets alone.
    """
    lengths = [len(row) for row in ids]
    padded = torch.zeros(len(ids), max(lengths), dtype=torch.long)
    mask = torch.zeros_like(padded)
    for row, tokens in enumerate(ids):
        padded[row, : lengths[row]] = torch.tensor(tokens)
        mask[row, : lengths[row]] = 1
    device = module.shared.weight.device
    hidden = module(input_ids=padded.to(device), attention_mask=mask.to(device)).last_hidden_state  # B L D
    return [row[:length] for row, length in zip(hidden, lengths, strict=True)]
