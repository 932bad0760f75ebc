"""Packing: the tokens of many clips of any grid in one sequence, each with its own position and noise level."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_video.nn.attention import Spans
from dit_video.nn.rope import rope_table
from dit_video.shapes import Size3


@dataclass(frozen=True, kw_only=True)
class Pack:
    """What the transformer must know about its N tokens besides their contents.

    order: packed position -> the caller's clip. Clips of equal length stand together: attention runs them as one batch.
    spans: the tokens of each clip, in packed order.
    rope: (N, head_dim / 2, 2) float32, cos and sin of each token's angles.
    timesteps: (U,) float64 on the CPU, the distinct timesteps of the pack.
    level: (N,) int64, the row of `timesteps` that each token has.
    """

    order: tuple[int, ...]
    spans: Spans
    rope: Tensor
    timesteps: Tensor
    level: Tensor


def make_pack(
    grids: Sequence[Size3],
    timesteps: Sequence[Tensor],
    *,
    head_dim: int,
    device: torch.device,
    keep: Sequence[Tensor | None] | None = None,
) -> Pack:
    """Pack clips with token grids (t, h, w) and timesteps (t,), one per token frame.

    keep: for each clip the sorted indices of its tokens that are in the pack, where not all of them are (the token
    dropping of NaViT, arXiv 2307.06304, section 2.2).
    """
    keep = keep or [None] * len(grids)
    counts = [math.prod(grid) if kept is None else len(kept) for grid, kept in zip(grids, keep, strict=True)]
    order = sorted(range(len(grids)), key=lambda i: (counts[i], grids[i]))
    per_frame = torch.cat([timesteps[i].detach().to("cpu", torch.float64) for i in order])
    distinct, frame_level = torch.unique(per_frame, return_inverse=True)
    ropes, levels = [], []
    for i, of_frames in zip(order, frame_level.split([grids[i][0] for i in order]), strict=True):
        rope, level = rope_table(grids[i], head_dim), of_frames.repeat_interleave(math.prod(grids[i][1:]))
        kept = keep[i]
        ropes.append(rope if kept is None else rope.index_select(0, kept))
        levels.append(level if kept is None else level.index_select(0, kept))
    return Pack(
        order=tuple(order),
        spans=Spans([counts[i] for i in order]),
        rope=torch.cat(ropes).to(device),
        timesteps=distinct,
        level=torch.cat(levels).to(device),
    )


def pack_tokens(clips: Sequence[Tensor], pack: Pack) -> Tensor:
    """Tokens (n_i, D) of each clip, in the caller's order, as one (N, D) in packed order."""
    return torch.cat([clips[i] for i in pack.order])


def unpack_tokens(tokens: Tensor, pack: Pack) -> list[Tensor]:
    """Tokens (N, D) in packed order as one (n_i, D) for each clip in the caller's order."""
    parts = dict(zip(pack.order, tokens.split(pack.spans.lengths), strict=True))
    return [parts[i] for i in range(len(parts))]


def repeat_clips(tokens: Tensor, pack: Pack, times: Pack) -> Tensor:
    """Tokens (N, D) of `pack` as those of a pack of the same clips several times over, one round after the other."""
    return pack_tokens(unpack_tokens(tokens, pack) * (len(times.order) // len(pack.order)), times)
