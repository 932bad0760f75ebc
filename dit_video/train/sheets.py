"""Sample sheets: rows of frames in one PNG."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from dit_video.video.io import write_video


def contact_sheet(rows: Sequence[np.ndarray], gap: int = 4) -> np.ndarray:
    """(H, W, 3) uint8 from rows of frames (T, h, w, 3) of any sizes, on mid-gray with `gap` pixels between."""
    strips = [
        np.concatenate([np.pad(f, ((gap, 0), (gap, 0), (0, 0)), constant_values=96) for f in row], axis=1)
        for row in rows
    ]
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate(
        [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=96) for s in strips], axis=0
    )


def save_sheet(path: Path, rows: Sequence[np.ndarray]) -> None:
    """Write `contact_sheet(rows)` as a PNG."""
    write_video(path, iter([contact_sheet(rows)]), fps=1, overwrite=True)
