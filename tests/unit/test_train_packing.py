from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dit_video.shapes import Grid
from dit_video.train.data import Example, PackStream
from dit_video.train.packing import pack_greedily, pack_in_chunks, padding


def mixed(seed: int, count: int) -> list[int]:
    """Tokens of clips between an image of 6 and a clip of 900."""
    return np.exp(np.random.default_rng(seed).uniform(np.log(6), np.log(900), count)).astype(int).tolist()


@pytest.mark.parametrize("pack", [pack_greedily, lambda tokens, budget: pack_in_chunks(tokens, budget, chunk=64)])
def test_every_clip_is_packed_once_and_nothing_overflows(pack):
    tokens = mixed(0, 500)
    packs = pack(tokens, 2048)
    assert sorted(i for each in packs for i in each) == list(range(500))
    assert max(sum(tokens[i] for i in each) for each in packs) <= 2048


@pytest.mark.parametrize("seed", range(5))
def test_under_two_percent_padding_on_mixed_clips(seed):
    tokens = mixed(seed, 5120)  # a round of the shipped config
    assert padding(pack_in_chunks(tokens, 3072), tokens, 3072) < 0.02


def test_chunks_keep_packs_mixed():
    """Longest first over everything would leave many packs without a short clip."""
    tokens = mixed(0, 5120)

    def with_images(packs: list[tuple[int, ...]]) -> float:
        return float(np.mean([min(tokens[i] for i in pack) < 20 for pack in packs]))

    assert with_images(pack_in_chunks(tokens, 3072, chunk=512)) > 1.2 * with_images(pack_greedily(tokens, 3072))


def test_padding_is_what_stays_empty():
    assert padding([(0,), (1, 2)], [60, 50, 30], 100) == pytest.approx(0.3)
    assert padding([(0,)], [500], 100) == 0
    assert padding([], [], 100) == 0


def test_a_clip_above_the_budget_has_a_pack_of_its_own():
    packs = pack_greedily([10, 5000, 20], 100)
    assert (1,) in packs
    assert len(packs) == 2


def test_nothing_to_pack():
    assert pack_greedily([], 100) == pack_in_chunks([], 100) == []


def test_a_clip_is_as_many_tokens_as_its_grid_says(monkeypatch: pytest.MonkeyPatch):
    shards = SimpleNamespace(grid=Grid(stride=(4, 8, 8), patch=(1, 2, 2)))
    stream = PackStream(shards, window=1, pack_tokens=100, seed=(0,))  # type: ignore[arg-type]
    example = Example(torch.zeros(16, 3, 8, 10), (), torch.zeros(3, 8, 10, dtype=torch.bool))
    assert stream.tokens(example) == 3 * 4 * 5
    monkeypatch.setattr(Grid, "tokens", lambda self, latent: (latent.frames, latent.height, 7))
    assert stream.tokens(example) == 3 * 8 * 7, "the grid owns the arithmetic"
