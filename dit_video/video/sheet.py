"""Contact sheets: rows of frames in one PNG, with words over them."""

import textwrap
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dit_video.video.io import write_video

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

GRAY = 96  # of what no frame covers
COLUMNS = 8  # frames in a row, at most
WIDTH = 240  # pixels of a frame on a sheet of clips, at most
LETTERS = 15  # pixels of their height
MAX_LINES = 6  # of words over a row
FONTS = ("DejaVuSans.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc", "Arial Unicode.ttf", "arial.ttf")
"""Of systems, for letters that the font that Pillow carries lacks."""


def contact_sheet(rows: Sequence[Iterable[np.ndarray]], gap: int = 4) -> np.ndarray:
    """(H, W, 3) uint8 from rows of frames (h, w, 3), of one height in a row, on gray with `gap` pixels between."""
    strips = [
        np.concatenate([np.pad(f, ((gap, 0), (gap, 0), (0, 0)), constant_values=GRAY) for f in row], axis=1)
        for row in rows
    ]
    width = max(strip.shape[1] for strip in strips)
    return np.concatenate(
        [np.pad(s, ((0, 0), (0, width - s.shape[1]), (0, 0)), constant_values=GRAY) for s in strips], axis=0
    )


def save_sheet(path: Path, rows: Sequence[Iterable[np.ndarray]], *, gap: int = 4, overwrite: bool = True) -> None:
    """Write `contact_sheet(rows, gap)` as a PNG."""
    write_video(path, iter([contact_sheet(rows, gap)]), fps=1, overwrite=overwrite)


@dataclass
class Strip:
    """Some frames of a clip of `num_frames`, evenly over its time, the first and the last among them, made small."""

    label: str
    num_frames: int
    frames: dict[int, np.ndarray] = field(default_factory=dict)

    @property
    def wanted(self) -> list[int]:
        """The numbers of these frames."""
        count = min(COLUMNS, self.num_frames)
        return [round(place * (self.num_frames - 1) / max(count - 1, 1)) for place in range(count)]

    def __call__(self, number: int, frame: np.ndarray) -> None:
        """Frame `number` (H, W, 3) uint8 of the clip is there."""
        if number in self.wanted:
            self.frames[number] = _small(frame)

    def picture(self) -> np.ndarray:
        """(H, W, 3) uint8: the label, and the frames under it, each with its number."""
        shown = [_labelled(frame, f"{number}") for number, frame in sorted(self.frames.items())]
        row = contact_sheet([shown])
        return np.concatenate([_words(self.label, row.shape[1]), row])


def write_sheet(path: Path, strips: Sequence[Strip], *, overwrite: bool = False) -> None:
    """Writes a PNG of clips, one under the other. Raises MediaError."""
    rows = [strip.picture() for strip in strips if strip.frames]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 8), (0, width - row.shape[1]), (0, 0)), constant_values=GRAY) for row in rows]
    write_video(path, iter([np.concatenate(padded)]), fps=1, overwrite=overwrite)


def _small(frame: np.ndarray) -> np.ndarray:
    height, width, _ = frame.shape
    if width <= WIDTH:
        return frame.copy()
    size = WIDTH, max(1, round(height * WIDTH / width))
    return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX))


def _labelled(frame: np.ndarray, text: str) -> np.ndarray:
    """The frame with a small number in its lower left corner."""
    picture = Image.fromarray(frame)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    box = draw.textbbox((0, 0), text, font=font)
    left, top = 2, picture.height - box[3] - 3
    draw.rectangle((left - 2, top - 2, left + box[2] + 2, picture.height), fill=(GRAY,) * 3)
    draw.text((left, top), text, font=font, fill=(255, 255, 255))
    return np.asarray(picture)


def _words(text: str, width: int) -> np.ndarray:
    """(h, width, 3) uint8: lines of words; what does not fit in MAX_LINES is left out, which three dots say."""
    font = _font_for(text)
    columns = max(8, int((width - 8) / font.getlength("n")))
    lines = textwrap.wrap(text, columns, max_lines=MAX_LINES, placeholder=" ...") or [""]
    picture = Image.new("RGB", (width, len(lines) * (LETTERS + 5) + 6), (GRAY,) * 3)
    draw = ImageDraw.Draw(picture)
    for number, line in enumerate(lines):
        draw.text((4, 4 + number * (LETTERS + 5)), line, font=font, fill=(255, 255, 255))
    return np.asarray(picture)


def _font_for(text: str) -> Font:
    """The font, of Pillow's own and of those of the system that are known, that lacks the fewest letters of a text."""
    fonts: list[Font] = [ImageFont.load_default(LETTERS)]
    if not text.isascii():
        for name in FONTS:
            with suppress(OSError):
                fonts.append(ImageFont.truetype(name, LETTERS))
    return min(fonts, key=lambda font: _lacking(font, text))


def _lacking(font: Font, text: str) -> int:
    none = bytes(font.getmask("\uffff"))  # what is drawn for a letter that is not there
    return sum(bytes(font.getmask(letter)) == none for letter in set(text) if not letter.isspace())
