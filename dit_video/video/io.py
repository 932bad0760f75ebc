"""Video files in and out, frame by frame, through imageio and the ffmpeg that imageio-ffmpeg carries.

A file appears under its name only when it is whole: frames go to a temporary name in the same folder, which is renamed
once all of them are found in it. Frames are (H, W, 3) uint8 RGB.
"""

import os
import re
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain, islice, pairwise
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
from imageio.core.request import InitializationError
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dit_video import atomic
from dit_video.errors import MediaError
from dit_video.video.ffmpeg import commented, explained, reason_in, reporting, running
from dit_video.video.output import check_video

Frames = NDArray[np.uint8]

MAX_PICTURE_PIXELS = 64_000_000  # 8000x8000; its numbers take 1 GB while it is read

_PICTURE_BRANDS = ("avif", "avis", "heic", "heix", "mif1")  # of files in MP4's format
_PNG_KEY = "Comment"  # one of the format's own keywords
_GIF_COMMENT = b"\x21\xfe"

# RGB -> YUV by the matrix that the tags announce: left to itself swscale converts by bt601, whatever the tags say, and
# saturated colours come back wrong. setparams writes the tags on the frames, where the encoders look for them.
_BT709 = (
    "scale=in_range=pc:out_range=tv:out_color_matrix=bt709:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp,"
    "format={pix_fmt},setparams=range=tv:color_primaries=bt709:color_trc=bt709:colorspace=bt709"
)
# A palette per frame, as one for the whole clip would need all of it in memory; an ordered dither does not crawl.
_GIF = (
    "split[a][b];[a]palettegen=stats_mode=single:reserve_transparent=0[p];"
    "[b][p]paletteuse=new=1:dither=bayer:bayer_scale=5"
)


@dataclass(frozen=True, kw_only=True)
class VideoInfo:
    """What a video file holds: pixels, frames counted by decoding them, frames per second, and how they are coded.

    fps: None for a picture, which has no rate. uneven: the frames do not follow each other evenly, and fps is the rate
    that most of them have. seconds: playing time; None for a picture. audio: there is sound too. pixel_shape: width to
    height of a pixel, such as "4:3"; None where they are square. animated: the picture stands beside an animation,
    which is not read. Rotation that the file asks for is done already.
    """

    width: int
    height: int
    frames: int
    fps: float | None
    codec: str
    pix_fmt: str
    colorspace: str
    uneven: bool = False
    audio: bool = False
    pixel_shape: str | None = None
    animated: bool = False
    seconds: float | None


@dataclass(frozen=True, kw_only=True)
class WrittenVideo:
    """What `write_video` wrote; `note` is a line the user should see, or None."""

    path: Path
    width: int
    height: int
    frames: int
    fps: float
    note: str | None = None


