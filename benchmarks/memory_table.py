"""What each public model takes, as dvgen plans it from its shapes: the table of weights/README.md.

    python benchmarks/memory_table.py

Gigabytes at the release's own size, in bfloat16: on disk (transformers, text and image encoder, autoencoder); in memory
with every stage whole, and the least with which it runs, layers streamed and frames decoded in tiles. The last column
is the least for 416x240 and 33 frames.
"""

from dataclasses import dataclass

import torch
from torch import nn

from dit_video.checkpoints.headers import Summary
from dit_video.checkpoints.parts import Layers
from dit_video.errors import UsageError
from dit_video.machine import PROGRAM_BYTES
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.models.wan.vae import WanVAE
from dit_video.models.wan.variants import VARIANTS, Variant
from dit_video.plan import check_memory, plan
from dit_video.shapes import VideoShape
from dit_video.text.vocabulary import build_umt5

UMT5_XXL = {"vocab_size": 256_384, "layers": 24, "heads": 64, "d_kv": 64, "d_ff": 10_240}
CLIP_PARAMETERS = 632_076_800  # of the vision half of CLIP ViT-H/14
MEGABYTE = 10**6


@dataclass(frozen=True, kw_only=True)
class Public(RandomCheckpoint):
    """A model of full size without any weights."""

    of_layers: dict[str, Layers]

    @property
    def layers(self) -> dict[str, Layers]:
        return self.of_layers


def counted(module: nn.Module, name: str, rows: str = "") -> tuple[Summary, Layers]:
    """A module in bfloat16, and its list of layers."""
    total = sum(parameter.numel() for parameter in module.parameters())
    layers = [sum(parameter.numel() for parameter in layer.parameters()) for layer in module.get_submodule(name)]
    embedding = module.get_submodule(rows).weight.numel() if rows else 0
    return Summary(parameters=total, nbytes=2 * total, dtypes=("bfloat16",)), Layers(
        len(layers), max(layers), total - sum(layers) - embedding
    )


def model(variant: Variant) -> Public:
    """A model with its text encoder, and its image encoder if it has one."""
    with torch.device("meta"):
        text = build_umt5(d_model=variant.dit.text_dim, **UMT5_XXL)
        dit, vae = WanDiT(variant.dit), WanVAE(variant.vae)
    found = {"text_encoder": counted(text, "encoder.block", "shared"), "transformer": counted(dit, "blocks")}
    if variant.boundary:
        found["transformer_2"] = found["transformer"]
    size = sum(parameter.numel() for parameter in vae.parameters())
    components = {name: summary for name, (summary, _) in found.items()}
    components["vae"] = Summary(parameters=size, nbytes=2 * size, dtypes=("bfloat16",))
    if variant.dit.image_dim:
        size = CLIP_PARAMETERS
        components["image_encoder"] = Summary(parameters=size, nbytes=2 * size, dtypes=("bfloat16",))
    layers = {name: layers for name, (_, layers) in found.items()}
    return Public(dit=variant.dit, vae=variant.vae, components=components, of_layers=layers)


def least(public: Public, shape: VideoShape) -> int:
    """The fewest megabytes with which it runs, those of the program included."""
    low, high = 0, 200_000
    while high - low > 1:
        middle = (low + high) // 2
        try:
            check_memory(public, shape, itemsize=2, available=middle * MEGABYTE)
            high = middle
        except UsageError:
            low = middle
    return high + PROGRAM_BYTES // MEGABYTE


def main() -> None:
    """Print the table."""
    for name, variant in VARIANTS.items():
        public, usual = model(variant), variant.defaults
        shape = VideoShape(num_frames=usual.frames, height=usual.height, width=usual.width)
        small = VideoShape(num_frames=33, height=240, width=416)
        disk = sum(summary.nbytes for summary in public.components.values())
        whole = plan(public, shape, itemsize=2).nbytes + PROGRAM_BYTES
        figures = (disk / 1e9, whole / 1e9, least(public, shape) / 1e3, least(public, small) / 1e3)
        print(f"| {name} | {shape} | " + " | ".join(f"{figure:.1f} GB" for figure in figures) + " |")


if __name__ == "__main__":
    main()
