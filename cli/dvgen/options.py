"""Options: how they are declared, and their values, checked before anything heavy is imported.

Values arrive as text, so that each error can name the value as it was typed, the rule, and the nearest valid value.
"""

import math
import re
import secrets
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer

from dit_video.atomic import numbered
from dit_video.errors import UsageError
from dit_video.limits import (
    FPS,
    GUIDANCE,
    MAX_FRAMES,
    MAX_SEED,
    MAX_STEPS,
    MEMORY,
    QUANTIZE,
    SHIFT,
    SIGMAS,
    SOLVERS,
    as_float,
    choice,
    number,
    shown,
    whole,
)
from dit_video.models.wan.defaults import PRESETS

T = TypeVar("T")

MESSAGES = "Messages"  # the panel of what a command says
FAST_HELP = "Skip half of the passes through the model, most of them at low noise; frames change a little."
NAME_LENGTH = 60
MAX_COUNT = 10_000


def option(
    names: str,
    metavar: str | None,
    text: str,
    *,
    panel: str | None = None,
    show_default: bool = True,
    hidden: bool = False,
    setting: bool = True,
    of: str = "",
    complete: Callable[[str], list[str]] | None = None,
) -> Any:
    """An option and its line of help; a flag has no `metavar`.

    setting: whether it can be given beforehand, see `settings`; not where it is about one video. of: the command, where
    the name means something else than in others. complete: what a shell may offer for the beginning of a value.
    """
    return typer.Option(
        *names.split(),
        metavar=metavar or "",
        help=text,
        rich_help_panel=panel,
        show_default=show_default,
        hidden=hidden,
        envvar=variable(f"{of} {names.split()[0]}") if setting and not hidden else None,
        show_envvar=False,
        autocompletion=complete,
    )


def variable(name: str) -> str:
    """The variable of the environment for an option, DVGEN_GUIDANCE_INTERVAL."""
    return "_".join(["DVGEN", *re.findall(r"\w+", name.upper())])


def opposite(name: str) -> str:
    """The flag that turns another one off: --no-overwrite, and --recipe for --no-recipe."""
    return f"--{name.removeprefix('no-')}" if name.startswith("no-") else f"--no-{name}"


def given(text: str | None, parse: Callable[[str], T]) -> T | None:
    """`parse(text)`, or None for an option that was not given."""
    return None if text is None else parse(text)


def typed(value: float) -> str:
    """A number as it would be typed, so that exactly it is read back; a whole one without a point."""
    whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e15)
    return str(int(value)) if whole else repr(value)


def fps(text: str) -> float:
    """Frames per second. Raises UsageError."""
    return number("--fps", text, *FPS)


def frames(text: str) -> int:
    """A number of frames. Raises UsageError."""
    return whole("--frames", text, 1, MAX_FRAMES)


def frames_of_duration(text: str, fps: float) -> int:
    """The number of frames that last as long as --duration says.

    Raises:
        UsageError: see `check_duration`.
    """
    check_duration(text, [fps])
    return round(as_float(text) * fps)


def check_duration(text: str, rates: Sequence[float]) -> None:
    """Refuses what is a duration at none of `rates`; several where the checkpoint's is one of them, not known yet.

    Raises:
        UsageError: not a number of seconds, or one that gives no frame or too many.
    """
    seconds, fps = as_float(text), max(rates)
    if any(math.isfinite(seconds * rate) and 1 <= round(seconds * rate) <= MAX_FRAMES for rate in rates):
        return
    # Rounded to where it is valid, at the highest rate: half a frame and more is a frame at the others.
    bound = math.floor(MAX_FRAMES / fps * 1000) / 1000 if seconds * fps > 1 else math.ceil(1 / fps * 1000) / 1000
    nearest = "" if math.isnan(seconds) else f"; the nearest is {bound:g}"
    rule = f"must be seconds that hold 1 to {MAX_FRAMES} frames"
    rate = f" at {fps:g} frames per second" if len(rates) == 1 else ""
    raise UsageError(f"--duration {shown(text)}: {rule}{rate}{nearest}.")


def memory(text: str) -> int:
    """The bytes of "6GiB" or "6000MB"; K, M, G and T alone are powers of 1024. Raises UsageError."""
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([kmgt])(i?b)?", text.strip(), re.IGNORECASE)
    if match is None:
        rule = "must be a size with its unit, such as 6GiB or 6000MB"
        whole = re.fullmatch(r"\d{1,4}", text.strip())
        raise UsageError(f"--memory {shown(text)}: {rule}{f'; the nearest is {whole[0]}GiB' if whole else ''}.")
    number, prefix, unit = match.groups()
    value = int(float(number) * (1000 if unit and unit.lower() == "b" else 1024) ** ("kmgt".index(prefix.lower()) + 1))
    if not MEMORY[0] <= value <= MEMORY[1]:
        nearest = "512MiB" if value < MEMORY[0] else "1024TiB"
        raise UsageError(f"--memory {shown(text)}: must be from 512MiB to 1024TiB; the nearest is {nearest}.")
    return value


