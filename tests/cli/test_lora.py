"""`--lora` of the commands: what is refused, before anything heavy is imported, and what is merged."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from dvgen.main import app
from typer.testing import CliRunner, Result

from dit_video.checkpoints.files import save_tensors
from dit_video.checkpoints.headers import read_header
from dit_video.train import dit
from dit_video.video.io import read_frames
from tests.cli.test_bad_input import ROOT, SCRIPT
from tests.tiny import tiny_experts_folder, tiny_ti2v_folder, tiny_wan21_folder

SAMPLE = ["sample", "a red ball"]
CONFIG = 'out = "run"\nautoencoder = "model"\n{keys}[loop]\nsteps = 1\n'

# arguments, exit code, what the message must say
CASES: dict[str, tuple[list[str], int, list[str]]] = {
    "no file": ([*SAMPLE, "--lora", "none.safetensors"], 1, ["--lora none.safetensors: there is no such file"]),
    "no file with a strength": ([*SAMPLE, "--lora", "none:0.5"], 1, ["--lora none:0.5: there is no such file"]),
    "a folder": ([*SAMPLE, "--lora", "folder"], 1, ["folder", "nearest is folder/pytorch_lora_weights.safetensors"]),
    "a folder of other things": ([*SAMPLE, "--lora", "."], 1, ["--lora .: this is a folder"]),
    "a truncated file": ([*SAMPLE, "--lora", "short.safetensors"], 1, ["short.safetensors", "is cut short"]),
    "a file of another kind": ([*SAMPLE, "--lora", "a.toml"], 1, ["a.toml", "is not a safetensors file"]),
    "other tensors": ([*SAMPLE, "--lora", "other.safetensors"], 1, ["1 tensor is no part of a LoRA", "'weight'"]),
    "strength in words": (
        [*SAMPLE, "--lora", "lora.safetensors:high"],
        2,
        ["--lora lora.safetensors, strength high: must be a number from -10 to 10"],
    ),
    "no strength": ([*SAMPLE, "--lora", "lora.safetensors:"], 2, ["must be a number from -10 to 10"]),
    "endless strength": ([*SAMPLE, "--lora", "lora.safetensors:inf"], 2, ["strength inf", "nearest is 10"]),
    "the second of two": (
        [*SAMPLE, "--lora", "lora.safetensors", "--lora", "lora.safetensors:nan"],
        2,
        ["lora.safetensors, strength nan"],
    ),
    "random weights": (
        [*SAMPLE, "--random-weights", "--lora", "lora.safetensors"],
        2,
        ["--random-weights and --lora lora.safetensors"],
    ),
    "no file for one expert": ([*SAMPLE, "--lora-high", "none"], 1, ["--lora-high none: there is no such file"]),
    "a folder for one expert": ([*SAMPLE, "--lora-low", "folder"], 1, ["--lora-low folder: this is a folder"]),
    "strength for one expert": (
        [*SAMPLE, "--lora-low", "lora.safetensors:11"],
        2,
        ["--lora-low lora.safetensors, strength 11", "nearest is 10"],
    ),
    "random weights of one expert": (
        [*SAMPLE, "--random-weights", "--lora-high", "lora.safetensors"],
        2,
        ["--random-weights and --lora-high lora.safetensors"],
    ),
    "alpha alone": ([*SAMPLE, "--lora", "alpha.safetensors"], 1, ["layer 'a' has 'diffusion_model.a.alpha', but no"]),
    "no preset": ([*SAMPLE, "--preset", "4-step"], 2, ["--preset '4-step'", "must be one of distilled"]),
    "extend": (["extend", "a.mp4", "--forward", "4", "--lora", "none"], 1, ["--lora none"]),
    "connect": (["connect", "a.mp4", "b.mp4", "--frames", "4", "--lora", "none"], 1, ["--lora none"]),
    "edit": (["edit", "a.mp4", "a ball", "--lora", "none"], 1, ["--lora none"]),
    "eval": (["eval", "--lora", "none"], 1, ["--lora none"]),
    "reconstruction": (["eval", "--reconstruct", "--lora", "lora.safetensors"], 2, ["--reconstruct and --lora"]),
    "rank of nothing": (["train", "dit", "a.toml", "--lora", "0"], 2, ["--lora 0", "from 1 to 1024; the nearest is 1"]),
    "rank in words": (["train", "dit", "a.toml", "--lora", "low"], 2, ["--lora low: must be a whole number"]),
    "nothing to fine-tune": (["train", "dit", "a.toml", "--lora", "4"], 2, ["lora is 4, but init_from is empty"]),
    "nothing to scale": (["train", "dit", "alpha.toml"], 2, ["lora_alpha is 8, but lora is 0"]),
    "alpha of nothing": (["train", "dit", "zero.toml", "--lora", "4"], 2, ["lora_alpha is 0: must be at least 0.001"]),
    "rank in the config": (["train", "dit", "rank.toml"], 2, ["lora is 2000: must be from 0 to 1024"]),
    "Muon": (["train", "dit", "muon.toml", "--lora", "4"], 2, ["muon_lr is 0.02", "leave it out"]),
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list]:
    """What every case answered, all in one fresh Python in one folder, where nothing is left behind."""
    folder = tmp_path_factory.mktemp("bad")
    save_tensors(factors(32), folder / "lora.safetensors")
    save_tensors({"weight": torch.ones(2)}, folder / "other.safetensors")
    save_tensors({"diffusion_model.a.alpha": torch.ones(())}, folder / "alpha.safetensors")
    (folder / "short.safetensors").write_bytes((folder / "lora.safetensors").read_bytes()[:-1])
    (folder / "folder").mkdir()
    (folder / "folder" / "pytorch_lora_weights.safetensors").touch()
    for name, keys in (("a", ""), ("alpha", "lora_alpha = 8\n"), ("rank", "lora = 2000\n")):
        (folder / f"{name}.toml").write_text(CONFIG.format(keys=keys))
    (folder / "zero.toml").write_text(CONFIG.format(keys='lora_alpha = 0\ninit_from = "model"\n'))
    (folder / "muon.toml").write_text(CONFIG.format(keys='init_from = "model"\n') + "[optim]\nmuon_lr = 0.02\n")
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
    assert sorted(path.name for path in folder.rglob("*")) == before, "something was left behind"
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", CASES)
def test_is_refused_in_one_sentence(name: str, results: dict[str, list]) -> None:
    _, code, words = CASES[name]
    exit_code, stdout, stderr, exception, heavy = results[name]
    assert exit_code == code, (stderr, exception)
    assert stdout == ""
    assert stderr.startswith("Error: ") and stderr.count("\n") == 1
    for word in words:
        assert word in stderr
    assert heavy == [], "refused only after something heavy was imported"


def factors(width: int, layer: str = "blocks.1.attn2.to_v") -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(size, generator=generator) for size in ((2, width), (width, 2)))
    return {f"transformer.{layer}.lora_A.weight": down, f"transformer.{layer}.lora_B.weight": up}


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def test_sample_with_a_lora(tmp_path: Path) -> None:
    """Another video; the same with a strength of 0, or where a second one takes the first back."""
    model, lora = tiny_wan21_folder(tmp_path / "model"), tmp_path / "lo:ra.safetensors"
    save_tensors(factors(32), lora)
    where = ("--model", model, "--size", "32x32", "--frames", "5", "--steps", "2", "--seed", "1")

    def frames(*loras: str) -> np.ndarray:
        options = [word for each in loras for word in ("--lora", each)]
        said = run("sample", "a red ball", *where, *options, "-o", tmp_path / "a.gif", "--overwrite")
        for each in loras:
            strength = each.removeprefix(str(lora)).removeprefix(":") or "1"
            assert f"{lora}: merged at strength {strength} into 1 layer of the transformer\n" in said.stderr
        return np.stack([*read_frames(tmp_path / "a.gif")])

    plain = frames()
    assert np.array_equal(frames(f"{lora}:0"), plain)
    back, changed = frames(str(lora), f"{lora}:-1"), frames(str(lora))
    assert np.abs(back - plain.astype(int)).mean() < 0.1 and np.abs(changed - plain.astype(int)).mean() > 2


def test_train_on_files_resume_and_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option takes the place of the config's rank; the result is used as it is."""
    monkeypatch.setattr(dit, "draw_sheet", lambda *_: None)
    model, out, clips = tiny_ti2v_folder(tmp_path / "model"), tmp_path / "run", tmp_path / "clips"
    run("scenes", clips, "--count", "8", "--size", "64x48", "--frames", "9")
    config = tmp_path / "a.toml"
    text = (
        f'out = "{out}"\nautoencoder = "{model}"\ninit_from = "{model}"\nlora = 3\nshard_clips = 4\npack_tokens = 96\n'
        f'[files]\nfolders = ["{clips}"]\nvalidation = 0.5\n[loop]\nthreads = 1\nlog_every = 1\nema = 0.5\nsteps = '
    )
    config.write_text(f"{text}2\n")
    told = run("train", "dit", config, "--lora", "2", "--dry-run").stdout
    assert "parameters   0.0 million" in told and not out.exists()
    assert run("train", "dit", config, "--lora", "2").stdout == f"{out}\n"
    config.write_text(f"{text}3\n")
    assert "size mismatch" in run("train", "dit", config, "--resume", code=1).stderr
    run("train", "dit", config, "--lora", "2", "--resume")
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3]
    assert [line["step"] for line in lines if "validation_loss" in line] == [2, 3]
    lora = out / "lora" / "pytorch_lora_weights.safetensors"
    assert {info.shape[0] for name, info in read_header(lora).items() if ".lora_A." in name} == {2}
    said = run(
        "sample", "a red ball", "--model", model, "--lora", lora, "--size", "64x48", "--frames", "5", "--steps", "1",
        "-o", tmp_path / "a.mp4",
    )  # fmt: skip
    assert f"{lora}: merged at strength 1 into 20 layers of the transformer\n" in said.stderr


