"""The detector: right on true scenes, clean or damaged, at chance on wrong ones, silent where nothing can be told."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dit_video.scenes.detector import Detection, _largest_pieces, detect, detect_objects, score, score_objects
from dit_video.scenes.render import _edge_distances, render
from dit_video.scenes.world import PALETTE, Scene, SceneObject, sample_scene
from dit_video.video.io import read_video, write_video

Damage = Callable[[np.ndarray], np.ndarray]
FIELDS = ("shape", "colour", "background", "motion", "all")


def scenes(count: int, *, size: tuple[int, int] = (256, 144), num_frames: int = 24, seed: int = 0) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, num_frames=num_frames, size=size, held_out=n % 3 == 0, objects=1) for n in range(count)]


def agreement(
    found: list[Scene], damage: Callable[[np.ndarray], np.ndarray] = lambda frames: frames
) -> dict[str, float]:
    scores = [score(detect(damage(render(scene))), scene) for scene in found]
    return {field: float(np.mean([one[field] for one in scores])) for field in FIELDS}


def damaged(frames: np.ndarray, *, blur: int = 0, noise: float = 0.0, flicker: float = 0.0) -> np.ndarray:
    """Frames blurred `blur` times by a 1-2-1 kernel, with noise per pixel and per frame (sigmas of 255)."""
    rng = np.random.default_rng(frames.sum(dtype=np.int64))
    soft = frames.astype(np.float32)
    for _ in range(blur):
        for axis in (1, 2):
            edge = np.pad(soft, [(int(a == axis),) * 2 for a in range(4)], mode="edge")
            low, middle, high = (np.take(edge, np.arange(k, k + soft.shape[axis]), axis) for k in range(3))
            soft = low / 4 + middle / 2 + high / 4
    soft += rng.normal(0, flicker, (len(frames), 1, 1, 1)) + rng.normal(0, noise, frames.shape)
    return np.clip(soft + 0.5, 0, 255).astype(np.uint8)


def test_true_scenes():
    found = agreement(scenes(60))
    assert min(found.values()) >= 0.99, found


@pytest.mark.parametrize("options", [{"noise": 8.0}, {"blur": 3, "noise": 4.0, "flicker": 3.0}])
def test_damaged_scenes(options: dict):
    found = agreement(scenes(60, size=(128, 72), seed=1), lambda frames: damaged(frames, **options))
    assert min(found.values()) >= 0.98, found


@pytest.mark.parametrize(
    ("size", "num_frames"), [((64, 64), 24), ((64, 36), 24), ((36, 64), 5), ((210, 90), 97), ((640, 360), 9)]
)
def test_other_sizes_and_lengths(size: tuple[int, int], num_frames: int):
    count = 12 if size[0] > 300 else 40
    found = agreement(scenes(count, size=size, num_frames=num_frames, seed=2))
    assert min(found.values()) >= 0.98, found


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"noise": 8.0}, {"blur": 1, "noise": 8.0, "flicker": 3.0}, {"blur": 8}])
def test_many_scenes(options: dict):
    found = agreement(scenes(500, seed=3), lambda frames: damaged(frames, **options))
    assert min(found.values()) >= 0.99, found


def test_compressed_files(tmp_path: Path):
    for n, scene in enumerate(scenes(12, seed=4)):
        written = write_video(tmp_path / f"{n}.mp4", iter(render(scene)), fps=12)
        assert score(detect(read_video(written.path)[0]), scene)["all"], scene


def test_images_and_short_clips_are_still():
    for num_frames in (1, 2, 4):
        assert agreement(scenes(20, num_frames=num_frames))["all"] == 1
    moving = next(scene for scene in scenes(50) if scene.objects[0].motion == "moving right")
    assert detect(render(moving)[::7]).motion is None


def test_shuffled_captions_are_at_chance():
    found = scenes(100, size=(128, 72), num_frames=12, seed=5)
    detections = [detect(render(scene)) for scene in found]
    pairs = [(a, b) for n, a in enumerate(detections) for m, b in enumerate(found) if n != m]
    share = {field: np.mean([score(a, b)[field] for a, b in pairs]) for field in FIELDS}
    chance = {}  # of two different draws being alike, from how often each value occurs
    for field in FIELDS[:-1]:
        values = Counter(s.background if field == "background" else getattr(s.objects[0], field) for s in found)
        chance[field] = sum(n * (n - 1) for n in values.values()) / (len(found) * (len(found) - 1))
        assert share[field] == pytest.approx(chance[field], abs=0.01)
    assert share["all"] < 0.01


def test_the_larger_of_two_objects_is_told_and_equals_are_not():
    rng = np.random.default_rng(6)
    told = 0
    for _ in range(40):
        scene = sample_scene(rng, num_frames=9, size=(128, 72), objects=2)
        found = detect(render(scene))
        assert found.background == scene.background
        frames = render(scene).reshape(-1, 3)
        area = {thing.colour: int((frames == PALETTE[thing.colour]).all(1).sum()) for thing in scene.objects}
        assert found.colour in (None, max(area, key=lambda colour: area[colour]))
        if found.colour is not None:
            (thing,) = (o for o in scene.objects if o.colour == found.colour)
            assert (found.shape, found.motion) == (thing.shape, thing.motion)
            told += 1
    assert told > 15


def pairs(count: int, *, size: tuple[int, int] = (128, 72), num_frames: int = 12, seed: int = 7) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [sample_scene(rng, num_frames=num_frames, size=size, held_out=n % 3 == 0, objects=2) for n in range(count)]


def wrong_answers(found: tuple[Detection, ...], scene: Scene) -> list[str]:
    """What was answered, and not as it is; None is no answer."""
    wrong = ["background"] if found[0].background not in (None, scene.background) else []
    things = {thing.colour: thing for thing in scene.objects}
    for one in found:
        if one.colour is None:
            wrong += [field for field in ("shape", "motion") if getattr(one, field) is not None]
        elif one.colour not in things:
            wrong.append("colour")
        else:
            thing = things[one.colour]
            wrong += [
                field for field in ("shape", "motion") if getattr(one, field) not in (None, getattr(thing, field))
            ]
    return wrong


@pytest.mark.parametrize(
    "options", [{}, {"noise": 8.0}, {"blur": 3, "noise": 4.0, "flicker": 3.0}], ids=["clean", "noise", "blur"]
)
def test_both_objects_are_told(options: dict):
    right = []
    for scene in pairs(40):
        found = detect_objects(damaged(render(scene), **options), 2)
        assert len({one.colour for one in found}) == 2 and wrong_answers(found, scene) == [], scene
        right.append(score_objects(found, scene)["all"])
    assert np.mean(right) >= 0.97


@pytest.mark.parametrize(
    ("size", "num_frames"), [((48, 48), 24), ((36, 64), 5), ((210, 90), 97), ((128, 72), 1), ((640, 360), 9)]
)
def test_both_objects_are_told_at_other_sizes_and_lengths(size: tuple[int, int], num_frames: int):
    for scene in pairs(8, size=size, num_frames=num_frames):
        found = detect_objects(render(scene), 2)
        assert score_objects(found, scene)["all"] and wrong_answers(found, scene) == [], scene


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"noise": 8.0}, {"blur": 1, "noise": 8.0, "flicker": 3.0}, {"blur": 8}])
def test_many_pairs(options: dict):
    for scene in pairs(200, size=(256, 144), num_frames=24):
        found = detect_objects(damaged(render(scene), **options), 2)
        assert score_objects(found, scene)["all"] and wrong_answers(found, scene) == [], scene


def test_both_objects_are_told_in_compressed_files(tmp_path: Path):
    for n, scene in enumerate(pairs(6, size=(256, 144), num_frames=24)):
        written = write_video(tmp_path / f"{n}.mp4", iter(render(scene)), fps=12)
        found = detect_objects(read_video(written.path)[0], 2)
        assert score_objects(found, scene)["all"] and wrong_answers(found, scene) == [], scene


@pytest.mark.parametrize("blur", [0, 3])
def test_an_object_alone_has_no_second(blur: int):
    for scene in scenes(25, size=(160, 90), num_frames=9, seed=8):
        frames = damaged(render(scene), blur=blur)
        found = detect_objects(frames, 2)
        assert found[0] == detect(frames) and score_objects(found, scene)["all"]
        assert found[1] == Detection(shape=None, colour=None, background=scene.background, motion=None)


def thing(shape: str, colour: str, x: float, radius: float) -> SceneObject:
    """It moves up, from 84 to 60 in a frame 144 high."""
    travel = (0.0, -48.0)
    return SceneObject(
        shape=shape, colour=colour, motion="moving up", centre=(x, 72), radius=(radius, radius), travel=travel
    )


@pytest.mark.parametrize("blur", [0, 4])
@pytest.mark.parametrize(
    ("background", "large", "small"),
    # the small one's colour is nearly between the others, so that it is also that of the large one's edge
    [("red", "yellow", "orange"), ("yellow", "red", "orange"), ("blue", "red", "purple")],
)
def test_colours_on_edges_and_objects_side_by_side(blur: int, background: str, large: str, small: str):
    things = (thing("star", large, 80, 34), thing("circle", small, 80 + 34 + 17, 16))  # a pixel from each other
    scene = Scene(width=256, height=144, num_frames=9, background=background, objects=things)
    frames = damaged(render(scene), blur=blur)
    found = detect_objects(frames, 2)
    assert score_objects(found, scene)["all"], found
    assert [one.colour for one in found] == [large, small]


def test_specks_are_no_second_object():
    frames = drawn(filled("star"))
    frames[3:9, 10:18, 10:18] = PALETTE["green"]  # in some of the frames
    frames[:, 5, 5:10] = PALETTE["blue"]  # in all of them, and tiny
    found = detect_objects(frames, 2)
    assert (found[0].colour, found[0].shape, found[1].colour) == ("red", "star", None)
    frames[:, 10:22, 10:22] = PALETTE["green"]
    frames[:, 80:92, 10:22] = PALETTE["blue"]  # a third is as large as the second
    assert [one.colour for one in detect_objects(frames, 2)] == ["red", None]


def test_objects_are_scored_by_their_colours():
    first, second = thing("star", "red", 60, 20), thing("circle", "blue", 180, 20)
    scene = Scene(width=256, height=144, num_frames=9, background="gray", objects=(first, second))
    red, blue = (
        Detection(shape=one.shape, colour=one.colour, background="gray", motion=one.motion) for one in scene.objects
    )
    assert score_objects((red, blue), scene) == score_objects((blue, red), scene) == dict.fromkeys(FIELDS, True)
    round_star = replace(red, shape="circle")
    assert score_objects((blue, round_star), scene) == dict.fromkeys(FIELDS, True) | {"shape": False, "all": False}
    exchanged = replace(red, colour="blue"), replace(blue, colour="red")
    assert score_objects(exchanged, scene) == dict.fromkeys(FIELDS, True) | {"shape": False, "all": False}
    alone = blue, Detection(shape=None, colour=None, background="gray", motion=None)
    assert score_objects(alone, scene) == dict.fromkeys(FIELDS, False) | {"background": True}


# What is not of the world: masks are drawn from an inside test over offsets from the object's centre.

Inside = Callable[[np.ndarray, np.ndarray, float], np.ndarray]


def drawn(
    inside: Inside, place: Callable[[float], tuple[float, float]] | None = None, colour: str | tuple = "red"
) -> np.ndarray:
    """24 frames of 192x108 on gray; `place` maps clip time to fractions of the frame (default: moving right)."""
    width, height, fine = 192, 108, 3
    y, x = (np.mgrid[: height * fine, : width * fine] + 0.5) / fine
    low, high = np.array(PALETTE["gray"]), np.array(PALETTE[colour] if isinstance(colour, str) else colour)
    frames = []
    for u in np.linspace(0, 1, 24):
        at_x, at_y = place(u) if place else (0.3 + 0.4 * u, 0.5)
        mask = inside(x - at_x * width, y - at_y * height, u).astype(float)
        share = mask.reshape(height, fine, width, fine).mean((1, 3))[..., None]
        frames.append(low + share * (high - low))
    return (np.array(frames) + 0.5).astype(np.uint8)


def filled(shape: str, radius: float = 20.0) -> Inside:
    return lambda x, y, u: np.max(np.broadcast_arrays(*_edge_distances(shape, x, y, radius)), axis=0) < 0


def turning(shape: str, angle: Callable[[float], float]) -> Inside:
    def inside(x: np.ndarray, y: np.ndarray, u: float) -> np.ndarray:
        cos, sin = np.cos(angle(u)), np.sin(angle(u))
        return filled(shape)(x * cos + y * sin, y * cos - x * sin, u)

    return inside


def polygon(corners: int) -> Inside:
    def inside(x: np.ndarray, y: np.ndarray, u: float) -> np.ndarray:
        wedge = np.arctan2(y, x) % (2 * np.pi / corners) - np.pi / corners
        return np.hypot(x, y) * np.cos(wedge) < 20 * np.cos(np.pi / corners)

    return inside


def star(points: int, waist: float) -> Inside:
    def inside(x: np.ndarray, y: np.ndarray, u: float) -> np.ndarray:
        saw = np.abs((np.arctan2(y, x) / (2 * np.pi / points)) % 1 * 2 - 1)
        return np.hypot(x, y) < 26 * (waist + (1 - waist) * saw)

    return inside


def lumps(seed: int) -> Inside:
    strength, phase = np.random.default_rng(seed).normal(0, 1, (2, 6))

    def inside(x: np.ndarray, y: np.ndarray, u: float) -> np.ndarray:
        angle = np.arctan2(y, x)
        waves = sum(0.1 * strength[k] * np.cos((k + 2) * angle + 3 * phase[k] + u) for k in range(6))
        return np.hypot(x, y) < 22 * (1 + waves)

    return inside


def test_the_drawing_used_here_is_of_the_world_when_it_should_be():
    for shape in ("circle", "square", "triangle", "star"):
        expected = Detection(shape=shape, colour="red", background="gray", motion="moving right")
        assert detect(drawn(filled(shape))) == expected
    assert detect(drawn(turning("star", lambda u: 4 * u), lambda u: (0.5, 0.5))).motion == "spinning"


@pytest.mark.parametrize(
    "inside",
    [
        pytest.param(lambda x, y, u: (x / 26) ** 2 + (y / 20) ** 2 < 1, id="ellipse"),
        pytest.param(lambda x, y, u: (abs(x) < 26) & (abs(y) < 19), id="rectangle"),
        pytest.param(lambda x, y, u: (abs(x) / 20) ** 3 + (abs(y) / 20) ** 3 < 1, id="between circle and square"),
        pytest.param(lambda x, y, u: (x > -14) & (y > -14) & (x + y < 12), id="right triangle"),
        pytest.param(lambda x, y, u: (x**2 + y**2 < 600) & (y < 0), id="half disc"),
        pytest.param(lambda x, y, u: (x**2 + y**2 < 500) & (x**2 + y**2 > 150), id="ring"),
        pytest.param(polygon(5), id="pentagon"),
        pytest.param(star(4, 0.45), id="four-pointed star"),
        pytest.param(star(6, 0.45), id="six-pointed star"),
        pytest.param(star(5, 0.65), id="fat star"),
        pytest.param(lambda x, y, u: filled("square" if u < 0.5 else "circle")(x, y, u), id="square, then circle"),
        pytest.param(lambda x, y, u: filled("triangle" if u < 0.5 else "star")(x, y, u), id="triangle, then star"),
        pytest.param(lambda x, y, u: filled("star")(x - 25, y, u) | filled("star")(x + 30, y, u), id="two stars"),
    ],
)
def test_other_shapes_have_no_name(inside: Inside):
    found = detect(drawn(inside))
    assert found.shape is None and found.colour == "red" and found.background == "gray"


def test_lumps_have_no_name():
    assert [detect(drawn(lumps(seed))).shape for seed in range(6)] == [None] * 6


@pytest.mark.parametrize(
    "place",
    [
        pytest.param(lambda u: (0.3 + 0.4 * abs(2 * u - 1), 0.5), id="there and back"),
        pytest.param(lambda u: (0.3 if u < 0.5 else 0.7, 0.5), id="jumps across"),
        pytest.param(lambda u: (0.3 + 0.4 * min(2 * u, 1), 0.5), id="stops halfway"),
        pytest.param(lambda u: (0.5 + 0.1 * np.sin(400 * u), 0.5 + 0.1 * np.cos(777 * u)), id="jitters"),
        pytest.param(lambda u: (0.5 + 0.12 * u, 0.5), id="hardly moves"),
        pytest.param(lambda u: (0.4 + 0.12 * u, 0.3 + 0.35 * u), id="neither down nor diagonal"),
        pytest.param(lambda u: (0.5 + 0.2 * np.cos(np.pi * u), 0.5 + 0.2 * np.sin(np.pi * u)), id="half a circle"),
        pytest.param(lambda u: (0.5 + 0.2 * np.cos(12.6 * u), 0.5 + 0.2 * np.sin(12.6 * u)), id="two circles"),
        pytest.param(lambda u: (0.5, 0.3 + 0.3 * abs(np.cos(np.pi * u))), id="one bounce from below"),
    ],
)
def test_other_motions_have_no_name(place: Callable[[float], tuple[float, float]]):
    found = detect(drawn(filled("star"), place))
    assert found == Detection(shape="star", colour="red", background="gray", motion=None)


def test_two_motions_at_once_have_no_name():
    assert detect(drawn(turning("square", lambda u: 3 * u))).motion is None
    grown = drawn(lambda x, y, u: filled("star", 12 + 10 * u)(x, y, u))
    assert detect(grown).motion is None and detect(grown).shape == "star"


@pytest.mark.parametrize("shape", ["square", "triangle", "star"])
def test_rotation_is_measured(shape: str):
    def motion(angle: Callable[[float], float]) -> str | None:
        return detect(drawn(turning(shape, angle), lambda u: (0.5, 0.5))).motion

    assert motion(lambda u: 0.3) == "still"
    assert motion(lambda u: 0.2 * u) == "still"
    assert motion(lambda u: 0.15 * np.sin(6 * u)) == "still"
    assert motion(lambda u: 0.8 * u) is None
    assert motion(lambda u: 2.0 * u) == motion(lambda u: -5.0 * u) == "spinning"


def test_colours_off_the_palette_have_no_name():
    for colour in ((200, 130, 130), (0, 255, 255), (90, 60, 30)):
        assert detect(drawn(filled("star"), colour=colour)).colour is None
    assert detect(drawn(filled("star"), colour=(210, 45, 40))).colour == "red"
    teal = render(scenes(1)[0]) * 0 + np.array([0, 90, 90], np.uint8)
    assert detect(teal).background is None


def test_clips_of_nothing():
    noise = np.random.default_rng(0).integers(0, 256, (24, 72, 128, 3)).astype(np.uint8)
    assert detect(noise) == Detection(shape=None, colour=None, background=None, motion=None)
    plain = np.full((24, 72, 128, 3), 128, np.uint8)
    assert detect(plain) == Detection(shape=None, colour=None, background="gray", motion=None)
    shown = drawn(filled("star"))
    shown[10:20] = PALETTE["gray"]  # gone for a while
    assert detect(shown) == Detection(shape=None, colour="red", background="gray", motion=None)


def test_bad_frames_are_refused():
    for frames in (np.zeros((8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.float32), np.zeros((0, 8, 8, 3), np.uint8)):
        with pytest.raises(ValueError, match="uint8"):
            detect(frames)
    with pytest.raises(ValueError, match="count"):
        detect_objects(np.zeros((1, 8, 8, 3), np.uint8), 0)


def test_score_is_per_field():
    scene = scenes(1)[0]
    thing = scene.objects[0]
    right = Detection(shape=thing.shape, colour=thing.colour, background=scene.background, motion=thing.motion)
    assert score(right, scene) == dict.fromkeys(FIELDS, True)
    silent = Detection(shape=None, colour=thing.colour, background=scene.background, motion=None)
    assert score(silent, scene) == dict(shape=False, colour=True, background=True, motion=False, all=False)


def flood(mask: np.ndarray) -> tuple[int, list[int]]:
    """The largest 4-connected piece of one (H, W) mask, by walking over it: area and box."""
    left, best = set(zip(*np.nonzero(mask), strict=True)), []
    while left:
        piece = [left.pop()]
        for y, x in piece:
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & left
            left -= near
            piece += near
        best = max(best, piece, key=len)
    if not best:
        return 0, [0, 0, 0, 0]
    y, x = np.array(best).T
    return len(best), [x.min(), y.min(), x.max() + 1, y.max() + 1]


@pytest.mark.parametrize("density", [0.0, 0.3, 0.6, 0.9, 1.0])
def test_largest_pieces_equal_a_walk(density: float):
    masks = np.random.default_rng(1).random((6, 17, 23)) < density
    area, box = _largest_pieces(masks)
    for n, mask in enumerate(masks):
        expected = flood(mask)
        assert area[n] == expected[0]
        assert np.sum(area == 0) or (masks[n, box[n, 1] : box[n, 3], box[n, 0] : box[n, 2]]).sum() >= area[n]
        if density >= 0.6 or density == 0:  # otherwise several pieces may be equally large
            assert box[n].tolist() == expected[1]
