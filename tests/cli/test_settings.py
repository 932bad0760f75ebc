"""Settings: the command line goes before the environment, that before dvgen.toml, that before the user's own file."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from dvgen import options, settings
from dvgen.config import OTHERS
from dvgen.main import app, group
from dvgen.recipe import read_recipe
from typer.testing import CliRunner, Result

from dit_video.limits import KEPT_EVERY, kept_every
from dit_video.video.io import probe

ROOT = Path(__file__).parents[2]
TINY = ("--random-weights", "--size", "32x32", "--frames", "5")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder with a user's file beside it, neither with anything in it yet."""
    project = tmp_path / "project"
    (project / ".git").mkdir(parents=True)
    monkeypatch.chdir(project)
    monkeypatch.setenv("DVGEN_CONFIG", str(tmp_path / "user.toml"))
    (tmp_path / "user.toml").write_text("")
    return project


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def write(text: str, file: str = "dvgen.toml") -> None:
    Path(file).write_text(text)


def shown(command: str) -> dict[str, tuple[str, str]]:
    """What `dvgen config` says: option -> value and where it is from."""
    found = json.loads(run("config", command, "--json").stdout)["settings"]
    return {each["option"]: (each["value"], each["from"]) for each in found}


def line_of(path: str) -> tuple[str, ...]:
    recipe = read_recipe(Path(path))
    assert recipe is not None
    return recipe.line


def test_each_layer_goes_before_the_next(monkeypatch: pytest.MonkeyPatch):
    run("sample", "a", *TINY, "-o", "0.mp4")
    default = next(word for word in line_of("0.mp4") if word.startswith("--steps="))
    write("steps = 2\nseed = 3\nguidance = 2.5", "../user.toml")
    run("sample", "a", *TINY, "-o", "1.mp4")
    assert default != "--steps=2" and {"--steps=2", "--seed=3", "--guidance=2.5"} <= set(line_of("1.mp4"))
    write("steps = 3\n[extend]\nsteps = 9")
    run("sample", "a", *TINY, "-o", "2.mp4")
    assert {"--steps=3", "--seed=3"} <= set(line_of("2.mp4"))
    write("steps = 3\n[sample]\nsteps = 4\n[extend]\nsteps = 9")
    run("sample", "a", *TINY, "-o", "3.mp4")
    assert "--steps=4" in line_of("3.mp4")
    monkeypatch.setenv("DVGEN_STEPS", "5")
    run("sample", "a", *TINY, "-o", "4.mp4")
    assert "--steps=5" in line_of("4.mp4")
    run("sample", "a", *TINY, "--steps", "1", "-o", "5.mp4")
    assert "--steps=1" in line_of("5.mp4")
    found = shown("sample")
    assert found["steps"] == ("5", "DVGEN_STEPS")
    assert found["seed"] == ("3", f"{Path('../user.toml').resolve()}: seed")
    assert found["model"] == ("default", "default") and found["overwrite"] == ("false", "default")
    assert shown("extend")["steps"] == ("5", "DVGEN_STEPS")
    monkeypatch.delenv("DVGEN_STEPS")
    assert shown("extend")["steps"] == ("9", "dvgen.toml: [extend] steps")
    assert shown("eval")["steps"] == ("3", "dvgen.toml: steps")


