"""What is in the files that the command writes, as players see it; and any prompt comes back out of them."""

import json
import re
import shlex
import shutil
import struct
import subprocess
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from dvgen.recipe import recipe_in
from imageio_ffmpeg import get_ffmpeg_exe

from dit_video.decode import decode_frames
from dit_video.latents import read_latents
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.shapes import VideoShape
from tests.program import frames, run_here

LINE = ("sample", "a red ball", "--random-weights", "--steps", "2", "--seed", "1", "--dtype", "float32", "--frames")
PROMPTS = {
    "quotes": 'it\'s a "ball" of `ls` and $HOME, 100% \\ {index}',
    "newlines": "one\ntwo\r\nthree\n\n",
    "tabs and controls": "a\tb\x01\x1b[31mred\x1b[0m\x7f",
    "emoji": "a 🦊 and 👩‍👩‍👧 in a café",
    "4,000 words": "мяч " * 4000,
    "right to left": "مرحبا بالعالم \u202eabc\u202c שלום",
    "leading dashes": "--output=/dev/null -q",
    "a single dash": "- x",
    "a list": "-- -h --help",
    "ffmpeg's own signs": "a=b;c#d\\\nTITLE=x\ncomment=y\n[CHAPTER]\n@file",
    "nothing": "",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def boxes(data: bytes, start: int = 0, end: int | None = None) -> dict[str, tuple[int, int]]:
    """The boxes of an MP4 file, or of a part of one: where the content of each begins and ends, in their order."""
    found, end = {}, len(data) if end is None else end
    while start < end:
        size, head = struct.unpack_from(">I", data, start)[0], 8
        if size == 1:
            size, head = struct.unpack_from(">Q", data, start + 8)[0], 16
        found[data[start + 4 : start + 8].decode("latin-1")] = start + head, start + size
        start += size
    assert start == end
    return found


def packets(path: str) -> tuple[list[Fraction], str]:
    """When each frame is shown, in seconds, and ffmpeg's messages about the file."""
    line = [get_ffmpeg_exe(), "-hide_banner", "-i", path, "-map", "0:v:0", "-fps_mode", "passthrough"]
    done = subprocess.run([*line, "-f", "framecrc", "-"], capture_output=True, text=True, check=True)
    tick = Fraction(re.search(r"#tb 0: (\S+)", done.stdout)[1])  # type: ignore[index]
    rows = [row.split(",") for row in done.stdout.splitlines() if not row.startswith("#")]
    return [tick * int(row[2]) for row in rows], done.stderr


def decoded(shape: VideoShape) -> np.ndarray:
    """The frames (T, H, W, 3) of the latents in a.safetensors, before they are encoded."""
    vae = RandomCheckpoint().load_vae(dtype=torch.float32, device=torch.device("cpu"))
    return np.stack(list(decode_frames(vae, read_latents(Path("a.safetensors")), shape)))


@pytest.mark.parametrize(
    ("name", "size", "pix_fmt"),
    [
        ("a.mp4", "96x80", "yuv420p"),
        ("a.mp4", "95x81", "yuv444p"),
        ("a.webm", "96x80", "yuv420p"),
        ("a.webm", "95x81", "yuv420p"),
        ("a.gif", "95x81", "bgra"),
    ],
)
def test_what_a_player_sees(name: str, size: str, pix_fmt: str):
    out, _ = run_here(
        *LINE, "7", "--size", size, "--fps", "12.5", "-o", name, "--save-latents", "a.safetensors", "--json"
    )
    about = json.loads(out)
    times, said = packets(name)
    assert times == [Fraction(2, 25) * number for number in range(7)], "evenly, from 0"
    video = re.search(r"Video: .*", said)[0]  # type: ignore[index]
    assert f", {pix_fmt}(" in video or f", {pix_fmt}," in video, video
    assert re.search(rf", {size}(,| )", video) and ("[SAR" not in video or "[SAR 1:1" in video), video
    assert "12.50 fps" in video or "12.5 fps" in video
    assert float(re.search(r"Duration: 00:00:([\d.]+)", said)[1]) == pytest.approx(0.56, abs=0.011)  # type: ignore[index]
    if name != "a.gif":
        assert f"{pix_fmt}(tv, bt709" in video
    wanted = decoded(VideoShape(num_frames=7, width=about["width"], height=about["height"])).astype(float)
    found = frames(name)
    assert found.shape == wanted.shape == (7, int(size[3:]), int(size[:2]), 3)
    # What is encoded is nearly noise, whose colours 4:2:0 and 256 colours keep only in the mean.
    assert np.abs(found.mean(axis=(1, 2)) - wanted.mean(axis=(1, 2))).max() < 3
    luma = [each @ (0.2126, 0.7152, 0.0722) for each in (found, wanted)]
    apart = [[np.abs(one - other).mean() for other in luma[1]] for one in luma[0]]
    assert np.argmin(apart, axis=1).tolist() == list(range(7)), "each frame is where it was"
    assert np.diag(apart).max() < 8, np.diag(apart)


def test_an_mp4_begins_with_its_index_and_has_one_rate():
    run_here(*LINE, "7", "--size", "32x32", "-o", "a.mp4", "--fps", "23.976")
    data = Path("a.mp4").read_bytes()
    found = boxes(data)
    assert next(iter(found)) == "ftyp" and list(found).index("moov") < list(found).index("mdat")
    assert found["moov"][1] <= found["mdat"][0]
    trak = boxes(data, *boxes(data, *found["moov"])["trak"])
    stbl = boxes(data, *boxes(data, *boxes(data, *trak["mdia"])["minf"])["stbl"])
    (entries,) = struct.unpack_from(">I", data, stbl["stts"][0] + 4)
    assert entries == 1 and struct.unpack_from(">I", data, stbl["stts"][0] + 8)[0] == 7, "one duration for all frames"


def test_a_png_is_what_was_decoded():
    run_here(*LINE, "1", "--size", "33x47", "-o", "a.png", "--save-latents", "a.safetensors")
    assert np.array_equal(frames("a.png"), decoded(VideoShape(num_frames=1, width=33, height=47)))


@pytest.mark.skipif(shutil.which("ffprobe") is None, reason="imageio-ffmpeg carries ffmpeg alone")
@pytest.mark.parametrize("name", ["a.mp4", "a.webm"])
def test_ffprobe_agrees(name: str):
    run_here(*LINE, "7", "--size", "64x48", "--fps", "12.5", "-o", name)
    line = ["ffprobe", "-v", "error", "-of", "json", "-show_streams", "-show_format", "-count_frames", name]
    found = json.loads(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    (video,) = found["streams"]
    wanted = {"width": 64, "height": 48, "pix_fmt": "yuv420p", "nb_read_frames": "7", "avg_frame_rate": "25/2"}
    wanted |= {"r_frame_rate": "25/2", "color_range": "tv", "color_space": "bt709"}
    assert {key: video[key] for key in wanted} == wanted and float(found["format"]["duration"]) == pytest.approx(0.56)


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif", ".png"])
def test_every_prompt_comes_back(suffix: str):
    """From the recipe, from `again --show` through a shell, and from `info`."""
    length = ("--frames", "1" if suffix == ".png" else "2")
    line = ("sample", "--random-weights", "--size", "16x16", *length, "--steps", "1", "--seed", "1", "-q")
    for number, (kind, prompt) in enumerate(PROMPTS.items()):
        name = f"{number}{suffix}"
        run_here(*line, "-o", name, "--", prompt)
        assert recipe_in(Path(name)).line[-2:] == ("--", prompt), kind
        # The runner makes one of the two signs that end a line on Windows.
        assert shlex.split(run_here("again", name, "--show")[0])[-1] == prompt.replace("\r\n", "\n"), kind
        assert json.loads(run_here("info", name, "--json")[0])["recipe"]["line"][-1] == prompt, kind


def test_a_prompt_of_signs_is_made_again_to_the_same_frames():
    line = ("sample", "--random-weights", "--size", "16x16", "--frames", "2", "--steps", "1", "--seed", "1", "-q")
    for number, kind in enumerate(("quotes", "leading dashes", "4,000 words")):
        run_here(*line, "-o", f"{number}.mp4", "--", PROMPTS[kind])
        run_here("again", f"{number}.mp4", "-o", f"{number}-again.mp4")
        assert np.array_equal(frames(f"{number}.mp4"), frames(f"{number}-again.mp4")), kind


def test_a_zero_byte_is_no_text():
    """It comes through files alone, and ffmpeg's arguments cannot hold it."""
    Path("jobs.jsonl").write_text(json.dumps({"prompt": "a\0b"}) + "\n")
    _, said = run_here("batch", "jobs.jsonl", "--random-weights", code=2)
    assert "jobs.jsonl" in said and "holds a zero byte" in said
