"""The Wan VAE in the layouts that people have: tensor names, and diffusers' config.json, both ways.

Our names are the original release's, which ComfyUI's files keep. Which rows a table has depends on the configuration;
`ORIGINAL_NAMES` and `DIFFUSERS_NAMES` only tell the namings apart.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from dit_video.checkpoints.keymap import Layout, Row, identity
from dit_video.errors import CheckpointError
from dit_video.models.wan.configs import VAEConfig

WAN_2_1_VAE = VAEConfig(
    latents_mean=(
        -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508, 0.4134, -0.0715, 0.5517,
        -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
    ),
    latents_std=(
        2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743, 3.2687, 2.1526, 2.8652, 1.5579,
        1.6382, 1.1253, 2.8251, 1.9160,
    ),
)  # fmt: skip
"""Wan 2.1 and the 14B models of 2.2: 0.127B parameters, 4x8x8, 16 channels. Constants: wan/modules/vae.py."""

WAN_2_2_VAE = VAEConfig(
    dim=160,
    decoder_dim=256,
    z_dim=48,
    residual=True,
    patch=2,
    latents_mean=(
        -0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813,
        0.0891, 0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108,
        -0.2158, 0.2502, -0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313,
        -0.1649, 0.0117, 0.0723, -0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573,
        -0.0548, -0.1681, -0.0667,
    ),
    latents_std=(
        0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901,
        0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659,
        0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944,
        0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744,
    ),
)  # fmt: skip
"""Wan 2.2 TI2V-5B: 0.705B parameters, 4x16x16, 48 channels. Constants: wan/modules/vae2_2.py."""

_BLOCK = (
    Row("residual.0.gamma", "norm1.gamma"),
    Row("residual.2.{p}", "conv1.{p}"),
    Row("residual.3.gamma", "norm2.gamma"),
    Row("residual.6.{p}", "conv2.{p}"),
    Row("shortcut.{p}", "conv_shortcut.{p}"),
)
_RESAMPLE = (Row("resample.1.{p}", "resample.1.{p}"), Row("time_conv.{p}", "time_conv.{p}"))
_ATTENTION = (
    Row("norm.gamma", "norm.gamma"),
    Row("to_qkv.{p}", "to_qkv.{p}"),
    Row("proj.{p}", "proj.{p}"),
)


ORIGINAL_NAMES = Layout("original", "decoder.middle.0.residual.0.gamma", ())
DIFFUSERS_NAMES = Layout("diffusers", "decoder.mid_block.resnets.0.norm1.gamma", ())


def original_layout(config: VAEConfig) -> Layout:
    """The table of the original release's names for a VAE of this shape: ours."""
    rows = identity(row.ours for row in diffusers_layout(config).rows)
    return Layout(ORIGINAL_NAMES.name, ORIGINAL_NAMES.fingerprint, rows)


def diffusers_layout(config: VAEConfig) -> Layout:
    """The key table between our names (the original release's) and diffusers' for a VAE of this shape."""
    rows = [Row("conv1.{p}", "quant_conv.{p}"), Row("conv2.{p}", "post_quant_conv.{p}")]
    for side in ("encoder", "decoder"):
        rows += [
            Row(f"{side}.conv1.{{p}}", f"{side}.conv_in.{{p}}"),
            Row(f"{side}.head.0.gamma", f"{side}.norm_out.gamma"),
            Row(f"{side}.head.2.{{p}}", f"{side}.conv_out.{{p}}"),
            *_under(f"{side}.middle.0", f"{side}.mid_block.resnets.0", _BLOCK),
            *_under(f"{side}.middle.1", f"{side}.mid_block.attentions.0", _ATTENTION),
            *_under(f"{side}.middle.2", f"{side}.mid_block.resnets.1", _BLOCK),
        ]
    rows += _residual_levels(config) if config.residual else _plain_levels(config)
    return Layout(DIFFUSERS_NAMES.name, DIFFUSERS_NAMES.fingerprint, tuple(rows))


def _under(ours: str, theirs: str, rows: tuple[Row, ...]) -> Iterator[Row]:
    return (Row(f"{ours}.{row.ours}", f"{theirs}.{row.theirs}") for row in rows)


