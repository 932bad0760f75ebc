"""Jobs of a batch as requests of the commands that they name: checked as on their command lines, but much faster."""

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dit_video.errors import DvgenError, UsageError
from dit_video.video.output import check_file, check_video
from dvgen import edit, extend, options, sample, settings
from dvgen.command import ClickUsageError
from dvgen.command import given as given_by_settings
from dvgen.jobs import Given, Job
from dvgen.shared import parsed

Request = sample.Request | edit.Request | extend.Request

REQUESTS: Mapping[str, Callable[..., Request]] = {
    "sample": sample.request_of,
    "extend": extend.request_of,
    "connect": extend.connect_request_of,
    "edit": edit.request_of,
}
"""The commands that jobs can name, and what checks the options of each."""

NOT_OF_A_JOB = (
    *("overwrite", "fresh", "json", "quiet", "verbose", "log-file", "expected-model", "tile"),
    *("dry-run", "time-budget", "count", "sheet", "preview-file"),
)
"""Options that are for a whole batch or for none of it."""

OF_ONE_JOB = ("output", "save-latents")
"""Options that name a file."""

SHORT_NAME = 60  # characters, with which a name cannot be too long for any file system

FLAGS = {"true": True, "false": False}  # in tables, where everything is text


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job whose options are checked."""

    job: Job
    request: Request


@dataclass(frozen=True, kw_only=True)
class _Command:
    """What Click knows of a command's parameters, by the names that jobs have for them.

    before: the values of settings, of an empty command line. values: likewise of all parameters, by the names of
    Python. defaults: of options, without settings. paths: the names of Python of those that are paths.
    """

    arguments: Mapping[str, Any]
    options: Mapping[str, Any]
    before: Mapping[str, settings.Given]
    values: Mapping[str, Any]
    defaults: Mapping[str, Any]
    paths: frozenset[str]


class Checker:
    """Makes requests of jobs; all have the options of the batch's own command line where they give no others.

    common: those options, as they were typed. out: the folder that names of files are meant in.

    Raises:
        UsageError: there is no such option, or it is not for jobs, or not for all of them.
    """

    def __init__(self, common: Sequence[str], out: Path) -> None:
        self.out = out
        self.common = _typed(common)
        for name in self.common:
            _check_for_jobs(name)
            if name in OF_ONE_JOB:
                rule = "names one file, and there may be many jobs; name it in a job, or let --name do so"
                raise UsageError(f"--{name}: {rule}.")
        self._commands = {name: _command(name) for name in REQUESTS}
        self._writable: set[tuple[Path, str, bool]] = set()
        self._alike: dict[object, Request] = {}  # of jobs that differ by their prompts, seeds and names alone

    def check_used(self, jobs: Sequence[Job]) -> None:
        """Refuses options of the command line that no job's command has. Raises UsageError."""
        commands = sorted({job.command for job in jobs} & set(REQUESTS))
        for name in self.common:
            if commands and not any(name in self._commands[command].options for command in commands):
                raise UsageError(f"--{name}: {' and '.join(commands)} know no such option, and all jobs are of these.")

    def ignored(self, jobs: Sequence[Job]) -> Iterator[str]:
        """A sentence about each setting that would count for one video, and does not for jobs."""
        named, ours = {job.command for job in jobs}, _options_of("batch")
        commands = [self._commands[name] for name in REQUESTS if name in named]
        for name in NOT_OF_A_JOB:
            given = [each.before[name] for each in commands if name in each.before]
            if name in ours or name in settings.HARMLESS:
                continue
            for where in dict.fromkeys(each.where for each in given if each.rank > settings.DEFAULT):
                yield f"{where}: --{name} is not for jobs, and is left out here"

    def request(self, job: Job) -> Request:
        """What a job asks for. Raises DvgenError."""
        command = self._commands[options.choice("command", job.command, tuple(REQUESTS))]
        given = dict(job.given)
        prompt, seed, *files = (_text(name, given.pop(name, None)) for name in ("prompt", "seed", *OF_ONE_JOB))
        if prompt is None and command.arguments["prompt"].required:
            raise UsageError("has no prompt; every job needs one.")
        output, latents = (text and self.out / text for text in files)
        if output:  # that it is there is no error: then the job may be done
            self._check_file(output)
        if latents:
            _known(command, "save-latents")
            check_file(latents, (".safetensors",), overwrite=True, option="--save-latents")
        alike = (job.command, repr(given))
        if alike not in self._alike:
            rest, shared = parsed(self._values(command, given))
            self._alike[alike] = REQUESTS[job.command](**rest, sampling=replace(shared, as_json=False, quiet=True))
        found = self._alike[alike]
        if latents and found.sampling.keep_latents:
            raise UsageError(f"--keep-latents and --save-latents {latents}: only one of the two can be given.")
        shared = replace(
            found.sampling,
            seed=options.seed(seed or self._seed(command) or str(job.index)),
            seed_drawn=False,
            output=output or None,
            save_latents=latents or None,
        )
        return replace(found, prompt=options.text(prompt or ""), sampling=shared)

    def _check_file(self, output: Path) -> None:
        """Refuses names that cannot be written; those that differ by their stem are alike. Raises DvgenError."""
        alike = output.parent, output.suffix, len(output.name) > SHORT_NAME
        if alike not in self._writable or alike[2]:
            check_video(output, 1, fps=1.0, overwrite=True, option="--output")
            self._writable.add(alike)

    def _seed(self, command: _Command) -> str | None:
        return _text("seed", self.common.get("seed", command.values["seed"]))

    def _values(self, command: _Command, given: Given) -> dict[str, Any]:
        """The values of all parameters, by the names of Python: what the job gives, the command line, or the settings.

        Raises:
            UsageError: a value is of another kind, or an argument is missing.
        """
        common = {name: each for name, each in self.common.items() if name in command.options}
        layers = dict(command.before)
        for values, rank in ((common, settings.COMMAND_LINE), (given, settings.COMMAND_LINE + 1)):
            layers |= {name: settings.Given(each, "", rank) for name, each in values.items()}
        aside = settings.put_aside(layers, command.options)
        found = {**command.values, "prompt": ""}
        found |= {command.options[name].name: command.defaults[name] for name in aside if name in command.options}
        for name in [*common, *given]:
            parameter = _known(command, name)
            _check_for_jobs(name)
            if name in aside:
                continue
            value = given.get(name, common.get(name, ""))
            if parameter.multiple:
                found[parameter.name] = [each for some in (common, given) if name in some for each in _list(some[name])]
            elif getattr(parameter, "is_flag", False):
                found[parameter.name] = _flag(name, value)
            else:
                text = _text(name, value)
                found[parameter.name] = Path(text or "") if parameter.name in command.paths else text
        for name, parameter in command.arguments.items():
            if parameter.required and name not in ("prompt", *given):
                raise UsageError(f"has no {name}; every job of this command needs one.")
        return found


