"""The judge of animate, extend, connect and edit: right about true clips, and not about broken ones."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dit_video.clip import Settings
from dit_video.evaluate import fixed_questions, rates
from dit_video.evaluate_modes import MODES, NO_JUMP, Bench, _joined, answer_modes, jump
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.scenes.detector import centres
from dit_video.scenes.render import render
from dit_video.shapes import VideoShape
from dit_video.stages import Stages

SHAPE = VideoShape(num_frames=24, height=144, width=256)
QUESTIONS = fixed_questions(40, SHAPE, split="training")


def test_centres_are_where_the_objects_are():
    found = 0
    for question in QUESTIONS:
        places = centres(render(question.scene)[:3])
        if places is not None:
            true = question.scene.objects[0].path(SHAPE.num_frames)[:3, :2]
            assert np.abs(places - true).max() < 0.04 * SHAPE.height  # a triangle's centre is not its circle's
            found += 1
    assert found > 36


def test_true_clips_do_not_jump_and_cut_ones_do():
    true = [jump(render(question.scene)[10:13]) for question in QUESTIONS]
    assert np.mean([value <= NO_JUMP for value in true]) > 0.9  # bouncing is told from jumping by its smallness alone
    for question in QUESTIONS[:10]:
        frames = render(question.scene)[10:13].copy()
        frames[2] = np.roll(frames[2], 20, axis=1)
        assert jump(frames) > NO_JUMP
        frames[2] = frames[2, 0, 0]  # nothing to be seen
        assert jump(frames) == 1.0


def test_a_true_continuation_is_right_and_a_turned_one_is_not():
    moving = [q for q in QUESTIONS if q.scene.objects[0].motion in ("moving left", "moving right")]
    assert moving
    for question in moving:
        frames = render(question.scene)
        assert _joined(question, frames, [12])[0].right == {"motion": True, "no jump": True, "all": True}
        back = np.concatenate([frames[:12], frames[11::-1]])
        assert not _joined(question, back, [12])[0].right["motion"]


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_asked_and_answered(mode):
    """On a random model, which is right about nothing: the path alone."""
    shape = VideoShape(num_frames=12, height=32, width=48)
    stages = Stages(RandomCheckpoint(), dtype=torch.float32, device=torch.device("cpu"), keep=True)
    bench = Bench(stages, replace(Settings(steps=1), strength=0.5), shape, "", window=9)
    answers, strips = answer_modes(mode, bench, fixed_questions(2, shape), lambda *_: None)
    assert len(answers) == len(strips) == 2 and strips[0].shape[1:] == (32, 48, 3)
    assert rates(answers)["all"].total == 2
