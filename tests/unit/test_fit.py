"""Pictures brought to the size of a video."""

import numpy as np
import pytest

from dit_video.limits import FITS
from dit_video.video import fit
from dit_video.video.fit import fit_frames, what_fits


def picture(width: int, height: int) -> np.ndarray:
    """Red grows to the right, green downwards."""
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
    red, green = np.meshgrid(x, y)
    return np.stack([red, green, np.full_like(red, 9)], axis=-1).round().astype(np.uint8)[None]


@pytest.mark.parametrize("rule", FITS)
@pytest.mark.parametrize("old", [(64, 48), (7, 31), (2000, 3), (33, 100), (20, 16)])
@pytest.mark.parametrize("new", [(64, 48), (48, 64), (17, 19), (16, 160)])
def test_every_rule_gives_exactly_the_size(rule, old, new):
    found = fit_frames(picture(*old), *new, rule)
    assert found.shape == (1, new[1], new[0], 3) and found.dtype == np.uint8
    assert bool(what_fits(old, new, rule)) == (old != new)


def test_the_same_size_is_the_same_picture():
    frames = picture(20, 16)
    assert fit_frames(frames, 20, 16, "cover") is frames


def test_cover_cuts_evenly():
    found = fit_frames(picture(200, 50), 50, 50, "cover")[0, 25, :, 0].astype(int)
    assert abs(found[0] - 255 * 75 / 200) < 3 and abs(found[-1] - 255 * 125 / 200) < 3
    assert what_fits((200, 50), (50, 50), "cover") == "200x50, 150 pixels of its width cut off"


@pytest.mark.parametrize("old", [(3001, 10), (10, 3000), (2000, 1)])
def test_cover_does_not_scale_what_it_cuts_off(old, monkeypatch):
    width, height = fit._scaled_size(*old, 40, 32, "cover")
    whole = fit._scaled(picture(*old), width, height)
    top, left = (height - 32) // 2, (width - 40) // 2
    scaled, sizes = fit._scaled, []
    monkeypatch.setattr(fit, "_scaled", lambda frames, *size: sizes.append(size) or scaled(frames, *size))
    found = fit_frames(picture(*old), 40, 32, "cover").astype(int)
    assert max(sizes[0]) < 5 * fit.WIDE * 40
    assert np.abs(found - whole[:, top : top + 32, left : left + 40]).max() <= 3


def test_contain_shows_all_and_repeats_the_edge():
    found = fit_frames(picture(100, 50), 50, 50, "contain")[0].astype(int)
    assert found[25, 0, 0] < 5 and found[25, -1, 0] > 250
    assert (found[:12] == found[12]).all() and (found[-12:] == found[-13]).all()
    words = what_fits((100, 50), (50, 50), "contain")
    assert words == "scaled from 100x50 to 50x25, its height padded by 25 pixels"


def test_stretch_fills_both_sides():
    found = fit_frames(picture(100, 50), 30, 60, "stretch")[0].astype(int)
    assert found[0, 0, :2].max() < 8 and found[-1, -1, :2].min() > 247
    assert what_fits((100, 50), (30, 60), "stretch") == "scaled from 100x50 to 30x60"
