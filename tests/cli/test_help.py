"""Help as a document, and completion in shells."""

import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from dvgen import chosen, commands, examples, settings, shared
from dvgen.main import app, command_of, group
from typer.testing import CliRunner

from dit_video.checkpoints import hub
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
    assert chosen.complete("d") == ["default", "distilled", "dit.safetensors"]
    assert chosen.complete("some/") == ["some/Wan"]
    assert chosen.complete("my") == ["my-models/"] and chosen.complete("[x") == ["[x].gguf"]
    assert chosen.complete("nothing") == []


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("dvgen sam", "sample"),
        ("dvgen sample --model def", "default"),
        ("dvgen sample --keep", "--keep-latents"),
        ("dvgen sample a --model def", "default"),
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


def test_every_command_has_examples():
    names = {path.rpartition(".")[2] for path in settings.leaves(group())}
    assert names == examples.EXAMPLES.keys()
    assert all(2 <= len(lines) <= 4 for lines in examples.EXAMPLES.values())


@pytest.mark.parametrize("line", [line for lines in examples.EXAMPLES.values() for line in lines])
def test_examples_are_what_the_parser_takes(line: str, monkeypatch: pytest.MonkeyPatch):
    words = shlex.split(line.partition(" < ")[0])
    words = words[words.index("dvgen") + 1 :]
    depth = 2 if words[0] == "train" else 1
    command = settings.leaves(group())[".".join(words[:depth])]
    assert line in examples.EXAMPLES[command.name]
    context = command.make_context(command.name, words[depth:])
    if command.allow_extra_args:  # the options of sample
        context = command_of("sample").make_context("sample", [*context.args, "--", "a"])
    if {"steps", "count", "save_latents"} <= context.params.keys():
        shared.parsed(context.params)
    for word in words:
        if word.startswith("configs/"):
            assert (ROOT / word).is_file()
    if command.name == "download":
        hub.repository_of(context.params["name"])
    monkeypatch.setenv("COLUMNS", "40")
    assert f"   {line}\n" in CliRunner().invoke(app, [*words[:depth], "--help"]).stdout


def in_terminal(*arguments: str, **environment: str) -> str:
    """What `dvgen` writes to a terminal."""
    ours, theirs = pty.openpty()
    env = os.environ | {"TERM": "xterm-256color", "COLUMNS": "100"} | environment
    line = [sys.executable, "-m", "dvgen", *arguments]
    process = subprocess.Popen(line, stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    found = b""
    with open(ours, "rb", buffering=0) as terminal:
        while True:
            ready, _, _ = select.select([terminal], [], [], 60)
            try:
                piece = terminal.read(4096) if ready else b""
            except OSError:  # Linux says so at the end
                piece = b""
            if not piece:
                break
            found += piece
    assert process.wait(timeout=60) == 0, found.decode()
    return found.decode()


COLOUR = re.compile("\x1b\\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])(?:;[0-9;]*)?m")


@pytest.mark.parametrize(
    "words",
    [
        "--help",
        "sample --help",
        "config --help",
        "models",
        "sample a --random-weights --size 32x32 --overwrite -o a.mp4",
    ],
)
def test_no_color_is_respected(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NO_COLOR", raising=False)
    line = words.split()
    found = in_terminal(*line)
    assert "\x1b[" in found  # a terminal was seen
    assert COLOUR.search(found) or words == "models"
    assert not COLOUR.search(in_terminal(*line, NO_COLOR="1"))


def test_results_stay_on_the_screen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    line = ("sample", "a", "--random-weights", "--size", "32x32", "--frames", "5", "--seed", "1", "--count", "2")
    found = in_terminal(*line)
    for name in ("a-1.mp4", "a-2.mp4"):  # bars that are drawn again below begin below
        assert not found.partition(f"{name}\r\n")[2].lstrip("\x1b[?25l").startswith("\r\x1b[2K\x1b[1A"), found
    assert found.count("\x1b[1A") and found.partition("a-2.mp4\r\n")[2].count("\x1b[1A") == 0


SHELLS = {  # how each is started, and takes the script
    "bash": ("bash --norc -i", "source script.bash"),
    "zsh": ("zsh -f -i", "autoload -U compinit; compinit -u; source script.zsh"),
    "fish": ("fish --no-config -i", "source script.fish"),
}


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_with_the_script(shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a real shell: the script is sourced, words are begun, and the tab key is pressed."""
    if not shutil.which(shell):
        pytest.skip(f"there is no {shell} here")
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "dvgen"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m dvgen "$@"\n')
    command.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")
    shown = subprocess.run(
        ["dvgen", "--show-completion", shell],
        env=os.environ | {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    Path(f"script.{shell}").write_text(shown.stdout)
    start, source = SHELLS[shell]
    child, ours = pty.fork()  # fish wants a terminal that it controls
    if child == 0:
        os.execvp(shell, start.split())
    seen = ""

    def until(text: str, seconds: float = 60) -> None:
        nonlocal seen
        end = time.monotonic() + seconds
        while text not in seen:
            assert time.monotonic() < end, seen
            if select.select([ours], [], [], 0.2)[0]:
                seen += os.read(ours, 4096).decode(errors="replace")

    os.write(ours, f"{source}; echo rea''dy\n".encode())
    until("ready")
    for typed, completed in (("dvgen sam", "sample"), ("dvgen sample a --model defa", "default")):
        seen = ""
        os.write(ours, f"{typed}\t".encode())
        until(completed)
        os.write(ours, b"\x15")  # takes the line away
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ours)


def test_what_is_listed_is_what_commands_say_themselves():
    whole = group()
    assert [each.name for each in commands.LISTED] == list(whole.commands)
    for each in commands.LISTED:
        listed, command = each.entry(), whole.commands[each.name]
        assert command.help.split("\n\n")[0] == listed.help
        assert command.get_short_help_str() == listed.get_short_help_str()
        assert (command.name, command.rich_help_panel) == (listed.name, listed.rich_help_panel)
