"""Files of latents: there before decoding begins, so that the video can be made of them again, later or elsewhere."""

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
    size = {"width": shape.width, "height": shape.height, "frames": shape.num_frames, "fps": repr(float(fps))}
    metadata = {**about, **{key: str(value) for key, value in size.items()}}
    save_tensors({"latents": latents.cpu().contiguous()}, file, metadata=metadata)


def made_by(file: Path) -> tuple[str, int] | None:
    """The key and the seed (see `Unfinished`) of the command that wrote a file of latents; None of any other file."""
    try:
        read_header(file)
        about = read_metadata(file)
        return about["key"], int(about["seed"])
    except (CheckpointError, OSError, KeyError, ValueError):
        return None


def is_of(file: Path, unfinished: "Unfinished | None", seed: int) -> bool:
    """Whether a file holds the latents that a command makes with a seed, bit for bit."""
    return unfinished is not None and made_by(file) == (unfinished.key, seed)


def read_latents(file: Path) -> "Tensor":
    """The latents (C, T, H, W) of a file, on the CPU. Raises CheckpointError."""
    from dit_video.checkpoints.stored import read_tensor

    return read_tensor(read_header(file)["latents"])
