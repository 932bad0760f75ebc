"""Claims: one process works on a file, whoever else would like to, and another goes on where it has ended."""

import multiprocessing
import os
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest

from dit_video import claims
from dit_video.claims import Claims
from dit_video.processes import this_process

ELSEWHERE = "1@another-machine"


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob(".dvgen-*.claim"))


def test_one_has_it_until_it_gives_it_up(tmp_path: Path):
    video, other = tmp_path / "a.mp4", tmp_path / "b.mp4"
    with Claims() as ours, Claims() as theirs:
        assert ours.take(video)
        (file,) = files(tmp_path)
        assert file.read_text() == this_process()
        file.write_text(f"{os.getppid()}@{this_process().partition('@')[2]}")  # as if it were another process
        assert not theirs.take(video) and theirs.take(other)
        ours.release(video)
        assert theirs.take(video)
        theirs.release(tmp_path / "never taken.mp4")
    assert not files(tmp_path)


def test_what_a_dead_process_left_is_taken_over_by_one_alone(tmp_path: Path):
    video = tmp_path / "a.mp4"
    code = f"from pathlib import Path; from dit_video.claims import Claims; Claims().take(Path({str(video)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)  # never given up
    assert len(files(tmp_path)) == 1
    with Claims() as ours:
        assert ours.take(video) and len(files(tmp_path)) == 2
    assert not files(tmp_path), "the claim that was left goes too"


def _race(video: Path, start: float, won: "multiprocessing.Queue[int]") -> None:
    mine = Claims()
    while time.time() < start:
        pass
    won.put(os.getpid() if mine.take(video) else 0)
    time.sleep(3)  # nobody has died while the others look


@pytest.mark.parametrize("abandoned", [False, True])
def test_of_many_at_once_one_wins(tmp_path: Path, abandoned: bool):
    context = multiprocessing.get_context("spawn" if os.name == "nt" else "fork")
    for number in range(3):
        video = tmp_path / f"{number}.mp4"
        if abandoned:
            dead = subprocess.Popen([sys.executable, "-c", ""])
            dead.wait()
            next(claims._claims_of(video)).write_text(f"{dead.pid}@{this_process().partition('@')[2]}")
        won: multiprocessing.Queue[int] = context.Queue()
        start = time.time() + 0.5
        racers = [context.Process(target=_race, args=(video, start, won)) for _ in range(6)]
        for racer in racers:
            racer.start()
        found = [won.get(timeout=30) for _ in racers]
        for racer in racers:
            racer.join()
        assert sum(pid > 0 for pid in found) == 1, found


def test_who_has_passed_a_claim_that_is_given_up_meanwhile_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    video = tmp_path / "a.mp4"
    first, second, *_ = islice(claims._claims_of(video), 2)
    first.write_text("dead")
    monkeypatch.setattr(claims, "runs", lambda process: process != "dead")
    one, two, three = Claims(), Claims(), Claims()
    assert one.take(video) and second.exists()
    really_open = os.open

    def open_second(path: Path, flags: int) -> int:
        if path == second and one._held:  # the other one has looked at the first, and finds this one free
            one.release(video)
        return really_open(path, flags)

    monkeypatch.setattr(os, "open", open_second)
    assert two.take(video) and not three.take(video)
    assert files(tmp_path) == [first]


def test_a_claim_from_elsewhere_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    video = tmp_path / "a.mp4"
    claim = next(claims._claims_of(video))
    claim.write_text(ELSEWHERE)
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    ours = Claims()
    assert not ours.take(video)
    clock[0] = claims.ABANDONED_AFTER - 1
    assert not ours.take(video)
    os.utime(claim, (1, 1))  # its process touches it, with whatever clock
    clock[0] = claims.ABANDONED_AFTER + 1
    assert not ours.take(video)
    clock[0] = 2 * claims.ABANDONED_AFTER + 2
    assert ours.take(video)
    ours.release(video)
    assert not files(tmp_path)


def test_claims_are_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(claims, "TOUCHED_EVERY", 0.05)
    with Claims() as ours:
        assert ours.take(tmp_path / "a.mp4")
        (file,) = files(tmp_path)
        os.utime(file, (1, 1))
        until = time.monotonic() + 30
        while file.stat().st_mtime < 2 and time.monotonic() < until:
            time.sleep(0.01)
        assert file.stat().st_mtime > 2


def test_a_claim_that_says_nothing_is_watched_too(tmp_path: Path):
    video = tmp_path / "a.mp4"
    next(claims._claims_of(video)).write_bytes(b"")  # its process was ended between two calls
    assert not Claims().take(video)


def test_no_folder_is_said(tmp_path: Path):
    with pytest.raises(OSError, match="none"):
        Claims().take(tmp_path / "none" / "a.mp4")


def test_long_names(tmp_path: Path):
    video = tmp_path / f"{'x' * 251}.mp4"
    with Claims() as ours:
        assert ours.take(video) and len(files(tmp_path)) == 1