def steps(text: str) -> int:
    """A number of denoising steps. Raises UsageError."""
    return whole("--steps", text, 1, MAX_STEPS)


def count(text: str) -> int:
    """A number of videos. Raises UsageError."""
    return whole("--count", text, 1, MAX_COUNT)


def shift(text: str) -> float:
    """A shift of the noise levels. Raises UsageError."""
    return number("--shift", text, *SHIFT)


def strength(text: str) -> float:
    """How much an edit may change. Raises UsageError."""
    return number("--strength", text, 0.0, 1.0)


def preset(text: str) -> str:
    """A preset's name. Raises UsageError."""
    return choice("--preset", text, tuple(PRESETS))


def quantize(text: str) -> str | None:
    """A scheme of 8-bit products, or None. Raises UsageError."""
    return None if choice("--quantize", text, QUANTIZE) == "none" else text


def solver(text: str) -> str:
    """A solver's name. Raises UsageError."""
    return choice("--solver", text, SOLVERS)


def sigmas(text: str) -> str:
    """A convention of noise levels. Raises UsageError."""
    return choice("--sigmas", text, SIGMAS)


def guidance(text: str) -> tuple[float, ...]:
    """One guidance scale, or those of the high-noise and of the low-noise expert. Raises UsageError."""
    parts = text.split(",")
    if len(parts) > 2 or any(math.isnan(as_float(part)) for part in parts):
        raise UsageError(f"--guidance {shown(text)}: must be one number or two with a comma, for example 5 or 4,3.")
    return tuple(number("--guidance", part, *GUIDANCE) for part in parts)


def interval(text: str) -> tuple[float, float]:
    """The lowest and the highest noise level with guidance, of "0.1,0.9". Raises UsageError."""
    parts = text.split(",")
    if len(parts) != 2 or not as_float(parts[0]) <= as_float(parts[1]):
        rule = "must be LOW,HIGH noise levels from 0 to 1"
        nearest = f"{parts[1]},{parts[0]}" if len(parts) == 2 and as_float(parts[1]) < as_float(parts[0]) else "0,1"
        raise UsageError(f"--guidance-interval {shown(text)}: {rule}; the nearest is {nearest}.")
    low, high = (number("--guidance-interval", part, 0.0, 1.0) for part in parts)
    return low, high


def seed(text: str | None) -> int:
    """The seed given, or one drawn from 0 to 2**32 - 1. Raises UsageError."""
    return secrets.randbelow(2**32) if text is None else whole("--seed", text, 0, MAX_SEED)


def prompt(argument: str) -> str:
    """A prompt, read from standard input when it is "-".

    Raises:
        UsageError: it is not valid UTF-8, or standard input is empty.
    """
    if argument != "-":
        return text(argument)
    if sys.stdin is None:
        raise UsageError('the prompt "-" is read from standard input, which is closed; give the prompt itself.')
    named = "the prompt on standard input"
    found = standard_input(named).strip()
    if "\0" in found:
        raise UsageError(f"{named} {_NOT_TEXT}")
    if not found:  # most likely what should have written it has failed
        raise UsageError('standard input is empty; for an empty prompt give "" instead of -.')
    return found


_NOT_TEXT = "is not text in UTF-8; save it as UTF-8."


def standard_input(named: str) -> str:
    """All text of standard input, without the mark that some editors begin it with; named: what it is, for messages.

    Raises:
        UsageError: it is not valid UTF-8.
    """
    try:
        found = sys.stdin.read()
        found.encode()
    except UnicodeError:
        raise UsageError(f"{named} {_NOT_TEXT}") from None
    return found.removeprefix("\ufeff")


def text(argument: str) -> str:
    """Text of the command line, or of a job. Raises UsageError when it is not valid UTF-8, or holds a zero byte."""
    if "\0" in argument:
        raise UsageError(f"the text {argument[:60]!r} holds a zero byte, which no text does; leave it out.")
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise UsageError(f"the text {argument!r} is not in UTF-8; type it in a UTF-8 terminal.") from None
    return argument


def made_name(prompt: str, seed: int, suffix: str, folder: Path) -> Path:
    """A file name out of a prompt and a seed, "a-red-ball-7.mp4", numbered when it is taken: "a-red-ball-7-2.mp4"."""
    return next(path for path in numbered(first_name(prompt, seed, suffix, folder)) if not path.exists())


def first_name(prompt: str, seed: int, suffix: str, folder: Path) -> Path:
    """A file name out of a prompt and a seed, whether it is taken or not."""
    return folder / f"{slug(prompt)}-{seed}{suffix}"


def slug(prompt: str) -> str:
    """The words of a prompt as a part of a file name, "a-red-ball"."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", prompt).lower())
    found = ""
    for word in words or ["video"]:
        longer = f"{found}-{word}".strip("-")
        if found and len(longer.encode()) > NAME_LENGTH:
            break
        found = longer
    return found.encode()[:NAME_LENGTH].decode(errors="ignore")
