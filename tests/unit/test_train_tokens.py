"""Which tokens of a clip are known, which are dropped, and what they weigh in the loss."""

import dataclasses

import numpy as np
import torch

from dit_video.train.config import DiTTrainConfig, LoopConfig
from dit_video.train.tokens import kept_tokens, loss_weights, with_known_frames


def test_known_frames_are_what_sampling_knows_and_never_all():
    rng = np.random.default_rng(0)
    seen = [tuple((with_known_frames(torch.tensor(0.7), 4, 1.0, rng) == 0).tolist()) for _ in range(2000)]
    assert (True, True, True, True) not in seen
    for known in ((1, 0, 0, 0), (1, 1, 0, 0), (0, 0, 1, 1), (1, 0, 0, 1), (0, 1, 1, 0)):
        assert tuple(map(bool, known)) in seen
    for frames in (2, 3):  # not all of the shortest clips either
        assert all(bool((with_known_frames(torch.tensor(0.7), frames, 1.0, rng) > 0).any()) for _ in range(100))
    assert bool((with_known_frames(torch.tensor(0.7), 1, 1.0, rng) > 0).all())


def test_dropping_tokens_spares_objects_where_they_can_be_seen():
    objects = torch.zeros(3, 8, 8, dtype=torch.bool)
    objects[:, 2:4, 4:6] = True
    config = DiTTrainConfig(
        out="", autoencoder="", loop=LoopConfig(steps=1), drop_share=1.0, drop_rate=0.5, drop_background=0.9
    )
    rng = np.random.default_rng(0)
    token = 1 * 4 + 2  # of the second row of a grid of 4 x 4
    clear, noisy = torch.full((3,), 0.3), torch.full((3,), 0.95)
    low = [set(kept_tokens(objects, clear, (1, 2, 2), config, rng).tolist()) for _ in range(50)]
    high = [set(kept_tokens(objects, noisy, (1, 2, 2), config, rng).tolist()) for _ in range(50)]
    assert all({token, 16 + token, 32 + token} <= kept for kept in low)
    assert not all(token in kept for kept in high)  # there it would tell where the object is
    assert 3 + 3 < np.mean([len(kept) for kept in low]) < 3 + 7  # the object's three and a tenth of 45
    assert 18 < np.mean([len(kept) for kept in high]) < 30  # half of 48
    weights = loss_weights(objects, clear, torch.tensor([token, 0]), (1, 2, 2), 5.0)
    assert weights[0, 2:4, 4:6].eq(5).all() and weights[0, :2, :2].eq(1).all() and weights.sum() == 4 * 5 + 4
    assert kept_tokens(objects, clear, (1, 2, 2), dataclasses.replace(config, drop_share=0.0), rng) is None
