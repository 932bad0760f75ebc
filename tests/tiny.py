"""Tiny random Wan checkpoints, built and written by diffusers and transformers themselves, which dvgen must read.

The weights are larger than an initialisation would make them, so that a wrong norm, gate or table changes the picture.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn

PIECES = (
    *("a", "the", "on", "of", "and", "with", "moving", "still", "spinning", "left", "right", "up", "down", "small"),
    *("ball", "square", "triangle", "star", "circle", "cat", "beach", "background", "large", "red", "green", "blue"),
    *("yellow", "purple", "orange", "white", "black", "gray"),
)
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789,.!?'-"


def tiny_tokenizer() -> Tokenizer:
    """A unigram tokenizer in the manner of UMT5's: metaspace words, letters below them, `</s>` at the end."""
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), ("▁", -3.0)]
    vocabulary += [(f"▁{piece}", -4.0 - 0.01 * n) for n, piece in enumerate(PIECES)]
    vocabulary += [(letter, -6.0 - 0.01 * n) for n, letter in enumerate(LETTERS)]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer


def tiny_wan21_folder(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A Wan 2.1 text-to-video folder: plain VAE, 16 channels, stride 4x8x8. Returns `folder`."""
    vae = dict(base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True])
    return _write(folder, dtype, vae, latent_channels=16)


def tiny_ti2v_folder(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A Wan 2.2 TI2V folder: residual VAE with unshuffle 2, stride 4x16x16, a timestep per token. Returns `folder`."""
    vae = dict(
        base_dim=8,
        decoder_base_dim=12,
        z_dim=12,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        temperal_downsample=[False, True, True],
        is_residual=True,
        patch_size=2,
        in_channels=12,
        out_channels=12,
        scale_factor_spatial=16,
    )
    return _write(folder, dtype, vae, latent_channels=12, expand_timesteps=True)


def tiny_experts_folder(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A Wan 2.2 A14B folder: the 2.1 form with a high-noise and a low-noise transformer, boundary 0.875."""
    vae = dict(base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True])
    return _write(folder, dtype, vae, latent_channels=16, boundary_ratio=0.875)


def tiny_i2v_folder(folder: Path, *, dtype: torch.dtype = torch.float32, last: bool = False) -> Path:
    """A Wan 2.1 I2V folder: 36 channels and an image encoder; with `last` that of FLF2V. Returns `folder`."""
    vae = dict(base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True])
    rows = 1 + (28 // 14) ** 2
    seeing = dict(image_dim=20, added_kv_proj_dim=32, pos_embed_seq_len=2 * rows if last else None)
    return _write(folder, dtype, vae, latent_channels=16, seeing=seeing)


def tiny_i2v_experts_folder(folder: Path, *, dtype: torch.dtype = torch.float32) -> Path:
    """A Wan 2.2 I2V-A14B folder: 36 channels, no image encoder, two transformers, boundary 0.9. Returns `folder`."""
    vae = dict(base_dim=8, z_dim=16, dim_mult=[1, 2, 2, 2], num_res_blocks=1, temperal_downsample=[False, True, True])
    return _write(folder, dtype, vae, latent_channels=16, seeing={}, boundary_ratio=0.9)


def _image_parts() -> dict[str, Any]:
    """CLIP's vision transformer in small, and what prepares pictures for it."""
    from transformers import CLIPVisionConfig, CLIPVisionModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    encoder = CLIPVisionModel(
        CLIPVisionConfig(
            hidden_size=20,
            intermediate_size=32,
            num_hidden_layers=3,
            num_attention_heads=2,
            image_size=28,
            patch_size=14,
            hidden_act="gelu",
        )
    )
    _enlarge(encoder)
    sides = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    return {"image_encoder": encoder, "image_processor": CLIPImageProcessorPil(**sides)}


def _write(
    folder: Path,
    dtype: torch.dtype,
    vae_config: dict[str, Any],
    *,
    latent_channels: int,
    seeing: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """seeing: of models that animate pictures, the transformer's options for an image encoder."""
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanPipeline
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    state = torch.get_rng_state()
    torch.manual_seed(20)
    tokenizer = tiny_tokenizer()
    constants = torch.linspace(-1, 1, latent_channels)
    vae = AutoencoderKLWan(
        **vae_config, latents_mean=(0.3 * constants).tolist(), latents_std=(1.5 + constants).abs().tolist()
    )
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=tokenizer.get_vocab_size(),
            d_model=24,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            dropout_rate=0.0,
        )
    )
    beside = {} if seeing is None else {"in_channels": 2 * latent_channels + 4, **seeing}
    transformer = _transformer(latent_channels, **beside)
    others = {"transformer_2": _transformer(latent_channels, **beside)} if "boundary_ratio" in options else {}
    others |= _image_parts() if seeing else {}
    for module in (vae, text_encoder):
        _enlarge(module)
    for name, module in others.items():
        if name != "image_processor":
            module.to(dtype)
    pipeline = (WanPipeline if seeing is None else WanImageToVideoPipeline)(
        tokenizer=PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=512
        ),
        text_encoder=text_encoder.to(dtype),
        vae=vae.to(dtype),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=1000, flow_shift=3.0
        ),
        transformer=transformer.to(dtype),
        **others,
        **options,
    )
    pipeline.save_pretrained(folder)
    torch.set_rng_state(state)
    return folder


def _transformer(channels: int, **options: Any) -> nn.Module:
    from diffusers import WanTransformer3DModel

    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=16,
        out_channels=channels,
        text_dim=24,
        freq_dim=32,
        ffn_dim=48,
        num_layers=2,
        **{"in_channels": channels, **options},
    )
    _enlarge(transformer)
    return transformer


@torch.no_grad()
def _enlarge(module: nn.Module) -> None:
    """Random values where an initialisation puts zeros and ones, and wider ones where it is cautious."""
    for name, parameter in module.named_parameters():
        if "attn2.norm" in name:  # sharp attention, or a short prompt drowns in the padding to 512 rows
            parameter.copy_(2.5 + 0.2 * torch.randn_like(parameter))
        elif name.endswith(("norm.weight", "gamma")) or (parameter.ndim == 1 and "norm" in name and "weight" in name):
            parameter.add_(0.2 * torch.randn_like(parameter))
        elif parameter.ndim == 1:
            parameter.copy_(0.2 * torch.randn_like(parameter))
        elif "scale_shift_table" in name:
            parameter.copy_(0.5 * torch.randn_like(parameter))
        elif "shared" in name or "relative_attention_bias" in name:
            parameter.copy_(torch.randn_like(parameter))
        else:
            parameter.copy_(1.2 * torch.randn_like(parameter) / parameter[0].numel() ** 0.5)
