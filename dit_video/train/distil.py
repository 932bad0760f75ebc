"""Distillation to few steps without guidance: piecewise rectified flow (PeRFlow, Yan et al., arXiv 2405.07510).

The noise levels are divided into as many windows as the distilled model takes steps. Within a window the model that it
learns from, with guidance and several steps of a solver, leads latents from the window's first level to its last; the
distilled model learns the straight line between the two, so that one step of Euler's method goes all the way. Latents
at the first level are training clips with noise on them, so windows are learnt apart from one another, and no
trajectory has to be followed from its beginning.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dit_video.flow.guidance import guided
from dit_video.flow.levels import Levels
from dit_video.flow.loss import add_noise
from dit_video.flow.ramps import NUM_TRAIN_TIMESTEPS, shifted
from dit_video.flow.solvers import SOLVERS, State
from dit_video.models.wan.dit import WanDiT
from dit_video.train.config import DistilConfig

SOLVER = "dpmpp-2m"  # of the teacher within a window


@dataclass(frozen=True)
class Target:
    """What one clip of a pack is trained on: latents (C, T, H, W) at a level for each latent frame (T,), 0 where it is
    known, and their velocity to learn."""

    latents: Tensor
    sigma: Tensor
    velocity: Tensor


@dataclass(frozen=True)
class Teacher:
    """The model that is learnt from, which stays as it is."""

    dit: WanDiT
    config: DistilConfig

    def levels(self, window: int) -> Levels:
        """The noise levels that the teacher visits in a window, numbered from 0 at pure noise."""
        steps, inner = self.config.steps, self.config.substeps
        places = torch.linspace(1 - window / steps, 1 - (window + 1) / steps, inner + 1, dtype=torch.float64)
        sigmas: Tensor = shifted(places, self.config.shift).float()
        return Levels(sigmas, sigmas[:-1] * NUM_TRAIN_TIMESTEPS)

    @torch.no_grad()
    def targets(
        self,
        clean: Sequence[Tensor],
        known: Sequence[Tensor],
        embeds: Sequence[Tensor],
        prompts: Sequence[int],
        *,
        generator: torch.Generator,
        bf16: bool = False,
    ) -> list[Target]:
        """The targets of a pack, all in one window that is drawn.

        Args:
            clean: latents (C, T, H, W) of clips.
            known: (T,) bool of each, which of its latent frames are given.
            embeds: of distinct texts, the first of which is the empty one. prompts: the text of each clip.
        """
        window = int(torch.randint(self.config.steps, (1,), generator=generator))
        levels = self.levels(window)
        first, last = float(levels.sigmas[0]), float(levels.sigmas[-1])
        sizes = [x.shape for x in clean]
        noise = [torch.randn(size, generator=generator).to(x) for size, x in zip(sizes, clean, strict=True)]
        unknown = [(~each).to(x) for each, x in zip(known, clean, strict=True)]
        begin = [add_noise(x, eps, first * each) for x, eps, each in zip(clean, noise, unknown, strict=True)]
        device = clean[0].device
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            keys = self.dit.encode_text(list(embeds))

        def unpack(x: Tensor) -> list[Tensor]:
            parts = x.split([size.numel() for size in sizes])
            return [part.view(size) for part, size in zip(parts, sizes, strict=True)]

        def denoise(x: Tensor, sigma: float, timestep: float) -> Tensor:
            latents = unpack(x)
            times = [timestep * each.cpu() for each in unknown]
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                both = self.dit(latents * 2, times * 2, keys, [*prompts, *[0] * len(latents)])
            velocity = [
                guided(cond.float(), uncond.float(), self.config.guidance)
                for cond, uncond in zip(both[: len(latents)], both[len(latents) :], strict=True)
            ]
            return _flat(
                [
                    torch.lerp(x0, noisy - sigma * v, each[:, None, None])
                    for x0, noisy, v, each in zip(clean, latents, velocity, unknown, strict=True)
                ]
            )

        end = unpack(SOLVERS[SOLVER](denoise, State(0, _flat(begin)), levels, draw=_nothing_drawn))
        found = []
        for a, b, each in zip(begin, end, unknown, strict=True):
            share = torch.rand(2, generator=generator).tolist()
            place = (
                0.0 if share[0] < self.config.begin_share else share[1]
            )  # from the window's beginning, 0, to its end
            sigma = (first + place * (last - first)) * each.cpu()
            found.append(Target(torch.lerp(a, b, place), sigma, (a - b) / (first - last)))
        return found


def distil_loss(
    dit: Any, targets: Sequence[Target], embeds: Sequence[Tensor], prompts: Sequence[int], weights: Sequence[Tensor]
) -> Tensor:
    """Mean squared error of the velocity over the unknown latents of a pack; weights: (T, H, W) of each clip."""
    text = dit.encode_text(list(embeds))
    latents, times = [each.latents for each in targets], [each.sigma * NUM_TRAIN_TIMESTEPS for each in targets]
    velocity = dit(latents, times, text, list(prompts))
    total, count = latents[0].new_zeros(()), latents[0].new_zeros(())
    for v, target, weight in zip(velocity, targets, weights, strict=True):
        mask = (target.sigma > 0).to(weight)[:, None, None] * weight
        total = total + ((v.float() - target.velocity).square().mean(0) * mask).sum()
        count = count + (mask > 0).sum()
    return total / count.clamp_min(1)


def _flat(latents: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in latents])


def _nothing_drawn() -> Tensor:
    raise AssertionError(f"{SOLVER} draws nothing")
