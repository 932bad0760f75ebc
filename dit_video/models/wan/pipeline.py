"""A Wan checkpoint: what is known of it from headers and configs, and the way to load its stages."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video.checkpoints.files import fingerprint
from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.lora import Lora, fit, merged
from dit_video.checkpoints.parts import Keep, Layers, Part
from dit_video.checkpoints.places import Named, is_diffusers, is_model
from dit_video.errors import CheckpointError
from dit_video.models.wan.configs import DiTConfig, VAEConfig
from dit_video.models.wan.described import DescribedModel
from dit_video.models.wan.layouts import LAYOUTS
from dit_video.models.wan.variants import VARIANTS
from dit_video.text.files import LAYERS, ROWS, tokenizer_files
from dit_video.text.image_files import ImageConfig

if TYPE_CHECKING:
    import torch

    from dit_video.models.wan.dit import WanDiT
    from dit_video.models.wan.vae import WanVAE
    from dit_video.text.encoders import TextEncoder
    from dit_video.text.images import ImageEncoder

STREAMED = {"transformer": "blocks", "transformer_2": "blocks", "text_encoder": LAYERS}
"""The parts whose layers can be streamed, and our name of the list of them."""

# What the model computes in float32 whatever its dtype keeps its full values, of checkpoints that have them.
_FLOAT32 = ("time_embedding.", "time_projection.", "head.", "modulation", "norm", "img_emb.proj.0.", "img_emb.proj.4.")


@dataclass(frozen=True, kw_only=True)
class WanCheckpoint(DescribedModel):
    """A Wan model that lies on the disk, and the way to load it.

    variant: a name in `variants.VARIANTS`, or "custom". parts: its transformers and its autoencoder as they are stored.
    images: that of the image encoder, if
    there is one. knows: for a model of a small world, the words it learnt, by kind. layout: the naming of the
    transformer's tensors. tokenizer: its folder, its GGUF file, or the tensor that holds it.
    """

    path: Path
    variant: str
    parts: Mapping[str, Part]
    images: ImageConfig | None = None
    expand_timesteps: bool = False
    knows: Mapping[str, list[str]] = field(default_factory=dict)
    family: str = "wan"
    layout: str = "diffusers"
    tokenizer: Path | TensorInfo

    @classmethod
    def open(cls, path: Path | str, named: Named | None = None) -> "WanCheckpoint":
        """Reads configs and headers, no weights.

        Raises:
            CheckpointError: a file is missing or damaged, or the parts do not fit one another.
        """
        path, named = Path(path), named or Named()
        named.check(path)
        if path.is_file() or (not is_diffusers(path) and is_model(path)):
            from dit_video.models.wan.release import open_release

            return open_release(path, named)
        from dit_video.models.wan.folder import open_folder

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

    @cached_property
    def layers(self) -> Mapping[str, Layers]:
        """Of the parts whose layers can be streamed, those layers."""
        streamed = {name: part for name, part in self.parts.items() if name in STREAMED}
        return {name: part.layers(STREAMED[name], ROWS) for name, part in streamed.items()}

    @cached_property
    def identity(self) -> str:
        """A hash of the names, sizes, times and headers of its files, and of what is merged into it."""
        return self._fingerprint(times=True)

    @cached_property
    def signature(self) -> str:
        """A hash of pieces of its files, and of what is merged into it; the same on every machine."""
        return self._fingerprint(times=False)

    @cached_property
    def vae_identity(self) -> str:
        """A hash of the files that hold its autoencoder."""
        return fingerprint({info.file for info in self.parts["vae"].tensors.values()}, times=True)

    @property
    def files(self) -> set[Path]:
        """All its files, but for what is merged into it."""
        files = {info.file for part in self.parts.values() for info in part.tensors.values()}
        return files | self.text_files | {file for file in self.path.glob("**/*.json") if self.path.is_dir()}

    def _fingerprint(self, *, times: bool) -> str:
        files = self.files
        loras = (fitted.lora for fitted in self.loras)
        merged = [(fingerprint([lora.path], times=times), lora.strength, lora.part) for lora in loras]
        return hashlib.sha256(repr((fingerprint(files, times=times), merged)).encode()).hexdigest()

    @property
    def text_files(self) -> set[Path]:
        """The files that its text encoder's numbers depend on."""
        part, tokenizer = self.parts["text_encoder"], self.tokenizer
        files = {info.file for info in part.tensors.values()}
        files |= {file for file in (part.where / "config.json",) if file.is_file()}
        if isinstance(tokenizer, TensorInfo):
            return files | {tokenizer.file}
        return files | (set(tokenizer_files(tokenizer)) if tokenizer.is_dir() else {tokenizer})

    def load_text(
        self, *, dtype: "torch.dtype", device: "torch.device | str" = "cpu", keep: Keep | None = None
    ) -> "TextEncoder":
        """The text encoder and its tokenizer; keep: see `TextEncoder.from_part`. Raises CheckpointError."""
        from dit_video.text.encoders import TextEncoder, load_tokenizer

        tokenizer = load_tokenizer(self.tokenizer)
        return TextEncoder.from_part(self.parts["text_encoder"], tokenizer, dtype=dtype, device=device, keep=keep)

    def load_images(self, *, dtype: "torch.dtype", device: "torch.device | str" = "cpu") -> "ImageEncoder":
        """The image encoder. Raises CheckpointError."""
        if self.images is None:
            return super().load_images(dtype=dtype, device=device)
        from dit_video.text.images import load_image_encoder

        return load_image_encoder(self.parts["image_encoder"], self.images, dtype=dtype, device=device)

    def load_dit(
        self,
        which: str = "transformer",
        *,
        dtype: "torch.dtype",
        device: "torch.device | str" = "cpu",
        keep: Keep | None = None,
        quantize: str | None = None,
    ) -> "WanDiT":
        """The transformer, or "transformer_2", the low-noise expert.

        keep: what stays in memory of its blocks while the others are streamed; None for all. quantize: a name in
        `nn.linear.SCHEMES`, of how the linear layers of its blocks compute; the rest keeps its dtype.

        Raises:
            CheckpointError: it does not fit its configuration, or cannot be read.
        """
        from dit_video.checkpoints.load import load_into
        from dit_video.checkpoints.stream import Stream
        from dit_video.models.wan.dit import WanDiT
        from dit_video.nn.linear import quantised

        def build() -> WanDiT:
            dit = WanDiT(self.dit)
            quantised(dit.blocks, quantize)
            return dit

        part = self.parts[which]
        return load_into(
            build,
            part.tensors,
            part.layout,
            dtype=dtype,
            device=device,
            float32_names=lambda name: any(part in name for part in _FLOAT32),
            change=partial(merged, self.loras, which),
            stream=None if keep is None else Stream(STREAMED[which], keep=keep),
        )

    def load_vae(self, *, dtype: "torch.dtype", device: "torch.device | str" = "cpu") -> "WanVAE":
        """The VAE. Raises CheckpointError."""
        from dit_video.checkpoints.load import load_into
        from dit_video.models.wan.vae import WanVAE

        part = self.parts["vae"]
        return load_into(lambda: WanVAE(self.vae), part.tensors, part.layout, dtype=dtype, device=device)


