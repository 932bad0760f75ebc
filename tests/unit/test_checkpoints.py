"""Checkpoint files and loading: strict by name, nothing half-written, one sentence for everything that can be wrong."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dit_video.checkpoints import places
from dit_video.checkpoints.files import read_headers, read_json, replacing_folder, save_tensors
from dit_video.checkpoints.headers import read_header, summarize
from dit_video.checkpoints.hub import KNOWN
from dit_video.checkpoints.keymap import Layout, Row
from dit_video.checkpoints.load import load_into, save_model
from dit_video.checkpoints.places import find_checkpoint
from dit_video.errors import CheckpointError

LAYOUT = Layout(
    name="theirs",
    fingerprint="proj.weight",
    rows=(Row("head.{p}", "proj.{p}"), Row("norm.{p}", "ln.{p}"), Row("table", "tab"), Row("count", "n")),
)


class Small(nn.Module):
    """Every kind of state: layers, a parameter of its own, a persistent and a non-persistent buffer."""

    count: Tensor
    ramp: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.norm = nn.LayerNorm(3)
        self.table = nn.Parameter(torch.randn(1, 3))
        self.register_buffer("count", torch.zeros(2))
        self.register_buffer("ramp", torch.arange(5.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.head(x)) * self.table + self.ramp[:3] + self.count.sum()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Small, Path]:
    torch.manual_seed(3)
    module = Small()
    with torch.no_grad():
        for tensor in (*module.parameters(), module.count):
            tensor.copy_(torch.randn_like(tensor))
    save_model(module, tmp_path / "model.safetensors", LAYOUT)
    return module, tmp_path


def reload(folder: Path, **options) -> Small:
    return load_into(Small, read_headers(folder, "model"), LAYOUT, **{"dtype": torch.float32, **options})


def edit(folder: Path, **changes: Tensor | None) -> None:
    """Writes model.safetensors anew with tensors added, replaced, or (None) left out."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()} | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")


def shard(folder: Path) -> dict:
    """Splits model.safetensors in two shards with an index, which is returned."""
    tensors = {name: tensor.clone() for name, tensor in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    weight_map = {}
    for n, names in enumerate((sorted(tensors)[:3], sorted(tensors)[3:]), start=1):
        file = f"model-0000{n}-of-00002.safetensors"
        save_file({name: tensors[name] for name in names}, folder / file)
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return index


def test_round_trip_gives_the_same_numbers(saved: tuple[Small, Path]) -> None:
    module, folder = saved
    loaded = reload(folder)
    assert {name for name in load_file(folder / "model.safetensors")} == {
        "proj.weight", "proj.bias", "ln.weight", "ln.bias", "tab", "n"
    }  # fmt: skip
    x = torch.randn(2, 4)
    assert torch.equal(loaded(x), module(x))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())


def test_sharded_equals_single(saved: tuple[Small, Path]) -> None:
    module, folder = saved
    shard(folder)
    x = torch.randn(2, 4)
    assert torch.equal(reload(folder)(x), module(x))


def test_building_draws_no_weights_and_keeps_computed_buffers(saved: tuple[Small, Path]) -> None:
    _, folder = saved
    built = []

    def build() -> Small:
        built.append(Small())
        assert built[0].head.weight.is_meta and built[0].norm.bias.is_meta
        return built[0]

    loaded = load_into(build, read_headers(folder, "model"), LAYOUT, dtype=torch.float32)
    assert torch.equal(loaded.ramp, torch.arange(5.0))
    assert not any(t.is_meta for t in (*loaded.parameters(), *loaded.buffers()))


def test_dtype_and_the_names_kept_in_float32(saved: tuple[Small, Path]) -> None:
    module, folder = saved
    loaded = reload(folder, dtype=torch.bfloat16, float32_names=lambda name: name.startswith("norm."))
    assert loaded.norm.weight.dtype == loaded.norm.bias.dtype == torch.float32
    assert torch.equal(loaded.norm.weight, module.norm.weight)
    assert loaded.head.weight.dtype == loaded.table.dtype == loaded.count.dtype == torch.bfloat16
    assert torch.equal(loaded.head.weight, module.head.weight.bfloat16())
    assert loaded.ramp.dtype == torch.float32  # computed, not loaded


def test_saving_in_lower_precision(saved: tuple[Small, Path]) -> None:
    module, folder = saved
    save_model(module, folder / "half.safetensors", LAYOUT, torch.float16)
    assert {info.dtype for info in read_header(folder / "half.safetensors").values()} == {"F16"}
    assert torch.equal(load_file(folder / "half.safetensors")["tab"], module.table.half())


