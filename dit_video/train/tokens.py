"""What is drawn for the tokens of a training clip: which frames are known, which tokens are dropped, and weights."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dit_video.nn.patch import token_grid
from dit_video.shapes import Size3
from dit_video.train.config import DiTTrainConfig

# Noise levels between which the loss weight of objects fades out: above, where an object is cannot be seen in the
# noisy latents, and a weight that depends on it would bias the prediction towards objects.
FOCUS_FULL, FOCUS_NONE = 0.6, 0.85
# How often known frames are the first one, a beginning, an end, both, and a random subset.
KNOWN_KINDS = (0.3, 0.2, 0.15, 0.2, 0.15)


def with_known_frames(level: Tensor, frames: int, share: float, rng: np.random.Generator) -> Tensor:
    """Levels (frames,) of one clip: all `level`, or, for a share of the videos, with known frames at level 0.

    Known is what the modes of sampling know: the first frame (an image), a beginning, an end, both, or any frames.
    """
    sigma = level.repeat(frames)
    if frames == 1 or rng.random() >= share:
        return sigma
    known = np.zeros(frames, dtype=bool)
    kind = rng.choice(5, p=KNOWN_KINDS)
    if kind == 0:
        known[0] = True
    if kind in (1, 3):
        known[: rng.integers(1, max(2, frames - 1))] = True
    if kind in (2, 3):
        known[-rng.integers(1, max(2, frames - 1)) :] = True
    if kind == 4:
        known |= rng.random(frames) < rng.random()
    if known.all():
        known[rng.integers(frames)] = False
    sigma[torch.from_numpy(known)] = 0.0
    return sigma


def _places_fade(sigma: Tensor) -> Tensor:
    """1 where the noisy latents of a clip show where its objects are, 0 where they do not, and between."""
    return ((FOCUS_NONE - sigma.max()) / (FOCUS_NONE - FOCUS_FULL)).clamp(0, 1)


def kept_tokens(
    objects: Tensor, sigma: Tensor, patch: Size3, config: DiTTrainConfig, rng: np.random.Generator
) -> Tensor | None:
    """Indices of the tokens of a clip that are computed, or None for all.

    NaViT's token dropping (arXiv 2307.06304, section 2.2), for a share `drop_share` of the clips: where the noise
    leaves the objects to be seen, background is dropped; else all tokens alike, as what is dropped must not tell where
    they are.
    """
    if config.drop_share == 0 or rng.random() >= config.drop_share:
        return None
    cells = _token_cells(objects, patch).numpy()
    seen = bool(_places_fade(sigma) > 0)
    kept = rng.random(len(cells)) >= (config.drop_background if seen else config.drop_rate)
    kept |= cells & seen
    kept[rng.integers(len(kept))] = True
    return torch.from_numpy(kept.nonzero()[0])


def _token_cells(objects: Tensor, patch: Size3) -> Tensor:
    """Tokens (t h w,) of which a latent holds an object, from latents (T, H, W)."""
    return F.max_pool3d(objects[None].float(), patch, patch)[0].flatten() > 0


def loss_weights(objects: Tensor, sigma: Tensor, kept: Tensor | None, patch: Size3, weight: float) -> Tensor:
    """Loss weights (T, H, W): `weight` on patches with an object at low noise, 1 elsewhere and at high noise, 0 where
    the token was dropped.
    """
    weights = 1 + (weight - 1) * _places_fade(sigma) * objects
    if kept is not None:
        grid = token_grid(objects[None], patch)
        cells = torch.zeros(math.prod(grid)).index_fill(0, kept, 1).view(grid)
        for axis, size in enumerate(patch):
            cells = cells.repeat_interleave(size, axis)
        weights = weights * cells
    return weights
