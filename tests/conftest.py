"""What holds for all tests."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test sees, or adds to, what was kept of prompts before."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("DVGEN_CACHE", str(folder))
    return folder
