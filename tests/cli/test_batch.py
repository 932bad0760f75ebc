"""`dvgen batch`: every job as if it were alone, none twice, and what fails is said."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dvgen import jobs, tasks
from dvgen.main import app
from dvgen.recipe import read_recipe, recipe_in
from safetensors.torch import load_file
from typer.testing import CliRunner, Result

from dit_video import denoise, stages
from dit_video.errors import UsageError
from dit_video.video.io import probe, read_frames, write_video

TINY = ("--random-weights", "--size", "32x32", "--frames", "5", "--steps", "2")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: str, code: int = 0, stdin: str | None = None) -> Result:
    found = CliRunner().invoke(app, list(arguments), input=stdin)
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    assert "Traceback" not in found.stderr
    return found


def made(*arguments: str, code: int = 0, stdin: str | None = None) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run("batch", *arguments, code=code, stdin=stdin).stdout.splitlines()]


def write(name: str, *lines: Any) -> str:
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    Path(name).write_text(text + "\n", encoding="utf-8")
    return name


def frames(path: str) -> np.ndarray:
    return np.stack(list(read_frames(path))).astype(int)


MIXED: list[dict[str, Any]] = [
    {"prompt": "a cat", "seed": 3},
    {"prompt": "a dog", "size": "64x48", "frames": 9, "keep_latents": True},
    {"prompt": "a still", "frames": 1, "size": "48x48"},
    {"prompt": "a bird", "guidance": 2.5, "steps": 3, "fps": 12},
    {"prompt": "a fish", "size": "16x80", "negative": "a cat", "--output": "fish.webm"},
    {"prompt": "from a picture", "image": ["3-a-still-3.png"], "size": "32x32"},
]


def test_each_job_is_as_if_it_were_alone():
    run("sample", "a still", *TINY[:1], "--size", "48x48", "--frames", "1", "--seed", "9", "-o", "3-a-still-3.png")
    Path("out").mkdir()
    line = (*TINY, "--dtype", "float32")  # in bfloat16 its last digits depend on its company
    found = made(write("jobs.jsonl", *MIXED), "--out", "out", *line, "--keep-latents")
    assert [each["status"] for each in found] == ["done"] * 6 and sorted(each["index"] for each in found) == [
        *range(1, 7)
    ]
    by_index = {each["index"]: each for each in found}
    names = [
        "1-a-cat-3.mp4",
        "2-a-dog-2.mp4",
        "3-a-still-3.png",
        "4-a-bird-4.mp4",
        "fish.webm",
        "6-from-a-picture-6.mp4",
    ]
    assert [Path(by_index[index]["path"]).name for index in range(1, 7)] == names
    for index, job in enumerate(MIXED, start=1):
        given = {name.strip("-"): value for name, value in job.items() if name not in ("prompt", "--output")}
        given = {"seed": index, **given, "keep_latents": True}
        own = [f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}") for name, value in given.items()]
        own = [word.replace("['", "").replace("']", "") for word in own]
        suffix = Path(names[index - 1]).suffix
        run("sample", job["prompt"], *line, *own, "-o", f"alone-{index}{suffix}")
        ours, alone = Path("out") / names[index - 1], Path(f"alone-{index}{suffix}")
        latents = [load_file(path.with_suffix(".safetensors"))["latents"] for path in (ours, alone)]
        assert torch.allclose(*latents, rtol=0, atol=1e-5)
        apart = np.abs(frames(str(ours)) - frames(str(alone)))
        assert apart.max() <= 1 if suffix == ".png" else apart.mean() < 2, "coders make more of a last digit"
        assert probe(ours).fps == probe(alone).fps


def test_small_jobs_share_passes_and_each_text_is_read_once(monkeypatch: pytest.MonkeyPatch):
    packs: list[int] = []
    real = denoise.sample_latents
    monkeypatch.setattr(
        denoise,
        "sample_latents",
        lambda stages, clips, settings, **more: packs.append(len(clips)) or real(stages, clips, settings, **more),
    )
    loads: list[str] = []
    stage = stages.Stages._stage

    def loading(self: Any, name: str, load: Any) -> Any:
        loads.extend([name] * (name not in self._loaded))
        return stage(self, name, load)

    monkeypatch.setattr(stages.Stages, "_stage", loading)
    made(write("jobs.txt", *["a", "b", "a", "c"]), *TINY)
    assert packs == [4] and sorted(loads) == ["autoencoder", "text encoder", "transformer"]
    for most, sizes in (("3", [3, 1]), ("1", [1, 1, 1, 1])):
        packs.clear()
        made("jobs.txt", *TINY, "--overwrite", "--shift", most, "--pack", most)
        assert packs == sizes
    assert "--pack 0: must be a whole number" in run("batch", "jobs.txt", *TINY, "--pack", "0", code=2).stderr


def test_what_is_done_is_not_done_again_and_what_differs_is_said():
    jobs_file = write("jobs.txt", "a cat", "a dog")
    first = made(jobs_file, *TINY)
    stamps = [Path(each["path"]).stat().st_mtime_ns for each in first]
    assert [each["status"] for each in made(jobs_file, *TINY)] == ["skipped", "skipped"]
    assert [each["status"] for each in made(write("jobs.txt", "a cat", "a dog", "a bird"), *TINY)] == [
        *("skipped", "skipped", "done"),
    ]
    found = made(jobs_file, *TINY, "--shift", "2", "--keep-going", code=3)
    assert [each["status"] for each in found] == ["failed"] * 3 and "the file exists" in found[0]["error"]
    assert [Path(each["path"]).stat().st_mtime_ns for each in first] == stamps
    assert [each["status"] for each in made(jobs_file, *TINY, "--shift", "2", "--overwrite")] == ["done"] * 3


def test_parts_of_a_batch_are_all_of_it():
    jobs_file = write("jobs.txt", *"abcde")
    found = [made(jobs_file, *TINY, "--shard", f"{part}/3") for part in (1, 2, 3)]
    assert [[each["index"] for each in part] for part in found] == [[1, 4], [2, 5], [3]]
    assert all(each["status"] == "skipped" for each in made(jobs_file, *TINY))
    for text in ("4/3", "0/3", "x/3", "3", "1/0"):
        assert "--shard" in run("batch", jobs_file, *TINY, "--shard", text, code=2).stderr


BAD = [{"prompt": "a"}, {"prompt": "b", "bogus": 1}, {"prompt": "c", "size": "big"}, {"prompt": "d", "steps": 1}]


def test_a_job_that_cannot_be_is_said_before_anything_begins():
    said = run("batch", write("jobs.jsonl", *BAD), *TINY, code=2).stderr
    assert "jobs.jsonl, line 2: No such option: --bogus" in said and [path.name for path in Path().iterdir()] == [
        "jobs.jsonl"
    ]


def test_with_keep_going_the_others_are_made():
    found = made(write("jobs.jsonl", *BAD), *TINY, "--keep-going", code=3)
    assert {each["index"]: each["status"] for each in found} == {1: "done", 2: "failed", 3: "failed", 4: "done"}
    assert "--size 'big': must be WIDTHxHEIGHT" in next(each["error"] for each in found if each["index"] == 3)


def test_one_job_of_a_pack_that_fails_does_not_take_the_others_with_it(monkeypatch: pytest.MonkeyPatch):
    from dit_video.errors import DvgenError

    real = denoise.sample_latents

    def failing(stages: Any, clips: Any, settings: Any, **more: Any) -> Any:
        if any(clip.prompt == "bad" for clip in clips):
            raise DvgenError("the weights are damaged.")
        return real(stages, clips, settings, **more)

    monkeypatch.setattr(denoise, "sample_latents", failing)
    found = made(write("jobs.txt", "a", "bad", "c"), *TINY, "--keep-going", code=3)
    assert {each["prompt"]: each["status"] for each in found} == {"a": "done", "bad": "failed", "c": "done"}
    Path("elsewhere").mkdir()
    assert [each["status"] for each in made("jobs.txt", "--out", "elsewhere", *TINY, code=3)][-1] == "failed"


def test_tables_and_standard_input():
    Path("jobs.csv").write_text('prompt,size,frames\n"a ""red"" cat, big",16x16,1\nb,,\n', encoding="utf-8-sig")
    found = made("jobs.csv", *TINY, "-q")
    assert [(each["prompt"], each["width"], each["frames"]) for each in found] == [
        ('a "red" cat, big', 16, 1),
        ("b", 32, 5),
    ]
    assert [each["prompt"] for each in made("-", *TINY, stdin="x\n\ny\n")] == ["x", "y"]
    (only,) = made("-", *TINY, stdin='{"prompt": "z", "frames": 1}\n')
    assert only["path"] == "1-z-1.png"


def test_standard_input_in_other_encodings(monkeypatch: pytest.MonkeyPatch):
    def given(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    given(b"\xef\xbb\xbf" + b'{"prompt": "a cat"}\n')  # as some editors begin text
    assert [job.prompt for job in jobs.read_jobs("-")] == ["a cat"]
    given(b"\xef\xbb\xbfa dog\n")
    assert [job.prompt for job in jobs.read_jobs("-")] == ["a dog"]
    given(b"\xff\n")
    with pytest.raises(UsageError, match="standard input is not text in UTF-8; save it as UTF-8"):
        jobs.read_jobs("-")


def test_prompts_of_all_kinds():
    prompts = [
        "'quotes\" & $HOME `x`",
        "two\nlines",
        "🎬 emoji",
        "word " * 4000,
        "שלום עולם",
        "--size 9x9",
        "",
        "../up/x",
    ]
    found = made(write("jobs.jsonl", *[{"prompt": prompt} for prompt in prompts]), *TINY[:-2], "--steps", "1")
    assert [each["prompt"] for each in found] == prompts and all(each["status"] == "done" for each in found)
    assert found[3]["prompt_cut"] and all(Path(each["path"]).parent == Path() for each in found)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("none.txt",), "none.txt: cannot be read (No such file"),
        (("jobs.yaml",), "jobs.yaml: a file of jobs ends in .txt, .jsonl, .csv; the nearest is jobs.txt"),
        (("empty.txt",), "empty.txt: holds no jobs"),
        (("latin.txt",), "latin.txt: is not text in UTF-8"),
        (("broken.jsonl",), "broken.jsonl, line 2: is not JSON"),
        (("list.jsonl",), "list.jsonl, line 1: must be a JSON object"),
        (("nameless.csv",), "nameless.csv, line 2: has no prompt"),
        (("wide.csv",), "wide.csv, line 2: has more cells than the first line names"),
        (("null.jsonl",), "null.jsonl, line 1: size is null, which no option takes"),
        (("extend.jsonl",), "extend.jsonl, line 1: has no clip; every job of this command needs one"),
        (("decode.jsonl",), "command 'decode': must be one of sample, extend, connect, edit; the nearest is"),
        (("gone.jsonl",), "gone.jsonl, line 1: CLIP gone.mp4: there is no such file"),
        (("flag.jsonl",), "flag.jsonl, line 1: strict: must be true or false, not 'maybe'"),
        (("listed.jsonl",), "listed.jsonl, line 1: size: must be text or a number, not a list"),
        (("number.jsonl",), "number.jsonl, line 1: prompt is 5, and must be text"),
        (("twice.jsonl",), "twice.jsonl, line 2: --output x.mp4: job 1 has the same"),
        (("jobs.txt", "--output", "x.mp4"), "--output: names one file, and there may be many jobs"),
        (("jobs.txt", "--strength", "0.5"), "--strength: sample know no such option"),
        (("jobs.txt", "--json"), "--json: is not for jobs"),
        (("jobs.txt", "--bogus"), "No such option: --bogus"),
        (("jobs.txt", "more.txt"), "more.txt: is one argument too many"),
        (("quiet.jsonl",), "quiet.jsonl, line 1: --quiet: is not for jobs"),
        (("jobs.txt", "--out", "nowhere"), "--out nowhere: there is no such folder"),
        (("jobs.txt", "--name", "{seed}"), "--name {seed}: needs {index}"),
        (("jobs.txt", "--name", "{index}-{x}"), "knows no {x}"),
        (("jobs.txt", "--name", "{index"), "is no template"),
        (("jobs.txt", "--name", "a/{index}"), "must be a name without folders"),
        (("jobs.txt", "--name", "{index:s}"), "--name {index:s}: cannot be filled in (Unknown format code"),
        (("jobs.txt", "--name", "{index!x}"), "--name {index!x}: cannot be filled in"),
        (("jobs.txt", "--steps", "0"), "jobs.txt, line 1: --steps 0: must be a whole number"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], words: str):
    for name, text in {
        "jobs.txt": "a",
        "empty.txt": "\n \n",
        "broken.jsonl": '{"prompt": "a"}\n{',
        "list.jsonl": "[1]",
        "nameless.csv": "size\n16x16\n",
        "wide.csv": "prompt\na,b\n",
        "null.jsonl": '{"prompt": "a", "size": null}',
        "extend.jsonl": '{"prompt": "a", "command": "extend", "forward": 4}',
        "decode.jsonl": '{"prompt": "a", "command": "decode"}',
        "gone.jsonl": '{"clip": "gone.mp4", "command": "extend", "forward": 4}',
        "flag.jsonl": '{"prompt": "a", "strict": "maybe"}',
        "listed.jsonl": '{"prompt": "a", "size": ["a"]}',
        "number.jsonl": '{"prompt": 5}',
        "twice.jsonl": '{"prompt": "a", "output": "x.mp4"}\n{"prompt": "b", "output": "x.mp4"}',
        "quiet.jsonl": '{"prompt": "a", "quiet": true}',
    }.items():
        Path(name).write_text(text)
    Path("latin.txt").write_bytes("é".encode("latin-1"))
    before = sorted(Path().iterdir())
    said = " ".join(run("batch", *arguments, *TINY[:1], code=2).stderr.split())
    assert words in said and said.count("Error: ") == 1, said
    assert sorted(Path().iterdir()) == before


LONG = {
    "txt": lambda number: f"a red ball number {number}",
    "jsonl": lambda number: json.dumps(
        {"prompt": f"ball {number}", "output": f"{number}.mp4", "steps": number % 50 + 1}
    ),
    "csv": lambda number: f"ball {number},{number}.mp4,{number % 50 + 1}" if number else "prompt,output,steps",
}


@pytest.mark.parametrize("kind", LONG)
def test_long_files_are_read_at_once(kind: str):
    Path(f"jobs.{kind}").write_text("".join(f"{LONG[kind](number)}\n" for number in range(10_000 + (kind == "csv"))))
    began = time.process_time()
    found = list(tasks.checked(jobs.read_jobs(f"jobs.{kind}"), ["--random-weights"], Path()))
    taken = time.process_time() - began
    assert len(found) == 10_000 and taken < 2
    last = found[-1]
    assert isinstance(last, tasks.Task) and last.request.sampling.seed == 10_000


def test_lines_that_are_no_objects_of_ours():
    with pytest.raises(UsageError, match="holds no jobs"):
        jobs.read_jobs(write("jobs.csv", "prompt,size"))


def clip(name: str, count: int, seed: int = 0) -> str:
    frames = np.random.default_rng(seed).integers(0, 256, (count, 32, 48, 3), dtype=np.uint8)
    write_video(Path(name), frames, fps=10, overwrite=True)
    return name


def test_jobs_of_every_command():
    clip("a.mp4", 9), clip("b.mp4", 6, seed=1)
    Path("out").mkdir()
    every: list[dict[str, Any]] = [
        {"prompt": "a cat", "seed": 3, "size": "32x32", "frames": 5},
        {"command": "extend", "clip": "a.mp4", "prompt": "on", "forward": 7},
        {"command": "edit", "clip": "b.mp4", "prompt": "a dog", "strength": 0.7, "keep-latents": True},
        {"command": "connect", "a": "a.mp4", "b": "b.mp4", "frames": 5, "output": "joined.webm"},
        {"command": "extend", "clip": "a.mp4", "loop": 4, "seed": 9},
    ]
    line = ("--random-weights", "--steps", "3", "--dtype", "float32")
    found = {each["index"]: each for each in made(write("jobs.jsonl", *every), "--out", "out", *line)}
    names = ["1-a-cat-3.mp4", "2-a-extended-2.mp4", "3-b-a-dog-3.mp4", "joined.webm", "5-a-loop-9.mp4"]
    assert [Path(found[index]["path"]).name for index in range(1, 6)] == names
    assert [found[index]["command"] for index in range(1, 6)] == [each.get("command", "sample") for each in every]
    assert [found[index]["frames"] for index in range(1, 6)] == [5, 16, 6, 20, 13] and found[4]["new_frames"] == 5
    assert Path("out/3-b-a-dog-3.safetensors").is_file()
    alone = (
        ("sample", "a cat", "--size", "32x32", "--frames", "5", "--seed", "3"),
        ("extend", "a.mp4", "on", "--forward", "7", "--seed", "2"),
        ("edit", "b.mp4", "a dog", "--strength", "0.7", "--seed", "3"),
        ("connect", "a.mp4", "b.mp4", "--frames", "5", "--seed", "4"),
        ("extend", "a.mp4", "--loop", "4", "--seed", "9"),
    )
    for index, (words, name) in enumerate(zip(alone, names, strict=True), start=1):
        run(*words, *line, "-o", f"alone-{name}")
        apart = np.abs(frames(f"out/{name}") - frames(f"alone-{name}"))
        assert apart.mean() < 2, f"job {index}: coders make more of a last digit"
        assert recipe_in(Path(f"out/{name}")).makes_the_same(recipe_in(Path(f"alone-{name}")))
    again = made("jobs.jsonl", "--out", "out", *line)
    assert {each["status"] for each in again} == {"skipped"}
    clip("b.mp4", 6, seed=2)  # so that what was made of it is of another clip
    kept = made("jobs.jsonl", "--out", "out", *line, "--keep-going", code=3)
    assert {each["index"]: each["status"] for each in kept} == {
        **{1: "skipped", 2: "skipped", 5: "skipped"},
        **{3: "failed", 4: "failed"},
    }


def test_options_of_all_jobs_are_those_of_the_commands_that_have_them():
    clip("a.mp4", 5)
    jobs_file = write("jobs.jsonl", {"prompt": "x"}, {"command": "edit", "clip": "a.mp4", "prompt": "y", "duration": 1})
    said = run("batch", jobs_file, *TINY, code=2).stderr
    assert "jobs.jsonl, line 2: No such option: --duration" in said
    write("jobs.jsonl", {"prompt": "x", "duration": "0.5"}, {"command": "edit", "clip": "a.mp4", "prompt": "y"})
    found = {each["index"]: each for each in made(jobs_file, *TINY, "--strength", "0.5", "--seed", "7")}
    assert found[1]["frames"] == 4, "a duration of the job's own puts the frames of all aside"
    assert (found[2]["width"], found[2]["frames"]) == (48, 5) and {each["seed"] for each in found.values()} == {7}


def test_two_jobs_of_one_name():
    found = made(
        write("jobs.jsonl", {"prompt": "x", "seed": 4, "output": "2-y-2.mp4"}, {"prompt": "y"}),
        *TINY,
        "--overwrite",
        "--keep-going",
        code=3,
    )
    assert [each["status"] for each in found] == ["failed", "done"]
    assert "2-y-2.mp4: is the name of job 1 too" in found[0]["error"]


def start(*arguments: str, every: str = "10") -> "subprocess.Popen[str]":
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DVGEN_KEEP_EVERY": every}
    line = [sys.executable, "-m", "dvgen", "batch", *arguments]
    return subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_it_goes_on_where_it_was(number: signal.Signals):
    write("jobs.txt", *[f"clip {number}" for number in range(12)])
    line = ("jobs.txt", *TINY[:-1], "60", "--size", "160x160")
    process = start(*line)
    assert process.stdout is not None
    first = json.loads(process.stdout.readline())
    process.send_signal(number)
    rest, said = process.communicate(timeout=120)
    assert first["status"] == "done" and process.returncode == 128 + number, said
    assert "Traceback" not in said
    done = [first, *told(rest)]
    left = sorted(path.name for path in Path().iterdir())
    assert left == sorted(["jobs.txt", *(each["path"] for each in done)]), "nothing half-written, and no claim"
    out, said = start(*line).communicate(timeout=300)
    status = [each["status"] for each in told(out)]
    assert status == ["skipped"] * len(done) + ["done"] * (12 - len(done)), said
    assert not [*Path().glob(".dvgen-*")]


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal")
def test_killed_it_goes_on_in_the_middle_of_a_pack():
    write("jobs.jsonl", *[{"prompt": text, "frames": 1 + 4 * n, "keep-latents": True} for n, text in enumerate("abc")])
    line = ("jobs.jsonl", "--random-weights", "--size", "64x64", "--steps", "400", "--dtype", "float32")
    Path("whole").mkdir()
    made(*line, "--out", "whole")
    process = start(*line, every="0")
    while process.poll() is None and len([*Path().glob(".dvgen-*.state")]) < 3:
        time.sleep(0.01)
    time.sleep(0.3)
    process.kill()
    out, _ = process.communicate(timeout=60)
    assert out == "" and [*Path().glob(".dvgen-*.claim")]
    out, said = start(*line, every="0").communicate(timeout=300)
    assert [each["status"] for each in told(out)] == ["done"] * 3
    assert len(re.findall(r"jobs.jsonl, line \d: \d+ steps are there: going on", said)) == 3
    assert not [*Path().glob(".dvgen-*")]
    for each in told(out):
        latents = [
            load_file(path.with_suffix(".safetensors"))["latents"]
            for path in (Path(each["path"]), "whole" / Path(each["path"]))
        ]
        assert torch.allclose(*latents, rtol=0, atol=1e-5)


def test_latents_without_their_video_are_decoded(monkeypatch: pytest.MonkeyPatch):
    line = (write("jobs.txt", "a", "b"), *TINY, "--keep-latents")
    first = made(*line)
    Path(first[0]["path"]).unlink()
    monkeypatch.setattr(denoise, "sample_latents", lambda *_, **__: pytest.fail("nothing is to be denoised"))
    again = {each["index"]: each["status"] for each in made(*line)}
    assert again == {1: "done", 2: "skipped"}
    Path(first[0]["path"]).unlink()
    kept = made(*line, "--shift", "2", "--keep-going", code=3)
    assert "1-a-1.safetensors: the file exists" in kept[0]["error"], "those of another recipe"


def test_a_video_that_decode_made_of_kept_latents_is_done():
    line = (write("jobs.txt", "a cat"), *TINY, "--dtype", "float32", "--keep-latents")
    path = Path(made(*line)[0]["path"])
    was, shown = recipe_in(path), frames(str(path))
    path.unlink()
    run("decode", str(path.with_suffix(".safetensors")))
    assert recipe_in(path) == was and np.array_equal(frames(str(path)), shown)
    assert [each["status"] for each in made(*line)] == ["skipped"]
    said = run("decode", str(path.with_suffix(".safetensors")), "--dtype", "bfloat16", "-o", "b.mp4").stderr
    assert "the recipe is not written into the video" in said and read_recipe(Path("b.mp4")) is None


def test_two_batches_in_one_folder_make_each_job_once():
    write("jobs.txt", *[f"clip {number}" for number in range(8)])
    write("more.txt", *[f"clip {number}" for number in range(11)])  # the same eight, and three more
    line = ("--random-weights", "--size", "96x96", "--frames", "9", "--steps", "60")
    pair = [start(name, *line) for name in ("jobs.txt", "more.txt")]
    found = [(*process.communicate(timeout=300), process.returncode) for process in pair]
    assert [code for *_, code in found] == [0, 0], found
    ours, theirs = ({each["index"]: each["status"] for each in told(out)} for out, *_ in found)
    assert sorted(ours) == [*range(1, 9)] and sorted(theirs) == [*range(1, 12)]
    for index in ours:
        assert sorted((ours[index], theirs[index])) == ["done", "skipped"], "each once"
    names = sorted(path.name for path in Path().iterdir())
    assert len(names) == 11 + 2 and not [name for name in names if name.startswith(".")]
    assert all(probe(path).frames == 9 for path in Path().glob("*.mp4"))


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is a signal")
def test_a_batch_takes_over_what_a_killed_one_had():
    write("jobs.txt", *[f"clip {number}" for number in range(4)])
    line = ("jobs.txt", "--random-weights", "--size", "160x160", "--frames", "9", "--steps", "400")
    one = start(*line)
    while one.poll() is None and not [*Path().glob(".dvgen-*.claim")]:
        time.sleep(0.01)
    other = start(*line)
    assert other.stderr is not None
    said = ""
    while "waiting for it" not in said and other.poll() is None:
        said += other.stderr.readline()
    one.kill()
    one.communicate(timeout=60)
    out, rest = other.communicate(timeout=300)
    assert other.returncode == 0 and [each["status"] for each in told(out)] == ["done"] * 4, said + rest
    assert len([*Path().iterdir()]) == 5


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what a process takes")
def test_memory_is_flat_over_many_jobs():
    write("jobs.txt", *[f"picture {number}" for number in range(200)])
    line = [sys.executable, "-m", "dvgen", "batch", "jobs.txt", "--random-weights", "--size", "64x64", "--frames", "5"]
    process = subprocess.Popen([*line, "--steps", "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    taken = []
    for _ in process.stdout:
        found = re.search(r"RssAnon:\s+(\d+)", Path(f"/proc/{process.pid}/status").read_text())
        taken.append(int(found[1]) if found else 0)
    assert process.wait() == 0 and len(taken) == 200
    assert max(taken[190:199]) < 1.15 * max(taken[40:60]), taken[::20]
