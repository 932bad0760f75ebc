"""`dvgen config`: the settings, each with its value and where that is from."""

import difflib
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from dit_video.atomic import replacing
from dit_video.errors import UsageError
from dvgen import console, options, settings
from dvgen.command import Beforehand, given_before
from dvgen.settings import Given

OTHERS = {
    settings.OWN_FILE: "another file instead of the user's own; empty: no file of settings is read",
    "DVGEN_CACHE": "another folder for what is kept of prompts; empty: nothing is kept",
    "DVGEN_KEEP_EVERY": "seconds of denoising after which its state is written",
}
"""Variables of the environment that are no options."""


def config(
    command: Annotated[
        str | None, typer.Argument(metavar="[COMMAND]", help='Such as sample, or "train dit".', show_default=False)
    ] = None,
    paths: Annotated[
        bool, options.option("--path", None, "Print the files that are read, one a line.", setting=False)
    ] = False,
    init: Annotated[
        bool,
        options.option("--init", None, "Write a dvgen.toml here, with every setting as a comment.", setting=False),
    ] = False,
    as_json: Annotated[bool, options.option("--json", None, "Print one JSON object.")] = False,
) -> None:
    """Show the settings: of COMMAND all, without one those that are not default, each with where it is from.

    An option that is not on the command line is taken from the environment (DVGEN_STEPS for --steps), from dvgen.toml
    in the working folder or above it, up to where a repository begins, or from the user's own file. A file has options
    by their long names, and tables for commands, such as sample and train.dit. Where a name means something else
    in a command (frames of connect and eval, dtype of convert), the variable has the command in it, and the file a
    table: DVGEN_EVAL_FRAMES.
    """
    from dvgen.main import group

    if init:
        console.result(str(_init(Path(settings.PROJECT), group())))
    elif paths:
        for file in settings.files():
            console.result(str(file))
    else:
        _tell_strange(group())
        _show(command, group(), as_json)


def _show(command: str | None, group: Any, as_json: bool) -> None:
    commands = settings.leaves(group)
    if command is not None:
        wanted = ".".join(command.replace(".", " ").split())
        if not any(path == wanted or path.startswith(f"{wanted}.") for path in commands):
            nearest = difflib.get_close_matches(wanted, commands, n=1, cutoff=0.0)[0]
            raise UsageError(f"{command}: is no command; the nearest is {nearest.replace('.', ' ')}.")
        commands = {path: each for path, each in commands.items() if f"{path}.".startswith(f"{wanted}.")}
    found: dict[tuple[str, Given], list[str]] = {}
    for path, each in commands.items():
        context = each.context_class(each, info_name=path)
        context.default_map = Beforehand(path, group)
        for name, given in given_before(context).items():
            if command is not None or given.rank > settings.DEFAULT:
                found.setdefault((name, Given(_text(given.value), given.where, given.rank)), []).append(path)
    if as_json:
        listed = [
            {"option": name, "value": given.value, "from": given.where, "commands": names}
            for (name, given), names in found.items()
        ]
        console.result(json.dumps({"files": list(map(str, settings.files())), "settings": listed}, ensure_ascii=False))
        return
    rows = [[name, given.value, given.where] for name, given in found]
    if command is None:
        rows = [[*row, ", ".join(names)] for row, names in zip(rows, found.values(), strict=True)]
    lines = _columns(rows) or ["all settings are default" if command is None else "it has no settings"]
    console.result("\n".join([*lines, "", *_looked_for()]))


def _text(value: Any) -> str:
    """A value as it would be typed; nothing where a command decides itself."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _columns(rows: list[list[str]]) -> list[str]:
    rows = [[cell or "-" for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _looked_for() -> list[str]:
    """The files of settings, those too that are not there."""
    if os.environ.get(settings.OWN_FILE) == "":
        return [f"no file is read: {settings.OWN_FILE} is empty"]
    there = settings.files()
    own = Path(os.environ.get(settings.OWN_FILE) or settings.users_file())
    project = settings.project_file()
    lines = [f"{project} is read" if project else f"no {settings.PROJECT} here or above"]
    return [*lines, f"{own} is read" if own in there else f"{own} is not there"]


def _tell_strange(group: Any) -> None:
    """Say which variables of the environment look like settings, and are none."""
    known = {param.envvar for command in settings.leaves(group).values() for param in command.params if param.envvar}
    for name in sorted(os.environ):
        if name.startswith("DVGEN_") and name not in known | OTHERS.keys():
            nearest = difflib.get_close_matches(name, sorted(known | OTHERS.keys()), n=1, cutoff=0.0)[0]
            console.say(f"{name}: is no variable that dvgen reads; the nearest is {nearest}.")


def _init(file: Path, group: Any) -> Path:
    """Writes a file with the settings of all commands as comments. Raises UsageError."""
    if file.exists():
        raise UsageError(f"{file}: exists; edit it, or remove it first.")
    commands = settings.leaves(group)
    shared = [
        settings.name_of(param) for each in commands.values() for param in each.params if settings.is_shared(param)
    ]
    tables: dict[str, dict[str, str]] = {"": {}}
    for path, command in commands.items():
        for param in filter(settings.is_setting, command.params):
            name = settings.name_of(param)
            table = "" if settings.is_shared(param) and shared.count(name) > 1 else path
            tables.setdefault(table, {}).setdefault(name, _example(param))
    lines = ["# Settings of dvgen; `dvgen config` shows which are in force. Take the # off a line and give it a value."]
    for table, keys in tables.items():
        lines += ["", f"# [{table}]" if table else "# For every command; [sample] and so on are for one."]
        lines += [f"# {line}" for line in keys.values()]
    with replacing(file) as part:
        part.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return file


def _example(param: Any) -> str:
    """A line for a setting, with what it takes as a comment."""
    name, takes = settings.name_of(param), param.metavar or ""
    if param.is_flag:
        return f"{name} = true  # {param.help}"
    return f"{name} = {'[]' if param.multiple else json.dumps('')}  # {takes}: {param.help}"
