"""Write a random checkpoint of a public model's full size, to show that nothing in dvgen is special to the small one.

    python benchmarks/make_full_size.py T2V-1.3B /tmp/wan-1.3b
    dvgen sample "a red ball" --model /tmp/wan-1.3b --size 128x96 --frames 5 --steps 2

The transformer and the autoencoder have their full sizes in bfloat16 (3 GB for T2V-1.3B); the text encoder is one
narrow layer of the full width with a vocabulary of words, since UMT5-XXL alone would take 11 GB.
"""

import argparse
from pathlib import Path

import torch

from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.folder import save_folder
from dit_video.models.wan.vae import WanVAE
from dit_video.models.wan.variants import VARIANTS
from dit_video.scenes.captions import words
from dit_video.text.vocabulary import build_umt5, build_word_tokenizer


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=sorted(VARIANTS))
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    variant = VARIANTS[arguments.variant]
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    dit, vae = WanDiT(variant.dit), WanVAE(variant.vae)
    torch.set_default_dtype(torch.float32)
    tokenizer = build_word_tokenizer(words())
    text = build_umt5(
        vocab_size=tokenizer.get_vocab_size(), d_model=variant.dit.text_dim, layers=1, heads=4, d_kv=64, d_ff=256
    )
    save_folder(
        arguments.out,
        dit=dit,
        vae=vae,
        text=text,
        tokenizer=tokenizer,
        defaults={"steps": 2},
        shift=variant.defaults.shift,
        dit_dtype=torch.bfloat16,
        vae_dtype=torch.bfloat16,
        expand_timesteps=variant.vae.residual,
    )


if __name__ == "__main__":
    main()
