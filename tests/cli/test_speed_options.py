"""--compile and --cuda-graphs: what they are refused for, and that they reach the transformer."""

from pathlib import Path
from typing import Any

import pytest
import torch
from dvgen.main import app
from dvgen.recipe import recipe_in
from typer.testing import CliRunner

from dit_video.nn import regional

LINE = ("sample", "a", "--random-weights", "--size", "32x32", "--frames", "1", "--steps", "2", "--seed", "1")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


def run(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done


@pytest.mark.skipif(torch.cuda.is_available(), reason="they are not refused on a GPU")
def test_graphs_are_refused_without_a_gpu():
    foreseen = run(*LINE, "-o", "a.png", "--cuda-graphs", "--dry-run", code=1).stdout
    assert "--cuda-graphs: there are none on cpu; the nearest is to leave it out." in foreseen
    said = run(*LINE, "-o", "a.png", "--cuda-graphs", code=2).stderr
    assert "there are none on cpu" in said and not list(Path().iterdir())


def test_compiling_is_refused_without_a_compiler(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(regional, "which", lambda _: None)
    assert "needs a C++ compiler" in run(*LINE, "-o", "a.png", "--device", "cpu", "--compile", code=2).stderr
    assert not list(Path().iterdir())


def test_blocks_are_compiled_and_the_recipe_says_so(monkeypatch: pytest.MonkeyPatch):
    compiled = []

    def backend(module: Any, _: Any) -> Any:
        compiled.append(module)
        return module

    real = regional.compile_blocks
    monkeypatch.setattr("dit_video.models.wan.dit.compile_blocks", lambda blocks, backend: real(blocks, backend=own))
    own = backend
    torch._dynamo.reset()
    run(*LINE, "-o", "a.png", "--device", "cpu", "--compile")
    assert len(compiled) == 1
    assert "--compile" in recipe_in(Path("a.png")).line
    run(*LINE, "-o", "b.png", "--device", "cpu")
    assert len(compiled) == 1 and "--compile" not in recipe_in(Path("b.png")).line
