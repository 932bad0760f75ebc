"""Headers of safetensors files that lie; and nothing is believed that the format's own library does not believe."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dit_video.checkpoints.files import read_headers
from dit_video.checkpoints.headers import read_header, summarize
from dit_video.errors import CheckpointError

TENSORS = {"a.weight": torch.ones(3, 4), "b.bias": torch.zeros(5, dtype=torch.bfloat16)}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("headers") / "whole.safetensors"
    save_file(TENSORS, file)
    return file.read_bytes()


def parts(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def joined(header: dict[str, Any] | str, data: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_what_a_header_says(whole: bytes, tmp_path: Path):
    (tmp_path / "m.safetensors").write_bytes(whole)
    found = read_header(tmp_path / "m.safetensors")
    assert {name: (info.dtype, info.shape, info.nbytes) for name, info in found.items()} == {
        "a.weight": ("F32", (3, 4), 48),
        "b.bias": ("BF16", (5,), 10),
    }
    assert summarize(found.values()).dtypes == ("float32", "bfloat16")


def change(header: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {**header, "b.bias": {**header["b.bias"], **fields}}


@pytest.mark.parametrize(
    ("lie", "says"),
    [
        (lambda h: change(h, data_offsets=[40, 58]), "overlaps another one"),
        (lambda h: change(h, data_offsets=[48, 10**30]), "is cut short"),
        (lambda h: change(h, data_offsets=[58, 48]), "is cut short|is too long|damaged"),
        (lambda h: change(h, data_offsets=[-10, 58]), "make sense"),
        (lambda h: change(h, data_offsets=[48]), "damaged"),
        (lambda h: change(h, data_offsets=[48.0, 58.0]), "make sense"),
        (lambda h: change(h, data_offsets=[True, 58]), "make sense"),
        (lambda h: change(h, shape=[6]), "takes 10 bytes, which its shape and dtype do not"),
        (lambda h: change(h, shape=[5, 2**62, 2**62]), "takes 10 bytes"),
        (lambda h: change(h, shape=[-5]), "make sense"),
        (lambda h: change(h, shape="5"), "make sense"),
        (lambda h: change(h, dtype=["F32"]), "make sense"),
        (lambda h: change(h, dtype="F7"), "has the dtype F7, which is not supported"),
        (lambda h: {**h, "b.bias": 3}, "damaged"),
        (lambda h: {"b.bias": h["b.bias"]}, "leaves a gap before it"),
        (lambda h: json.dumps(h)[:-1] + ',"b.bias":' + json.dumps(h["b.bias"]) + "}", "'b.bias' is there twice"),
        (lambda h: "[" * 100_000, "damaged"),
        (lambda h: "[]", "damaged"),
        (lambda h: "\x00\x00", "damaged"),
    ],
)
def test_a_lie_is_one_sentence(lie: Callable[[dict[str, Any]], Any], says: str, whole: bytes, tmp_path: Path):
    header, data = parts(whole)
    header.pop("__metadata__", None)
    file = tmp_path / "m.safetensors"
    file.write_bytes(joined(lie(header), data))
    with pytest.raises(CheckpointError, match=says) as caught:
        read_header(file)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize("length", [2**63, 2**40, 100_000_001, 1, 0])
def test_a_header_of_an_impossible_length(length: int, whole: bytes, tmp_path: Path):
    (tmp_path / "m.safetensors").write_bytes(length.to_bytes(8, "little") + whole[8:])
    with pytest.raises(CheckpointError, match="not a safetensors file, or is cut short"):
        read_header(tmp_path / "m.safetensors")


@pytest.mark.parametrize("shard", ["../m.safetensors", "/etc/passwd", "sub/m.safetensors", "..\\m.safetensors"])
def test_an_index_stays_in_its_folder(shard: str, whole: bytes, tmp_path: Path):
    folder = tmp_path / "transformer"
    folder.mkdir()
    (tmp_path / "m.safetensors").write_bytes(whole)
    index = {"weight_map": dict.fromkeys(TENSORS, shard)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="shards lie in the index's own folder"):
        read_headers(folder, "model")


edits = st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=edits, cut=st.one_of(st.none(), st.integers(0, 400)))
def test_what_is_believed_the_formats_library_believes_too(edits, cut, whole: bytes, tmp_path: Path):
    data = bytearray(whole)
    for position, value in edits:
        data[position % len(data)] = value
    file = tmp_path / "mutated.safetensors"
    file.write_bytes(bytes(data[:cut]))
    try:
        found = read_header(file)
    except CheckpointError:
        return
    try:
        with safe_open(file, "pt") as stored:
            assert {name: stored.get_slice(name).get_shape() for name in stored.keys()} == {  # noqa: SIM118
                name: list(info.shape) for name, info in found.items()
            }
    except SafetensorError as error:
        pytest.fail(f"read_header believes what safetensors does not: {error}")
