"""Files of latents: there before decoding begins, so that the video can be made of them again, later or elsewhere."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video.checkpoints.files import save_tensors
from dit_video.checkpoints.headers import read_header, read_metadata
from dit_video.errors import CheckpointError
from dit_video.shapes import VideoShape

if TYPE_CHECKING:
    from torch import Tensor

    from dit_video.unfinished import Unfinished


def save_latents_of(latents: "Tensor", file: Path, shape: VideoShape, *, fps: float, about: dict[str, str]) -> None:
    """Writes the latents (C, T, H, W) of a clip, with what decoding them needs to know.

    Raises:
        CheckpointError: the file cannot be written.
    """
    latents = latents.cpu().contiguous()
    size = {"width": shape.width, "height": shape.height, "frames": shape.num_frames, "fps": repr(float(fps))}
    metadata = {**about, **{key: str(value) for key, value in size.items()}, "sha256": _hash(latents)}
    save_tensors({"latents": latents}, file, metadata=metadata)


def made_by(file: Path) -> tuple[str, int] | None:
    """The key and the seed (see `Unfinished`) of the command that wrote a file of latents; None of any other file."""
    try:
        read_header(file)
        about = read_metadata(file)
        return about["key"], int(about["seed"])
    except (CheckpointError, OSError, KeyError, ValueError):
        return None


def is_of(file: Path, unfinished: "Unfinished | None", seed: int) -> bool:
    """Whether a file says that it holds the latents that a command makes with a seed, bit for bit."""
    return unfinished is not None and made_by(file) == (unfinished.key, seed)


def read_latents(file: Path) -> "Tensor":
    """The latents (C, T, H, W) of a file, on the CPU. Raises CheckpointError, also where they are not as written."""
    from dit_video.checkpoints.stored import read_tensor

    latents = read_tensor(read_header(file)["latents"])
    if read_metadata(file).get("sha256") not in (None, _hash(latents)):
        raise CheckpointError(f"{file}: is damaged: its latents are not those that were written.")
    return latents


def _hash(latents: "Tensor") -> str:
    """Of their bytes; latents: contiguous, on the CPU."""
    import torch

    return hashlib.sha256(latents.view(torch.uint8).numpy().data).hexdigest()
