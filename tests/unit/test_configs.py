"""The configs that ship: each parses, and builds what its comment says."""

import re
from pathlib import Path

import pytest
import torch

from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.vae import WanVAE
from dit_video.train.autoencoder import vae_config
from dit_video.train.config import AutoencoderConfig, DiTTrainConfig, load_config
from dit_video.train.dit import dit_config

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
Z_DIM = 32  # of the shipped autoencoder
PAPER = {"s": (12, 384, 6), "b": (12, 768, 12), "l": (24, 1024, 16), "xl": (28, 1152, 16)}  # arXiv 2212.09748, table 1


def transformer(path: Path) -> bool:
    return "\nautoencoder = " in path.read_text()


def test_there_are_both_kinds():
    assert {transformer(path) for path in CONFIGS} == {True, False}
    assert {f"dit-{name}" for name in PAPER} | {"dit-small", "example-files"} <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", [path for path in CONFIGS if transformer(path)], ids=lambda path: path.stem)
def test_a_transformer_has_the_parameters_that_its_comment_states(path: Path):
    config = load_config(path, DiTTrainConfig)
    with torch.device("meta"):
        model = WanDiT(dit_config(config.arch, Z_DIM))
    (stated,) = re.findall(r"^# Transformer: ([\d,]+) parameters", path.read_text(), re.MULTILINE)
    assert int(stated.replace(",", "")) == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("path", [path for path in CONFIGS if not transformer(path)], ids=lambda path: path.stem)
def test_an_autoencoder_builds(path: Path):
    config = load_config(path, AutoencoderConfig)
    with torch.device("meta"):
        assert sum(p.numel() for p in WanVAE(vae_config(config.arch)).parameters()) > 1e6


@pytest.mark.parametrize("name", PAPER)
def test_the_sizes_are_the_papers(name: str):
    path = CONFIGS[0].with_name(f"dit-{name}.toml")
    config = load_config(path, DiTTrainConfig)
    arch = config.arch
    assert (arch.num_layers, arch.dim, arch.num_heads) == PAPER[name] and arch.ffn_dim == 4 * arch.dim
    assert config.files is not None and config.autoencoder == "weights/default"
    (tokens,) = re.findall(
        r"^# A step: ([\d,]+) tokens a process\. Memory: .* (?:measured|computed)", path.read_text(), re.MULTILINE
    )
    assert int(tokens.replace(",", "")) == config.pack_tokens
