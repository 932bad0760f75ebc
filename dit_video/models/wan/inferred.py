"""The configuration of Wan's parts from the shapes of their tensors, for files that come without a config.json.

Shapes do not tell the width of the transformer's heads, which is 128 in every release, nor the constants that whiten
latents, which go with the form of the autoencoder.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from dit_video.errors import CheckpointError, DvgenError
from dit_video.models.wan.configs import DiTConfig, VAEConfig
from dit_video.models.wan.vae_layouts import WAN_2_1_VAE, WAN_2_2_VAE

HEAD_DIM = 128
Shapes = Mapping[str, tuple[int, ...]]  # by our names, which are the original release's


def dit_from_shapes(where: Path, shapes: Shapes, *, num_heads: int | None = None) -> DiTConfig:
    """The transformer's configuration; num_heads where something beside the file tells.

    Raises:
        CheckpointError: a tensor is missing that would tell, or the shapes are not those of a Wan transformer.
    """
    try:
        patch = shapes["patch_embedding.weight"]  # (dim, in_dim, p, q, r)
        dim, in_dim, *sides = patch
        return DiTConfig(
            patch=(sides[0], sides[1], sides[2]),
            in_dim=in_dim,
            out_dim=shapes["head.head.weight"][0] // math.prod(sides),
            dim=dim,
            ffn_dim=shapes["blocks.0.ffn.0.weight"][0],
            freq_dim=shapes["time_embedding.0.weight"][1],
            num_heads=num_heads or dim // HEAD_DIM,
            num_layers=_count(shapes, r"blocks\.(\d+)\."),
            text_dim=shapes["text_embedding.0.weight"][1],
            cross_attn_norm="blocks.0.norm3.weight" in shapes,
            image_dim=shapes.get("img_emb.proj.0.weight", (None,))[0],
            emb_pos=shapes.get("img_emb.emb_pos", (1, None))[1],
        )
    except KeyError as missing:
        raise CheckpointError(f"{where}: lacks the tensor {missing}, which every Wan transformer has.") from None
    except (ValueError, IndexError, AssertionError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where}: its shapes are not those of a Wan transformer ({error}).") from None


def dit_from_original(file: Path, fields: Mapping[str, Any], shapes: Shapes) -> DiTConfig:
    """The transformer's configuration from an original release's config.json and the shapes of the tensors beside it.

    Raises:
        CheckpointError: they disagree, or the shapes are not those of a Wan transformer.
    """
    heads = fields.get("num_heads")
    if heads is not None and (type(heads) is not int or heads < 1):
        raise CheckpointError(f"{file}: num_heads is {heads!r}; it must be a whole number above 0.")
    dit = dit_from_shapes(file.parent, shapes, num_heads=heads)
    for name in ("dim", "in_dim", "out_dim", "ffn_dim", "freq_dim", "num_layers", "text_dim"):
        if name in fields and fields[name] != getattr(dit, name):
            raise CheckpointError(
                f"{file}: {name} is {fields[name]!r}; the tensors beside it have {getattr(dit, name)}."
            )
    return replace(dit, eps=fields.get("eps", dit.eps), text_len=fields.get("text_len", dit.text_len))


def vae_from_shapes(where: Path, shapes: Shapes) -> VAEConfig:
    """The autoencoder's configuration, with the constants of the release that has its form.

    Raises:
        CheckpointError: the shapes are not those of a Wan autoencoder, or no release has so many channels.
    """
    try:
        z_dim = shapes["conv2.weight"][0]
        residual = any(name.startswith("encoder.downsamples.0.downsamples.") for name in shapes)
        levels = _levels(shapes, residual)
        dim = shapes["encoder.conv1.weight"][0]
        patch = math.isqrt(shapes["encoder.conv1.weight"][1] // 3)
        decoder_dim = shapes["decoder.head.0.gamma"][0]
        blocks = {count for _, count, _ in levels}
        if len(blocks) != 1:
            raise ValueError(f"levels of {sorted(blocks)} blocks")
    except KeyError as missing:
        raise CheckpointError(f"{where}: lacks the tensor {missing}, which every Wan autoencoder has.") from None
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where}: its shapes are not those of a Wan autoencoder ({error}).") from None
    release = next((r for r in (WAN_2_1_VAE, WAN_2_2_VAE) if (r.z_dim, r.residual) == (z_dim, residual)), None)
    if release is None:
        raise CheckpointError(
            f"{where}: no release has an autoencoder of {z_dim} channels, so the constants that whiten its latents are "
            "unknown; a diffusers folder has them in vae/config.json."
        )
    try:
        return replace(
            release,
            dim=dim,
            decoder_dim=decoder_dim,
            dim_mult=tuple(out // dim for out, _, _ in levels),
            num_res_blocks=blocks.pop(),
            temporal_downsample=tuple(time for _, _, time in levels[:-1]),
            patch=patch,
        )
    except DvgenError as error:
        raise CheckpointError(f"{where}: its shapes are not those of a Wan autoencoder ({error}).") from None


def _levels(shapes: Shapes, residual: bool) -> list[tuple[int, int, bool]]:
    """Of each level of the encoder: its channels, its residual blocks, and whether it halves the frames."""
    pattern = r"encoder\.downsamples\.(\d+)\.downsamples\.(\d+)\." if residual else r"encoder\.downsamples\.(\d+)\."
    layers: dict[tuple[int, ...], str] = {}
    for name in shapes:
        if match := re.match(pattern, name):
            layers[tuple(map(int, match.groups()))] = match.group()
    levels: list[tuple[int, int, bool]] = []
    channels = blocks = 0
    for place, prefix in sorted(layers.items()):
        if f"{prefix}resample.1.weight" in shapes:
            levels.append((channels, blocks, f"{prefix}time_conv.weight" in shapes))
            blocks = 0
            continue
        if residual and place[1] == 0 and blocks:
            levels.append((channels, blocks, False))
            blocks = 0
        channels, blocks = shapes[f"{prefix}residual.2.weight"][0], blocks + 1
    return [*levels, (channels, blocks, False)]


def _count(shapes: Shapes, pattern: str) -> int:
    found = {int(match.group(1)) for name in shapes if (match := re.match(pattern, name))}
    if found != set(range(len(found))) or not found:
        raise ValueError(f"blocks {sorted(found)[:5]}")
    return len(found)
