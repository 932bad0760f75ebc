"""Scoring: the questions, the rates and their intervals, and that every clip is held against its own question."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dit_video import evaluate as evaluation
from dit_video.clip import Clip, Settings
from dit_video.evaluate import (
    Answer,
    Rate,
    fixed_questions,
    rates,
    rates_by_value,
    reconstruct,
    report,
    save_sheet,
    table,
)
from dit_video.nn.pixels import to_video
from dit_video.scenes.detector import Detection, detect_objects
from dit_video.scenes.render import render
from dit_video.scenes.world import held_out
from dit_video.shapes import Grid, VideoShape
from dit_video.stages import Stages
from dit_video.video.io import probe, read_frames
from dit_video.video.sheet import GRAY

SHAPE = VideoShape(num_frames=9, height=64, width=80)
QUESTIONS = fixed_questions(12, SHAPE, first_seed=100)
PAIRS = fixed_questions(6, SHAPE, first_seed=100, objects=2)


class Identity(nn.Module):
    """An autoencoder whose latents are the pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def encode(self, video: Tensor) -> Tensor:
        return video

    def decode_stream(self, latents: Tensor, *, tile: int | None = None) -> Iterator[Tensor]:
        yield latents


class PixelCheckpoint:
    grid = Grid(stride=(1, 1, 1), patch=(1, 1, 1))
    latent_channels = 3
    boundary = None
    by_library = frozenset()

    def load_vae(self, **where: object) -> Identity:
        return Identity()


def stages() -> Stages:
    return Stages(PixelCheckpoint(), dtype=torch.float32, device=torch.device("cpu"), keep=True)  # type: ignore[arg-type]


def silent(*_: object) -> None:
    pass


def test_questions_are_fixed_held_out_and_alone():
    assert fixed_questions(5, SHAPE, first_seed=100) == QUESTIONS[:5]
    assert [question.seed for question in QUESTIONS] == list(range(100, 112))
    assert len({question.prompt for question in QUESTIONS}) > 9
    for question in QUESTIONS:
        (thing,) = question.scene.objects
        assert held_out(thing.shape, thing.colour, thing.motion)
        assert (question.scene.width, question.scene.height, question.scene.num_frames) == (80, 64, 9)


def test_training_questions_are_of_training():
    questions = fixed_questions(50, SHAPE, split="training")
    for question in questions:
        (thing,) = question.scene.objects
        assert not held_out(thing.shape, thing.colour, thing.motion)
    assert not {question.prompt for question in questions} & {question.prompt for question in QUESTIONS}


def test_the_questions_that_were_reported_stay():
    """Rates of different times are of the same questions."""
    asked = [question.prompt for question in fixed_questions(2, VideoShape(num_frames=24, height=144, width=256))]
    assert asked == [
        "in front of a gray background the white five-pointed star gets smaller",
        "there is an orange five-pointed star that slides towards the bottom right corner on a yellow background",
    ]


@pytest.mark.parametrize("split", ["held-out", "training"])
def test_questions_of_two_objects(split: str):
    questions = fixed_questions(30, SHAPE, split=split, first_seed=100, objects=2)
    assert questions[:6] == fixed_questions(6, SHAPE, split=split, first_seed=100, objects=2)
    assert [question.seed for question in questions] == list(range(100, 130))
    for question in questions:
        first, second = question.scene.objects
        assert held_out(first.shape, first.colour, first.motion) == (split == "held-out")
        assert not held_out(second.shape, second.colour, second.motion)
        assert len({first.colour, second.colour, question.scene.background}) == 3
        new_wording = " while " in question.prompt or question.prompt.startswith("you can see ")
        assert new_wording == (split == "held-out")


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    # R: binom::binom.confint(right, total, methods = "wilson")
    [(0, 10, 0.0, 0.2775328), (5, 10, 0.2365931, 0.7634069), (10, 10, 0.7224672, 1.0), (243, 300, 0.7618, 0.8504)],
)
def test_wilson_intervals(right: int, total: int, low: float, high: float):
    assert Rate(right, total).interval == pytest.approx((low, high), abs=1e-4)


def test_true_scenes_are_right_and_counted():
    answers, strips = reconstruct(stages(), QUESTIONS, SHAPE, progress=silent)
    assert [answer.question for answer in answers] == QUESTIONS
    assert rates(answers)["all"].share >= 0.9
    assert len(strips) == len(QUESTIONS) and strips[0].shape == (5, 64, 80, 3)


def sampler(shift: int):
    """A model that shows what another question asked for, `shift` places on."""
    scenes = {question.prompt: QUESTIONS[(n + shift) % len(QUESTIONS)].scene for n, question in enumerate(QUESTIONS)}

    def sample(stages: Stages, clips: Sequence[Clip], settings: Settings) -> list[Tensor]:
        return [to_video(render(scenes[clip.prompt])[None])[0] for clip in clips]

    return sample


@pytest.mark.parametrize("batch_tokens", [1, 5 * 9 * 64 * 80, 10**9])
def test_answers_belong_to_their_questions(monkeypatch: pytest.MonkeyPatch, batch_tokens: int):
    monkeypatch.setattr(evaluation, "BATCH_TOKENS", batch_tokens)
    found = {}
    for shift in (0, 1):
        monkeypatch.setattr(evaluation, "sample_latents", sampler(shift))
        answers, _ = evaluation.evaluate(stages(), QUESTIONS, SHAPE, Settings(steps=1), progress=silent)
        found[shift] = rates(answers)["all"].share
    assert found[0] >= 0.9 and found[1] <= 0.1


