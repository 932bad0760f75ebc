"""`dvgen download`, from a server on this machine that stands in for the Hugging Face hub."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from dvgen import download
from dvgen.main import app
from typer.testing import CliRunner, Result

from dit_video.checkpoints import hub
from dit_video.errors import CheckpointError
from dit_video.models import open_checkpoint
from tests.tiny import tiny_i2v_folder, tiny_wan21_folder

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPOSITORY = "someone/Tiny-Wan"
NOT_NEEDED = (
    *("README.md", ".gitattributes", "assets/picture.png", "examples/clip.mp4", "LICENSE.txt"),
    "transformer/diffusion_pytorch_model.bin",
    "transformer/diffusion_pytorch_model.fp16.safetensors",
    "transformer/diffusion_pytorch_model-00001-of-00002.safetensors",
    "text_encoder/pytorch_model.bin",
    "vae/Wan2.1_VAE.pth",
)


class Asked(NamedTuple):
    method: str
    path: str
    range: str | None
    token: str | None


@dataclass
class Hub:
    """A hub with one repository. broken: files of which the first answer ends half way. gated: it refuses its files."""

    folder: Path
    repository: str = REPOSITORY
    gated: bool = False
    failing: bool = False
    broken: set[str] = field(default_factory=set)
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    @property
    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.folder).as_posix(): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
        }

    def tokens(self) -> set[str | None]:
        """What showed who asks for something of the repository; huggingface_hub asks for other things too."""
        return {asked.token for asked in self.asked if self.repository in asked.path}

    def fetched(self) -> list[str]:
        """The files that were asked for, not counting those that tell what there is."""
        return [
            asked.path.partition(f"/resolve/{COMMIT}/")[2]
            for asked in self.asked
            if asked.method == "GET" and "/resolve/" in asked.path
        ]


def handler(server: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            server.asked.append(Asked(self.command, path, self.headers.get("Range"), self.headers.get("Authorization")))
            if server.failing:
                return self.refuse(503, "ServerError")
            if f"/{server.repository}" not in path:
                return self.refuse(404, "RepoNotFound")
            if path.startswith(f"/api/models/{server.repository}"):
                return self.tell(path.removeprefix(f"/api/models/{server.repository}"))
            _, _, rest = path.partition("/resolve/")
            revision, _, name = rest.partition("/")
            if revision not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            if server.gated:
                return self.refuse(403, "GatedRepo")
            if name not in server.files:
                return self.refuse(404, "EntryNotFound")
            self.send(name, body=body)

        def tell(self, path: str) -> None:
            """What the repository holds, as model_info and the tree of a revision say it."""
            _, kind, revision = path.split("/")[:3]
            if revision not in ("main", COMMIT):
                return self.refuse(404, "RevisionNotFound")
            if kind == "tree":
                entries: Any = [
                    {"type": "file", "path": name, "size": len(data), "oid": tag(data)}
                    for name, data in server.files.items()
                ]
            else:
                siblings = [{"rfilename": name, "size": len(data)} for name, data in server.files.items()]
                entries = {"id": server.repository, "sha": COMMIT, "siblings": siblings, "tags": []}
                entries["cardData"] = {"license": "mit"}
            self.reply(200, json.dumps(entries).encode(), {"Content-Type": "application/json"})

        def send(self, name: str, *, body: bool) -> None:
            data = server.files[name]
            about = {"ETag": f'"{tag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            code = 200
            if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
                start, code = int(found[1]), 206
                about["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
                data = data[start:]
            cut = body and name in server.broken
            if cut:
                server.broken.discard(name)
            self.reply(code, data, about, sent=len(data) // 2 if cut else len(data) if body else 0)
            if cut:
                self.close_connection = True

        def refuse(self, code: int, word: str) -> None:
            self.reply(code, b"{}", {"X-Error-Code": word}, sent=2 if self.command == "GET" else 0)

        def reply(self, code: int, data: bytes, about: dict[str, str], sent: int | None = None) -> None:
            self.send_response(code)
            for name, value in (about | {"Content-Length": str(len(data))}).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[:sent])

    return Handler


def tag(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository: a tiny model, and what a page on the hub has beside it."""
    folder = tiny_wan21_folder(tmp_path_factory.mktemp("hub") / "wan")
    for name in NOT_NEEDED:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not needed")
    return folder


def serving(server: Hub) -> Iterator[Hub]:
    listening = ThreadingHTTPServer(("127.0.0.1", 0), handler(server))
    listening.daemon_threads = True
    server.url = f"http://127.0.0.1:{listening.server_port}"
    thread = threading.Thread(target=listening.serve_forever, args=(0.05,))
    thread.start()
    yield server
    listening.shutdown()
    listening.server_close()
    thread.join()


