"""Between frames (uint8 RGB arrays) and videos (float32 tensors in [-1, 1])."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from dit_video.shapes import VideoShape


def to_video(frames: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).to(device).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


def to_frames(video: Tensor) -> np.ndarray:
    """(3, T, H, W), clamped to [-1, 1] -> uint8 (T, H, W, 3)."""
    return _pixels(video).cpu().numpy()


def _pixels(video: Tensor) -> Tensor:
    return video.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 3, 0)


class Frames:
    """Frames of a video (3, T, H, W) on their way from a device, and whether all its numbers are finite.

    From a GPU they are copied to pinned memory while the program and the GPU go on; `get` waits for them.
    """

    def __init__(self, video: Tensor) -> None:
        frames, finite = _pixels(video), torch.isfinite(video).all()
        self._there: torch.cuda.Event | None = None
        if video.device.type == "cuda":
            pinned = [torch.empty(x.shape, dtype=x.dtype, pin_memory=True) for x in (frames, finite)]
            self._frames, self._finite = (
                to.copy_(x, non_blocking=True) for to, x in zip(pinned, (frames, finite), strict=True)
            )
            self._there = torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(video.device))
        else:
            self._frames, self._finite = frames.cpu(), finite.cpu()

    def __len__(self) -> int:
        return len(self._frames)

    def get(self) -> tuple[np.ndarray, bool]:
        """The frames, uint8 (T, H, W, 3), and whether the numbers they are made of are finite."""
        if self._there is not None:
            self._there.synchronize()
        return self._frames.numpy(), bool(self._finite)


def one_ahead(parts: Iterable[Frames], *, ahead: bool) -> Iterator[Frames]:
    """The parts; with `ahead` each when the next one has been asked for, so that a device has work meanwhile."""
    waiting: Frames | None = None
    for part in parts:
        if not ahead:
            yield part
            continue
        if waiting is not None:
            yield waiting
        waiting = part
    if waiting is not None:
        yield waiting


def pad_frames(frames: np.ndarray, target: VideoShape) -> np.ndarray:
    """Pad (T, H, W, 3) at the end, the bottom and the right by repeating the edge, up to `target`: nothing is cropped
    or resized.
    """
    t, h, w = frames.shape[:3]
    return np.pad(
        frames, ((0, target.num_frames - t), (0, target.height - h), (0, target.width - w), (0, 0)), mode="edge"
    )
