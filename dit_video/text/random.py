"""A text encoder with random weights that reads any text: for trying the whole program without a checkpoint."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

from dit_video.text.encoders import TextEncoder
from dit_video.text.vocabulary import EOS, PAD, UNKNOWN, build_umt5, to_sample_with


def random_text_encoder(*, dim: int, seed: int, dtype: torch.dtype, device: torch.device | str = "cpu") -> TextEncoder:
    """A small UMT5 over the bytes of the text, with `dim` channels (a multiple of 8) and weights drawn from `seed`."""
    tokenizer = byte_tokenizer()
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        module = build_umt5(
            vocab_size=tokenizer.get_vocab_size(), d_model=dim, layers=2, heads=dim // 8, d_kv=8, d_ff=2 * dim
        )
    return TextEncoder(to_sample_with(module).to(device=device, dtype=dtype), tokenizer)


def byte_tokenizer() -> Tokenizer:
    """A tokenizer with one token per byte of UTF-8, and `</s>` at the end, so that two texts never look the same."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: index for index, token in enumerate([PAD, EOS, UNKNOWN, *alphabet])}
    tokenizer = Tokenizer(models.BPE(ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {EOS}", special_tokens=[(EOS, ids[EOS])])
    tokenizer.add_special_tokens([PAD, EOS, UNKNOWN])
    return tokenizer
