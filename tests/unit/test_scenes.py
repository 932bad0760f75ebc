"""The training world: what it promises about its scenes, their pixels, their captions and their files."""

import dataclasses
import itertools
from collections import Counter
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest

from dit_video.errors import MediaError, UsageError
from dit_video.scenes import captions, world
from dit_video.scenes.captions import caption, tokenize, words
from dit_video.scenes.files import write_scenes
from dit_video.scenes.render import boxes, coverage, render
from dit_video.scenes.world import (
    COLOURS,
    CORNER,
    LINES,
    MOTIONS,
    PALETTE,
    SHAPES,
    SYMMETRY,
    Scene,
    SceneObject,
    held_out,
    sample_num_frames,
    sample_scene,
    sample_size,
)
from dit_video.video.io import read_video


def scenes(count: int, seed: int = 0, **options) -> list[Scene]:
    rng = np.random.default_rng(seed)
    return [
        sample_scene(
            rng,
            num_frames=options.get("num_frames") or sample_num_frames(rng),
            size=options.get("size") or sample_size(rng),
            **{key: value for key, value in options.items() if key not in ("num_frames", "size")},
        )
        for _ in range(count)
    ]


def resting(shape: str = "square", **changes) -> Scene:
    thing = SceneObject(shape=shape, colour="red", motion="still", centre=(32.0, 24.0), radius=(10.0, 10.0))
    scene = Scene(width=64, height=48, num_frames=1, background="blue", objects=(thing,))
    return dataclasses.replace(scene, objects=(dataclasses.replace(thing, **changes),))


# The hold-out rule.


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (("circle", "red", "still"), True),  # 0
        (("circle", "green", "still"), False),  # 5
        (("circle", "green", "moving up-left"), True),  # 5 + 35
        (("square", "red", "circling clockwise"), False),  # 3 + 63
        (("square", "yellow", "circling counterclockwise"), False),  # 3 + 15 + 70
        (("triangle", "blue", "moving right"), True),  # 6 + 10 + 14
        (("star", "black", "spinning"), False),  # 9 + 35 + 98
        (("star", "white", "growing"), False),  # 9 + 30 + 84
        (("star", "white", "shrinking"), True),  # 9 + 30 + 91
    ],
)
def test_hold_out_rule(kind: tuple[str, str, str], expected: bool):
    assert held_out(*kind) == expected


def test_a_tenth_is_held_out_and_never_sampled():
    kinds = list(itertools.product(SHAPES, COLOURS, MOTIONS))
    assert 0.07 < np.mean([held_out(*kind) for kind in kinds]) < 0.13
    seen = Counter((o.shape, o.colour, o.motion) for scene in scenes(6000, num_frames=9) for o in scene.objects)
    assert not any(held_out(*kind) for kind in seen)
    assert set(seen) == {k for k in kinds if not held_out(*k) and k[::2] != ("circle", "spinning")}
    kept = {(o.shape, o.colour, o.motion) for s in scenes(1500, num_frames=9, held_out=True) for o in s.objects[:1]}
    assert kept == {k for k in kinds if held_out(*k) and k[::2] != ("circle", "spinning")}


# Geometry.


def test_objects_stay_in_the_frame():
    for scene in scenes(800):
        for thing in scene.objects:
            path = thing.path(scene.num_frames)
            reach = path[:, 2] * CORNER[thing.shape]
            assert (path[:, :2] - reach[:, None] >= -1e-6).all()
            assert (path[:, :2] + reach[:, None] <= np.array([scene.width, scene.height]) + 1e-6).all()


def test_moving_objects_cover_a_quarter_of_each_side_they_move_along():
    for scene in scenes(800, num_frames=24):
        for thing in scene.objects:
            covered = np.ptp(thing.path(24)[:, :2], axis=0) / (scene.width, scene.height)
            along = LINES.get(thing.motion, (0, 0))
            if thing.motion == "bouncing":
                along = (0, 1)
            if thing.motion.startswith("circling"):
                along = (1, 1)
            assert (covered[np.array(along) != 0] >= 0.25).all(), thing
            assert (covered[np.array(along) == 0] == 0).all(), thing


@pytest.mark.parametrize("motion", list(LINES))
def test_lines_go_where_their_name_says(motion: str):
    found = [s.objects[0] for s in scenes(600, num_frames=5, objects=1) if s.objects[0].motion == motion]
    name = motion.removeprefix("moving ")
    for thing in found:
        step = np.sign(thing.path(5)[-1, :2] - thing.path(5)[0, :2])
        assert tuple(step) == (("right" in name) - ("left" in name), ("down" in name) - ("up" in name))
    assert len(found) > 5


