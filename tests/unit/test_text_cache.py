"""Prompts that were read before: no encoder is loaded again, the numbers are the same, and nothing stale is used."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.machine import dtype_name
from dit_video.models import open_checkpoint
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from dit_video.text.cache import Embedded, EmbeddingCache, made_by, users_cache
from tests.tiny import tiny_wan21_folder

CPU = torch.device("cpu")
SETTINGS = Settings(steps=2, guidance=(3.0,))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_wan21_folder(tmp_path_factory.mktemp("text") / "wan")


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A text encoder more for each that is loaded."""
    loads, real = [], WanCheckpoint.load_text
    monkeypatch.setattr(WanCheckpoint, "load_text", lambda self, **how: loads.append(self) or real(self, **how))
    return loads


def sample(folder: Path, *prompts: str, dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor], list[str]]:
    """Latents, and what was said. A model opened anew stands for another process."""
    checkpoint, said = open_checkpoint(folder), []
    cache = users_cache(made_by(checkpoint.text_files, dtype_name(dtype), CPU.type))
    stages = Stages(checkpoint, dtype=dtype, device=CPU, cache=cache, note=said.append, warn=said.append)
    shape = VideoShape(num_frames=5, height=32, width=32)
    clips = [Clip(prompt=prompt, negative="blue", shape=shape, seed=1) for prompt in prompts]
    return sample_latents(stages, clips, SETTINGS), said


def test_a_repeated_prompt_loads_no_encoder_and_gives_the_same_latents(folder: Path, loaded: list[Any]):
    long = "a red ball " * 300
    first, said = sample(folder, long, "the cat")
    assert len(loaded) == 1 and any("512" in line for line in said) and not any("on disk" in line for line in said)
    again, said = sample(folder, long, "the cat")
    assert len(loaded) == 1 and all(torch.equal(*pair) for pair in zip(first, again, strict=True))
    assert any("512" in line for line in said) and any("kept on disk" in line for line in said)
    sample(folder, "the cat", "another")  # the one that is new
    assert len(loaded) == 2


def test_what_the_numbers_depend_on_makes_them_others(folder: Path, loaded: list[Any]):
    sample(folder, "a cat")
    sample(folder, "a cat", dtype=torch.bfloat16)
    assert len(loaded) == 2
    for file in ("text_encoder/model.safetensors", "text_encoder/config.json", "tokenizer/tokenizer.json"):
        os.utime(folder / file, (1, 1 + len(loaded)))
        before = len(loaded)
        sample(folder, "a cat")
        assert len(loaded) == before + 1, file
    os.utime(folder / "transformer" / "config.json", (1, 1))
    sample(folder, "a cat")
    assert len(loaded) == 5


def test_a_damaged_file_is_as_good_as_none(folder: Path, loaded: list[Any], own_cache: Path):
    whole, _ = sample(folder, "a cat")
    for change in (lambda data: data[:-40], lambda _: b"", lambda data: data[:200] + b"x" * 80 + data[280:]):
        for file in own_cache.rglob("*.pt"):
            file.write_bytes(change(file.read_bytes()))
        before = len(loaded)
        again, _ = sample(folder, "a cat")
        assert torch.equal(whole[0], again[0]) and len(loaded) == before + 1


def test_a_folder_that_cannot_be_written_is_no_failure(folder: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    (own_cache / "text").write_text("a file is in the way")
    _, said = sample(folder, "a cat")
    assert any(line.startswith("what was read of the prompt is not kept (") for line in said)
    monkeypatch.setenv("DVGEN_CACHE", "")
    assert users_cache("x") is None
    _, said = sample(folder, "a cat")
    assert not any("kept" in line for line in said)


def test_those_not_used_for_longest_go_first(tmp_path: Path):
    cache = EmbeddingCache(tmp_path, "encoder", max_bytes=30_000)
    embedded = Embedded(torch.ones(20, 100), ["word"], cut=True)
    for number, prompt in enumerate("abc"):
        cache.write(prompt, embedded)
        os.utime(cache.path(prompt), (number, number))
    assert cache.read("a") is not None  # used now
    cache.write("d", embedded)
    assert [prompt for prompt in "abcd" if cache.has(prompt)] == ["a", "c", "d"]
    found = cache.read("d")
    assert found is not None and torch.equal(found.embedding, embedded.embedding)
    assert (found.unknown, found.cut) == (["word"], True)
    assert EmbeddingCache(tmp_path, "another").read("d") is None
