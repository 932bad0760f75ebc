"""Files of jobs: one a line, as text, JSON or CSV, each read without torch and refused by its line."""

import csv
import io
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dit_video.errors import UsageError
from dvgen import options

KINDS = (".txt", ".jsonl", ".csv")
COMMAND = "sample"  # of jobs that do not say

Given = Mapping[str, str | bool | list[str]]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A line of a file of jobs.

    index: of the job, from 1. where: the file and the line, for messages. command: that it is a command line of. given:
    values by the names of its arguments, such as prompt, and by the long names of its options, as they would be typed;
    True for a flag, a list where an option is given several times.
    """

    index: int
    where: str
    command: str
    given: Given

    @property
    def prompt(self) -> str:
        """What to show; "" where it does not say."""
        found = self.given.get("prompt", "")
        return found if isinstance(found, str) else ""


def read_jobs(source: str) -> list[Job]:
    """The jobs of a file, or of standard input for "-".

    Raises:
        UsageError: the file is missing, of another kind, empty, or a line of it is no job.
    """
    if source == "-":
        name = "standard input"
        text = options.standard_input(name) if sys.stdin is not None else ""
        kind = ".jsonl" if text.lstrip().startswith("{") else ".txt"
    else:
        path, name = Path(source), source
        kind = path.suffix.lower()
        if kind not in KINDS:
            raise UsageError(f"{source}: a file of jobs ends in {', '.join(KINDS)}; the nearest is {path.stem}.txt.")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeError:
            raise UsageError(f"{source}: is not text in UTF-8; save it as UTF-8.") from None
        except OSError as error:
            raise UsageError(f"{source}: cannot be read ({error.strerror or error}).") from None
    lines = {".txt": _of_text, ".jsonl": _of_json, ".csv": _of_table}[kind](text, name)
    jobs = [
        Job(index=index, where=where, command=command, given=given)
        for index, (where, command, given) in enumerate(lines, start=1)
    ]
    if not jobs:
        raise UsageError(f"{name}: holds no jobs; a line is one.")
    return jobs


_Line = tuple[str, str, Given]  # where it is, the command, and what is given to it


def _of_text(text: str, name: str) -> Iterator[_Line]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            yield f"{name}, line {number}", COMMAND, {"prompt": line.strip()}


def _of_json(text: str, name: str) -> Iterator[_Line]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            found = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{where}: is not JSON ({error}).") from None
        if not isinstance(found, dict):
            raise UsageError(f'{where}: must be a JSON object, such as {{"prompt": "a red ball"}}.')
        yield _job(where, found)


def _of_table(text: str, name: str) -> Iterator[_Line]:
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        for row in rows:
            where = f"{name}, line {rows.line_num}"
            if None in row:
                raise UsageError(f"{where}: has more cells than the first line names.")
            yield _job(where, {key: value for key, value in row.items() if value not in (None, "")})
    except csv.Error as error:
        raise UsageError(f"{name}, line {rows.line_num}: is not CSV ({error}).") from None


def _job(where: str, found: Mapping[str, Any]) -> _Line:
    given = {str(key).strip().removeprefix("--").replace("_", "-"): value for key, value in found.items()}
    command = given.pop("command", COMMAND)
    for name, value in (("command", command), ("prompt", given.get("prompt", ""))):
        if not isinstance(value, str):
            raise UsageError(f"{where}: {name} is {json.dumps(value)}, and must be text.")
    return where, command, {name: written(where, name, value) for name, value in given.items()}


def written(where: str, name: str, value: Any) -> str | bool | list[str]:
    """A value of a file as it would be typed. Raises UsageError."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return options.typed(value)
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(each, int | float) and not isinstance(each, bool) for each in value):
        return ",".join(map(options.typed, value))
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return list(value)
    raise UsageError(f"{where}: {name} is {json.dumps(value, default=str)}, which no option takes.")


def shard(jobs: Sequence[Job], text: str) -> list[Job]:
    """Those of part I of N, "I/N" with I from 1. Raises UsageError."""
    part, slash, parts = text.partition("/")
    if not slash:
        raise UsageError(f"--shard {text}: must be I/N, such as 1/4 for the first of four parts.")
    count = options.whole("--shard I/", parts, 1, 1_000_000)
    number = options.whole("--shard", part, 1, count)
    return [job for job in jobs if (job.index - 1) % count == number - 1]
