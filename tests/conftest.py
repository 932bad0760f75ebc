"""What holds for all tests."""

import os
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees, or adds to, what was kept of prompts before, or reads settings of whoever runs it."""
    for name in [name for name in os.environ if name.startswith("DVGEN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("DVGEN_CONFIG", "")
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DVGEN_CACHE", str(folder))
    return folder