def test_the_nearest_project_counts_up_to_its_repository(here: Path, monkeypatch: pytest.MonkeyPatch):
    write("seed = 1", "../dvgen.toml")
    (here / "deep" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(here / "deep" / "deeper")
    assert shown("sample")["seed"] == ("", "default")  # the repository begins between
    (here / "dvgen.toml").write_text("seed = 2")
    assert shown("sample")["seed"] == ("2", f"{here / 'dvgen.toml'}: seed")
    write("steps = 3")
    assert shown("sample")["seed"] == ("", "default") and shown("sample")["steps"] == ("3", "dvgen.toml: steps")


def test_the_home_folder_ends_the_search(here: Path, monkeypatch: pytest.MonkeyPatch):
    write("seed = 1", "../dvgen.toml")
    (here / ".git").rmdir()
    assert shown("sample")["seed"][0] == "1"
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("USERPROFILE", str(here))
    assert shown("sample")["seed"][0] == ""


def test_the_users_own_file_lies_where_the_system_has_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_config_path", lambda name, appauthor: tmp_path / name)
    monkeypatch.delenv("DVGEN_CONFIG")
    assert f"{tmp_path / 'dvgen' / 'config.toml'} is not there" in run("config").stdout
    (tmp_path / "dvgen").mkdir()
    (tmp_path / "dvgen" / "config.toml").write_text("quiet = true")
    assert run("config", "--path").stdout == f"{tmp_path / 'dvgen' / 'config.toml'}\n"
    assert shown("sample")["quiet"][0] == "true"
    monkeypatch.setenv("DVGEN_CONFIG", "")
    write("[")
    assert run("config", "--path").stdout == "" and "DVGEN_CONFIG is empty" in run("config").stdout
    monkeypatch.setenv("DVGEN_CONFIG", "nowhere.toml")
    assert "DVGEN_CONFIG nowhere.toml: there is no such file" in run("sample", "a", *TINY, code=2).stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stepz = 3", "dvgen.toml: stepz: is no option of any command; the nearest is steps."),
        ("[sampel]\nsteps = 3", "dvgen.toml: [sampel]: is no command; the nearest is [sample]."),
        ("[sample]\nstep = 3", "[sample] step: is no option of `dvgen sample`; the nearest is steps."),
        ("[info]\nsteps = 3", "[info] steps: is no option of `dvgen info`; the nearest is json."),
        ("[train.dat]\nquiet = true", "[train] dat: is no command of `dvgen train`; the nearest is [train.dit]."),
        ("[train]\nquiet = true", "[train] quiet: is no command of `dvgen train`; the nearest is [train.dit]."),
        ("prompts = 3", "prompts: is not the same in all commands; write it below [eval]."),
        ('output = "a.mp4"', "output: is about one video alone and cannot be a setting"),
        ('[sample]\nimage = ["a.png"]', "[sample] image: is about one video alone and cannot be a setting"),
        ('[sample]\nprompt = "a"', "[sample] prompt: is no option of `dvgen sample`; the nearest is"),
        ('expected-model = "a"', "expected-model: is no option of any command; the nearest is"),
        ("overwrite = 1", "dvgen.toml: overwrite: is a flag and must be true or false."),
        ("[sample]\nsteps = true", "dvgen.toml: [sample] steps: must be text or a number"),
        ('steps = ["2", "3"]', "steps: must be one value; --steps cannot be repeated."),
        ("steps = 1979-05-27", 'dvgen.toml: steps: the value is "1979-05-27", which no option takes.'),
        ("steps = ", "dvgen.toml: is not TOML (Invalid value (at "),
    ],
)
def test_what_a_file_cannot_say_is_refused(text: str, said: str):
    write(text)
    found = run("sample", "a", *TINY, code=2)
    assert said in " ".join(found.stderr.split()) and not found.stdout and not list(Path().glob("*.mp4"))
    assert run("sample", "--help").stdout and run("--version").stdout


def test_files_that_cannot_be_read_are_refused():
    Path("dvgen.toml").write_bytes(b"negative = '\xff'")
    assert "dvgen.toml: is not text in UTF-8" in run("sample", "a", *TINY, code=2).stderr
    Path("dvgen.toml").write_bytes(b"\xef\xbb\xbfsteps = 2")
    assert shown("sample")["steps"][0] == "2"


def test_an_error_says_where_the_value_is_from(monkeypatch: pytest.MonkeyPatch):
    write("steps = 0")
    said = "Error: --steps 0: must be a whole number from 1 to 1000; the nearest is 1."
    assert run("sample", "a", *TINY, code=2).stderr == f"{said} --steps is from dvgen.toml: steps.\n"
    assert run("sample", "a", *TINY, "--steps", "0", code=2).stderr == f"{said}\n"
    monkeypatch.setenv("DVGEN_STEPS", "x")
    assert "--steps is from DVGEN_STEPS." in run("sample", "a", *TINY, code=2).stderr
    monkeypatch.setenv("DVGEN_QUIET", "perhaps")
    assert "--quiet is from DVGEN_QUIET." in run("sample", "a", *TINY, code=2).stderr


