"""`dvgen again`: a video is made again, by the recipe in it."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from dvgen import console, options, settings
from dvgen.recipe import Recipe, recipe_in


def again(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="A video or picture that dvgen made.", show_default=False)
    ],
    dry_run: Annotated[
        bool, options.option("--show", None, "Print the command line, and run nothing.", setting=False)
    ] = False,
) -> None:
    """Make FILE again, by the recipe in it: unchanged, the frames are the same, whatever the settings are.

    Every option of the command that made it can be given too, and goes before what the recipe says.
    """
    recipe = recipe_in(file)
    line = command_line(recipe, context.args)
    if dry_run:
        console.result(f"dvgen {shlex.join(line)}")
        return
    for change in recipe.changed():
        console.say(change)
    from dvgen.main import app

    expected = [line[0], f"--expected-model={recipe.model}", *line[1:]]
    with settings.only(settings.HARMLESS):
        app(expected)


def command_line(recipe: Recipe, given: Sequence[str]) -> list[str]:
    """The command of a recipe, with the options that are given now instead of its own."""
    names = {word.partition("=")[0] for word in given if word.startswith("--")}
    replaced = {f"--{other}" for name in names for other in settings.INSTEAD.get(name.removeprefix("--"), ())}
    end = recipe.line.index("--") if "--" in recipe.line else len(recipe.line)
    kept = [word for word in recipe.line[1:end] if word.partition("=")[0] not in names | replaced]
    return [recipe.line[0], *kept, *given, *recipe.line[end:]]
