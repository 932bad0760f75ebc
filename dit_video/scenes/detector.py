"""What a clip of the training world shows: its background, and the colour, shape and motion of its largest objects.

Told by rules, with no learned parts. Every answer may be None, "cannot tell": colours too far from the palette, a mask
too unlike every shape, a track that follows no motion of the world. It is built to be believed when it answers, so a
doubtful clip counts against the model that made it.

    background  the median colour, if it is near a palette colour and most of the clip has it
    colour      the palette colour that most of the other pixels are near; of two objects, the next one too
    object      in each frame the largest connected piece of that colour, as a soft mask: its share of each pixel
    shape, motion   see `tracks`
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from dit_video.scenes.tracks import GRID, Track, shape_and_motion, unit_mask
from dit_video.scenes.world import BACKGROUNDS, COLOURS, PALETTE, Scene, SceneObject

MAX_FRAMES = 33  # of longer clips, frames are taken evenly
MAX_SHORTER_SIDE = 192  # larger clips are averaged down

# Colour, in 8-bit RGB.
# Beyond this from every palette colour a colour has no name; half the least distance between two.
FAR_FROM_PALETTE = 45.0
DIFFERS = 40  # in some channel, for a pixel not to be background
BACKGROUND_SHARE = 0.5  # of all pixels that must have the background's colour
COLOUR_LEAD = 1.5  # how many times more pixels than the next colour an object's must have
OFF_MIXTURE = 60.0  # distance from the line between background and object colour at which a pixel belongs to neither
SURE = 0.15  # mixtures within this of either end are taken as the end, so that noise does not count

# Objects.
LEAST_PIXELS = 8
ONE_PIECE = 0.8  # share of the object's colour in a frame that its largest piece must have
CLEAR_FRAMES = 0.8  # share of frames that must show one clear object
EDGE = 4  # pixels that the blurred edge of one of several objects reaches


@dataclass(frozen=True, kw_only=True)
class Detection:
    """What a clip shows; None where it cannot be told."""

    shape: str | None
    colour: str | None
    background: str | None
    motion: str | None


def detect(frames: np.ndarray) -> Detection:
    """What (T, H, W, 3) uint8 frames show: the largest object.

    As in the world, clips under MIN_MOVING_FRAMES frames can only be still, and one frame always is.
    """
    return detect_objects(frames, 1)[0]


def detect_objects(frames: np.ndarray, count: int) -> tuple[Detection, ...]:
    """What (T, H, W, 3) uint8 frames show: the `count` largest objects, of different colours, largest first.

    Of those that are not there every field is None, but for the background. Two that are about as large are told, where
    `detect` tells none.

    Raises:
        ValueError: frames of another shape or type, or a count under 1.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or frames.dtype != np.uint8 or not len(frames):
        raise ValueError(f"frames must be (T, H, W, 3) uint8, not {frames.shape} {frames.dtype}")
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    frames = _reduced(frames)
    backdrop, background = _background(frames)
    found = []
    for colour, track in _objects(frames, backdrop, count):
        shape = motion = None
        if track is not None and len(track.u) >= CLEAR_FRAMES * len(frames):
            shape, motion = shape_and_motion(track, (frames.shape[2], frames.shape[1]), len(frames))
        found.append(Detection(shape=shape, colour=colour, background=background, motion=motion))
    return tuple(found)


def centres(frames: np.ndarray) -> np.ndarray | None:
    """The object's centre (T, 2), x and y in pixels, in each of at most MAX_FRAMES frames (T, H, W, 3) uint8.

    None where a frame does not show it.
    """
    height = frames.shape[1]
    frames = _reduced(frames)
    backdrop, _ = _background(frames)
    _, track = _objects(frames, backdrop, 1)[0]
    if track is None or len(track.u) < len(frames):
        return None
    return track.place * (height / frames.shape[1])


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


def matched(found: Sequence[Detection], thing: SceneObject) -> Detection | None:
    """What was found of an object, by its colour; None where there is nothing of that colour."""
    return next((detection for detection in found if detection.colour == thing.colour), None)


def score_objects(found: Sequence[Detection], scene: Scene) -> dict[str, bool]:
    """Whether each field is that of every object of the scene, matched by colour, and "all" of them together.

    Of an object whose colour was not found, shape and motion are wrong too.
    """
    pairs = [(matched(found, thing), thing) for thing in scene.objects]
    right = {
        field: all(one is not None and getattr(one, field) == getattr(thing, field) for one, thing in pairs)
        for field in ("shape", "colour", "motion")
    }
    right["background"] = found[0].background == scene.background
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


def _labels(frames: np.ndarray, backdrop: np.ndarray) -> np.ndarray:
    # (T, H, W) palette indices of the pixels that are not background: -1 where they are, len(BACKGROUNDS) without name.
    low = np.clip(backdrop - DIFFERS, 0, 255).astype(np.uint8)
    spread = np.clip(backdrop + DIFFERS, 0, 255).astype(np.uint8) - low
    differs = np.zeros(frames.shape[:3], bool)
    for channel in range(3):
        differs |= frames[..., channel] - low[channel] > spread[channel]  # values under `low` wrap around to above it
    where, pixels = np.flatnonzero(differs), frames.reshape(-1, 3)
    label = np.full(len(pixels), -1, np.int8)
    label[where] = _nearest(pixels[where])
    return label.reshape(frames.shape[:3])


