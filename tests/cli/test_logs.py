"""--verbose and --log-file: what is done, for those who want to know; nothing of it otherwise."""

import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dvgen import settings
from dvgen.main import app, group
from typer.testing import CliRunner, Result

TINY = ("--random-weights", "--size", "32x32", "--frames", "5", "--steps", "2", "--seed", "1")
LINE = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (\d+) (DEBUG|INFO|WARNING|ERROR) ([a-z_.]+): (.*)")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def logged(file: str) -> list[tuple[str, str, str]]:
    """Level, logger and message of every line, of which each must be one."""
    found = [LINE.fullmatch(line) for line in Path(file).read_text().splitlines()]
    assert found and all(found), Path(file).read_text()
    return [(match[2], match[3], match[4]) for match in found if match]


def test_verbose_says_what_is_done_and_nothing_twice():
    plain = run("sample", "a cat", *TINY, "-o", "a.mp4")
    assert not re.search(r"(?m)^\[", plain.stderr)
    said = run("sample", "a cat", *TINY, "-o", "b.mp4", "--verbose")
    ours = [line for line in said.stderr.splitlines() if re.match(r"\[ *\d+\.\d\d s\] ", line)]
    assert any("dvgen sample 'a cat' --size=32x32" in line and "--verbose" in line for line in ours)
    for words in ("there are ", "denoise: ", "the most memory so far: ", "text encoder: as ", "done in "):
        assert any(words in line for line in ours), words
    others = [line for line in said.stderr.splitlines() if line not in ours]
    assert [line.partition(" done")[0] for line in others] == [
        line.partition(" done")[0] for line in plain.stderr.splitlines()
    ]
    assert said.stdout == "b.mp4\n"


def test_the_file_has_all_of_it_with_times_also_when_quiet():
    said = run("sample", "a cat", *TINY, "-o", "a.mp4", "--quiet", "--log-file", "x.log")
    assert said.stderr == ""
    found = logged("x.log")
    names = {name for _, name, _ in found}
    assert {"dvgen", "dvgen.said", "dit_video.plan", "dit_video.stages", "dit_video.denoise"} <= names
    assert ("INFO", "dvgen.said", "seed 1") in found and ("DEBUG", "dit_video.denoise", "step 2 of 2") in found
    run("sample", "a cat", *TINY, "-o", "b.mp4", "--log-file", "x.log")
    assert len(logged("x.log")) >= 2 * len(found)  # added
    assert not logging.getLogger("dvgen").handlers and not logging.getLogger("dit_video").handlers


def test_an_error_is_there_with_its_traceback():
    Path("a.mp4").touch()
    said = run("sample", "a cat", *TINY, "-o", "a.mp4", "--log-file", "x.log", "--verbose", code=1)
    text = Path("x.log").read_text()
    assert "ERROR dvgen: --output a.mp4: the file exists" in text and "Traceback" in text and "MediaError" in text
    assert said.stderr.count("the file exists") == 1 and "Traceback" not in said.stderr
    run("sample", "a cat", *TINY, "--shift", "x", "--log-file", "y.log", code=2)
    assert "ERROR dvgen: --shift x: must be a number" in Path("y.log").read_text()


def test_it_is_a_setting_as_others_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVGEN_LOG_FILE", "x.log")
    monkeypatch.setenv("DVGEN_CONFIG", "user.toml")
    Path("user.toml").write_text("verbose = true\nfps = 12")
    said = run("sample", "a cat", *TINY, "-o", "a.mp4")
    assert "--fps=12 (user.toml: fps)" in said.stderr and "--log-file=x.log (DVGEN_LOG_FILE)" in said.stderr
    assert any(message.startswith("settings: ") for _, _, message in logged("x.log"))
    assert "[" not in run("sample", "a cat", *TINY, "-o", "b.mp4", "--quiet").stderr
    assert "only one of the two" in run("sample", "a cat", *TINY, "--quiet", "--verbose", code=2).stderr
    Path("jobs.txt").write_text("one\ntwo\n")
    before = len(logged("x.log"))
    run("batch", "jobs.txt", *TINY)
    run("again", "a.mp4", "-o", "c.mp4")
    assert sum("dvgen batch" in message for _, _, message in logged("x.log")[before:]) == 1
    assert "--verbose: is not for jobs" in _batch_of_verbose()


def _batch_of_verbose() -> str:
    Path("bad.jsonl").write_text('{"prompt": "a", "verbose": true}')
    return run("batch", "bad.jsonl", *TINY, code=2).stderr


def test_a_file_that_cannot_be_written_is_refused():
    said = run("sample", "a cat", *TINY, "-o", "a.mp4", "--log-file", "nowhere/x.log", code=2).stderr
    assert said.startswith("Error: --log-file nowhere/x.log: cannot be written (No such file or directory)")
    assert not Path("a.mp4").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_file_that_cannot_be_written_any_more_is_no_reason_to_stop():
    said = run("sample", "a cat", *TINY, "-o", "a.mp4", "--log-file", "/dev/full")
    assert said.stderr.count("the log /dev/full cannot be written any more") == 1 and Path("a.mp4").exists()
    assert "Logging error" not in said.stderr


def test_a_signal_is_there_too():
    line = [sys.executable, "-m", "dvgen", "sample", "a", *TINY[:1], "--steps", "1000", "--log-file", "x.log"]
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not Path("x.log").exists() or "step 1 of" not in Path("x.log").read_text():
        assert process.poll() is None, process.communicate()
    process.terminate()
    process.wait(timeout=60)
    assert logged("x.log")[-1] == ("INFO", "dvgen", "ended with exit code 143")
    assert logging.getLogger("dit_video").level == logging.NOTSET and os.path.exists("x.log")


def test_every_command_that_works_for_long_has_them():
    commands = settings.leaves(group())
    with_them = {
        path
        for path, command in commands.items()
        if {"verbose", "log_file"} <= {param.name for param in command.params}
    }
    assert commands.keys() - with_them == {"again", "info", "models", "config"}  # again hands them on
    quiet = {path for path, command in commands.items() if "quiet" in {param.name for param in command.params}}
    assert quiet == with_them
