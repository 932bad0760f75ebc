"""Tensors that a layout stores in another form than ours: several as one, or with axes of length 1 before theirs.

The rows of its table say so (`keymap.Row`). Nothing is read here: a piece of a tensor is described, and read as such.
"""

from collections.abc import Mapping
from dataclasses import replace

from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.keymap import Layout, piece_name, whole_name
from dit_video.errors import CheckpointError


def apart(tensors: Mapping[str, TensorInfo], layout: Layout) -> dict[str, TensorInfo]:
    """The tensors of a file in our form, by their names in the layout, each piece by a name of its own.

    Raises:
        CheckpointError: one has no equal pieces, or lacks the axes before ours.
    """
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        rows = layout.formed(name)
        for row in rows:
            if row.piece is not None:
                found[piece_name(name, row.piece)] = _piece(info, row.piece)
            else:
                found[name] = _without(info, row.lead)
        if not rows:
            found[name] = info
    return found


def together(tensors: Mapping[str, TensorInfo], layout: Layout) -> dict[str, tuple[TensorInfo, ...]]:
    """Tensors by our names as a layout stores them: its name, and what is written under it, one after the other.

    Raises:
        CheckpointError: a name that the layout does not have, or pieces that are not all there or differ in shape.
    """
    found: dict[str, tuple[TensorInfo, ...]] = {}
    pieces: dict[str, dict[int, TensorInfo]] = {}
    for name, info in tensors.items():
        whole, place = whole_name(layout.to_theirs(name))
        if place is None:
            lead = sum(row.lead for row in layout.formed(whole))
            found[whole] = (replace(info, shape=(1,) * lead + info.shape),)
        else:
            found[whole] = ()  # here, in the order of the tensors
            pieces.setdefault(whole, {})[place] = info
    for whole, some in pieces.items():
        count = len(layout.formed(whole))
        if len(some) != count or len({info.shape for info in some.values()}) != 1:
            file = next(iter(some.values())).file
            shapes = ", ".join(str(list(some[k].shape)) for k in sorted(some))
            raise CheckpointError(f"{file}: {whole!r} is made of {count} tensors of one shape; they are {shapes}.")
        found[whole] = tuple(some[k] for k in range(count))
    return found


def _piece(info: TensorInfo, piece: tuple[int, int]) -> TensorInfo:
    _, count = piece
    if not info.shape or info.shape[0] % count:
        rule = f"its first axis must be a multiple of {count}"
        raise CheckpointError(f"{info.file}: tensor {info.name!r} is {list(info.shape)}; {rule}.")
    shape = (info.shape[0] // count, *info.shape[1:])
    return replace(info, shape=shape, nbytes=info.nbytes // count, piece=piece)


def _without(info: TensorInfo, lead: int) -> TensorInfo:
    if info.shape[:lead] != (1,) * lead:
        rule = f"it must begin with {lead} axes of length 1" if lead > 1 else "it must begin with an axis of length 1"
        raise CheckpointError(f"{info.file}: tensor {info.name!r} is {list(info.shape)}; {rule}.")
    return replace(info, shape=info.shape[lead:])
