"""Text encoders: UMT5 and T5, tokenised by the tokenizer file that comes with them."""

import html
import re
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from dit_video.checkpoints.files import read_json
from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.load import load_into
from dit_video.checkpoints.maps import let_go
from dit_video.checkpoints.parts import Keep, Part
from dit_video.checkpoints.stored import read_tensor
from dit_video.checkpoints.stream import Stream
from dit_video.errors import CheckpointError
from dit_video.text.files import LAYERS, MAX_LENGTH, ROWS, folder_part
from dit_video.text.layouts import text_config
from dit_video.text.spiece import parse_sentencepiece, read_gguf_tokenizer, read_sentencepiece
from dit_video.text.t5 import CONFIGS, IN_FLOAT32, T5Config, T5Encoder

FEW = 2  # prompts, such as one and its negative, for which weights are rather read again than kept


def clean_prompt(text: str) -> str:
    """The prompt as Wan's text encoder was trained to see it: mended Unicode, no HTML entities, single spaces.

    The same as the release (wan/modules/tokenizers.py) and diffusers; entities are resolved twice, since scraped
    captions have `&amp;lt;`.
    """
    import ftfy

    text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


class TextEncoder:
    """A tokenizer and an encoder: prompts in, one embedding per token out."""

    def __init__(
        self,
        module: T5Encoder,
        tokenizer: Tokenizer,
        device: torch.device | str | None = None,
    ) -> None:
        """device: where it computes, if its weights are not all there to tell."""
        self.module = module.eval().requires_grad_(False)
        self._last = False  # whether weights are not needed, or soon read again, after this prompt
        for block in self.module.encoder.block.children():
            block.register_forward_hook(lambda block, *_: let_go(block.parameters()) if self._last else None)
        self.device = next(module.parameters()).device if device is None else torch.device(device)
        self.tokenizer = tokenizer
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()

    @classmethod
    def from_folder(
        cls, text_encoder_dir: Path, tokenizer_dir: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> "TextEncoder":
        """The encoder in the `text_encoder/` and `tokenizer/` folders of a diffusers checkpoint.

        Raises:
            CheckpointError: a file is missing or damaged, the encoder is neither UMT5 nor T5, or its tensors do not
                fit the configuration.
        """
        part, tokenizer = folder_part(text_encoder_dir), load_tokenizer(tokenizer_dir)
        return cls.from_part(part, tokenizer, dtype=dtype, device=device)

    @classmethod
    def from_part(
        cls,
        part: Part,
        tokenizer: Tokenizer,
        *,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        keep: Keep | None = None,
    ) -> "TextEncoder":
        """The encoder of a file in any layout, see `text.layouts`, or of a folder with a config.json.

        keep: what stays in memory of its layers while the others are streamed; None for all.

        Raises:
            CheckpointError: a tensor is missing, unexpected or mis-shaped, or cannot be read.
        """
        fields = read_json(part.where / "config.json") if part.where.is_dir() else text_config(part)
        config = _config(fields, part.where)
        in_float32 = IN_FLOAT32 if dtype == torch.float16 else ()
        module = load_into(
            lambda: T5Encoder(config),
            part.tensors,
            part.layout,
            dtype=dtype,
            device=device,
            float32_names=lambda name: any(word in name.split(".") for word in in_float32),
            stream=None if keep is None else Stream(LAYERS, keep=keep, rows=ROWS),
        )
        return cls(module, tokenizer, device)

    def token_ids(self, prompt: str, max_length: int = MAX_LENGTH) -> list[int]:
        """The 1 to `max_length` token ids of a cleaned prompt; a longer one is cut before the closing `</s>`."""
        self.tokenizer.enable_truncation(max_length)
        ids = self.tokenizer.encode(clean_prompt(prompt)).ids
        self.tokenizer.no_truncation()
        return ids

    @torch.no_grad()
    def encode(self, prompts: Sequence[str], max_length: int = MAX_LENGTH, *, more: bool = False) -> list[Tensor]:
        """One tensor (L_i, dim) per prompt, L_i its number of tokens with `</s>`, in the encoder's dtype.

        more: others are read soon, so that weights that are maps of files had better stay in memory; else the last
        prompt lets them go, layer by layer, and each of no more than FEW does.

        Each distinct prompt runs once and alone, so its numbers never depend on what else is asked for; without padding
        nothing is masked, and the work of 512 tokens becomes that of L_i.
        """
        embeddings: dict[str, Tensor] = {}
        distinct = dict.fromkeys(prompts)
        for count, prompt in enumerate(distinct, start=1):
            ids = torch.tensor([self.token_ids(prompt, max_length)], device=self.device)
            self._last = not more and (len(distinct) <= FEW or count == len(distinct))
            embeddings[prompt] = self.module(ids)[0]
        return [embeddings[prompt] for prompt in prompts]

    def is_cut(self, prompt: str) -> bool:
        """Whether the prompt has more tokens than are read."""
        return len(self.tokenizer.encode(clean_prompt(prompt)).ids) > MAX_LENGTH

    def unknown_words(self, prompt: str) -> list[str]:
        """The words that a word-level tokenizer has no token for, each once; none for subword tokenizers."""
        if not isinstance(self.tokenizer.model, WordLevel):
            return []
        text = clean_prompt(prompt)
        encoding = self.tokenizer.encode(text)
        unknown = self.tokenizer.token_to_id(self.tokenizer.model.unk_token)
        spans = [span for token, span in zip(encoding.ids, encoding.offsets, strict=True) if token == unknown]
        words = dict.fromkeys(text[start:end] for start, end in spans)
        symbols = [c for c in dict.fromkeys(text) if unicodedata.category(c) == "So"]  # emoji, which it passes over
        return [*words, *(c for c in symbols if c not in "".join(words))]


def load_tokenizer(source: Path | TensorInfo) -> Tokenizer:
    """`tokenizer.json` of a folder, else its `spiece.model`; or what a GGUF file or a tensor of bytes carries.

    transformers' own T5 classes are not used: they read UMT5's files with T5's unknown id and without byte fallback.

    Raises:
        CheckpointError: neither file is there, or it cannot be read.
    """
    if isinstance(source, TensorInfo):
        return parse_sentencepiece(bytes(read_tensor(source).tolist()), source.file)
    if source.suffix.lower() == ".gguf":
        return read_gguf_tokenizer(source)
    if (file := source / "tokenizer.json").is_file():
        try:
            return Tokenizer.from_file(str(file))
        except Exception as error:  # the Rust side raises plain Exception
            raise CheckpointError(f"{file}: not a readable tokenizer ({error}).") from error
    if (file := source / "spiece.model").is_file():
        return read_sentencepiece(file)
    raise CheckpointError(f"{source}: holds neither tokenizer.json nor spiece.model.")


def _config(fields: Mapping[str, Any], where: Path) -> T5Config:
    """The configuration in the fields of a config.json. Raises CheckpointError."""
    kind = fields.get("model_type")
    if kind not in CONFIGS:
        raise CheckpointError(f"{where}: model_type {kind!r}: the text encoder must be {' or '.join(CONFIGS)}.")
    try:
        return CONFIGS[kind].over(fields)
    except ValueError as error:
        raise CheckpointError(f"{where}: its configuration is not one of a text encoder ({error}).") from None
