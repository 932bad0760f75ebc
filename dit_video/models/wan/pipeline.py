"""A Wan checkpoint: what is known of it from headers and configs, and the way to load its stages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from dit_video.checkpoints.load import load_into
from dit_video.checkpoints.lora import Lora, fit, merged
from dit_video.checkpoints.parts import Part
from dit_video.checkpoints.places import Named, is_diffusers, is_model
from dit_video.errors import CheckpointError
from dit_video.models.wan.described import DescribedModel
from dit_video.models.wan.dit import DiTConfig, WanDiT
from dit_video.models.wan.layouts import LAYOUTS
from dit_video.models.wan.vae import VAEConfig, WanVAE
from dit_video.models.wan.variants import VARIANTS
from dit_video.text.encoders import TextEncoder

# What the model computes in float32 whatever its dtype keeps its full values, of checkpoints that have them.
_FLOAT32 = ("time_embedding.", "time_projection.", "head.", "modulation", "norm")


@dataclass(frozen=True, kw_only=True)
class WanCheckpoint(DescribedModel):
    """A Wan model that lies on the disk, and the way to load it.

    variant: a name in `variants.VARIANTS`, or "custom". parts: its transformers and its autoencoder as they are stored.
    experts: the configurations of the transformers where they differ from `dit`. knows: for a model of a small world,
    the words it learnt, by kind. layout: the naming of the transformer's tensors. took: what was found for parts that
    were not named, as "part: file".
    """

    path: Path
    variant: str
    parts: Mapping[str, Part]
    experts: Mapping[str, DiTConfig] = field(default_factory=dict)
    expand_timesteps: bool = False
    knows: Mapping[str, list[str]] = field(default_factory=dict)
    family: str = "wan"
    layout: str = "diffusers"
    took: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path | str, named: Named | None = None) -> "WanCheckpoint":
        """Reads configs and headers, no weights.

        Raises:
            CheckpointError: a file is missing or damaged, or the parts do not fit one another.
        """
        path, named = Path(path), named or Named()
        if path.is_file() or (not is_diffusers(path) and is_model(path)):
            from dit_video.models.wan.release import open_release

            return open_release(path, named)
        from dit_video.models.wan.folder import open_folder

        if named != Named():
            given = next(str(file) for file in vars(named).values() if file)
            raise CheckpointError(f"{given}: was named for a part, and the diffusers folder {path} has all of them.")
        return open_folder(path)

    def with_loras(self, loras: Sequence[Lora]) -> "WanCheckpoint":
        """The same with LoRAs, each merged into the transformers that it fits; no weights are read.

        Raises:
            CheckpointError: one fits none.
        """
        if not loras:
            return self
        shapes = {name: part.shapes for name, part in self.parts.items() if name.startswith("transformer")}
        return replace(self, loras=fit(loras, shapes, LAYOUTS))

    def load_text(self, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> TextEncoder:
        """The text encoder and its tokenizer. Raises CheckpointError."""
        return TextEncoder.from_folder(self.path / "text_encoder", self.path / "tokenizer", dtype=dtype, device=device)

    def load_dit(self, which: str = "transformer", *, dtype: torch.dtype, device: torch.device | str = "cpu") -> WanDiT:
        """The transformer, or "transformer_2", the low-noise expert. Raises CheckpointError."""
        part = self.parts[which]
        return load_into(
            lambda: WanDiT(self.experts.get(which, self.dit)),
            part.tensors,
            part.layout,
            dtype=dtype,
            device=device,
            float32_names=lambda name: any(part in name for part in _FLOAT32),
            change=partial(merged, self.loras, which),
        )

    def load_vae(self, *, dtype: torch.dtype, device: torch.device | str = "cpu") -> WanVAE:
        """The VAE. Raises CheckpointError."""
        part = self.parts["vae"]
        return load_into(lambda: WanVAE(self.vae), part.tensors, part.layout, dtype=dtype, device=device)


open_checkpoint = WanCheckpoint.open


def variant_of(dit: DiTConfig, vae: VAEConfig, boundary: float | None) -> str:
    """The name of a release with this configuration, or "custom"."""
    known = {(preset.dit, preset.vae, preset.boundary): name for name, preset in VARIANTS.items()}
    return known.get((dit, vae, boundary), "custom")
