"""What clips attend to beside themselves: keys and values of prompts and pictures, made once for all steps.

Legend: P prompts with S text keys each; I sets of pictures with R image keys each; H heads of width E; M keys of all
clips of a pack.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dit_video.nn.attention import Spans
from dit_video.nn.packing import Pack


@dataclass(frozen=True)
class TextKeys:
    """Cross-attention keys and values of P prompts: (P, S, H, E) for each block. bias (P, S) is added to the logits."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    bias: Tensor


@dataclass(frozen=True)
class ImageKeys:
    """Cross-attention keys and values of I sets of pictures: (I, R, H, E) for each block."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


@dataclass(frozen=True)
class Seen:
    """What the clips of a pack see in one block, one clip after the other: keys and values (M, H, E) of each clip.

    bias: (M,) added to the logits of each key, if anything is.
    """

    keys: Tensor
    values: Tensor
    spans: Spans
    bias: Tensor | None = None


class OfClips:
    """What a pack's clips see, block by block, in the pack's order."""

    def __init__(self, made: TextKeys | ImageKeys, index: Sequence[int], pack: Pack) -> None:
        """index: which of those that were made each clip uses."""
        self.made = made
        count, device = made.keys[0].shape[1], made.keys[0].device
        chosen = torch.tensor([index[clip] for clip in pack.order])  # (clips,)
        self.rows = (chosen[:, None] * count + torch.arange(count)).flatten().to(device)  # (M,)
        self.spans = Spans([count] * len(chosen))

    def __iter__(self) -> Iterator[Seen]:
        made, rows = self.made, self.rows
        bias = made.bias.flatten().index_select(0, rows) if isinstance(made, TextKeys) else None
        for pair in zip(made.keys, made.values, strict=True):
            keys, values = (part.flatten(0, 1).index_select(0, rows) for part in pair)  # (M, H, E)
            yield Seen(keys, values, self.spans, bias)
