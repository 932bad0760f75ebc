"""Video files: exact sizes and counts, true colours, and nothing left behind when something goes wrong."""

import os
import re
import signal
import struct
import subprocess
import tempfile
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from imageio_ffmpeg import get_ffmpeg_exe
from PIL import Image

from dit_video.errors import MediaError, UsageError
from dit_video.video.io import probe, read_comment, read_frames, read_picture, read_video, write_video
from dit_video.video.output import check_video

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "purple": (128, 0, 128),
    "orange": (255, 165, 0),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
}


def gradient(frames: int, height: int, width: int) -> np.ndarray:
    """A smooth moving picture: what a lossy codec keeps well, so that a PSNR says something about the plumbing."""
    t, y, x = np.mgrid[:frames, :height, :width]
    waves = [np.sin(x / 37 + t / 5), np.cos(y / 29 - t / 7), np.sin((x + y) / 41 + t / 3)]
    return np.stack([(127.5 + 100 * wave).round() for wave in waves], axis=-1).astype(np.uint8)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * np.log10(255**2 / max(np.square(a.astype(float) - b).mean(), 1e-9))


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("size", [(640, 360), (64, 48), (16, 16), (101, 57), (33, 16), (16, 33)])
def test_file_has_the_frames_it_was_given(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    source = gradient(7, size[1], size[0])
    written = write_video(tmp_path / f"clip{suffix}", iter(source), fps=12.5)
    info = probe(written.path)
    assert (info.width, info.height, info.frames, info.fps) == (*size, 7, 12.5)
    frames, fps = read_video(written.path)
    assert frames.shape == source.shape and frames.dtype == np.uint8 and fps == 12.5
    assert psnr(frames, source) > (25 if suffix == ".gif" or min(size) == 16 else 33)  # 256 colours; chroma of 8x8


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".png"])
def test_one_frame(tmp_path: Path, suffix: str) -> None:
    source = gradient(1, 50, 70)
    path = write_video(tmp_path / f"still{suffix}", [source[0]], fps=24).path
    assert (probe(path).width, probe(path).height, probe(path).frames) == (70, 50, 1)
    assert probe(path).fps == (None if suffix in (".gif", ".png") else 24), "a picture has no rate"
    assert psnr(next(read_frames(path)), source[0]) > 33


def test_png_is_lossless(tmp_path: Path) -> None:
    source = np.random.default_rng(0).integers(0, 256, (1, 31, 45, 3), np.uint8)
    path = write_video(tmp_path / "still.png", source, fps=24).path
    assert np.array_equal(read_video(path)[0], source)


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
@pytest.mark.parametrize("name", COLOURS)
def test_saturated_colours_come_back(tmp_path: Path, suffix: str, name: str) -> None:
    source = np.full((3, 32, 48, 3), COLOURS[name], np.uint8)
    frames, _ = read_video(write_video(tmp_path / f"flat{suffix}", source, fps=24).path)
    assert np.abs(frames.astype(int) - source).max() <= 2


def test_conversion_is_really_bt709(tmp_path: Path) -> None:
    path = write_video(tmp_path / "flat.mp4", np.full((1, 32, 32, 3), COLOURS["green"], np.uint8), fps=24).path
    command = [get_ffmpeg_exe(), "-v", "error", "-i", path, "-f", "rawvideo", "-pix_fmt", "yuv420p", "pipe:1"]
    planes = np.frombuffer(subprocess.run(command, capture_output=True, check=True).stdout, np.uint8)
    luma, blue, red = planes[:1024].mean(), planes[1024:1280].mean(), planes[1280:].mean()
    # ITU-R BT.709-6 table 3: Y' = .7152 G', C'B = -.3854 G', C'R = -.4542 G'; bt601 would give 145, 54, 34
    assert (luma, blue, red) == pytest.approx((16 + 219 * 0.7152, 128 - 224 * 0.3854, 128 - 224 * 0.4542), abs=1)


