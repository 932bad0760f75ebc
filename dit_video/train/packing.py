"""Greedy packing of clips of any number of tokens into sequences of one length (NaViT, arXiv 2307.06304, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Packed:
    """Indices of the clips in each pack, and the share of the token budget that stays empty."""

    packs: tuple[tuple[int, ...], ...]
    padding: float


def pack_greedily(tokens: Sequence[int], budget: int) -> Packed:
    """First fit, longest first: clips of `tokens[i]` tokens into packs of at most `budget`; a clip above the budget
    is a pack of its own.

    The last, partly filled pack counts towards the padding only up to what it holds, since a stream fills it with the
    clips that follow.
    """
    room: list[int] = []
    packs: list[list[int]] = []
    for index in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        slot = next((n for n, free in enumerate(room) if free >= tokens[index]), None)
        if slot is None:
            packs.append([])
            room.append(max(budget, tokens[index]))
            slot = len(packs) - 1
        packs[slot].append(index)
        room[slot] -= tokens[index]
    if not packs:
        return Packed((), 0.0)
    emptiest = max(range(len(room)), key=room.__getitem__)
    empty = sum(free for n, free in enumerate(room) if n != emptiest)
    full = sum(tokens) + empty
    return Packed(tuple(tuple(pack) for pack in packs), empty / full)
