"""`--image`, `extend`, `connect` and `edit` on the tiny random model: exact sizes, what is said, what is refused."""

import json
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from dvgen.main import app
from imageio_ffmpeg import get_ffmpeg_exe
from typer.testing import CliRunner, Result

from dit_video import extend
from dit_video.models.wan import random
from dit_video.shapes import VideoShape
from dit_video.video.io import probe, read_video, write_video

REAL = random.RandomCheckpoint
QUICK = ["--random-weights", "--steps", "2", "--seed", "3"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name, (frames, height, width), fps in (("a", (9, 40, 50), 10), ("b", (6, 40, 50), 10), ("c", (5, 32, 32), 25)):
        clip = rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8)
        write_video(f"{name}.mp4", clip, fps=fps)
    iio.imwrite("p.png", rng.integers(0, 256, (36, 60, 3), dtype=np.uint8))
    iio.imwrite("q.png", rng.integers(0, 256, (64, 64, 4), dtype=np.uint8))
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def refused(*arguments: str, code: int, says: tuple[str, ...]) -> None:
    before = sorted(Path().iterdir())
    found = run(*arguments, code=code)
    message = " ".join(found.stderr.split())
    assert "Traceback" not in message and found.stdout == ""
    for words in says:
        assert words in message, message
    assert sorted(Path().iterdir()) == before


def size(path: str) -> tuple[int, int, int]:
    info = probe(path)
    return info.width, info.height, info.frames


def test_a_picture_gives_the_size_uncropped():
    run("sample", "x", "--image", "p.png", "--frames", "6", "-o", "v.mp4", *QUICK)
    assert size("v.mp4") == (60, 36, 6)


def test_pictures_of_another_size_are_made_to_fit_and_it_is_said():
    found = run(
        *("sample", "x", "--image", "p.png", "--image", "q.png@last", "--size", "48x48", "--frames", "9"),
        *("--fit", "contain", "-o", "v.mp4", *QUICK),
    )
    assert "p.png: scaled from 60x36 to 48x29, its height padded by 19 pixels." in found.stderr
    assert "q.png: scaled from 64x64 to 48x48." in found.stderr
    assert size("v.mp4") == (48, 48, 9)


def test_a_picture_changes_the_video():
    for name, more in (("with", ["--image", "p.png@4"]), ("without", [])):
        run("sample", "x", "--size", "60x36", "--frames", "9", *more, "-o", f"{name}.png.gif", *QUICK)
    a, b = (iio.imread(f"{name}.png.gif", index=None) for name in ("with", "without"))
    assert not np.array_equal(a, b)


@pytest.mark.parametrize(
    ("options", "frames"),
    [
        (["--forward", "7"], 16),
        (["--backward", "3"], 12),
        (["--forward", "5", "--backward", "9"], 23),
        (["--loop", "6"], 15),
    ],
)
def test_extend_adds_exactly_so_many_frames(options: list[str], frames: int):
    found = json.loads(run("extend", "a.mp4", "x", *options, "--json", "-o", "v.mp4", *QUICK).stdout)
    assert size("v.mp4") == (50, 40, frames) == (found["width"], found["height"], found["frames"])
    assert found["new_frames"] == frames - 9 and found["fps"] == probe("v.mp4").fps == 10
    assert found["forwards"] == found["windows"] * 2 * 2


