"""Hashes of whole files, read once."""

import hashlib
import json
import os
from pathlib import Path

import pytest
from dvgen.main import app
from typer.testing import CliRunner

from dit_video.checkpoints import hashes
from dit_video.checkpoints.hashes import kept_hash, known_hash, together
from dit_video.models import open_checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVGEN_CACHE", str(tmp_path / "cache"))


def test_a_hash_is_kept_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.bin"
    file.write_bytes(b"one" * 1000)
    wanted = hashlib.sha256(b"one" * 1000).hexdigest()
    assert known_hash(file) is None
    assert kept_hash(file) == known_hash(file) == wanted
    monkeypatch.setattr(hashes, "content_hash", lambda file: pytest.fail("it was read again"))
    assert kept_hash(file) == wanted
    os.utime(file, ns=(1, 1))
    assert known_hash(file) is None
    monkeypatch.undo()


def test_damaged_entries_and_no_cache_are_as_good_as_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "a.bin"
    file.write_bytes(b"two")
    wanted = kept_hash(file)
    for entry in (tmp_path / "cache" / hashes.PART).iterdir():
        entry.write_text("{")
    assert known_hash(file) is None and kept_hash(file) == wanted == known_hash(file)
    monkeypatch.setenv("DVGEN_CACHE", "")
    assert known_hash(file) is None and kept_hash(file) == wanted


def test_several_files_have_one_hash_wherever_they_lie(tmp_path: Path):
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        for name in "ab":
            (tmp_path / folder / name).write_text(name)
    x, y = (together(sorted((tmp_path / folder).iterdir()), kept_hash) for folder in "xy")
    assert x == y is not None
    (tmp_path / "y" / "b").write_text("c")
    assert together(sorted((tmp_path / "y").iterdir()), kept_hash) != x
    assert together(sorted((tmp_path / "y").iterdir()), lambda file: None) is None


def test_info_shows_them_and_recipes_have_them_from_then_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    line = ["sample", "a red ball", "--size", "64x64", "--frames", "1", "--steps", "1", "-q", "-o"]

    def content(name: str) -> str:
        assert CliRunner().invoke(app, [*line, name]).exit_code == 0
        return json.loads(CliRunner().invoke(app, ["info", name, "--json"]).stdout)["recipe"]["content"]

    assert content("a.png") == ""
    found = json.loads(CliRunner().invoke(app, ["info", "default", "--hash", "--json"]).stdout)
    files = open_checkpoint("default").files
    assert found["sha256"] == {str(f): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    assert content("b.png") == found["content"][:16]
    plain = CliRunner().invoke(app, ["info", "a.png", "--hash"]).stdout
    assert f"{hashlib.sha256(Path('a.png').read_bytes()).hexdigest()}  a.png" in plain