def test_loaded_weights_outlive_their_file(saved: tuple[Small, Path]) -> None:
    module, folder = saved
    loaded = reload(folder)
    save_model(Small(), folder / "model.safetensors", LAYOUT)
    (folder / "model.safetensors").unlink()
    assert torch.equal(loaded.head.weight, module.head.weight)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tab": None}, r"1 tensor is missing: 'tab'\.$"),
        (
            {"tab": None, "n": None, "ln.bias": None, "ln.weight": None},
            r"4 tensors are missing: ('[\w.]+', ){3}\.\.\.\.$",
        ),
        ({"extra": torch.zeros(1)}, r"'extra': 0 rows of the theirs layout match it"),
        ({"tab": torch.zeros(1, 4)}, r"tensor 'tab' is \[1, 4\]; it must be \[1, 3\]\.$"),
        (
            {"tab": torch.zeros(1, 3, dtype=torch.int64)},
            r"tensor 'tab' is I64; it must be one of F64, F32, F16, BF16, F8_E4M3, F8_E5M2\.$",
        ),
    ],
)
def test_tensors_that_do_not_fit(saved: tuple[Small, Path], changes: dict[str, Tensor | None], message: str) -> None:
    edit(saved[1], **changes)
    with pytest.raises(CheckpointError, match=message):
        reload(saved[1])


def test_unexpected_tensor_of_a_known_row(saved: tuple[Small, Path]) -> None:
    headers = read_headers(saved[1], "model")

    class WithoutTable(Small):
        def __init__(self) -> None:
            super().__init__()
            del self.table

    with pytest.raises(CheckpointError, match=r"1 tensor is unexpected: 'tab'\.$"):
        load_into(WithoutTable, headers, LAYOUT, dtype=torch.float32)


def test_two_names_for_one_tensor(saved: tuple[Small, Path]) -> None:
    edit(saved[1], table=torch.zeros(1, 3))
    layout = Layout("both", "x", (*LAYOUT.rows[:2], Row("table", "ta{p}"), *LAYOUT.rows[2:], Row("table", "table")))
    with pytest.raises(CheckpointError, match="are both the tensor 'table'"):
        load_into(Small, read_headers(saved[1], "model"), layout, dtype=torch.float32)


def test_parameter_that_nothing_fills(saved: tuple[Small, Path]) -> None:
    class Hidden(Small):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("spare", torch.empty(2), persistent=False)

    with pytest.raises(CheckpointError, match=r"^spare: no tensor of the checkpoint gives it a value\.$"):
        load_into(Hidden, read_headers(saved[1], "model"), LAYOUT, dtype=torch.float32)


def test_names_are_checked_before_any_data_is_read(saved: tuple[Small, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    edit(saved[1], tab=None)
    monkeypatch.setattr("dit_video.checkpoints.load.Stored", lambda *_, **__: pytest.fail("data was read"))
    with pytest.raises(CheckpointError, match="missing"):
        reload(saved[1])


def test_header_says_names_shapes_and_sizes(saved: tuple[Small, Path]) -> None:
    header = read_header(saved[1] / "model.safetensors")
    assert {name: info.shape for name, info in header.items()} == {
        "proj.weight": (3, 4), "proj.bias": (3,), "ln.weight": (3,), "ln.bias": (3,), "tab": (1, 3), "n": (2,)
    }  # fmt: skip
    edit(saved[1], n=torch.zeros(2, dtype=torch.float16))
    summary = summarize(read_header(saved[1] / "model.safetensors").values())
    assert (summary.parameters, summary.nbytes, summary.dtypes) == (26, 24 * 4 + 4, ("float32", "float16"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:-5], r"is cut short \(\d+ bytes of \d+\)"),
        (lambda data: data[:40], r"is not a safetensors file, or is cut short \(40 bytes\)"),
        (lambda data: b"", r"is not a safetensors file, or is cut short \(0 bytes\)"),
        (lambda data: b"<!DOCTYPE html><html>" * 9, r"is not a safetensors file"),
        (lambda data: data + b"\0", r"is too long \(\d+ bytes of \d+\)"),
        (lambda data: data[:8] + b"[" + data[9:], r"its header is damaged \(.+\)"),
        (lambda data: data.replace(b'"shape"', b'"shapf"'), r"its header is damaged \('shape'\)"),
        (lambda data: data.replace(b'"F32"', b'"F33"'), r"has the dtype F33, which is not supported"),
    ],
)
def test_damaged_files_are_named(saved: tuple[Small, Path], damage, message: str) -> None:
    file = saved[1] / "model.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: .*{message}") as error:
        reload(saved[1])
    assert "\n" not in str(error.value) and str(error.value).endswith(".")


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor model\.safetensors\.index\.json"):
        read_headers(tmp_path, "model")
    with pytest.raises(CheckpointError, match=r"none\.safetensors: cannot be read \(No such file or directory\)"):
        read_header(tmp_path / "none.safetensors")


