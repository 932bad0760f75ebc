"""The Python interface: what it makes, what it refuses, and that importing the package alone stays light."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dvgen.main import app
from typer.testing import CliRunner

import dit_video
from dit_video import Model, Video, generate, load_model
from dit_video.errors import DvgenError, UsageError
from dit_video.video.io import probe, read_picture

ROOT = Path(__file__).parents[2]
MODEL = load_model("random")
SMALL: dict[str, Any] = {"size": (48, 32), "frames": 5, "steps": 2, "seed": 3}
PICTURE = np.full((32, 48, 3), (200, 40, 90), np.uint8)


def made(**more: Any) -> Video:
    return MODEL.generate("a red ball", **{**SMALL, **more})


def test_a_video_has_the_size_the_length_and_the_seed_that_were_asked_for():
    video = made()
    assert video.frames.shape == (5, 32, 48, 3) and video.frames.dtype == np.uint8
    assert (video.seed, video.settings.steps, video.fps) == (3, 2, 8)
    assert set(video.seconds) >= {"denoise", "decode"}


def test_it_is_what_the_command_makes(tmp_path: Path):
    line = [
        "sample",
        "a red ball",
        "--random-weights",
        "--size",
        "48x32",
        "--frames",
        "1",
        "--steps",
        "2",
        "--seed",
        "3",
    ]
    result = CliRunner().invoke(app, [*line, "-o", str(tmp_path / "a.png"), "-q"])
    assert result.exit_code == 0, result.output
    assert np.array_equal(made(frames=1).frames[0], read_picture(tmp_path / "a.png"))


def test_a_seed_gives_the_same_frames_and_another_one_others():
    assert np.array_equal(made().frames, made().frames)
    assert not np.array_equal(made().frames, made(seed=4).frames)
    drawn = made(seed=None)
    assert np.array_equal(drawn.frames, made(seed=drawn.seed).frames)


def test_the_function_loads_a_model_or_takes_one():
    assert np.array_equal(generate("a red ball", model="random", device="cpu", **SMALL).frames, made().frames)
    assert np.array_equal(generate("a red ball", model=MODEL, **SMALL).frames, made().frames)


def test_stages_stay_in_memory_until_they_are_freed():
    loads: list[str] = []
    model = Model("random", progress=lambda stage, done, total: loads.append(stage) if "load" in stage else None)
    model.generate("a", **SMALL)
    once = list(loads)
    model.generate("b", **SMALL)
    assert once and loads == once
    model.free()
    model.generate("b", **SMALL)
    assert len(loads) > len(once)


def test_saved_files_hold_the_frames(tmp_path: Path):
    video = made()
    written = video.save(tmp_path / "a.mp4")
    info = probe(written.path)
    assert (info.width, info.height, info.frames, info.fps) == (48, 32, 5, 8)
    with pytest.raises(DvgenError, match="exists"):
        video.save(tmp_path / "a.mp4")
    video.save(tmp_path / "a.mp4", overwrite=True)


def test_given_pictures_are_frames_of_the_video(tmp_path: Path):
    one = made(images=PICTURE).frames
    assert not np.array_equal(one, made().frames)
    Video(frames=PICTURE[None], fps=1, prompt="", seed=0, settings=made().settings).save(tmp_path / "p.png")
    assert np.array_equal(made(images=tmp_path / "p.png").frames, one)
    assert np.array_equal(made(images={0: PICTURE}).frames, one)
    assert not np.array_equal(made(images={-1: PICTURE}).frames, one)
    assert MODEL.generate("a", images=PICTURE, frames=1, steps=1).frames.shape == (1, 32, 48, 3)


def test_callbacks_see_every_step_and_can_end_it():
    seen: list[tuple[int, int, tuple[int, ...]]] = []
    made(steps=3, on_step=lambda step, total, latents: seen.append((step, total, tuple(latents.shape))))
    assert [each[:2] for each in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(shape[1:] == (2, 2, 4) for *_, shape in seen)

    def end(step: int, total: int, latents: Any) -> None:
        raise KeyError("enough")

    with pytest.raises(KeyError, match="enough"):
        made(on_step=end)


def test_the_other_modes_keep_what_is_given():
    clip = made().frames
    longer = MODEL.extend(clip, "a", forward=3, backward=4, steps=1, seed=1)
    assert len(longer.frames) == 12 and np.array_equal(longer.frames[4:9], clip)
    looped = MODEL.extend(clip, "a", loop=4, steps=1, seed=1)
    assert len(looped.frames) == 9 and np.array_equal(looped.frames[:5], clip)
    other = made(seed=9).frames
    joined = MODEL.connect(clip, other, frames=3, steps=1, seed=1)
    assert np.array_equal(joined.frames[:5], clip) and np.array_equal(joined.frames[8:], other)
    edited = MODEL.edit(clip, "b", strength=0.5, steps=4, seed=1, fps=12)
    assert edited.frames.shape == clip.shape and edited.fps == 12 and edited.settings.first_step == 2


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"steps": 0}, "steps 0: must be a whole number from 1 to 1000; the nearest is 1"),
        ({"steps": 2.5}, "steps 2.5: must be a whole number"),
        ({"solver": "unipcx"}, "the nearest is unipc"),
        ({"sigmas": "x"}, "must be one of release, diffusers"),
        ({"shift": -1}, "the nearest is 0.1"),
        ({"guidance": (1, 2, 3)}, "must be one scale or two"),
        ({"guidance": (2, 3)}, "takes one scale; the nearest is 2"),
        ({"fast": "yes"}, "fast 'yes': must be True or False"),
        ({"guidance_interval": (0.9, 0.1)}, r"the nearest is \(0.1, 0.9\)"),
        ({"preset": "fast"}, "the nearest is distilled"),
        ({"stepz": 3}, "the nearest is steps"),
        ({"size": (3, 40)}, "the nearest is 16"),
        ({"frames": 0}, "the nearest is 1"),
        ({"fps": 0}, "the nearest is 1"),
        ({"fit": "x", "images": PICTURE}, "must be one of cover, contain, stretch"),
        ({"seed": -1}, "the nearest is 0"),
        ({"images": {9: PICTURE}}, "the video has 5 frames, 0 to 4"),
        ({"images": {-2: PICTURE}}, "must be the number of a frame from 0, or -1 for the last"),
        ({"images": PICTURE.astype(float)}, r"must be \(H, W, 3\) uint8"),
        ({"images": "nothing.png"}, "there is no such file"),
        ({"images": {"a": PICTURE}}, "images a: must be the number of a frame"),
        ({"images": {0: 1}}, "images 0: is 1; it must be a file, or an array"),
        ({"size": (64,)}, r"size \(64,\): must be two numbers, \(width, height\)"),
        ({"size": ()}, r"size \(\): must be two numbers"),
        ({"guidance_interval": (0.1,)}, r"guidance_interval \(0.1,\): must be two numbers, \(low, high\)"),
        ({"guidance_interval": 0.1}, r"guidance_interval 0.1: must be two numbers"),
        ({"guidance": object}, "guidance <class 'object'>: must be a number"),
        ({"solver": 5}, "solver '5': must be one of"),
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused_in_a_sentence(more: dict[str, Any], words: str):
    with pytest.raises(DvgenError, match=words):
        made(**more)


def test_clips_and_lengths_that_cannot_be_are_refused():
    clip = made().frames
    for wrong in ({}, {"loop": 2, "forward": 2}):
        with pytest.raises(UsageError, match="forward, backward or both, or loop alone"):
            MODEL.extend(clip, **wrong)
    with pytest.raises(UsageError, match="uint8"):
        MODEL.edit(clip.astype(float), "a")
    with pytest.raises(UsageError, match="fps 0: must be a number from 1 to 240; the nearest is 1"):
        MODEL.edit(clip, "a", fps=0)
    with pytest.raises(UsageError, match="the clip is 5; it must be a file, or an array"):
        MODEL.extend(5, forward=2)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="how the second is made to fit"):
        MODEL.connect(clip, clip[:, :16], frames=2)
    assert MODEL.connect(clip, clip[:, :16], frames=2, fit="cover", steps=1).frames.shape == (12, 32, 48, 3)
    with pytest.raises(UsageError, match="the nearest is 1"):
        MODEL.connect(clip, clip, frames=0)
    with pytest.raises(DvgenError):
        load_model("no such model")
    with pytest.raises(UsageError, match="the nearest is float32"):
        load_model("random", dtype="float31")


def test_what_the_command_says_is_warned_of_and_logged(caplog: pytest.LogCaptureFixture):
    model = load_model("default")
    with pytest.warns(UserWarning, match="never learnt the word 'zorp'"):
        video = model.generate("a red zorp", size=(96, 64), frames=5, steps=1)
    assert video.unknown_words == ["zorp"]
    with caplog.at_level(logging.INFO, logger="dit_video"):
        model.generate("a red ball", size=(96, 64), frames=5, steps=1, images={4: PICTURE})
    assert "scaled" in caplog.text or "cut" in caplog.text


def test_the_package_imports_nothing_heavy_until_it_is_used():
    code = "import sys, dit_video; assert 'torch' not in sys.modules; dit_video.generate; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing"):
        dit_video.nothing  # noqa: B018


def test_the_example_runs(tmp_path: Path):
    example = ROOT / "docs" / "examples" / "shots.py"
    assert len(example.read_text().splitlines()) <= 30
    done = subprocess.run(
        [sys.executable, str(example), str(tmp_path / "a.mp4"), "random"], check=True, capture_output=True, text=True
    )
    assert "a.mp4: 50 frames, 160x96" in done.stdout
    assert probe(tmp_path / "a.mp4").frames == 50
