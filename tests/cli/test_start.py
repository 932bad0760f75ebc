"""What is imported before a command does what it was called for; how long that takes: benchmarks/bench_start.py."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "numpy", "transformers", "tokenizers", "PIL", "imageio", "pydantic"}
DRAWING = {"rich.markdown", "rich.traceback", "markdown_it", "pygments"}  # what help is drawn with in other programs


def imported(*words: object, cache: Path | None = None) -> set[str]:
    """The modules that are there when a command ends."""
    code = (
        "import json, sys\nfrom dvgen.main import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as ended: assert not ended.code\n"
        "print(json.dumps([*sys.modules]))"
    )
    line = [sys.executable, "-c", code, *map(str, words)]
    found = subprocess.run(line, capture_output=True, text=True, env=os.environ | {"DVGEN_CACHE": str(cache or "")})
    assert found.returncode == 0, found.stderr
    return set(json.loads(found.stdout.splitlines()[-1]))


@pytest.mark.parametrize("words", [["--help"], ["--version"]])
def test_no_command_is_imported_to_list_them(words: list[str]):
    found = imported(*words)
    assert not found & (HEAVY | DRAWING)
    ours = {name for name in found if name.startswith(("dvgen.", "dit_video."))}
    command = {"dvgen.main", "dvgen.console", "dvgen.commands", "dvgen.pages", "dvgen.process"}
    assert ours == command | {"dit_video.errors", "dit_video.allocator"}
    assert ("rich" in found) == (words == ["--help"])


@pytest.mark.parametrize("name", ["edit", "train"])
def test_the_help_of_one_command_is_imported_alone(name: str):
    found = imported(name, "--help")
    assert not found & (HEAVY - {"pydantic"} | DRAWING)
    others = {f"dvgen.{other}" for other in ("sample", "batch", "edit", "train")} - {f"dvgen.{name}"}
    assert {f"dvgen.{name}", "rich.table"} <= found and not others & found


def test_what_a_prompt_needs_is_imported_and_nothing_else(tmp_path: Path):
    line = ["sample", "a red ball", "--size", "32x32", "--frames", 1, "--steps", 1, "--overwrite", "-q"]
    first, second = (imported(*line, "-o", tmp_path / "a.png", cache=tmp_path / "cache") for _ in range(2))
    assert {"torch", "dit_video.text.encoders", "tokenizers", "ftfy"} <= first
    assert not {"transformers", "torch._dynamo", "sympy", "diffusers"} & first
    assert not {"dit_video.text.encoders", "tokenizers", "ftfy"} & second and second < first