def test_extend_makes_a_name_and_a_picture_into_a_clip():
    assert run("extend", "a.mp4", "--forward", "4", *QUICK).stdout.strip() == "a-extended-3.mp4"
    assert run("extend", "p.png", "x", "--forward", "4", *QUICK).stdout.strip() == "p-extended-3.mp4"
    assert size("p-extended-3.mp4") == (60, 36, 5)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that makes 9 frames at once."""
    monkeypatch.setattr(random, "RandomCheckpoint", lambda **given: REAL(trained_frames=(1, 9), **given))


def test_more_frames_than_the_model_makes_at_once_are_made_in_windows(short: None):
    found = run("sample", "x", "--frames", "23", "--size", "50x40", "-o", "v.mp4", "--json", *QUICK)
    assert size("v.mp4") == (50, 40, 23)
    assert json.loads(found.stdout)["windows"] == 5  # 9 frames, and then 4, 4, 4 and 2 that go on from the last 5
    told = run("sample", "x", "--frames", "23", "--size", "50x40", "--dry-run", "--json", *QUICK)
    assert json.loads(told.stdout)["windows"] == 5
    run("sample", "x", "--frames", "9", "--size", "50x40", "-o", "w.mp4", *QUICK)  # at once
    longer, shorter = read_video("v.mp4")[0], read_video("w.mp4")[0]
    assert np.abs(longer[:9].astype(int) - shorter).mean() < 2  # but for the coding, which looks ahead


def test_pictures_are_frames_of_the_windows_that_they_are_in(short: None):
    run("sample", "x", "--frames", "23", "--size", "60x36", "-o", "v.mp4", *QUICK)
    run("sample", "x", "--frames", "23", "--image", "p.png@14", "-o", "w.mp4", *QUICK)
    without, with_picture = read_video("v.mp4")[0].astype(int), read_video("w.mp4")[0].astype(int)
    differs = np.abs(without - with_picture).mean(axis=(1, 2, 3))
    assert differs[:8].max() < 2 and differs[13:17].min() > 3  # from the window of frames 13 to 16 on


@pytest.mark.parametrize(
    "option", [["--count", "2"], ["--keep-latents"], ["--save-latents", "l.safetensors"], ["--preview-file", "p.gif"]]
)
def test_what_is_for_clips_made_at_once_is_refused_in_windows(option: list[str], short: None):
    refused(
        *("sample", "x", "--frames", "10", "-o", "v.mp4", *option, *QUICK),
        code=2,
        says=(option[0], "10 frames are made in windows", "nearest number of frames is 9"),
    )


def test_connect_joins_clips_of_other_sizes_and_rates():
    run("connect", "a.mp4", "b.mp4", "x", "--frames", "5", "-o", "v.mp4", *QUICK)
    assert size("v.mp4") == (50, 40, 9 + 5 + 6)
    found = run("connect", "a.mp4", "c.mp4", "--fit", "cover", "--frames", "4", "-o", "w.mp4", *QUICK)
    assert "c.mp4: it has 25 frames per second; it is read at 10." in found.stderr
    assert "c.mp4: scaled from 32x32 to 50x50, 10 pixels of its height cut off." in found.stderr
    assert size("w.mp4") == (50, 40, 9 + 4 + 2)


def test_a_clip_shorter_than_a_frame_is_one_frame():
    write_video("fast.mp4", np.zeros((3, 40, 50, 3), np.uint8), fps=100)
    write_video("slow.mp4", np.zeros((3, 40, 50, 3), np.uint8), fps=2)
    run("connect", "slow.mp4", "fast.mp4", "x", "--frames", "4", "-o", "v.mp4", *QUICK)
    assert size("v.mp4") == (50, 40, 3 + 4 + 1)


def test_a_picture_is_read_as_a_clip_as_it_is_as_an_image():
    pixels = np.zeros((32, 48, 4), np.uint8)
    pixels[:, :24] = 200, 0, 0, 255
    iio.imwrite("r.png", pixels)  # the right half is transparent
    run("extend", "r.png", "x", "--forward", "1", "-o", "v.mp4", *QUICK)
    first = iio.imread("v.mp4", index=0).astype(int)
    assert np.abs(first[:, 28:] - 255).max() < 8 and np.abs(first[:, :20] - (200, 0, 0)).max() < 8


def test_an_edit_of_strength_0_takes_no_step():
    found = json.loads(run("edit", "a.mp4", "x", "--strength", "0", "--json", "-o", "v.mp4", *QUICK).stdout)
    assert (found["steps"], found["forwards"], found["frames"]) == (0, 0, 9)


def test_edit_keeps_size_length_and_rate():
    found = json.loads(run("edit", "a.mp4", "x", "--strength", "0.5", "--json", "-o", "v.mp4", *QUICK).stdout)
    assert size("v.mp4") == (50, 40, 9) and probe("v.mp4").fps == 10
    assert found["steps"] == 1 and found["forwards"] == 2  # half of the two steps
    assert run("edit", "p.png", "a b", *QUICK).stdout.strip() == "p-a-b-3.png"
    assert size("p-a-b-3.png") == (60, 36, 1)


def test_a_model_that_was_not_trained_for_it_says_so(monkeypatch: pytest.MonkeyPatch):
    for known, image, says in (
        ("none", "p.png", "not trained with given frames"),
        ("first", "p.png@last", "trained with the first frame given, and no other"),
        ("first", "p.png", None),
    ):
        monkeypatch.setattr(random, "RandomCheckpoint", lambda k=known: replace(REAL(), known_frames=k))
        found = run("sample", "x", "--image", image, "--frames", "5", "-q", "--overwrite", "-o", "v.mp4", *QUICK)
        assert (says or "") in found.stderr and (says is not None or "trained" not in found.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["sample", "x", "--image", "none.png"], 1, ("--image none.png", "no such file")),
        (["sample", "x", "--image", "."], 1, ("--image .", "folder")),
        (["sample", "x", "--image", "p.png@9", "--frames", "9"], 2, ("p.png@9", "0 to 8", "nearest is p.png@8")),
        (["sample", "x", "--image", "p.png@-2"], 2, ("p.png@-2", "first, last", "nearest is p.png@last")),
        (
            ["sample", "x", "--image", "p.png", "--image", "q.png@0", "--frames", "9"],
            2,
            ("p.png is frame 0 already", "such as q.png@last"),
        ),
        (
            ["sample", "x", "--image", "p.png@5", "--image", "q.png@7", "--frames", "9"],
            2,
            ("frames 5 to 8 together", "p.png is one of them", "nearest free one is 4"),
        ),
        (
            ["sample", "x", *("--image", "p.png@1", "--image", "q.png@3", "--image", "p.png@0"), "--frames", "5"],
            2,
            ("q.png@3", "frames 1 to 4 together", "none is free"),
        ),
        (["sample", "x", "--image", "bad.png"], 1, ("bad.png", "no picture of a known kind")),
        (["sample", "x", "--image", "p.png", "--fit", "crop"], 2, ("--fit 'crop'", "cover, contain, stretch")),
        (["sample", "x", "--fit", "cover"], 2, ("--fit cover", "no --image")),
        (["sample", "x", "--image", "thin.png"], 2, ("thin.png", "200x8", "--size, such as 200x16")),
        (["extend", "a.mp4"], 2, ("--forward", "--backward", "--loop")),
        (["extend", "a.mp4", "--loop", "4", "--forward", "4"], 2, ("--loop and --forward",)),
        (["extend", "a.mp4", "--forward", "0"], 2, ("--forward 0", "nearest is 1")),
        (["extend", "none.mp4", "--forward", "4"], 1, ("CLIP none.mp4", "no such file")),
        (["extend", "bad.mp4", "--forward", "4"], 1, ("bad.mp4", "ffmpeg cannot read it")),
        (["extend", "empty.mp4", "--forward", "4"], 1, ("empty.mp4", "the file is empty")),
        (["extend", "a.mp4", "--forward", "4", "-o", "v.png"], 2, ("v.png", "a .png holds 1 frame")),
        (["extend", "a.mp4", "--forward", "4", "-o", "b.mp4"], 1, ("b.mp4", "exists")),
        (["connect", "a.mp4", "b.mp4"], 2, ("--frames",)),
        (["connect", "a.mp4", "c.mp4", "--frames", "4"], 2, ("B c.mp4", "32x32", "50x40", "--fit")),
        (["connect", "a.mp4", "none.mp4", "--frames", "4"], 1, ("B none.mp4", "no such file")),
        (["edit", "a.mp4", "x", "--strength", "2"], 2, ("--strength 2", "from 0 to 1", "nearest is 1")),
        (["edit", "a.mp4", "x", "--strength", "much"], 2, ("--strength much",)),
        (["edit", "a.mp4", "x", "--strength", "-1"], 2, ("--strength -1", "nearest is 0")),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(arguments: list[str], code: int, says: tuple[str, ...]):
    Path("bad.png").write_bytes(b"\x89PNG nothing")
    Path("bad.mp4").write_bytes(b"nothing" * 100)
    Path("empty.mp4").write_bytes(b"")
    iio.imwrite("thin.png", np.zeros((8, 200, 3), np.uint8))
    refused(*arguments, *QUICK, code=code, says=says)


def test_encoding_that_does_not_fit_is_refused_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dit_video.plan.ENCODER_WORK", 10**9)
    for arguments in (
        ["sample", "x", "--image", "p.png@4", "--frames", "9"],
        ["edit", "a.mp4", "x"],
        ["extend", "a.mp4", "--backward", "4"],
    ):
        refused(*arguments, *QUICK, code=2, says=("encoding its", "of memory"))
    run("sample", "x", "--image", "p.png", "--frames", "5", "-o", "v.mp4", *QUICK)  # one frame takes little


def test_a_picture_larger_than_memory_is_refused_unread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dit_video.video.io.MAX_PICTURE_PIXELS", 2000)
    refused(
        "sample", "x", "--image", "p.png", *QUICK, code=1, says=("p.png", "2,000 pixels at most", "60x36", "smaller")
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["extend", "a.mp4", "--forward", "4"], "what comes after the clip is black all over"),
        (["extend", "a.mp4", "--backward", "4"], "what comes before the clip is black all over"),
        (["connect", "a.mp4", "b.mp4", "--frames", "4"], "what comes after the clip is black all over"),
    ],
)
def test_black_new_frames_are_said_and_with_strict_not_kept(
    line: list[str], words: str, monkeypatch: pytest.MonkeyPatch
):
    def black(stages: object, latents: object, shape: VideoShape, **_: object) -> Iterator[np.ndarray]:
        yield from np.zeros((shape.num_frames, shape.height, shape.width, 3), np.uint8)

    monkeypatch.setattr(extend, "decode_or_tile", black)
    assert f"{words}." in run(*line, *QUICK, "-o", "v.mp4").stderr
    Path("v.mp4").unlink()
    said = " ".join(run(*line, *QUICK, "--strict", "-o", "v.mp4", code=1).stderr.split())
    assert f"{words}; it is not kept (--strict)" in said
    assert not [path for path in Path().iterdir() if path.name == "v.mp4" or path.suffix == ".part"]


@pytest.mark.parametrize(
    ("coding", "output", "says"),
    [
        (["-pix_fmt", "yuv444p"], "out.mp4", "clip.mp4: its colours are stored as 4:4:4, in out.mp4 as 4:2:0, at half"),
        (["-pix_fmt", "yuv420p10le"], "out.mp4", "clip.mp4: its colours have 10 bits, in out.mp4 8."),
        (
            ["-vf", "setsar=4/3", "-pix_fmt", "yuv420p"],
            "out.mp4",
            "clip.mp4: its pixels are 4:3 and not square; they are",
        ),
        (["-pix_fmt", "yuv444p"], "out.gif", ""),
        (["-pix_fmt", "yuv420p"], "out.mp4", ""),
    ],
)
def test_what_the_new_file_does_not_hold_is_said(coding: list[str], output: str, says: str):
    source = ["-f", "lavfi", "-i", "testsrc=s=64x48:r=8:d=0.5"]
    subprocess.run([get_ffmpeg_exe(), "-v", "error", *source, *coding, "clip.mp4"], check=True)
    line = ["--random-weights", "--forward", "4", "--steps", "1", "--seed", "1", "-o", output]
    said = run("extend", "clip.mp4", "a", *line).stderr
    assert [says in line for line in said.splitlines() if line.startswith("clip.mp4: ")] == ([True] if says else [])
