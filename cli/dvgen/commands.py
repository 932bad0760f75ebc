"""The commands by their names: what lists them knows a line of each, and only one that is called is imported.

To import all of them takes longer than to print the help. A test compares each line with what the command says itself.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperCommand

# Click's class of wrong usage, wherever this version of Typer keeps Click.
ClickUsageError: Any = typer.BadParameter.__mro__[1]


@dataclass(frozen=True)
class Listed:
    """A command that is not imported.

    line: the first of its help. place: "module:function" in `dvgen`, of a group "module:app"; a module can have a
    `Command` of its own, the class of its command. passes_on: it takes what it does not know, for other commands.
    """

    panel: str
    name: str
    line: str
    place: str
    passes_on: bool = False

    def entry(self) -> Any:
        """It as lists show it."""
        return TyperCommand(self.name, help=self.line, rich_help_panel=self.panel)

    def load(self) -> Any:
        """It as it is called."""
        from dvgen.command import Command

        where, _, called = self.place.partition(":")
        module = import_module(f"dvgen.{where}")
        found = getattr(module, called)
        if isinstance(found, typer.Typer):
            group: Any = typer.main.get_command(found)
            group.name, group.rich_help_panel = self.name, self.panel
            return group
        alone = typer.Typer(add_completion=False)
        extra = {"ignore_unknown_options": True, "allow_extra_args": True} if self.passes_on else None
        kind = getattr(module, "Command", Command)
        alone.command(self.name, cls=kind, rich_help_panel=self.panel, context_settings=extra)(found)
        return typer.main.get_command(alone)


LISTED = (
    Listed(
        "Videos",
        "sample",
        "Make a video of PROMPT, with exactly the size and the number of frames asked for.",
        "sample:sample",
    ),
    Listed(
        "Videos", "extend", "Make CLIP longer: after its end, before its beginning, or into a loop.", "extend:extend"
    ),
    Listed(
        "Videos",
        "connect",
        "Join A and B by new frames that lead from the last of A to the first of B.",
        "extend:connect",
    ),
    Listed("Videos", "edit", "Change CLIP as PROMPT says; size, length and rate stay.", "edit:edit"),
    Listed(
        "Videos",
        "batch",
        "Make a video of every job; of jobs that are done already, none.",
        "batch:batch",
        passes_on=True,
    ),
    Listed(
        "Videos",
        "decode",
        "Make the video of LATENTS, at the size, length and rate that they were made for.",
        "decode:decode",
    ),
    Listed(
        "Videos",
        "again",
        "Make FILE again, by the recipe in it: unchanged, the frames are the same, whatever the settings are.",
        "again:again",
        passes_on=True,
    ),
    Listed(
        "Models",
        "info",
        "Show what a checkpoint is and knows, from its headers alone, or the size and coding of a video or picture.",
        "info:info",
    ),
    Listed(
        "Models",
        "convert",
        "Write a model as a diffusers folder, as the original release's, or as files for ComfyUI.",
        "convert:convert",
    ),
    Listed(
        "Models",
        "models",
        "List the models that --model opens: the shipped one, those in weights/, and those in the Hugging Face cache.",
        "models:models",
    ),
    Listed(
        "Models",
        "download",
        "Fetch a model's configs, weights and tokenizer, and nothing else.",
        "download:download",
    ),
    Listed(
        "Models",
        "eval",
        "Sample fixed prompts and score them with the detector; what it cannot tell counts as wrong.",
        "evaluate:evaluate",
    ),
    Listed(
        "Settings",
        "calibrate",
        "Measure for some seconds how fast a model is on this machine, for what --dry-run says of time.",
        "calibrate:calibrate",
    ),
    Listed(
        "Training",
        "scenes",
        "Write scenes of the training world: 000000.mp4 (.png for one frame) and its caption in 000000.txt, and so on.",
        "scenes:scenes",
    ),
    Listed(
        "Settings",
        "config",
        "Show the settings: of COMMAND all, without one those that are not default, each with where it is from.",
        "config:config",
    ),
    Listed("Training", "train", "Train an autoencoder or a transformer from a TOML config.", "train:app"),
)
"""All of them, in the order in which they are shown."""


class Imported(Mapping[str, Any]):
    """The commands by name, each imported when it is first asked for."""

    def __init__(self) -> None:
        self._listed = {each.name: each for each in LISTED}
        self._found: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._found:
            self._found[name] = self._listed[name].load()
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._listed

    def __iter__(self) -> Iterator[str]:
        return iter(self._listed)

    def __len__(self) -> int:
        return len(self._listed)
