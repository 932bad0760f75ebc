"""One object's track over a clip: the shape that its masks show, and the motion that it follows.

shape       the mask brought to unit area, against rendered shapes in every rotation (soft intersection over union)
motion      the tracks of place, size and rotation, against the world's motions
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dit_video.scenes.render import coverage
from dit_video.scenes.world import CIRCLING, LINES, MIN_MOVING_FRAMES, SHAPES, SYMMETRY, bounce_height

# Shape: soft intersection over union with the best template.
GRID, HALF_WIDTH = 32, 1.05  # samples across a unit-area mask, and half the width they span
ROTATION_STEPS = {"circle": 1, "square": 18, "triangle": 24, "star": 18}
# Widths of the edge as fractions of the square root of the area.
SOFTNESS = (0.05, 0.06, 0.07, 0.085, 0.1, 0.12, 0.145, 0.175, 0.21, 0.25, 0.3)
# A pentagon and a 6:5 ellipse are 0.88 of a circle; true stars lose most to blur.
LEAST_FIT = {"circle": 0.895, "square": 0.86, "triangle": 0.84, "star": 0.82}
LEAST_LEAD = 0.04  # over the next shape

# Motion: places as fractions of the frame's sides, sizes relative.
AT_REST, MOVED = 0.08, 0.15  # at most and at least this span
SAME_SIZE, RESIZED = 1.2, 1.4
SIZE_SCATTER = 0.1  # of the size about its trend, relative
LINE_MISFIT, BOUNCE_MISFIT, CIRCLE_MISFIT = 0.1, 0.2, 0.15  # rms, relative to the span
# An axis with at least / at most this share of the larger displacement is / is not part of the direction.
ALONG, ACROSS = 0.5, 0.25
CIRCLE_ROUND = 0.3  # least ratio of a circle's two diameters
SPUN, SPIN_GAIN = np.pi / 3, 0.02  # least rotation, and how much better it must explain the masks than none


@dataclass(frozen=True)
class Track:
    """One object over the frames that show it clearly."""

    u: np.ndarray  # (n,) clip time in [0, 1]
    place: np.ndarray  # (n, 2) x, y in pixels
    size: np.ndarray  # (n,) square root of the area, in pixels
    masks: np.ndarray  # (n, GRID * GRID) float32, brought to unit area


def shape_and_motion(track: Track, size: tuple[int, int], num_frames: int) -> tuple[str | None, str | None]:
    """The shape and the motion that a track shows, each None where it cannot be told.

    size = (width, height) of the frames; num_frames counts those that do not show the object clearly too.
    """
    fits = _fits(track.masks)
    shape, nearest = _shape(fits)
    return shape, _motion(track, fits[nearest], nearest, size, num_frames)


def unit_mask(soft: np.ndarray, place: np.ndarray, size: float) -> np.ndarray:
    """A mask resampled to (GRID, GRID) around its centre, with unit area.

    soft: (H, W) shares in [0, 1]; place: the centre's x, y; size: the square root of the area; both in pixels.
    """
    # Separable hat functions, as wide as the coarser of the two samplings.
    grid = _grid() * size
    width = max(1.0, grid[1] - grid[0])
    rows, columns = (
        _hats(grid + at, np.arange(side) + 0.5, width) for side, at in zip(soft.shape, place[::-1], strict=True)
    )
    return rows @ soft @ columns.T


def _hats(at: np.ndarray, samples: np.ndarray, width: float) -> np.ndarray:
    # (len(at), len(samples)) float32 weights of hat functions around `at`, `width` wide at half their height.
    hats = np.maximum(0, 1 - np.abs(at[:, None] - samples) / width) * ((samples[1] - samples[0]) / width)
    return hats.astype(np.float32)


def _grid() -> np.ndarray:
    return (np.arange(GRID) + 0.5) / GRID * 2 * HALF_WIDTH - HALF_WIDTH


# Shape.


def _rotations(shape: str) -> np.ndarray:
    steps = ROTATION_STEPS[shape]
    return np.arange(steps) * SYMMETRY.get(shape, 0.0) / steps


@lru_cache(maxsize=1)
def _templates() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """For each shape its unit-area masks (softness, rotations, GRID * GRID) float32, and their measured softness."""
    fine = (np.arange(4 * GRID, dtype=np.float32) + 0.5) / (4 * GRID) * 2 * HALF_WIDTH - HALF_WIDTH
    cell = (fine[1] - fine[0]) ** 2
    found = {}
    for shape in SHAPES:
        area = coverage(shape, fine[None, :], fine[:, None], 0.5, soft=0.02).sum() * cell
        sharp = coverage(
            shape, fine[None, None, :], fine[None, :, None], 0.5 * area**-0.5, _rotations(shape)[:, None, None], 0.02
        )
        masks = np.stack([hats @ sharp @ hats.T for hats in (_hats(_grid(), fine, width) for width in SOFTNESS)])
        masks = masks.reshape(len(SOFTNESS), len(sharp), GRID * GRID)
        found[shape] = masks, _softness(masks).mean(1)
    return found


def _softness(masks: np.ndarray) -> np.ndarray:
    return (masks * (1 - masks)).sum(-1)


def _fits(masks: np.ndarray) -> dict[str, np.ndarray]:
    """Soft intersection over union of (n, GRID * GRID) masks with each shape, as soft as they are: (n, rotations)."""
    found = {}
    total, soft = masks.sum(1), _softness(masks)
    for shape, (templates, softness) in _templates().items():
        level = np.abs(softness - soft[:, None]).argmin(1)
        common = np.stack([np.minimum(templates[k], mask).sum(1) for k, mask in zip(level, masks, strict=True)])
        found[shape] = common / (total[:, None] + templates.sum(2)[level] - common)
    return found


def _shape(fits: dict[str, np.ndarray]) -> tuple[str | None, str]:
    # The shape, if it is clear, and the nearest one.
    mean = {shape: float(fit.max(1).mean()) for shape, fit in fits.items()}
    first, second = sorted(mean, key=mean.__getitem__, reverse=True)[:2]
    clear = mean[first] >= LEAST_FIT[first] and mean[first] - mean[second] >= LEAST_LEAD
    return first if clear else None, first


# Motion.


def _motion(track: Track, fit: np.ndarray, shape: str, size: tuple[int, int], num_frames: int) -> str | None:
    if num_frames == 1:
        return "still"
    place = track.place / size
    found = [_resizing(track.u, track.size), _moving(track.u, place), _spinning(track.u, fit, shape, num_frames)]
    if None in found:
        return None
    changes = [change for change in found if change != "still"]
    if len(changes) > 1 or (changes and num_frames < MIN_MOVING_FRAMES):
        return None
    return changes[0] if changes else "still"


def _residual(basis: list[np.ndarray], values: np.ndarray) -> tuple[np.ndarray, float]:
    # Least squares of (n, k) values: coefficients (basis, k) and the rms of what is left.
    matrix = np.stack([np.broadcast_to(b, len(values)) for b in basis], 1)
    found = np.linalg.lstsq(matrix, values, rcond=None)[0]
    return found, float(np.sqrt(((values - matrix @ found) ** 2).sum(1).mean()))


def _resizing(u: np.ndarray, size: np.ndarray) -> str | None:
    (at_start, slope), scatter = _residual([np.ones(1), u], size[:, None])
    first, last = float(at_start[0]), float((at_start + slope)[0])
    if min(first, last) <= 0 or scatter > SIZE_SCATTER * size.mean():
        return None
    ratio = last / first
    if max(ratio, 1 / ratio) <= SAME_SIZE:
        return "still"
    if max(ratio, 1 / ratio) < RESIZED:
        return None
    return "growing" if ratio > 1 else "shrinking"


def _moving(u: np.ndarray, place: np.ndarray) -> str | None:
    span = float(np.ptp(place, axis=0).max())
    if span <= AT_REST:
        return "still"
    if span < MOVED:
        return None
    one = np.ones(1)
    line, misfit = _residual([one, u], place)
    if misfit <= LINE_MISFIT * span:
        return _direction(line[1])
    arcs, misfit = _residual([one, bounce_height(u)], place)
    if misfit <= BOUNCE_MISFIT * span:
        upright = -arcs[1, 1] >= MOVED and abs(arcs[1, 0]) <= ACROSS * -arcs[1, 1]
        return "bouncing" if upright else None
    wave, misfit = _residual([one, np.cos(2 * np.pi * u), np.sin(2 * np.pi * u)], place)
    if misfit <= CIRCLE_MISFIT * span:
        return _orientation(wave[1:])
    return None


def _direction(step: np.ndarray) -> str | None:
    share = np.abs(step) / np.abs(step).max()
    if ((share > ACROSS) & (share < ALONG)).any():
        return None
    towards = tuple(int(s) for s in np.sign(step) * (share >= ALONG))
    return next(motion for motion, direction in LINES.items() if direction == towards)


def _orientation(wave: np.ndarray) -> str | None:
    # wave: (cos, sin) x (x, y). Its singular values are the ellipse's half diameters, its determinant's sign the way.
    long, short = np.linalg.svd(wave, compute_uv=False)
    if 2 * long < MOVED or short < CIRCLE_ROUND * long:
        return None
    sign = int(np.sign(np.linalg.det(wave)))
    return next(motion for motion, way in CIRCLING.items() if way == sign)


def _spinning(u: np.ndarray, fit: np.ndarray, shape: str, num_frames: int) -> str | None:
    """ "spinning", "still" or None: how well turning at constant speed explains (n, rotations) fits of one shape."""
    if shape == "circle" or len(u) < 2:
        return "still"
    steps, symmetry = fit.shape[1], SYMMETRY[shape]
    most = min(1.25 * 2 * np.pi, 0.45 * symmetry * (num_frames - 1))
    turns = np.linspace(-most, most, 2 * int(np.ceil(most / (symmetry / steps))) + 1)
    index = (turns[:, None] * u)[:, None, :] / symmetry * steps + np.arange(steps)[:, None]  # (turns, starts, n)
    explained = fit[np.arange(len(u)), index.round().astype(int) % steps].mean(2).max(1)
    best = int(explained.argmax())
    gain = explained[best] - explained[np.abs(turns) <= SPUN / 2].max()
    if gain < SPIN_GAIN:
        return "still"
    return "spinning" if abs(turns[best]) >= SPUN else None