def test_both_experts(tmp_path: Path) -> None:
    save_tensors(factors(32), tmp_path / "lora.safetensors")
    said = run(
        "sample", "a red ball", "--model", tiny_experts_folder(tmp_path / "model"), "--size", "32x32", "--frames", "1",
        "--steps", "2", "--lora", f"{tmp_path / 'lora.safetensors'}:0.5", "-o", tmp_path / "a.png",
    )  # fmt: skip
    assert said.stderr.count("merged at strength 0.5 into 1 layer of both transformers") == 1


def test_an_expert_each(tmp_path: Path) -> None:
    """Each is merged into its own; a file that goes into the other one too changes the video."""
    model, lora = tiny_experts_folder(tmp_path / "model"), tmp_path / "lora.safetensors"
    save_tensors(factors(32), lora)
    where = (
        "--model",
        model,
        "--size",
        "32x32",
        "--frames",
        "1",
        "--preset",
        "distilled",
        "--seed",
        "1",
        "--overwrite",
    )

    def pixels(*options: str | Path) -> tuple[np.ndarray, str]:
        said = run("sample", "a red ball", *where, *options, "-o", tmp_path / "a.png").stderr
        return np.stack([*read_frames(tmp_path / "a.png")]), said

    both, said = pixels("--lora", lora)
    assert f"{lora}: merged at strength 1 into 1 layer of both transformers\n" in said
    apart, said = pixels("--lora-low", f"{lora}:1", "--lora-high", lora)
    assert f"{lora}: merged at strength 1 into 1 layer of the high-noise expert alone\n" in said
    assert f"{lora}: merged at strength 1 into 1 layer of the low-noise expert alone\n" in said
    assert "preset distilled: --steps 4 --solver euler --sigmas release --shift 5 --guidance 1\n" in said
    assert np.array_equal(both, apart)
    one, _ = pixels("--lora-high", lora)
    assert not np.array_equal(one, both)


