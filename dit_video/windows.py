"""How new frames beside given ones are divided into windows, see `extend`."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from dit_video.shapes import Grid

if TYPE_CHECKING:
    from dit_video.models.wan.defaults import Defaults


class Slid(Protocol):
    """What of a model decides how long clips are made; see `DescribedModel`."""

    @property
    def defaults(self) -> "Defaults": ...

    @property
    def grid(self) -> Grid: ...

    @property
    def known_frames(self) -> str: ...

    @property
    def beside(self) -> bool: ...

    @property
    def trained_frames(self) -> tuple[int, int] | None: ...


@dataclass(frozen=True, kw_only=True)
class Windows:
    """How new frames are divided into windows. All are counts of frames.

    stride: of a group. before, after: known ones on a side, at most; 1 + stride * k and stride * k. longest: of a
    window, 1 + stride * k.
    """

    stride: int
    before: int
    after: int
    longest: int

    @classmethod
    def of(cls, grid: Grid, longest: int, *, beside: bool = False) -> "Windows":
        """Windows of `longest` frames or the next length on the grid, of which a third is known before, or after.

        Three latent frames tell position, speed and acceleration; less is known only where a window is too short, or
        the model takes no more, `beside` the noise.
        """
        t = grid.stride[0]
        groups = max(1, -(-(longest - 1) // t))  # after the first frame
        known = 0 if beside else max(0, min(2, groups - 1))
        return cls(stride=t, before=1 + known * t, after=max(1, known) * t, longest=1 + groups * t)

    def most(self, *, before: bool, after: bool) -> int:
        """The most new frames of a window with known frames before, after, or on both sides: a multiple of the stride,
        or one more in a window that begins with them; at least a stride.
        """
        left = self.longest - (self.before if before else 1) - (self.after if after else 0)
        return max(self.stride, left // self.stride * self.stride) + (0 if before else 1)

    def whole(self, count: int) -> list[int]:
        """A clip of `count` frames from its beginning, as windows: the first is new throughout, the others go on."""
        first = min(count, self.longest)
        return [first, *self.parts(count - first, before=True, after=False)]

    def whole_sizes(self, count: int) -> list[int]:
        """The frames of every window of `whole`, known ones included, at most."""
        first, *rest = self.whole(count)
        return [1 + -(-(first - 1) // self.stride) * self.stride, *self.sizes(sum(rest), before=True, after=False)]

    @property
    def groups_before(self) -> int:
        """Latent frames that are known before the new ones, at most."""
        return 1 + (self.before - 1) // self.stride

    def sizes(self, count: int, *, before: bool, after: bool) -> list[int]:
        """The frames of every window, known ones included, that `count` new frames take, at most."""
        if before and after:
            parts = self.parts(count, before=True, after=False, last=self.most(before=True, after=True))
        else:
            parts = self.parts(count, before=before, after=after)
        lengths = []
        for number, part in enumerate(parts):
            led = after and (not before or number == len(parts) - 1)
            new = -(-part // self.stride) * self.stride if before else 1 + -(-(part - 1) // self.stride) * self.stride
            lengths.append((self.before if before else 0) + new + (self.after if led else 0))
        return lengths

    def all_sizes(self, *, backward: int = 0, forward: int = 0, loop: int = 0) -> list[int]:
        """The frames of every window, as of `sizes`, for new frames before a clip, after it, and back to its beginning,
        or on to another's."""
        sizes = self.sizes(backward, before=False, after=True)
        return [*sizes, *self.sizes(forward or loop, before=True, after=bool(loop))]

    def parts(self, count: int, *, before: bool, after: bool, last: int = 0) -> list[int]:
        """`count` new frames as windows with known frames on one side; the last one, with both, has at most `last`."""
        most = self.most(before=before, after=after)
        if last:
            final = min(count, last)
            return [*self.parts(count - final, before=before, after=after), final]
        return [most] * (count // most) + ([count % most] if count % most else [])


def head_frames(windows: Windows) -> int:
    """How many first frames of a clip are needed to lead to it."""
    return windows.after + windows.stride


def longest_whole(model: "Slid") -> int:
    """The most frames that a model makes well at once."""
    return max(model.defaults.window or model.defaults.frames, *(model.trained_frames or (1,)))


def sliding(model: "Slid", count: int, pictures: Collection[int] = ()) -> Windows | None:
    """How a clip of `count` frames is made in windows; None where it is made at once.

    That is where the model makes as many well, or learnt nothing of given frames, so that it could not go on from them:
    it is then denoised at once, in memory that grows with it. A model that learnt with its first frame given goes on
    from one frame. pictures: the frames that are given; one at the end, in models that take it beside the noise, needs
    all of the clip at once.
    """
    longest = model.defaults.window or model.defaults.frames
    known = {"any": True, "first": True, "first or both": set(pictures) <= {0}}.get(model.known_frames, False)
    if not known or count <= longest_whole(model):
        return None
    return Windows.of(model.grid, longest, beside=model.beside or model.known_frames != "any")
