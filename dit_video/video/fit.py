"""Pictures and clips brought to the size of a video, by one of three rules; what was lost or added is said.

cover: scaled until both sides are covered, then cut evenly at the sides that stick out. contain: scaled until both
sides fit, then continued at the sides that are short by repeating the edge. stretch: both sides scaled by themselves.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

WIDE = 4  # times the video's side: what sticks out further is cut before it is scaled


def fit_frames(frames: "np.ndarray", width: int, height: int, rule: str) -> "np.ndarray":
    """Frames (T, H, W, 3) uint8 at width x height, by a rule of `limits.FITS`; unchanged at that size.

    Scaled bicubically, with the low-pass that making smaller needs.
    """
    if frames.shape[1:3] == (height, width):
        return frames
    import numpy as np

    size = _scaled_size(frames.shape[2], frames.shape[1], width, height, rule)
    if max(size[0] / width, size[1] / height) > WIDE:  # 2000x1 covers 1024x1024 at 2048000x1024, most of which is cut
        frames = _middle(_middle(frames, 1, WIDE * height / size[1]), 2, WIDE * width / size[0])
        size = _scaled_size(frames.shape[2], frames.shape[1], width, height, rule)
    scaled = _scaled(frames, *size)
    top, left = (scaled.shape[1] - height) // 2, (scaled.shape[2] - width) // 2
    cut = scaled[:, max(0, top) : max(0, top) + height, max(0, left) : max(0, left) + width]
    down, across = height - cut.shape[1], width - cut.shape[2]
    edges = ((0, 0), (down // 2, down - down // 2), (across // 2, across - across // 2), (0, 0))
    return np.ascontiguousarray(np.pad(cut, edges, mode="edge"))


def what_fits(old: tuple[int, int], new: tuple[int, int], rule: str) -> str:
    """What `fit_frames` does to a picture of the size `old` (width, height), in words; "" where it does nothing."""
    if old == new:
        return ""
    scaled = _scaled_size(*old, *new, rule)
    said = f"scaled from {old[0]}x{old[1]} to {scaled[0]}x{scaled[1]}" if scaled != old else f"{old[0]}x{old[1]}"
    parts = []
    for name, have, want in (("width", scaled[0], new[0]), ("height", scaled[1], new[1])):
        if have > want:
            parts.append(f"{have - want} pixels of its {name} cut off")
        if have < want:
            parts.append(f"its {name} padded by {want - have} pixels")
    return ", ".join([said, *parts])


def _scaled_size(width: int, height: int, new_width: int, new_height: int, rule: str) -> tuple[int, int]:
    if rule == "stretch":
        return new_width, new_height
    scale = (max if rule == "cover" else min)(new_width / width, new_height / height)
    # At least a pixel: a picture of 2000x1 in a video of 16x16 is a line.
    return max(1, round(width * scale)), max(1, round(height * scale))


def _middle(frames: "np.ndarray", axis: int, share: float) -> "np.ndarray":
    """The middle of frames along an axis: at least `share` of it, and all of it from 1 up."""
    import numpy as np

    length = frames.shape[axis]
    cut = max(0, int((length - length * share) / 2))
    return np.take(frames, range(cut, length - cut), axis=axis)


def _scaled(frames: "np.ndarray", width: int, height: int) -> "np.ndarray":
    if frames.shape[1:3] == (height, width):
        return frames
    import torch
    import torch.nn.functional as F

    pixels = torch.tensor(frames).permute(0, 3, 1, 2).float()  # T 3 H W
    pixels = F.interpolate(pixels, (height, width), mode="bicubic", antialias=True, align_corners=False)
    return pixels.round_().clamp_(0, 255).byte().permute(0, 2, 3, 1).numpy()
