import numpy as np
import pytest

from dit_video.train.packing import pack_greedily


def test_every_clip_is_packed_once_and_nothing_overflows():
    tokens = np.random.default_rng(0).integers(1, 400, 500).tolist()
    packed = pack_greedily(tokens, 2048)
    assert sorted(i for pack in packed.packs for i in pack) == list(range(500))
    assert max(sum(tokens[i] for i in pack) for pack in packed.packs) <= 2048


@pytest.mark.parametrize("seed", range(5))
def test_under_two_percent_padding_on_mixed_clips(seed):
    tokens = np.exp(np.random.default_rng(seed).uniform(np.log(6), np.log(900), 1024)).astype(int).tolist()
    assert pack_greedily(tokens, 3072).padding < 0.02


def test_a_clip_above_the_budget_has_a_pack_of_its_own():
    packed = pack_greedily([10, 5000, 20], 100)
    assert (1,) in packed.packs
    assert len(packed.packs) == 2


def test_nothing_to_pack():
    assert pack_greedily([], 100).packs == ()
