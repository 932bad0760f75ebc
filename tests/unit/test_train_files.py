"""Training on folders of videos and pictures: what is found in them, how clips are read and cached, and a whole run."""

import dataclasses
import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.errors import DvgenError, UsageError
from dit_video.models import open_checkpoint
from dit_video.scenes.files import write_scenes
from dit_video.shapes import Grid, VideoShape
from dit_video.stages import Stages
from dit_video.train import dit
from dit_video.train.config import DiTArch, DiTTrainConfig, FilesConfig, LoopConfig, OptimConfig, load_config
from dit_video.train.dry_run import dry_run
from dit_video.train.files import FileShards, sampled_shape, scan
from dit_video.video.io import write_video

GRID = Grid(stride=(4, 16, 16), patch=(1, 2, 2))
ROOT = Path(__file__).parents[2]


def video(path: Path, frames: int, height: int, width: int, *, fps: float = 8, caption: str | None = "a clip") -> None:
    rng = np.random.default_rng(frames * width)
    write_video(path, rng.integers(0, 256, (frames, height, width, 3), dtype=np.uint8), fps=fps)
    if caption is not None:
        path.with_suffix(".txt").write_text(caption + "\n")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos and a picture of other shapes, in two folders; and what must be left out."""
    clips = tmp_path / "clips"
    (clips / "deep").mkdir(parents=True)
    video(clips / "wide.mp4", 23, 48, 96, caption="a wide clip\nanother wording")
    video(clips / "deep" / "tall.mp4", 6, 80, 40, caption=None)
    video(clips / "picture.png", 1, 33, 50, caption="a picture")
    video(clips / "silent.mp4", 5, 32, 32, caption=None)
    (clips / "broken.mp4").write_bytes(b"nothing at all")
    (clips / "broken.txt").write_text("words")
    lines = ['{"file": "deep/tall.mp4", "caption": ["a tall clip", "tall"]}', "", "no json"]
    (clips / "captions.jsonl").write_text("\n".join(lines))
    return clips


def found_in(folder: Path, **options) -> tuple:
    notes: list[str] = []
    config = FilesConfig(folders=(str(folder),), **options)
    return config, scan(config, folder.parent / "index.json", notes.append), notes


def test_files_captions_and_what_is_left_out(folder: Path):
    _, found, notes = found_in(folder)
    pieces = {(piece.path.name, piece.start): piece for piece in found.training}
    assert set(pieces) == {("wide.mp4", 0), ("tall.mp4", 0), ("picture.png", 0)}
    assert pieces["wide.mp4", 0].captions == ("a wide clip", "another wording")
    assert pieces["tall.mp4", 0].captions == ("a tall clip", "tall")
    assert pieces["wide.mp4", 0].shape == VideoShape(num_frames=23, height=48, width=96)
    assert found.captions == ["a picture", "a tall clip", "a wide clip", "another wording", "tall"]
    assert sorted(path.name for path in found.skipped) == ["broken.mp4", "captions.jsonl:3", "silent.mp4"]
    assert (
        len(notes) == 4
        and notes[-1] == "3 files were left out."
        and any("broken.mp4: ffmpeg cannot read it" in note for note in notes)
    )


def test_long_videos_become_several_clips_and_rates_can_be_set(folder: Path):
    _, found, _ = found_in(folder, max_frames=10, min_frames=4)
    assert [(p.start, p.shape.num_frames) for p in found.training if p.path.name == "wide.mp4"] == [(0, 10), (10, 10)]
    _, found, _ = found_in(folder, fps=4)
    wide = next(p for p in found.training if p.path.name == "wide.mp4")
    assert (wide.fps, wide.shape.num_frames) == (4, 12)


def test_sizes_that_are_trained_on_are_what_is_reported(folder: Path):
    """A dry run and the model's defaults go by them: with `max_pixels` and `short_side`, not the files' own."""
    _, found, _ = found_in(folder, max_pixels=40_000)
    for piece in found.training:
        assert piece.shape.num_frames * piece.shape.height * piece.shape.width <= 40_000
        assert sampled_shape(FilesConfig(folders=("x",), max_pixels=40_000), piece.shape, None) == piece.shape
    config, found, _ = found_in(folder, short_side=(16, 24))
    sides = {piece.path.name: (piece.shape.width, piece.shape.height) for piece in found.training}
    assert sides == {"wide.mp4": (48, 24), "tall.mp4": (24, 48), "picture.png": (36, 24)}
    wide = next(piece.shape for piece in found.training if piece.path.name == "wide.mp4")
    drawn = {sampled_shape(config, wide, np.random.default_rng(n)).height for n in range(40)}
    assert min(drawn) >= 16 and max(drawn) <= 24 and len(drawn) > 4
    assert dit.defaults_of_files(found)["size"] in ("48x24", "24x48")


def test_some_files_are_kept_for_validation_and_always_the_same(folder: Path):
    _, all_, _ = found_in(folder)
    splits = [found_in(folder, validation=0.5)[1] for _ in range(2)]
    assert splits[0].training == splits[1].training and splits[0].validation
    assert len(splits[0].training) + len(splits[0].validation) == len(all_.training)


def test_folders_that_give_nothing_are_refused(tmp_path: Path):
    with pytest.raises(DvgenError, match="is not a folder"):
        found_in(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DvgenError, match="no clip to train on"):
        found_in(tmp_path / "empty")
    with pytest.raises(UsageError, match="folders is empty"):
        FilesConfig(folders=())


def shards_of(folder: Path, encode, **options) -> tuple[FileShards, list[str]]:
    config, found, _ = found_in(folder, **options)
    notes: list[str] = []
    made = FileShards(
        folder.parent / "cache", found.training, config, GRID, encode,
        clips=3, seed=(1,), fingerprint="x", note=notes.append,
    )  # fmt: skip
    return made, notes


def counting(calls: list[tuple[int, ...]]):
    def encode(videos: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(videos.shape))
        _, _, t, h, w = videos.shape
        return torch.full((1, 2, 1 + (t - 1) // 4, h // 16, w // 16), float(videos.mean()))

    return encode


def test_clips_keep_their_shape_and_are_encoded_once(folder: Path):
    calls: list[tuple[int, ...]] = []
    shards, _ = shards_of(folder, counting(calls))
    first, second = shards.load(0), shards.load(1)
    assert sorted(calls) == [(1, 3, 1, 64, 64), (1, 3, 9, 96, 64), (1, 3, 25, 64, 96)]  # padded to 32 and to 4k + 1
    assert sorted(len(e.captions) for e in first) == sorted(len(e.captions) for e in second) == [1, 2, 2]
    again, _ = shards_of(folder, counting(calls))
    assert [torch.equal(a.latents, b.latents) for a, b in zip(again.load(0), first, strict=True)] == [True] * 3
    assert len(calls) == 3
    assert not any(e.objects.any() for e in first)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
from dit_video.train import files
from tests.unit.test_train_files import counting, shards_of

save, made = torch.save, []

def killed_in_the_third(latents, path):
    made.append(path)
    if len(made) == 3:
        save(latents, path)
        path.write_bytes(path.read_bytes()[:100])
        os.kill(os.getpid(), signal.SIGKILL)
    save(latents, path)

torch.save = killed_in_the_third
shards_of(Path(sys.argv[1]), counting([]))[0].load(0)
"""