@pytest.mark.parametrize(("suffix", "size"), [(".mp4", (64, 48)), (".mp4", (65, 49)), (".webm", (65, 49))])
def test_tags(tmp_path: Path, suffix: str, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / f"clip{suffix}", gradient(3, size[1], size[0]), fps=24).path
    log = subprocess.run([get_ffmpeg_exe(), "-hide_banner", "-i", path], capture_output=True, text=True).stderr
    pix_fmt = "yuv444p" if (suffix, size) == (".mp4", (65, 49)) else "yuv420p"
    assert re.search(rf"Video: (h264|vp9).*, {pix_fmt}\(tv, bt709(, progressive)?\), {size[0]}x{size[1]}", log)
    info = probe(path)
    assert (info.pix_fmt, info.colorspace, info.codec) == (pix_fmt, "bt709", "h264" if suffix == ".mp4" else "vp9")


def test_odd_mp4_says_so_once(tmp_path: Path) -> None:
    note = write_video(tmp_path / "odd.mp4", gradient(2, 31, 64), fps=24).note
    assert note is not None and "64x31" in note and "4:4:4" in note and "\n" not in note
    assert write_video(tmp_path / "even.mp4", gradient(2, 32, 64), fps=24).note is None


def test_mp4_starts_with_its_index(tmp_path: Path) -> None:
    data = write_video(tmp_path / "clip.mp4", gradient(5, 64, 64), fps=24).path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


@pytest.mark.parametrize("fps", [0.5, 7, 23.976, 24, 24000 / 1001, 29.97, 120])
@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_rate_is_kept(tmp_path: Path, suffix: str, fps: float) -> None:
    path = write_video(tmp_path / f"clip{suffix}", gradient(9, 32, 32), fps=fps).path
    assert probe(path).fps == pytest.approx(fps, rel=1e-6)
    assert probe(path).frames == 9


def test_gif_keeps_identical_frames_and_the_mean_rate(tmp_path: Path) -> None:
    path = write_video(tmp_path / "still.gif", np.repeat(gradient(1, 40, 40), 48, axis=0), fps=24).path
    assert (probe(path).frames, probe(path).fps) == (48, 24)


def test_chunks_and_single_frames_are_the_same(tmp_path: Path) -> None:
    source = gradient(9, 32, 32)
    single = write_video(tmp_path / "a.mp4", iter(source), fps=24)
    chunked = write_video(tmp_path / "b.mp4", iter([source[:1], source[1:5], source[5:]]), fps=24)
    assert single.frames == chunked.frames == 9
    assert single.path.read_bytes() == chunked.path.read_bytes()


def test_frames_are_taken_as_they_come(tmp_path: Path) -> None:
    """Long clips never gather in memory: when frame n is asked for, the array of frame n - 2 is already gone."""
    import weakref

    alive: list[weakref.ref[np.ndarray]] = []
    most = 0

    def frames() -> Iterator[np.ndarray]:
        nonlocal most
        for n in range(30):
            frame = np.full((64, 64, 3), n, np.uint8)
            alive.append(weakref.ref(frame))
            yield frame
            del frame
            most = max(most, sum(ref() is not None for ref in alive))

    write_video(tmp_path / "long.mp4", frames(), fps=24)
    assert most <= 3  # the first (its shape is the rule), the one being written, and this loop's own


@pytest.mark.parametrize("size", [16, 64])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_failure_leaves_nothing_behind(tmp_path: Path, error: type[BaseException], size: int) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from gradient(3, size, size)
        raise error

    with pytest.raises(error):
        write_video(tmp_path / "clip.mp4", frames(), fps=24)
    assert list(tmp_path.iterdir()) == []


def test_failure_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(ValueError, match="frame 1 is"):
        write_video(path, [gradient(1, 32, 32)[0], gradient(1, 32, 34)[0]], fps=24, overwrite=True)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
    write_video(path, gradient(1, 32, 32), fps=24, overwrite=True)
    assert probe(path).frames == 1


@pytest.mark.parametrize("temporary", ["plain", "it's 100%d: a \\ place"])
def test_ffmpeg_failure_is_one_sentence(tmp_path: Path, temporary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / temporary).mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / temporary))
    before = dict(os.environ)
    with pytest.raises(MediaError, match=r"wide\.mp4: ffmpeg cannot write it \(.*40000x8.*\)\.$"):
        write_video(tmp_path / "wide.mp4", np.zeros((2, 8, 40000, 3), np.uint8), fps=24)
    assert [path.name for path in tmp_path.rglob("*")] == [temporary]
    assert dict(os.environ) == before


