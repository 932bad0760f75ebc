"""What a clip of the training world shows: its background, and the colour, shape and motion of its largest object.

Told by rules, with no learned parts. Every answer may be None, "cannot tell": colours too far from the palette, a mask
too unlike every shape, a track that follows no motion of the world. It is built to be believed when it answers, so a
doubtful clip counts against the model that made it.

    background  the median colour, if it is near a palette colour and most of the clip has it
    colour      the palette colour that most of the other pixels are near
    object      in each frame the largest connected piece of that colour, as a soft mask: its share of each pixel
    shape       the mask brought to unit area, against rendered shapes in every rotation (soft intersection over union)
    motion      the tracks of place, size and rotation, against the world's motions
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dit_video.scenes.render import coverage
from dit_video.scenes.world import (
    BACKGROUNDS,
    CIRCLING,
    COLOURS,
    LINES,
    MIN_MOVING_FRAMES,
    PALETTE,
    SHAPES,
    SYMMETRY,
    Scene,
    bounce_height,
)

MAX_FRAMES = 33  # of longer clips, frames are taken evenly
MAX_SHORTER_SIDE = 192  # larger clips are averaged down

# Colour, in 8-bit RGB.
# Beyond this from every palette colour a colour has no name; half the least distance between two.
FAR_FROM_PALETTE = 45.0
DIFFERS = 40  # in some channel, for a pixel not to be background
BACKGROUND_SHARE = 0.5  # of all pixels that must have the background's colour
COLOUR_LEAD = 1.5  # how many times more pixels than the next colour the object's must have
OFF_MIXTURE = 60.0  # distance from the line between background and object colour at which a pixel belongs to neither
SURE = 0.15  # mixtures within this of either end are taken as the end, so that noise does not count

# Objects.
LEAST_PIXELS = 8
ONE_PIECE = 0.8  # share of the object's colour in a frame that its largest piece must have
CLEAR_FRAMES = 0.8  # share of frames that must show one clear object

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


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What a clip shows; None where it cannot be told."""

    shape: str | None
    colour: str | None
    background: str | None
    motion: str | None


@dataclass(frozen=True)
class Track:
    """One object over the frames that show it clearly."""

    u: np.ndarray  # (n,) clip time in [0, 1]
    place: np.ndarray  # (n, 2) x, y in pixels
    size: np.ndarray  # (n,) square root of the area, in pixels
    masks: np.ndarray  # (n, GRID * GRID) float32, brought to unit area


def detect(frames: np.ndarray) -> Detection:
    """What (T, H, W, 3) uint8 frames show.

    As in the world, clips under MIN_MOVING_FRAMES frames can only be still, and one frame always is.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (T, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    frames = _reduced(frames)
    backdrop, background = _background(frames)
    colour, label = _object_colour(frames, backdrop)
    if colour is None:
        return Detection(shape=None, colour=None, background=background, motion=None)
    track = _track(frames, label == BACKGROUNDS.index(colour), backdrop)
    if len(track.u) < CLEAR_FRAMES * len(frames):
        return Detection(shape=None, colour=colour, background=background, motion=None)
    fits = _fits(track.masks)
    shape, nearest = _shape(fits)
    motion = _motion(track, fits[nearest], nearest, frames.shape[2], frames.shape[1], len(frames))
    return Detection(shape=shape, colour=colour, background=background, motion=motion)


def centres(frames: np.ndarray) -> np.ndarray | None:
    """The object's centre (T, 2), x and y in pixels, in each of at most MAX_FRAMES frames (T, H, W, 3) uint8.

    None where a frame does not show it.
    """
    height = frames.shape[1]
    frames = _reduced(frames)
    backdrop, _ = _background(frames)
    colour, label = _object_colour(frames, backdrop)
    if colour is None:
        return None
    track = _track(frames, label == BACKGROUNDS.index(colour), backdrop)
    return track.place * (height / frames.shape[1]) if len(track.u) == len(frames) else None


def score(detection: Detection, scene: Scene) -> dict[str, bool]:
    """Whether each field is that of the scene's first object, and "all" of them together."""
    thing = scene.objects[0]
    right = {
        "shape": detection.shape == thing.shape,
        "colour": detection.colour == thing.colour,
        "background": detection.background == scene.background,
        "motion": detection.motion == thing.motion,
    }
    return right | {"all": all(right.values())}


