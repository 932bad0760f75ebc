"""Previews: what they look like, what they cost, and that nothing is lost by them."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dit_video import preview as module
from dit_video.known import encode_frames
from dit_video.models import open_checkpoint
from dit_video.preview import Preview, fit_preview, preview_map
from dit_video.scenes.render import render
from dit_video.scenes.world import Scene, SceneObject
from dit_video.shapes import VideoShape
from dit_video.video.io import probe

VAE = open_checkpoint("default", None).load_vae(dtype=torch.float32)
MAP = fit_preview(VAE)
SHAPE = VideoShape(num_frames=9, height=64, width=96)
BALL = SceneObject(
    shape="circle", colour="red", motion="moving right", centre=(48, 32), travel=(40, 0), radius=(18, 18)
)
FRAMES = render(Scene(width=96, height=64, num_frames=9, background="white", objects=(BALL,)))
LATENTS = encode_frames(VAE, FRAMES)


def small(frames: np.ndarray) -> np.ndarray:
    """Frames (T, H, W, 3) at a quarter of their size."""
    t, height, width, _ = frames.shape
    return frames.reshape(t, height // 4, 4, width // 4, 4, 3).mean((2, 4))


def test_previews_look_like_the_clip_frame_by_frame():
    shown = MAP(LATENTS).astype(float)
    assert shown.shape == (9, 16, 24, 3)
    wanted = small(FRAMES)
    assert np.abs(shown - wanted).mean() < 0.4 * np.abs(wanted - wanted.mean((0, 1, 2))).mean()
    # Every frame is more like its own than like the one two frames before: the map knows time too.
    for number in range(2, 9):
        own, other = (np.abs(shown[number] - wanted[n]).mean() for n in (number, number - 2))
        assert own < other


def test_the_map_of_an_image_is_that_of_first_frames():
    assert np.array_equal(MAP(LATENTS[:, :1]), MAP(LATENTS)[:1])


def test_maps_are_fitted_once_for_each_autoencoder(tmp_path: Path):
    loads: list[str] = []

    def load(name: str):
        return lambda: loads.append(name) or VAE

    one = preview_map(load("a"), "a", tmp_path / "preview")
    again = preview_map(load("a"), "a", tmp_path / "preview")
    assert loads == ["a"] and torch.equal(one.first, again.first) and torch.equal(one.others, again.others)
    preview_map(load("b"), "b", tmp_path / "preview")
    assert loads == ["a", "b"]
    for file in (tmp_path / "preview").iterdir():
        file.write_bytes(b"damaged")
    preview_map(load("a"), "a", tmp_path / "preview")
    assert loads == ["a", "b", "a"]
    preview_map(load("a"), "a", None)
    assert loads == ["a", "b", "a", "a"]


def test_a_preview_is_a_small_gif_of_all_frames(tmp_path: Path):
    shape = VideoShape(num_frames=7, height=62, width=90)
    Preview(tmp_path / "a.gif", shape, 8, MAP, pytest.fail).write(LATENTS)
    found = probe(tmp_path / "a.gif")
    assert (found.width, found.height, found.frames) == (230, 160, 7)  # a quarter of the clip, enlarged
    assert found.fps == pytest.approx(8, abs=0.2)


def test_previews_take_no_more_than_their_share_of_the_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    written: list[int] = []
    preview = Preview(tmp_path / "a.gif", SHAPE, 8, MAP, pytest.fail, share=0.02)

    def write(latents: torch.Tensor) -> None:
        now[0] += 0.5
        written.append(int(latents))

    monkeypatch.setattr(preview, "write", write)
    for step in range(1, 101):
        now[0] += 1.0
        preview(step, 100, [torch.tensor(step)])
        assert preview.seconds == 0.5 * len(written) and (step < 50 or preview.seconds <= 0.02 * now[0])
    assert written[0] <= 50 and len(written) >= 3


def test_a_preview_that_cannot_be_written_is_said_once(tmp_path: Path):
    said: list[str] = []
    preview = Preview(tmp_path / "none" / "a.gif", SHAPE, 8, MAP, said.append, share=1e9)
    for step in range(1, 4):
        preview(step, 4, [LATENTS])
    assert len(said) == 1 and "No such file" in said[0]


def test_rows_and_frames_are_each_others_reverse():
    video = torch.rand(3, 8, 8, 12)
    rows = module._rows(video, 4, 2)
    assert torch.equal(module._frames(rows.view(2, 4, 6, -1), 4), video)
