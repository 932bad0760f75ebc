"""What is known of a Wan model before any of its weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from dit_video.checkpoints.headers import Summary
from dit_video.checkpoints.lora import Fitted
from dit_video.models.wan.defaults import Defaults
from dit_video.models.wan.dit import DiTConfig
from dit_video.models.wan.vae import VAEConfig
from dit_video.shapes import Grid


@dataclass(frozen=True, kw_only=True)
class DescribedModel:
    """The configuration of a model's parts, and the settings it is best sampled with.

    boundary: the noise level from which up the first of two experts denoises; None where there is one transformer.
    components: parameters, bytes and dtypes of each part. known_frames: which latent frames may be known, of those that
    it was trained with: "any", the "first", or "none". loras: merged into the transformers while they are loaded.
    """

    dit: DiTConfig
    vae: VAEConfig
    defaults: Defaults
    boundary: float | None = None
    components: Mapping[str, Summary] = field(default_factory=dict)
    known_frames: str = "none"
    loras: tuple[Fitted, ...] = ()

    @cached_property
    def grid(self) -> Grid:
        """Pixels per latent and latents per token."""
        return Grid(stride=self.vae.stride, patch=self.dit.patch)

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.vae.z_dim