def test_circling_turns_once_the_way_it_says():
    for scene in scenes(300, num_frames=25, objects=1):
        thing = scene.objects[0]
        if not thing.motion.startswith("circling"):
            continue
        xy = thing.path(25)[:, :2] - thing.centre
        cross = xy[:-1, 0] * xy[1:, 1] - xy[:-1, 1] * xy[1:, 0]
        # With y down a positive cross product is clockwise on the screen.
        assert (np.sign(cross) == (1 if thing.motion == "circling clockwise" else -1)).all()
        assert np.allclose(xy[0], xy[-1])


def test_bouncing_touches_the_floor_twice():
    thing = SceneObject(
        shape="star", colour="red", motion="bouncing", centre=(50.0, 40.0), travel=(0.0, 20.0), radius=(5.0, 5.0)
    )
    y = thing.path(25)[:, 1]
    assert np.allclose(y[[0, 6, 12, 18, 24]], [30, 50, 30, 50, 30])


def test_sizes_and_growth():
    for scene in scenes(800):
        shorter = min(scene.width, scene.height)
        for index, thing in enumerate(scene.objects):
            first, last = thing.radius
            assert 0.1 * shorter <= min(thing.radius) <= max(thing.radius) <= 0.25 * shorter + 1e-9
            growth = {"growing": last / first, "shrinking": first / last}.get(thing.motion)
            assert growth is None or growth >= 1.6 - 1e-9
            assert growth is not None or first == last
            word = "small" if first / shorter <= 0.14 else "large" if first / shorter >= 0.18 else None
            assert scene.size_word(index) == word


def test_spinning_is_told_apart_in_clips_of_any_length():
    for num_frames in (5, 9, 24, 97):
        for scene in scenes(200, num_frames=num_frames, objects=1):
            thing = scene.objects[0]
            assert (thing.turn != 0) == (thing.motion == "spinning")
            if thing.motion == "spinning":
                assert abs(thing.turn) / (num_frames - 1) <= SYMMETRY[thing.shape] / 4 + 1e-9
                assert num_frames < 24 or np.pi <= abs(thing.turn) <= 2 * np.pi


def test_timing_is_relative_to_the_clip():
    for scene in scenes(50, num_frames=25):
        thing = scene.objects[0]
        assert np.allclose(thing.path(97)[::4], thing.path(25))


def test_short_clips_are_still():
    assert {o.motion for n in (1, 2, 4) for s in scenes(50, num_frames=n) for o in s.objects} == {"still"}
    assert len({s.objects[0].motion for s in scenes(300, num_frames=5)}) == len(MOTIONS)


def test_second_objects():
    found = scenes(1500, num_frames=9)
    two = [scene for scene in found if len(scene.objects) == 2]
    assert 0.08 < len(two) / len(found) < 0.16
    for scene in two:
        assert len({scene.background, *(o.colour for o in scene.objects)}) == 3
        a, b = (o.path(9) for o in scene.objects)
        assert (np.hypot(*(a - b)[:, :2].T) >= a[:, 2] + b[:, 2]).all()
    assert all(scene.objects[0].colour != scene.background for scene in found)
    with pytest.raises(ValueError, match="not 3"):
        scenes(1, objects=3)


def test_sizes_of_clips():
    rng = np.random.default_rng(0)
    sizes = np.array([sample_size(rng) for _ in range(2000)])
    assert sizes.min() >= 32 and sizes.max() <= 640
    aspect = sizes[:, 0] / sizes[:, 1]
    assert 9 / 16 <= aspect.min() < 0.6 and 2.2 < aspect.max() <= 21 / 9
    stepped = np.array([sample_size(rng, smallest=64, largest=256, multiple=16) for _ in range(200)])
    assert (stepped % 16 == 0).all() and stepped.min() >= 64 and stepped.max() <= 256
    lengths = [sample_num_frames(rng) for _ in range(2000)]
    assert min(lengths) == 1 and max(lengths) == world.MAX_FRAMES
    with pytest.raises(ValueError, match="steps of 16"):
        sample_size(rng, smallest=30, multiple=16)


def test_the_same_generator_gives_the_same_scene():
    assert scenes(20, seed=3) == scenes(20, seed=3) != scenes(20, seed=4)


