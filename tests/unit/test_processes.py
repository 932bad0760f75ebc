"""Names of processes: what an ended one has left is told from what is in use."""

import os
import subprocess
import sys

import pytest

from dit_video import processes
from dit_video.processes import runs, this_process

NAME = "from dit_video.processes import this_process; print(this_process(), flush=True); input()"


@pytest.mark.skipif(os.name != "posix", reason="only there can a process be asked whether it runs")
def test_who_runs():
    machine = this_process().partition("@")[2]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", NAME], **pipes) as process:
        name = process.stdout.readline().strip()
        assert name.startswith(f"{process.pid}.") or sys.platform != "linux"
        assert runs(name) is True and runs(f"{process.pid}@{machine}") is True
        assert runs(f"{name}x") is None and runs("") is None and runs("x@y") is None
        process.kill()
    assert runs(name) is False
    assert runs(this_process()) is False, "an earlier process that had our number"


@pytest.mark.skipif(sys.platform != "linux", reason="where the system tells when a process began")
def test_a_number_that_was_given_again_is_another_process():
    identity, _, machine = this_process().partition("@")
    _, began, space = identity.split(".")
    assert runs(f"1@{machine}") is True
    assert runs(f"1.{int(began) + 1}.{space}@{machine}") is False
    assert runs(f"1.{began}.{space}0@{machine}") is None, "the numbers of another container"


def test_systems_that_do_not_tell_go_by_the_number(monkeypatch: pytest.MonkeyPatch):
    name = this_process()
    monkeypatch.setattr(processes, "_BEGAN", 1000)
    assert this_process() == f"{os.getpid()}@{name.partition('@')[2]}"
    if os.name == "posix":
        assert runs(name.replace(str(os.getpid()), str(os.getppid()), 1)) is True
