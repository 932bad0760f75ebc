"""Training targets of flow matching: which noise levels are drawn, and the loss (Esser et al., arXiv 2403.03206)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dit_video.flow.ramps import shifted

NEARLY_NOISE = 0.98
"""The level from which on clips hold so little of the picture that the caption decides nearly everything."""


def sample_sigmas(
    count: int, *, mean: float, std: float, shift: float, generator: torch.Generator, noise_share: float = 0.0
) -> Tensor:
    """`count` noise levels in (0, 1), logit-normal(mean, std) and then shifted (arXiv 2403.03206, section 3.1).

    A share `noise_share` is between NEARLY_NOISE and 1 instead, at 1 - (1 - NEARLY_NOISE) u**3 with u uniform: sampling
    begins at 1, where a logit-normal has next to nothing. Even at 0.99 the many cells of a plain background show its
    colour; the cube puts most of the share where they do not.

    The draws are stratified: one in each of `count` equal slices of the distribution, in random order, so that every
    batch covers all levels (the low-discrepancy sampling of Variational Diffusion Models, arXiv 2107.00630, appendix
    I.1).
    """
    order = torch.randperm(count, generator=generator)
    uniform = ((order + torch.rand(count, generator=generator)) / count).double()
    usual = 1 - noise_share
    normal = torch.special.ndtri((uniform / max(usual, 1e-6)).clamp(1e-6, 1 - 1e-6))
    levels = shifted(torch.sigmoid(mean + std * normal), shift)
    if noise_share:
        nearly = 1 - (1 - NEARLY_NOISE) * ((1 - uniform) / noise_share) ** 3
        levels = torch.where(uniform < usual, levels, nearly)
    return levels.float()


def add_noise(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """x_sigma = (1 - sigma) x0 + sigma eps for latents (C, T, H, W) with one level per latent frame, sigma (T,)."""
    s = sigma.to(clean)[None, :, None, None]
    return torch.lerp(clean, noise, s)


def flow_loss(
    velocity: Sequence[Tensor],
    clean: Sequence[Tensor],
    noise: Sequence[Tensor],
    sigmas: Sequence[Tensor],
    weights: Sequence[Tensor | None],
) -> Tensor:
    """Mean squared error of the velocity eps - x0 over all unknown latents of a pack.

    Shapes per clip: velocity, clean, noise (C, T, H, W); sigmas (T,), where level 0 marks a known frame, which carries
    no loss; weights None or (T, H, W), a weight per latent position, 0 where there is no velocity.
    """
    total, count = velocity[0].new_zeros(()), velocity[0].new_zeros(())
    for v, x0, eps, sigma, weight in zip(velocity, clean, noise, sigmas, weights, strict=True):
        unknown = (sigma > 0).to(v)[:, None, None]
        mask = unknown.expand(v.shape[1:]) if weight is None else unknown * weight
        total = total + ((v - (eps - x0)).square().mean(0) * mask).sum()
        count = count + (mask > 0).sum()
    return total / count.clamp_min(1)
