"""Sampling: noise, packs, guidance, stages in memory, cropping.

On the tiny random model, or on stand-ins where the numbers must be known.
"""

import gc
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dit_video import denoise as module
from dit_video.clip import Clip, Settings
from dit_video.decode import decode_frames
from dit_video.denoise import sample_latents
from dit_video.errors import DvgenError, UsageError
from dit_video.machine import pick_device, pick_dtype
from dit_video.make import Result, make_clip
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.shapes import VideoShape
from dit_video.stages import Stages

CPU = torch.device("cpu")
CLIPS = (
    Clip(prompt="a red ball", shape=VideoShape(num_frames=5, height=64, width=96), seed=1),
    Clip(
        prompt="two blue squares, spinning", negative="red", shape=VideoShape(num_frames=1, height=33, width=50), seed=2
    ),
    Clip(prompt="", shape=VideoShape(num_frames=10, height=40, width=40), seed=2**63 - 1),
)
SETTINGS = Settings(steps=3, shift=3.0, guidance=(4.0,))


def stages(checkpoint: Any = None, **options: Any) -> Stages:
    return Stages(checkpoint or RandomCheckpoint(), **({"dtype": torch.float32, "device": CPU} | options))


KEPT = stages(keep=True)


def sampled(clips: Sequence[Clip], settings: Settings = SETTINGS) -> list[Tensor]:
    return sample_latents(KEPT, clips, settings)


