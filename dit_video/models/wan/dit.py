"""The Wan video DiT on packed tokens (Wan, arXiv 2503.20314; DiT, arXiv 2212.09748; NaViT, arXiv 2307.06304).

Legend: N tokens of all clips in the pack; D width; H heads of width E = D / H; P prompts with S text keys each; I sets
of pictures with R image keys each; U distinct noise levels; C channels, (T, H, W) latents and (p, q, r) patches of one
clip.

Attribute names are the original release's (Wan-Video/Wan2.1, wan/modules/model.py), so its checkpoints need no table.

Precision: the residual stream, norms, RoPE, modulation, time embedding and head are float32 whatever the parameters
are or autocast says; the other matrix products run in the parameters' dtype, or autocast's, or as nn/linear.py says.
"""

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from itertools import repeat
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.seen import ImageKeys, OfClips, Seen, TextKeys
from dit_video.nn.activation import GELU
from dit_video.nn.adaln import gated_add, modulated_norm, timestep_embedding
from dit_video.nn.attention import attention
from dit_video.nn.feed_forward import FeedForward
from dit_video.nn.graphs import Call, Repeats
from dit_video.nn.linear import Linear, linear, product_dtype, several
from dit_video.nn.packing import Pack, make_pack, pack_tokens, repeat_clips, unpack_tokens
from dit_video.nn.patch import patchify, token_grid, unpatchify
from dit_video.nn.regional import any_length, compile_blocks, own_sizes
from dit_video.nn.rope import rms_norm_rotate
from dit_video.nn.streaming import layers_with

GUARD = 30.0  # the weight of the query's norm in the channels that keep the padding out


UNSEEN = -1e4  # added to a logit, it leaves nothing of its key, in every dtype


def in_float32(layers: nn.Sequential, x: Tensor) -> Tensor:
    """`layers` applied in float32, whatever their parameters are or autocast says."""
    with torch.autocast(x.device.type, enabled=False):
        for layer in layers:
            if isinstance(layer, nn.Linear):
                x = F.linear(x.float(), layer.weight.float(), layer.bias.float())
            else:
                x = layer(x)
    return x


class RMSNorm(nn.Module):
    """Root-mean-square norm over all heads at once, then RoPE if there is a table of angles."""

    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        """(N, D), rope (N, E / 2, 2) to (N, D) of the same dtype, computed in float32."""
        return rms_norm_rotate(x, self.weight.float(), rope, self.eps)