@pytest.fixture
def server(tiny: Path) -> Iterator[Hub]:
    yield from serving(Hub(tiny))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def our_hub(server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What HF_ENDPOINT, HF_HUB_CACHE and HF_TOKEN say to a process that begins."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_the_test")


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, ["download", *map(str, arguments)])
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    assert "Traceback" not in found.stderr
    return found


def refused(*arguments: str | Path, code: int = 1) -> str:
    """The one sentence that says why nothing was fetched."""
    found = run(*arguments, code=code)
    assert found.stdout == "" and found.stderr.startswith("Error: ") and found.stderr.count("\n") == 1
    return found.stderr


def wanted(folder: Path) -> set[str]:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return files - set(NOT_NEEDED)


def test_a_model_is_fetched_and_opens_by_its_name(server: Hub, tiny: Path, cache: Path):
    found = run(REPOSITORY, "--yes")
    path = Path(found.stdout.removesuffix("\n"))
    assert path == cache / "models--someone--Tiny-Wan" / "snapshots" / COMMIT
    assert f'dvgen sample "a prompt" --model {REPOSITORY}\n' in found.stderr
    here = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert here == wanted(tiny), "the needed files and no others"
    assert set(server.fetched()) == here
    for name in here:
        assert (path / name).read_bytes() == (tiny / name).read_bytes()
    assert open_checkpoint(REPOSITORY).path == path
    assert server.tokens() == {"Bearer hf_of_the_test"}
    size = sum(len(server.files[name]) for name in here)
    assert f"{download.size(size)} in {len(here)} files to {cache}, where " in found.stderr
    assert "licence mit" in found.stderr and "1.1 MB" in found.stderr and "README" not in found.stderr


def test_a_second_time_nothing_is_fetched(server: Hub):
    first = run(REPOSITORY, "--yes").stdout
    server.asked.clear()
    found = run(REPOSITORY, "--yes")
    assert found.stdout == first and not server.fetched()
    assert re.search(r"(\d+) of \1 files are there already", found.stderr) and "Fetch" not in found.stderr


def test_a_folder(server: Hub, tiny: Path, cache: Path, tmp_path: Path):
    to = tmp_path / "models" / "wan"
    found = run(REPOSITORY, "--to", to, "-y")
    assert found.stdout == f"{to}\n" and f"--model {to}\n" in found.stderr
    here = {file.relative_to(to).as_posix() for file in to.rglob("*") if file.is_file() and ".cache" not in file.parts}
    assert here == wanted(tiny) and open_checkpoint(to).dit == open_checkpoint(tiny).dit
    assert not cache.exists() or not list(cache.rglob("*.safetensors"))
    server.asked.clear()
    assert run(REPOSITORY, "--to", to, "--yes").stdout == f"{to}\n" and not server.fetched()


@pytest.mark.parametrize("name", ["notes.txt", "wan"])
def test_a_folder_of_other_things_is_left_alone(server: Hub, tmp_path: Path, name: str):
    (tmp_path / "wan").mkdir()
    (tmp_path / "wan" / "notes.txt").write_text("mine")
    to = tmp_path / "wan" / name if name != "wan" else tmp_path / "wan"
    assert f"--to {to}: " in refused(REPOSITORY, "--yes", "--to", to, code=2)
    assert not server.asked and [path.name for path in (tmp_path / "wan").iterdir()] == ["notes.txt"]


def test_a_dry_run_shows_and_fetches_nothing(server: Hub, tiny: Path, cache: Path, tmp_path: Path):
    for to in ([], ["--to", tmp_path / "new"]):
        server.asked.clear()
        found = run(REPOSITORY, "--dry-run", *to)
        names = {line.split("  ")[-1] for line in found.stdout.splitlines()[1:-1]}
        assert names == wanted(tiny) and " are free" in found.stdout
        assert all(name.endswith(("config.json", "index.json")) for name in server.fetched())
    assert not list(cache.rglob("*")) and not (tmp_path / "new").exists()


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server: Hub, tiny: Path, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", piece := 1000)  # what it writes at a time; of others 10 MB
    large = "transformer/diffusion_pytorch_model.safetensors"
    server.broken = {large}
    path = Path(run(REPOSITORY, "--yes").stdout.strip())
    assert (path / large).read_bytes() == (tiny / large).read_bytes()
    asked = [each for each in server.asked if each.method == "GET" and each.path.endswith(large)]
    half = (tiny / large).stat().st_size // 2
    assert [each.range for each in asked] == [None, f"bytes={half // piece * piece}-"]


