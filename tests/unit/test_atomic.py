"""Files and folders are the old ones or the whole new ones, whatever goes wrong in between."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dit_video import atomic


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path):
    file = tmp_path / "a.txt"
    file.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic.replacing(file) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert file.read_text() == "old"
    with atomic.replacing(file) as part:
        part.write_text("new")
    assert file.read_text() == "new" and os.listdir(tmp_path) == ["a.txt"]


def test_a_name_taken_meanwhile_is_not_overwritten(tmp_path: Path):
    file = tmp_path / "a.mp4"
    with atomic.placing(file, overwrite=False) as (part, placed):
        part.write_text("ours")
        file.write_text("theirs")
        (tmp_path / "a-2.mp4").write_text("theirs too")
    assert placed.path == tmp_path / "a-3.mp4" and placed.path.read_text() == "ours"
    assert file.read_text() == "theirs" and len(os.listdir(tmp_path)) == 3


def test_a_name_taken_meanwhile_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", no_links)
    file = tmp_path / "a.mp4"
    file.write_text("theirs")
    with atomic.placing(file, overwrite=False) as (part, placed):
        part.write_text("ours")
    assert placed.path == tmp_path / "a-2.mp4" and sorted(os.listdir(tmp_path)) == ["a-2.mp4", "a.mp4"]


def test_overwriting_is_meant(tmp_path: Path):
    file = tmp_path / "a.mp4"
    file.write_text("old")
    with atomic.placing(file, overwrite=True) as (part, placed):
        part.write_text("new")
    assert placed.path == file and file.read_text() == "new" and os.listdir(tmp_path) == ["a.mp4"]


def test_the_old_folder_comes_back_when_the_new_one_cannot_take_its_place(tmp_path: Path, monkeypatch):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_text("old")
    rename, calls = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(KeyboardInterrupt), atomic.replacing_folder(folder) as part:
        (part / "weights").write_text("new")
    assert (folder / "weights").read_text() == "old" and os.listdir(tmp_path) == ["model"]
    assert calls[1] == folder  # the new one was on its way


KILLED = """
import os, sys
from pathlib import Path
from dit_video import atomic

with atomic.replacing(Path(sys.argv[1])) as part, atomic.replacing_folder(Path(sys.argv[2])) as folder:
    part.touch()
    print(part.name, folder.name, flush=True)
    input() if sys.argv[3] == "runs" else os._exit(1)
"""


@pytest.mark.skipif(os.name != "posix", reason="only there can a process be asked whether it runs")
def test_what_ended_processes_were_writing_goes_with_the_next_file(tmp_path: Path):
    def begin(name: str, how: str) -> "subprocess.Popen[str]":
        line = [sys.executable, "-c", KILLED, str(tmp_path / name), str(tmp_path / "model"), how]
        return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with begin("a", "ends") as ended, begin("b", "runs") as running:
        assert ended.stdout is not None and running.stdout is not None
        (half, folder), (other, _) = ended.stdout.readline().split(), running.stdout.readline().split()
        ended.wait()
        elsewhere = re.sub(r"-[0-9a-f]{8}-", "-00000000-", half)
        (tmp_path / elsewhere).touch()
        with atomic.replacing(tmp_path / "ours") as ours:
            ours.touch()
        found = os.listdir(tmp_path)
        assert half not in found, "its process has ended"
        assert {other, elsewhere, folder} <= set(found), "of one that runs, of another machine, and a folder"
        running.communicate("\\n")