def write_video(
    path: Path | str,
    frames: Iterable[Any],
    *,
    fps: float,
    overwrite: bool = False,
    numbered: bool = False,
    comment: str = "",
) -> WrittenVideo:
    """Writes frames as they come to `.mp4` (H.264), `.webm` (VP9), `.gif`, or `.png` for one frame.

    Only the chunk at hand is in memory; nothing is left behind when writing fails or is interrupted.

    Args:
        path: the file; it appears only when it is complete. Without `overwrite`, a name that is taken while the frames
            come gets a number, which the note says.
        numbered: so does one that is taken before them, which is refused otherwise.
        frames: (H, W, 3) or (T, H, W, 3) uint8 RGB arrays, or torch tensors on the CPU, all of one size.
        fps: frames per second, above 0; it need not be whole.
        comment: text that is written into the file, where players show it as its comment; see `read_comment`.

    Raises:
        UsageError, MediaError: what `check_video` refuses; MediaError also for no frames at all, or when ffmpeg fails.
    """
    path = Path(path)
    check_video(path, 1, fps=fps, overwrite=overwrite or numbered)
    stream = _single_frames(frames)
    first = next(stream, None)
    if first is None:
        raise MediaError(f"{path}: there are no frames to write; a video has at least 1.")
    height, width, _ = first.shape
    same = _of_one_size(chain([first], stream))
    with atomic.placing(path, overwrite=overwrite) as (part, placed):
        if path.suffix.lower() == ".png":
            note = None
            count = _write_picture(path, part, same, comment, lambda: check_video(path, 2, fps=fps, overwrite=True))
        else:
            coding, note = _coding(path.suffix.lower(), width, height)
            rate = str(Fraction(fps).limit_denominator())  # imageio-ffmpeg before 0.8 rounds it
            exact = {"size": (width, height), "macro_block_size": 1, "fps": fps, "input_params": ["-r", rate]}
            options = {"quality": None, "ffmpeg_log_level": "level+quiet", **exact, **coding}
            is_gif = path.suffix.lower() == ".gif"  # for which ffmpeg writes no comment
            count = _write_clip(path, part, same, options, comment="" if is_gif else comment)
            if comment and is_gif:
                _add_gif_comment(part, comment)
    if placed.path != path:
        taken = f"{path}: another file took this name in the meantime; the video is {placed.path}."
        note = f"{taken} {note}" if note else taken
    return WrittenVideo(path=placed.path, width=width, height=height, frames=count, fps=fps, note=note)


def read_comment(path: Path | str) -> str | None:
    """The comment in a video or picture, as `write_video` writes it; None where there is none.

    Raises:
        MediaError: the file is missing, damaged or not a video.
    """
    path = _file(path)
    if path.suffix.lower() == ".gif":
        return _gif_comment(path.read_bytes())
    if path.suffix.lower() == ".png":
        with suppress(OSError, SyntaxError, ValueError), Image.open(path) as picture:
            return picture.info.get(_PNG_KEY)
        return None
    with running(path, ["-i", f"file:{path}", "-f", "ffmetadata", "pipe:1"]) as pipe:
        text = pipe.read().decode(errors="replace")
    # A line "comment=...", in which a backslash stands before each of = ; # \ and line breaks.
    found = re.search(r"^comment=((?:[^\\\n]|\\.)*)$", text, re.MULTILINE | re.DOTALL | re.IGNORECASE)
    return re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL) if found else None


def read_frames(path: Path | str, *, fps: float | None = None) -> Iterator[Frames]:
    """The frames of a video or picture, one at a time: (H, W, 3) uint8 RGB.

    fps: frames are repeated and left out to follow each other evenly at this rate, but for the first, which a clip that
    is shorter than a frame keeps; None gives each one once.

    Raises:
        MediaError: the file is missing, damaged or not a video.
    """
    # PPM carries the size before every frame, so nothing has to be known before the first one is decoded.
    rate = "" if fps is None else f"fps={Fraction(fps).limit_denominator(100_000)},"
    scale = "scale=out_range=pc:flags=bicubic+accurate_rnd+full_chroma_int,format=rgb24"
    output = ["-vf", rate + scale, "-c:v", "ppm", "-f", "image2pipe", "pipe:1"]
    none = True
    with running(Path(path), [*_input(path), *output]) as pipe:
        while pipe.readline() == b"P6\n":
            none = False
            width, height = map(int, pipe.readline().split())
            pipe.readline()
            data = pipe.read(width * height * 3)
            if len(data) < width * height * 3:
                break  # ffmpeg stopped inside a frame; its exit status says why
            yield np.frombuffer(data, np.uint8).reshape(height, width, 3)
    if none and fps is not None:
        yield from islice(read_frames(path), 1)


def read_video(path: Path | str) -> tuple[Frames, float | None]:
    """The whole clip, (T, H, W, 3) uint8 RGB, and its frames per second, None for a picture.

    Raises:
        MediaError: the file is missing, damaged or not a video.
    """
    return np.stack(list(read_frames(path))), probe(path).fps


