"""New frames beside given ones: counts, windows, seams, and that what is given comes out as it is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dit_video.clip import Settings
from dit_video.extend import Maker, connected, extended
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.shapes import Grid
from dit_video.stages import Stages
from dit_video.windows import Windows, head_frames, sliding

CPU = torch.device("cpu")
WIDTH, HEIGHT = 50, 40
STAGES = Stages(RandomCheckpoint(), dtype=torch.float32, device=CPU, keep=True)


def maker(longest: int = 17) -> Maker:
    return Maker(
        STAGES,
        Settings(steps=1),
        prompt="a",
        negative="",
        seed=3,
        size=(WIDTH, HEIGHT),
        windows=Windows.of(STAGES.checkpoint.grid, longest),
    )


def clip(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, HEIGHT, WIDTH, 3), dtype=np.uint8)


def head(making: Maker, frames: np.ndarray) -> np.ndarray:
    return frames[: head_frames(making.windows)]


@pytest.mark.parametrize("longest", [1, 5, 9, 25, 49, 121])
@pytest.mark.parametrize("stride", [4, 2])
def test_windows_hold_their_frames(longest: int, stride: int):
    windows = Windows.of(Grid(stride=(stride, 16, 16)), longest)
    assert (windows.before - 1) % stride == windows.after % stride == 0 and windows.after > 0
    for count in (1, 2, 3, 4, 5, 16, 17, 40, 100):
        for sides in ((True, False), (False, True), (True, True)):
            last = windows.most(before=True, after=True) if all(sides) else 0
            one_side = {"before": sides[0], "after": sides[1] and not sides[0]}
            parts = windows.parts(count, **one_side, last=last)
            assert sum(parts) == count and min(parts) > 0
            sizes = windows.sizes(count, before=sides[0], after=sides[1])
            assert len(sizes) == len(parts)
            assert all((size - 1) % stride == 0 for size in sizes)
            if longest > 3 * stride:
                assert max(sizes) <= max(windows.longest, windows.before + windows.after + stride)


@pytest.mark.parametrize("length", [1, 3, 4, 6, 21])
@pytest.mark.parametrize(("backward", "forward", "loop"), [(1, 0, 0), (0, 3, 0), (9, 8, 0), (0, 0, 5), (30, 31, 0)])
def test_the_clip_comes_out_as_it_is_with_so_many_frames_more(length: int, backward: int, forward: int, loop: int):
    making, given = maker(), clip(length)
    frames = list(extended(making, given, head(making, given), backward=backward, forward=forward, loop=loop))
    assert len(frames) == backward + length + forward + loop
    assert all(frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8 for frame in frames)
    assert np.array_equal(frames[backward : backward + length], given)


@pytest.mark.parametrize("count", [1, 4, 5, 30])
def test_two_clips_are_joined(count: int):
    making, first, second = maker(), clip(9, 1), clip(12, 2)
    frames = list(connected(making, first, second, head(making, second), count))
    assert len(frames) == 9 + count + 12
    assert np.array_equal(frames[:9], first) and np.array_equal(frames[-12:], second)


def test_a_window_knows_the_frames_at_its_seams_and_only_those():
    """Also where the number of new frames does not fill its last group, which then covers the first of what follows."""
    making, first, second = maker(49), clip(30, 1), clip(30, 2)
    for count in (4, 5, 6, 7):
        given, shape, skipped = making._window(first, count, second)
        before, surplus = making.windows.before, -count % 4
        assert skipped == before == 9
        assert np.array_equal(np.concatenate([given[g] for g in (0, 1, 2)]), first[-9:])
        first_after = 3 + (count + surplus) // 4
        assert sorted(given) == [0, 1, 2, first_after, first_after + 1]
        assert np.array_equal(
            np.concatenate([given[first_after], given[first_after + 1]]), second[surplus : surplus + 8]
        )
        # The frame of the window where the second clip begins: those between are the new ones, and no others.
        assert shape.num_frames - 8 == before + count + surplus
    given, shape, skipped = making._window(None, 6, second)
    assert skipped == 3 and shape.num_frames == 1 + 8 + 8  # 9 frames are made, the last 6 are wanted
    assert np.array_equal(np.concatenate([given[3], given[4]]), second[:8])


def test_every_window_goes_on_from_the_one_before():
    """Windows have seeds of their own, and what a later one makes depends on what the earlier one made."""
    making, given = maker(17), clip(9)
    frames = list(making.after(given, 16))
    assert making.made == 2
    other = maker(17)
    other.seed += 1
    changed = list(other.after(given, 8))
    later = list(maker(17).after(np.stack([*given, *changed]), 8))
    assert not np.array_equal(frames[8:], later)
    again = list(maker(17).after(given, 16))
    assert np.array_equal(frames, again)


@pytest.mark.parametrize("count", [1, 2, 9, 10, 13, 30])
@pytest.mark.parametrize("longest", [9, 17])
def test_a_clip_from_its_beginning_in_windows(count: int, longest: int):
    making = maker(longest)
    frames = list(making.whole(count))
    assert len(frames) == count and making.made == len(making.windows.whole(count))
    sizes = making.windows.whole_sizes(count)
    assert len(sizes) == making.made and all(size % 4 == 1 for size in sizes) and max(sizes) <= longest
    assert sum(making.windows.whole(count)) == count


def test_only_models_that_can_go_on_make_long_clips_in_windows():
    model = RandomCheckpoint(trained_frames=(1, 33))
    assert sliding(model, 33) is None and sliding(model, 34).longest == model.defaults.frames
    assert sliding(model, 34).before == 5
    assert sliding(replace(model, known_frames="first"), 34).before == 1  # what it learnt to be given
    assert sliding(replace(model, known_frames="none"), 34) is None
    assert sliding(replace(model, known_frames="first and last"), 34) is None
    assert sliding(replace(model, known_frames="first or both"), 34, [0]).before == 1
    assert sliding(replace(model, known_frames="first or both"), 34, [0, 9]) is None


def test_memory_does_not_grow_with_the_clip():
    """Frames are asked for one at a time, and new ones come when the clip has ended."""
    making, asked = maker(), []

    def long_clip():
        for number in range(500):
            asked.append(number)
            yield np.full((HEIGHT, WIDTH, 3), number % 256, np.uint8)

    stream = extended(making, long_clip(), clip(4), forward=4)
    assert next(stream)[0, 0, 0] == 0 and len(asked) == 1
    assert sum(1 for _ in stream) == 503 and making.made == 1
