"""Standard streams that are closed, full or read only in part, and terminals that are narrow."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.program import frames, run, start

QUICK = ("--random-weights", "--size", "16x16", "--frames", "2", "--steps", "1", "--seed", "1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shell(line: str) -> tuple[int, str]:
    """The exit code of the command in a line of a shell, in which it is $DVGEN, and what is on standard error."""
    environment = os.environ | {"DVGEN": f"{sys.executable} -m dvgen"}
    script = f"set -o pipefail; {line}"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.skipif(os.name != "posix", reason="written for a shell")
@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("$DVGEN --help >&-", 0, ""),
        ("$DVGEN --help | head -1 >/dev/null; exit ${PIPESTATUS[1]}", 0, ""),
        ("$DVGEN sample a --size 3 2>&-", 2, ""),
        ("$DVGEN sample a --size 3 >&- 2>&- <&-", 2, ""),
    ],
)
def test_streams_that_are_closed(line: str, code: int, says: str):
    assert shell(line) == (code, says)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
@pytest.mark.parametrize(
    ("line", "code", "says"),
    [
        ("$DVGEN --version >/dev/full", 1, "Error: standard output cannot be written (No space left on device).\n"),
        (
            "$DVGEN sample a --random-weights --dry-run >/dev/full",
            1,
            "Error: standard output cannot be written (No space left on device).\n",
        ),
        ("$DVGEN models >&-", 0, ""),
        ("$DVGEN --help >/dev/full", 1, "Error: No space left on device.\n"),
        ("$DVGEN --help >/dev/full 2>/dev/full", 1, ""),
        ("$DVGEN sample a --size 3 2>/dev/full", 2, ""),
    ],
)
def test_streams_that_are_full(line: str, code: int, says: str):
    assert shell(line) == (code, says)


@pytest.mark.skipif(os.name != "posix", reason="descriptors of a shell")
def test_no_file_takes_the_place_of_a_stream_that_is_closed():
    """What is printed by whatever library would go into it."""
    program = (
        "import os; from dvgen import process; process.open_streams(); print(open('x', 'w').fileno() > 2, flush=1)"
    )
    script = f'{sys.executable} -c "{program}" 0<&- 2>&-'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stdout == "True\n"


@pytest.mark.skipif(os.name != "posix", reason="written for a shell")
def test_the_video_is_there_though_nobody_can_be_told():
    code, _ = shell(f"$DVGEN sample a {' '.join(QUICK)} -o a.mp4 >&- 2>&- <&-")
    assert code == 0 and len(frames("a.mp4")) == 2


@pytest.mark.skipif(os.name != "posix", reason="written for a shell")
def test_a_batch_whose_reader_leaves_ends_and_goes_on_when_given_again():
    Path("jobs.txt").write_text("a\nb\nc\n")
    code, said = shell(f"$DVGEN batch jobs.txt {' '.join(QUICK)} | head -1 >/dev/null")
    made = sorted(Path().glob("*.mp4"))
    assert code == 1 and made and "Error" not in said
    out, _ = run("batch", "jobs.txt", *QUICK)
    assert out.count('"skipped"') == len(made) and out.count('"done"') == 3 - len(made)
    assert not list(Path().glob(".dvgen-*"))


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
@pytest.mark.parametrize("columns", [40, 20])
def test_a_narrow_terminal(columns: int, monkeypatch: pytest.MonkeyPatch):
    """Each stage has a line of its own, which fits, with its parts or its time at the end."""
    import termios

    ours, theirs = os.openpty()
    termios.tcsetwinsize(theirs, (24, columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("COLUMNS", raising=False)  # which tests in several processes have
    process = start("sample", "a", *QUICK, "-o", "a.mp4", stderr=theirs)
    os.close(theirs)
    data = b""
    with suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 65536):
            data += part
    os.close(ours)
    assert process.wait(timeout=60) == 0
    drawn = data.decode()
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", drawn))
    bars = [line for line in lines if re.match(r"(load|text|steps|decode)", line)]
    assert bars and all(len(line) <= columns for line in bars), bars
    unended = [line for line in bars if not re.search(r"(\d+/\d+( +[\d.]+ s left)?|\d s)$", line.rstrip())]
    assert not unended, unended
    assert any(re.match(r"decode +2/2$", line.rstrip()) for line in bars), bars
