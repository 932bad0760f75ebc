"""What a video takes, in words."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dvgen import console

if TYPE_CHECKING:
    from dit_video.plan import Plan
    from dit_video.timing import Span
    from dit_video.work import Step

SLOW = 600.0  # seconds from which on a video's time is worth a warning


def what_it_takes(plan: "Plan", steps: "Sequence[Step]", seconds: "Span", *, windows: int = 1) -> str:
    """One line about what is computed; windows: how many of such clips, one after the other. seconds: of all of it."""
    of_each = "" if windows == 1 else f"{windows} windows of at most "
    line = f"{of_each}{plan.shape}: {'x'.join(map(str, plan.grid))} = {plan.tokens:,} patches, {steps_in_words(steps)}"
    if plan.padded != plan.shape:
        line += f"; computed as {plan.padded}, then cropped and trimmed"
    line += "".join(f"; {way}" for way in ways(plan))
    if seconds.middle <= SLOW:
        return line
    return f"{line}; this may take {console.duration(seconds.low)} to {console.duration(seconds.high)}"


def steps_in_words(steps: "Sequence[Step]") -> str:
    """How many there are, and how many of them are computed if others are skipped."""
    computed = sum(step.computed for step in steps)
    words = "1 step" if len(steps) == 1 else f"{len(steps)} steps"
    return words if computed == len(steps) else f"{words}, of which {computed} are computed"


def ways(plan: "Plan") -> list[str]:
    """How it is made to fit in the memory that there is, in words."""
    found = []
    for part, keep in plan.keep_layers.items():
        how = "cast as they are needed" if keep.stored else "read as they are needed"
        rest = f", but for {keep.layers} that stay in memory" if keep.layers else ""
        found.append(f"the layers of the {part.replace('_', ' ')} are {how}{rest}")
    if plan.tile:
        size = f"{plan.tile}x{plan.tile} latents"
        found.append(f"decoded in tiles of {size}, since whole frames do not fit in memory")
    return found
