"""Names and configs of the Wan DiT in the layouts that people have.

Our names are the original release's, so that layout is the identity. diffusers has its own, in which `norm2` and
`norm3` are swapped.
"""

from collections.abc import Mapping
from typing import Any

from dit_video.checkpoints.keymap import Layout, Row, identity
from dit_video.errors import CheckpointError
from dit_video.models.wan.configs import DiTConfig

ORIGINAL = Layout(
    name="original",
    fingerprint="head.modulation",
    rows=identity(
        (
            "patch_embedding.{p}",
            "text_embedding.{i}.{p}",
            "img_emb.emb_pos",
            "img_emb.proj.{i}.{p}",
            "time_embedding.{i}.{p}",
            "time_projection.1.{p}",
            "blocks.{i}.modulation",
            "blocks.{i}.self_attn.q.{p}",
            "blocks.{i}.self_attn.k.{p}",
            "blocks.{i}.self_attn.v.{p}",
            "blocks.{i}.self_attn.o.{p}",
            "blocks.{i}.self_attn.norm_q.weight",
            "blocks.{i}.self_attn.norm_k.weight",
            "blocks.{i}.norm3.{p}",
            "blocks.{i}.cross_attn.q.{p}",
            "blocks.{i}.cross_attn.k.{p}",
            "blocks.{i}.cross_attn.v.{p}",
            "blocks.{i}.cross_attn.o.{p}",
            "blocks.{i}.cross_attn.norm_q.weight",
            "blocks.{i}.cross_attn.norm_k.weight",
            "blocks.{i}.cross_attn.k_img.{p}",
            "blocks.{i}.cross_attn.v_img.{p}",
            "blocks.{i}.cross_attn.norm_k_img.weight",
            "blocks.{i}.ffn.{j}.{p}",
            "head.modulation",
            "head.head.{p}",
        )
    ),
)

DIFFUSERS = Layout(
    name="diffusers",
    fingerprint="condition_embedder.time_proj.weight",
    rows=(
        Row("patch_embedding.{p}", "patch_embedding.{p}"),
        Row("text_embedding.0.{p}", "condition_embedder.text_embedder.linear_1.{p}"),
        Row("text_embedding.2.{p}", "condition_embedder.text_embedder.linear_2.{p}"),
        Row("img_emb.emb_pos", "condition_embedder.image_embedder.pos_embed"),
        Row("img_emb.proj.0.{p}", "condition_embedder.image_embedder.norm1.{p}"),
        Row("img_emb.proj.1.{p}", "condition_embedder.image_embedder.ff.net.0.proj.{p}"),
        Row("img_emb.proj.3.{p}", "condition_embedder.image_embedder.ff.net.2.{p}"),
        Row("img_emb.proj.4.{p}", "condition_embedder.image_embedder.norm2.{p}"),
        Row("time_embedding.0.{p}", "condition_embedder.time_embedder.linear_1.{p}"),
        Row("time_embedding.2.{p}", "condition_embedder.time_embedder.linear_2.{p}"),
        Row("time_projection.1.{p}", "condition_embedder.time_proj.{p}"),
        Row("blocks.{i}.modulation", "blocks.{i}.scale_shift_table"),
        Row("blocks.{i}.self_attn.q.{p}", "blocks.{i}.attn1.to_q.{p}"),
        Row("blocks.{i}.self_attn.k.{p}", "blocks.{i}.attn1.to_k.{p}"),
        Row("blocks.{i}.self_attn.v.{p}", "blocks.{i}.attn1.to_v.{p}"),
        Row("blocks.{i}.self_attn.o.{p}", "blocks.{i}.attn1.to_out.0.{p}"),
        Row("blocks.{i}.self_attn.norm_q.weight", "blocks.{i}.attn1.norm_q.weight"),
        Row("blocks.{i}.self_attn.norm_k.weight", "blocks.{i}.attn1.norm_k.weight"),
        Row("blocks.{i}.norm3.{p}", "blocks.{i}.norm2.{p}"),
        Row("blocks.{i}.cross_attn.q.{p}", "blocks.{i}.attn2.to_q.{p}"),
        Row("blocks.{i}.cross_attn.k.{p}", "blocks.{i}.attn2.to_k.{p}"),
        Row("blocks.{i}.cross_attn.v.{p}", "blocks.{i}.attn2.to_v.{p}"),
        Row("blocks.{i}.cross_attn.o.{p}", "blocks.{i}.attn2.to_out.0.{p}"),
        Row("blocks.{i}.cross_attn.norm_q.weight", "blocks.{i}.attn2.norm_q.weight"),
        Row("blocks.{i}.cross_attn.norm_k.weight", "blocks.{i}.attn2.norm_k.weight"),
        Row("blocks.{i}.cross_attn.k_img.{p}", "blocks.{i}.attn2.add_k_proj.{p}"),
        Row("blocks.{i}.cross_attn.v_img.{p}", "blocks.{i}.attn2.add_v_proj.{p}"),
        Row("blocks.{i}.cross_attn.norm_k_img.weight", "blocks.{i}.attn2.norm_added_k.weight"),
        Row("blocks.{i}.ffn.0.{p}", "blocks.{i}.ffn.net.0.proj.{p}"),
        Row("blocks.{i}.ffn.2.{p}", "blocks.{i}.ffn.net.2.{p}"),
        Row("head.modulation", "scale_shift_table"),
        Row("head.head.{p}", "proj_out.{p}"),
    ),
)

