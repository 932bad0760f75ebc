"""What is known of a Wan model before any of its weights are loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from dit_video.checkpoints.headers import Summary
from dit_video.checkpoints.lora import Fitted
from dit_video.errors import CheckpointError
from dit_video.models.wan.configs import DiTConfig, VAEConfig
from dit_video.models.wan.defaults import Defaults
from dit_video.shapes import Grid, VideoShape

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from dit_video.checkpoints.parts import Layers
    from dit_video.text.images import ImageEncoder


@dataclass(frozen=True, kw_only=True)
class DescribedModel:
    """The configuration of a model's parts, and the settings it is best sampled with.

    boundary: the noise level from which up the first of two experts denoises; None where there is one transformer.
    components: parameters, bytes and dtypes of each part. known_frames: which frames it was trained to be given: "any",
    the "first", or "none"; or, of models that take them beside the noise and need them, a key of `known.BESIDE`. loras:
    merged into the transformers while they are loaded. trained_sides, trained_frames: the shorter sides in pixels, and
    the numbers of frames, that it was trained on, from and to, if it says so. took: what was found for parts that were
    not named, as "part: file". by_library: the parts that are built of transformers, which takes long to import.
    """

    dit: DiTConfig
    vae: VAEConfig
    defaults: Defaults
    boundary: float | None = None
    components: Mapping[str, Summary] = field(default_factory=dict)
    known_frames: str = "none"
    trained_sides: tuple[int, int] | None = None
    trained_frames: tuple[int, int] | None = None
    loras: tuple[Fitted, ...] = ()
    took: tuple[str, ...] = ()
    by_library: frozenset[str] = frozenset({"image_encoder"})

    @cached_property
    def grid(self) -> Grid:
        """Pixels per latent and latents per token."""
        return Grid(stride=self.vae.stride, patch=self.dit.patch)

    @property
    def layers(self) -> "Mapping[str, Layers]":
        """Of the parts whose layers can be streamed, those layers."""
        return {}

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.vae.z_dim

    @property
    def beside(self) -> bool:
        """Whether it takes what is given beside the noise, as more channels, rather than as known latent frames."""
        return self.dit.in_dim > self.dit.out_dim

    def untrained(self, shape: VideoShape) -> str:
        """A sentence about a size or length that it was not trained on, if it says so; else nothing."""
        sides, frames = self.trained_sides, self.trained_frames
        found = []
        if sides and not sides[0] <= min(shape.width, shape.height) <= sides[1]:
            found.append(f"shorter sides of {sides[0]} to {sides[1]} pixels")
        if frames and not frames[0] <= shape.num_frames <= frames[1]:
            found.append(f"{frames[0]} to {frames[1]} frames")
        words = " and ".join(found)
        return f"{shape}: this model was trained on {words}, and others may come out badly." if found else ""

    @property
    def sees_images(self) -> bool:
        """Whether it attends to what an image encoder makes of the given pictures."""
        return self.dit.image_dim is not None

    @property
    def identity(self) -> str:
        """What tells it from other models, as its files are now."""
        return "random"

    @property
    def signature(self) -> str:
        """What tells it from other models, on every machine."""
        return "random"

    @property
    def vae_identity(self) -> str:
        """What tells its autoencoder from others."""
        return "random"

    @property
    def files(self) -> "set[Path]":
        """All its files, but for what is merged into it."""
        return set()

    @property
    def text_files(self) -> "set[Path]":
        """The files that its text encoder's numbers depend on; none of a model without files."""
        return set()

    def load_images(self, *, dtype: "torch.dtype", device: "torch.device | str" = "cpu") -> "ImageEncoder":
        """The image encoder. Raises CheckpointError."""
        raise CheckpointError("this model has no image encoder.")