open_checkpoint = WanCheckpoint.open


def variant_of(dit: DiTConfig, vae: VAEConfig, boundary: float | None, path: Path | None = None) -> str:
    """The name of a release with this configuration, or "custom".

    path: tells apart those with the same one, whose names differ in their last word, such as 720P.
    """
    parts = dit, vae, boundary
    names = [name for name, preset in VARIANTS.items() if (preset.dit, preset.vae, preset.boundary) == parts]
    told = [name for name in names if name.rpartition("-")[2].lower() in str(path).lower()]
    return (told or names or ["custom"])[0]


def known_frames_of(dit: DiTConfig, vae: VAEConfig, *, expand_timesteps: bool) -> str:
    """Which frames a release with this configuration was trained to be given, see `DescribedModel`.

    expand_timesteps: it knows a noise level per latent frame, as Wan 2.2 TI2V, which learnt with the first one known.
    """
    if dit.in_dim == vae.z_dim:
        return "first" if expand_timesteps else "none"
    if dit.emb_pos is not None:
        return "first and last"
    return "first or both" if dit.image_dim is None else "first"


def check_experts(path: Path, configs: Mapping[str, DiTConfig]) -> None:
    """Refuses two transformers that are not the experts of one model. Raises CheckpointError."""
    first, *others = configs.values()
    for other in others:
        for name, value in asdict(first).items():
            if getattr(other, name) != value:
                rule = f"{name} is {value} in one and {getattr(other, name)} in the other"
                raise CheckpointError(f"{path}: its two transformers are not the experts of one model; {rule}.")


def check_channels(where: Path, dit: DiTConfig, vae: VAEConfig) -> None:
    """Refuses a transformer that does not take and give an autoencoder's latents. Raises CheckpointError."""
    beside = vae.stride[0] + vae.z_dim  # of models that animate pictures, see `known.encode_beside`
    if dit.out_dim != vae.z_dim or dit.in_dim not in (vae.z_dim, vae.z_dim + beside):
        raise CheckpointError(
            f"{where}: the transformer takes {dit.in_dim} channels and gives {dit.out_dim}; it must give the VAE's "
            f"{vae.z_dim}, and take as many, or {vae.z_dim + beside} to animate pictures."
        )
