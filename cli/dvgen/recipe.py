"""Recipes: what a command made a video of, written inside the file, so that it can be shown and made again."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import dit_video
from dit_video.checkpoints.hashes import content_hash
from dit_video.errors import MediaError
from dvgen.options import typed

KIND = "dvgen"
TILE = "--tile="


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A command line with every setting in it, and what it depends on beside.

    line: the command, its arguments and all options that change the frames, none that was left to the checkpoint.
    model: the first digits of the checkpoint's signature. content: those of a hash of all that its files hold, where
    that was known (`dvgen info --hash`), else "". files: hashes of the pictures and clips that it reads.
    versions: of dvgen, torch and Python.
    """

    line: tuple[str, ...]
    model: str
    content: str = ""
    files: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """It as it is written into files: one JSON object."""
        return json.dumps({KIND: asdict(self)}, ensure_ascii=False, separators=(",", ":"))

    def makes_the_same(self, other: "Recipe") -> bool:
        """Whether another one gives the same frames, as far as can be told; but for tiles, which memory decides."""
        ours, theirs = self.with_tile(None), other.with_tile(None)
        return (ours.line, ours.model, ours.files) == (theirs.line, theirs.model, theirs.files)

    def option(self, name: str) -> str | None:
        """The value of an option; None where it has none."""
        end = self.line.index("--") if "--" in self.line else len(self.line)
        values = [word.partition("=")[2] for word in self.line[:end] if word.startswith(f"--{name}=")]
        return values[-1] if values else None

    def with_tile(self, tile: int | None) -> "Recipe":
        """It for frames that are decoded in tiles of so many latents on a side, or whole."""
        end = self.line.index("--") if "--" in self.line else len(self.line)
        kept = [word for word in self.line[:end] if not word.startswith(TILE)]
        return replace(self, line=(*kept, *([f"{TILE}{tile}"] if tile else []), *self.line[end:]))

    def changed(self) -> list[str]:
        """Its files that are gone, or are not what they were, each in a sentence."""
        found = []
        for name, was in self.files.items():
            path = Path(name)
            if not path.is_file():
                found.append(f"{name}: is gone.")
            elif short_hash(path) != was:
                found.append(f"{name}: has changed since.")
        return found


def recipe_of(
    command: str,
    arguments: Sequence[str],
    options: Mapping[str, Any],
    *,
    model: str,
    content: str = "",
    files: Sequence[Path] = (),
) -> Recipe:
    """The recipe of a command.

    options: values by their names without dashes; None and False are left out, True is a flag, and lists are repeated.
    """
    line = [command]
    for name, value in options.items():
        for each in value if isinstance(value, list) else [value]:
            if each is True:
                line.append(f"--{name}")
            elif each is not None and each is not False:
                line.append(f"--{name}={_written(each)}")
    line += ["--", *arguments]
    return Recipe(
        line=tuple(line),
        model=model,
        content=content,
        files={str(path.resolve()): short_hash(path) for path in files},
        versions={"dvgen": dit_video.__version__, "torch": version("torch"), "python": platform.python_version()},
    )


def _written(value: Any) -> str:
    """A value as the option takes it; numbers so that they are read back exactly."""
    if isinstance(value, tuple):
        return ",".join(map(_written, value))
    if isinstance(value, float):
        return typed(value)
    return str(value)


def short_hash(path: Path) -> str:
    """The SHA-256 of a file's content, in 16 digits."""
    return content_hash(path)[:16]


def read_recipe(path: Path) -> Recipe | None:
    """The recipe in a video or picture; None where there is none.

    Raises:
        MediaError: the file is missing, damaged or not a video.
    """
    from dit_video.video.io import read_comment

    return parse(read_comment(path))


def parse(text: str | None) -> Recipe | None:
    """The recipe in a comment; None where there is none."""
    try:
        found = json.loads(text or "")[KIND]
        line, files, versions = found["line"], found["files"], found["versions"]
        if not line or not all(isinstance(word, str) for word in [found["model"], *line, *files, *files.values()]):
            return None
        content = str(found.get("content", ""))
        return Recipe(
            line=tuple(line), model=found["model"], content=content, files=dict(files), versions=dict(versions)
        )
    except (ValueError, LookupError, TypeError, AttributeError):  # a comment of something else
        return None


def recipe_in(path: Path) -> Recipe:
    """The recipe in a video or picture. Raises MediaError."""
    found = read_recipe(path)
    if found is None:
        raise MediaError(f"{path}: holds no recipe of dvgen; it was made by something else, or with --no-recipe.")
    return found
