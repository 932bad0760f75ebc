"""Text encoders: UMT5 and T5 through transformers, tokenised by the tokenizer file that comes with them.

transformers and ftfy are imported when they are first used: together they take seconds, which `--help` must not.
"""

import html
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor

from dit_video.checkpoints.files import read_json
from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.load import load_into
from dit_video.checkpoints.parts import Keep, Part
from dit_video.checkpoints.stored import read_tensor
from dit_video.checkpoints.stream import Stream
from dit_video.errors import CheckpointError
from dit_video.text.files import LAYERS, MAX_LENGTH, ROWS, folder_part
from dit_video.text.layouts import text_config
from dit_video.text.spiece import parse_sentencepiece, read_gguf_tokenizer, read_sentencepiece

if TYPE_CHECKING:
    from transformers.models.t5.modeling_t5 import T5EncoderModel
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel


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
        module: "UMT5EncoderModel | T5EncoderModel",
        tokenizer: Tokenizer,
        device: torch.device | str | None = None,
    ) -> None:
        """device: where it computes, if its weights are not all there to tell."""
        self.module = module.eval().requires_grad_(False)
        self.device = module.device if device is None else torch.device(device)
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
        module_class, config = _encoder_class(fields, part.where)
        in_float32 = tuple(module_class._keep_in_fp32_modules or ()) if dtype == torch.float16 else ()
        with quiet_transformers():
            module = load_into(
                lambda: module_class(config),
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
    def encode(self, prompts: Sequence[str], max_length: int = MAX_LENGTH) -> list[Tensor]:
        """One tensor (L_i, dim) per prompt, L_i its number of tokens with `</s>`, in the encoder's dtype.

        Each distinct prompt runs once and alone, so its numbers never depend on what else is asked for; without padding
        its attention mask is all ones, and the work of 512 tokens becomes that of L_i.
        """
        embeddings = {}
        for prompt in dict.fromkeys(prompts):
            ids = torch.tensor([self.token_ids(prompt, max_length)], device=self.device)
            embeddings[prompt] = self.module(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[0]
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


def _encoder_class(fields: Mapping[str, Any], where: Path) -> tuple[Any, Any]:
    """transformers' module of a kind, and its configuration, by the fields of its config.json."""
    kind = fields.get("model_type")
    # the submodules, not the package's top: its lazy imports look at every installed backend first
    if kind == "umt5":
        from transformers.models.umt5.configuration_umt5 import UMT5Config
        from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel

        return UMT5EncoderModel, _config(UMT5Config, fields, where)
    if kind == "t5":
        from transformers.models.t5.configuration_t5 import T5Config
        from transformers.models.t5.modeling_t5 import T5EncoderModel

        return T5EncoderModel, _config(T5Config, fields, where)
    raise CheckpointError(f"{where}: model_type {kind!r}: the text encoder must be umt5 or t5.")


def _config(kind: Any, fields: Mapping[str, Any], where: Path) -> Any:
    try:
        return kind.from_dict(dict(fields))
    except Exception as error:  # each field is checked in a way of its own
        raise CheckpointError(f"{where}: its configuration is not one of a text encoder ({error}).") from error


def import_library() -> None:
    """Import what encoders are built of: most of what loading a small one takes."""
    import ftfy  # noqa: F401
    import transformers.modeling_utils  # noqa: F401


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no warnings of transformers' own: problems are raised as errors, progress is the caller's to show."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
