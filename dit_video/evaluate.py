"""How often a model shows what its prompt says.

Held-out scenes in held-out wordings are asked for, and the detector of the training world says what the clips show.
What the detector cannot tell counts as wrong; motion is not scored in clips that are too short for it. Two objects are
told apart by colour, and a field is right when it is right for both. Intervals are Wilson's (E. B. Wilson, JASA 22,
1927), at 95 %.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dit_video.clip import Clip, Settings
from dit_video.decode import decode_frames
from dit_video.denoise import sample_latents
from dit_video.nn.pixels import pad_frames, to_video
from dit_video.scenes.captions import caption
from dit_video.scenes.detector import Detection, detect_objects, matched, score, score_objects
from dit_video.scenes.render import render
from dit_video.scenes.world import MIN_MOVING_FRAMES, Scene, SceneObject, sample_scene
from dit_video.shapes import VideoShape
from dit_video.stages import Progress, Stages
from dit_video.video import sheet

SPLITS = {"held-out": 2024, "training": 2025}  # and the roots of their questions' random numbers
FIELDS = ("background", "colour", "shape", "motion", "all")
BATCH_TOKENS = 8192  # of the conditional half of a pack
SHEET_CLIPS, SHEET_FRAMES, SHEET_COLUMNS = 48, 5, 3
RIGHT, WRONG, BORDER = (40, 170, 60), (220, 40, 40), 3


@dataclass(frozen=True)
class Question:
    """A scene, the prompt that asks for it, and the seed of the clip that answers."""

    scene: Scene
    prompt: str
    seed: int


@dataclass(frozen=True)
class Answer:
    """What was found in the clip that a question got.

    found: one per object that was asked for, largest first. right: by field, "all" of them together at last. measured:
    numbers by name, of which the medians are reported.
    """

    question: Question
    found: tuple[Detection, ...]
    right: dict[str, bool]
    measured: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Rate:
    """A share of `total` answers, with its 95 % interval."""

    right: int
    total: int

    @property
    def share(self) -> float:
        """From 0 to 1."""
        return self.right / self.total

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        z, n, p = 1.959964, self.total, self.share
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


def fixed_questions(
    count: int, shape: VideoShape, *, split: str = "held-out", first_seed: int = 0, objects: int = 1
) -> list[Question]:
    """The same `count` questions for the same shape, split and number of objects (1 or 2), always.

    "held-out": combinations and wordings that training never sees, which is what is reported; of two objects the first
    is such a combination. "training": those of training, in other scenes: what settings may be chosen on, and what
    tells memory from understanding.
    """
    return list(_questions(count, shape, SPLITS[split], split == "held-out", first_seed, objects))


def _questions(
    count: int, shape: VideoShape, root: int, held_out: bool, first_seed: int, objects: int
) -> Iterator[Question]:
    for index in range(count):
        rng = np.random.default_rng((root, index))
        size = (shape.width, shape.height)
        scene = sample_scene(rng, num_frames=shape.num_frames, size=size, held_out=held_out, objects=objects)
        yield Question(scene, caption(scene, rng, held_out=held_out), first_seed + index)


def evaluate(
    stages: Stages,
    questions: Sequence[Question],
    shape: VideoShape,
    settings: Settings,
    *,
    negative: str = "",
    tile: int | None = None,
    progress: Progress,
) -> tuple[list[Answer], list[np.ndarray]]:
    """The answer to every question, and the frames (SHEET_FRAMES, H, W, 3) of the first SHEET_CLIPS clips.

    Clips are sampled in packs; which pack a clip is in changes it by rounding only. `stages` should keep its stages
    loaded. tile: see `decode_frames`.
    """
    grid = stages.checkpoint.grid
    tokens = math.prod(grid.tokens(grid.latent(shape)))
    size = max(1, BATCH_TOKENS // tokens)
    latents_of: Callable[[Sequence[Question]], list[torch.Tensor]] = lambda batch: sample_latents(  # noqa: E731
        stages, [Clip(prompt=q.prompt, negative=negative, shape=shape, seed=q.seed) for q in batch], settings
    )
    return _answers(stages, questions, shape, size, latents_of, tile, progress)


def reconstruct(
    stages: Stages,
    questions: Sequence[Question],
    shape: VideoShape,
    *,
    tile: int | None = None,
    progress: Progress,
) -> tuple[list[Answer], list[np.ndarray]]:
    """The same for the autoencoder alone: the scenes themselves, encoded and decoded."""
    padded = stages.checkpoint.grid.padded(shape)

    @torch.no_grad()
    def latents_of(batch: Sequence[Question]) -> list[torch.Tensor]:
        vae = stages.vae
        like = next(vae.parameters())
        videos = (to_video(pad_frames(render(q.scene), padded)[None]) for q in batch)
        return [vae.encode(video.to(like.device, like.dtype))[0].float() for video in videos]

    return _answers(stages, questions, shape, 1, latents_of, tile, progress)


def _answers(
    stages: Stages,
    questions: Sequence[Question],
    shape: VideoShape,
    size: int,
    latents_of: Callable[[Sequence[Question]], list[torch.Tensor]],
    tile: int | None,
    progress: Progress,
) -> tuple[list[Answer], list[np.ndarray]]:
    answers: list[Answer] = []
    strips: list[np.ndarray] = []
    progress("clips", 0, len(questions))
    for start in range(0, len(questions), size):
        batch = questions[start : start + size]
        for question, latents in zip(batch, latents_of(batch), strict=True):
            frames = np.stack(list(decode_frames(stages.vae, latents, shape, tile=tile)))
            found = detect_objects(frames, len(question.scene.objects))
            answers.append(Answer(question, found, _right(found, question.scene)))
            if len(strips) < SHEET_CLIPS:
                strips.append(frames[np.linspace(0, len(frames) - 1, SHEET_FRAMES).round().astype(int)])
            progress("clips", len(answers), len(questions))
    return answers, strips


def _right(found: Sequence[Detection], scene: Scene) -> dict[str, bool]:
    """The score without motion where the only one there can be is none: to be right about it would mean nothing."""
    scored = score(found[0], scene) if len(scene.objects) == 1 else score_objects(found, scene)
    fields = [field for field in FIELDS[:-1] if field != "motion" or scene.num_frames >= MIN_MOVING_FRAMES]
    return {field: scored[field] for field in fields} | {"all": all(scored[field] for field in fields)}


def rates(answers: Sequence[Answer]) -> dict[str, Rate]:
    """How often each field that is scored, and all of them together, were right."""
    return {field: Rate(sum(answer.right[field] for answer in answers), len(answers)) for field in answers[0].right}


def rates_by_value(answers: Sequence[Answer], field: str) -> dict[str, Rate]:
    """How often a field ("shape", "colour" or "motion") was right, for each value that was asked for.

    Two objects of a clip count as two.
    """
    groups: dict[str, list[bool]] = {}
    for answer in answers:
        for thing in answer.question.scene.objects:
            groups.setdefault(getattr(thing, field), []).append(_right_of(answer, thing, field))
    return {value: Rate(sum(group), len(group)) for value, group in sorted(groups.items())}


def _right_of(answer: Answer, thing: SceneObject, field: str) -> bool:
    # Whether a field is right for one object of the question's scene.
    if len(answer.question.scene.objects) == 1:
        return answer.right[field]
    found = matched(answer.found, thing)
    return found is not None and getattr(found, field) == getattr(thing, field)


def median(answers: Sequence[Answer], name: str) -> float:
    """The median of what was measured."""
    return float(np.median([answer.measured[name] for answer in answers]))


def table(answers: Sequence[Answer]) -> str:
    """The rates as text, one line per field, and lines that say what is not scored, or when two objects are right."""
    lines = [f"{'':12}{'right':>8}   95 % interval    cannot tell"]
    told = [name for name in answers[0].right if hasattr(answers[0].found[0], name)]
    for name, rate in rates(answers).items():
        low, high = rate.interval
        fields = told if name == "all" else [name] if name in told else []
        blank = sum(any(getattr(one, field) is None for one in answer.found for field in fields) for answer in answers)
        cannot_tell = f"{blank:8d} of {rate.total}" if fields else ""
        lines.append(f"{name:12}{rate.share:8.1%}   {low:6.1%} to {high:6.1%}  {cannot_tell}".rstrip())
    lines += [f"median {name}: {median(answers, name):.4g}" for name in answers[0].measured]
    if "motion" not in answers[0].right and not answers[0].measured:
        frames = answers[0].question.scene.num_frames
        lines.append(f"motion is not scored: it takes clips of {MIN_MOVING_FRAMES} frames or more, not {frames}")
    if len(answers[0].found) > 1:
        lines.append("a field is right when it is right for both objects")
    return "\n".join(lines)


def report(answers: Sequence[Answer]) -> dict[str, Any]:
    """Everything as JSON: rates with intervals, rates by what was asked for, and each clip.

    What is wanted and found is an object of JSON, of two objects a list of both; what is found, largest first.
    """

    def fields(rate: Rate) -> dict[str, Any]:
        return {
            "share": rate.share,
            "low": rate.interval[0],
            "high": rate.interval[1],
            "right": rate.right,
            "total": rate.total,
        }

    return {
        "rates": {field: fields(rate) for field, rate in rates(answers).items()},
        "by_value": {
            field: {value: fields(rate) for value, rate in rates_by_value(answers, field).items()}
            for field in ("shape", "colour", "motion")
            if field in answers[0].right
        },
        "medians": {name: median(answers, name) for name in answers[0].measured},
        "clips": [
            {
                "prompt": a.question.prompt,
                "seed": a.question.seed,
                "wanted": _wanted(a.question.scene),
                "found": _one_or_list([asdict(one) for one in a.found]),
                "right": a.right,
                "measured": a.measured,
            }
            for a in answers
        ],
    }


def _wanted(scene: Scene) -> Any:
    return _one_or_list(
        [
            {"shape": thing.shape, "colour": thing.colour, "background": scene.background, "motion": thing.motion}
            for thing in scene.objects
        ]
    )


def _one_or_list(things: list[dict[str, Any]]) -> Any:
    return things[0] if len(things) == 1 else things


def save_sheet(path: Path, answers: Sequence[Answer], strips: Sequence[np.ndarray], *, overwrite: bool) -> None:
    """A PNG of the clips' frames in the order of the questions, framed green when everything is right, else red."""
    tiles = [
        _framed(sheet.contact_sheet([frames], gap=0), RIGHT if answer.right["all"] else WRONG)
        for answer, frames in zip(answers, strips, strict=False)
    ]
    rows = [tiles[i : i + SHEET_COLUMNS] for i in range(0, len(tiles), SHEET_COLUMNS)]
    sheet.save_sheet(path, rows, gap=0, overwrite=overwrite)


def _framed(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    edge = ((BORDER, BORDER), (BORDER, BORDER))
    return np.stack([np.pad(picture[..., c], edge, constant_values=colour[c]) for c in range(3)], axis=-1)