def _residual_levels(config: VAEConfig) -> Iterator[Row]:
    """2.2: both namings nest by level; ours counts the resampler as one more block of its level."""
    for ours, theirs, word, blocks in (
        ("encoder.downsamples.{i}.downsamples", "encoder.down_blocks.{i}", "downsampler", config.num_res_blocks),
        ("decoder.upsamples.{i}.upsamples", "decoder.up_blocks.{i}", "upsampler", config.num_res_blocks + 1),
    ):
        yield from _under(f"{ours}.{{j}}", f"{theirs}.resnets.{{j}}", _BLOCK)
        yield from _under(f"{ours}.{blocks}", f"{theirs}.{word}", _RESAMPLE)


def _plain_levels(config: VAEConfig) -> Iterator[Row]:
    """2.1: flat in ours on both sides, and in theirs on the encoder's; their decoder nests by level."""
    yield from _under("encoder.downsamples.{i}", "encoder.down_blocks.{i}", _BLOCK + _RESAMPLE)
    per_level = config.num_res_blocks + 2  # one more block than the encoder, and the resampler
    for level in range(len(config.dim_mult)):
        for block in range(per_level - 1):
            ours = f"decoder.upsamples.{level * per_level + block}"
            yield from _under(ours, f"decoder.up_blocks.{level}.resnets.{block}", _BLOCK)
        ours = f"decoder.upsamples.{(level + 1) * per_level - 1}"
        yield from _under(ours, f"decoder.up_blocks.{level}.upsamplers.0", _RESAMPLE)


def from_diffusers_config(raw: Mapping[str, Any]) -> VAEConfig:
    """A VAEConfig from the contents of a diffusers `vae/config.json`; absent fields mean diffusers' defaults (Wan 2.1).

    Raises:
        CheckpointError: the file describes something that a Wan VAE of this code is not.
    """
    known = diffusers_config(WAN_2_1_VAE)
    unknown = sorted(key for key in raw if key not in known and not key.startswith("_"))
    if unknown:
        raise CheckpointError(f"vae/config.json: unknown field {unknown[0]!r}; the known ones are {', '.join(known)}.")
    full = {**known, **{key: value for key, value in raw.items() if not key.startswith("_")}}
    config = _vae_config(full)
    for key, value in diffusers_config(config).items():
        if key in raw and raw[key] != value and (raw[key], value) != (None, config.dim):
            raise CheckpointError(f"vae/config.json: {key} is {raw[key]}; for the rest of the file it must be {value}.")
    return config


def _vae_config(full: Mapping[str, Any]) -> VAEConfig:
    try:
        return VAEConfig(
            dim=full["base_dim"],
            decoder_dim=full["decoder_base_dim"] or full["base_dim"],
            z_dim=full["z_dim"],
            dim_mult=tuple(full["dim_mult"]),
            num_res_blocks=full["num_res_blocks"],
            temporal_downsample=tuple(full["temperal_downsample"]),
            residual=full["is_residual"],
            patch=full["patch_size"] or 1,
            latents_mean=tuple(full["latents_mean"]),
            latents_std=tuple(full["latents_std"]),
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise CheckpointError(f"vae/config.json: does not describe a Wan VAE ({error}).") from None


def diffusers_config(config: VAEConfig) -> dict[str, Any]:
    """The contents of diffusers' `vae/config.json` for a VAEConfig (the misspelt keys are diffusers')."""
    channels = 3 * config.patch**2
    return {
        "_class_name": "AutoencoderKLWan",
        "attn_scales": [],
        "base_dim": config.dim,
        "decoder_base_dim": config.decoder_dim,
        "dim_mult": list(config.dim_mult),
        "dropout": 0.0,
        "in_channels": channels,
        "is_residual": config.residual,
        "latents_mean": list(config.latents_mean),
        "latents_std": list(config.latents_std),
        "num_res_blocks": config.num_res_blocks,
        "out_channels": channels,
        "patch_size": config.patch if config.patch > 1 else None,
        "scale_factor_spatial": config.stride[1],
        "scale_factor_temporal": config.stride[0],
        "temperal_downsample": list(config.temporal_downsample),
        "z_dim": config.z_dim,
    }