@pytest.mark.parametrize("suffix", [".mp4", ".webm"])
def test_an_encoder_that_is_killed_is_noticed(tmp_path: Path, suffix: str) -> None:
    def frames() -> Iterator[np.ndarray]:
        yield from gradient(20, 64, 64)
        (encoder,) = subprocess.check_output(["pgrep", "-P", str(os.getpid()), "ffmpeg"], text=True).split()
        os.kill(int(encoder), signal.SIGKILL)

    with pytest.raises(MediaError, match=r"clip\..*: ffmpeg wrote \d+ of 20 frames"):
        write_video(tmp_path / f"clip{suffix}", frames(), fps=24)
    assert list(tmp_path.iterdir()) == []


def test_written_file_has_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    path = write_video(tmp_path / "clip.mp4", gradient(1, 16, 16), fps=24).path
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("name", ["a:b.mp4", "100% %d.mp4", "-dash.webm", "two words.gif", "UPPER.MP4", "%03d.png"])
def test_awkward_names(tmp_path: Path, name: str) -> None:
    path = write_video(tmp_path / name, gradient(1, 32, 32), fps=24).path
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert probe(path).frames == 1


@pytest.mark.parametrize(
    ("name", "frames", "fps", "error", "message"),
    [
        ("clip.avi", 9, 24, UsageError, r"must end in \.mp4 or \.webm or \.gif or \.png; the nearest is .*clip\.mp4"),
        ("clip", 9, 24, UsageError, r"must end in"),
        ("clip.png", 2, 24, UsageError, r"holds 1 frame, not 2"),
        ("clip.gif", 9, 60, UsageError, r"at most 50 frames per second, not 60; the nearest is 50"),
        ("clip.mp4", 9, 0, UsageError, r"more than 0 .* frames per second, not 0"),
        ("clip.mp4", 9, float("nan"), UsageError, r"frames per second, not nan"),
        ("none/clip.mp4", 9, 24, MediaError, r"none does not exist"),
        ("there.mp4", 9, 24, MediaError, r"exists; choose another name or pass --overwrite"),
        ("folder.mp4", 9, 24, MediaError, r"is a folder"),
        ("x" * 300 + ".mp4", 9, 24, MediaError, r"longer than 255 bytes"),
    ],
)
def test_refused_before_anything_heavy(
    tmp_path: Path, name: str, frames: int, fps: float, error: type[Exception], message: str
) -> None:
    (tmp_path / "there.mp4").touch()
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(error, match=message):
        check_video(tmp_path / name, frames, fps=fps)


def test_overwrite_allows_an_existing_file(tmp_path: Path) -> None:
    (tmp_path / "there.mp4").touch()
    check_video(tmp_path / "there.mp4", 9, fps=24, overwrite=True)


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder that takes no file, whoever asks")
def test_a_folder_that_takes_no_file_is_refused() -> None:
    assert os.access("/proc", os.W_OK) == (os.geteuid() == 0), "permissions do not tell"
    with pytest.raises(MediaError, match=r"/proc/clip\.mp4: the folder /proc is not writable \(.+\); choose another"):
        check_video(Path("/proc/clip.mp4"), 9, fps=24)


def test_the_check_of_a_folder_leaves_nothing(tmp_path: Path) -> None:
    check_video(tmp_path / "clip.mp4", 9, fps=24)
    assert list(tmp_path.iterdir()) == []


def test_png_of_a_longer_iterator_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds 1 frame"):
        write_video(tmp_path / "clip.png", gradient(2, 16, 16), fps=24)
    assert list(tmp_path.iterdir()) == []


