"""What values settings may have, and the refusal of others: for the command line and for Python alike."""

import difflib
import math
import os
import re
from collections.abc import Sequence

from dit_video.errors import UsageError

SOLVERS = ("euler", "heun", "dpmpp-2m", "dpmpp-2m-sde", "unipc", "lcm")
SIGMAS = ("release", "diffusers")
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZE = ("none", "int8", "fp8")
DEVICES = ("auto", "cpu", "cuda", "mps")
FITS = ("cover", "contain", "stretch")

MAX_STEPS = 1000  # the number of timesteps that Wan's transformers were trained with
FPS = (1.0, 240.0)
SHIFT = (0.1, 100.0)
GUIDANCE = (1.0, 100.0)
MEMORY = (2**29, 2**50)  # bytes
MAX_SEED = 2**63 - 1
MAX_FRAMES = 100_000
KEPT_EVERY = 10.0  # seconds of denoising, after which its state is written, and again after as many
SECONDS = "DVGEN_KEEP_EVERY"  # the environment's name of another number of them
STRENGTH = 0.6  # of an edit, where none is given: the new colour comes, and the object stays where it was


WIDE = 1024
"""Layers from which on products of 8 bits may be faster; at 256 they are not, at 1,536 they are (docs/log.md)."""


def number(option: str, text: str, low: float, high: float) -> float:
    """The number in `text`, from `low` to `high`.

    Raises:
        UsageError: it is not a number, or out of range.
    """
    value = as_float(text)
    if low <= value <= high:
        return value
    nearest = "" if math.isnan(value) else f"; the nearest is {high if value > high else low:.12g}"
    raise UsageError(f"{option} {shown(text)}: must be a number from {low:.12g} to {high:.12g}{nearest}.")


def whole(option: str, text: str, low: int, high: int) -> int:
    """The whole number in `text`, from `low` to `high`.

    Raises:
        UsageError: it is not a whole number, or out of range.
    """
    value: float = int(text) if re.fullmatch(r"[+-]?\d{1,30}", text) else as_float(text)
    if isinstance(value, int) and low <= value <= high:
        return value
    nearest = "" if math.isnan(value) else f"; the nearest is {math.floor(min(max(value, low), high))}"
    raise UsageError(f"{option} {shown(text)}: must be a whole number from {low} to {high}{nearest}.")


def check_graphs(wanted: bool, device: str) -> None:
    """Refuses CUDA graphs on a device of another kind. Raises UsageError."""
    if wanted and device != "cuda":
        raise UsageError(f"--cuda-graphs: there are none on {device}; the nearest is to leave it out.")


def check_quantize(scheme: str | None, device: str, dtype: str, *, compiled: bool = False) -> None:
    """Refuses products of 8 bits where these names tell that there are none; None is no such product.

    compiled: the blocks that they are in are to be compiled.

    Raises:
        UsageError: there are none.
    """
    if scheme == "int8" and device != "cpu":
        told = "--quantize int8: multiplies on the CPU alone"
        raise UsageError(f"{told}, and this is {device}; the nearest is --device cpu.")
    if scheme == "int8" and compiled:
        raise UsageError("--quantize int8 and --compile: only one of the two can be given; int8 is not compiled.")
    if scheme == "fp8" and device != "cuda":
        nearest = "int8" if device == "cpu" else "none"
        told = "--quantize fp8: multiplies on NVIDIA GPUs of Ada, Hopper or later"
        raise UsageError(f"{told}, and this is {device}; the nearest is --quantize {nearest}.")
    if scheme == "fp8" and dtype != "bfloat16":
        told = f"--quantize fp8: gives bfloat16, and the dtype is {dtype}"
        raise UsageError(f"{told}; the nearest is --dtype bfloat16.")


def kept_every() -> float:
    """Seconds of denoising after which its state is written: what the environment says, or `KEPT_EVERY`.

    Raises:
        UsageError: the environment says something else.
    """
    text = os.environ.get(SECONDS)
    return number(SECONDS, text, 0, 1e9) if text else KEPT_EVERY


def as_float(text: str) -> float:
    """The number in a text; NaN where there is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan


def shown(text: str) -> str:
    """A value as messages show it, not at any length."""
    return text if len(text) <= 60 else f"{text[:60]}..."


def choice(option: str, value: str, choices: Sequence[str]) -> str:
    """`value` when it is one of `choices`.

    Raises:
        UsageError: it is not; the most similar choice is named.
    """
    if value in choices:
        return value
    nearest = difflib.get_close_matches(value.lower(), choices, n=1, cutoff=0.0)[0]
    raise UsageError(f"{option} {shown(value)!r}: must be one of {', '.join(choices)}; the nearest is {nearest}.")


def why_not_quantize(scheme: str | None, width: int) -> str:
    """Why a model this wide is not faster with a scheme of products, in a sentence; "" where it may be."""
    if scheme != "int8" or width >= WIDE:
        return ""
    return f"--quantize int8: makes this model smaller and not faster, since its layers are only {width} wide."