def _colour_counts(label: np.ndarray) -> np.ndarray:
    return np.bincount(label[label >= 0], minlength=len(BACKGROUNDS) + 1)[: len(BACKGROUNDS)]


def _object_colours(label: np.ndarray, backdrop: np.ndarray, number: int) -> list[int]:
    """The palette indices of at most `number` objects, most pixels first.

    With several objects, the edges of each lose their names in `label`: their colours must not pass for an object.
    """
    chosen: list[int] = []
    if number > 1:
        label[label == _nearest(backdrop[None])[0]] = len(BACKGROUNDS)  # the outermost of the edges
    while len(chosen) < number:
        count = _colour_counts(label)[: len(COLOURS)]
        count[chosen] = 0
        best = int(count.argmax())
        if count[best] < LEAST_PIXELS or (chosen and not _shown(label == best)):
            break
        chosen.append(best)
        if number > 1:
            _drop_edges(label, best, backdrop)
    count = _colour_counts(label)
    least = max(LEAST_PIXELS, COLOUR_LEAD * np.delete(count, chosen).max())
    return [index for index in chosen if count[index] >= least]


def _shown(mask: np.ndarray) -> bool:
    # Whether a further object is in most frames, and not only specks in some.
    return bool((np.count_nonzero(mask, axis=(1, 2)) >= LEAST_PIXELS).mean() >= CLEAR_FRAMES)


def _drop_edges(label: np.ndarray, index: int, backdrop: np.ndarray) -> None:
    # A yellow object on red has an orange edge: near an object, colours between its own and the background's are its.
    between = _mixture(_palette(), backdrop, _palette()[index]) > 0
    between[index] = False
    if between.any():
        near = label == index
        for _ in range(EDGE):
            near = _grown(near)
        label[near & np.isin(label, np.flatnonzero(between))] = len(BACKGROUNDS)


# The objects in each frame.


def _objects(frames: np.ndarray, backdrop: np.ndarray, count: int) -> list[tuple[str | None, Track | None]]:
    """The colours and tracks of `count` objects, None for those that are not there."""
    label = _labels(frames, backdrop)
    chosen = _object_colours(label, backdrop, count)
    found: list[tuple[str | None, Track | None]] = []
    for index in chosen:
        mask = label == index
        others = np.isin(label, [other for other in chosen if other != index]) if len(chosen) > 1 else None
        found.append((BACKGROUNDS[index], _track(frames, mask, others, backdrop)))
    return found + [(None, None)] * (count - len(found))


def _grown(mask: np.ndarray) -> np.ndarray:
    # (T, H, W), with all eight neighbours of what is in it.
    wide = mask.copy()
    wide[:, :, 1:] |= mask[:, :, :-1]
    wide[:, :, :-1] |= mask[:, :, 1:]
    grown = wide.copy()
    grown[:, 1:] |= wide[:, :-1]
    grown[:, :-1] |= wide[:, 1:]
    return grown


def _nearer(others: np.ndarray, mask: np.ndarray) -> np.ndarray:
    # The pixels within EDGE of the other objects that are nearer to them than to the mask.
    nearer = others
    for _ in range(EDGE):
        others, mask = _grown(others), _grown(mask)
        nearer = nearer | (others & ~mask)
    return nearer


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


def _track(frames: np.ndarray, mask: np.ndarray, others: np.ndarray | None, backdrop: np.ndarray) -> Track:
    # others: (T, H, W) pixels of other objects, if there are any; they are no part of this one, whatever their colour.
    taken = None if others is None else _nearer(others, mask)
    object_colour = np.median(frames[mask], axis=0).astype(np.float32)
    area, box = _largest_pieces(mask)
    clear = (area >= LEAST_PIXELS) & (area >= ONE_PIECE * np.count_nonzero(mask, axis=(1, 2)))
    places, sizes, masks = [], [], []
    for n in np.flatnonzero(clear):
        x0, y0, x1, y1 = box[n]
        margin = 2 + max(x1 - x0, y1 - y0) // 8
        x0, y0 = max(x0 - margin, 0), max(y0 - margin, 0)
        crop = np.s_[n, y0 : y1 + margin, x0 : x1 + margin]
        soft = _mixture(frames[crop], backdrop, object_colour)
        if taken is not None:
            soft[taken[crop]] = 0
        total = soft.sum()
        x, y = np.arange(soft.shape[1]) + 0.5, np.arange(soft.shape[0]) + 0.5
        place = np.array([soft.sum(0) @ x, soft.sum(1) @ y]) / total
        places.append([x0 + place[0], y0 + place[1]])
        sizes.append(np.sqrt(total))
        masks.append(unit_mask(soft, place, sizes[-1]).reshape(-1))
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
