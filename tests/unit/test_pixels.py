"""Frames on their way from a device: in order, complete, and asked for while the next are made."""

import numpy as np
import pytest
import torch

from dit_video import decode
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.nn.pixels import Frames, one_ahead, to_frames
from dit_video.shapes import VideoShape


def test_frames_are_those_of_the_video_and_tell_undefined_numbers():
    video = torch.rand(3, 2, 4, 6) * 2 - 1
    frames, finite = Frames(video).get()
    assert finite and frames.dtype == np.uint8 and np.array_equal(frames, to_frames(video))
    video[1, 1, 2, 3] = torch.nan
    assert not Frames(video).get()[1] and len(Frames(video)) == 2


@pytest.mark.parametrize("ahead", [False, True])
def test_a_part_is_given_once_the_next_has_been_begun(ahead):
    told = []

    def parts():
        for number in range(3):
            told.append(f"made {number}")
            yield Frames(torch.full((3, 1, 1, 1), number / 2 - 0.5))

    for number, part in enumerate(one_ahead(parts(), ahead=ahead)):
        told.append(f"given {number}")
        assert np.array_equal(part.get()[0], to_frames(torch.full((3, 1, 1, 1), number / 2 - 0.5)))
    if ahead:
        assert told == ["made 0", "made 1", "given 0", "made 2", "given 1", "given 2"]
    else:
        assert told == ["made 0", "given 0", "made 1", "given 1", "made 2", "given 2"]
    assert list(one_ahead([], ahead=ahead)) == []


def test_decoding_ahead_gives_the_same_frames(monkeypatch):
    vae = RandomCheckpoint().load_vae(dtype=torch.float32)
    torch.manual_seed(0)
    latents, shape = torch.randn(vae.config.z_dim, 3, 2, 3), VideoShape(width=40, height=30, num_frames=7)
    want = list(decode.decode_frames(vae, latents, shape))
    monkeypatch.setattr(decode, "one_ahead", lambda parts, *, ahead: one_ahead(parts, ahead=True))
    got = list(decode.decode_frames(vae, latents, shape))
    assert len(got) == 7 and all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))
