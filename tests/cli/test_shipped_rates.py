"""The shipped model's answers to held-out prompts, as the README reports them: what fails when a change breaks it."""

import json
from pathlib import Path

import pytest
from dvgen.main import app
from typer.testing import CliRunner

# Clearly below what was measured with n = 300 (README: 1.00, 1.00, 0.76 and 0.28), so that rounding cannot fail it.
AT_LEAST = {"background": 0.95, "colour": 0.95, "motion": 0.6, "shape": 0.1}


@pytest.mark.slow
def test_the_shipped_model_still_shows_what_prompts_say(tmp_path: Path):
    asked = ["eval", "--prompts", "48", "--size", "256x144", "--frames", "24", "--json", str(tmp_path / "a.json")]
    found = CliRunner().invoke(app, [*asked, "--quiet"])
    assert found.exit_code == 0, (found.stderr, found.exception)
    rates = json.loads((tmp_path / "a.json").read_text())["rates"]
    assert {name: rates[name]["total"] for name in AT_LEAST} == dict.fromkeys(AT_LEAST, 48)
    low = {name: rates[name]["share"] for name, least in AT_LEAST.items() if rates[name]["share"] < least}
    assert not low, f"{low}, and at least {AT_LEAST} are asked for"