@pytest.mark.parametrize(("option", "expert"), [("--lora-high", "high-noise"), ("--lora-low", "low-noise")])
@pytest.mark.parametrize("command", ["sample", "edit"])
def test_an_expert_that_is_not_there(tmp_path: Path, option: str, expert: str, command: str) -> None:
    lora, clip = tmp_path / "lora.safetensors", tmp_path / "a.png"
    save_tensors(factors(256), lora)
    clip.write_bytes(b"")
    arguments = {"sample": ["a ball"], "edit": [clip, "a ball"]}[command]
    said = run(command, *arguments, option, lora, code=2).stderr
    rule = f"this model has one transformer, and the {expert} expert is one of two; use --lora.\n"
    assert said.endswith(f"Error: {option} {lora}: {rule}")


def test_a_preset_gives_way_to_what_is_given(tmp_path: Path) -> None:
    model = tiny_wan21_folder(tmp_path / "model")
    where = ("sample", "a red ball", "--model", model, "--size", "32x32", "--frames", "1", "--overwrite", "--json")

    def sampled(*options: str) -> tuple[dict, str]:
        found = run(*where, "--preset", "distilled", *options, "-o", tmp_path / "a.png")
        return json.loads(found.stdout), found.stderr

    result, said = sampled()
    assert (result["steps"], result["forwards"]) == (4, 4)
    assert "preset distilled: --steps 4 --solver lcm --sigmas release --shift 5 --guidance 1\n" in said
    result, said = sampled("--steps", "2", "--guidance", "3", "--solver", "euler")
    assert (result["steps"], result["forwards"]) == (2, 4)
    assert "preset distilled: --sigmas release --shift 5\n" in said
    given = ("--steps", "1", "--guidance", "1", "--solver", "euler", "--sigmas", "release", "--shift", "1")
    assert "preset distilled: nothing, since all of it was given\n" in sampled(*given)[1]


@pytest.mark.parametrize("command", ["sample", "edit", "eval"])
def test_of_another_model(tmp_path: Path, command: str) -> None:
    lora, clip = tmp_path / "lora.safetensors", tmp_path / "a.png"
    save_tensors(factors(5120), lora)
    clip.write_bytes(b"")
    arguments = {"sample": ["a ball"], "edit": [clip, "a ball"], "eval": []}[command]
    said = run(command, *arguments, "--lora", lora, code=1)
    rule = "it changes 'blocks.1.attn2.to_v' as a matrix of 5120x5120, and this model's is 256x256.\n"
    assert said.stderr.endswith(f"Error: {lora}: is a LoRA of another model: {rule}")
