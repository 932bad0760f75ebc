"""Embeddings of captions by a frozen text encoder, computed once each and kept on disk.

The text encoder of a public model is larger than its transformer (UMT5-XXL: 5.7 billion parameters), and its embeddings
never change while it is frozen: a run loads it for captions that are new, and a resumed run not at all.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dit_video.machine import dtype_name
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.text.cache import Embedded, EmbeddingCache, made_by
from dit_video.train import distributed

if TYPE_CHECKING:
    from dit_video.text.encoders import TextEncoder

LISTED_WORDS = 10


class TextCache:
    """Embeddings by a checkpoint's text encoder, as `dvgen sample` computes them, each caption's in a file of `folder`.

    encoder: loaded when it is first needed. note: told which words it never learnt.
    """

    def __init__(
        self,
        folder: Path,
        checkpoint: WanCheckpoint,
        *,
        dtype: torch.dtype,
        device: str,
        note: Callable[[str], None],
    ):
        self.checkpoint, self.note = checkpoint, note
        self.dtype, self.device = dtype, torch.device(device)
        self.encoder: TextEncoder | None = None
        self.cache = EmbeddingCache(folder, made_by(checkpoint.text_files, dtype_name(dtype), self.device.type))

    def fill(self, captions: Sequence[str], rank: int = 0, world: int = 1) -> None:
        """Embed what is not there yet, each process its share of it, and free the encoder; returns when all is there.

        Raises:
            CheckpointError: the text encoder cannot be loaded.
        """
        self._embed([caption for caption in sorted(set(captions))[rank::world] if not self.cache.has(caption)])
        self.encoder = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        distributed.any_process([True], world)  # nobody goes on before all have written

    def __call__(self, captions: Sequence[str]) -> list[Tensor]:
        """The embeddings (L_i, text_dim) of captions, on the CPU, from the cache or made now.

        Raises:
            CheckpointError: the text encoder cannot be loaded.
        """
        found = {caption: self.cache.read(caption) for caption in captions}
        self._embed([caption for caption, embedded in found.items() if embedded is None])
        every = [self.cache.read(caption) if found[caption] is None else found[caption] for caption in captions]
        return [embedded.embedding for embedded in every if embedded is not None]

    def _embed(self, captions: Sequence[str]) -> None:
        if not captions:
            return
        if self.encoder is None:
            self.encoder = self.checkpoint.load_text(dtype=self.dtype, device=self.device)
        unknown: dict[str, None] = {}
        for caption in captions:
            (embedding,) = self.encoder.encode([caption], more=True)
            words, cut = self.encoder.unknown_words(caption), self.encoder.is_cut(caption)
            self.cache.write(caption, Embedded(embedding, words, cut))
            unknown |= dict.fromkeys(words)
        if unknown:
            listed = ", ".join(repr(word) for word in [*unknown][:LISTED_WORDS])
            more = ", ..." if len(unknown) > LISTED_WORDS else ""
            self.note(f"the text encoder never learnt these words of the captions: {listed}{more}.")
