"""Sample sheets: rows of frames in one PNG."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from dit_video.video.io import write_video

GRAY = 96  # of what no frame covers


def contact_sheet(rows: Sequence[Iterable[np.ndarray]], gap: int = 4) -> np.ndarray:
    """(H, W, 3) uint8 from rows of frames (h, w, 3), of one height in a row, on gray with `gap` pixels between."""
    strips = [
        np.concatenate([np.pad(f, ((gap, 0), (gap, 0), (0, 0)), constant_values=GRAY) for f in row], axis=1)
        for row in rows
    ]
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate(
        [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=GRAY) for s in strips], axis=0
    )


def save_sheet(path: Path, rows: Sequence[Iterable[np.ndarray]], *, gap: int = 4, overwrite: bool = True) -> None:
    """Write `contact_sheet(rows, gap)` as a PNG."""
    write_video(path, iter([contact_sheet(rows, gap)]), fps=1, overwrite=overwrite)
