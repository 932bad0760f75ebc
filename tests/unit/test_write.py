"""Safetensors files written tensor by tensor."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from dit_video.checkpoints import write
from dit_video.checkpoints.files import read_headers
from dit_video.checkpoints.headers import read_header
from dit_video.checkpoints.parts import read_tensors
from dit_video.checkpoints.write import Planned, nbytes, planned, write_shards, write_tensors
from dit_video.errors import CheckpointError

TENSORS = {
    "a.weight": torch.randn(3, 5),
    "b": torch.randn(7).to(torch.bfloat16),
    "c": torch.tensor(2.5, dtype=torch.float16),
    "count": torch.arange(4),
    "empty": torch.zeros(0, 3),
    "eight": torch.randn(5).to(torch.float8_e4m3fn),
    "true": torch.tensor([True, False, True]),
    "ä": torch.randn(1, 1, 2, dtype=torch.float64),
}


def plan(file: Path, dtype: str | None = None) -> dict[str, Planned]:
    return {name: planned(info, dtype) for name, info in read_tensors(file).items()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "in.safetensors", {"format": "pt"})
    return tmp_path / "in.safetensors"


def equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    """Names, dtypes, shapes and bits, those of NaN included."""
    return set(found) == set(wanted) and all(
        (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        and torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))
        for name, tensor in wanted.items()
    )


def test_every_dtype_comes_back_bit_for_bit(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(write, "_PIECE", 4)  # so that tensors are cut
    calls: list[int] = []
    write_tensors(tmp_path / "out.safetensors", plan(file), lambda: calls.append(1))
    assert equal(load_file(tmp_path / "out.safetensors"), TENSORS) and len(calls) == len(TENSORS)
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    # As large as the file that the library itself writes: nothing is padded but the header, to the same width.
    assert (tmp_path / "out.safetensors").stat().st_size == file.stat().st_size
    assert nbytes(plan(file)) == sum(info.nbytes for info in read_header(file).values())


def test_numbers_lie_at_multiples_of_their_width(file: Path, tmp_path: Path):
    write_tensors(tmp_path / "out.safetensors", plan(file))
    data = (tmp_path / "out.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__")
    assert (8 + length) % 8 == 0
    for entry in header.values():
        width = torch.empty(0, dtype=write.DTYPES[entry["dtype"]]).element_size()
        assert entry["data_offsets"][0] % width == 0


def test_floats_are_cast_and_whole_numbers_are_not(file: Path, tmp_path: Path):
    write_tensors(tmp_path / "out.safetensors", plan(file, "F16"))
    cast = {name: t.to(torch.float16) if t.is_floating_point() else t for name, t in TENSORS.items()}
    assert equal(load_file(tmp_path / "out.safetensors"), cast)


def test_quantised_tensors_become_bfloat16(tmp_path: Path):
    weight = torch.randn(4, 6).to(torch.float8_e4m3fn)
    save_file({"x.weight": weight, "x.scale_weight": torch.tensor([0.5])}, tmp_path / "in.safetensors")
    write_tensors(tmp_path / "out.safetensors", plan(tmp_path / "in.safetensors"))
    assert equal(load_file(tmp_path / "out.safetensors"), {"x.weight": (weight.float() * 0.5).to(torch.bfloat16)})


def test_bytes_are_a_tensor(tmp_path: Path):
    write_tensors(tmp_path / "out.safetensors", {"spiece_model": b"abc"})
    assert load_file(tmp_path / "out.safetensors")["spiece_model"].tolist() == [97, 98, 99]


def test_what_float16_cannot_hold_is_refused_and_infinity_stays(tmp_path: Path):
    big, inf = tmp_path / "big.safetensors", tmp_path / "inf.safetensors"
    save_file({"w": torch.tensor([1.0, -1e5], dtype=torch.bfloat16)}, big)
    with pytest.raises(CheckpointError, match="tensor 'w' holds 99840, and float16 ends at 65504; bfloat16 has"):
        write_tensors(tmp_path / "out.safetensors", plan(big, "F16"))
    assert sorted(tmp_path.iterdir()) == [big]
    save_file({"w": torch.tensor([float("inf"), 1.0])}, inf)
    write_tensors(tmp_path / "out.safetensors", plan(inf, "F16"))
    assert load_file(tmp_path / "out.safetensors")["w"].tolist() == [float("inf"), 1.0]


def test_a_file_that_cannot_be_written(file: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"none/out\.safetensors: cannot be written \(No such file"):
        write_tensors(tmp_path / "none" / "out.safetensors", plan(file))


def test_shards(tmp_path: Path):
    tensors = {f"t{n}": torch.randn(10) for n in range(5)} | {"large": torch.randn(100)}
    save_file(tensors, tmp_path / "in.safetensors")
    wanted = {name: plan(tmp_path / "in.safetensors")[name] for name in tensors}  # the library has an order of its own
    write_shards(tmp_path, "m", wanted, limit=100)
    files = sorted(file.name for file in tmp_path.glob("m*"))
    assert files == [*(f"m-{n:05}-of-00004.safetensors" for n in (1, 2, 3, 4)), "m.safetensors.index.json"]
    assert [len(read_header(tmp_path / name)) for name in files[:4]] == [2, 2, 1, 1]
    assert json.loads((tmp_path / files[4]).read_text())["metadata"] == {"total_size": 600}
    read = {name: load_file(info.file)[name] for name, info in read_headers(tmp_path, "m").items()}
    assert equal(read, tensors)
    write_shards(tmp_path, "one", wanted, limit=None)
    assert equal(load_file(tmp_path / "one.safetensors"), tensors)
    write_shards(tmp_path, "fits", wanted, limit=600)
    assert equal(load_file(tmp_path / "fits.safetensors"), tensors)