def test_values_of_every_kind(here: Path, monkeypatch: pytest.MonkeyPatch):
    write("guidance = [4, 3.5]\nguidance_interval = [0.1, 0.9]\nshift = 3\nlora = 'a.safetensors:0.5'\nquiet = true")
    found = shown("sample")
    assert found["guidance"][0] == "4,3.5" and found["guidance-interval"][0] == "0.1,0.9" and found["shift"][0] == "3"
    assert found["lora"][0] == "a.safetensors:0.5" and found["quiet"][0] == "true"
    monkeypatch.setenv("DVGEN_LORA", "x.safetensors y.safetensors:2")
    assert shown("sample")["lora"] == ("x.safetensors, y.safetensors:2", "DVGEN_LORA")
    for text, value in (("1", "true"), ("true", "true"), ("0", "false"), ("no", "false")):
        monkeypatch.setenv("DVGEN_QUIET", text)
        assert shown("sample")["quiet"] == (value, "DVGEN_QUIET")
    monkeypatch.setenv("DVGEN_QUIET", "")
    assert shown("sample")["quiet"] == ("true", "dvgen.toml: quiet")


def test_paths_are_those_from_the_file(here: Path, monkeypatch: pytest.MonkeyPatch):
    write('model = "models/wan"\nvae = "vae.safetensors"\nlora = ["l.safetensors:0.5", "~/x.safetensors"]')
    (here / "models" / "wan").mkdir(parents=True)
    monkeypatch.setenv("HOME", "/home/me")
    assert shown("sample")["model"][0] == "models/wan"
    (here / "in").mkdir()
    monkeypatch.chdir(here / "in")
    found = shown("sample")
    assert found["model"][0] == str(here / "models" / "wan") and found["vae"][0] == str(here / "vae.safetensors")
    assert found["lora"][0] == f"{here}/l.safetensors:0.5, /home/me/x.safetensors"
    (here / "dvgen.toml").write_text('model = "Wan-AI/Wan2.1"')  # a name
    assert shown("sample")["model"][0] == "Wan-AI/Wan2.1"


def test_flags_are_turned_off_on_the_command_line():
    write("keep-latents = true\noverwrite = true\nno-recipe = true\nquiet = true")
    assert "seed" not in run("sample", "a", *TINY, "--seed", "1", "-o", "a.mp4").stderr
    assert Path("a.safetensors").exists() and read_recipe(Path("a.mp4")) is None
    run("sample", "a", *TINY, "-o", "b.mp4", "--no-keep-latents", "--recipe")
    assert not Path("b.safetensors").exists() and line_of("b.mp4")
    assert "a.mp4: the file exists" in " ".join(
        run("sample", "a", *TINY, "-o", "a.mp4", "--no-overwrite", code=1).stderr.split()
    )
    assert "seed 1" in run("sample", "a", *TINY, "--seed", "1", "-o", "c.mp4", "--no-quiet").stderr


def test_what_says_the_same_otherwise_is_put_aside(monkeypatch: pytest.MonkeyPatch):
    write('frames = 9\nfit = "contain"\nkeep-latents = true\nsteps = 7\nguidance = 3\nmodel = "nowhere"\nvae = "v.pth"')
    size = ("--random-weights", "--size", "32x32", "--seed", "1")
    run("sample", "a", *size, "--duration", "1", "-o", "a.mp4", "--save-latents", "x.safetensors")
    assert probe("a.mp4").frames == 8 and "--steps=7" in line_of("a.mp4") and Path("x.safetensors").exists()
    run("sample", "a", *size, "--preset", "distilled", "-o", "b.mp4")
    assert {"--steps=4", "--guidance=1", "--frames=9"} <= set(line_of("b.mp4"))
    monkeypatch.setenv("DVGEN_MODEL", "default")
    found = shown("sample")
    assert found["vae"] == ("", "default") and found["steps"] == ("7", "dvgen.toml: steps")
    monkeypatch.delenv("DVGEN_MODEL")
    assert shown("sample")["vae"][0] == "v.pth"
    write("[sample]\nframes = 9\nduration = 2")
    assert "only one of the two can be given" in run("sample", "a", *size, code=2).stderr
    assert "says how --image is made to fit" in run("sample", "a", *TINY, "--fit", "cover", code=2).stderr