def test_what_is_there_stays_when_the_rest_does_not_come(server: Hub, tiny: Path, cache: Path):
    run(REPOSITORY, "--yes")
    (snapshot,) = (cache / "models--someone--Tiny-Wan" / "snapshots").iterdir()
    file = snapshot / "vae" / "diffusion_pytorch_model.safetensors"
    file.resolve().unlink()
    file.unlink()
    server.asked.clear()
    found = run(REPOSITORY, "--yes")
    assert "1 file to" in found.stderr and [name for name in server.fetched() if "config" not in name] == [
        "vae/diffusion_pytorch_model.safetensors"
    ]
    assert file.read_bytes() == (tiny / "vae" / file.name).read_bytes()


def test_unknown_names():
    said = refused("wan2.1-t2v-1.3", "--yes", code=2)
    assert "'wan2.1-t2v-1.3': must be OWNER/REPOSITORY" in said and said.endswith("the nearest is wan2.1-t2v-1.3b.\n")
    pasted = "https://huggingface.co/Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    assert refused(pasted, "--yes", code=2).endswith("the nearest is wan2.2-ti2v-5b.\n")
    for name in ("", "a/b/c", "../x", "a b/c", "x" * 3000):
        assert "must be OWNER/REPOSITORY" in refused(name, "--yes", code=2)


def test_short_names_are_those_of_repositories(server: Hub):
    assert hub.repository_of("WAN2.2-ti2v-5b") == "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    server.repository = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
    found = run("wan2.1-t2v-1.3b", "--yes")
    assert "licence Apache-2.0" in found.stderr and f"--model {server.repository}\n" in found.stderr
    assert open_checkpoint(server.repository).path == Path(found.stdout.strip())


def test_a_repository_that_is_not_there(server: Hub):
    said = refused("someone/Other", "--yes")
    assert f"someone/Other: {server.url} has no such repository, or it is private" in said and "hf auth login" in said


def test_a_revision(server: Hub):
    assert "--revision v9: " in refused(REPOSITORY, "--yes", "--revision", "v9")
    assert COMMIT in run(REPOSITORY, "--yes", "--revision", COMMIT).stdout


def test_a_gated_repository(server: Hub):
    server.gated = True
    said = refused(REPOSITORY, "--yes")
    assert f"ask for it on {server.url}/{REPOSITORY}" in said and "`hf auth login`" in said and "HF_TOKEN" in said


def test_a_hub_that_fails(server: Hub):
    server.failing = True
    assert "answers with the error 503" in refused(REPOSITORY, "--yes")


def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "http://127.0.0.1:9 cannot be reached" in refused(REPOSITORY, "--yes")