def test_missing_shard_is_named(saved: tuple[Small, Path]) -> None:
    shard(saved[1])
    (saved[1] / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"1 of 2 shards are missing, the first is model-00002-of-00002"):
        reload(saved[1])


def test_index_that_disagrees_with_its_shards(saved: tuple[Small, Path]) -> None:
    index = shard(saved[1])
    del index["weight_map"]["n"]
    (saved[1] / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"tensor 'n' is in the index or in a shard, but not in both"):
        reload(saved[1])
    (saved[1] / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"index\.json: lacks a weight_map"):
        reload(saved[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", r"is not JSON"), ("[1]", r"must hold a JSON object, not a list"), (None, r"cannot be read")],
)
def test_damaged_json_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}"):
        read_json(tmp_path / "config.json")


def test_failed_save_keeps_the_old_file(saved: tuple[Small, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, folder = saved
    before = (folder / "model.safetensors").read_bytes()

    def interrupted(tensors: object, path: Path, metadata: object) -> None:
        Path(path).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_tensors({"a": torch.zeros(2)}, folder / "model.safetensors")
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["model.safetensors"]


def test_save_into_a_missing_folder_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.safetensors: cannot be written \(.*No such file"):
        save_tensors({"a": torch.zeros(2)}, tmp_path / "none" / "a.safetensors")


def test_saved_file_has_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    save_tensors({"a": torch.zeros(2)}, tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with replacing_folder(out) as part:
        (part / "model_index.json").write_text("{}")
        (part / "old").touch()
        assert not out.exists()
    with pytest.raises(RuntimeError), replacing_folder(out) as part:
        (part / "new").touch()
        raise RuntimeError
    assert sorted(os.listdir(out)) == ["model_index.json", "old"]
    with replacing_folder(out) as part:
        (part / "model_index.json").write_text("{}")
    assert os.listdir(out) == ["model_index.json"] and os.listdir(tmp_path) == ["out"]


def test_folder_of_something_else_is_kept(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(CheckpointError, match="exists and is not a checkpoint"), replacing_folder(tmp_path):
        pytest.fail("must not start")


def test_replaced_folder_has_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "usual").touch()
    with replacing_folder(tmp_path / "out") as part:
        (part / "vae").mkdir()
        save_file({"a": torch.zeros(2)}, part / "vae" / "a.safetensors")
    assert (tmp_path / "out" / "vae" / "a.safetensors").stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert os.listdir(tmp_path / "out") == ["vae"]


def checkpoint_at(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    return folder


def test_default_is_looked_for_in_the_package_then_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "_PACKAGE", tmp_path / "dit_video")
    monkeypatch.chdir(tmp_path)
    checkpoint_at(tmp_path / "default")  # a folder that happens to have this name is not the shipped model
    with pytest.raises(CheckpointError, match=r"dit_video/_weights/default nor in .*/weights/default; pass --model"):
        find_checkpoint()
    checkout = checkpoint_at(tmp_path / "weights" / "default")
    assert find_checkpoint("default") == find_checkpoint() == checkout
    packaged = checkpoint_at(tmp_path / "dit_video" / "_weights" / "default")
    assert find_checkpoint("default") == packaged
    assert find_checkpoint(tmp_path / "default") == tmp_path / "default"


def test_path_comes_before_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "_PACKAGE", tmp_path / "dit_video")
    monkeypatch.chdir(tmp_path)
    shipped = checkpoint_at(tmp_path / "weights" / "other")
    assert find_checkpoint("other") == shipped
    checkpoint_at(tmp_path / "other")
    assert find_checkpoint("other") == Path("other")


def test_missing_checkpoints_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match=r"none: there is no such file or folder; a model is"):
        find_checkpoint(tmp_path / "none")
    for name in ("owner/name-2.1", next(iter(KNOWN))):
        with pytest.raises(CheckpointError, match=rf"cache; `dvgen download {re.escape(name)}` fetches it"):
            find_checkpoint(name)
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("runs/model", "models/wan.safetensors", "./model", "a/b/c", "/model", "nowhere"):
        with pytest.raises(CheckpointError, match=r"in the Hugging Face cache\.$"):
            find_checkpoint(name)
    with pytest.raises(
        CheckpointError, match=r"holds no model_index\.json and no diffusion_pytorch_model\.safetensors; a model is"
    ):
        find_checkpoint(tmp_path)
