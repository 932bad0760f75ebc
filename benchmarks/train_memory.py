"""Memory of a training step of the transformer, computed: for sizes that a machine cannot hold.

    python benchmarks/train_memory.py configs/dit-*.toml [--tokens 1024]

Weights, gradients, average and optimiser states are counted on the meta device, and the bfloat16 copies that autocast
makes. Activations are what the forward pass keeps for the backward pass: counted for one clip of `--tokens` tokens in
models of one and two layers, with fused attention (which keeps no probabilities, as on a GPU), and scaled up to the
config's layers and tokens. What is short-lived comes on top: a tenth or so.
"""

import argparse
import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.dit import WanDiT
from dit_video.nn import attention
from dit_video.train.config import DiTTrainConfig, load_config
from dit_video.train.dit import dit_config
from dit_video.train.optim import build_optimizers

Z_DIM, TEXT_ROWS = 32, 20


def state_bytes(model: nn.Module, muon_lr: float) -> int:
    """Weights, gradients and average in float32, one state for Muon's matrices, two for AdamW's, a bfloat16 copy."""
    optimizers = build_optimizers([model], muon_lr=muon_lr, adam_lr=1e-3, weight_decay=0.0)
    states = [1, 2] if len(optimizers) == 2 else [2]
    held = [sum(p.numel() for group in o.param_groups for p in group["params"]) for o in optimizers]
    return sum(count * (4 * (3 + state) + 2) for count, state in zip(held, states, strict=True))


def kept_bytes(config: DiTConfig, clip_tokens: int) -> int:
    """What the forward pass of one clip keeps."""
    model = WanDiT(config)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}
    held = []  # a storage that is freed would lend its place to another one

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
            held.append(tensor)
        return tensor

    side = int(clip_tokens**0.5)
    latents = torch.randn(Z_DIM, 1, 2 * side, 2 * side)
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16),
    ):
        text = model.encode_text([torch.randn(TEXT_ROWS, config.text_dim)])
        model([latents], [torch.full((1,), 500.0)], text, [0])
    copies = sum(2 * m.weight.numel() for m in model.modules() if isinstance(m, nn.Linear))  # counted with the state
    return sum(kept.values()) - copies


def activation_bytes(config: DiTConfig, pack_tokens: int, clip_tokens: int) -> float:
    """What a pack's forward pass keeps."""
    one, two = (kept_bytes(dataclasses.replace(config, num_layers=n), clip_tokens) for n in (1, 2))
    return (one + (config.num_layers - 1) * (two - one)) * pack_tokens / int(clip_tokens**0.5) ** 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path)
    parser.add_argument("--tokens", type=int, default=1024, help="of a clip")
    options = parser.parse_args()
    attention.BACKENDS["tiled"] = attention.sdpa  # which a CPU would take for short clips
    print(f"{'config':16}{'parameters':>14}{'state':>10}{'activations':>13}{'together':>10}")
    for path in options.configs:
        config = load_config(path, DiTTrainConfig)
        with torch.device("meta"):
            model = WanDiT(dit_config(config.arch, Z_DIM))
        count = sum(p.numel() for p in model.parameters())
        state = state_bytes(model, config.optim.muon_lr) / 1e9
        kept = activation_bytes(model.config, config.pack_tokens, options.tokens) / 1e9
        print(f"{path.stem:16}{count:14,}{state:8.1f}GB{kept:11.1f}GB{state + kept:8.1f}GB")


if __name__ == "__main__":
    main()