def test_something_else_than_a_hub(server: Hub, monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import HfApi

    def web_page(*_: Any, **__: Any) -> None:
        json.loads("<html>Please log in to this network</html>")

    monkeypatch.setattr(HfApi, "model_info", web_page)
    assert "does not send what a hub sends" in refused(REPOSITORY, "--yes")


def test_a_disk_without_room(monkeypatch: pytest.MonkeyPatch, cache: Path):
    monkeypatch.setattr(hub, "_free", lambda _: 1_000_000)
    found = run(REPOSITORY, "--yes", code=1)
    assert f"needs 0.00 GB more, and the disk of {cache} has 0.00 GB free" in found.stderr
    assert found.stdout == "" and not list(cache.rglob("*"))


def test_a_disk_that_fills_up(monkeypatch: pytest.MonkeyPatch):
    import errno

    snapshot = hub._snapshot

    def full(*arguments: Any, dry_run: bool = False) -> Any:
        if dry_run or arguments[3] is not None:
            return snapshot(*arguments, dry_run=dry_run)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(hub, "_snapshot", full)
    assert "the disk is full; make room" in run(REPOSITORY, "--yes", code=1).stderr


def test_without_a_terminal_nobody_is_asked(server: Hub):
    assert "add --yes" in refused(REPOSITORY, code=2) and not server.asked


@pytest.mark.parametrize(("answer", "code"), [("y", 0), ("YES", 0), ("n", 1), ("", 1)])
def test_in_a_terminal_the_user_is_asked(server: Hub, monkeypatch: pytest.MonkeyPatch, answer: str, code: int):
    monkeypatch.setattr(download, "_is_asked", lambda: True)
    found = CliRunner().invoke(app, ["download", REPOSITORY], input=f"{answer}\n" if answer else "")
    assert found.exit_code == code and "Fetch them? [y/N]" in found.stderr
    assert bool(found.stdout) == (code == 0) and ("nothing was fetched" in found.stderr) == (code == 1)


def test_offline(monkeypatch: pytest.MonkeyPatch):
    from huggingface_hub import constants
    from huggingface_hub.utils import close_session

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()  # the next one reads it
    try:
        assert "cannot be fetched while HF_HUB_OFFLINE is set" in refused(REPOSITORY, "--yes")
    finally:
        close_session()


def test_the_environment_of_a_process(server: Hub, tmp_path: Path):
    """HF_ENDPOINT, HF_HUB_CACHE and HF_TOKEN reach huggingface_hub, and standard output gets the folder alone."""
    names = {"HF_ENDPOINT": server.url, "HF_HUB_CACHE": str(tmp_path / "hub"), "HF_TOKEN": "hf_other"}
    line = [sys.executable, "-m", "dvgen", "download", REPOSITORY, "--yes"]
    found = subprocess.run(line, env=os.environ | names, capture_output=True, text=True, check=True)
    assert Path(found.stdout.removesuffix("\n")).is_relative_to(tmp_path / "hub")
    assert server.tokens() == {"Bearer hf_other"}


# Which files of a repository are needed.


def listing(*names: str) -> hub.Listing:
    return hub.Listing(repository="a/b", revision="main", commit=COMMIT, files=dict.fromkeys(names, 1))


DIFFUSERS = (
    *("model_index.json", "transformer/config.json", "vae/config.json", "text_encoder/config.json"),
    *("vae/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"),
)


def test_shards_are_those_that_the_index_names():
    stem = "transformer/diffusion_pytorch_model"
    shards = [f"{stem}-0000{n}-of-00002.safetensors" for n in (1, 2)]
    others = [f"{stem}-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = f"{stem}.safetensors.index.json"
    found = hub.needed(listing(*DIFFUSERS, index, *shards, *others), lambda _: [Path(name).name for name in shards])
    assert set(found) == {*DIFFUSERS, index, *shards}
    with pytest.raises(CheckpointError, match=r"holds no transformer/.*-00002-of-00002"):
        hub.needed(listing(*DIFFUSERS, index, shards[0]), lambda _: [Path(name).name for name in shards])


def test_a_model_without_weights_in_a_known_format():
    with pytest.raises(CheckpointError, match=r"holds neither transformer/diffusion_pytorch_model\.safetensors nor"):
        hub.needed(listing(*DIFFUSERS, "transformer/diffusion_pytorch_model.bin"), lambda _: [])


def test_the_files_of_an_original_folder():
    stem = "diffusion_pytorch_model"
    both = ["Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth", "google/umt5-xxl/tokenizer.json", "config.json"]
    one = [*both, f"{stem}.safetensors", "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"]
    assert set(hub.needed(listing(*one, "README.md", "assets/a.jpg"), lambda _: [])) == set(one)
    two = [f"{kind}_noise_model/{name}" for kind in ("high", "low") for name in ("config.json", f"{stem}.safetensors")]
    assert set(hub.needed(listing(*both, *two, "assets/a.jpg"), lambda _: [])) == {*both, *two}
    with pytest.raises(CheckpointError, match="holds neither low_noise_model/"):
        hub.needed(listing(*both, *two[:3]), lambda _: [])


def test_a_repository_of_single_files():
    with pytest.raises(
        CheckpointError, match=r"neither a diffusers folder nor an original one; .*`hf download a/b FILE`"
    ):
        hub.needed(listing("split_files/vae/wan_2.1_vae.safetensors"), lambda _: [])


def test_image_to_video_needs_its_image_encoder(tmp_path: Path):
    folder = tiny_i2v_folder(tmp_path / "i2v")
    assert set(hub.needed(listing(*wanted(folder)), lambda _: [])) == wanted(folder)


def test_another_family_is_refused_before_its_weights_are_fetched(tiny: Path, server: Hub, tmp_path: Path):
    import shutil

    server.folder = shutil.copytree(tiny, tmp_path / "other")
    config = server.folder / "transformer" / "config.json"
    config.write_text(config.read_text().replace("WanTransformer3DModel", "LTXVideoTransformer3DModel"))
    said = refused(REPOSITORY, "--yes")
    assert "is no model that dvgen runs; transformer class 'LTXVideoTransformer3DModel'" in said
    assert not [name for name in server.fetched() if name.endswith(".safetensors")]
