"""LoRA (arXiv 2106.09685): a loaded checkpoint learns low-rank changes of its matrices, and nothing of it changes.

Each linear layer of the blocks, of attention as of the feed-forward network, gets two factors beside its weight W: its
output is W x + (alpha / rank) B A x. B starts as 0, so training begins with the checkpoint as it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_video.checkpoints.lora import FILE, save_lora
from dit_video.errors import CheckpointError
from dit_video.models import open_checkpoint
from dit_video.models.wan.configs import VAEConfig
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.layouts import DIFFUSERS
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.models.wan.vae import WanVAE
from dit_video.shapes import Grid
from dit_video.text.encoders import TextEncoder
from dit_video.text.images import ImageEncoder
from dit_video.train.config import DiTArch, DiTTrainConfig
from dit_video.train.loop import CHECKPOINT
from dit_video.train.text_cache import TextCache

FOLDER = "lora"  # in a run's folder, beside TEXTS
TEXTS = "text"


class Adapter(nn.Module):
    """The factors of one layer: `linear` adds scale * up @ down @ x to its output from now on.

    down: (rank, in), drawn as torch draws a linear layer's weight. up: (out, rank), zeros.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator):
        super().__init__()
        bound = 1 / math.sqrt(linear.in_features)
        self.down = nn.Parameter(torch.empty(rank, linear.in_features).uniform_(-bound, bound, generator=generator))
        self.up = nn.Parameter(torch.zeros(linear.out_features, rank))
        self.scale = scale
        linear.register_forward_hook(self._add)

    def _add(self, _: nn.Module, given: tuple[Tensor], y: Tensor) -> Tensor:
        x = given[0]
        return y + self.scale * F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))


class Adapters(nn.Module):
    """The factors of every linear layer in the blocks of a transformer, which is frozen and stays as it is."""

    def __init__(self, dit: WanDiT, *, rank: int, alpha: float, seed: int):
        super().__init__()
        dit.requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleDict(
            {
                name.replace(".", "/"): Adapter(layer, rank, alpha / rank, generator)  # a module's name has no dots
                for name, layer in dit.named_modules()
                if name.startswith("blocks.") and isinstance(layer, nn.Linear)
            }
        )

    def save(self, folder: Path) -> None:
        """Write them where `dvgen sample --lora` and diffusers' `load_lora_weights` read them. Raises CheckpointError.

        The scale is in B: of files without peft's configuration both take a scale of 1.
        """
        folder.mkdir(parents=True, exist_ok=True)
        factors: dict[str, Any] = {name.replace("/", ".") + ".weight": layer for name, layer in self.layers.items()}
        save_lora({name: (a.down, a.scale * a.up) for name, a in factors.items()}, folder / FILE, DIFFUSERS)


@dataclass
class Lora:
    """What such a run trains, and what it has beside the models: the checkpoint it began with and its embeddings."""

    adapters: Adapters
    checkpoint: WanCheckpoint
    texts: TextCache


@dataclass
class Adapted:
    """The models of a run as they are now, where a checkpoint stands: for its sample sheets."""

    dit: WanDiT
    vae: WanVAE
    checkpoint: WanCheckpoint
    boundary: float | None = None
    beside: bool = False
    sees_images: bool = False

    @property
    def identity(self) -> str:
        """That of the checkpoint that is adapted."""
        return self.checkpoint.identity

    @property
    def known_frames(self) -> str:
        """Which frames may be given."""
        return self.checkpoint.known_frames

    @property
    def by_library(self) -> frozenset[str]:
        """The parts that are built of transformers."""
        return self.checkpoint.by_library

    @property
    def grid(self) -> Grid:
        """Pixels per latent and latents per token."""
        return self.checkpoint.grid

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.checkpoint.latent_channels

    def load_images(self, *, dtype: torch.dtype, device: torch.device) -> ImageEncoder:
        """There is none. Raises CheckpointError."""
        return self.checkpoint.load_images(dtype=dtype, device=device)

    def load_text(self, *, dtype: torch.dtype, device: torch.device) -> TextEncoder:
        """The checkpoint's own; not needed where embeddings are given."""
        return self.checkpoint.load_text(dtype=dtype, device=device)

    def load_dit(self, which: str = "transformer", *, dtype: torch.dtype, device: torch.device) -> WanDiT:
        """The transformer with its adapters, in the dtype that it is trained in."""
        return self.dit.to(device)

    def load_vae(self, *, dtype: torch.dtype, device: torch.device) -> WanVAE:
        """The autoencoder, in float32."""
        return self.vae.to(device)


def check_kind(folder: Path, config: DiTTrainConfig) -> None:
    """Refuse to resume a run with a LoRA without one, or the other way round. Raises CheckpointError."""
    had_one = (folder / TEXTS).is_dir()
    if (folder / CHECKPOINT).is_file() and had_one != bool(config.lora):
        said = "with a LoRA; resume it with --lora and its rank" if had_one else "without a LoRA; resume it so"
        raise CheckpointError(f"{folder}: holds a run {said}.")


def build_lora(config: DiTTrainConfig, vae: VAEConfig, note: Callable[[str], None]) -> tuple[WanDiT, Lora]:
    """The transformer of `init_from`, on the CPU, with fresh adapters (seeded).

    Raises:
        CheckpointError: it cannot be opened, does not fit the config or the autoencoder, has two transformers, or
            animates images.
    """
    checkpoint = open_checkpoint(config.init_from)
    if checkpoint.boundary is not None:
        raise CheckpointError(f"{config.init_from}: has two transformers, and a LoRA can be trained of one only.")
    if checkpoint.beside:
        raise CheckpointError(f"{config.init_from}: animates images, and a LoRA can be trained of other models only.")
    _check_arch(config, checkpoint)
    if (vae.z_dim, vae.stride) != (checkpoint.vae.z_dim, checkpoint.vae.stride):
        theirs = f"{vae.z_dim} channels of {'x'.join(map(str, vae.stride))} pixels"
        ours = f"{checkpoint.vae.z_dim} of {'x'.join(map(str, checkpoint.vae.stride))}"
        raise CheckpointError(
            f"autoencoder {config.autoencoder}: its latents have {theirs}, and the transformer of {config.init_from} "
            f"takes {ours}; the nearest is autoencoder = {str(config.init_from)!r}."
        )
    if config.known_share and checkpoint.known_frames == "none":
        note(
            f"known_share is {config.known_share:g}, but {config.init_from} was never trained with known frames; "
            "known_share = 0 trains only what it does."
        )
    # In bfloat16 the products come out as autocast makes them of float32 weights, in half the memory.
    dtype = torch.bfloat16 if config.loop.bf16 else torch.float32
    dit = checkpoint.load_dit(dtype=dtype)
    alpha = config.lora if config.lora_alpha is None else config.lora_alpha
    adapters = Adapters(dit, rank=config.lora, alpha=alpha, seed=config.loop.seed)
    texts = TextCache(Path(config.out) / TEXTS, checkpoint, dtype=dtype, device=config.loop.device, note=note)
    return dit, Lora(adapters, checkpoint, texts)


def _check_arch(config: DiTTrainConfig, checkpoint: WanCheckpoint) -> None:
    """Refuse an [arch] that was given and is not the checkpoint's."""
    if config.arch == DiTArch():
        return
    for name in ("dim", "num_heads", "ffn_dim", "num_layers", "text_dim"):
        wanted, found = getattr(config.arch, name), getattr(checkpoint.dit, name)
        if wanted != found:
            raise CheckpointError(
                f"{config.init_from}: its {name} is {found}, and this config's [arch] has {wanted}; with lora leave "
                "[arch] out."
            )
