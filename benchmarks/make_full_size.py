"""Write a random checkpoint of a public model's full size, to show that nothing in dvgen is special to the small one.

    python benchmarks/make_full_size.py T2V-1.3B /tmp/wan-1.3b                    # 14 GB: UMT5-XXL alone has 11.4
    python benchmarks/make_full_size.py T2V-14B /tmp/wan-14b --text-encoder one-layer
    dvgen sample "a red ball" --model /tmp/wan-1.3b --size 128x96 --frames 5 --steps 2

A diffusers folder in bfloat16, written layer by layer, so that it takes no more memory than the largest embedding. The
vocabulary is one of words, padded to UMT5's. With `--text-encoder one-layer` the text encoder is a narrow layer of the
full width with that vocabulary alone. `--layers` and `--text-layers` make fewer layers of the full size.
"""

import argparse
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dit_video.atomic import replacing_folder
from dit_video.checkpoints.files import write_json
from dit_video.models.wan.configs import VAEConfig
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.folder import model_index, scheduler_config
from dit_video.models.wan.layouts import DIFFUSERS, config_to_diffusers
from dit_video.models.wan.vae import WanVAE
from dit_video.models.wan.vae_layouts import diffusers_config, diffusers_layout
from dit_video.models.wan.variants import VARIANTS
from dit_video.scenes.captions import words
from dit_video.text.vocabulary import build_umt5, build_word_tokenizer, save_tokenizer

UMT5_XXL = {"vocab_size": 256_384, "layers": 24, "heads": 64, "d_kv": 64, "d_ff": 10_240}
ONE_LAYER = {"layers": 1, "heads": 4, "d_kv": 64, "d_ff": 256}
DTYPE = torch.bfloat16


def values(name: str, shape: torch.Size) -> Tensor:
    """Numbers that keep activations in range and leave nothing out: norms scale by about one, little is added, matrices
    keep the variance."""
    if re.search(r"norm.*weight$|gamma$", name):
        return torch.empty(shape, dtype=DTYPE).uniform_(0.8, 1.2)
    if len(shape) < 2:
        return torch.empty(shape, dtype=DTYPE).normal_(std=0.02)
    return torch.empty(shape, dtype=DTYPE).normal_(std=min(shape[1:].numel() ** -0.5, 0.05))


def save(tensors: Mapping[str, torch.Size], folder: Path, stem: str) -> None:
    """Write the tensors in shards, one for each layer, and the index."""
    shards: dict[str, list[str]] = {}
    for name in tensors:
        found = re.search(r"blocks?\.\d+\.", name) if "embed" not in name else None
        shards.setdefault(found[0] if found else "", []).append(name)
    weight_map, total = {}, 0
    for number, names in enumerate(shards.values(), start=1):
        file = f"{stem}-{number:05}-of-{len(shards):05}.safetensors"
        made = {name: values(name, tensors[name]) for name in names}
        save_file(made, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
        total += sum(tensor.nbytes for tensor in made.values())
    write_json(folder / f"{stem}.safetensors.index.json", {"metadata": {"total_size": total}, "weight_map": weight_map})
    print(f"{folder.name}: {total / 1e9:.1f} GB", flush=True)


def shapes(module: nn.Module, rename: Callable[[str], str] = str) -> dict[str, torch.Size]:
    """The shapes of a module's parameters by the names in the file."""
    return {rename(name): tensor.shape for name, tensor in module.named_parameters()}


def write_vae(config: VAEConfig, folder: Path) -> None:
    """Write an autoencoder of that form into a folder that is there: its config.json and its weights."""
    with torch.device("meta"):
        vae = WanVAE(config)
    write_json(folder / "config.json", diffusers_config(config))
    save(shapes(vae, diffusers_layout(config).to_theirs), folder, "diffusion_pytorch_model")


def write(
    name: str, out: Path, *, text_encoder: str = "umt5-xxl", layers: int | None = None, text_layers: int | None = None
) -> None:
    """Write the folder of a variant; layers, text_layers: how many of the transformer and of UMT5-XXL, else all."""
    variant = VARIANTS[name]
    if layers is not None:
        variant = replace(variant, dit=replace(variant.dit, num_layers=layers))
    torch.manual_seed(0)
    tokenizer = build_word_tokenizer(words())
    sizes = UMT5_XXL if text_layers is None else UMT5_XXL | {"layers": text_layers}
    if text_encoder == "one-layer":
        sizes = ONE_LAYER | {"vocab_size": tokenizer.get_vocab_size()}
    with torch.device("meta"):
        dit = WanDiT(variant.dit)
        text = build_umt5(d_model=variant.dit.text_dim, **sizes)
    with replacing_folder(out) as folder:
        parts = ["transformer", *(["transformer_2"] if variant.boundary else []), "vae", "text_encoder", "scheduler"]
        for part in parts:
            (folder / part).mkdir()
        for part in parts:
            if part.startswith("transformer"):
                write_json(folder / part / "config.json", config_to_diffusers(variant.dit))
                save(shapes(dit, DIFFUSERS.to_theirs), folder / part, "diffusion_pytorch_model")
        write_vae(variant.vae, folder / "vae")
        text.config.dtype, text.config.architectures = DTYPE, ["UMT5EncoderModel"]
        text.config.save_pretrained(folder / "text_encoder")
        save(shapes(text), folder / "text_encoder", "model")
        save_tokenizer(tokenizer, folder / "tokenizer")
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config(variant.defaults.shift))
        index = model_index(expand_timesteps=variant.vae.residual, boundary=variant.boundary)
        write_json(folder / "model_index.json", index)


def main() -> None:
    """Write the folder that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=[name for name in sorted(VARIANTS) if not re.search("I2V|FLF", name)])
    parser.add_argument("out", type=Path)
    parser.add_argument("--text-encoder", choices=["umt5-xxl", "one-layer"], default="umt5-xxl")
    parser.add_argument("--layers", type=int, help="of the transformer; all without it")
    parser.add_argument("--text-layers", type=int, help="of umt5-xxl; all without it")
    given = parser.parse_args()
    write(
        given.variant,
        given.out,
        text_encoder=given.text_encoder,
        layers=given.layers,
        text_layers=given.text_layers,
    )


if __name__ == "__main__":
    main()
