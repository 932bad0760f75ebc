"""The training world: coloured shapes moving over plain backgrounds, few enough to check by eye or by rule.

Timing is relative to the clip, because the model has no frame-rate input: with u = frame / (num_frames - 1) in [0, 1],
every motion is a function of u alone. A clip of 24 frames and one of 96 show the same motion from beginning to end, the
second one sampled four times as finely.

    moving      a straight line at constant speed, from one end of its path at u = 0 to the other at u = 1
    circling    one full turn, ending where it began, around an ellipse that is as round as the frame allows
    bouncing    two bounces under gravity (parabolas): at the top for u = 0, 1/2, 1, on the floor for u = 1/4, 3/4
    growing     the radius changes linearly in u, by a factor of at least 1.6 (shrinking is the same backwards)
    spinning    a rotation at constant speed, 1/2 to 1 turn in either direction; less in short clips: per frame never
                more than a quarter of the shape's symmetry (72 degrees for a star), so that the direction can be told
    still       nothing changes; the only motion in clips under MIN_MOVING_FRAMES frames, images among them

Lengths are in pixels, x to the right and y down, pixel (0, 0) covering [0, 1] x [0, 1]; angles are in radians,
clockwise on the screen.
"""

import math
from dataclasses import dataclass

import numpy as np

# The order of these lists is part of the hold-out rule.
SHAPES = ("circle", "square", "triangle", "star")
COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")
BACKGROUNDS = (*COLOURS, "gray")
LINES = {  # the direction of each straight motion
    "moving left": (-1, 0),
    "moving right": (1, 0),
    "moving up": (0, -1),
    "moving down": (0, 1),
    "moving up-left": (-1, -1),
    "moving up-right": (1, -1),
    "moving down-left": (-1, 1),
    "moving down-right": (1, 1),
}
CIRCLING = {"circling clockwise": 1, "circling counterclockwise": -1}
MOTIONS = ("still", *LINES, *CIRCLING, "bouncing", "growing", "shrinking", "spinning")

# Any two are at least 95 apart in RGB, so a colour can be told after lossy coding.
PALETTE = {
    "red": (225, 30, 30),
    "green": (30, 160, 60),
    "blue": (35, 75, 225),
    "yellow": (255, 225, 25),
    "purple": (140, 45, 175),
    "orange": (250, 125, 10),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
    "gray": (128, 128, 128),
}

# An object's radius is that of a circle of about its area; these are the distances to the farthest corner, in radii.
CORNER = {"circle": 1.0, "square": 0.9 * math.sqrt(2), "triangle": 1.35, "star": 1.35}
SYMMETRY = {"square": math.tau / 4, "triangle": math.tau / 3, "star": math.tau / 5}  # the least rotation onto itself

# As fractions of the frame's shorter side.
SMALLEST, LARGEST = 0.10, 0.25
SMALL_UNTIL, LARGE_FROM = 0.14, 0.18

LEAST_TRAVEL = 0.3  # of the side it moves along; the world promises at least a quarter
LEAST_GROWTH = 1.6
MIN_MOVING_FRAMES = 5
SECOND_OBJECT_SHARE = 0.12

MIN_SIDE, MAX_SIDE = 32, 640
MIN_ASPECT, MAX_ASPECT = 9 / 16, 21 / 9
MAX_FRAMES = 97
IMAGE_SHARE = 0.15


def held_out(shape: str, colour: str, motion: str) -> bool:
    """Whether a combination is kept out of all training: 3 shape + 5 colour + 7 motion is a multiple of 10.

    Each is numbered from 0 in the order of its list. An image counts as still.
    """
    return (3 * SHAPES.index(shape) + 5 * COLOURS.index(colour) + 7 * MOTIONS.index(motion)) % 10 == 0


