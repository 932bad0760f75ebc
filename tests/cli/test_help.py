"""Help as a document, and completion in shells."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from dvgen import chosen

from tests.tiny import tiny_wan21_folder

ROOT = Path(__file__).parents[2]


def test_the_document_is_what_the_commands_say(tmp_path: Path):
    line = ["utils", "docs", "--name", "dvgen", "--title", "The command line", "--output", str(tmp_path / "cli.md")]
    subprocess.run([sys.executable, "-m", "typer", "dvgen.main", *line], cwd=ROOT / "cli", check=True)
    found, wanted = ((folder / "cli.md").read_text() for folder in (tmp_path, ROOT / "docs"))
    assert found == wanted, "docs/cli.md is not what the commands say: run `make docs`"


def test_names_and_paths_of_models_are_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    tiny_wan21_folder(tmp_path / "hub" / "models--some--Wan" / "snapshots" / "abc")
    (tmp_path / "hub" / "models--some--BERT" / "snapshots" / "abc").mkdir(parents=True)
    (tmp_path / "my-models").mkdir()
    for name in ("dit.safetensors", "dit.txt", "[x].gguf"):
        (tmp_path / name).write_text("")
    assert chosen.complete("d") == ["default", "dit.safetensors"]
    assert chosen.complete("some/") == ["some/Wan"]
    assert chosen.complete("my") == ["my-models/"] and chosen.complete("[x") == ["[x].gguf"]
    assert chosen.complete("nothing") == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dvgen sam", "sample"),
        ("dvgen sample --model def", "default"),
        ("dvgen sample --keep", "--keep-latents"),
        ("dvgen train di", "dit"),
    ],
)
def test_a_shell_is_told(words: str, offered: str):
    environment = os.environ | {
        "_DVGEN_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    line = [sys.executable, "-m", "dvgen"]
    found = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert offered in found.stdout.split(), (found.stdout, found.stderr)
