"""The class of all commands: their options can be given beforehand, as settings."""

import re
from collections.abc import Iterator
from typing import Any

from typer.core import TyperCommand

import dit_video
from dit_video.errors import DvgenError, UsageError
from dvgen import examples, logs, options, pages, settings
from dvgen.commands import ClickUsageError
from dvgen.settings import Given


class Command(TyperCommand):
    """A command that also takes values from the environment and from files, see `settings`.

    Every flag that can be a setting has an opposite, --no-FLAG, so that it can be turned off again.
    """

    def __init__(self, name: str | None, **about: Any) -> None:
        super().__init__(name, **{**about, "epilog": examples.document(name)})

    def make_parser(self, ctx: Any) -> Any:
        """The parser of Click, which knows the opposites of flags too."""
        parser = super().make_parser(ctx)
        param: Any
        for param in self.params:
            if settings.is_setting(param) and getattr(param, "is_flag", False):
                opposite = options.opposite(settings.name_of(param))
                parser.add_option(obj=param, opts=[opposite], dest=param.name, action="store_const", const=False)
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As in Click, over the settings. Raises UsageError."""
        if ctx.resilient_parsing:  # a shell asks what could come next
            return super().parse_args(ctx, args)
        root = ctx.find_root().command
        ctx.default_map = Beforehand(settings.path_of(ctx), root if hasattr(root, "commands") else None)
        try:
            rest = super().parse_args(ctx, args)
        except ClickUsageError as error:
            param = getattr(error, "param", None)
            if param is not None and (place := _place(ctx, param)):
                error.message += f" {place}"
            raise
        found = given(ctx)
        aside = settings.put_aside(found, {settings.name_of(param) for param in self.params})
        for param in self.params:
            if settings.name_of(param) in aside:
                ctx.params[param.name] = param.process_value(ctx, param.default)
                ctx.set_parameter_source(param.name, type(ctx.get_parameter_source(param.name)).DEFAULT)
        return rest

    def invoke(self, ctx: Any) -> Any:
        """Run it; an error about a value that was not typed now also says where that is from."""
        values = ctx.params
        if values.get("quiet") and values.get("verbose"):
            raise UsageError("--quiet and --verbose: only one of the two can be given.")
        with logs.listening(values.get("verbose", False), values.get("log_file"), lambda: _about(ctx)):
            return self._invoke(ctx)

    def _invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except DvgenError as error:
            named = re.findall(r"--([a-z][a-z-]+)", str(error))
            places = [_place(ctx, param) for param in self.params if settings.name_of(param) in named]
            if told := " ".join(filter(None, places)):
                raise type(error)(f"{error} {told}") from error
            raise

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Help, in which defaults are those without settings, and its examples."""
        pages.import_drawing()
        ctx.default_map = None
        document, self.epilog = self.epilog, None
        super().format_help(ctx, formatter)
        self.epilog = document
        examples.show(self.name)


class Beforehand(dict[str, Any]):
    """What the files say for a command; they are read when Click first asks, so not for --help.

    path: see `settings.path_of`. group: that of all commands; None where only a job's options are parsed.
    """

    def __init__(self, path: str, group: Any = None) -> None:
        super().__init__()
        self.path, self.group = path, group
        self.files: dict[str, Given] | None = None

    def get(self, name: str, default: Any = None) -> Any:
        """The value for a parameter. Raises UsageError."""
        found = self.given().get(name)
        return default if found is None else found.value

    def given(self) -> dict[str, Given]:
        """All of them. Raises UsageError."""
        if self.files is None:
            from dvgen.main import group

            self.files = settings.of_files(self.path, self.group or group())
        return self.files


def given(ctx: Any) -> dict[str, Given]:
    """The values of options after a command line was parsed, by the options' names."""
    found = {}
    for param in ctx.command.params:
        value, source = ctx.params.get(param.name), ctx.get_parameter_source(param.name)
        if source is not None and param.param_type_name == "option":
            found[settings.name_of(param)] = given_by(ctx, param, value, source.name)
    return found


def _about(ctx: Any) -> Iterator[str]:
    """What is said of a command line in the log."""
    import platform

    yield f"dvgen {dit_video.__version__}, Python {platform.python_version()}, {platform.platform()}"
    values = []
    for name, each in given(ctx).items():
        if each.rank > settings.DEFAULT:
            place = f" ({each.where})" if each.rank < settings.COMMAND_LINE else ""
            values.append(f"--{name}{'' if each.value is True else f'={each.value}'}{place}")
    names = [param.name for param in ctx.command.params if param.param_type_name == "argument"]
    arguments = [repr(str(ctx.params[name])) for name in names if ctx.params[name] is not None]
    yield " ".join([ctx.command_path, *arguments, *values])
    for file in settings.files():
        yield f"settings: {file.resolve()}"


def given_before(ctx: Any) -> dict[str, Given]:
    """The values that a command would have whose line has no options, by their names. Raises UsageError."""
    found = {}
    for param in ctx.command.params:
        if settings.is_setting(param):
            value, source = param.consume_value(ctx, {})
            value = value if value is None else param.process_value(ctx, value)  # it may be required
            found[settings.name_of(param)] = given_by(ctx, param, value, source.name)
    aside = settings.put_aside(found, {settings.name_of(param) for param in ctx.command.params})
    defaults = {settings.name_of(param): param.default for param in ctx.command.params}
    return found | {name: Given(defaults[name], "default", settings.DEFAULT) for name in aside}


def given_by(ctx: Any, param: Any, value: Any, source: str) -> Given:
    """A value of an option by the source that Click names."""
    if source == "ENVIRONMENT":
        return Given(value, param.envvar, settings.ENVIRONMENT)
    if source == "DEFAULT_MAP":
        said = ctx.default_map.given()[param.name]
        return Given(value, said.where, said.rank)
    if source == "DEFAULT":
        return Given(value, "default", settings.DEFAULT)
    return Given(value, "the command line", settings.COMMAND_LINE)


def _place(ctx: Any, param: Any) -> str:
    """Where an option's value is from, as a sentence; nothing where it is the default, or was typed now."""
    source = ctx.get_parameter_source(param.name)
    if source is None or source.name not in ("ENVIRONMENT", "DEFAULT_MAP"):
        return ""
    return f"--{settings.name_of(param)} is from {given_by(ctx, param, None, source.name).where}."
