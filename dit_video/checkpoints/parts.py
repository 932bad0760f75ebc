"""The components of a model, found among the tensors of files by names that only they have.

One file may hold a transformer alone, or a transformer, a text encoder and an autoencoder, each behind a prefix.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dit_video.checkpoints.files import some
from dit_video.checkpoints.formats import SAFETENSORS, describe
from dit_video.checkpoints.fused import apart
from dit_video.checkpoints.headers import BYTES, Summary, TensorInfo, read_metadata, summarize
from dit_video.checkpoints.keymap import Layout
from dit_video.checkpoints.quantised import peeled
from dit_video.errors import CheckpointError


@dataclass(frozen=True)
class Keep:
    """What stays in memory of layers that do not fit in it whole.

    layers: how many that are ready for use. stored: all of them, as they are stored, of which each becomes ready when
    its turn comes; on a device with memory of its own.
    """

    layers: int = 0
    stored: bool = False


@dataclass(frozen=True)
class Layers:
    """Layers of a part that can be streamed.

    count: how many. largest: the parameters of the largest. rest: those that are in memory beside them in any case.
    stored: the bytes of all layers as they are stored; None where a device cannot hold them so.
    """

    count: int
    largest: int
    rest: int
    stored: int | None = None

    def parameters(self, keep: int) -> int:
        """In memory at a time, with `keep` layers that stay: the one that computes and the next are there besides."""
        return self.rest + min(keep + 2, self.count) * self.largest


@dataclass(frozen=True, kw_only=True)
class Part:
    """One component as it is stored: its tensors by their names in `layout`, without the prefix of the file.

    Of a layout that stores several of our tensors as one these are its pieces, see `fused`.
    """

    where: Path
    layout: Layout
    tensors: Mapping[str, TensorInfo]

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors by our names. Raises CheckpointError for a name that the layout does not have."""
        return {self.layout.to_ours(name): info.shape for name, info in self.tensors.items()}

    def layers(self, name: str, rows: str | None = None) -> Layers:
        """A list of layers that can be streamed, by our name of it; rows: of an embedding whose rows can be."""
        sizes: dict[str, int] = {}
        rest = 0
        stored: list[TensorInfo] = []
        for theirs, (ours, shape) in zip(self.tensors, self.shapes.items(), strict=True):
            if ours.startswith(f"{name}."):
                number = ours[len(name) + 1 :].partition(".")[0]
                sizes[number] = sizes.get(number, 0) + math.prod(shape)
                stored.append(self.tensors[theirs])
            elif ours != f"{rows}.weight":
                rest += math.prod(shape)
        whole = all(info.dtype in BYTES and info.piece is None for info in stored)
        nbytes = sum(info.nbytes + (info.scale.nbytes if info.scale else 0) for info in stored) if whole else None
        return Layers(len(sizes), max(sizes.values(), default=0), rest, nbytes)

    @property
    def summary(self) -> Summary:
        """It in figures."""
        return summarize(self.tensors.values())


def read_tensors(file: Path) -> dict[str, TensorInfo]:
    """The tensors of a file of any format by name, quantised ones with their scales.

    Raises:
        CheckpointError: the file cannot be read, or is quantised in a way that is not supported.
    """
    return peeled(describe(file), read_metadata(file) if file.suffix.lower() in SAFETENSORS else {})


def split(where: Path, tensors: Mapping[str, TensorInfo], kinds: Mapping[str, Iterable[Layout]]) -> dict[str, Part]:
    """The components among the tensors of one file, or of the shards of one.

    Args:
        where: the file, or the folder of the shards, for messages.
        kinds: the layouts that each kind of component may have; only their fingerprints are looked for.

    Raises:
        CheckpointError: two components of a kind, two without a prefix, or tensors that belong to none and are not
            passed over by a layout.
    """
    every = {kind: _hits(tensors, layouts) for kind, layouts in kinds.items()}
    seen = [layout for hits in every.values() for _, layout in hits]

    def is_ignored(name: str) -> bool:
        return any(layout.ignores(name) for layout in seen)

    found: dict[str, tuple[str, Layout]] = {}
    for kind, all_hits in every.items():
        hits = [(prefix, layout) for prefix, layout in all_hits if not is_ignored(prefix + layout.fingerprint)]
        if len(hits) > 1:
            raise CheckpointError(f"{where}: holds {len(hits)} components of the kind {kind!r}; there must be one.")
        if hits:
            found[kind] = hits[0]
    prefixes = [prefix for prefix, _ in found.values()]
    if len(set(prefixes)) != len(prefixes):
        raise CheckpointError(f"{where}: holds {' and '.join(found)} under the same names; split them into files.")
    members: dict[str, dict[str, TensorInfo]] = {prefix: {} for prefix in prefixes}
    strays = []
    for name, info in tensors.items():
        of = max((prefix for prefix in prefixes if name.startswith(prefix)), key=len, default=None)
        if is_ignored(name):
            continue
        if of is None:
            strays.append(name)
        else:
            members[of][name.removeprefix(of)] = info
    if strays and found:
        raise CheckpointError(f"{where}: {some(strays, 'of no component that is known')}.")
    return {kind: _part(where, layout, members[of]) for kind, (of, layout) in found.items()}


def _part(where: Path, layout: Layout, tensors: Mapping[str, TensorInfo]) -> Part:
    used = {name: info for name, info in tensors.items() if not layout.ignores(name)}
    return Part(where=where, layout=layout, tensors=apart(used, layout))


def _hits(names: Iterable[str], layouts: Iterable[Layout]) -> Sequence[tuple[str, Layout]]:
    """Each layout whose fingerprint is among the names, with what stands before it."""
    known = {layout.fingerprint: layout for layout in layouts}
    found = []
    for name in names:
        for fingerprint, layout in known.items():
            prefix = name.removesuffix(fingerprint)
            if prefix != name and (not prefix or prefix.endswith(".")):
                found.append((prefix, layout))
    return found
