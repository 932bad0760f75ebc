"""Scenes to pixels: anti-aliased by distance from the edges, computed only where an object is."""

import math

import numpy as np

from dit_video.scenes.world import CORNER, PALETTE, SYMMETRY, Scene, SceneObject

STAR_WAIST = 0.45  # the inner radius of the star over its outer one


def render(scene: Scene) -> np.ndarray:
    """(T, H, W, 3) uint8 frames of a scene."""
    row = np.tile(np.array(PALETTE[scene.background], np.uint8), scene.width)  # whole rows copy much faster than pixels
    rows = np.empty((scene.num_frames, scene.height, scene.width * 3), np.uint8)
    rows[:] = row
    frames = rows.reshape(scene.num_frames, scene.height, scene.width, 3)
    for thing in scene.objects:
        _paint(frames, thing)
    return frames


def _paint(frames: np.ndarray, thing: SceneObject) -> None:
    num_frames, height, width, _ = frames.shape
    unchanging = thing.motion == "still"
    path = thing.path(1 if unchanging else num_frames)
    reach = path[:, 2].max() * CORNER[thing.shape] + 1
    side_x, side_y = (min(math.ceil(2 * reach) + 1, side) for side in (width, height))
    left = np.clip(np.floor(path[:, 0] - reach), 0, width - side_x).astype(int)
    top = np.clip(np.floor(path[:, 1] - reach), 0, height - side_y).astype(int)
    # Offsets of pixel centres from the object's centre: (T, 1, w) and (T, h, 1).
    x = (np.arange(side_x) + 0.5 + (left - path[:, 0])[:, None])[:, None, :].astype(np.float32)
    y = (np.arange(side_y) + 0.5 + (top - path[:, 1])[:, None])[:, :, None].astype(np.float32)
    radius, angle = path[:, 2, None, None].astype(np.float32), path[:, 3, None, None]
    cover = coverage(thing.shape, x, y, radius, None if thing.turn == 0 else angle)[..., None]
    colour = np.array(PALETTE[thing.colour], np.float32)
    if unchanging:
        patch = frames[:, top[0] : top[0] + side_y, left[0] : left[0] + side_x]
        patch[:] = _blend(patch, colour, cover[0])
        return
    for frame, y0, x0, c in zip(frames, top, left, cover, strict=True):
        patch = frame[y0 : y0 + side_y, x0 : x0 + side_x]
        patch[:] = _blend(patch, colour, c)


def _blend(patch: np.ndarray, colour: np.ndarray, cover: np.ndarray) -> np.ndarray:
    return (patch + cover * (colour - patch) + np.float32(0.5)).astype(np.uint8)


def coverage(
    shape: str,
    x: np.ndarray,
    y: np.ndarray,
    radius: np.ndarray | float,
    angle: np.ndarray | None = None,
    soft: float = 1.0,
) -> np.ndarray:
    """Coverage in [0, 1] of pixels by a shape: the product over the nearest edges of a ramp `soft` pixels wide.

    x and y are offsets from the shape's centre, in arrays that broadcast; angle is in radians, clockwise, None for 0.
    Along edges the ramp is the distance-based coverage, at corners the product is close to the area (within 0.17).
    """
    if angle is not None:
        cos, sin = np.cos(angle, dtype=np.float32), np.sin(angle, dtype=np.float32)
        x, y = x * cos + y * sin, y * cos - x * sin
    ramps = [np.clip(0.5 - distance / soft, 0, 1) for distance in _edge_distances(shape, x, y, radius)]
    return math.prod(ramps[1:], start=ramps[0])


def _edge_distances(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray | float) -> tuple[np.ndarray, ...]:
    # Signed distances, negative inside, to the lines of an upright shape's edges that are nearest to each point.
    if shape == "circle":
        return (np.sqrt(x * x + y * y) - radius,)
    corner = CORNER[shape] * radius
    if shape == "square":
        half = corner * np.float32(math.sqrt(0.5))
        return np.abs(x) - half, np.abs(y) - half
    if shape == "triangle":  # a tip at the top and a flat side below
        inner, across, along = corner * np.float32(0.5), x * np.float32(math.cos(math.pi / 6)), y * np.float32(0.5)
        return across - along - inner, -across - along - inner, y - inner
    if shape == "star":
        return _star_edges(np.abs(x), -y, corner)
    raise ValueError(f"no shape {shape!r}")


def _star_edges(x: np.ndarray, y: np.ndarray, corner: np.ndarray | float) -> tuple[np.ndarray, ...]:
    # Mirror the plane (x >= 0, y up) twice into the 36 degrees right of the tip; there the star is bounded by the edge
    # that joins tip and waist, and by the mirror image of that edge.
    sin, cos = np.float32(math.sin(math.pi / 5)), np.float32(math.cos(math.pi / 5))
    for _ in range(2):
        beyond = np.maximum(x * cos - y * sin, 0) * 2
        x, y = np.abs(x - beyond * cos), y + beyond * sin
    along_x, along_y = STAR_WAIST * float(sin), STAR_WAIST * float(cos) - 1  # from the tip at (0, 1) to the waist
    length = math.hypot(along_x, along_y)
    across, down = x * np.float32(-along_y / length), (y - corner) * np.float32(along_x / length)
    return down + across, down - across


def boxes(scene: Scene) -> np.ndarray:
    """(T, objects, 4) int64: the smallest boxes x0, y0, x1, y1 (x1, y1 exclusive) of pixels that hold each object.

    Anti-aliasing may leave a trace on the next pixel beyond a sharp tip.
    """
    found = np.empty((scene.num_frames, len(scene.objects), 4))
    for n, thing in enumerate(scene.objects):
        path = thing.path(scene.num_frames)
        low, high = _extent(thing.shape, path[:, 3])
        found[:, n, :2] = np.floor(path[:, :2] + low * path[:, 2:3] + 1e-6)
        found[:, n, 2:] = np.ceil(path[:, :2] + high * path[:, 2:3] - 1e-6)
    return np.clip(found, 0, [scene.width, scene.height] * 2).astype(np.int64)


def _extent(shape: str, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # (T, 2) lowest and highest x, y of a shape of radius 1, from its outer corners.
    if shape == "circle":
        return -np.ones((len(angle), 2)), np.ones((len(angle), 2))
    corners = round(math.tau / SYMMETRY[shape])
    start = math.pi / 4 if shape == "square" else -math.pi / 2  # squares stand on a side, the others point up
    at = angle[:, None] + start + np.arange(corners) * math.tau / corners
    points = np.stack([np.cos(at), np.sin(at)], -1) * CORNER[shape]
    return points.min(1), points.max(1)