def close(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    return float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


class StillDiT(nn.Module):
    """Predicts no velocity, so that what is sampled is the noise itself."""

    def __init__(self) -> None:
        super().__init__()
        self.passes = 0

    def encode_text(self, embeds: list[Tensor]) -> None:
        assert all(embed.ndim == 2 for embed in embeds)

    def forward(
        self, latents: list[Tensor], timesteps: list[Tensor], text: None, text_index: list[int]
    ) -> list[Tensor]:
        assert [times.shape for times in timesteps] == [(x.shape[1],) for x in latents]
        self.passes += len(text_index)
        return [torch.zeros_like(x) for x in latents * (len(text_index) // len(latents))]


class StillCheckpoint(RandomCheckpoint):
    def load_dit(self, which: str = "transformer", **where: Any) -> Any:
        return StillDiT()


class BrokenCheckpoint(RandomCheckpoint):
    def load_dit(self, which: str = "transformer", **where: Any) -> Any:
        dit = super().load_dit(which, **where)
        dit.head.head.bias.fill_(float("nan"))
        return dit


def test_noise_is_drawn_per_clip_on_the_padded_grid():
    found = sample_latents(stages(StillCheckpoint()), CLIPS, Settings(steps=2, solver="euler"))
    grid, channels = RandomCheckpoint().grid, RandomCheckpoint().latent_channels
    for clip, latents in zip(CLIPS, found, strict=True):
        shape = grid.latent(clip.shape)
        generator = torch.Generator("cpu").manual_seed(clip.seed)
        wanted = torch.randn((1, channels, shape.frames, shape.height, shape.width), generator=generator)
        assert close(latents, wanted[0], 1e-6)


@pytest.mark.parametrize(
    "settings",
    [
        *(replace(SETTINGS, solver=solver) for solver in ("unipc", "dpmpp-2m-sde", "lcm")),
        replace(SETTINGS, steps=20, fast=True),
    ],
    ids=str,
)
def test_a_pack_is_its_clips_one_by_one_in_any_order(settings: Settings):
    together, backwards = sampled(CLIPS, settings), sampled(CLIPS[::-1], settings)[::-1]
    alone = [sampled([clip], settings)[0] for clip in CLIPS]
    for one, two, three in zip(together, backwards, alone, strict=True):
        assert close(one, three, 1e-5) and close(two, three, 1e-5)


def test_passes_together_and_apart_agree(monkeypatch: pytest.MonkeyPatch):
    together, before = sampled(CLIPS), KEPT.forwards
    monkeypatch.setattr(module, "PACK_TOKENS", 0)
    apart = sampled(CLIPS)
    assert all(close(one, two, 1e-5) for one, two in zip(together, apart, strict=True))
    assert KEPT.forwards - before == len(CLIPS) * 3 * 2


@pytest.mark.parametrize(
    "change", [{"prompt": "a red bale"}, {"negative": "blue"}, {"seed": 3}, {"prompt": "A red ball"}], ids=str
)
def test_prompt_negative_and_seed_matter(change: dict[str, Any]):
    clip = CLIPS[0]
    other = Clip(**({"prompt": clip.prompt, "shape": clip.shape, "seed": clip.seed} | change))
    first, second = (sampled([c])[0] for c in (clip, other))
    assert not close(first, second, 1e-3)


@pytest.mark.parametrize(
    ("settings", "passes"),
    [
        (Settings(steps=4, guidance=(4.0,)), 8),
        (Settings(steps=4, guidance=(1.0,)), 4),
        (Settings(steps=4, guidance=(4.0,), solver="heun"), 14),
        (Settings(steps=4, guidance=(4.0,), solver="euler", guidance_interval=(0.4, 0.8)), 6),  # levels 1 .75 .5 .25
        (Settings(steps=20, guidance=(4.0,), fast=True), 20),
        (Settings(steps=20, guidance=(4.0,), fast=True, strength=0.5), 6),  # of steps 10 to 19: 10, 13 and 17
        (Settings(steps=20, guidance=(4.0,), fast=True, solver="lcm"), 40),
        (Settings(steps=19, guidance=(4.0,), fast=True), 38),
    ],
)
def test_forwards_are_counted(settings: Settings, passes: int):
    run = stages(StillCheckpoint())
    sample_latents(run, CLIPS[:1], settings)
    assert run.forwards == passes
    run.free()
    assert run.forwards == passes


def test_one_stage_in_memory_at_a_time():
    run = stages()
    alive = [weakref.ref(run.text), weakref.ref(run.dit()), weakref.ref(run.vae)]
    gc.collect()
    assert [ref() is not None for ref in alive] == [False, False, True]
    kept = stages(keep=True)
    assert kept.text is kept.text and kept.dit() is kept.dit()
    assert kept.seconds["load"] > 0


def test_two_experts_share_the_levels():
    seen: list[str] = []
    run = stages(
        RandomCheckpoint(boundary=0.5),
        progress=lambda stage, done, total: seen.append(stage) if stage not in seen else None,
    )
    settings = Settings(steps=4, solver="euler", guidance=(4.0, 3.0))  # levels 1 .75 .5 .25
    clip = CLIPS[:1]
    found = sample_latents(run, clip, settings)[0]
    assert seen == ["load text encoder", "text", "load transformer", "steps", "load transformer_2"]
    assert run.forwards == 8
    assert not close(found, sampled(clip, Settings(steps=4, solver="euler", guidance=(4.0,)))[0], 1e-3)


def test_the_level_of_the_boundary_itself_is_the_high_noise_experts():
    """As in the release and in diffusers, where it works while t >= boundary * 1000."""
    steps: list[int] = []
    loaded: list[tuple[str, int]] = []

    def told(stage: str, done: int, total: int) -> None:
        if stage == "steps":
            steps.append(done)
        elif stage.startswith("load transformer") and done == 0:
            loaded.append((stage, max(steps, default=0)))

    settings = Settings(steps=4, solver="euler", guidance=(1.0,))  # levels 1 .75 .5 .25
    sample_latents(stages(RandomCheckpoint(boundary=0.5), progress=told), CLIPS[:1], settings)
    assert loaded == [("load transformer", 0), ("load transformer_2", 3)]


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_lower_precision_covers_every_stage(dtype: torch.dtype, tolerance: float):
    clip = CLIPS[0]
    exact, run = KEPT, stages(dtype=dtype, keep=True)
    wanted, found = (sample_latents(s, [clip], SETTINGS)[0] for s in (exact, run))
    assert found.dtype == torch.float32 and close(found, wanted, tolerance)
    for stage in (run.text.module, run.dit(), run.vae):
        assert next(stage.parameters()).dtype == dtype
    frames = [np.stack(list(decode_frames(s.vae, wanted, clip.shape))).astype(int) for s in (exact, run)]
    assert np.abs(frames[0] - frames[1]).mean() < 3


def test_undefined_latents_are_an_error():
    with pytest.raises(DvgenError, match="undefined numbers"):
        sample_latents(stages(BrokenCheckpoint()), CLIPS[:1], SETTINGS)


class Ramp(nn.Module):
    """A decoder of known pixels: the value of a pixel says its frame, its row and its column."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.decoded = 0

    def decode_stream(self, latents: Tensor, *, tile: int | None) -> Iterator[Tensor]:
        _, _, frames, height, width = latents.shape
        for index in range(frames):
            self.decoded += 1
            numbers = torch.arange(1 if index == 0 else 4) + (0 if index == 0 else 4 * index - 3)
            pixels = numbers[:, None, None] * 50 + torch.arange(height * 4)[:, None] * 3 + torch.arange(width * 4)
            yield (pixels / 127.5 - 1).expand(1, 3, -1, -1, -1)


def test_frames_are_cropped_and_trimmed():
    vae, shape = Ramp(), VideoShape(num_frames=3, height=5, width=7)
    frames = list(decode_frames(vae, torch.zeros(2, 4, 2, 2), shape))  # 13 frames of 8x8
    assert [frame.shape for frame in frames] == [(5, 7, 3)] * 3
    rows, columns = np.mgrid[:5, :7]
    for number, frame in enumerate(frames):
        assert frame.dtype == np.uint8
        assert (frame == (number * 50 + rows * 3 + columns)[..., None]).all()
    assert vae.decoded == 2, "decoding goes on after the last frame"


def test_generate_writes_video_and_latents(tmp_path: Path):
    clip, notes = CLIPS[1], []
    run = stages(note=notes.append)
    latents = tmp_path / "a.safetensors"
    result = make_clip(run, clip, SETTINGS, tmp_path / "a.png", fps=8, save_latents=latents)
    assert (result.width, result.height, result.frames, result.seed) == (50, 33, 1, 2)
    assert result.tokens == np.prod(result.grid) and result.forwards == 6
    assert set(result.seconds) == {"load", "text", "denoise", "decode"}
    assert result.peak_memory["host"] > 1e7
    assert close(load_file(latents)["latents"], sampled([clip])[0], 1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.safetensors"]


def test_latents_survive_a_failed_decode(tmp_path: Path):
    class Failing(RandomCheckpoint):
        def load_vae(self, **where: Any) -> Any:
            raise DvgenError("no autoencoder")

    with pytest.raises(DvgenError, match="no autoencoder"):
        make_clip(
            stages(Failing()), CLIPS[0], SETTINGS, tmp_path / "a.mp4", fps=8, save_latents=tmp_path / "a.safetensors"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_too_little_memory_is_a_sentence(tmp_path: Path, error: Exception):
    class Full(RandomCheckpoint):
        def load_vae(self, **where: Any) -> Any:
            raise error

    with pytest.raises(DvgenError, match="96x64, 5 frames: there is not enough memory"):
        make_clip(stages(Full()), CLIPS[0], SETTINGS, tmp_path / "a.mp4", fps=8)


def test_long_prompts_are_cut_with_a_note():
    notes: list[str] = []
    run = stages(warn=notes.append)
    sample_latents(run, [Clip(prompt="word " * 200, shape=CLIPS[0].shape, seed=0)], Settings(steps=1))
    assert len(notes) == 1 and "512 tokens" in notes[0]


def test_unknown_words_are_said_once(monkeypatch: pytest.MonkeyPatch):
    notes: list[str] = []
    run = stages(keep=True, warn=notes.append)
    monkeypatch.setattr(type(run.text), "unknown_words", lambda self, prompt: prompt.split()[:1])
    clips = [Clip(prompt="cat on a beach", shape=CLIPS[0].shape, seed=0)] * 2
    for _ in range(2):
        sample_latents(run, clips, Settings(steps=1))
    assert len(notes) == 1 and "'cat'" in notes[0]


def test_a_result_has_the_unknown_words_of_its_own_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = stages(keep=True)
    monkeypatch.setattr(type(run.text), "unknown_words", lambda self, prompt: prompt.split()[:1])
    picture = VideoShape(num_frames=1, height=16, width=16)

    def made(prompt: str, guidance: float) -> Result:
        clip = Clip(prompt=prompt, negative="dog cat", shape=picture, seed=0)
        settings = Settings(steps=1, guidance=(guidance,))
        return make_clip(run, clip, settings, tmp_path / "a.png", fps=8, overwrite=True)

    assert made("cat on a beach", 2.0).unknown_words == ["cat", "dog"]
    assert made("dog", 2.0).unknown_words == ["dog"]
    assert made("cat", 1.0).unknown_words == ["cat"], "what was read for another clip"
    assert not made("", 1.0).unknown_words and made("word " * 600, 1.0).prompt_cut


def test_devices_and_dtypes(monkeypatch: pytest.MonkeyPatch):
    assert pick_device("cpu") == CPU
    assert pick_dtype("auto", torch.device("cuda")) == torch.bfloat16
    assert pick_dtype("auto", torch.device("mps")) == torch.float32
    assert pick_dtype("float16", CPU) == torch.float16
    for flags, wanted in (({}, torch.float32), ({"avx512_bf16": True}, torch.bfloat16)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda flags=flags: flags, raising=False)
        assert pick_dtype("auto", CPU) == wanted
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="--device cuda"):
            pick_device("cuda")
