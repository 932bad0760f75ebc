"""Classifier-free guidance and the interval of noise levels that it is used in."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def guided(cond: "Tensor", uncond: "Tensor", scale: float) -> "Tensor":
    """uncond + scale (cond - uncond): Ho and Salimans (arXiv 2207.12598), eq. 6, with scale = 1 + w.

    Holds for velocities and for denoised latents alike, since both are affine in the prediction.
    """
    return uncond + scale * (cond - uncond)


def needs_guidance(sigma: float, scale: float, interval: tuple[float, float] | None = None) -> bool:
    """Whether level sigma needs the unconditional pass.

    scale: 1 and below means no guidance, as in diffusers.
    interval: the lowest and the highest sigma that is guided, both included; None guides all. Kynkäänniemi et al.
        (arXiv 2404.07724), whose noise level s is s / (1 + s) here.
    """
    low, high = interval if interval is not None else (0.0, 1.0)
    return scale > 1 and low <= sigma <= high
