"""Packing: the tokens of many clips of any grid in one sequence, each with its own position and noise level."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_video.nn.patch import Size3
from dit_video.nn.rope import rope_table


@dataclass(frozen=True, kw_only=True)
class Pack:
    """What the transformer must know about its N tokens besides their contents.

    order: packed position -> the caller's clip. Clips of equal grids stand together: attention runs them as one batch.
    grids: the token grid (t, h, w) of each clip, in packed order.
    rope: (N, head_dim / 2, 2) float32, cos and sin of each token's angles.
    timesteps: (U,) float64 on the CPU, the distinct timesteps of the pack.
    level: (N,) int64, the row of `timesteps` that each token has.
    """

    order: tuple[int, ...]
    grids: tuple[Size3, ...]
    rope: Tensor
    timesteps: Tensor
    level: Tensor

    @property
    def lengths(self) -> list[int]:
        """Tokens of each clip, in packed order."""
        return [math.prod(grid) for grid in self.grids]


def make_pack(grids: Sequence[Size3], timesteps: Sequence[Tensor], *, head_dim: int, device: torch.device) -> Pack:
    """Pack clips with token grids (t, h, w) and timesteps (t,), one per token frame."""
    order = sorted(range(len(grids)), key=lambda i: (math.prod(grids[i]), grids[i]))
    sorted_grids = [grids[i] for i in order]
    per_frame = torch.cat([timesteps[i].detach().to("cpu", torch.float64) for i in order])
    distinct, frame_level = torch.unique(per_frame, return_inverse=True)
    frame_tokens = torch.tensor([h * w for t, h, w in sorted_grids for _ in range(t)])
    return Pack(
        order=tuple(order),
        grids=tuple(sorted_grids),
        rope=torch.cat([rope_table(grid, head_dim) for grid in sorted_grids]).to(device),
        timesteps=distinct,
        level=frame_level.repeat_interleave(frame_tokens).to(device),
    )


def pack_tokens(clips: Sequence[Tensor], pack: Pack) -> Tensor:
    """Tokens (n_i, D) of each clip, in the caller's order, as one (N, D) in packed order."""
    return torch.cat([clips[i] for i in pack.order])


def unpack_tokens(tokens: Tensor, pack: Pack) -> list[Tensor]:
    """Tokens (N, D) in packed order as one (n_i, D) for each clip in the caller's order."""
    parts = dict(zip(pack.order, tokens.split(pack.lengths), strict=True))
    return [parts[i] for i in range(len(parts))]
