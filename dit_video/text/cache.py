"""Embeddings of prompts on disk: a text encoder is often larger than its transformer, and gives a prompt the same
numbers every time."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video import atomic
from dit_video.cache import users_folder
from dit_video.checkpoints.files import fingerprint

if TYPE_CHECKING:
    from torch import Tensor

MAX_BYTES = 2**30


@dataclass(frozen=True)
class Embedded:
    """A prompt as it was read.

    embedding: (L, dim) on the CPU. unknown: the words that the encoder never learnt. cut: its end was not read.
    """

    embedding: "Tensor"
    unknown: list[str]
    cut: bool


class EmbeddingCache:
    """What one text encoder made of prompts, each in a file of `folder` named by a hash of both.

    made_by: says which encoder it is, in which dtype and on which kind of device. max_bytes: of the whole folder, from
    which those go that were not used for the longest time; None for no limit.
    """

    def __init__(self, folder: Path, made_by: str, *, max_bytes: int | None = None) -> None:
        self.folder, self.made_by, self.max_bytes = folder, made_by, max_bytes
        self._taken: int | None = None  # bytes, as far as this process knows: to look each time is slow after thousands

    def has(self, prompt: str) -> bool:
        """Whether there is a file, whole or not."""
        return self.path(prompt).is_file()

    def read(self, prompt: str) -> Embedded | None:
        """What was made of a prompt; None where there is nothing that can be read."""
        import torch

        path = self.path(prompt)
        try:
            found = torch.load(path, weights_only=True)
            if self.max_bytes is not None:
                os.utime(path)
            return Embedded(found["embedding"], list(found["unknown"]), bool(found["cut"]))
        except Exception:  # a damaged file can be wrong in every way, and is as good as none
            return None

    def write(self, prompt: str, embedded: Embedded) -> None:
        """Keep what was made of a prompt. Raises OSError."""
        import torch

        path = self.path(prompt)
        path.parent.mkdir(parents=True, exist_ok=True)
        found = {"embedding": embedded.embedding.cpu().clone(), "unknown": embedded.unknown, "cut": embedded.cut}
        data = BytesIO()
        torch.save(found, data)  # which to a disk that is full is no OSError
        with atomic.replacing(path) as part:
            part.write_bytes(data.getbuffer())
        if self.max_bytes is None:
            return
        if self._taken is not None:
            self._taken += path.stat().st_size
        if self._taken is None or self._taken > self.max_bytes:
            self._taken = _shrink(self.folder, self.max_bytes)

    def path(self, prompt: str) -> Path:
        """The file of a prompt."""
        name = hashlib.sha256(repr((self.made_by, prompt)).encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.pt"


def made_by(files: Iterable[Path], dtype: str, device: str) -> str:
    """Says which encoder it is: by its files as they are now, and what else its numbers depend on.

    dtype, device: names, such as "float32" and "cuda".
    """
    return repr((version("torch"), dtype, device, fingerprint(files)))


def users_cache(made_by: str) -> EmbeddingCache | None:
    """The cache of whoever runs this, if one is to be kept, see `users_folder`."""
    folder = users_folder("text")
    return None if folder is None else EmbeddingCache(folder, made_by, max_bytes=MAX_BYTES)


def _shrink(folder: Path, most: int) -> int:
    """Removes files until no more than `most` bytes are left, those first that were not used for the longest time; what
    is left."""
    files = [(stat.st_mtime, stat.st_size, file) for file in folder.rglob("*.pt") if (stat := _stat(file))]
    total = sum(size for _, size, _ in files)
    for _, size, file in sorted(files):
        if total <= most:
            break
        file.unlink(missing_ok=True)
        total -= size
    return total


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:  # another process was faster
        return None