# Pixels.


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ("circle", np.pi),
        ("square", (2 * 0.9) ** 2),
        ("triangle", 3 * np.sqrt(3) / 4 * 1.35**2),
        ("star", 5 * 0.45 * np.sin(np.pi / 5) * 1.35**2),
    ],
)
def test_coverage_is_exact_in_area(shape: str, area: float):
    x = np.arange(-40, 40, dtype=np.float32)[None, :] + 0.37
    for angle in (None, np.array(0.4)):
        found = coverage(shape, x, x.T - 0.2, np.float32(20), angle).sum()
        assert found == pytest.approx(area * 20**2, rel=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_coverage_agrees_with_many_samples_per_pixel(shape: str):
    fine = 8
    inside = coverage(
        shape,
        ((np.arange(64 * fine, dtype=np.float32) + 0.5) / fine - 32.3)[None, :],
        ((np.arange(48 * fine, dtype=np.float32) + 0.5) / fine - 24.6)[:, None],
        np.float32(10),
        soft=1e-3,
    )
    exact = inside.reshape(48, fine, 64, fine).mean((1, 3))[..., None]
    red, blue = np.array(PALETTE["red"]), np.array(PALETTE["blue"])
    frame = render(resting(shape, centre=(32.3, 24.6)))[0]
    error = np.abs(frame - (blue + exact * (red - blue))).max(-1)
    assert error.max() < 0.17 * 195 and error.mean() < 0.2  # red and blue differ by at most 195 in a channel


def test_squares_on_the_grid_are_sharp():
    frame = render(resting("square", radius=(10 / 0.9, 10 / 0.9)))[0]
    assert (frame[14:34, 22:42] == PALETTE["red"]).all()
    frame[14:34, 22:42] = PALETTE["blue"]
    assert (frame == PALETTE["blue"]).all()


def test_turning_by_the_symmetry_changes_nothing():
    for shape, symmetry in SYMMETRY.items():
        turned = resting(shape, motion="spinning", turn=symmetry)
        frames = render(dataclasses.replace(turned, num_frames=3)).astype(int)
        assert np.abs(frames[0] - frames[2]).max() <= 1
        assert np.abs(frames[0] - frames[1]).max() > 100


def test_render_and_boxes_agree():
    for scene in scenes(120, num_frames=9, size=(150, 97)):
        frames, box = render(scene), boxes(scene)
        assert frames.shape == (9, 97, 150, 3) and frames.dtype == np.uint8
        assert box.shape == (9, len(scene.objects), 4)
        outside = np.ones(frames.shape[:3], bool)
        for t, n in np.ndindex(box.shape[:2]):
            x0, y0, x1, y1 = box[t, n]
            outside[t, max(y0 - 1, 0) : y1 + 1, max(x0 - 1, 0) : x1 + 1] = False
            colour = np.abs(frames[t, y0:y1, x0:x1].astype(int) - PALETTE[scene.objects[n].colour]).sum(-1) == 0
            assert colour.mean() > 0.2
            # The object reaches to within a pixel of each side of its box; fractions of a pixel may round to nothing.
            changed = (frames[t, y0:y1, x0:x1] != PALETTE[scene.background]).any(-1)
            assert changed[:2].any() and changed[-2:].any() and changed[:, :2].any() and changed[:, -2:].any()
        assert (frames[outside] == PALETTE[scene.background]).all()


def test_palette_colours_are_far_apart():
    values = np.array(list(PALETTE.values()), float)
    distance = np.linalg.norm(values[:, None] - values, axis=-1)
    assert set(PALETTE) == set(world.BACKGROUNDS)
    assert distance[~np.eye(len(values), dtype=bool)].min() >= 95


def test_a_still_object_leaves_a_moving_one_alone():
    ball = SceneObject(
        shape="circle", colour="red", motion="moving right", centre=(32.0, 12.0), travel=(30.0, 0.0), radius=(8.0, 8.0)
    )
    block = SceneObject(shape="square", colour="white", motion="still", centre=(32.0, 30.0), radius=(9.0, 9.0))
    both, alone = (
        render(Scene(width=64, height=48, num_frames=5, background="blue", objects=objects))
        for objects in ((ball, block), (ball,))
    )
    assert (both[:, :20] == alone[:, :20]).all()


# Captions.


@lru_cache
def all_captions(kept: bool, count: int = 6000) -> list[tuple[Scene, str]]:
    rng = np.random.default_rng(5)
    lengths = (1, 9, 9, 9)
    found = [sample_scene(rng, num_frames=lengths[n % 4], size=(64, 64)) for n in range(count)]
    return [(scene, caption(scene, rng, held_out=kept)) for scene in found]


def test_captions_use_exactly_the_vocabulary():
    used = {word for kept in (False, True) for _, text in all_captions(kept) for word in tokenize(text)}
    assert used == set(words())
    assert words() == sorted(set(words()))


def test_held_out_wordings_have_no_words_of_their_own():
    trained = {word for _, text in all_captions(False) for word in tokenize(text)}
    assert {word for _, text in all_captions(True) for word in tokenize(text)} <= trained


def test_held_out_wordings_are_never_trained():
    for key, kept in captions.HELD_OUT_TEMPLATES.items():
        assert not set(kept) & set(captions.TEMPLATES[key])
    assert not {text for _, text in all_captions(True)} & {text for _, text in all_captions(False)}


def test_captions_are_clean_text():
    for kept in (False, True):
        for _, text in all_captions(kept):
            assert text == text.lower().strip() and "  " not in text and "{" not in text
            letters = tokenize(text)
            for word, following in itertools.pairwise(letters):
                assert word not in ("a", "an") or (word == "an") == (following[0] in "aeiou"), text


def test_captions_name_what_is_there():
    grey, violet = {"gray", "grey"}, {"purple", "violet"}
    synonyms = {colour: {colour} for colour in COLOURS} | {"gray": grey, "purple": violet}
    nouns = {"circle": {"ball", "circle", "disc"}, "square": {"square", "block"}, "triangle": {"triangle"}}
    for kept in (False, True):
        for scene, text in all_captions(kept):
            said = set(tokenize(text))
            for thing in scene.objects:
                assert synonyms[thing.colour] & said, text
                assert nouns.get(thing.shape, {"star"}) & said, text
            named = {scene.background, *(o.colour for o in scene.objects)}
            assert {c for c, names in synonyms.items() if names & said} == named, text


MOTION_STEMS = (
    "mov slid drift glid travel go fl circ orbit bounc hop jump gr get becom expand shrink contract spin rotat"
)


def test_images_do_not_move_in_words():
    stems = tuple(stem for stem in MOTION_STEMS.split() if stem not in ("gr", "circ"))
    for kept in (False, True):
        for scene, text in all_captions(kept):
            speaks = any(word.startswith(stems) or word in ("still", "stays", "rest") for word in tokenize(text))
            assert scene.num_frames > 1 or not speaks, text


@pytest.mark.parametrize("motion", MOTIONS)
def test_each_motion_has_words_of_its_own(motion: str):
    """No phrase of one motion is a phrase of another, so a caption never means two."""
    rng = np.random.default_rng(0)

    def phrases(name: str) -> set[tuple[str, str]]:
        thing = SceneObject(shape="star", colour="red", motion=name, centre=(0, 0), radius=(1, 1))
        return {captions._motion_phrase(thing, rng) for _ in range(400)}

    mine = phrases(motion)
    assert len(mine) >= 4
    assert not mine & set().union(*(phrases(name) for name in MOTIONS if name != motion))


def test_captions_are_many():
    thing = dataclasses.replace(resting("star").objects[0], motion="moving left")
    scene = dataclasses.replace(resting("star"), num_frames=24, objects=(thing,))
    rng = np.random.default_rng(0)
    assert len({caption(scene, rng) for _ in range(1000)}) > 500


# Files.


def test_files_come_with_captions_and_depend_on_seed_and_number_alone(tmp_path: Path):
    some = list(write_scenes(tmp_path / "a", 3, 7, size=(64, 48), num_frames=6))
    more = list(write_scenes(tmp_path / "b", 4, 7, size=(64, 48), num_frames=6))
    assert [p.name for p in more] == ["000000.mp4", "000001.mp4", "000002.mp4", "000003.mp4"]
    for a, b in zip(some, more[:3], strict=True):
        assert a.read_bytes() == b.read_bytes()
        assert a.with_suffix(".txt").read_text() == b.with_suffix(".txt").read_text()
    assert set(tokenize(more[3].with_suffix(".txt").read_text())) <= set(words())
    frames, fps = read_video(more[3])
    assert frames.shape == (6, 48, 64, 3) and fps == 12
    assert len(list((tmp_path / "b").iterdir())) == 8  # nothing temporary is left


def test_one_frame_is_a_png_with_the_exact_pixels(tmp_path: Path):
    (path,) = write_scenes(tmp_path / "images", 1, 0, size=(40, 33), num_frames=1)
    assert path.name == "000000.png"
    expected = render(sample_scene(np.random.default_rng((0, 0)), num_frames=1, size=(40, 33)))
    assert (read_video(path)[0] == expected).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "at least 1"),
        ({"seed": -1}, "nearest is 0"),
        ({"size": (20, 700)}, "nearest is 32x640"),
        ({"num_frames": 98}, "nearest is 97"),
    ],
)
def test_what_the_world_does_not_have_is_refused(tmp_path: Path, options: dict, message: str):
    with pytest.raises(UsageError, match=message):
        write_scenes(tmp_path / "new", **({"count": 1, "seed": 0} | options))
    assert not (tmp_path / "new").exists()


def test_folders_are_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(MediaError, match="does not exist"):
        write_scenes(tmp_path / "missing" / "new", 1, 0)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(MediaError, match="new or empty folder"):
        write_scenes(tmp_path / "full", 1, 0)
    with pytest.raises(MediaError, match="is a file"):
        write_scenes(tmp_path / "full" / "file", 1, 0)
    list(write_scenes(tmp_path / "full", 1, 0, size=(32, 32), num_frames=1, overwrite=True))
    assert (tmp_path / "full" / "000000.txt").exists()