def test_no_frames(tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no frames to write"):
        write_video(tmp_path / "clip.mp4", iter([]), fps=24)


@pytest.mark.parametrize("frames", [np.zeros((4, 16, 16, 3)), np.zeros((4, 16, 16), np.uint8)])
def test_wrong_arrays_are_refused(tmp_path: Path, frames: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        write_video(tmp_path / "clip.mp4", frames, fps=24)


@pytest.mark.parametrize("read", [probe, read_video])
def test_unreadable_files_are_one_sentence(tmp_path: Path, read) -> None:
    whole = write_video(tmp_path / "whole.mp4", gradient(20, 64, 64), fps=24).path.read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "text.mp4").write_bytes(b"this is not a video\n" * 50)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(MediaError, match=r"cut\.mp4: ffmpeg cannot read it \([^\n]+\)\.$"):
        read(tmp_path / "cut.mp4")
    ffmpeg("-f", "lavfi", "-i", "sine=d=0.2", tmp_path / "sound.mp4")
    for name, says in (
        ("text", "ffmpeg cannot read it (it is not a video, or its end is missing)."),
        ("sound", "ffmpeg cannot read it (it holds no video)."),
        ("empty", "the file is empty."),
    ):
        with pytest.raises(MediaError, match=re.escape(f"{name}.mp4: {says}")):
            read(tmp_path / f"{name}.mp4")
    with pytest.raises(MediaError, match=r"missing\.mp4: there is no such file\.$"):
        read(tmp_path / "missing.mp4")
    with pytest.raises(MediaError, match="this is a folder"):
        read(tmp_path)


def test_reading_may_stop_early(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.mp4", gradient(30, 64, 64), fps=24).path
    frames = read_frames(path)
    assert next(frames).shape == (64, 64, 3)
    frames.close()


def test_clips_with_other_than_square_pixels_and_avif_are_told(tmp_path: Path) -> None:
    source = ("-f", "lavfi", "-i", "testsrc=s=64x48:r=8:d=0.5")
    ffmpeg(*source, "-vf", "setsar=4/3", tmp_path / "wide.mp4")
    ffmpeg(*source, tmp_path / "moving.avif")
    Image.new("RGB", (64, 48)).save(tmp_path / "still.avif")
    Image.new("1", (30000, 30000)).save(tmp_path / "huge.png")
    assert probe(tmp_path / "wide.mp4").pixel_shape == "4:3"
    wide, still = write_video(tmp_path / "a.mp4", gradient(2, 48, 64), fps=8).path, probe(tmp_path / "still.avif")
    assert probe(wide).pixel_shape is None
    assert (still.fps, still.seconds, still.animated) == (None, None, False), "a picture has no rate"
    assert (probe(tmp_path / "moving.avif").fps, probe(tmp_path / "moving.avif").animated) == (None, True)
    with pytest.raises(MediaError, match=r"huge\.png: ffmpeg cannot read it \(it has far more pixels than can be read"):
        probe(tmp_path / "huge.png")


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".png"])
def test_a_comment_of_any_length_comes_back(tmp_path: Path, suffix: str) -> None:
    """Longer than what fits in an argument of a command line."""
    for text in ("короткий; = # \\ 'it'\n\n", 'слова "и" 🦊\n' * 20_000):
        path = write_video(tmp_path / f"a{suffix}", gradient(1, 16, 16), fps=8, overwrite=True, comment=text).path
        assert read_comment(path) == text


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run([get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


def test_uneven_frames_and_sound_are_told_and_frames_can_be_had_evenly(tmp_path: Path) -> None:
    even, uneven = tmp_path / "even.mkv", tmp_path / "uneven.mp4"
    source = ("-f", "lavfi", "-i", "testsrc=s=64x48:r=24:d=1")
    ffmpeg(*source, "-f", "lavfi", "-i", "sine", "-shortest", even)
    ffmpeg(*source, "-vf", "select=lt(n\\,12)+not(mod(n\\,3))", "-fps_mode", "vfr", uneven)
    info = probe(even)
    assert (info.frames, info.fps, info.seconds, info.uneven, info.audio) == (24, 24, 1, False, True)
    info = probe(uneven)
    assert (info.frames, info.fps, info.uneven, info.audio) == (16, 24, True, False)
    assert info.seconds == pytest.approx(22 / 24)  # the last one begins at 21/24
    once, evenly = list(read_frames(uneven)), list(read_frames(uneven, fps=24))
    assert len(once) == 16 and 22 <= len(evenly) <= 24  # how long the last one lasts is not told
    for time, number in ((0, 0), (11, 11), (12, 12), (13, 12), (14, 12), (15, 13), (20, 14), (21, 15)):
        assert np.array_equal(evenly[time], once[number])
    assert len(list(read_frames(even, fps=12))) == 12 and len(list(read_frames(even, fps=48))) == 48


@pytest.mark.parametrize(
    ("delays", "fps", "evenly"),
    [
        ([100] * 5, 10, 5),
        ([70, 60, 70, 70, 60], 500 / 33, 5),  # hundredths of a second, rounded
        ([100, 100, 200, 100, 100], 10, 6),
        ([100, 100, 100, 100, 500], 10, 9),  # the last one is held
    ],
)
def test_a_gif_says_how_long_each_frame_is_shown(tmp_path: Path, delays: list[int], fps: float, evenly: int) -> None:
    path = tmp_path / "a.gif"
    first, *others = map(Image.fromarray, gradient(5, 32, 48))
    first.save(path, save_all=True, append_images=others, duration=delays)
    info = probe(path)
    assert (info.fps, info.uneven) == (pytest.approx(fps), evenly != 5)
    if info.uneven:
        assert len(list(read_frames(path, fps=info.fps))) == evenly


def test_a_clip_shorter_than_a_frame_of_the_rate_keeps_its_first(tmp_path: Path) -> None:
    path = write_video(tmp_path / "fast.mp4", gradient(5, 32, 32), fps=100).path
    (found,) = read_frames(path, fps=2)
    assert np.array_equal(found, next(read_frames(path)))


def test_a_clip_is_turned_as_it_asks_to_be(tmp_path: Path) -> None:
    flat, turned = tmp_path / "flat.mp4", tmp_path / "turned.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=64x48:r=5:d=1", flat)
    ffmpeg("-display_rotation", "90", "-i", flat, "-c", "copy", turned)
    info = probe(turned)
    assert (info.width, info.height, info.frames) == (48, 64, 5)
    assert np.array_equal(next(read_frames(turned)), np.rot90(next(read_frames(flat))))


def test_a_picture_is_turned_and_put_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 6, 4), np.uint8)
    pixels[..., 0], pixels[:, :3, 3] = 200, 255  # red on the left, nothing on the right
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(pixels).save(tmp_path / "p.png", exif=exif)
    found = read_picture(tmp_path / "p.png")
    assert found.shape == (6, 4, 3)
    assert (found[:3] == (200, 0, 0)).all() and (found[3:] == 255).all()
    Image.fromarray(pixels[..., 0]).save(tmp_path / "gray.png")
    assert read_picture(tmp_path / "gray.png").shape == (4, 6, 3)
    deep = np.linspace(0, 65535, 24).reshape(4, 6).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.abs(read_picture(tmp_path / "deep.png") - deep[..., None] / 257).max() <= 0.5
    with pytest.raises(MediaError, match=r"none\.png: there is no such file"):
        read_picture(tmp_path / "none.png")


def a_header(width: int, height: int) -> bytes:
    """A PNG that says so large a size and holds next to nothing of it."""
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", size), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def test_what_is_no_picture_and_what_is_too_large_is_said_in_plain_words(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_bytes(b"this is not a picture\n")
    write_video(tmp_path / "clip.mp4", gradient(2, 32, 32), fps=24)
    for name in ("text.png", "clip.mp4"):
        with pytest.raises(
            MediaError, match=rf"{name}: this is no picture of a known kind, such as PNG or JPEG, or it is damaged\.$"
        ):
            read_picture(tmp_path / name)
    (tmp_path / "empty.png").touch()
    with pytest.raises(MediaError, match=r"empty\.png: the file is empty\.$"):
        read_picture(tmp_path / "empty.png")
    # Pillow warns of the first and refuses the second; both are ours to refuse
    for side, says in ((10_000, "is 10000x10000"), (60_000, "has far more")):
        (tmp_path / "large.png").write_bytes(a_header(side, side))
        said = f"64,000,000 pixels at most, and this one {says}; make it smaller"
        with warnings.catch_warnings(action="error"), pytest.raises(MediaError, match=said):
            read_picture(tmp_path / "large.png")