def test_a_recipe_is_made_again_whatever_the_settings_are(monkeypatch: pytest.MonkeyPatch):
    run("sample", "a", *TINY, "--seed", "1", "--steps", "2", "-o", "a.mp4")
    write("seed = 9\nstrict = true\nno-recipe = true\nquiet = true\nkeep-latents = true\n[sample]\nfps = 3")
    monkeypatch.setenv("DVGEN_NEGATIVE", "b")
    monkeypatch.setenv("DVGEN_LORA", "gone.safetensors")
    again = run("again", "a.mp4", "-o", "b.mp4")
    assert line_of("b.mp4") == line_of("a.mp4") and "seed" not in again.stderr  # that it is quiet changes no frame
    assert not Path("b.safetensors").exists()
    run("sample", "a", "--random-weights", "--size", "32x32", "--frames", "5", "--preset", "distilled", "-o", "c.mp4",
        "--negative", "", "--lora", "x", code=1)  # fmt: skip
    monkeypatch.delenv("DVGEN_LORA")
    run("again", "a.mp4", "-o", "d.mp4", "--preset", "distilled")
    assert "--steps=4" in line_of("d.mp4") and "--seed=1" in line_of("d.mp4")


def test_jobs_of_a_batch_are_over_the_settings():
    write("seed = 5\nquiet = true\nkeep-latents = true\n[sample]\nsteps = 2\nnegative = 'n'\n[batch]\nout = 'videos'")
    Path("videos").mkdir()
    jobs = [{"prompt": "one"}, {"prompt": "two", "steps": 1, "seed": 8, "keep-latents": False}]
    write("\n".join(map(json.dumps, jobs)), "jobs.jsonl")
    found = [json.loads(text) for text in run("batch", "jobs.jsonl", *TINY, "--negative", "m").stdout.splitlines()]
    assert [each["status"] for each in found] == ["done", "done"] and [each["seed"] for each in found] == [5, 8]
    lines = [line_of(each["path"]) for each in found]
    assert "--steps=2" in lines[0] and "--steps=1" in lines[1] and all("--negative=m" in line for line in lines)
    assert [path.name for path in Path("videos").glob("*.safetensors")] == ["1-one-5.safetensors"]
    again = [
        json.loads(text)["status"] for text in run("batch", "jobs.jsonl", *TINY, "--negative", "m").stdout.splitlines()
    ]
    assert again == ["skipped", "skipped"]
    write('{"prompt": "a", "quiet": true}', "bad.jsonl")
    assert "--quiet: is not for jobs" in run("batch", "bad.jsonl", *TINY, code=2).stderr


