"""`--count`, `--sheet` and `--preview-file`: several videos by one command, and what is shown of them."""

import json
from pathlib import Path

import pytest
from dvgen.main import app
from typer.testing import CliRunner, Result

from dit_video import denoise
from dit_video.limits import MAX_SEED
from dit_video.video.io import probe, read_picture, read_video

SMALL = ["--random-weights", "--size", "48x32", "--frames", "5", "--steps", "2"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sample(*more: str, prompt: str = "a red ball") -> Result:
    return CliRunner().invoke(app, ["sample", prompt, *SMALL, *more])


def clip(path: str) -> bytes:
    return read_video(Path(path))[0].tobytes()


def test_count_makes_videos_with_the_next_seeds_and_tells_each():
    result = sample("--count", "3", "--seed", "7", "-o", "a.mp4")
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == ["a-7.mp4", "a-8.mp4", "a-9.mp4"]
    assert "seeds 7 to 9" in result.stderr
    assert sample("--seed", "8", "-o", "b.mp4").exit_code == 0
    assert clip("b.mp4") == clip("a-8.mp4") != clip("a-9.mp4")


def test_each_is_an_object_of_its_own_in_json():
    result = sample("--count", "2", "--seed", "7", "--json", "-q")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(each["seed"], each["path"]) for each in found] == [(7, "a-red-ball-7.mp4"), (8, "a-red-ball-8.mp4")]
    # What one took, not what all did: the model is loaded once.
    assert [each["forwards"] for each in found] == [4, 4]
    assert found[0]["seconds"]["load"] > 0 == found[1]["seconds"].get("load", 0)


def test_what_the_same_recipe_made_before_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch):
    real = denoise.sample_latents
    calls: list[int] = []

    def breaking(stages, clips, *args, **more):
        calls.append(clips[0].seed)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(stages, clips, *args, **more)

    monkeypatch.setattr("dit_video.make.sample_latents", breaking)
    assert sample("--count", "3", "--seed", "7").exit_code == 130
    assert sorted(path.name for path in Path().glob("*.mp4")) == ["a-red-ball-7.mp4"]
    result = sample("--count", "3", "--seed", "7")
    assert result.exit_code == 0 and calls == [7, 8, 8, 9]
    assert result.stdout.splitlines() == ["a-red-ball-7.mp4", "a-red-ball-8.mp4", "a-red-ball-9.mp4"]
    assert "a-red-ball-7.mp4: is there already, made by the same recipe" in result.stderr
    told = [json.loads(line) for line in sample("--count", "3", "--seed", "7", "--json").stdout.splitlines()]
    assert [(each["seed"], each["skipped"]) for each in told] == [(7, True), (8, True), (9, True)]
    # Another recipe under the same name is not taken for it, and is not replaced.
    other = sample("--count", "2", "--seed", "8", "--steps", "3")
    assert other.stdout.splitlines() == ["a-red-ball-8-2.mp4", "a-red-ball-9-2.mp4"]
    refused = sample("--count", "2", "--seed", "7", "-o", "a-red-ball.mp4", "--steps", "3")
    assert refused.exit_code == 1 and "a-red-ball-7.mp4: the file exists" in refused.stderr


def test_a_sheet_has_a_row_for_every_video():
    assert sample("--count", "2", "--seed", "7", "--sheet", "s.png").exit_code == 0
    assert sample("--seed", "7", "--sheet", "one.png", "--overwrite", "-o", "c.mp4").exit_code == 0
    two, one = read_picture(Path("s.png")), read_picture(Path("one.png"))
    assert len(two) == 2 * len(one) and two.shape[1] == one.shape[1]
    assert (two[: len(one)] == one).all()
    again = sample("--seed", "7", "--sheet", "s.png", "-o", "d.mp4")
    assert again.exit_code == 1 and "s.png: the file exists" in again.stderr and not Path("d.mp4").exists()


