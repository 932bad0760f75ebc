"""Sizes: rounding up to the grid, latents, tokens, and sizes as text."""

import itertools

import pytest

from dit_video.errors import UsageError
from dit_video.shapes import Grid, LatentShape, VideoShape, parse_size

WAN21 = Grid(stride=(4, 8, 8))
TI2V = Grid(stride=(4, 16, 16))


def video(frames: int, height: int, width: int) -> VideoShape:
    return VideoShape(num_frames=frames, height=height, width=width)


@pytest.mark.parametrize(
    ("grid", "asked", "padded", "latent", "tokens"),
    [
        (WAN21, (48, 360, 640), (49, 368, 640), (13, 46, 80), (13, 23, 40)),
        (WAN21, (81, 480, 832), (81, 480, 832), (21, 60, 104), (21, 30, 52)),
        (WAN21, (1, 16, 16), (1, 16, 16), (1, 2, 2), (1, 1, 1)),
        (WAN21, (2, 17, 33), (5, 32, 48), (2, 4, 6), (2, 2, 3)),
        (TI2V, (121, 704, 1280), (121, 704, 1280), (31, 44, 80), (31, 22, 40)),
        (TI2V, (48, 360, 640), (49, 384, 640), (13, 24, 40), (13, 12, 20)),
    ],
)
def test_known_sizes(grid, asked, padded, latent, tokens):
    shape = video(*asked)
    assert grid.padded(shape) == video(*padded)
    assert grid.latent(shape) == LatentShape(frames=latent[0], height=latent[1], width=latent[2])
    assert grid.tokens(grid.latent(shape)) == tokens


@pytest.mark.parametrize("grid", [WAN21, TI2V, Grid(stride=(8, 32, 32), patch=(1, 1, 1))])
def test_padding_holds_the_video_and_adds_less_than_one_step(grid):
    step = [s * p for s, p in zip(grid.stride, grid.patch, strict=True)]
    for frames, height, width in itertools.product((1, 2, 3, 4, 5, 6, 9, 24, 97), (16, 17, 31, 32, 100), (16, 63, 64)):
        padded = grid.padded(video(frames, height, width))
        extra = (padded.num_frames - frames, padded.height - height, padded.width - width)
        assert all(0 <= more < size for more, size in zip(extra, step, strict=True))
        assert grid.padded(padded) == padded


@pytest.mark.parametrize("text", ["640x360", "640X360", "640×360", " 640 x 360 "])
def test_sizes_as_text(text):
    assert parse_size(text) == (640, 360)


@pytest.mark.parametrize("text", ["", "640", "x", "640x", "640x360x3", "640*360", "-640x360", "64.5x36", "15x16"])
def test_what_is_no_size(text):
    with pytest.raises(UsageError, match="--size"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "pixels", "expected"),
    [
        ((24, 144, 256), 24 * 144 * 256, (24, 144, 256)),  # as it is
        ((25, 64, 64), 20 * 64 * 64, (17, 64, 64)),  # frames alone: 17 is on the grid
        ((97, 360, 640), 150_000, (9, 96, 160)),
        ((1, 1000, 1000), 150_000, (1, 384, 384)),
        ((13, 1000, 20), 100_000, (9, 544, 20)),  # a side that is less than a token stays
        ((9, 640, 640), 10, (9, 32, 32)),  # one token at least
    ],
)
def test_windows_are_the_largest_part_on_the_grid(size, pixels, expected):
    frames, height, width = size
    grid = Grid(stride=(4, 16, 16))
    found = grid.window(VideoShape(num_frames=frames, height=height, width=width), pixels, least_frames=9)
    assert (found.num_frames, found.height, found.width) == expected
