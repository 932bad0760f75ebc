"""The autoencoder's clips from folders: native where they fit into a step, else windows of the file's own pixels."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dit_video.errors import DvgenError, UsageError
from dit_video.shapes import Grid, VideoShape
from dit_video.train import autoencoder, clips, file_clips
from dit_video.train.autoencoder import load_autoencoder, reconstruction_loss
from dit_video.train.clips import Batch
from dit_video.train.config import AutoencoderArch, AutoencoderConfig, FilesConfig, LoopConfig, OptimConfig, PhaseConfig
from dit_video.train.dry_run_autoencoder import dry_run
from dit_video.train.file_clips import FileClips
from dit_video.train.files import scan
from dit_video.train.linear_code import load_linear_code
from dit_video.video.io import probe, read_frames, write_video

GRID = Grid(stride=(4, 16, 16))
ARCH = AutoencoderArch(dim=8, decoder_dim=8, z_dim=8, patch=4)
LOOP = LoopConfig(steps=6, warmup=1, log_every=2, ema=0.5, threads=1, validate_minutes=1e9)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips and pictures of several sizes, lengths and rates without captions, one that is short and one broken."""
    out = tmp_path_factory.mktemp("data") / "clips"
    out.mkdir()
    rng = np.random.default_rng(0)
    for name, frames, height, width, fps in (
        ("wide.mp4", 13, 48, 96, 8), ("tall.mp4", 9, 80, 40, 24), ("large.webm", 30, 160, 224, 12),
        ("picture.png", 1, 50, 34, 1), ("still.png", 1, 150, 150, 1), ("short.mp4", 3, 32, 32, 8),
    ):  # fmt: skip
        blocks = rng.integers(0, 256, (frames, height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        pixels = blocks.repeat(8, axis=1).repeat(8, axis=2)[:, :height, :width]
        write_video(out / name, pixels, fps=fps)
    (out / "broken.mp4").write_bytes(b"nothing at all")
    return out


def config(folder: Path, out: Path | str = "", *, loop: LoopConfig = LOOP, **options) -> AutoencoderConfig:
    files = FilesConfig(folders=(str(folder),), **options.pop("files", {}))
    optim = OptimConfig(adam_lr=5e-4, muon_lr=0.005)
    return AutoencoderConfig(
        out=str(out), arch=ARCH, loop=loop, optim=optim, files=files, **{"batch_pixels": 80_000} | options
    )


def clips_of(folder: Path, tmp_path: Path, **options) -> tuple[FileClips, list[str]]:
    asked, notes = config(folder, **options), []
    assert asked.files is not None
    found = scan(asked.files, tmp_path / "index.json", notes.append, captioned=False)
    return FileClips(asked, GRID, found, notes.append), notes


def test_captions_are_not_needed_and_what_is_left_out_is_counted(folder: Path, tmp_path: Path):
    made, notes = clips_of(folder, tmp_path)
    assert {piece.path.name for piece in made.found.training} == {
        "wide.mp4", "tall.mp4", "large.webm", "picture.png", "still.png"
    }  # fmt: skip
    assert len(notes) == 3 and "2 files were left out." in notes
    assert any("short.mp4: it has fewer than 5 frames (min_frames)" in note for note in notes)


def test_small_clips_are_whole_and_large_ones_are_windows_of_their_own_pixels(folder: Path, tmp_path: Path):
    made, _ = clips_of(folder, tmp_path, batch_pixels=200_000)  # a window has a quarter of it
    assert made.cut == 2 / 5  # wide is 59,904 pixels, large is 1,075,200
    whole = {piece.path.name: piece.shape for piece in made.found.training}
    windows = [made._window(made.found.training[n % 5], np.random.default_rng(n)) for n in range(60)]
    for window in windows:
        name, shape = window.piece.path.name, window.shape
        if name in ("tall.mp4", "picture.png", "still.png"):
            assert shape == whole[name]
        assert shape.num_frames * shape.height * shape.width <= 50_000
    large = {window.corner for window in windows if window.piece.path.name == "large.webm"}
    assert all(len({corner[axis] for corner in large}) > 3 for axis in range(3))  # at any frame, row and column
    window = next(window for window in windows if window.piece.path.name == "large.webm" and window.corner[0] > 0)
    assert window.shape == VideoShape(num_frames=9, height=64, width=64)
    ((_, found),) = made._frames([window])
    frame, row, column = window.corner
    expected = np.stack(list(read_frames(window.piece.path)))[frame : frame + 9, row : row + 64, column : column + 64]
    assert (found == expected).all()


def test_a_step_has_several_files_of_several_shapes_and_fits(folder: Path, tmp_path: Path):
    made, _ = clips_of(folder, tmp_path)
    shapes = set()
    for seed in range(12):
        batches = made.step(np.random.default_rng(seed))
        again = made.step(np.random.default_rng(seed))
        assert all(torch.equal(a.video, b.video) for a, b in zip(batches, again, strict=True))
        assert len({batch.shape for batch in batches}) == len(batches)
        pixels = sum(batch.video[:, 0].numel() for batch in batches)
        assert pixels <= 80_000 or sum(len(batch.video) for batch in batches) == 1
        shapes |= {batch.shape for batch in batches}
        assert all(batch.video.shape[1] == 3 and batch.video.abs().max() <= 1 for batch in batches)
        assert all(GRID.padded(batch.shape) == batch.shape for batch in batches)
    assert (
        len(shapes) >= 4 and max(len(batches) for batches in map(made.step, map(np.random.default_rng, range(9)))) > 1
    )


def test_sides_can_be_drawn_and_long_videos_become_several_clips(folder: Path, tmp_path: Path):
    made, _ = clips_of(folder, tmp_path, files={"short_side": (16, 100), "max_frames": 10})
    large = [piece for piece in made.found.training if piece.path.name == "large.webm"]
    assert [piece.start for piece in large] == [0, 10, 20]
    sides = {made._window(large[0], np.random.default_rng(n)).scaled.height for n in range(20)}
    assert len(sides) > 10 and min(sides) >= 16 and max(sides) <= 100


def test_a_file_that_is_damaged_later_is_named_once(folder: Path, tmp_path: Path):
    copies = tmp_path / "copies"
    copies.mkdir()
    for name in ("wide.mp4", "tall.mp4"):
        (copies / name).write_bytes((folder / name).read_bytes())
    made, notes = clips_of(copies, tmp_path, batch_pixels=400_000)
    (copies / "wide.mp4").write_bytes(b"gone bad")
    for seed in range(8):
        assert {batch.shape.width for batch in made.step(np.random.default_rng(seed))} == {64}
    assert len(notes) == 1 and "left out" in notes[0] and "wide.mp4" in notes[0]
    made, _ = clips_of(copies, tmp_path)
    (copies / "tall.mp4").write_bytes(b"gone bad too")
    with pytest.raises(DvgenError, match="none of the"):
        made.step(np.random.default_rng(0))


def test_memory_for_clips_is_bounded(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reads: list[str] = []
    read = file_clips.read_piece
    monkeypatch.setattr(
        file_clips, "read_piece", lambda piece, shape: reads.append(piece.path.name) or read(piece, shape)
    )
    made, _ = clips_of(folder, tmp_path)
    for seed in range(10):
        made.step(np.random.default_rng(seed))
    assert sorted(reads) == sorted({piece.path.name for piece in made.found.training})  # each once
    monkeypatch.setattr(file_clips, "KEPT_BYTES", 400_000)
    made, _ = clips_of(folder, tmp_path)
    for seed in range(10):
        made.step(np.random.default_rng(seed))
        assert sum(frames.nbytes for frames in made._kept.values()) == made._bytes <= 400_000


def test_the_loss_of_several_batches_is_that_of_all_their_pixels(folder: Path):
    """Two batches of one shape and one of both have the same loss: the same noise, deviations and mean."""
    torch.manual_seed(0)
    vae = autoencoder.WanVAE(autoencoder.vae_config(ARCH))
    asked = dataclasses.replace(config(folder, edge_weight=1.0, latent_noise=0.0), loop=LOOP)
    video = torch.rand(3, 3, 5, 32, 64) * torch.tensor([0.2, 0.5, 1.0]).view(3, 1, 1, 1, 1)
    shape = VideoShape(num_frames=5, height=32, width=64)

    def batch(part: torch.Tensor) -> Batch:
        return Batch(shape, part, torch.ones_like(part[:, :1]), ("",) * len(part))

    def loss(*batches: Batch) -> float:
        return float(reconstruction_loss(vae, batches, asked, torch.Generator().manual_seed(1)).detach())

    assert loss(batch(video[:1]), batch(video[1:])) == pytest.approx(loss(batch(video)), rel=1e-3)
    assert loss(batch(video[:1])) != pytest.approx(loss(batch(video)), rel=1e-3)


def test_a_run_on_files_learns_validates_and_resumes_bit_for_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(autoencoder, "STATISTICS_CLIPS", 8)
    validation = {"validation": 0.3}
    asked = config(folder, tmp_path / "whole", loop=dataclasses.replace(LOOP, steps=20), files=validation)
    told = dry_run(asked, note=lambda _: None)
    assert not (tmp_path / "whole").exists()
    assert (told.clips + told.validation_clips, told.skipped, told.steps) == (5, 2, 20) and told.validation_clips >= 1
    assert (
        1 <= told.clips_per_step <= 20 and told.pixels <= 80_000 and told.clips_seen == round(20 * told.clips_per_step)
    )
    assert told.step_seconds > told.data_seconds > 0 and told.memory > 0 and told.seconds == 20 * told.step_seconds

    log: list = []
    notes: list[str] = []
    autoencoder.train(asked, resume=False, report=log.append, note=notes.append)
    assert log[-1].loss < log[0].loss and "2 files were left out." in notes
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").read_text().splitlines()]
    (validated,) = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert 0 < validated < log[0].loss
    sheet = probe(tmp_path / "whole" / "sheet-000020.png")
    assert sheet.width > 100

    parts = config(folder, tmp_path / "parts", loop=dataclasses.replace(LOOP, steps=7), files=validation)
    autoencoder.train(parts, resume=False, report=log.append)
    again = dataclasses.replace(parts, loop=dataclasses.replace(LOOP, steps=20))
    autoencoder.train(again, resume=True, report=log.append)
    first, second = (
        torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)["modules"]["vae"]
        for name in ("whole", "parts")
    )
    torch.testing.assert_close(second, first, rtol=0, atol=0)

    vae = load_autoencoder(tmp_path / "whole")
    made, _ = clips_of(folder, tmp_path, files=validation)
    latents = torch.cat(
        [vae.encode(b.video).transpose(0, 1).flatten(1) for b in made.step(np.random.default_rng(5))], 1
    )
    assert 0.3 < float(latents.std()) < 3 and len(set(vae.config.latents_std)) == 8  # measured on these files


def test_a_linear_code_is_fitted_to_files(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clips, "CODE_CLIPS", 20)
    asked = config(folder, tmp_path / "run", loop=dataclasses.replace(LOOP, steps=2), linear_code=True)
    assert dry_run(asked, note=lambda _: None).step_seconds > 0
    autoencoder.train(asked, resume=False, report=lambda line: None)
    code = load_linear_code(tmp_path / "run")
    assert code is not None
    made, _ = clips_of(folder, tmp_path)
    latents = torch.cat([code(video[None]).transpose(0, 1).flatten(1) for video, _ in made.code_clips(made._rng(9))], 1)
    assert ((latents.std(1) > 0.5) & (latents.std(1) < 2)).all()  # each channel is whitened over all cells


def test_keys_that_mean_nothing_for_files_are_refused(folder: Path):
    with pytest.raises(UsageError, match=r"object_weight is 4, but in \[files\] nothing tells where objects are"):
        config(folder, object_weight=4.0)
    with pytest.raises(UsageError, match=r"\[data\] and \[files\]: only one of the two"):
        config(folder, data=PhaseConfig(images=1.0))