def test_a_sheet_has_rows_of_videos_that_were_there_already():
    assert sample("--count", "2", "--seed", "7", "-o", "a.mp4").exit_code == 0
    result = sample("--count", "3", "--seed", "7", "-o", "a.mp4", "--sheet", "s.png")
    assert result.exit_code == 0 and result.stdout == "a-7.mp4\na-8.mp4\na-9.mp4\n"
    result = sample("--count", "3", "--seed", "7", "-o", "a.mp4", "--sheet", "old.png")
    assert result.exit_code == 0 and result.stdout == "a-7.mp4\na-8.mp4\na-9.mp4\n"
    assert sample("--count", "3", "--seed", "7", "-o", "b.mp4", "--sheet", "new.png").exit_code == 0
    one, two, new = (read_picture(Path(name)).astype(int) for name in ("s.png", "old.png", "new.png"))
    assert one.shape == two.shape == new.shape  # frames of a file are those that were made, but for their coding
    assert abs(one - new).mean() < abs(one - one[::-1]).mean() / 4 and abs(two - one).mean() < 20


def test_a_dry_run_says_what_is_left_to_make():
    line = ("--count", "3", "--seed", "7", "-o", "a.mp4")
    fresh = json.loads(sample(*line, "--dry-run", "--json").stdout)
    assert sample("--count", "2", *line[2:]).exit_code == 0
    result = sample(*line, "--dry-run", "--json")
    one = json.loads(result.stdout)
    assert result.exit_code == 0 and one["problems"] == [] and one["path"] == "a-9.mp4"
    assert (one["videos"], one["forwards"]) == (1, fresh["forwards"] // 3)
    assert "a-7.mp4: is there already, made by the same recipe" in one["notes"]
    assert sample(*line).stdout == "a-7.mp4\na-8.mp4\na-9.mp4\n"
    result = sample(*line, "--dry-run")
    assert result.exit_code == 0 and "a-9.mp4: is there already" in result.output
    assert "so        it is there already" in result.output
    refused = sample(*line, "--dry-run", "--steps", "3")
    assert refused.exit_code == 1 and "a-7.mp4: the file exists" in refused.output


def test_latents_that_stand_in_the_way_are_said_before_anything_is_made():
    Path("v-2.safetensors").write_bytes(b"of somebody")
    result = sample("--count", "2", "--seed", "1", "-o", "v.mp4", "--keep-latents")
    assert result.exit_code == 1 and "v-2.safetensors: the file exists" in result.stderr
    assert [path.name for path in Path().iterdir()] == ["v-2.safetensors"]


def test_extend_has_a_sheet_too():
    assert sample("--seed", "7", "-o", "a.mp4").exit_code == 0
    line = ["extend", "a.mp4", "--random-weights", "--steps", "1", "--forward", "4", "--sheet", "s.png", "-o", "b.mp4"]
    result = CliRunner().invoke(app, line)
    assert result.exit_code == 0, result.output
    assert Path("s.png").is_file() and probe(Path("b.mp4")).frames == 9


def test_a_preview_is_left_when_the_video_is_there():
    result = sample("--seed", "7", "--preview-file", "p.gif")
    assert result.exit_code == 0, result.output
    found = probe(Path("p.gif"))
    assert (found.width, found.height, found.frames) == (240, 160, 5)
    taken = sample("--seed", "8", "--preview-file", "p.gif")
    assert taken.exit_code == 1 and "p.gif: the file exists" in taken.stderr
    Path("a-red-ball-7.mp4").rename("kept.mp4")  # as if the command had been ended before the video was there
    assert sample("--seed", "7", "--preview-file", "p.gif").exit_code == 0
    plain = sample("--seed", "7", "-o", "plain.mp4")
    assert plain.exit_code == 0 and clip("plain.mp4") == clip("a-red-ball-7.mp4")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--count 0", "the nearest is 1"),
        ("--count x", "must be a whole number from 1 to 10000"),
        (f"--count 2 --seed {MAX_SEED}", f"the nearest seed is {MAX_SEED - 1}"),
        ("--count 2 --save-latents a.safetensors", "use --keep-latents"),
        ("--sheet s.jpg", "must end in .png"),
        ("--sheet none/s.png", "does not exist"),
        ("--preview-file p.mp4", "must end in .gif"),
        ("-o p.gif --preview-file p.gif", "is the file of the video"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_made(line: str, words: str):
    result = sample(*line.split())
    assert result.exit_code in (1, 2) and words in result.stderr
    assert not list(Path().iterdir())
