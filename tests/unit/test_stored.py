"""The same tensors in every file format, quantised ones in each convention, and files that are not what they say."""

import json
import pickle
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from dit_video.checkpoints.formats import describe, gguf_field, loadable
from dit_video.checkpoints.headers import read_metadata
from dit_video.checkpoints.quantised import peeled
from dit_video.checkpoints.stored import Stored, read_tensor
from dit_video.errors import CheckpointError

TENSORS = {
    "patch.weight": torch.randn(4, 2, 1, 2, 2, generator=torch.Generator().manual_seed(0)),
    "norm.weight": torch.linspace(-1, 1, 8).to(torch.bfloat16),
    "ffn.weight": torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).half(),
}


Kinds = dict[str, gguf.GGMLQuantizationType]


def write_gguf(file: Path, tensors: dict[str, Tensor], kinds: Kinds | None = None) -> Path:
    writer = gguf.GGUFWriter(file, "wan")
    for name, tensor in tensors.items():
        kind = (kinds or {}).get(name)
        if tensor.ndim > 4:  # the writer of these files keeps to four axes
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(tensor.shape))
            tensor = tensor.flatten(2)
        if tensor.dtype == torch.bfloat16:
            writer.add_tensor(name, tensor.view(torch.int16).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)
        elif kind is None:
            writer.add_tensor(name, tensor.numpy())
        else:
            writer.add_tensor(name, gguf.quantize(tensor.float().numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.mark.parametrize("name", ["m.safetensors", "m.sft", "m.pth", "m.pt", "m.gguf"])
def test_one_model_in_every_format(name: str, tmp_path: Path):
    file = tmp_path / name
    if file.suffix == ".gguf":
        write_gguf(file, TENSORS)
        assert gguf_field(file, "general.architecture") == "wan"
    elif file.suffix in (".pth", ".pt"):
        torch.save(TENSORS, file)
    else:
        save_file(TENSORS, file)
    found = describe(file)
    assert {n: (i.dtype, i.shape) for n, i in found.items()} == {
        "patch.weight": ("F32", (4, 2, 1, 2, 2)),
        "norm.weight": ("BF16", (8,)),
        "ffn.weight": ("F16", (3, 64)),
    }
    assert sum(info.nbytes for info in found.values()) == 64 * 2 + 16 + 384 and all(map(loadable, found.values()))
    with Stored(file) as stored:
        for n, tensor in TENSORS.items():
            torch.testing.assert_close(stored.get(found[n]), tensor, rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q5_1"])
def test_gguf_is_dequantised(kind: str, tmp_path: Path):
    quantised = gguf.GGMLQuantizationType[kind]
    file = write_gguf(tmp_path / "m.gguf", TENSORS, {"ffn.weight": quantised})
    info = describe(file)["ffn.weight"]
    assert info.dtype == kind and info.shape == (3, 64) and loadable(info)
    exact = TENSORS["ffn.weight"].float()
    tensor = read_tensor(info)
    assert tensor.dtype == torch.float32 and 0 < (tensor - exact).abs().max() < 0.5


@pytest.mark.parametrize(("kind", "block"), [("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 210)])
def test_gguf_of_larger_blocks(kind: str, block: int, tmp_path: Path):
    """Blocks of 256, which the package reads and does not write: here random bits with scales of 1."""
    data = np.random.default_rng(2).integers(0, 256, (3, block), dtype=np.uint8)
    one = np.frombuffer(np.float16(1).tobytes(), np.uint8)
    at = [208] if kind == "Q6_K" else [0, 2]
    for place in at:
        data[:, place : place + 2] = one
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "wan")
    writer.add_tensor("x", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    info = describe(tmp_path / "m.gguf")["x"]
    assert (info.dtype, info.shape, info.nbytes) == (kind, (3, 256), 3 * block)
    assert read_tensor(info).std() > 1


WHOLE = torch.zeros(4, 8, dtype=torch.int8)
WEIGHT = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))


def quantised(kind: str) -> tuple[dict[str, Tensor], dict[str, str], Tensor]:
    """A file's tensors and metadata, and what its weight is."""
    layer = {"layers": {"x": {"format": kind}}}
    if kind == "older":
        q, s = (WEIGHT * 40).to(torch.float8_e4m3fn), torch.tensor([1 / 40])
        tensors = {"x.weight": q, "x.scale_weight": s, "x.scale_input": torch.ones(1), "scaled_fp8": torch.zeros(2)}
        return tensors, {}, q.float() * s
    if kind == "cast":
        q = WEIGHT.to(torch.float8_e5m2)
        return {"x.weight": q}, {}, q.float()
    if kind == "float8_e4m3fn":
        q, s = (WEIGHT * 40).to(torch.float8_e4m3fn), torch.tensor(1 / 40)
        about = torch.tensor(list(json.dumps({"format": kind}).encode()), dtype=torch.uint8)
        tensors = {"x.weight": q, "x.weight_scale": s, "x.input_scale": torch.ones(()), "x.comfy_quant": about}
        return tensors, {}, q.float() * s
    if kind == "int8 rows":
        s = WEIGHT.abs().amax(1, keepdim=True) / 127
        q = (WEIGHT / s).round().to(torch.int8)
        metadata = {"_quantization_metadata": json.dumps({"layers": {"x": {"format": "int8_tensorwise"}}})}
        return {"x.weight": q, "x.weight_scale": s}, metadata, q.float() * s
    s = torch.tensor([[0.5, 0.25], [0.125, 2.0]])
    q = torch.arange(-16, 16, dtype=torch.int8).view(4, 8)
    whole = s.repeat_interleave(2, 0).repeat_interleave(4, 1)
    return {"x.weight": q, "x.weight_scale": s}, {"_quantization_metadata": json.dumps(layer)}, q.float() * whole


@pytest.mark.parametrize("kind", ["older", "cast", "float8_e4m3fn", "int8 rows", "int8_blockwise"])
def test_scales_beside_the_weight(kind: str, tmp_path: Path):
    tensors, metadata, exact = quantised(kind)
    save_file({**tensors, "x.bias": torch.ones(4)}, tmp_path / "m.safetensors", metadata=metadata)
    found = peeled(describe(tmp_path / "m.safetensors"), read_metadata(tmp_path / "m.safetensors"))
    assert set(found) == {"x.weight", "x.bias"} and all(map(loadable, found.values()))
    torch.testing.assert_close(read_tensor(found["x.weight"]).float(), exact, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"x.weight": WHOLE}, "'x.weight' is I8 and has no scale"),
        (
            {"x.weight": torch.zeros(4, 8, dtype=torch.int8), "x.weight_scale": torch.ones(3)},
            r"\[3\], which does not fit",
        ),
        ({"x.weight": torch.zeros(4, 8), "x.weight_scale_2": torch.ones(1)}, "second scale"),
        (
            {"x.weight": torch.zeros(4, 8, dtype=torch.int8), "x.weight_scale": torch.ones(1, dtype=torch.int64)},
            "must be a float",
        ),
        ({"x.comfy_quant": torch.zeros(3, dtype=torch.uint8)}, "its quantisation is damaged"),
        (
            {"x.comfy_quant": torch.tensor(list(b'{"format": "nvfp4"}'), dtype=torch.uint8)},
            "quantised as 'nvfp4', which is not supported; float8_e4m3fn",
        ),
    ],
)
def test_quantisations_that_are_refused(tensors: dict[str, Tensor], says: str, tmp_path: Path):
    save_file(tensors, tmp_path / "m.safetensors")
    with pytest.raises(CheckpointError, match=says):
        peeled(describe(tmp_path / "m.safetensors"), {})


class Harmful:
    """What runs a command when a pickle of it is read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.folder / "ran",)


def test_code_in_a_pickle_is_never_run(tmp_path: Path):
    torch.save({"x": Harmful(tmp_path)}, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match=r"is not a file of tensors alone \(it holds code\)"):
        describe(tmp_path / "m.pth")
    (tmp_path / "old.pth").write_bytes(pickle.dumps(Harmful(tmp_path)))
    with pytest.raises(
        CheckpointError,
        match=r"old\.pth: is not in torch.save.s zip format, or is cut short",
    ):
        describe(tmp_path / "old.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("m.gguf", b"", "is not a GGUF file"),
        ("m.gguf", b"GGUF" + b"\xff" * 60, "is not a GGUF file"),
        ("m.gguf", b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2, "is not a GGUF file"),
        ("m.pth", b"PK\x03\x04" + b"\x00" * 40, "is not in torch.save.s zip format"),
        ("m.pth", b"", "is not in torch.save.s zip format"),
        ("m.ckpt", b"", "is none of the formats that are read, which end in .safetensors"),
    ],
)
def test_damaged_files(name: str, data: bytes, says: str, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=says) as caught:
        describe(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_gguf_that_is_cut_short(tmp_path: Path):
    data = write_gguf(tmp_path / "whole.gguf", TENSORS).read_bytes()
    for length in (20, len(data) // 3, len(data) // 2, len(data) - 1):
        file = tmp_path / f"{length}.gguf"
        file.write_bytes(data[:length])
        with pytest.raises(CheckpointError, match="GGUF"):
            describe(file)


@pytest.mark.parametrize("held", [[torch.ones(2)], {"epoch": 3}, {3: torch.ones(2)}])
def test_a_pickle_of_other_things(held: Any, tmp_path: Path):
    torch.save(held, tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="something other than named tensors"):
        describe(tmp_path / "m.pth")