def checked(
    jobs: Sequence[Job], common: Sequence[str], out: Path, note: Callable[[str], None] = lambda _: None
) -> Iterator[Task | tuple[Job, DvgenError]]:
    """Every job as a task, or with what is wrong with it; common, out: see `Checker`. Raises UsageError."""
    checker = Checker(common, out)
    checker.check_used(jobs)
    for text in checker.ignored(jobs):
        note(text)
    named: dict[Path, int] = {}
    for job in jobs:
        try:
            request = checker.request(job)
            for option, path in (("output", request.sampling.output), ("save-latents", request.sampling.save_latents)):
                if path and named.setdefault(path, job.index) != job.index:
                    raise UsageError(f"--{option} {path}: job {named[path]} has the same; every job needs its own.")
        except DvgenError as error:
            yield job, error
        else:
            yield Task(job=job, request=request)


def _command(name: str) -> _Command:
    from dvgen.main import command_of

    command = command_of(name)
    arguments = {_argument_name(each): each for each in command.params if each.param_type_name == "argument"}
    needed = [each for each in arguments.values() if each.required]
    context = command.make_context(name, ["x"] * len(needed))
    values = {each: value for each, value in context.params.items() if each not in {one.name for one in needed}}
    known = _options_of(name)
    parsed = {each.name: each.process_value(context, "x") for each in command.params if _takes_text(each)}
    return _Command(
        arguments=arguments,
        options=known,
        before=given_by_settings(context),
        values=values,
        defaults={each: option.process_value(context, option.default) for each, option in known.items()},
        paths=frozenset(each for each, value in parsed.items() if isinstance(value, Path)),
    )


def _argument_name(argument: Any) -> str:
    """CLIP and [PROMPT] of a command's usage are the keys clip and prompt."""
    return str(argument.metavar or argument.name).strip("[]{}").lower()


def _takes_text(parameter: Any) -> bool:
    return not getattr(parameter, "is_flag", False) and not parameter.multiple and parameter.nargs == 1


def _options_of(name: str) -> dict[str, Any]:
    from dvgen.main import command_of

    every = [each for each in command_of(name).params if each.param_type_name == "option"]
    return {long.removeprefix("--"): each for each in every for long in each.opts if long.startswith("--")}


def _typed(common: Sequence[str]) -> Given:
    """Options as they were typed, by their long names. Raises UsageError."""
    from dvgen.main import command_of

    every: dict[str, Any] = {}
    for command in REQUESTS:
        every = _options_of(command) | every
    context = command_of("sample").make_context("batch", ["x"])
    parser = command_of("sample").make_parser(context)
    for each in {id(each): each for each in every.values() if each.name not in context.params}.values():
        each.add_to_parser(parser, context)
    try:
        found, rest, _ = parser.parse_args(list(common))
    except ClickUsageError as error:
        raise UsageError(error.format_message()) from None
    if rest or found.get("prompt"):
        raise UsageError(f"{(rest or [found['prompt']])[0]}: is one argument too many; batch takes one file of jobs.")
    names = {each.name: name for name, each in every.items()}
    return {names[name]: value for name, value in found.items() if name in names and value is not None}


def _check_for_jobs(name: str) -> None:
    if name in NOT_OF_A_JOB:
        raise UsageError(f"--{name}: is not for jobs.")


def _known(command: _Command, name: str) -> Any:
    """A parameter by its name in jobs. Raises UsageError."""
    found = command.options.get(name) or command.arguments.get(name)
    if found is None:
        close = difflib.get_close_matches(name, [*command.options, *command.arguments], n=1)
        raise UsageError(f"No such option: --{name}.{f' The nearest is {close[0]}.' if close else ''}")
    return found


def _list(value: str | bool | list[str]) -> list[str]:
    return value if isinstance(value, list) else [str(value)]


def _flag(name: str, value: str | bool | list[str]) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in FLAGS:
        return FLAGS[value.lower()]
    raise UsageError(f"{name}: must be true or false, not {value!r}.")


def _text(name: str, value: str | bool | list[str] | None) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise UsageError(
        f"{name}: must be text or a number, not {'a list' if isinstance(value, list) else str(value).lower()}."
    )
