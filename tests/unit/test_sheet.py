"""Contact sheets of clips."""

from pathlib import Path

import numpy as np

from dit_video.video.io import read_picture
from dit_video.video.sheet import COLUMNS, GRAY, MAX_LINES, WIDTH, Strip, write_sheet


def filled(label: str, num_frames: int, size: tuple[int, int] = (30, 40)) -> Strip:
    strip = Strip(label, num_frames)
    for number in range(num_frames):
        strip(number, np.full((*size, 3), number, np.uint8))
    return strip


def test_strips_hold_the_first_the_last_and_frames_evenly_between():
    assert Strip("", 48).wanted == [0, 7, 13, 20, 27, 34, 40, 47]
    assert Strip("", 3).wanted == [0, 1, 2] and Strip("", 1).wanted == [0]
    strip = filled("a", 48)
    assert sorted(strip.frames) == strip.wanted and len(strip.frames) == COLUMNS
    assert all((frame == number).all() for number, frame in strip.frames.items())


def test_frames_are_made_small_and_keep_their_aspect():
    (frame,) = filled("a", 1, (360, 640)).frames.values()
    assert frame.shape == (135, WIDTH, 3)


def test_a_sheet_has_a_row_for_every_clip_with_words_over_it(tmp_path: Path):
    strips = [filled("a red ball, seed 7", 48), filled("word " * 500, 9), Strip("never made", 9)]
    write_sheet(tmp_path / "a.png", strips)
    sheet = read_picture(tmp_path / "a.png")
    one, two = (strip.picture() for strip in strips[:2])
    assert len(sheet) == len(one) + len(two) + 16
    words = len(one) - 34  # 30 of frames, 4 above them
    assert (sheet[:words] == 255).any() and (sheet[words : words + 4] == GRAY).all()
    assert (sheet[words + 4 : words + 14, 5:44] == 0).all()  # the first frame, above its number
    assert len(two) < len(one) + MAX_LINES * 25


def test_labels_in_any_writing_are_drawn(tmp_path: Path):
    write_sheet(tmp_path / "a.png", [filled("красный мяч\n红球 🎈 كرة", 2)])
    assert (tmp_path / "a.png").is_file()
