"""What a trained transformer makes of noisy latents: for a decoder to learn to read them.

A transformer's latents are never quite those of a clip. A decoder that has only seen clean ones, or such with Gaussian
noise, shows every error as a dent in an outline; one that has seen these errors can tell them from a shape.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dit_video.errors import CheckpointError
from dit_video.flow.ramps import NUM_TRAIN_TIMESTEPS
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.models.wan.vae import WanVAE

STEPS = 4  # of Euler's method, from the noise level to 0


class Denoiser:
    """The transformer and the text encoder of a diffusers folder, which were trained on the latents of `vae`.

    Raises:
        CheckpointError: a file is missing or damaged, or the transformer takes other latents.
    """

    def __init__(self, folder: Path, vae: WanVAE):
        self.vae, self.checkpoint = vae, WanCheckpoint.open(folder)
        if self.checkpoint.vae != vae.config:
            raise CheckpointError(f"{folder}: its transformer was trained on the latents of another autoencoder.")
        if self.checkpoint.boundary is not None:
            raise CheckpointError(f"{folder}: has two transformers, and a denoiser has one.")
        if self.checkpoint.beside:
            raise CheckpointError(f"{folder}: animates images, and a denoiser takes none.")

    def load(self, device: str, dtype: torch.dtype) -> None:
        """Load the weights; the products of the transformer are in `dtype`."""
        self.dit = self.checkpoint.load_dit(dtype=dtype, device=device)
        self.text = self.checkpoint.load_text(dtype=torch.float32, device=device)

    @torch.no_grad()
    def __call__(self, latents: Tensor, captions: Sequence[str], sigma: Tensor, generator: torch.Generator) -> Tensor:
        """Latents (B, C, t, h, w), not whitened, noised to levels sigma (B,) and denoised with their captions; h and w
        may be odd.
        """
        patch = self.dit.config.patch
        rows, columns = latents.shape[3:]
        padded = torch.nn.functional.pad(
            self.vae.whiten(latents).flatten(0, 1), (0, -columns % patch[2], 0, -rows % patch[1]), mode="replicate"
        ).unflatten(0, latents.shape[:2])
        noise = torch.randn(padded.shape, generator=generator).to(padded)
        x = torch.lerp(padded, noise, sigma.to(padded).view(-1, 1, 1, 1, 1))
        distinct = sorted(set(captions))
        with torch.autocast(x.device.type, enabled=False):  # as in training
            embeds = self.text.encode(distinct)
        keys = self.dit.encode_text(embeds)
        index = [distinct.index(caption) for caption in captions]
        for left in range(STEPS, 0, -1):
            times = [s.repeat(x.shape[2]) * (NUM_TRAIN_TIMESTEPS * left / STEPS) for s in sigma]
            velocity = torch.stack(self.dit(list(x), times, keys, index))
            x = x - velocity.float() * (sigma.to(x) / STEPS).view(-1, 1, 1, 1, 1)
        return self.vae.unwhiten(x[..., :rows, :columns])
