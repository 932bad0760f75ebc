"""The script that measures on a GPU: one part's failure loses nothing of the others, and it runs to its end."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLAIM = {"kind": "claim", "what": "a pass", "peer": "diffusers", "side": "dvgen", "theirs": [2.0, 3.0]}
CLAIM |= {"ours": [1.0, 1.0], "agreement": "equal", "wanted": 1.5}


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import gpu_all

    return gpu_all


def test_what_was_said_is_kept_when_a_part_fails_or_takes_too_long(script, tmp_path):
    results = script.Results(tmp_path / "out", {"device": "none"})
    speak = f"import json, time; print(json.dumps({CLAIM!r}), flush=True); "
    for name, then, seconds in (
        ("good", "", 60),
        ("bad", "raise ValueError('broken')", 60),
        ("slow", "time.sleep(60)", 3),
    ):
        started = time.monotonic()
        script.run(name, [sys.executable, "-c", speak + then], seconds, results, {})
        assert time.monotonic() - started < 30
    kept = json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]
    assert [part["said"] for part in kept.values()] == [[CLAIM]] * 3
    assert [part["state"] for part in kept.values()] == ["done", "failed", "stopped after 3 s"]
    assert "broken" in kept["bad"]["error"] and not kept["good"]["error"]
    text = (tmp_path / "out" / "gpu.md").read_text()
    assert text.count("a pass: diffusers 2500.0 (2000.0 to 3000.0) ms, dvgen 1000.0 ms, 2.50 (2.00 to 3.00)x") == 3


def test_all_parts_fit_into_the_ten_minutes(script):
    from gpu_parts import PARTS

    assert sum(box for _, box in PARTS.values()) + script.TESTS <= script.LIMIT < 600


def test_without_a_gpu_it_says_so():
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    command = [sys.executable, "benchmarks/gpu_all.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "finds no CUDA device" in done.stderr and "Traceback" not in done.stderr
    done = subprocess.run([*command, "--device", "cpu"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and "takes --tiny" in done.stderr


@pytest.mark.slow
def test_it_runs_to_its_end_on_tiny_shapes(script, tmp_path):
    command = [sys.executable, "benchmarks/gpu_all.py", "--device", "cpu", "--tiny", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    parts = json.loads((tmp_path / "out" / "gpu.json").read_text())["parts"]
    assert all(part["state"] == "done" and part["said"] for part in parts.values())
    claims = {each["what"] for part in parts.values() for each in part["said"] if each["kind"] == "claim"}
    assert {"a pass of the transformer", "a pass with compiled blocks", "decoding", "linear layers in fp8"} <= claims
    assert {"decoding, both compiled", "a pass with streamed blocks", "decoding into a file"} <= claims
