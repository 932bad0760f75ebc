"""`--dry-run` and `dvgen calibrate`: nothing is made, no torch is imported, and a run does what was said."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import imageio.v3 as iio
import numpy as np
import pytest
import torch
from dvgen import console
from dvgen.main import app
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from dit_video.models.wan import inferred
from dit_video.video.io import write_video
from tests.tiny import tiny_experts_folder, tiny_i2v_folder, tiny_wan21_folder
from tests.unit.test_stored import write_gguf

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "numpy", "PIL", "transformers", "tokenizers", "imageio", "rich.console", "safetensors")
QUICK = ["--random-weights", "--steps", "2", "--seed", "3"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    write_video("a.mp4", rng.integers(0, 256, (9, 40, 50, 3), dtype=np.uint8), fps=10)
    iio.imwrite("p.png", rng.integers(0, 256, (36, 60, 3), dtype=np.uint8))
    return tmp_path


def run(*arguments: str, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(arguments))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def dry(*arguments: str, code: int = 0) -> dict[str, Any]:
    """What a dry run says; it makes nothing."""
    before = sorted(Path().rglob("*"))
    found = run(*arguments, "--dry-run", "--json", code=code)
    assert found.stderr == "" and sorted(Path().rglob("*")) == before
    about = json.loads(found.stdout)
    assert about["refused"] == bool(about["problems"]) == (code == 1)
    return about


def imported(*arguments: str) -> tuple[dict[str, Any], set[str]]:
    """What a dry run in a process of its own says, and the heavy modules that it has imported."""
    code = (
        "import sys\n"
        "from dit_video.models.wan import inferred\n"
        f"inferred.HEAD_DIM = {inferred.HEAD_DIM}\n"
        "from dvgen.main import run\n"
        "try: run()\n"
        f"finally: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "cli"), *sys.path])
    line = [sys.executable, "-c", code, *arguments, "--dry-run", "--json"]
    done = subprocess.run(line, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), set(eval(done.stderr.strip().splitlines()[-1]))


def test_the_shipped_model_is_described_without_anything_heavy():
    about, heavy = imported("sample", "a red ball on a zebra", "-o", "v.mp4")
    assert not heavy
    assert about["tokens"] == np.prod(about["grid"]) and about["seconds"]["basis"] == "guess"
    assert about["warnings"] == ["this model never learnt the word 'zebra'."]
    assert about["loads"] == ["text_encoder", "transformer", "vae"] and about["prompts_to_read"] == 2


def test_no_format_but_pickles_needs_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(inferred, "HEAD_DIM", 16)  # of tiny models
    source = tiny_wan21_folder(tmp_path / "wan")
    for layout in ("original", "comfyui"):
        run("convert", str(source), str(tmp_path / layout), "--layout", layout, "-q")
    comfy = tmp_path / "comfyui"
    (file,) = (comfy / "diffusion_models").iterdir()
    tensors = load_file(file)
    kinds = {name: gguf.GGMLQuantizationType.BF16 for name, value in tensors.items() if value.ndim > 1}
    write_gguf(comfy / "diffusion_models" / "small.gguf", {n: t.float() for n, t in tensors.items()}, kinds)
    size = ["--size", "32x32", "--frames", "5"]
    said = []
    for model in (source, file, comfy / "diffusion_models" / "small.gguf", tmp_path / "original"):
        about, heavy = imported("sample", "a cat", "--model", str(model), *size)
        assert heavy <= {"numpy"}, f"{model}: {heavy}"
        said.append({name: about[name] for name in ("grid", "tokens")})
    assert said == said[:1] * 4
    (vae,) = (comfy / "vae").glob("*.safetensors")
    torch.save(load_file(vae), tmp_path / "vae.pth")
    about, heavy = imported("sample", "a cat", "--model", str(file), "--vae", str(tmp_path / "vae.pth"), *size)
    assert "torch" in heavy and any("torch had to open a file" in note for note in about["notes"])
    assert {name: about[name] for name in ("grid", "tokens")} == said[0]


def test_pictures_and_clips_need_no_torch():
    for line in (["sample", "x", "--image", "p.png"], ["extend", "a.mp4", "--forward", "4"], ["edit", "a.mp4", "x"]):
        _, heavy = imported(*line, "--random-weights")
        assert heavy.isdisjoint({"torch", "transformers", "tokenizers", "safetensors"})


SAME = ("width", "height", "frames", "fps", "steps", "forwards", "path", "seed")


@pytest.mark.parametrize(
    "line",
    [
        ["sample", "a cat", "--size", "50x40", "--frames", "6", "--solver", "heun", "--steps", "3"],
        ["sample", "a cat", "--size", "50x40", "--guidance-interval", "0.2,0.7", "--steps", "6", "--shift", "2"],
        ["sample", "a cat", "--guidance", "1", "--duration", "0.5", "--fps", "10", "-o", "v.gif"],
        ["sample", "a cat", "--frames", "1"],
        ["sample", "a cat", "--image", "p.png", "--image", "p.png@last", "--frames", "9"],
        ["extend", "a.mp4", "x", "--forward", "13"],
        ["extend", "a.mp4", "x", "--forward", "5", "--backward", "9", "-o", "v.webm"],
        ["extend", "a.mp4", "x", "--loop", "6"],
        ["connect", "a.mp4", "p.png", "x", "--frames", "7", "--fit", "cover"],
        ["edit", "a.mp4", "x", "--strength", "0.5", "--solver", "dpmpp-2m"],
        ["edit", "a.mp4", "x", "--strength", "0"],
    ],
)
def test_what_is_said_is_what_is_done(line: list[str]):
    said = dry(*line, *QUICK[:1], *(QUICK[1:] if "--steps" not in line else QUICK[3:]))
    done = json.loads(run(*line, *QUICK[:1], *(QUICK[1:] if "--steps" not in line else QUICK[3:]), "--json").stdout)
    assert {name: said[name] for name in SAME} == {name: done[name] for name in SAME}
    for name in {"grid", "tokens", "windows"} & done.keys():
        assert said[name] == done[name]
    activities = {"load", "text", "encode", "denoise", "decode"}
    assert {name for name, seconds in done["seconds"].items() if seconds} == activities & said["seconds"].keys()
    assert said["seconds"]["total"][0] <= said["seconds"]["total"][1] and said["memory"]["available"] > 0
    if "-o" not in line:
        assert dry(*line, *QUICK[:1], *QUICK[3:], "-o", done["path"], code=1)["problems"][0].endswith("--overwrite.")


def test_experts_and_pictures_beside_the_noise(tmp_path: Path):
    size = ["--size", "32x32", "--frames", "5", "--steps", "6", "--seed", "1"]
    for build, more in ((tiny_experts_folder, []), (tiny_i2v_folder, ["--image", "p.png"])):
        model = ["--model", str(build(tmp_path / build.__name__)), *more]
        said = dry("sample", "a cat", *size, *model)
        done = json.loads(run("sample", "a cat", *size, *model, "--json").stdout)
        assert (said["forwards"], said["tokens"]) == (done["forwards"], done["tokens"])
        assert ("transformer_2" in said["loads"]) == (not more) and ("image_encoder" in said["loads"]) == bool(more)
        assert dry("sample", "a cat", *size, *model, "-o", "b.mp4")["prompts_to_read"] == 0, "read by now"
        if more:
            assert "animates an image" in dry("sample", "a cat", *size, *model[:2], code=1)["problems"][0]


def test_every_problem_is_listed(monkeypatch: pytest.MonkeyPatch):
    (Path() / "v.safetensors").touch()
    line = ["sample", "x", "--random-weights", "-o", "a.mp4", "--keep-latents", "--size", "16000x16000"]
    Path("a.safetensors").touch()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    problems = dry(*line, "--memory", "1GiB", "--device", "mps", code=1)["problems"]
    for words in ("a.mp4: the file exists", "--device mps", "of memory, and there are", "1.0 kB are free"):
        assert sum(words in each for each in problems) == 1, (words, problems)
    assert dry("sample", "x", "--random-weights", "-o", "no/v.mp4", code=1)["problems"] == [
        "--output no/v.mp4: the folder no does not exist; create it first.",
        *dry("sample", "x", "--random-weights", code=1)["problems"],
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["sample", "x", "--image", "no.png"], "no.png: there is no such file"),
        (["sample", "x", "--steps", "0"], "--steps 0"),
        (["sample", "x", "--model", "nowhere"], "nowhere: there is no such file or folder"),
        (["extend", "no.mp4", "--forward", "3"], "no.mp4: there is no such file"),
        (["edit", "p.png", "x", "--lora", "no.safetensors"], "no.safetensors: there is no such file"),
    ],
)
def test_what_ends_it_early_is_a_problem_too(line: list[str], words: str):
    (problem,) = dry(*line, code=1)["problems"]
    assert words in problem
    found = run(*line, "--dry-run", code=1).stdout
    assert f"problem   {problem}\n" in found and found.endswith("it would be refused\n")


def test_lines_and_a_table_say_the_same(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    plain = run("sample", "x", *QUICK, "--dry-run").stdout
    assert plain.startswith("model     random weights") and plain.endswith("so        it would be made\n")
    assert "in all " in plain and "`dvgen calibrate` does" in plain and max(map(len, plain.splitlines())) < 200
    monkeypatch.setattr(console, "is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "60")
    table = run("sample", "x", *QUICK, "--dry-run").stdout
    assert max(map(len, table.splitlines())) <= 60

    def words(text: str) -> list[str]:
        return sorted(word for word in text.split() if word.isalpha())

    assert words(table) == words(plain)


def test_what_was_measured_is_known():
    assert dry("sample", "x", *QUICK)["seconds"]["basis"] == "guess"
    found = json.loads(run("calibrate", "--random-weights", "--json", "-q").stdout)
    low, high = found["seconds"]
    assert 0 < low < high and found["place"].startswith("cpu/")
    said = dry("sample", "x", *QUICK)["seconds"]
    for activity in ("denoise", "decode"):
        low, high = said[activity]
        assert high < 16 * (low + 0.005), "narrower than a guess; what is told is rounded to a hundredth"
    file = Path(os.environ["DVGEN_CACHE"]) / "timing.json"
    before = json.loads(file.read_text())["samples"]
    run("sample", "x", *QUICK)
    new = json.loads(file.read_text())["samples"][len(before) :]
    assert {"denoise", "decode", "load vae"} <= {each["stage"] for each in new}, "every run is measured"
    line = ["--model", "nowhere"]
    assert "nowhere" in run("calibrate", *line, code=1).stderr


def test_a_drawn_seed_is_not_told_and_several_videos_are_counted():
    said = dry("sample", "a red ball", "--random-weights")
    assert said["seed"] is None and said["path"] == "a-red-ball-SEED.mp4"
    assert dry("sample", "x", "--random-weights", "-o", "x-1.mp4")["path"] == "x-1.mp4"
    assert dry("sample", "x", "--random-weights", "-o", "x.mp4", "--count", "2")["path"] == "x-SEED.mp4"
    assert dry("sample", "x", *QUICK)["path"] == "x-3.mp4"
    one, three = (dry("sample", "x", *QUICK, "--count", count) for count in ("1", "3"))
    assert three["forwards"] == 3 * one["forwards"] and three["videos"] == 3
    assert three["disk"]["needed"] > one["disk"]["needed"]


def test_a_batch_is_foreseen_job_by_job(tmp_path: Path):
    jobs = [{"prompt": "a cat"}, {"prompt": "a dog", "frames": 5}, {"prompt": "x", "command": "edit", "clip": "a.mp4"}]
    Path("jobs.jsonl").write_text("\n".join(map(json.dumps, jobs)))
    (tmp_path / "out").mkdir()
    line = ["batch", "jobs.jsonl", "--out", "out", "--random-weights", "--steps", "2"]

    def lines(*more: str, code: int = 0) -> list[dict[str, Any]]:
        return [json.loads(text) for text in run(*line, *more, code=code).stdout.splitlines()]

    *said, total = lines("--dry-run")
    assert [each["status"] for each in said] == ["new"] * 3 and not list((tmp_path / "out").iterdir())
    assert total["total"]["forwards"] == sum(each["forwards"] for each in said)
    made = {each["index"]: each for each in lines("-q")}
    for each in said:
        done = made[each["index"]]
        assert all(each[name] == done[name] for name in ("path", "width", "height", "frames", "tokens"))
    *said, total = lines("--dry-run")
    assert [each["status"] for each in said] == ["skipped"] * 3 and total["total"]["seconds"] == [0, 0]
    Path("jobs.jsonl").write_text('{"prompt": "a cat", "steps": 3}\n{"prompt": "a bird", "frames": 0}')
    *said, total = lines("--dry-run", code=1)
    problems = {each["index"]: each["problems"][0] for each in said}
    assert "exists" in problems[1] and "--frames 0" in problems[2] and total["total"]["refused"] == 2