class Attention(nn.Module):
    """What self-attention and cross-attention share: projections and q/k norms."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.num_heads = config.num_heads
        self.q = Linear(config.dim, config.dim)
        self.k = Linear(config.dim, config.dim)
        self.v = Linear(config.dim, config.dim)
        self.o = Linear(config.dim, config.dim)
        self.norm_q = RMSNorm(config.dim, config.eps)
        self.norm_k = RMSNorm(config.dim, config.eps)

    def heads(self, x: Tensor) -> Tensor:
        """(..., D) to (..., H, E)."""
        return x.unflatten(-1, (self.num_heads, -1))


class SelfAttention(Attention):
    """Each token attends to the tokens of its clip."""

    def forward(self, x: Tensor, pack: Pack) -> Tensor:
        """(N, D) to (N, D)."""
        q, k, v = several(x, (self.q, self.k, self.v))  # (N, D) each
        q, k = self.norm_q(q, pack.rope), self.norm_k(k, pack.rope)
        y = attention(self.heads(q), self.heads(k), self.heads(v), lengths=pack.spans)  # (N, H, E)
        return self.o(y.flatten(1))  # (N, D)


class CrossAttention(Attention):
    """Each token attends to the text of its clip, and in models made so, apart from that, to its pictures."""

    def __init__(self, config: DiTConfig):
        super().__init__(config)
        if config.image_dim is not None:
            self.k_img = Linear(config.dim, config.dim)
            self.v_img = Linear(config.dim, config.dim)
            self.norm_k_img = RMSNorm(config.dim, config.eps)

    def text_keys(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Text (P, S, D) to keys and values (P, S, H, E)."""
        keys = self.norm_k(self.k(text).flatten(0, 1))  # (P S, D)
        return self.heads(keys.view_as(text)), self.heads(self.v(text))

    def image_keys(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (I, R, D) to keys and values (I, R, H, E)."""
        keys = self.norm_k_img(self.k_img(images).flatten(0, 1))  # (I R, D)
        return self.heads(keys.view_as(images)), self.heads(self.v_img(images))

    @torch.no_grad()
    def init_guards(self) -> None:
        """Start deaf to padding: see `WanDiT.init_weights`."""
        guards = self._guards()
        self.q.weight[guards], self.q.bias[guards], self.norm_q.weight[guards] = 0, 10, GUARD
        self.k.weight[guards], self.k.bias[:] = 0, 0
        self.k.bias[guards] = -0.05

    @property
    def guarded(self) -> bool:
        """Whether the guards are there."""
        return bool((self.norm_q.weight[self._guards()] == GUARD).all())

    def hold_guards(self) -> None:
        """Keep the guards as they are while the rest is trained."""
        keep = torch.ones_like(self.q.bias)
        keep[self._guards()] = 0
        for layer in (self.q, self.k):
            layer.weight.register_hook(lambda grad: grad * keep.to(grad).unsqueeze(1))
        for vector in (self.q.bias, self.norm_q.weight, self.norm_k.weight):
            vector.register_hook(lambda grad: grad * keep.to(grad))
        self.k.bias.register_hook(torch.zeros_like)

    def _guards(self) -> slice:
        """The last channel of every head."""
        head_dim = len(self.q.bias) // self.num_heads
        return slice(head_dim - 1, None, head_dim)

    def forward(self, x: Tensor, pack: Pack, text: Seen, images: Seen | None) -> Tensor:
        """(N, D) to (N, D)."""
        q = self.heads(self.norm_q(self.q(x)))  # (N, H, E)
        y = attention(q, text.keys, text.values, lengths=pack.spans, kv_lengths=text.spans, key_bias=text.bias)
        if images is not None:
            y = y + attention(q, images.keys, images.values, lengths=pack.spans, kv_lengths=images.spans)
        return self.o(y.flatten(1))  # (N, D)


class Block(nn.Module):
    """Self-attention and feed-forward, modulated by the noise level; between them cross-attention."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        dim, hidden = config.dim, config.ffn_dim
        self.eps = config.eps
        self.self_attn = SelfAttention(config)
        self.norm3 = nn.LayerNorm(dim, config.eps) if config.cross_attn_norm else nn.Identity()
        self.cross_attn = CrossAttention(config)
        self.ffn = FeedForward(dim, hidden)
        self.modulation = nn.Parameter(torch.randn(1, 6, dim) / dim**0.5)

    def forward(self, x: Tensor, levels: Tensor, pack: Pack, text: Seen, images: Seen | None = None) -> Tensor:
        """x (N, D) and levels (U, 6, D), float32, to (N, D) float32."""
        return self.told(self.untold(x, levels, pack), levels, pack, text, images)

    def untold(self, x: Tensor, levels: Tensor, pack: Pack) -> Tensor:
        """The first part of `forward`, self-attention, which knows nothing of text and pictures."""
        shift, scale, gate = self.modulations(levels)[:3]
        y = self.self_attn(modulated_norm(x, shift, scale, pack.level, self.eps, self.dtype), pack)
        return gated_add(x, y, gate, pack.level)

    def told(self, x: Tensor, levels: Tensor, pack: Pack, text: Seen, images: Seen | None) -> Tensor:
        """The other part, which begins with cross-attention."""
        shift, scale, gate = self.modulations(levels)[3:]
        x = x + self.cross_attn(self.cross_norm(x).to(self.dtype), pack, text, images)
        y = self.ffn(modulated_norm(x, shift, scale, pack.level, self.eps, self.dtype))
        return gated_add(x, y, gate, pack.level)

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrix products."""
        return product_dtype(self.self_attn.q.bias)  # weights that were quantised are no longer there

    def modulations(self, levels: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of self-attention and of the feed-forward, (U, D) each, of levels (U, 6, D)."""
        return (self.modulation.float() + levels).unbind(1)

    def cross_norm(self, x: Tensor) -> Tensor:
        """The norm before cross-attention: (N, D) to (N, D) float32."""
        if not isinstance(self.norm3, nn.LayerNorm):
            return x
        return F.layer_norm(x, x.shape[-1:], self.norm3.weight.float(), self.norm3.bias.float(), self.eps)

    def init_identity(self) -> None:
        """Start as the identity, with cross-attention that is deaf to padding."""
        nn.init.zeros_(self.modulation)
        nn.init.zeros_(self.cross_attn.o.weight)  # cross-attention has no gate
        self.cross_attn.init_guards()


class ImageEmbedding(nn.Module):
    """An image encoder's rows to rows as wide as the transformer's; its norms are float32."""

    def __init__(self, width: int, dim: int, positions: int | None):
        super().__init__()
        if positions is not None:
            self.emb_pos = nn.Parameter(torch.zeros(1, positions, width))
        # The norms' eps is torch's own, unlike that of all others here.
        self.proj = nn.Sequential(
            nn.LayerNorm(width), Linear(width, width), nn.GELU(), Linear(width, dim), nn.LayerNorm(dim)
        )

    def forward(self, images: Tensor) -> Tensor:
        """(I, R, image_dim) to (I, R, D)."""
        x = images + self.emb_pos if hasattr(self, "emb_pos") else images
        dtype = product_dtype(cast(nn.Linear, self.proj[1]).weight)
        for layer in self.proj:
            if isinstance(layer, nn.LayerNorm):
                x = F.layer_norm(x.float(), x.shape[-1:], layer.weight.float(), layer.bias.float(), layer.eps).to(dtype)
            else:
                x = layer(x)
        return x


class Head(nn.Module):
    """Modulated norm and projection to patches, in float32."""

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.eps = config.eps
        self.head = nn.Linear(config.dim, math.prod(config.patch) * config.out_dim)
        self.modulation = nn.Parameter(torch.randn(1, 2, config.dim) / config.dim**0.5)

    def forward(self, x: Tensor, levels: Tensor, pack: Pack) -> Tensor:
        """x (N, D) and levels (U, D) to patches (N, p q r C)."""
        shift, scale = (self.modulation.float() + levels[:, None]).unbind(1)  # (U, D) each
        x = modulated_norm(x, shift, scale, pack.level, self.eps, torch.float32)  # (N, D)
        return in_float32(nn.Sequential(self.head), x)


class WanDiT(nn.Module):
    """Predicts the velocity eps - x0 of every patch of a pack of clips.

    `passes` counts the clips put through the transformer since it was built. `compiled`: its blocks are, see
    `compile_blocks`. `graphs`: what records and replays calls of the same shapes on a GPU, if anything does.
    """

    def __init__(self, config: DiTConfig):
        super().__init__()
        self.config = config
        self.passes = 0
        self.compiled = False
        self.graphs: Repeats | None = None
        dim = config.dim
        # Only the parameters of this convolution are used: patches do not overlap, so it is one matrix product.
        self.patch_embedding = nn.Conv3d(config.in_dim, dim, kernel_size=config.patch, stride=config.patch)
        self.text_embedding = nn.Sequential(Linear(config.text_dim, dim), GELU(), Linear(dim, dim))
        self.time_embedding = nn.Sequential(nn.Linear(config.freq_dim, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.time_projection = nn.Sequential(nn.SiLU(), nn.Linear(dim, dim * 6))
        if config.image_dim is not None:
            self.img_emb = ImageEmbedding(config.image_dim, dim, config.emb_pos)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.head = Head(config)

    def encode_text(self, embeds: Sequence[Tensor]) -> TextKeys:
        """Every block's cross-attention keys and values of the prompts: once for all steps of sampling.

        Wan pads each prompt with rows of zeros to `text_len` and attends to all of them. Here one such row stands for
        all c of them: c identical keys are one key with log(c) added to its logit. What follows it, up to the rows of
        the longest prompt, is not seen, so a prompt gives the same keys in any company.

        Args:
            embeds: (L_i, text_dim) for each prompt, 1 <= L_i <= text_len.
        """
        weight = self.patch_embedding.weight
        lengths = [len(embed) for embed in embeds]
        longest, most = max(lengths), self.config.text_len
        assert longest <= most, f"a prompt has {longest} rows; text_len is {most}"
        rows = min(longest + 1, most)
        padded = torch.stack([F.pad(embed, (0, 0, 0, rows - len(embed))) for embed in embeds])  # (P, S, text_dim)
        text = self.text_embedding(padded.to(weight.device, product_dtype(weight)))  # (P, S, D)
        blocks = layers_with(self.blocks, *(f"cross_attn.{name}." for name in ("k", "v", "norm_k")))
        pairs = [cast(Block, block).cross_attn.text_keys(text) for block in blocks]
        bias = torch.zeros(len(lengths), rows)
        for row, length in zip(bias, lengths, strict=True):
            row[length:] = UNSEEN
            row[length : length + 1] = math.log(max(most - length, 1))
        bias = bias.to(weight.device)
        return TextKeys(tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs), bias)

    def encode_images(self, images: Sequence[Tensor]) -> ImageKeys:
        """Every block's cross-attention keys and values of sets of pictures: once for all steps of sampling.

        Args:
            images: (R, image_dim) for each set: the rows that the image encoder gives for its pictures, one after the
                other; R is `emb_pos` where there is one.
        """
        weight = self.patch_embedding.weight
        rows = self.img_emb(torch.stack(list(images)).to(weight.device, product_dtype(weight)))  # (I, R, D)
        blocks = layers_with(self.blocks, *(f"cross_attn.{name}." for name in ("k_img", "v_img", "norm_k_img")))
        pairs = [cast(Block, block).cross_attn.image_keys(rows) for block in blocks]
        return ImageKeys(tuple(keys for keys, _ in pairs), tuple(values for _, values in pairs))

    def embed_timesteps(self, sinusoids: Tensor) -> tuple[Tensor, Tensor]:
        """Sinusoids (U, F) of timesteps to the head's levels (U, D) and the blocks' levels (U, 6, D), float32."""
        e = in_float32(self.time_embedding, sinusoids)  # (U, D)
        return e, in_float32(self.time_projection, e).unflatten(1, (6, -1))  # (U, D), (U, 6, D)

    def forward(
        self,
        latents: Sequence[Tensor],
        timesteps: Sequence[Tensor],
        text: TextKeys,
        text_index: Sequence[int],
        keep: Sequence[Tensor | None] | None = None,
        images: ImageKeys | None = None,
        image_index: Sequence[int] = (),
    ) -> list[Tensor]:
        """The velocity of each clip; a pack gives the same numbers as its clips one by one.

        Args:
            latents: (in_dim, T, H, W) for each clip; H and W are multiples of the patch.
            timesteps: (T,) for each clip, in 0..1000, one per latent frame; 0 marks a known, clean frame.
            text: from `encode_text`.
            text_index: which of its prompts each clip uses. Where there are several times as many as clips, each clip
                is predicted with several prompts, and what does not depend on them is computed once.
            keep: the sorted indices of the tokens that are computed, on the CPU, for each clip where some are dropped;
                None computes all.
            images: from `encode_images`, of models that have an `image_dim`.
            image_index: which of its sets of pictures each clip uses; as many as of text_index.

        Returns:
            (out_dim, T, H, W) float32 for each of text_index, 0 where a token was dropped.
        """
        config, device = self.config, self.patch_embedding.weight.device
        assert (images is None) == (config.image_dim is None), "models with an image_dim, and no others, take pictures"
        self.passes += len(text_index)
        rounds, rest = divmod(len(text_index), len(latents))
        assert rounds and not rest, "every clip has as many prompts as the others"
        grids = [token_grid(latent, config.patch) for latent in latents]
        patches = [patchify(latent, config.patch) for latent in latents]  # (t h w, C p q r) each
        kept = list(keep or [None] * len(grids))
        how: dict[str, Any] = {"head_dim": config.head_dim, "device": device}
        pack = once = make_pack(grids, timesteps, keep=kept, **how)
        if rounds > 1:
            grids, patches, kept = grids * rounds, patches * rounds, kept * rounds
            pack = make_pack(grids, [*timesteps] * rounds, keep=kept, **how)
            if self.compiled or self.graphs is not None:  # which take blocks as they are
                once = pack
        keep = [None if rows is None else rows.to(device) for rows in kept]
        x = pack_tokens([p if k is None else p.index_select(0, k) for p, k in zip(patches, keep, strict=True)], once)
        sinusoids = timestep_embedding(pack.timesteps, config.freq_dim).to(device)  # (U, F)
        of_text = OfClips(text, text_index, pack)
        of_images = None if images is None else OfClips(images, image_index, pack)

        def through(x: Tensor, sinusoids: Tensor, rope: Tensor, level: Tensor) -> Tensor:
            first = once if once is not pack else None
            return self.through(x, sinusoids, replace(pack, rope=rope, level=level), of_text, of_images, first)

        inputs = x, sinusoids, pack.rope, pack.level
        if self.graphs is None:
            x = through(*inputs)
        else:
            same = tuple(grids), pack.order, pack.spans.lengths, tuple(text_index), tuple(image_index)
            x = self.graphs(Call(same, (text, images)), through, *inputs)
        clips = unpack_tokens(x, pack)  # (n_i, p q r C) each
        whole = [
            tokens if kept is None else tokens.new_zeros(math.prod(grid), tokens.shape[1]).index_copy(0, kept, tokens)
            for tokens, kept, grid in zip(clips, keep, grids, strict=True)
        ]
        return [unpatchify(tokens, grid, config.patch) for tokens, grid in zip(whole, grids, strict=True)]

    def through(
        self,
        x: Tensor,
        sinusoids: Tensor,
        pack: Pack,
        of_text: OfClips,
        of_images: OfClips | None,
        once: Pack | None = None,
    ) -> Tensor:
        """Patches (N, C p q r) and the sinusoids (U, F) of their levels to patches of velocity (N, p q r C), float32.

        All of it happens on the device, so that a GPU can record it.

        once: the pack that x is of, where `pack` is of the same clips several times over.
        """
        weight = self.patch_embedding.weight
        x = linear(x.to(product_dtype(weight)), weight.flatten(1), self.patch_embedding.bias).float()  # (N, D)
        e, levels = self.embed_timesteps(sinusoids)  # (U, D), (U, 6, D)
        images: Iterable[Seen | None] = of_images or repeat(None, len(self.blocks))
        with own_sizes() if self.compiled else nullcontext():
            for block, text, image in zip(self.blocks, of_text, images, strict=True):
                if self.compiled:
                    any_length(pack.spans.starts)
                    for seen in (text, image):
                        if seen is not None:
                            any_length(seen.keys, seen.values, seen.bias, seen.spans.starts)
                if once is None:
                    x = block(x, levels, pack, text, image)
                else:
                    x = repeat_clips(cast(Block, block).untold(x, levels, once), once, pack)
                    x = cast(Block, block).told(x, levels, pack, text, image)
                    once = None
        return self.head(x, e, pack)

    def compile_blocks(self, *, backend: Any = "inductor") -> None:
        """Compile the blocks, see nn/regional.py, for sampling: what is compiled gives no gradients."""
        compile_blocks(self.blocks, backend=backend)
        self.compiled = True

    @property
    def guarded(self) -> bool:
        """Whether these weights began with `init_weights`, and so may be held."""
        return all(cast(Block, block).cross_attn.guarded for block in self.blocks)

    def hold_padding_out(self) -> None:
        """Keep cross-attention deaf to padding while the rest is trained: of weights that began with `init_weights`."""
        for layer in self.text_embedding:
            if isinstance(layer, nn.Linear):
                layer.bias.register_hook(torch.zeros_like)
        for block in self.blocks:
            cast(Block, block).cross_attn.hold_guards()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Initialise for training from scratch: Xavier, and every block the identity (adaLN-Zero, arXiv 2212.09748).

        Padding weighs as much as text_len - L words: log(500) is 6.2, and a word's logit after the q/k norms is at most
        sqrt(E), 8 for heads of 64, so that words could hardly be heard above it. Here one channel of every head guards
        against it: queries have a large constant there, and keys a small negative one, which in a word's key is little
        beside its other channels. The embedding of a zero row is 0, so the padding's key is nothing but those
        constants, which the norm of k makes large: its logit is -10 or less. `hold_padding_out` keeps it so.
        """
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight, generator=generator)
                nn.init.zeros_(module.bias)
            elif isinstance(module, RMSNorm | nn.LayerNorm):
                nn.init.ones_(module.weight)
        nn.init.xavier_uniform_(self.patch_embedding.weight.view(self.config.dim, -1), generator=generator)
        nn.init.zeros_(cast(Tensor, self.patch_embedding.bias))
        for layer in self.time_embedding:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02, generator=generator)  # as the release does
        for parameter in self.time_projection.parameters():
            nn.init.zeros_(parameter)  # with zero modulation: shift, scale and gate are 0 at every level
        for block in self.blocks:
            cast(Block, block).init_identity()
        nn.init.zeros_(self.head.modulation)
        nn.init.zeros_(self.head.head.weight)
