"""Settings: values of options that were given beforehand, in the environment and in two files.

A value on the command line goes before one of the environment (`DVGEN_STEPS`), that before the project's `dvgen.toml`,
that before the user's own file, and that before the default. In a file a table such as `[sample]` or `[train.dit]` is
for that command, and goes before the keys at the top, which are for every command that has such an option.
"""

import difflib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from dit_video.errors import UsageError
from dvgen import options
from dvgen.jobs import written

PROJECT = "dvgen.toml"
OWN_FILE = "DVGEN_CONFIG"  # the environment's name of another file instead of the user's own; empty: no file is read
DEFAULT, ENVIRONMENT, COMMAND_LINE = 0, 5, 6
"""Ranks of where a value is from; those of the files lie between, by file, and in a file by table."""

INSTEAD = {
    "frames": ("duration",),
    "duration": ("frames",),
    "random-weights": ("model",),
    "model": ("random-weights",),
    "keep-latents": ("save-latents",),
    "save-latents": ("keep-latents",),
    "quiet": ("verbose",),
    "verbose": ("quiet",),
    "preset": ("steps", "solver", "sigmas", "shift", "guidance"),
}
"""An option, and those that say the same otherwise: given in a higher layer, it puts them aside in lower ones."""
OF_A_MODEL = ("vae", "text-encoder", "image-encoder", "high-noise", "lora", "lora-high", "lora-low")
"""Options that are about one model: another model in a higher layer puts them aside too."""
HARMLESS = frozenset({"quiet", "verbose", "log-file", "json", "memory"})
"""Options that a recipe leaves to the settings: none changes a frame, as the recipe tells how they are decoded."""

_only: ContextVar[frozenset[str] | None] = ContextVar("only", default=None)


@dataclass(frozen=True)
class Given:
    """A value that was given: what an option takes, where it is from in words, and the rank of that place."""

    value: Any
    where: str
    rank: int


@contextmanager
def only(names: frozenset[str]) -> Iterator[None]:
    """Within it no other settings are read than those of these options."""
    token = _only.set(names)
    try:
        yield
    finally:
        _only.reset(token)


def name_of(param: Any) -> str:
    """The long name of an option without its dashes, "guidance-interval"."""
    return max(param.opts, key=len).lstrip("-")


def is_setting(param: Any) -> bool:
    """Whether an option can be given beforehand; see `options.option`."""
    return bool(param.envvar) and not param.hidden


def is_shared(param: Any) -> bool:
    """Whether it means the same in every command that has it, so that one value can be for all."""
    return is_setting(param) and param.envvar == options.variable(name_of(param))


def path_of(ctx: Any) -> str:
    """The name of a context's command as tables have it: "sample", "train.dit"."""
    names = []
    while ctx is not None and (ctx.parent is not None or not hasattr(ctx.command, "commands")):
        names.append(ctx.info_name)
        ctx = ctx.parent
    return ".".join(reversed(names))


def leaves(group: Any, before: str = "") -> dict[str, Any]:
    """Every command of a group by its path."""
    found: dict[str, Any] = {}
    for name, command in group.commands.items():
        found |= leaves(command, f"{before}{name}.") if hasattr(command, "commands") else {f"{before}{name}": command}
    return found


# Files.


def files() -> list[Path]:
    """The files of settings that there are, the project's first. Raises UsageError."""
    named = os.environ.get(OWN_FILE)
    if named == "":
        return []
    if named and not Path(named).is_file():
        raise UsageError(f"{OWN_FILE} {named}: there is no such file; it names a file of settings.")
    found = [project_file(), Path(named) if named else users_file()]
    return [file for file in dict.fromkeys(found) if file is not None and file.is_file()]


def users_file() -> Path:
    """Where the user's own file is, or would be."""
    import platformdirs

    return platformdirs.user_config_path("dvgen", appauthor=False) / "config.toml"


def project_file() -> Path | None:
    """The nearest `dvgen.toml`, from the working folder up to where a repository begins, or the user's home."""
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / PROJECT).is_file():
            return Path(PROJECT) if folder == here else folder / PROJECT
        if (folder / ".git").exists() or folder == Path(os.path.expanduser("~")):
            return None
    return None


def of_files(path: str, group: Any) -> dict[str, Given]:
    """What the files say for a command, by the names of its parameters. Raises UsageError."""
    found: dict[str, Given] = {}
    for order, file in enumerate(files()):
        about = file.stat()
        said = _read(file, (Path.cwd(), about.st_mtime_ns, about.st_size), group).get(path, {})
        for name, given in said.items():
            found.setdefault(name, Given(given.value, given.where, given.rank - 2 * order))
    return found


@lru_cache(maxsize=8)
def _read(file: Path, _: object, group: Any) -> dict[str, dict[str, Given]]:
    """What a file says, for each command. Raises UsageError."""
    import tomllib

    try:
        found = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeError:
        raise UsageError(f"{file}: is not text in UTF-8; save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{file}: is not TOML ({error}).") from None
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror or error}).") from None
    commands = leaves(group)
    tables = dict(_tables(file, found, commands))
    _check_top(file, tables[""], commands)
    said: dict[str, dict[str, Given]] = {}
    for path, command in commands.items():
        params = {name_of(param): param for param in command.params if param.param_type_name == "option"}
        common = {key: value for key, value in tables[""].items() if key in params and is_shared(params[key])}
        own = tables.get(path, {})
        _check_keys(file, path, own, params)
        said[path] = {}
        for keys, table, rank in ((common, "", 3), (own, f"[{path}] ", 4)):
            for key, value in keys.items():
                where = f"{file}: {table}{key}"
                said[path][params[key].name] = Given(_taken(where, params[key], value, file.parent), where, rank)
    return said


