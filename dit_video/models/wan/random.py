"""A Wan model with random weights and no files, to try the whole program: its stages are those of a checkpoint."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dit_video.models.wan.configs import DiTConfig, VAEConfig
from dit_video.models.wan.defaults import Defaults
from dit_video.models.wan.described import DescribedModel
from dit_video.models.wan.variants import TINY

if TYPE_CHECKING:
    import torch

    from dit_video.models.wan.dit import WanDiT
    from dit_video.models.wan.vae import WanVAE
    from dit_video.text.encoders import TextEncoder

SEED = 20_240_527
VAE = replace(TINY.vae, residual=True, patch=2, dim_mult=(1, 2, 4, 4))  # of the 2.2 form: a quarter of the patches


@dataclass(frozen=True, kw_only=True)
class RandomCheckpoint(DescribedModel):
    """Stands where a `WanCheckpoint` stands."""

    dit: DiTConfig = TINY.dit
    vae: VAEConfig = VAE
    defaults: Defaults = TINY.defaults
    known_frames: str = "any"
    by_library: frozenset[str] = frozenset({"text_encoder"})  # which draws its weights
    trained_frames: tuple[int, int] | None = (1, 97)  # longer clips are made in windows, as by the model that ships

    def load_text(self, *, dtype: "torch.dtype", device: "torch.device | str" = "cpu") -> "TextEncoder":
        """A text encoder that reads any text, byte by byte."""
        from dit_video.text.random import random_text_encoder

        return random_text_encoder(dim=self.dit.text_dim, seed=SEED, dtype=dtype, device=device)

    def load_dit(
        self,
        which: str = "transformer",
        *,
        dtype: "torch.dtype",
        device: "torch.device | str" = "cpu",
        quantize: str | None = None,
    ) -> "WanDiT":
        """A transformer as torch initialises it: unlike at the start of training, every part changes the result."""
        import torch

        from dit_video.models.wan.dit import WanDiT
        from dit_video.nn.linear import quantised

        with torch.random.fork_rng(devices=()):
            torch.manual_seed(SEED + (which == "transformer_2"))
            module = WanDiT(self.dit)
        module = module.to(device, dtype).eval().requires_grad_(False)
        quantised(module.blocks, quantize)
        return module

    def load_vae(self, *, dtype: "torch.dtype", device: "torch.device | str" = "cpu") -> "WanVAE":
        """An autoencoder as torch initialises it."""
        import torch

        from dit_video.models.wan.vae import WanVAE

        with torch.random.fork_rng(devices=()):
            torch.manual_seed(SEED)
            module = WanVAE(self.vae)
        return module.to(device, dtype).eval().requires_grad_(False)