def test_latents_survive_a_process_that_was_killed(folder: Path):
    """kill -9 while the third of three clips is written: the next run uses two, makes one, and no half of one."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = [path.read_bytes() for path in (folder.parent / "cache").rglob("*.pt")]
    assert len(kept) == 2
    calls: list[tuple[int, ...]] = []
    shards, _ = shards_of(folder, counting(calls))
    assert len(shards.load(0)) == 3 and len(calls) == 1
    again = [path.read_bytes() for path in (folder.parent / "cache").rglob("*.pt")]
    assert len(again) == 3 and all(each in again for each in kept)


def test_sides_can_be_drawn_anew_each_time(folder: Path):
    calls: list[tuple[int, ...]] = []
    shards, _ = shards_of(folder, counting(calls), short_side=(16, 64), max_pixels=40_000)
    sizes = {(tuple(e.latents.shape), e.captions) for index in range(12) for e in shards.load(index)}
    assert len(sizes) > 3  # more than the clips
    assert all(t * h * w <= 40_000 * 2.5 for _, _, t, h, w in calls)  # rounded up to the grid


def test_a_file_that_is_damaged_later_is_named_once_and_left_out(folder: Path):
    shards, notes = shards_of(folder, counting([]))
    (folder / "wide.mp4").write_bytes(b"gone bad")
    assert sorted(len(shards.load(n)) for n in range(3)) == [2, 2, 2]
    assert len(notes) == 1 and "wide.mp4" in notes[0] and list(shards.damaged) == [folder / "wide.mp4"]


def test_a_run_on_real_files_learns_them_and_can_be_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    scenes = tmp_path / "scenes"
    list(write_scenes(scenes, 8, 3, size=(64, 48), num_frames=9))
    (scenes / "bad.mp4").write_bytes(b"x")
    (scenes / "bad.txt").write_text("a bad file")
    monkeypatch.setattr(dit, "sample_sheet", lambda *_, **__: None)
    out = tmp_path / "run"
    text = f"""
