"""Bad input: one sentence with the value, the rule and the nearest valid value, and the right exit code.

Nothing heavy is imported for it, and nothing is left behind.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from dvgen.main import app
from typer.testing import CliRunner

ROOT = Path(__file__).parents[2]
SAMPLE = ["sample", "a red ball"]

# arguments, exit code, what the message must say
CASES: dict[str, tuple[list[str], int, list[str]]] = {
    "size without x": ([*SAMPLE, "--size", "640"], 2, ["--size", "640", "WIDTHxHEIGHT"]),
    "size with three numbers": ([*SAMPLE, "--size", "640x360x48"], 2, ["640x360x48", "WIDTHxHEIGHT"]),
    "size too small": ([*SAMPLE, "--size", "8x360"], 2, ["8x360", "from 16 to 16384", "nearest is 16x360"]),
    "size of zero": ([*SAMPLE, "--size", "0x0"], 2, ["0x0", "nearest is 16x16"]),
    "size negative": ([*SAMPLE, "--size", "-640x360"], 2, ["-640x360", "WIDTHxHEIGHT"]),
    "size too large": ([*SAMPLE, "--size", "99999x360"], 2, ["99999x360", "from 16 to 16384", "nearest is 16384x360"]),
    "size of many digits": ([*SAMPLE, "--size", "9" * 5000 + "x360"], 2, ["--size", "WIDTHxHEIGHT"]),
    "no frames": ([*SAMPLE, "--frames", "0"], 2, ["--frames 0", "from 1", "nearest is 1"]),
    "negative frames": ([*SAMPLE, "--frames", "-3"], 2, ["--frames -3", "nearest is 1"]),
    "too many frames": ([*SAMPLE, "--frames", "1000000"], 2, ["1000000", "nearest is 100000"]),
    "frames not whole": ([*SAMPLE, "--frames", "4.5"], 2, ["--frames 4.5", "whole number", "nearest is 4"]),
    "frames and duration": (
        [*SAMPLE, "--frames", "4", "--duration", "2"],
        2,
        ["--frames 4", "--duration 2", "only one"],
    ),
    "no duration": ([*SAMPLE, "--duration", "0", "--fps", "10"], 2, ["--duration 0", "nearest is 0.1"]),
    "negative duration": ([*SAMPLE, "--duration", "-1", "--fps", "10"], 2, ["--duration -1", "nearest is 0.1"]),
    "duration not a number": ([*SAMPLE, "--duration", "nan"], 2, ["--duration nan"]),
    "huge duration": ([*SAMPLE, "--duration", "1e308", "--fps", "10"], 2, ["--duration 1e308", "nearest is 10000"]),
    "duration just too long": ([*SAMPLE, "--duration", "416.7", "--fps", "240"], 2, ["nearest is 416.666"]),
    "negative duration at the model's rate": (
        [*SAMPLE, "--duration", "-1"],
        2,
        ["--duration -1", "at 12 frames per second", "nearest is 0.084"],
    ),
    "no duration at the model's rate": ([*SAMPLE, "--duration", "0"], 2, ["--duration 0", "nearest is 0.084"]),
    "duration under a frame": (
        [*SAMPLE, "--duration", "0.001"],
        2,
        ["--duration 0.001", "1 to 100000 frames at 12 frames per second", "nearest is 0.084"],
    ),
    "duration under a frame of random weights": (
        [*SAMPLE, "--random-weights", "--duration", "0.05"],
        2,
        ["--duration 0.05", "at 8 frames per second", "nearest is 0.125"],
    ),
    "duration under a frame of any model": (
        [*SAMPLE, "--model", "foreign", "--duration", "0.001"],
        2,
        ["--duration 0.001", "hold 1 to 100000 frames; the nearest is 0.042"],
    ),
    "duration too long for the model": ([*SAMPLE, "--duration", "9000"], 2, ["nearest is 8333.33"]),
    "both sides wrong": ([*SAMPLE, "--size", "5x99999"], 2, ["5x99999", "nearest is 16x16384"]),
    "output is this folder": ([*SAMPLE, "-o", "."], 1, ["--output .", "this is a folder"]),
    "output of an unset variable": ([*SAMPLE, "-o", ""], 1, ["--output .", "this is a folder"]),
    "latents into the root": ([*SAMPLE, "--save-latents", "/"], 1, ["--save-latents /", "this is a folder"]),
    "model of an unset variable": ([*SAMPLE, "--model", ""], 1, ["model ''", "'default'"]),
    "gif too fast": ([*SAMPLE, "-o", "a.gif", "--fps", "60"], 2, ["a.gif", "at most 50", "nearest is 50"]),
    "eval of two scales": (["eval", "--guidance", "4,3"], 2, ["--guidance 4,3", "nearest is 4"]),
    "reconstruction in steps": (["eval", "--reconstruct", "--steps", "4"], 2, ["--reconstruct", "--steps"]),
    "endless duration": ([*SAMPLE, "--duration", "inf", "--fps", "10"], 2, ["--duration inf", "nearest is 10000"]),
    "fps of zero": ([*SAMPLE, "--fps", "0"], 2, ["--fps 0", "nearest is 1"]),
    "fps too high": ([*SAMPLE, "--fps", "1e9"], 2, ["--fps", "nearest is 240"]),
    "fps not a number": ([*SAMPLE, "--fps", "nan"], 2, ["--fps nan"]),
    "no steps": ([*SAMPLE, "--steps", "0"], 2, ["--steps 0", "from 1 to 1000", "nearest is 1"]),
    "too many steps": ([*SAMPLE, "--steps", "5000"], 2, ["--steps 5000", "nearest is 1000"]),
    "solver misspelt": (
        [*SAMPLE, "--solver", "unipcc"],
        2,
        ["'unipcc'", "euler, heun, dpmpp-2m, dpmpp-2m-sde, unipc, lcm", "nearest is unipc"],
    ),
    "solver by another name": ([*SAMPLE, "--solver", "dpm++2m"], 2, ["nearest is dpmpp-2m"]),
    "sigmas misspelt": ([*SAMPLE, "--sigmas", "diffuser"], 2, ["'diffuser'", "nearest is diffusers"]),
    "shift of zero": ([*SAMPLE, "--shift", "0"], 2, ["--shift 0", "nearest is 0.1"]),
    "shift not a number": ([*SAMPLE, "--shift", "nan"], 2, ["--shift nan"]),
    "guidance in words": ([*SAMPLE, "--guidance", "high"], 2, ["--guidance high", "for example 5 or 4,3"]),
    "guidance of three": ([*SAMPLE, "--guidance", "1,2,3"], 2, ["--guidance 1,2,3", "for example 5 or 4,3"]),
    "guidance with a hole": ([*SAMPLE, "--guidance", "4,"], 2, ["--guidance 4,:", "for example 5 or 4,3"]),
    "guidance negative": ([*SAMPLE, "--guidance", "-1"], 2, ["--guidance -1", "nearest is 1"]),
    "guidance infinite": ([*SAMPLE, "--guidance", "inf"], 2, ["--guidance inf", "nearest is 100"]),
    "interval of one": ([*SAMPLE, "--guidance-interval", "0.5"], 2, ["0.5", "LOW,HIGH"]),
    "interval backwards": ([*SAMPLE, "--guidance-interval", "0.9,0.1"], 2, ["0.9,0.1:", "LOW,HIGH"]),
    "interval too wide": ([*SAMPLE, "--guidance-interval", "0,2"], 2, ["--guidance-interval 2", "nearest is 1"]),
    "seed negative": ([*SAMPLE, "--seed", "-1"], 2, ["--seed -1", "nearest is 0"]),
    "seed too large": ([*SAMPLE, "--seed", str(2**63)], 2, [str(2**63), f"nearest is {2**63 - 1}"]),
    "dtype misspelt": ([*SAMPLE, "--dtype", "bf16"], 2, ["'bf16'", "nearest is bfloat16"]),
    "device misspelt": ([*SAMPLE, "--device", "gpu"], 2, ["'gpu'", "auto, cpu, cuda, mps"]),
    "no prompt": (["sample"], 2, ["PROMPT"]),
    "prompt without quotes": (
        ["sample", "a", "red", "ball"],
        2,
        ["the prompt is 3 arguments", 'in quotes: dvgen sample "a red ball"\n'],
    ),
    "prompt without quotes among options": (
        ["sample", "--negative", "red", "a", "red", "-o", "my clip.mp4", "ball", "--seed=3"],
        2,
        ["""dvgen sample --negative red "a red ball" -o 'my clip.mp4' --seed=3\n"""],
    ),
    "prompt without quotes and with signs": (["sample", "5$", "now"], 2, ["dvgen sample '5$ now'\n"]),
    "prompt without quotes behind two dashes": (["sample", "--", "-a", "b"], 2, ['dvgen sample -- "-a b"\n']),
    "unknown option": ([*SAMPLE, "--framez", "4"], 2, ["--framez"]),
    "unknown command": (["smaple", "a"], 2, ["smaple"]),
    "option without a value": ([*SAMPLE, "--seed"], 2, ["--seed"]),
    "prompt that is not text": (["sample", "a \udcff ball"], 2, ["UTF-8"]),
    "negative that is not text": ([*SAMPLE, "--negative", "a \udcff ball"], 2, ["UTF-8"]),
    "unknown kind of file": ([*SAMPLE, "-o", "a.avi"], 2, ["a.avi", ".mp4"]),
    "output without a suffix": ([*SAMPLE, "-o", "clip"], 2, ["clip", ".mp4"]),
    "several frames in a png": ([*SAMPLE, "-o", "a.png", "--frames", "2"], 2, ["a.png", "1 frame"]),
    "the model's frames in a png": ([*SAMPLE, "-o", "a.png"], 2, ["a.png", "1 frame, not"]),
    "two scales for one transformer": ([*SAMPLE, "--guidance", "4,3"], 2, ["--guidance 4,3", "nearest is 4"]),
    "output of a long name": ([*SAMPLE, "-o", "x" * 300 + ".mp4"], 1, ["longer than 255 bytes"]),
    "shape of nothing": (["train", "dit", "shape.toml"], 2, ["0x0x0", "from 16 to 16384"]),
    "autoencoder of no width": (["train", "autoencoder", "width.toml"], 2, ["dim is 0", "nearest is 1"]),
    "output in a missing folder": ([*SAMPLE, "-o", "nowhere/a.mp4"], 1, ["nowhere", "does not exist"]),
    "output that exists": ([*SAMPLE, "-o", "taken.mp4"], 1, ["taken.mp4", "--overwrite"]),
    "output that is a folder": ([*SAMPLE, "-o", "folder.mp4"], 1, ["folder.mp4", "folder"]),
    "latents of another kind": ([*SAMPLE, "--save-latents", "a.pt"], 2, ["a.pt", "nearest is a.safetensors"]),
    "latents in a missing folder": (
        [*SAMPLE, "--save-latents", "nowhere/a.safetensors"],
        1,
        ["nowhere", "does not exist"],
    ),
    "missing model": ([*SAMPLE, "--model", "no-such-model"], 1, ["no-such-model"]),
    "model that is a file": ([*SAMPLE, "--model", "taken.mp4"], 1, ["taken.mp4"]),
    "model that is an empty folder": ([*SAMPLE, "--model", "folder.mp4"], 1, ["folder.mp4", "model_index.json"]),
    "model and random weights": (
        [*SAMPLE, "--model", "folder.mp4", "--random-weights"],
        2,
        ["--random-weights", "--model"],
    ),
    "info of nothing": (["info", "no-such-file.mp4"], 1, ["no-such-file.mp4"]),
    "scenes in a missing folder": (["scenes", "nowhere/out"], 1, ["nowhere", "does not exist"]),
    "scenes over other files": (["scenes", "."], 1, ["empty folder"]),
    "no scenes": (["scenes", "out", "--count", "0"], 2, ["--count 0", "nearest is 1"]),
    "missing config": (["train", "dit", "no-such.toml"], 1, ["no-such.toml", "cannot be read"]),
    "config of another kind": (["train", "autoencoder", "bad.toml"], 2, ["stepz", "nearest"]),
    "no questions": (["eval", "--prompts", "0"], 2, ["--prompts 0", "nearest is 1"]),
    "unknown split": (["eval", "--split", "train"], 2, ["'train'", "held-out, training", "nearest is training"]),
    "no objects": (["eval", "--objects", "0"], 2, ["--objects 0", "from 1 to 2", "nearest is 1"]),
    "too many objects": (["eval", "--objects", "3"], 2, ["--objects 3", "from 1 to 2", "nearest is 2"]),
    "objects in words": (["eval", "--objects", "two"], 2, ["--objects two", "from 1 to 2"]),
    "two objects to extend": (
        ["eval", "--objects", "2", "--mode", "extend"],
        2,
        ["--objects 2 and --mode extend", "only one of the two"],
    ),
    "eval table over a file": (["eval", "--json", "taken.mp4"], 2, ["taken.mp4", ".json"]),
}

SCRIPT = """
import json, sys
from typer.testing import CliRunner
from dvgen.main import app
results = {}
for name, arguments in json.load(sys.stdin).items():
    found = CliRunner().invoke(app, arguments)
    heavy = sorted({"torch", "transformers", "rich.progress"} & set(sys.modules))
    results[name] = [found.exit_code, found.stdout, found.stderr, repr(found.exception), heavy]