def _reduced(frames: np.ndarray) -> np.ndarray:
    if len(frames) > MAX_FRAMES:
        frames = frames[np.linspace(0, len(frames) - 1, MAX_FRAMES).round().astype(int)]
    k = min(frames.shape[1:3]) // MAX_SHORTER_SIDE + 1
    if k == 1:
        return frames
    height, width = (side // k * k for side in frames.shape[1:3])
    total = np.zeros((len(frames), height // k, width // k, 3), np.uint16)
    for i in range(k):
        for j in range(k):
            total += frames[:, i:height:k, j:width:k]
    return (total // (k * k)).astype(np.uint8)


# Colours.


@lru_cache(maxsize=1)
def _palette() -> np.ndarray:
    return np.array([PALETTE[name] for name in BACKGROUNDS], np.float32)


def _nearest(pixels: np.ndarray) -> np.ndarray:
    # (n, 3) -> (n,) index of the nearest palette colour, or len(BACKGROUNDS) when all are far.
    pixels, palette = pixels.astype(np.float32), _palette()
    distance = (palette**2).sum(1) - 2 * pixels @ palette.T
    index = distance.argmin(1)
    far = distance[np.arange(len(index)), index] + (pixels**2).sum(1) > FAR_FROM_PALETTE**2
    return np.where(far, len(BACKGROUNDS), index)


def _background(frames: np.ndarray) -> tuple[np.ndarray, str | None]:
    step = max(1, min(frames.shape[1:3]) // 36)
    sample = frames[:, step // 2 :: step, step // 2 :: step].reshape(-1, 3)
    middle = np.median(sample, axis=0).astype(np.float32)
    share = (np.abs(sample - middle).max(1) < DIFFERS).mean()
    index = int(_nearest(middle[None])[0])
    named = index < len(BACKGROUNDS) and share >= BACKGROUND_SHARE
    return middle, BACKGROUNDS[index] if named else None


def _object_colour(frames: np.ndarray, backdrop: np.ndarray) -> tuple[str | None, np.ndarray]:
    # The object's colour, and (T, H, W) palette indices of the pixels that are not background (-1 where they are).
    low = np.clip(backdrop - DIFFERS, 0, 255).astype(np.uint8)
    spread = np.clip(backdrop + DIFFERS, 0, 255).astype(np.uint8) - low
    differs = np.zeros(frames.shape[:3], bool)
    for channel in range(3):
        differs |= frames[..., channel] - low[channel] > spread[channel]  # values under `low` wrap around to above it
    where, pixels = np.flatnonzero(differs), frames.reshape(-1, 3)
    label = np.full(len(pixels), -1, np.int8)
    label[where] = _nearest(pixels[where])
    count = np.bincount(label[where], minlength=len(BACKGROUNDS) + 1)
    best = int(count[: len(COLOURS)].argmax())
    others = np.delete(count[: len(BACKGROUNDS)], best)
    clear = count[best] >= LEAST_PIXELS and count[best] >= COLOUR_LEAD * others.max()
    return COLOURS[best] if clear else None, label.reshape(frames.shape[:3])


# The object in each frame.


def _largest_pieces(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The largest connected piece in each frame of a (T, H, W) mask: area (T,), 0 for none, and box (T, 4).

    Boxes are x0, y0, x1, y1, the last two exclusive.

    Works on runs of pixels: those that overlap in neighbouring rows are joined, and take the least label in reach.
    """
    num_frames, height, width = mask.shape
    # an empty row between frames, empty columns between rows
    padded = np.zeros((num_frames, height + 1, width + 2), np.int8)
    padded[:, :-1, 1:-1] = mask
    edges = np.flatnonzero(np.diff(padded.reshape(-1)))
    start, stop, stride = edges[::2], edges[1::2], width + 2
    label = _joined(start, stop, stride)
    pieces, index = np.unique(label, return_inverse=True)
    piece_area = np.bincount(index, weights=stop - start, minlength=len(pieces)).astype(int)
    y = start // stride % (height + 1)
    low, high = np.full((len(pieces), 2), max(width, height)), np.zeros((len(pieces), 2), int)
    np.minimum.at(low, index, np.stack([start % stride, y], 1))
    np.maximum.at(high, index, np.stack([stop % stride, y + 1], 1))
    area, box = np.zeros(num_frames, int), np.zeros((num_frames, 4), int)
    order = np.argsort(piece_area)  # the largest is written last
    frame = start[pieces[order]] // (stride * (height + 1))
    area[frame] = piece_area[order]
    box[frame] = np.concatenate([low, high], 1)[order]
    return area, box


def _joined(start: np.ndarray, stop: np.ndarray, stride: int) -> np.ndarray:
    # For each run of pixels the index of the first run it is connected to; the next row's runs lie `stride` further on.
    first = np.searchsorted(stop, start + stride, side="right")
    number = np.maximum(np.searchsorted(start, stop + stride, side="left") - first, 0)
    above = np.repeat(np.arange(len(start)), number)
    below = np.repeat(first - np.cumsum(number) + number, number) + np.arange(number.sum())
    label = np.arange(len(start))
    while True:
        least = np.minimum(label[above], label[below])
        new = label.copy()
        for side in (above, below):
            np.minimum.at(new, label[side], least)
            np.minimum.at(new, side, least)
        new = new[new]
        if (new == label).all():
            return label
        label = new


def _track(frames: np.ndarray, mask: np.ndarray, backdrop: np.ndarray) -> Track:
    object_colour = np.median(frames[mask], axis=0).astype(np.float32)
    area, box = _largest_pieces(mask)
    clear = (area >= LEAST_PIXELS) & (area >= ONE_PIECE * np.count_nonzero(mask, axis=(1, 2)))
    places, sizes, masks = [], [], []
    for frame, (x0, y0, x1, y1) in zip(frames[clear], box[clear], strict=True):
        margin = 2 + max(x1 - x0, y1 - y0) // 8
        x0, y0 = max(x0 - margin, 0), max(y0 - margin, 0)
        soft = _mixture(frame[y0 : y1 + margin, x0 : x1 + margin], backdrop, object_colour)
        total = soft.sum()
        x, y = np.arange(soft.shape[1]) + 0.5, np.arange(soft.shape[0]) + 0.5
        place = np.array([soft.sum(0) @ x, soft.sum(1) @ y]) / total
        places.append([x0 + place[0], y0 + place[1]])
        sizes.append(np.sqrt(total))
        masks.append(_unit_mask(soft, place, sizes[-1]).reshape(-1))
    u = np.linspace(0, 1, len(frames))[clear]
    return Track(u, np.array(places).reshape(-1, 2), np.array(sizes), np.array(masks).reshape(-1, GRID * GRID))


def _mixture(pixels: np.ndarray, backdrop: np.ndarray, colour: np.ndarray) -> np.ndarray:
    # How much of each pixel is object, in [0, 1]: its place between the two colours, 0 when it is far off their line.
    axis = colour - backdrop
    offset = pixels - backdrop
    share = np.clip(offset @ axis / (axis @ axis), 0, 1)
    away = ((offset - share[..., None] * axis) ** 2).sum(-1)
    share = np.clip((share - SURE) / (1 - 2 * SURE), 0, 1)
    return np.where(away <= OFF_MIXTURE**2, share, 0).astype(np.float32)


def _unit_mask(soft: np.ndarray, place: np.ndarray, size: float) -> np.ndarray:
    # A mask resampled to (GRID, GRID) around its centre, with unit area: separable hat functions, as wide as the
    # coarser of the two samplings.
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


def _motion(track: Track, fit: np.ndarray, shape: str, width: int, height: int, num_frames: int) -> str | None:
    if num_frames == 1:
        return "still"
    place = track.place / (width, height)
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
