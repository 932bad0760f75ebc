"""Key tables: how tensor names of one layout map to ours, in both directions, exactly one row per key.

A row is a pair of names with slots: `Row("blocks.{i}.self_attn.q.{p}", "blocks.{i}.attn1.to_q.{p}")`. `{i}` and `{j}`
match a whole number, `{p}` matches `weight` or `bias`. A test checks that a table covers every name of a full-size
model. Where the tensors themselves differ in form the row says how, see `fused`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from dit_video.errors import CheckpointError

_SLOTS = {"i": r"\d+", "j": r"\d+", "p": r"weight|bias"}


def _pattern(template: str) -> re.Pattern[str]:
    parts = re.split(r"\{(\w)\}", template)
    text = "".join(re.escape(part) if n % 2 == 0 else f"(?P<{part}>{_SLOTS[part]})" for n, part in enumerate(parts))
    return re.compile(text + r"\Z")


@dataclass(frozen=True)
class Row:
    """One line of a table: our name and theirs, with the same slots.

    piece: (k, n) where ours is the k-th, from 0, of n equal pieces of theirs along the first axis; that piece is called
    "NAME[k/n]" and has a row of its own. lead: how many axes of length 1 theirs has before those of ours.
    """

    ours: str
    theirs: str
    piece: tuple[int, int] | None = None
    lead: int = 0

    @property
    def key(self) -> str:
        """Their name, of a piece the piece's."""
        return self.theirs if self.piece is None else piece_name(self.theirs, self.piece)


def piece_name(name: str, piece: tuple[int, int]) -> str:
    """What the k-th of n pieces of a tensor is called."""
    return f"{name}[{piece[0]}/{piece[1]}]"


def whole_name(name: str) -> tuple[str, int | None]:
    """The tensor that a piece is of, and which it is; a name that is no piece's as it is, and None."""
    match = re.fullmatch(r"(.*)\[(\d+)/\d+\]", name)
    return (name, None) if match is None else (match[1], int(match[2]))


@dataclass(frozen=True)
class Layout:
    """A naming: a fingerprint (a name that only this layout has) and its rows.

    ignored: names that files of this layout may have besides and that are not read, with `*` for any characters: inside
    the component, and beside it in the same file.
    """

    name: str
    fingerprint: str
    rows: tuple[Row, ...]
    ignored: tuple[str, ...] = ()

    @cached_property
    def _to_ours(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(row.key), row.ours) for row in self.rows]

    @cached_property
    def _to_theirs(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(row.ours), row.key) for row in self.rows]

    @cached_property
    def _formed(self) -> list[tuple[re.Pattern[str], Row]]:
        return [(_pattern(row.theirs), row) for row in self.rows if row.piece or row.lead]

    def ignores(self, name: str) -> bool:
        """Whether a tensor of this name is passed over."""
        return any(fnmatchcase(name, pattern) for pattern in self.ignored)

    def formed(self, name: str) -> list[Row]:
        """The rows of one of their tensors that has another form than ours: one, or one for each of its pieces."""
        return [row for pattern, row in self._formed if pattern.match(name)]

    def to_ours(self, name: str) -> str:
        """Our name for one of theirs. Raises CheckpointError unless exactly one row matches."""
        return _translate(name, self._to_ours, self.name)

    def to_theirs(self, name: str) -> str:
        """Their name for one of ours. Raises CheckpointError unless exactly one row matches."""
        return _translate(name, self._to_theirs, self.name)


def _translate(name: str, table: list[tuple[re.Pattern[str], str]], layout: str) -> str:
    hits = [(match, target) for pattern, target in table if (match := pattern.match(name))]
    if len(hits) != 1:
        raise CheckpointError(
            f"tensor {name!r}: {len(hits)} rows of the {layout} layout match it; there must be exactly one."
        )
    match, target = hits[0]
    return target.format(**match.groupdict())


def identity(prefixes: Iterable[str]) -> tuple[Row, ...]:
    """Rows for names that are the same in both namings."""
    return tuple(Row(prefix, prefix) for prefix in prefixes)


def detect(names: Iterable[str], layouts: Iterable[Layout]) -> Layout:
    """The one layout whose fingerprint is among `names`. Raises CheckpointError when none or several are."""
    present, known = set(names), list(layouts)
    found = [layout for layout in known if layout.fingerprint in present]
    if len(found) != 1:
        kinds = ", ".join(layout.name for layout in known)
        raise CheckpointError(
            f"these tensors match {len(found)} known layouts; exactly one of these must match: {kinds}."
        )
    return found[0]
