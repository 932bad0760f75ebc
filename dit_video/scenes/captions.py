"""What a scene may be called: many wordings over a small closed vocabulary.

A caption is built from phrases: a noun phrase ("a small red ball"), a motion phrase in its finite or its -ing form
("moves left", "moving left"), and a background ("a gray background"). Templates say how they are joined. A second set
of templates is kept for evaluation; it has the same phrases and no word of its own, so what it asks of the model is a
new order of words and not a new word.

Captions are lower-case. Words are what `tokenize` makes of them: runs of letters, so "up-left" is two and commas are
none. A clip that stands still may or may not be said to ("a red square on blue"); an image's caption never speaks of
motion.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np

from dit_video.scenes.world import COLOURS, LINES, Scene, SceneObject

# Lists are drawn from uniformly; what is repeated is said more often.
NOUNS = {
    "circle": ("ball", "ball", "circle", "circle", "disc"),
    "square": ("square", "square", "square", "block"),
    "triangle": ("triangle",),
    "star": ("star", "star", "star", "five-pointed star"),
}
COLOUR_WORDS = {"gray": ("gray", "gray", "grey"), "purple": ("purple", "purple", "purple", "violet")}
SIZE_WORDS = {"small": ("small", "small", "little", "tiny"), "large": ("large", "large", "big", "huge")}
SIZE_SAID = 0.4  # how often a size that has a word is said

# (finite, -ing) verbs and the directions that follow them.
MOVE_VERBS = (
    ("moves", "moving"),
    ("moves", "moving"),
    ("moves", "moving"),
    ("slides", "sliding"),
    ("drifts", "drifting"),
    ("glides", "gliding"),
    ("travels", "traveling"),
    ("goes", "going"),
    ("flies", "flying"),
)


def _diagonal(vertical: str, side: str) -> tuple[str, ...]:
    upper, top = ("upper", "top") if vertical == "up" else ("lower", "bottom")
    return (
        f"{vertical}-{side}",
        f"{vertical}-{side}",
        f"{vertical} and {side}",
        f"{vertical} and to the {side}",
        f"diagonally {vertical} and to the {side}",
        f"diagonally {vertical}-{side}",
        f"to the {upper} {side}",
        f"towards the {upper} {side}",
        f"towards the {top} {side} corner",
    )


DIRECTIONS = {
    "moving left": ("left", "left", "to the left", "towards the left", "leftwards", "from right to left"),
    "moving right": ("right", "right", "to the right", "towards the right", "rightwards", "from left to right"),
    "moving up": ("up", "up", "upwards", "towards the top", "straight up"),
    "moving down": ("down", "down", "downwards", "towards the bottom", "straight down"),
    "moving up-left": _diagonal("up", "left"),
    "moving up-right": _diagonal("up", "right"),
    "moving down-left": _diagonal("down", "left"),
    "moving down-right": _diagonal("down", "right"),
}


def _with_article(noun_phrase: str) -> str:
    return f"an {noun_phrase}" if noun_phrase[0] in "aeiou" else f"a {noun_phrase}"


def _circling(*ways: str) -> tuple[tuple[str, str], ...]:
    phrases = []
    for way in ways:
        for finite, participle in (("circles", "circling"), ("moves", "moving"), ("goes around", "going around")):
            phrases.append((f"{finite} {way}", f"{participle} {way}"))
        phrases += [
            (f"circles {way}", f"circling {way}"),
            (f"orbits {way}", f"orbiting {way}"),
            (f"moves {way} in a circle", f"moving {way} in a circle"),
            (f"moves in {_with_article(way)} circle", f"moving in {_with_article(way)} circle"),
        ]
    return tuple(phrases)


OTHER_PHRASES = {
    "still": (
        ("stays still", "staying still"),
        ("stands still", "standing still"),
        ("is still", "staying still"),
        ("does not move", "not moving"),
        ("is not moving", "not moving"),
        ("is at rest", "at rest"),
        ("stays in place", "staying in place"),
    ),
    "circling clockwise": _circling("clockwise", "clockwise", "clockwise"),
    "circling counterclockwise": _circling("counterclockwise", "counter-clockwise", "anticlockwise"),
    "bouncing": (
        ("bounces", "bouncing"),
        ("bounces", "bouncing"),
        ("bounces up and down", "bouncing up and down"),
        ("bounces in place", "bouncing in place"),
        ("hops up and down", "hopping up and down"),
        ("jumps up and down", "jumping up and down"),
    ),
    "growing": (
        ("grows", "growing"),
        ("grows", "growing"),
        ("grows larger", "growing larger"),
        ("gets bigger", "getting bigger"),
        ("gets larger", "getting larger"),
        ("becomes larger", "becoming larger"),
        ("becomes bigger", "becoming bigger"),
        ("expands", "expanding"),
    ),
    "shrinking": (
        ("shrinks", "shrinking"),
        ("shrinks", "shrinking"),
        ("gets smaller", "getting smaller"),
        ("gets smaller", "getting smaller"),
        ("becomes smaller", "becoming smaller"),
        ("contracts", "contracting"),
    ),
    "spinning": (
        ("spins", "spinning"),
        ("spins", "spinning"),
        ("rotates", "rotating"),
        ("rotates", "rotating"),
        ("spins in place", "spinning in place"),
        ("rotates in place", "rotating in place"),
        ("spins around", "spinning around"),
        ("turns in place", "turning in place"),
    ),
}
# Adjectives that say the whole motion before the noun: "a spinning star".
MOTION_ADJECTIVES = {
    "still": ("still", "motionless", "stationary"),
    "bouncing": ("bouncing",),
    "growing": ("growing", "expanding"),
    "shrinking": ("shrinking",),
    "spinning": ("spinning", "rotating"),
}

ON = ("on", "on", "on", "against", "in front of", "over")
BACKGROUND_NOUNS = ("{c} background", "{c} background", "{c} background", "{c} backdrop", "plain {c} background")
MEDIA = ("a video of", "a clip of", "an animation of", "a short video of")
PICTURES = ("a picture of", "an image of", "a drawing of")

# {it}: the noun phrase with its article; {bare}: without; {does} and {doing}: the motion; {on}: a preposition;
# {bg}: the background's noun phrase; {c}: its colour; {media}: "a video of"; {adjective_it}: {it} with an adjective
# that says the motion; a 2 at the end: of the second object.
MOVING = (
    "{it} {doing} {on} {bg}",
    "{it} {doing} {on} {bg}",
    "{it} {doing} {on} {bg}",
    "{it} {does} {on} {bg}",
    "{it} {does} {on} {bg}",
    "{it} is {doing} {on} {bg}",
    "{it} that {does} {on} {bg}",
    "{it} that is {doing} {on} {bg}",
    "{it} {doing} on {c}",
    "{it} {does} against {c}",
    "{it} {on} {bg}, {doing}",
    "{it}, {doing}, {on} {bg}",
    "{on} {bg}, {it} {does}",
    "{on} {bg}, {it} is {doing}",
    "{on} {bg} there is {it} {doing}",
    "{bg} with {it} {doing}",
    "{bg} and {it} {doing}",
    "the background is {c} and {it} {does}",
    "the background is {c}, {it} is {doing}",
    "the background of the video is {c} and {it} is {doing} in front of it",
    "{media} {it} {doing} {on} {bg}",
    "{media} {it} that {does} {on} {bg}",
    "there is {it} {doing} {on} {bg}",
    "you can see {it} {doing} {on} {bg}",
    "the video shows {it} {doing} {on} {bg}",
    "the {bare} {does} {on} {bg}",
    "the {bare} is {doing} while the background is {c}",
    "{bare} {doing}, {c} background",
    "{bare} {doing} on {c}",
    "{c} background, {bare} {doing}",
    "{c} background, {bare}, {doing}",
    "{bare}, {c} background, {doing}",
)
WITH_ADJECTIVE = (
    "{adjective_it} {on} {bg}",
    "{adjective_it} on {c}",
    "{media} {adjective_it} {on} {bg}",
    "{on} {bg}, {adjective_it}",
    "{bg} with {adjective_it}",
    "there is {adjective_it} {on} {bg}",
)
UNMOVING = (
    "{it} {on} {bg}",
    "{it} {on} {bg}",
    "{it} {on} {bg}",
    "{it} on {c}",
    "{on} {bg}, {it}",
    "{bg} with {it}",
    "{media} {it} {on} {bg}",
    "there is {it} {on} {bg}",
    "{bare} on {c}",
    "{bare}, {c} background",
    "{c} background, {bare}",
    "the background is {c} and there is {it} in front of it",
)
TWO_MOVING = (
    "{it} {doing} and {it2} {doing2} {on} {bg}",
    "{it} {doing} and {it2} {doing2}, {on} {bg}",
    "{it} {does} and {it2} {does2} {on} {bg}",
    "{on} {bg}, {it} {does} and {it2} {does2}",
    "{media} {it} {doing} and {it2} {doing2} {on} {bg}",
    "{bg} with {it} {doing} and {it2} {doing2}",
    "the background is {c}, {it} is {doing} and {it2} is {doing2}",
    "{bare} {doing} and {bare2} {doing2}, {c} background",
)
TWO_UNMOVING = (
    "{it} and {it2} {on} {bg}",
    "{on} {bg}, {it} and {it2}",
    "{media} {it} and {it2} {on} {bg}",
    "{bg} with {it} and {it2}",
    "{bare} and {bare2} on {c}",
)
# Never used in training: other orders of the same words.
HELD_OUT_MOVING = (
    "{it} {does} while the background is {c}",
    "there is {it} that {does} {on} {bg}",
    "{on} {bg} you can see {it} {doing}",
    "{media} {bg} with {it} that is {doing}",
    "{c} background and {it} that {does}",
    "the video shows {bg} and {it} {doing}",
    "the background of the video is {c} and there is {it} {doing}",
    "{it} is {doing} and the background is {c}",
    "the video shows the {bare}, it is {doing} {on} {bg}",
    "in front of {bg} the {bare} {does}",
)
HELD_OUT_UNMOVING = (
    "there is {bg} and {it}",
    "{media} {bg} and {it} in front of it",
    "the {bare} and the {c} background",
    "you can see {it} on {c}",
)
HELD_OUT_TWO_MOVING = (
    "{it} is {doing} while {it2} {does2} {on} {bg}",
    "you can see {it} {doing} and {it2} {doing2} {on} {bg}",
)
HELD_OUT_TWO_UNMOVING = (
    "there is {it} {on} {bg} and {it2}",
    "{c} background with {it} and {it2}",
)

# By number of objects, and whether motion is spoken of.
TEMPLATES: dict[tuple[int, bool], tuple[str, ...]] = {
    (1, True): MOVING,
    (1, False): UNMOVING,
    (2, True): TWO_MOVING,
    (2, False): TWO_UNMOVING,
}
HELD_OUT_TEMPLATES: dict[tuple[int, bool], tuple[str, ...]] = {
    (1, True): HELD_OUT_MOVING,
    (1, False): HELD_OUT_UNMOVING,
    (2, True): HELD_OUT_TWO_MOVING,
    (2, False): HELD_OUT_TWO_UNMOVING,
}
UNSAID_STILL = 0.3  # how often a still clip's caption does not speak of motion
ADJECTIVE = 0.2  # how often a motion that has an adjective is said by it


def caption(scene: Scene, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """One of the many ways to say a scene; with `held_out`, one of those kept for evaluation."""
    image, alone = scene.num_frames == 1, len(scene.objects) == 1
    still = all(thing.motion == "still" for thing in scene.objects)
    moves = not image and (held_out or not still or rng.random() >= UNSAID_STILL)
    adjectives = MOTION_ADJECTIVES.get(scene.objects[0].motion, ())
    templates = (HELD_OUT_TEMPLATES if held_out else TEMPLATES)[len(scene.objects), moves]
    if moves and alone and adjectives and not held_out and rng.random() < ADJECTIVE:
        templates = WITH_ADJECTIVE
    colour = _pick(rng, COLOUR_WORDS.get(scene.background, (scene.background,)))
    phrases = {
        "c": colour,
        "bg": _with_article(_pick(rng, BACKGROUND_NOUNS).format(c=colour)),
        "on": _pick(rng, ON),
        "media": _pick(rng, PICTURES if image else MEDIA),
    }
    for index, thing in enumerate(scene.objects):
        last = "2" if index else ""
        bare = _noun_phrase(scene, index, rng)
        phrases["bare" + last], phrases["it" + last] = bare, _with_article(bare)
        phrases["does" + last], phrases["doing" + last] = _motion_phrase(thing, rng)
    if templates is WITH_ADJECTIVE:
        phrases["adjective_it"] = _with_article(f"{_pick(rng, adjectives)} {phrases['bare']}")
    return _pick(rng, templates).format(**phrases)


def tokenize(text: str) -> list[str]:
    """The words of a text, lower-case and in order."""
    return re.findall(r"[a-z]+", text.lower())


def words() -> list[str]:
    """The sorted vocabulary of every caption."""
    templates = (WITH_ADJECTIVE, *TEMPLATES.values(), *HELD_OUT_TEMPLATES.values())
    return sorted(_words(("a", "an", *COLOURS, *_phrases(), *chain(*templates))))


def _words(texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in tokenize(re.sub(r"{\w+}", " ", text))}


def _phrases() -> Iterator[str]:
    for table in (NOUNS, COLOUR_WORDS, SIZE_WORDS, DIRECTIONS, MOTION_ADJECTIVES):
        for texts in table.values():
            yield from texts
    for pairs in (MOVE_VERBS, *OTHER_PHRASES.values()):
        for pair in pairs:
            yield from pair
    yield from (*ON, *BACKGROUND_NOUNS, *MEDIA, *PICTURES)


def _pick(rng: np.random.Generator, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _noun_phrase(scene: Scene, index: int, rng: np.random.Generator) -> str:
    thing = scene.objects[index]
    colour = _pick(rng, COLOUR_WORDS.get(thing.colour, (thing.colour,)))
    noun = _pick(rng, NOUNS[thing.shape])
    size = scene.size_word(index)
    if size and rng.random() < SIZE_SAID:
        return f"{_pick(rng, SIZE_WORDS[size])} {colour} {noun}"
    return f"{colour} {noun}"


def _motion_phrase(thing: SceneObject, rng: np.random.Generator) -> tuple[str, str]:
    if thing.motion in LINES:
        verb, direction = _pick(rng, MOVE_VERBS), _pick(rng, DIRECTIONS[thing.motion])
        return f"{verb[0]} {direction}", f"{verb[1]} {direction}"
    return _pick(rng, OTHER_PHRASES[thing.motion])