def test_what_cannot_be_told_is_wrong(monkeypatch: pytest.MonkeyPatch):
    gray = torch.zeros(3, 9, 64, 80)
    monkeypatch.setattr(evaluation, "sample_latents", lambda stages, clips, settings: [gray] * len(clips))
    answers, _ = evaluation.evaluate(stages(), QUESTIONS, SHAPE, Settings(steps=1), progress=silent)
    found = rates(answers)
    assert found["shape"].right == found["colour"].right == found["all"].right == 0
    assert "12 of 12" in table(answers)


@pytest.mark.parametrize(("frames", "scored"), [(1, False), (4, False), (5, True)])
def test_motion_is_scored_where_it_can_be_told(monkeypatch: pytest.MonkeyPatch, frames: int, scored: bool):
    """A detector that is right but for motion: short clips are not wrong for it, and are not right for it either."""
    shape = VideoShape(num_frames=frames, height=64, width=80)

    def blind(frames: np.ndarray, count: int) -> tuple[Detection, ...]:
        return tuple(replace(found, motion=None) for found in detect_objects(frames, count))

    monkeypatch.setattr(evaluation, "detect_objects", blind)
    answers, _ = reconstruct(stages(), fixed_questions(6, shape), shape, progress=silent)
    found = rates(answers)
    assert ("motion" in found) == scored == ("motion" in report(answers)["by_value"])
    assert (found["all"].share == 0) == scored
    assert "0 of 6" in table(answers) and ("motion is not scored" in table(answers)) != scored
    assert table(answers).count("\n") == 5


def test_true_pairs_are_right_and_reported(tmp_path: Path):
    answers, strips = reconstruct(stages(), PAIRS, SHAPE, progress=silent)
    assert {name: rate.share for name, rate in rates(answers).items()} == dict.fromkeys(evaluation.FIELDS, 1.0)
    by_shape = rates_by_value(answers, "shape")
    assert sum(rate.total for rate in by_shape.values()) == sum(rate.right for rate in by_shape.values()) == 12
    assert table(answers).endswith("\na field is right when it is right for both objects")
    for clip, question in zip(report(answers)["clips"], PAIRS, strict=True):
        names = [thing.colour for thing in question.scene.objects]
        assert [one["colour"] for one in clip["wanted"]] == names
        assert len(clip["found"]) == 2 and all(one in clip["wanted"] for one in clip["found"])
    save_sheet(tmp_path / "a.png", answers, strips, overwrite=False)
    assert probe(tmp_path / "a.png").frames == 1


def test_one_wrong_object_of_two_is_wrong_for_its_own_value_only():
    first, second = PAIRS[0].scene.objects
    found = [
        Detection(shape=one.shape, colour=one.colour, background=PAIRS[0].scene.background, motion=one.motion)
        for one in (second, first)
    ]
    for blank in (replace(found[0], motion=None), Detection(shape=None, colour=None, background=None, motion=None)):
        shown = (found[1], blank)
        answer = Answer(PAIRS[0], shown, evaluation._right(shown, PAIRS[0].scene))
        assert not answer.right["motion"] and not answer.right["all"]
        by_motion = rates_by_value([answer], "motion")
        assert first.motion != second.motion
        assert (by_motion[first.motion].right, by_motion[second.motion].right) == (1, 0)
        assert "motion          0.0%" in table([answer]) and "1 of 1" in table([answer])


def test_a_sheet_fills_its_last_row_as_other_sheets_do(tmp_path: Path):
    answers, strips = reconstruct(stages(), QUESTIONS[:4], SHAPE, progress=silent)
    save_sheet(tmp_path / "a.png", answers, strips, overwrite=False)
    (picture,) = read_frames(tmp_path / "a.png")
    width, height = 5 * 80 + 6, 64 + 6
    assert picture.shape == (2 * height, 3 * width, 3)
    assert (picture[height:, width:] == GRAY).all() and (picture[0, 0] == evaluation.RIGHT).all()
    assert (picture[3 : height - 3, 3 : width - 3] == np.concatenate(list(strips[0]), axis=1)).all()


def test_report_table_and_sheet(tmp_path: Path):
    answers, strips = reconstruct(stages(), QUESTIONS, SHAPE, progress=silent)
    written = report(answers)
    assert set(written["rates"]) == {"background", "colour", "shape", "motion", "all"}
    assert [clip["prompt"] for clip in written["clips"]] == [question.prompt for question in QUESTIONS]
    by_motion = rates_by_value(answers, "motion")
    assert sum(rate.total for rate in by_motion.values()) == len(QUESTIONS)
    assert table(answers).count("\n") == 5
    save_sheet(tmp_path / "a.png", answers, strips, overwrite=False)
    found = probe(tmp_path / "a.png")
    assert (found.width, found.height) == (3 * (5 * 80 + 6), 4 * (64 + 6))
    assert np.unique([strip.shape for strip in strips], axis=0).shape == (1, 4)
