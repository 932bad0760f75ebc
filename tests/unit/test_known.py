"""What is given of a clip: which frames a latent frame stands for, how known latent frames are encoded and that they
never change, and the channels beside the noise of models that take pictures so.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.errors import UsageError
from dit_video.flow.solvers import SOLVERS
from dit_video.groups import STILL_GROUPS, frames_of, group_of
from dit_video.known import Known, encode_beside, encode_frames, encode_known
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.nn.pixels import pad_frames, to_video
from dit_video.shapes import VideoShape
from dit_video.stages import Stages

CHECKPOINT = RandomCheckpoint()
SHAPE = VideoShape(num_frames=13, height=40, width=50)
PADDED = CHECKPOINT.grid.padded(SHAPE)


@pytest.fixture(scope="module")
def vae():
    return CHECKPOINT.load_vae(dtype=torch.float32)


def frames(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SHAPE.height, SHAPE.width, 3), dtype=np.uint8)


def test_every_frame_is_in_the_group_that_counts_it():
    for stride in (1, 2, 4):
        of = [frame for group in range(6) for frame in frames_of(group, stride)]
        assert of == list(range(len(of)))
        assert all(frame in frames_of(group_of(frame, stride), stride) for frame in of)


@pytest.mark.parametrize("shape", [(6, 40, 56), (5, 41, 56)])
def test_frames_that_are_not_on_the_grid_are_refused(vae, shape: tuple[int, int, int]):
    with pytest.raises(UsageError, match=f"video of {shape[2]}x{shape[1]}, {shape[0]} frames"):
        encode_frames(vae, np.zeros((*shape, 3), np.uint8))


def test_a_known_beginning_is_encoded_as_the_clip_itself(vae):
    clip = frames(13)
    whole = encode_frames(vae, pad_frames(clip, PADDED))
    known = encode_known(vae, CHECKPOINT.grid, SHAPE, {0: clip[:1], 1: clip[1:5], 2: clip[5:9]})
    assert known.frames.tolist() == [True, True, True, False]
    assert torch.equal(known.latents[:, :3], whole[:, :3]) or torch.allclose(known.latents[:, :3], whole[:, :3], 1e-4)
    assert not known.latents[:, 3].any()


def test_a_known_end_is_encoded_behind_a_still_picture(vae):
    end = frames(8)
    known = encode_known(vae, CHECKPOINT.grid, SHAPE, {2: end[:4], 3: end[4:]})
    still = np.concatenate([np.repeat(end[:1], 1 + 4 * STILL_GROUPS, axis=0), end])
    padded = VideoShape(num_frames=len(still), height=SHAPE.height, width=SHAPE.width)
    wanted = encode_frames(vae, pad_frames(still, CHECKPOINT.grid.padded(padded)))[:, -2:]
    assert known.frames.tolist() == [False, False, True, True]
    assert torch.allclose(known.latents[:, 2:], wanted, atol=1e-5)
    apart = encode_known(
        vae, CHECKPOINT.grid, SHAPE, {0: end[:1], 3: end[4:]}
    )  # two parts, which do not see each other
    assert torch.allclose(apart.latents[:, 0], encode_frames(vae, pad_frames(end[:1], _one()))[:, 0], atol=1e-5)


def _one() -> VideoShape:
    return VideoShape(num_frames=1, height=PADDED.height, width=PADDED.width)


class Watched(RandomCheckpoint):
    """Keeps what its transformer is given."""

    seen: list[tuple[list[torch.Tensor], list[torch.Tensor]]] = []  # noqa: RUF012 (of the one test that uses it)

    def load_dit(self, which: str = "transformer", **where: Any) -> Any:
        dit = super().load_dit(which, **where)
        forward = dit.forward

        def watched(latents, timesteps, *rest):
            self.seen.append(([x.clone() for x in latents], [t.clone() for t in timesteps]))
            return forward(latents, timesteps, *rest)

        dit.forward = watched
        return dit


@pytest.mark.parametrize("solver", SOLVERS)
def test_known_patches_never_change_while_the_rest_is_denoised(solver):
    checkpoint = Watched()
    checkpoint.seen.clear()
    stages = Stages(checkpoint, dtype=torch.float32, device=torch.device("cpu"))
    size = checkpoint.grid.latent(SHAPE)
    known = Known(
        latents=torch.randn(checkpoint.latent_channels, size.frames, size.height, size.width),
        frames=torch.tensor([True, False, False, True]),
    )
    clips = [
        Clip(prompt="a", shape=SHAPE, seed=1, known=known),
        Clip(prompt="a", shape=SHAPE, seed=1),  # beside it one that is free
    ]
    settings = Settings(steps=3, solver=solver, guidance=(3.0,))
    found, free = sample_latents(stages, clips, settings)
    assert torch.equal(found[:, known.frames], known.latents[:, known.frames])
    assert not torch.allclose(found[:, 1:3], free[:, 1:3])
    for latents, timesteps in checkpoint.seen:
        for x, times in zip(latents[::2], timesteps[::2], strict=True):  # the known clip, conditional and not
            assert torch.equal(x[:, known.frames], known.latents[:, known.frames])
            assert times[known.frames].eq(0).all() and times[~known.frames].gt(0).all()
        assert all(times.gt(0).all() for times in timesteps[1::2])


def test_a_start_of_full_strength_takes_all_steps_and_of_none_takes_none():
    assert [Settings(steps=10, strength=s).first_step for s in (1.0, 0.5, 0.05, 0.0)] == [0, 5, 9, 10]


def masks(shape: VideoShape, groups: list[int]) -> list[list[int]]:
    """What `encode_beside` says is given: for every latent frame its four frames."""
    vae, picture = CHECKPOINT.load_vae(dtype=torch.float32), np.full((1, shape.height, shape.width, 3), 200, np.uint8)
    found = encode_beside(vae, CHECKPOINT.grid, shape, {group: picture for group in groups})
    latent = CHECKPOINT.grid.latent(shape)
    assert found.shape == (4 + CHECKPOINT.latent_channels, latent.frames, latent.height, latent.width)
    assert (found[:4] == found[:4, :, :1, :1]).all()
    return found[:4, :, 0, 0].T.int().tolist()


def test_what_is_given_beside_the_noise():
    shape = VideoShape(num_frames=9, height=32, width=32)
    nothing, last = [0, 0, 0, 0], [0, 0, 0, 1]
    assert masks(shape, [0]) == [[1] * 4, nothing, nothing]
    assert masks(shape, [0, 2]) == [[1] * 4, nothing, last]
    assert masks(replace(shape, num_frames=7), [0, 2]) == [[1] * 4, nothing, [0, 1, 1, 1]]  # 9 frames, two cut off
    assert masks(replace(shape, num_frames=1), [0]) == [[1] * 4]


def test_a_clip_with_a_picture_beside_the_noise_is_grey_but_for_it():
    shape, vae = VideoShape(num_frames=5, height=32, width=32), CHECKPOINT.load_vae(dtype=torch.float32)
    picture = np.random.default_rng(1).integers(0, 256, (1, 32, 32, 3), dtype=np.uint8)
    video = torch.zeros(1, 3, 5, 32, 32)
    video[:, :, :1], video[:, :, 4:] = to_video(picture[None]), to_video(picture[None]).flip(-1)
    found = encode_beside(vae, CHECKPOINT.grid, shape, {0: picture, 1: np.repeat(picture[:, :, ::-1], 4, axis=0)})
    assert torch.allclose(found[4:], vae.encode(video)[0], atol=1e-5)