@dataclass(frozen=True, kw_only=True)
class SceneObject:
    """One shape and its path, in pixels."""

    shape: str
    colour: str
    motion: str
    centre: tuple[float, float]  # the middle of the path
    travel: tuple[float, float] = (0.0, 0.0)  # width and height of the path, signed for straight lines
    radius: tuple[float, float]  # in the first and in the last frame
    phase: float = 0.0  # where circling starts
    turn: float = 0.0  # the whole rotation, in radians, signed

    def path(self, num_frames: int) -> np.ndarray:
        """(num_frames, 4) float64: x, y, radius, angle in each frame."""
        u = np.linspace(0.0, 1.0, num_frames)
        path = np.empty((num_frames, 4))
        path[:, :2] = self.centre
        path[:, 2] = self.radius[0] + (self.radius[1] - self.radius[0]) * u
        path[:, 3] = self.turn * u
        if self.motion in LINES:
            path[:, :2] += np.multiply.outer(u - 0.5, self.travel)
        elif self.motion in CIRCLING:
            angle = self.phase + CIRCLING[self.motion] * math.tau * u
            path[:, 0] += self.travel[0] / 2 * np.cos(angle)
            path[:, 1] += self.travel[1] / 2 * np.sin(angle)
        elif self.motion == "bouncing":
            path[:, 1] += self.travel[1] * (0.5 - bounce_height(u))
        return path


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A background and one or two objects over a number of frames."""

    width: int
    height: int
    num_frames: int
    background: str
    objects: tuple[SceneObject, ...]

    def size_word(self, index: int = 0) -> str | None:
        """ "small", "large" or None (in between): the size of an object in the first frame."""
        fraction = self.objects[index].radius[0] / min(self.width, self.height)
        if fraction <= SMALL_UNTIL:
            return "small"
        return "large" if fraction >= LARGE_FROM else None


def bounce_height(u: np.ndarray) -> np.ndarray:
    """Height in [0, 1] of the bouncing motion at clip time u: parabolas between floor contacts at u = 1/4 and 3/4."""
    p = (2 * u + 0.5) % 1.0
    return 4 * p * (1 - p)


def sample_size(
    rng: np.random.Generator, *, smallest: int = MIN_SIDE, largest: int = MAX_SIDE, multiple: int = 1
) -> tuple[int, int]:
    """(width, height), log-uniform in area and in aspect (9:16 to 21:9); both sides multiples of `multiple` in range.

    Raises:
        ValueError: smallest or largest is not a multiple of `multiple`, or they leave no size.
    """
    if not 0 < smallest <= largest or smallest % multiple or largest % multiple:
        raise ValueError(f"no sizes between {smallest} and {largest} in steps of {multiple}")
    while True:
        side = math.exp(rng.uniform(math.log(smallest), math.log(largest)))
        stretch = math.exp(rng.uniform(math.log(MIN_ASPECT), math.log(MAX_ASPECT)) / 2)
        width, height = (round(x / multiple) * multiple for x in (side * stretch, side / stretch))
        inside = smallest <= min(width, height) and max(width, height) <= largest
        if inside and MIN_ASPECT <= width / height <= MAX_ASPECT:
            return width, height


def sample_num_frames(rng: np.random.Generator, *, longest: int = MAX_FRAMES) -> int:
    """1 for a share of IMAGE_SHARE, otherwise 2 to `longest`, uniform."""
    return 1 if rng.random() < IMAGE_SHARE or longest < 2 else int(rng.integers(2, longest + 1))


def sample_scene(
    rng: np.random.Generator,
    *,
    num_frames: int,
    size: tuple[int, int],
    held_out: bool = False,
    objects: int | None = None,
    second_object: float = SECOND_OBJECT_SHARE,
) -> Scene:
    """A random scene of the world.

    num_frames from 1; size = (width, height); objects is 1 or 2, or None for mostly one: two in a share
    `second_object`, never when held out. With `held_out` the first object is one of the held-out combinations and the
    second is not; without it none is.

    Raises:
        ValueError: another number of objects.
    """
    if objects is None:
        objects = 2 if not held_out and rng.random() < second_object else 1
    if objects not in (1, 2):
        raise ValueError(f"a scene has 1 or 2 objects, not {objects}")
    width, height = size
    while True:
        first = _sample_object(rng, num_frames, size, wanted=held_out)
        background = _other(rng, BACKGROUNDS, first.colour)
        found: tuple[SceneObject, ...] = (first,)
        if objects == 2:
            second = _sample_object(rng, num_frames, size, wanted=False)
            if second.colour in (first.colour, background) or _touch(first, second, num_frames):
                continue
            found = (first, second)
        return Scene(width=width, height=height, num_frames=num_frames, background=background, objects=found)


def _other(rng: np.random.Generator, names: tuple[str, ...], taken: str) -> str:
    names = tuple(name for name in names if name != taken)
    return names[rng.integers(len(names))]


def _touch(first: SceneObject, second: SceneObject, num_frames: int) -> bool:
    a, b = first.path(num_frames), second.path(num_frames)
    gap = np.hypot(a[:, 0] - b[:, 0], a[:, 1] - b[:, 1]) - a[:, 2] - b[:, 2]
    return bool((gap < 0).any())


def _sample_kind(rng: np.random.Generator, num_frames: int, wanted: bool) -> tuple[str, str, str]:
    motions = MOTIONS if num_frames >= MIN_MOVING_FRAMES else ("still",)
    while True:
        kind = (
            SHAPES[rng.integers(len(SHAPES))],
            COLOURS[rng.integers(len(COLOURS))],
            motions[rng.integers(len(motions))],
        )
        if held_out(*kind) == wanted and kind[::2] != ("circle", "spinning"):
            return kind


def _sample_object(rng: np.random.Generator, num_frames: int, size: tuple[int, int], wanted: bool) -> SceneObject:
    shape, colour, motion = _sample_kind(rng, num_frames, wanted)
    shorter = min(size)
    radius = _sample_radius(rng, motion, shorter)
    reach = max(radius) * CORNER[shape]
    room = (size[0] - 2 * reach, size[1] - 2 * reach)  # the width and height within which the centre may move
    least = (LEAST_TRAVEL * size[0], LEAST_TRAVEL * size[1])
    travel, phase, turn = (0.0, 0.0), 0.0, 0.0
    if motion in LINES:
        # One fraction for both sides: a diagonal runs parallel to the frame's own diagonal.
        share = rng.uniform(LEAST_TRAVEL, min(room[axis] / size[axis] for axis in (0, 1) if LINES[motion][axis]))
        travel = (LINES[motion][0] * share * size[0], LINES[motion][1] * share * size[1])
    elif motion in CIRCLING:
        diameter = rng.uniform(min(least), min(room))
        travel = (max(diameter, least[0]), max(diameter, least[1]))
        phase = rng.uniform(0.0, math.tau)
    elif motion == "bouncing":
        travel = (0.0, rng.uniform(least[1], room[1]))
    elif motion == "spinning":
        turn = min(rng.uniform(0.5, 1.0) * math.tau, (num_frames - 1) * SYMMETRY[shape] / 4)
        turn *= 1 if rng.random() < 0.5 else -1
    x, y = (reach + abs(t) / 2 + rng.random() * (r - abs(t)) for t, r in zip(travel, room, strict=True))
    return SceneObject(
        shape=shape, colour=colour, motion=motion, centre=(x, y), travel=travel, radius=radius, phase=phase, turn=turn
    )


def _sample_radius(rng: np.random.Generator, motion: str, shorter: int) -> tuple[float, float]:
    if motion not in ("growing", "shrinking"):
        radius = rng.uniform(SMALLEST, LARGEST) * shorter
        return radius, radius
    less = rng.uniform(SMALLEST, LARGEST / LEAST_GROWTH) * shorter
    more = rng.uniform(less * LEAST_GROWTH, LARGEST * shorter)
    return (less, more) if motion == "growing" else (more, less)