def _tables(file: Path, found: Mapping[str, Any], commands: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The keys of each command's table, and those at the top under "", written as options are. Raises UsageError."""
    top: dict[str, Any] = {}
    for key, value in found.items():
        inner = [path for path in commands if path.startswith(f"{key}.")]
        if isinstance(value, dict) and inner:
            for name, table in value.items():
                if f"{key}.{name}" not in inner or not isinstance(table, dict):
                    nearest = _nearest(f"{key}.{name}", inner)
                    raise UsageError(
                        f"{file}: [{key}] {name}: is no command of `dvgen {key}`; the nearest is [{nearest}]."
                    )
                yield f"{key}.{name}", _keys(table)
        elif isinstance(value, dict):
            if key not in commands:
                raise UsageError(f"{file}: [{key}]: is no command; the nearest is [{_nearest(key, commands)}].")
            yield key, _keys(value)
        else:
            top[key] = value
    yield "", _keys(top)


def _keys(table: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("_", "-"): value for key, value in table.items()}


def _check_top(file: Path, keys: Mapping[str, Any], commands: Mapping[str, Any]) -> None:
    """Refuses keys at the top that are for no command, or not for all. Raises UsageError."""
    params = [(path, param) for path, command in commands.items() for param in command.params]
    shared = {name_of(param) for _, param in params if is_shared(param)}
    for key in keys.keys() - shared:
        if tables := [path for path, param in params if is_setting(param) and name_of(param) == key]:
            raise UsageError(f"{file}: {key}: is not the same in all commands; write it below [{tables[0]}].")
        given = [param for _, param in params if param.param_type_name == "option" and not param.hidden]
        if any(name_of(param) == key for param in given):
            raise UsageError(f"{file}: {key}: {_NO_SETTING}")
        raise UsageError(f"{file}: {key}: is no option of any command; the nearest is {_nearest(key, shared)}.")


_NO_SETTING = "is about one video alone and cannot be a setting; give it on the command line."


def _check_keys(file: Path, path: str, keys: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Refuses keys of a command's table that it has no setting for. Raises UsageError."""
    known = [name for name, param in params.items() if is_setting(param)]
    for key in keys:
        if key in params and not params[key].hidden and key not in known:
            raise UsageError(f"{file}: [{path}] {key}: {_NO_SETTING}")
        if key not in known:
            nearest = f"; the nearest is {_nearest(key, known)}" if known else ", which has no settings"
            raise UsageError(f"{file}: [{path}] {key}: is no option of `dvgen {path.replace('.', ' ')}`{nearest}.")


def _nearest(key: str, names: Any) -> str:
    return difflib.get_close_matches(key, sorted(names), n=1, cutoff=0.0)[0]


def _taken(where: str, param: Any, value: Any, folder: Path) -> Any:
    """A value of a file as its option takes it; paths are those from the folder of the file. Raises UsageError."""
    if param.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{where}: is a flag and must be true or false.")
        return value
    if isinstance(value, bool):
        raise UsageError(f"{where}: must be text or a number, as --{name_of(param)} takes it.")
    text = written(where, "the value", value)
    several = text if isinstance(text, list) else [str(text)]
    if not param.multiple and isinstance(text, list):
        raise UsageError(f"{where}: must be one value; --{name_of(param)} cannot be repeated.")
    found = [_from(folder, param.metavar, each) for each in several]
    return found if param.multiple else found[0]


def _from(folder: Path, metavar: str | None, text: str) -> str:
    """A value that is a path, as its metavar says, from here instead of from a folder; others as they are."""
    if not re.search("FILE|FOLDER|DIR|PATH", metavar or "") or not text:
        return text
    path = Path(text).expanduser() if text.startswith("~") else folder / text
    return text if "NAME" in (metavar or "") and not path.exists() else str(path)


# Which of the values count.


def put_aside(found: Mapping[str, Given], takes: Collection[str]) -> set[str]:
    """Of options that were given, those that others put aside; takes: the names of all options of the command."""
    given = {name: each for name, each in found.items() if each.rank > DEFAULT}
    ranks = {name: each.rank for name, each in given.items() if each.value not in (None, False, (), [])}
    allowed = _only.get()
    aside = set() if allowed is None else {name for name in given if given[name].rank < COMMAND_LINE} - allowed
    for name, rank in ranks.items():
        lower = INSTEAD.get(name, ()) + (OF_A_MODEL if name in ("model", "random-weights") else ())
        aside |= {other for other in lower if ranks.get(other, rank) < rank}
    if "image" in takes and "image" not in ranks and ranks.get("fit", COMMAND_LINE) < COMMAND_LINE:
        aside.add("fit")  # it says how a picture is made to fit, and there is none
    return aside