def read_picture(path: Path | str) -> Frames:
    """A picture (H, W, 3) uint8 RGB, turned as its EXIF orientation says; what is transparent becomes white.

    Raises:
        MediaError: the file is missing, damaged, not a picture, or has more than MAX_PICTURE_PIXELS.
    """
    path = _file(path)
    try:
        with warnings.catch_warnings(category=Image.DecompressionBombWarning, action="ignore"):  # we have a rule
            opened: Any = iio.imopen(path, "r", plugin="pillow")  # its own options are not in imageio's types
        with opened as file:
            properties = file.properties(index=0)
            height, width = properties.shape[:2]
            if width * height > MAX_PICTURE_PIXELS:
                rule = f"a picture may have {MAX_PICTURE_PIXELS:,} pixels at most, and this one is {width}x{height}"
                raise MediaError(f"{path}: {rule}; make it smaller first.")
            if properties.dtype.kind in "iu" and properties.dtype.itemsize > 1:  # gray, which Pillow cuts off at 255
                gray = np.round(file.read(index=0, rotate=True) / 257).clip(0, 255).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=-1)
            pixels = file.read(index=0, mode="RGBA", rotate=True).astype(np.float32)
    except MediaError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything about damaged files
        if isinstance(error.__cause__, Image.DecompressionBombError):
            rule = f"a picture may have {MAX_PICTURE_PIXELS:,} pixels at most, and this one has far more"
            raise MediaError(f"{path}: {rule}; make it smaller first.") from None
        if isinstance(error.__cause__, InitializationError):
            raise MediaError(
                f"{path}: this is no picture of a known kind, such as PNG or JPEG, or it is damaged."
            ) from None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise MediaError(f"{path}: cannot be read as a picture ({reason.rstrip('.')}).") from None
    alpha = pixels[..., 3:] / 255
    return np.round(pixels[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)


def probe(path: Path | str) -> VideoInfo:
    """Size, frames, rate and coding of a video or picture; every frame is decoded, so the count is what a player shows.

    Raises:
        MediaError: the file is missing, damaged or not a video.
    """
    path = Path(path)
    log: list[str] = []
    with running(path, [*_input(path), "-f", "framecrc", "pipe:1"], level="info", log=log) as pipe:
        lines = pipe.read().decode().splitlines()
    crcs = [line for line in lines if not line.startswith("#")]
    header = dict(re.findall(r"^#(\w+) 0: (.*)$", "\n".join(lines), re.MULTILINE))
    messages = "\n".join(log)
    # "Video: h264 (High) (avc1 / 0x31637661), yuv420p(tv, bt709, progressive), 640x360 [..."; the first is the input
    match = re.search(r"Video: (\w+)[^,]*?, (\w+)(?:\(([^)]*)\))?", messages)
    if match is None or not crcs:
        raise MediaError(f"{path}: ffmpeg finds no frames in it.")
    codec, pix_fmt, tags = match.groups(default="")
    times = [int(line.split(",")[2]) for line in crcs]
    steps = Counter(later - earlier for earlier, later in pairwise(times)) or Counter({1: 1})
    usual = max(1, steps.most_common(1)[0][0])
    tick = Fraction(header["tb"])
    fps: Fraction | None = 1 / (tick * usual)
    uneven = len(steps) > 1
    whole = tick * (times[-1] - times[0] + usual)  # how long the last one is shown is not told
    duration = re.search(r"Duration: (\d+):(\d+):([\d.]+)", messages)
    if _is_picture(messages, codec, len(crcs)):
        fps = None  # ffmpeg makes one up
    elif codec == "gif" and duration:  # whole hundredths of a second per frame: 24 is kept on average only
        hours, minutes, seconds = map(Fraction, duration.groups())
        whole = 3600 * hours + 60 * minutes + seconds
        last = whole - tick * (times[-1] - times[0])
        shown = [last, *(tick * step for step in steps)]
        uneven = max(shown) - min(shown) > Fraction(3, 200)
        fps = fps if uneven else len(crcs) / whole
    width, height = map(int, header["dimensions"].split("x"))
    return VideoInfo(
        width=width,
        height=height,
        frames=len(crcs),
        fps=None if fps is None else float(fps),
        codec=codec,
        pix_fmt=pix_fmt,
        uneven=uneven,
        seconds=None if fps is None else float(whole),
        audio=re.search(r"Stream #0:\d+.*: Audio: ", messages) is not None,
        pixel_shape=_pixel_shape(messages),
        animated=_brand(messages) == "avis",
        colorspace=next((tag for tag in tags.split(", ") if tag not in ("tv", "pc", "progressive", "")), "unknown"),
    )


def _is_picture(messages: str, codec: str, frames: int) -> bool:
    """Whether ffmpeg's messages are about a file without a rate: of a format for pictures, or a GIF or AVIF of one
    frame."""
    form = re.search(r"^(?:\[\w+\] )?Input #0, (\w+)", messages, re.MULTILINE)
    if frames == 1 and (codec == "gif" or _brand(messages) in _PICTURE_BRANDS):
        return True
    return form is not None and (form[1].endswith("_pipe") or form[1] == "image2")


def _brand(messages: str) -> str:
    """The kind of a file in MP4's format, of ffmpeg's messages about it."""
    found = re.search(r"^(?:\[\w+\] )?\s*major_brand\s*: (\w+)", messages, re.MULTILINE)
    return found[1] if found else ""


def _pixel_shape(messages: str) -> str | None:
    """Width to height of a pixel, of ffmpeg's messages about a file; None where they are square, or it is not told."""
    found = re.search(r"Video: .*\[SAR (\d+:\d+) ", messages)
    return found[1] if found and found[1] not in ("1:1", "0:1") else None


def _single_frames(frames: Iterable[Any]) -> Iterator[Frames]:
    """Contiguous (H, W, 3) uint8 frames out of frames and (T, H, W, 3) chunks."""
    for item in frames:
        array = np.asarray(item)
        if array.dtype != np.uint8 or array.ndim not in (3, 4) or array.shape[-1] != 3:
            raise ValueError(f"frames must be (H, W, 3) or (T, H, W, 3) uint8, not {array.shape} {array.dtype}")
        yield from map(np.ascontiguousarray, array if array.ndim == 4 else array[None])


def _of_one_size(frames: Iterator[Frames]) -> Iterator[Frames]:
    shape: tuple[int, ...] | None = None
    for count, frame in enumerate(frames):
        shape = shape or frame.shape
        if frame.shape != shape:
            raise ValueError(f"frame {count} is {frame.shape}, the first one is {shape}")
        yield frame


def _add_gif_comment(part: Path, comment: str) -> None:
    """Puts a comment extension (GIF89a, section 24) before the trailer."""
    data = comment.encode()
    blocks = b"".join(bytes([len(data[i : i + 255])]) + data[i : i + 255] for i in range(0, len(data), 255))
    with part.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(_GIF_COMMENT + blocks + b"\x00;")


def _gif_comment(data: bytes) -> str | None:
    """The last comment extension before the trailer of a GIF."""
    end = len(data) - 2  # of its blocks: a block of no length, and then the trailer
    start = data.rfind(_GIF_COMMENT)
    while start >= 0:
        text, place = b"", start + len(_GIF_COMMENT)
        while place < end and data[place]:
            text += data[place + 1 : place + 1 + data[place]]
            place += 1 + data[place]
        if place == end and data.endswith(b"\x00;"):
            return text.decode(errors="replace")
        start = data.rfind(_GIF_COMMENT, 0, start)
    return None


def _write_picture(
    path: Path, part: Path, frames: Iterator[Frames], comment: str, refuse_more: Callable[[], None]
) -> int:
    picture = next(frames)
    if next(frames, None) is not None:
        refuse_more()
    try:
        more: dict[str, Any] = {"pnginfo": _text(comment)} if comment else {}
        iio.imwrite(part, picture, plugin="pillow", extension=".png", **more)
    except OSError as error:
        raise MediaError(f"{path}: cannot be written ({error.strerror or error}).") from error
    return 1


def _text(comment: str) -> PngInfo:
    found = PngInfo()
    found.add_itxt(_PNG_KEY, comment)
    return found


def _write_clip(path: Path, part: Path, frames: Iterator[Frames], options: dict[str, Any], *, comment: str = "") -> int:
    """Writes frames to `part` with imageio-ffmpeg's options; returns their number. Raises MediaError about `path`."""
    count = 0
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        options = {**options, "output_params": [*commented(comment, Path(folder)), *options["output_params"]]}
        with closing(imageio_ffmpeg.write_frames(f"file:{part}", **options)) as writer:
            with reporting(report), explained(path, report):
                writer.send(None)  # starts ffmpeg
            try:
                for frame in frames:
                    with explained(path, report):
                        writer.send(frame)
                    count += 1
            except BaseException:
                with suppress(BaseException):
                    writer.throw(KeyboardInterrupt)  # kills ffmpeg, which would finish a file that nobody wants
                raise
        if reason := reason_in(report):
            raise MediaError(f"{path}: ffmpeg cannot write it ({reason}).")
    if (written := _count_packets(part)) != count:  # an ffmpeg that was killed leaves no report
        raise MediaError(f"{path}: ffmpeg wrote {written} of {count} frames; memory or the disk may be full.")
    return count


def _count_packets(part: Path) -> int:
    """The frames that a file holds, not decoded; 0 for one that cannot be read."""
    packets = ["-i", f"file:{part}", "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "pipe:1"]
    with suppress(MediaError), running(part, packets) as pipe:
        return sum(not line.startswith(b"#") for line in pipe)
    return 0


def stored_as(path: Path, width: int, height: int) -> str:
    """ffmpeg's name of how `write_video` stores the pixels of a file of this name and size."""
    return "rgb24" if path.suffix.lower() == ".png" else _coding(path.suffix.lower(), width, height)[0]["pix_fmt_out"]


def _coding(suffix: str, width: int, height: int) -> tuple[dict[str, Any], str | None]:
    """imageio-ffmpeg's options for a kind of file, and the note that goes with them."""
    if suffix == ".gif":
        gif = ["-vf", _GIF, "-loop", "0", "-f", "gif"]
        return {"codec": "gif", "pix_fmt_out": "pal8", "output_params": gif}, None
    tags = ["-color_range", "tv", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709"]
    if suffix == ".webm":  # VP9 stores odd sides in 4:2:0 by itself
        vp9 = ["-crf", "20", "-b:v", "0", "-cpu-used", "4", "-row-mt", "1"]
        vp9 += ["-vf", _BT709.format(pix_fmt="yuv420p"), *tags, "-f", "webm"]
        return {"codec": "libvpx-vp9", "pix_fmt_out": "yuv420p", "output_params": vp9}, None
    odd = width % 2 or height % 2
    pix_fmt = "yuv444p" if odd else "yuv420p"
    h264 = ["-crf", "16", "-preset", "medium", "-movflags", "+faststart"]
    h264 += ["-vf", _BT709.format(pix_fmt=pix_fmt), *tags, "-f", "mp4"]
    note = (
        f"{width}x{height}: an odd side makes the .mp4 H.264 4:4:4, which some players cannot show; .webm can be used."
    )
    return {"codec": "libx264", "pix_fmt_out": pix_fmt, "output_params": h264}, note if odd else None


def _input(path: Path | str) -> list[str]:
    """ffmpeg's arguments to read every frame of the first video stream of a file, each once, and to stop at damage."""
    _file(path)
    return ["-xerror", "-i", f"file:{path}", "-map", "0:v:0", "-fps_mode", "passthrough"]


def _file(path: Path | str) -> Path:
    """`path`, which must be a file that is not empty. Raises MediaError."""
    if not Path(path).is_file():
        raise MediaError(
            f"{path}: {'this is a folder, not a file' if Path(path).is_dir() else 'there is no such file'}."
        )
    if not Path(path).stat().st_size:
        raise MediaError(f"{path}: the file is empty.")
    return Path(path)
