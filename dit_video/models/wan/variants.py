"""Wan models by name: the shapes of their parts and the settings that their releases sample with.

Sources: Wan-Video/Wan2.1 and Wan2.2, wan/configs/*.py.
"""

from dataclasses import dataclass, replace

from dit_video.models.wan.configs import DiTConfig, VAEConfig
from dit_video.models.wan.defaults import RELEASES, TINY_DEFAULTS, Defaults
from dit_video.models.wan.vae_layouts import WAN_2_1_VAE, WAN_2_2_VAE


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A model; boundary: the noise level from which up the first of two experts denoises, None for one transformer."""

    dit: DiTConfig
    vae: VAEConfig
    defaults: Defaults
    boundary: float | None = None


_14B = DiTConfig(dim=5120, ffn_dim=13824, num_heads=40, num_layers=40)

_I2V_14B = replace(_14B, in_dim=36, image_dim=1280)

VARIANTS = {
    "T2V-1.3B": Variant(
        dit=DiTConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30),
        vae=WAN_2_1_VAE,
        defaults=RELEASES["T2V-1.3B"],
    ),
    "T2V-14B": Variant(dit=_14B, vae=WAN_2_1_VAE, defaults=RELEASES["T2V-14B"]),
    "T2V-A14B": Variant(dit=_14B, vae=WAN_2_1_VAE, defaults=RELEASES["T2V-A14B"], boundary=0.875),
    "TI2V-5B": Variant(
        dit=DiTConfig(dim=3072, ffn_dim=14336, num_heads=24, num_layers=30, in_dim=48, out_dim=48),
        vae=WAN_2_2_VAE,
        defaults=RELEASES["TI2V-5B"],
    ),
    "I2V-14B-480P": Variant(dit=_I2V_14B, vae=WAN_2_1_VAE, defaults=RELEASES["I2V-14B-480P"]),
    "I2V-14B-720P": Variant(dit=_I2V_14B, vae=WAN_2_1_VAE, defaults=RELEASES["I2V-14B-720P"]),
    "FLF2V-14B": Variant(dit=replace(_I2V_14B, emb_pos=2 * 257), vae=WAN_2_1_VAE, defaults=RELEASES["FLF2V-14B"]),
    "I2V-A14B": Variant(dit=replace(_14B, in_dim=36), vae=WAN_2_1_VAE, defaults=RELEASES["I2V-A14B"], boundary=0.9),
}
"""Of two with the same parts, the name of a checkpoint's folder says which it is, or else it is the first."""

TINY = Variant(
    dit=DiTConfig(dim=64, ffn_dim=128, num_heads=2, num_layers=2, freq_dim=32, text_dim=32),
    vae=VAEConfig(
        dim=8,
        decoder_dim=8,
        dim_mult=(1, 2, 2, 2),
        num_res_blocks=1,
        latents_mean=(0.0,) * 16,
        latents_std=(1.0,) * 16,
    ),
    defaults=TINY_DEFAULTS,
)