def test_names_that_mean_something_else_have_variables_of_their_own(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVGEN_FRAMES", "9")
    monkeypatch.setenv("DVGEN_DTYPE", "float32")
    monkeypatch.setenv("DVGEN_CONNECT_FRAMES", "4")
    write("size = '32x32'\n[eval]\nsize = '64x64'")
    assert shown("sample")["frames"][0] == "9" and shown("connect")["frames"] == ("4", "DVGEN_CONNECT_FRAMES")
    assert shown("eval")["frames"][0] == "" and shown("eval")["size"][0] == "64x64"
    assert shown("sample")["dtype"][0] == "float32" and shown("convert")["dtype"][0] == "keep"


def test_no_variable_has_two_meanings():
    found: dict[str, set[str]] = {}
    for command in settings.leaves(group()).values():
        for param in command.params:
            if settings.is_setting(param):
                found.setdefault(param.envvar, set()).add(settings.name_of(param))
                found.setdefault(f"{param.envvar} kind", set()).add(f"{param.is_flag} {param.metavar}".rstrip("[,F]"))
    assert {name: names for name, names in found.items() if len(names) > 1} == {}
    assert not found.keys() & OTHERS.keys() and "DVGEN_STEPS" in found
    assert options.variable("guidance-interval") == "DVGEN_GUIDANCE_INTERVAL"
    sources = [*(ROOT / "dit_video").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    named = {name for file in sources for name in re.findall(r'= "(DVGEN_[A-Z_]+)"', file.read_text())}
    assert named == OTHERS.keys()
    document = (ROOT / "docs" / "settings.md").read_text()
    assert all(f"| `{name}` | {text}" in document for name, text in OTHERS.items())


def test_a_setting_that_is_not_for_jobs_is_said_to_be_left_out(here: Path, monkeypatch: pytest.MonkeyPatch):
    Path("jobs.txt").write_text("a cat\n")
    line = ["batch", "jobs.txt", "--random-weights", "--dry-run"]
    assert run(*line).stderr == ""
    monkeypatch.setenv("DVGEN_TIME_BUDGET", "60s")
    said = "DVGEN_TIME_BUDGET: --time-budget is not for jobs, and is left out here\n"
    assert run(*line).stderr == said and run(*line, "-q").stderr == ""
    monkeypatch.delenv("DVGEN_TIME_BUDGET")
    write('quiet = false\n[sample]\ntime-budget = "60s"')
    assert run(*line).stderr == said.replace("DVGEN_TIME_BUDGET", "dvgen.toml: [sample] time-budget")


@pytest.mark.parametrize("text", ["abc", "-1", "nan", "inf"])
def test_seconds_of_the_environment_are_checked_before_anything_is_begun(text: str, monkeypatch: pytest.MonkeyPatch):
    Path("jobs.txt").write_text("a cat\n")
    monkeypatch.setenv("DVGEN_KEEP_EVERY", text)
    for line in (["sample", "a cat", "--random-weights"], ["batch", "jobs.txt", "--random-weights"]):
        said = run(*line, code=2).stderr
        assert said.startswith(f"Error: DVGEN_KEEP_EVERY {text}: must be a number from 0 to 1000000000")
    monkeypatch.setenv("DVGEN_KEEP_EVERY", "")
    assert kept_every() == KEPT_EVERY


def test_config_without_a_command_shows_what_is_not_default(monkeypatch: pytest.MonkeyPatch):
    assert run("config").stdout.startswith("all settings are default\n\nno dvgen.toml here or above\n")
    write("quiet = true\n[train.dit]\nquiet = false\n[sample]\nsteps = 3")
    monkeypatch.setenv("DVGEN_STEP", "3")
    found = run("config")
    lines = found.stdout.splitlines()
    assert lines[0].split() == ["steps", "3", "dvgen.toml:", "[sample]", "steps", "sample"]
    assert "quiet false dvgen.toml: [train.dit] quiet train.dit" in [" ".join(line.split()) for line in lines]
    assert "dvgen.toml is read" in lines
    assert found.stderr == "DVGEN_STEP: is no variable that dvgen reads; the nearest is DVGEN_STEPS.\n"
    assert run("config", "train").stdout.splitlines()[0].split()[:2] == ["quiet", "true"]
    assert "sampel: is no command; the nearest is sample." in run("config", "sampel", code=2).stderr


def test_a_file_to_begin_with(here: Path):
    assert (
        run("config", "--init").stdout == "dvgen.toml\n"
        and "dvgen.toml: exists" in run("config", "--init", code=2).stderr
    )
    text = Path("dvgen.toml").read_text()
    assert run("config").stdout.startswith("all settings are default")
    write(re.sub(r"(?m)^# (?=[a-z\[].*(=|\]))", "", text))  # every line in force
    wanted = {
        (path, settings.name_of(param))
        for path, command in settings.leaves(group()).items()
        for param in command.params
        if settings.is_setting(param)
    }
    found = json.loads(run("config", "--json").stdout)["settings"]
    said = {(path, each["option"]) for each in found for path in each["commands"]}
    assert wanted - said == {("sample", "fit")}  # there is no picture


def test_a_subprocess_reads_them_too():
    write('size = "32x32"\nframes = 5\nrandom-weights = true\nsteps = 1\nseed = 2\nquiet = true')
    found = subprocess.run(
        [sys.executable, "-m", "dvgen", "sample", "a cat"], capture_output=True, text=True, check=True
    )
    assert (found.stdout, found.stderr) == ("a-cat-2.mp4\n", "")
