"""Between frames (uint8 RGB arrays) and videos (float32 tensors in [-1, 1])."""

import numpy as np
import torch
from torch import Tensor

from dit_video.shapes import VideoShape


def to_video(frames: np.ndarray, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W) in [-1, 1]."""
    return torch.from_numpy(frames).to(device).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)


def to_frames(video: Tensor) -> np.ndarray:
    """(3, T, H, W), clamped to [-1, 1] -> uint8 (T, H, W, 3)."""
    return video.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(1, 2, 3, 0).cpu().numpy()


def pad_frames(frames: np.ndarray, target: VideoShape) -> np.ndarray:
    """Pad (T, H, W, 3) at the end, the bottom and the right by repeating the edge, up to `target`: nothing is cropped
    or resized.
    """
    t, h, w = frames.shape[:3]
    return np.pad(
        frames, ((0, target.num_frames - t), (0, target.height - h), (0, target.width - w), (0, 0)), mode="edge"
    )
