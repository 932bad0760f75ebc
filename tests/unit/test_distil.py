"""Distillation: what is learnt from the teacher, and that one step then goes where its several steps went."""

import dataclasses
import math

import pytest
import torch

from dit_video.errors import UsageError
from dit_video.flow.levels import flow_levels
from dit_video.models.wan.dit import DiTConfig, WanDiT
from dit_video.train.config import DistilConfig, DiTTrainConfig, LoopConfig
from dit_video.train.distil import Teacher, distil_loss

ARCH = DiTConfig(in_dim=4, out_dim=4, dim=24, ffn_dim=48, num_heads=2, num_layers=2, text_dim=8, text_len=8)
CONFIG = DistilConfig(steps=4, shift=3.0, guidance=2.0, substeps=3)


def transformer(seed: int = 0) -> WanDiT:
    torch.manual_seed(seed)
    return WanDiT(ARCH).eval()


TEXTS = [torch.randn(3, 8, generator=torch.Generator().manual_seed(n)) for n in range(2)]
CLEAN = [torch.randn(4, 3, 4, 4, generator=torch.Generator().manual_seed(n)) for n in range(2)]
NONE = [torch.zeros(3, dtype=torch.bool)] * 2


def targets(teacher: Teacher, seed: int = 0, known: list[torch.Tensor] = NONE):
    return teacher.targets(CLEAN, known, TEXTS, [1, 1], generator=torch.Generator().manual_seed(seed))


def test_windows_are_between_the_levels_that_the_distilled_model_visits():
    teacher = Teacher(transformer(), CONFIG)
    visited = flow_levels(4, shift=3.0, solver="euler").sigmas
    for window in range(4):
        levels = teacher.levels(window)
        assert len(levels.sigmas) == 4 and torch.allclose(levels.sigmas[[0, -1]], visited[window : window + 2])
        assert torch.equal(levels.timesteps, levels.sigmas[:-1] * 1000)


class Linear(torch.nn.Module):
    """A transformer whose velocity is a constant of the prompt: 2 for the empty one, 3 for the other."""

    def encode_text(self, embeds):
        return None

    def forward(self, latents, times, text, prompts):
        return [torch.full_like(x, 2.0 + prompt) for x, prompt in zip(latents, prompts, strict=True)]


def test_the_velocity_to_learn_is_the_guided_one_where_the_way_is_straight():
    for seed in range(4):
        for target in targets(Teacher(Linear(), CONFIG), seed):  # type: ignore[arg-type]
            assert torch.allclose(target.velocity, torch.full_like(target.velocity, 2 + 2.0 * (3 - 2)), atol=1e-4)


def test_latents_and_levels_lie_on_the_line_from_the_windows_beginning():
    teacher = Teacher(transformer(), dataclasses.replace(CONFIG, begin_share=0.0))
    start = Teacher(teacher.dit, dataclasses.replace(CONFIG, begin_share=1.0))
    visited = flow_levels(4, shift=3.0, solver="euler").sigmas
    for seed in range(4):
        for one, two in zip(targets(teacher, seed), targets(start, seed), strict=True):
            assert torch.equal(one.velocity, two.velocity)
            gone = two.sigma[0] - one.sigma[0]
            assert gone > 0 and torch.allclose(one.latents, two.latents - gone * two.velocity, atol=1e-5)
            assert any(math.isclose(two.sigma[0], level, abs_tol=1e-6) for level in visited)


def test_known_frames_stay_and_carry_no_loss():
    known = [torch.tensor([True, False, False]), torch.tensor([False, False, True])]
    found = targets(Teacher(transformer(), CONFIG), known=known)
    for target, clean, each in zip(found, CLEAN, known, strict=True):
        assert torch.equal(target.sigma == 0, each)
        assert torch.allclose(target.latents[:, each], clean[:, each], atol=1e-6)
        assert target.velocity[:, each].abs().max() < 1e-5
    student = transformer(1)
    weights = [torch.ones(3, 4, 4)] * 2
    loss = distil_loss(student, found, TEXTS, [1, 1], weights)
    wrong = [
        dataclasses.replace(target, velocity=torch.where(each[None, :, None, None], 9.0, target.velocity))
        for target, each in zip(found, known, strict=True)
    ]
    assert torch.equal(distil_loss(student, wrong, TEXTS, [1, 1], weights), loss)


def test_a_student_learns_to_go_in_one_step_where_the_teacher_goes():
    teacher, student = Teacher(transformer(), CONFIG), transformer()
    optimizer = torch.optim.Adam(student.parameters(), 3e-3)
    weights = [torch.ones(3, 4, 4)] * 2

    def loss(seed: int) -> torch.Tensor:
        return distil_loss(student, targets(teacher, seed), TEXTS, [1, 1], weights)

    with torch.no_grad():
        before = sum(float(loss(seed)) for seed in range(8))
    for seed in range(8, 88):
        optimizer.zero_grad()
        loss(seed).backward()
        optimizer.step()
    with torch.no_grad():
        assert sum(float(loss(seed)) for seed in range(8)) < 0.5 * before
    assert all(p.grad is None for p in teacher.dit.parameters())


def test_configs_that_make_no_sense_are_refused():
    plain = {"out": "a", "autoencoder": "b", "loop": LoopConfig(steps=1)}
    with pytest.raises(UsageError, match="init_from"):
        DiTTrainConfig(**plain, distil=CONFIG)
    with pytest.raises(UsageError, match="only one of the two"):
        DiTTrainConfig(**plain, distil=CONFIG, init_from="c", lora=4)
    with pytest.raises(UsageError, match="substeps"):
        DistilConfig(substeps=0)
