"""Prompts read once: by the text encoder, or from the cache of what it made of them before."""

from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from dit_video.stages import Reading, Stages
from dit_video.text.cache import Embedded
from dit_video.text.files import MAX_LENGTH


def encode_prompts(stages: Stages, prompts: list[str]) -> list[Tensor]:
    """The embeddings of prompts, those that are new read now, or taken from the cache. Raises DvgenError."""
    new = [prompt for prompt in prompts if prompt not in stages.embeds]
    readings = {}
    for prompt, found in _read_before(stages, new).items():
        stages.embeds[prompt] = found.embedding.to(stages.device)
        readings[prompt] = found.unknown, found.cut
    if unread := [prompt for prompt in new if prompt not in readings]:
        text = stages.text
        stages.progress("text", 0, 1)
        with stages.timed("text", lambda clock: clock.text(len(unread))):
            stages.embeds |= zip(unread, text.encode(unread), strict=True)
        stages.progress("text", 1, 1)
        readings |= {prompt: (text.unknown_words(prompt), text.is_cut(prompt)) for prompt in unread}
        _keep_read(stages, {prompt: Embedded(stages.embeds[prompt], *readings[prompt]) for prompt in unread})
    elif new:
        stages.note("the prompt was read before: its embedding is kept on disk")
    if new:
        _tell_reading(stages, readings)
    return [stages.embeds[prompt] for prompt in prompts]


def _read_before(stages: Stages, prompts: Sequence[str]) -> dict[str, Embedded]:
    """Those of the prompts that are in the cache."""
    found = {prompt: stages.cache.read(prompt) for prompt in prompts} if stages.cache else {}
    return {prompt: embedded for prompt, embedded in found.items() if embedded is not None}


def _keep_read(stages: Stages, found: Mapping[str, Embedded]) -> None:
    if stages.cache is None:
        return
    try:
        for prompt, embedded in found.items():
            stages.cache.write(prompt, embedded)
    except OSError as error:
        stages.note(f"what was read of the prompt is not kept ({error})")


def _tell_reading(stages: Stages, readings: dict[str, Reading]) -> None:
    """Warn of what is new in how prompts were read, and remember it."""
    told = {word for words, _ in stages.readings.values() for word in words}
    stages.readings |= readings
    unknown, cut = _read(readings.values())
    if cut:
        stages.warn(f"the prompt is longer than {MAX_LENGTH} tokens; what comes after them is not read.")
    if not told.issuperset(unknown):
        words = ", ".join(repr(word) for word in unknown)
        plural = "s" * (len(unknown) > 1)
        stages.warn(f"this model never learnt the word{plural} {words}; `dvgen info default` shows what ours knows.")


def _read(readings: Iterable[Reading]) -> Reading:
    """The reading of several prompts together, each word once."""
    every = list(readings)
    return list(dict.fromkeys(word for words, _ in every for word in words)), any(cut for _, cut in every)


def read_prompts(stages: Stages, *prompts: str) -> Reading:
    """How those of the prompts that were read were read, together."""
    return _read(stages.readings[prompt] for prompt in prompts if prompt in stages.readings)
