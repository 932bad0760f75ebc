"""How often animate, extend, connect and edit do what they should, judged by the detector as in `evaluate`.

image: the first frame of a scene is given; does its object keep shape, colour and background, and do what the prompt
says? extend: the first half of a scene is given; does the second go on from it without a jump, in the same direction?
connect: a scene lacks its middle third; is it filled without a jump at either end? edit: a scene in another colour; is
it that, and does it move as before?

A jump is how far the object's first centre behind a seam is from where the two before it lead, as a share of the
diagonal; 1 where there is no object to be seen.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dit_video.clip import Clip, Settings
from dit_video.decode import decode_frames
from dit_video.denoise import sample_latents
from dit_video.evaluate import SHEET_CLIPS, SHEET_FRAMES, Answer, Question
from dit_video.extend import Maker, connected, extended
from dit_video.known import encode_frames
from dit_video.make import encode_given
from dit_video.nn.pixels import pad_frames
from dit_video.scenes.captions import caption
from dit_video.scenes.detector import centres, detect, score
from dit_video.scenes.render import render
from dit_video.scenes.world import COLOURS
from dit_video.shapes import VideoShape
from dit_video.stages import Progress, Stages
from dit_video.windows import Windows, head_frames

NO_JUMP = 0.02  # of the diagonal


@dataclass(frozen=True)
class Bench:
    """What every mode needs to answer questions about clips of one shape."""

    stages: Stages
    settings: Settings
    shape: VideoShape
    negative: str
    window: int
    tile: int | None = None

    def sampled(self, clip: Clip) -> np.ndarray:
        """A clip's frames (T, H, W, 3)."""
        latents = sample_latents(self.stages, [clip], self.settings)[0]
        return np.stack(list(decode_frames(self.stages.vae, latents, self.shape, tile=self.tile)))

    def maker(self, question: Question) -> Maker:
        """What makes new frames beside those of a question's scene."""
        return Maker(
            self.stages,
            self.settings,
            prompt=question.prompt,
            negative=self.negative,
            seed=question.seed,
            size=(self.shape.width, self.shape.height),
            windows=Windows.of(self.stages.checkpoint.grid, self.window),
            tile=self.tile,
        )


def answer_modes(
    mode: str, bench: Bench, questions: Sequence[Question], progress: Progress
) -> tuple[list[Answer], list[np.ndarray]]:
    """The answer to every question, and frames (SHEET_FRAMES, H, W, 3) of the first SHEET_CLIPS clips.

    Args:
        mode: a key of MODES.
    """
    answers: list[Answer] = []
    strips: list[np.ndarray] = []
    progress("clips", 0, len(questions))
    for question in questions:
        answer, frames = MODES[mode](bench, question)
        answers.append(answer)
        if len(strips) < SHEET_CLIPS:
            strips.append(frames[np.linspace(0, len(frames) - 1, SHEET_FRAMES).round().astype(int)])
        progress("clips", len(answers), len(questions))
    return answers, strips


def _image(bench: Bench, question: Question) -> tuple[Answer, np.ndarray]:
    given = render(question.scene)[:1]
    known = encode_given(bench.stages, bench.shape, {0: given})
    clip = Clip(prompt=question.prompt, negative=bench.negative, shape=bench.shape, seed=question.seed, known=known)
    frames = bench.sampled(clip)
    found = detect(frames)
    right = score(found, question.scene)
    kept = all(right[name] for name in ("shape", "colour", "background"))
    fields = {name: right[name] for name in ("background", "colour", "shape")}
    return Answer(question, (found,), {**fields, "kept": kept, "motion": right["motion"], "all": right["all"]}), frames


def _extend(bench: Bench, question: Question) -> tuple[Answer, np.ndarray]:
    scene = render(question.scene)
    half = len(scene) // 2
    making = bench.maker(question)
    frames = np.stack(
        list(extended(making, scene[:half], scene[: head_frames(making.windows)], forward=len(scene) - half))
    )
    return _joined(question, frames, [half])


def _connect(bench: Bench, question: Question) -> tuple[Answer, np.ndarray]:
    scene = render(question.scene)
    third = len(scene) // 3
    first, second = scene[:third], scene[-third:]
    making = bench.maker(question)
    head = second[: head_frames(making.windows)]
    frames = np.stack(list(connected(making, first, second, head, len(scene) - 2 * third)))
    return _joined(question, frames, [third, len(scene) - third])


def _joined(question: Question, frames: np.ndarray, seams: Sequence[int]) -> tuple[Answer, np.ndarray]:
    found = detect(frames)
    right = score(found, question.scene)
    # At a seam with given frames behind it, time is turned around, so that what is given leads to what was made.
    jumps = [
        jump(frames[seam - 2 : seam + 1] if n == 0 else frames[seam - 1 : seam + 2][::-1])
        for n, seam in enumerate(seams)
    ]
    smooth = max(jumps) <= NO_JUMP
    fields = {"motion": right["motion"], "no jump": smooth, "all": right["motion"] and smooth}
    return Answer(question, (found,), fields, {"jump": max(jumps)}), frames


def jump(frames: np.ndarray) -> float:
    """How far the object's centre in the last of three frames is from where the first two lead, by the diagonal."""
    places = centres(frames)
    if places is None:
        return 1.0
    return float(np.hypot(*(places[2] - 2 * places[1] + places[0])) / np.hypot(*frames.shape[1:3]))


def _edit(bench: Bench, question: Question) -> tuple[Answer, np.ndarray]:
    scene, vae = question.scene, bench.stages.vae
    rng = np.random.default_rng((7, question.seed))
    thing = scene.objects[0]
    others = [colour for colour in COLOURS if colour not in (thing.colour, scene.background)]
    changed = replace(thing, colour=others[rng.integers(len(others))])
    wanted = replace(scene, objects=(changed,))
    start = encode_frames(vae, pad_frames(render(scene), bench.stages.checkpoint.grid.padded(bench.shape)))
    clip = Clip(
        prompt=caption(wanted, rng, held_out=True),
        negative=bench.negative,
        shape=bench.shape,
        seed=question.seed,
        start=start,
    )
    frames = bench.sampled(clip)
    found = detect(frames)
    right = score(found, wanted)
    asked = Question(wanted, clip.prompt, question.seed)
    fields = {name: right[name] for name in ("background", "colour", "shape", "motion")}
    return Answer(asked, (found,), {**fields, "all": right["colour"] and right["motion"]}), frames


MODES: dict[str, Callable[[Bench, Question], tuple[Answer, np.ndarray]]] = {
    "image": _image,
    "extend": _extend,
    "connect": _connect,
    "edit": _edit,
}
"""By the names that `dvgen eval --mode` takes; "all" is of an edit that it has the new colour and moves as before."""
