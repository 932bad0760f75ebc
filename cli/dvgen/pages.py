"""What draws pages of help, imported without what no page of ours has."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

DRAWS = "typer.rich_utils"
LEFT_OUT = {"rich.markdown": "Markdown", "rich.traceback": "Traceback"}
"""What it imports for pages in Markdown and for errors: parsers and highlighters that take as long as all the rest."""


class _Later(type):
    """A class that is imported when it is first used."""

    place: str

    def __call__(cls, *arguments: Any, **named: Any) -> Any:
        return cls._real()(*arguments, **named)

    def __getattr__(cls, name: str) -> Any:
        return getattr(cls._real(), name)

    def _real(cls) -> Any:
        return getattr(import_module(cls.place), cls.__name__)


def import_drawing() -> None:
    """Import what Typer draws help with; the classes that are left out are imported if it uses them all the same."""
    if DRAWS in sys.modules:
        return
    stand_ins = {place: ModuleType(place) for place in LEFT_OUT if place not in sys.modules}
    for place, module in stand_ins.items():
        name = LEFT_OUT[place]
        setattr(module, name, _Later(name, (), {"place": place}))
    sys.modules.update(stand_ins)
    try:
        import_module(DRAWS)
    finally:
        for place in stand_ins:
            del sys.modules[place]