out = "{out}"
autoencoder = "{ROOT / "weights" / "default"}"
shard_clips = 6
window = 2
pack_tokens = 64
[files]
folders = ["{scenes}"]
validation = 0.3
[arch]
dim = 48
num_heads = 2
ffn_dim = 96
num_layers = 2
text_dim = 32
text_layers = 1
text_heads = 2
text_ffn = 32
[loop]
steps = 30
warmup = 2
log_every = 5
threads = 1
ema = 0.5
[optim]
adam_lr = 3e-3
"""
    (tmp_path / "c.toml").write_text(text)
    config = load_config(tmp_path / "c.toml", DiTTrainConfig)
    assert config.files == FilesConfig(folders=(str(scenes),), validation=0.3)
    told = dry_run(config, note=lambda _: None)
    assert not out.exists()
    assert (told.clips + told.validation_clips, told.skipped, told.steps) == (8, 1, 30)
    # A round holds two shards of six clips, 12 tokens each: five go into a pack of 64.
    assert (told.tokens_per_clip, told.clips_per_pack, told.clips_seen) == (12, 4, 120)
    assert told.passes == 120 / told.clips and told.padding == 1 - 12 * 12 / (3 * 64)
    assert told.step_seconds > 0 and told.encode_seconds > 0 and told.memory > 0

    log: list = []
    notes: list[str] = []
    dit.train(config, resume=False, report=log.append, note=notes.append)
    assert any("bad.mp4" in note for note in notes)
    assert log[-1].loss < log[0].loss
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any("validation_loss" in line for line in lines)

    checkpoint = open_checkpoint(out / "model")
    assert (checkpoint.defaults.width, checkpoint.defaults.height, checkpoint.defaults.frames) == (64, 48, 9)
    stages = Stages(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    shape = VideoShape(num_frames=9, height=48, width=64)
    sample_latents(stages, [Clip(prompt="a ball", shape=shape, seed=1)], Settings(steps=1))

    longer = dataclasses.replace(config, loop=dataclasses.replace(config.loop, steps=35))
    dit.train(longer, resume=True, report=log.append, note=notes.append)
    assert log[-1].step == 35
    assert (
        isinstance(config.optim, OptimConfig)
        and isinstance(config.arch, DiTArch)
        and isinstance(config.loop, LoopConfig)
    )