json.dump(results, sys.stdout)
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What every case answered, all in one fresh Python in one folder, and what is in the folder then."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "taken.mp4").write_bytes(b"mine")
    (folder / "folder.mp4").mkdir()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    (folder / "bad.toml").write_text('out = "runs/x"\n[loop]\nstepz = 3\n')
    loop = "[loop]\nsteps = 1\n"
    (folder / "shape.toml").write_text(f'out = "x"\nautoencoder = "y"\n{loop}[[phase]]\ncommon = ["0x0x0"]\n')
    (folder / "width.toml").write_text(f'out = "x"\n{loop}[arch]\ndim = 0\n')
    before = sorted(path.name for path in folder.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        input=json.dumps({name: arguments for name, (arguments, _, _) in CASES.items()}),
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'cli'}"},
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "taken.mp4").read_bytes() == b"mine"
    assert sorted(path.name for path in folder.rglob("*")) == before, "something was left behind"
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_one_sentence(name, results):
    _, code, words = CASES[name]
    exit_code, stdout, stderr, exception, heavy = results[name]
    assert exit_code == code, (stderr, exception)
    assert stdout == ""
    assert stderr.startswith("Error: ") and stderr.count("\n") == 1
    assert "Traceback" not in stderr
    for word in words:
        assert word in stderr
    assert heavy == [], "refused only after something heavy was imported"


def test_a_prompt_that_begins_with_a_dash_is_told_its_place():
    result = CliRunner().invoke(app, ["sample", "-leading dash", "--size", "64x64"])
    assert result.exit_code == 2
    assert 'dvgen sample --size 64x64 -- "-leading dash"' in result.stderr
    other = CliRunner().invoke(app, ["sample", "a", "--sise", "64x64"])
    assert other.exit_code == 2 and "after --" not in other.stderr


def test_a_model_with_a_slip_in_its_name_has_a_nearest_one():
    result = CliRunner().invoke(app, ["sample", "a", "--model", "defalt"])
    assert result.exit_code == 1 and "the nearest is default" in result.stderr
