"""Greedy packing of clips of any number of tokens into sequences of one length (NaViT, arXiv 2307.06304, section 3)."""

from collections.abc import Iterable, Sequence

CHUNK = 1024  # clips that are packed at a time, so that every pack mixes sizes and kinds as the whole does

Pack = tuple[int, ...]  # indices of clips


def pack_greedily(tokens: Sequence[int], budget: int) -> list[Pack]:
    """First fit, longest first: clips of `tokens[i]` tokens into packs of at most `budget`; a clip above the budget
    is a pack of its own.
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
    return [tuple(pack) for pack in packs]


def pack_in_chunks(tokens: Sequence[int], budget: int, *, chunk: int = CHUNK) -> list[Pack]:
    """`pack_greedily`, `chunk` clips at a time; the clips of a chunk's emptiest pack go on to the next chunk."""
    done: list[Pack] = []
    waiting: list[int] = []
    for start in range(0, len(tokens), chunk):
        indices = [*waiting, *range(start, min(start + chunk, len(tokens)))]
        packs = [tuple(indices[i] for i in pack) for pack in pack_greedily([tokens[i] for i in indices], budget)]
        packs.sort(key=lambda pack: -sum(tokens[i] for i in pack))
        waiting = list(packs.pop())
        done += packs
    return [*done, tuple(waiting)] if waiting else done


def padding(packs: Iterable[Pack], tokens: Sequence[int], budget: int) -> float:
    """The share of the packs' budgets that stays empty; a clip above the budget fills its own."""
    held = [sum(tokens[i] for i in pack) for pack in packs]
    room = sum(max(budget, each) for each in held)
    return 1 - sum(held) / room if room else 0.0