LAYOUTS = (DIFFUSERS, ORIGINAL)


def config_from_diffusers(fields: Mapping[str, Any]) -> DiTConfig:
    """The config of a diffusers `transformer/config.json` (class WanTransformer3DModel).

    Raises:
        CheckpointError: another class, a field missing, or a feature that this model does not have.
    """
    name = fields.get("_class_name", "WanTransformer3DModel")
    if name != "WanTransformer3DModel":
        raise CheckpointError(f"transformer class {name!r}: only WanTransformer3DModel can be loaded as a Wan DiT.")
    norm = fields.get("qk_norm", "rms_norm_across_heads")
    if norm != "rms_norm_across_heads":
        raise CheckpointError(f"qk_norm = {norm!r}: Wan checkpoints must have rms_norm_across_heads.")
    try:
        heads, head_dim, patch = fields["num_attention_heads"], fields["attention_head_dim"], fields["patch_size"]
        if head_dim % 2:
            raise CheckpointError(
                f"attention_head_dim {head_dim}: must be even, since RoPE turns pairs; {head_dim + 1} is."
            )
        if len(patch) != 3 or patch[0] != 1:
            raise CheckpointError(f"patch_size {patch}: must be three numbers of which the first, for time, is 1.")
        image_dim, added = fields.get("image_dim"), fields.get("added_kv_proj_dim")
        if added != (None if image_dim is None else heads * head_dim):
            rule = f"must be the width {heads * head_dim} with an image_dim, and null without one"
            raise CheckpointError(f"added_kv_proj_dim = {added} and image_dim = {image_dim}: the first {rule}.")
        return DiTConfig(
            patch=tuple(patch),
            in_dim=fields["in_channels"],
            out_dim=fields["out_channels"] or fields["in_channels"],
            dim=heads * head_dim,
            ffn_dim=fields["ffn_dim"],
            freq_dim=fields["freq_dim"],
            num_heads=heads,
            num_layers=fields["num_layers"],
            text_dim=fields["text_dim"],
            eps=fields["eps"],
            cross_attn_norm=fields["cross_attn_norm"],
            image_dim=image_dim,
            emb_pos=fields.get("pos_embed_seq_len"),
        )
    except KeyError as missing:
        raise CheckpointError(f"the transformer's config.json lacks {missing}, which a Wan DiT must have.") from None
    except (TypeError, ValueError, AssertionError) as error:
        raise CheckpointError(f"the transformer's config.json does not describe a Wan DiT ({error}).") from None


def config_to_diffusers(config: DiTConfig) -> dict[str, Any]:
    """The diffusers `transformer/config.json` of a config; its pipeline always pads text to 512 rows."""
    return {
        "_class_name": "WanTransformer3DModel",
        "patch_size": list(config.patch),
        "num_attention_heads": config.num_heads,
        "attention_head_dim": config.head_dim,
        "in_channels": config.in_dim,
        "out_channels": config.out_dim,
        "text_dim": config.text_dim,
        "freq_dim": config.freq_dim,
        "ffn_dim": config.ffn_dim,
        "num_layers": config.num_layers,
        "cross_attn_norm": config.cross_attn_norm,
        "qk_norm": "rms_norm_across_heads",
        "eps": config.eps,
        "image_dim": config.image_dim,
        "added_kv_proj_dim": None if config.image_dim is None else config.dim,
        "rope_max_seq_len": 1024,
        "pos_embed_seq_len": config.emb_pos,
    }


def config_to_original(config: DiTConfig, model_type: str) -> dict[str, Any]:
    """The original release's config.json of a config; model_type: "t2v", "i2v", "flf2v" or "ti2v"."""
    return {
        "_class_name": "WanModel",
        "model_type": model_type,
        "patch_size": list(config.patch),
        "text_len": config.text_len,
        "in_dim": config.in_dim,
        "dim": config.dim,
        "ffn_dim": config.ffn_dim,
        "freq_dim": config.freq_dim,
        "text_dim": config.text_dim,
        "out_dim": config.out_dim,
        "num_heads": config.num_heads,
        "num_layers": config.num_layers,
        "cross_attn_norm": config.cross_attn_norm,
        "eps": config.eps,
    }
