"""Tensors that a layout stores as one: read in pieces, written together."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dit_video.checkpoints.fused import apart, together
from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.keymap import Layout, Row
from dit_video.checkpoints.parts import read_tensors, split
from dit_video.checkpoints.stored import read_tensor
from dit_video.checkpoints.write import planned, write_tensors
from dit_video.errors import CheckpointError

QKV = Layout(
    "fused",
    "token",
    (
        *(Row(f"{name}.{{p}}", "qkv.{p}", piece=(k, 3)) for k, name in enumerate("qkv")),
        Row("out.weight", "out.weight"),
        Row("token", "token", lead=2),
    ),
    ignored=("head", "other.*"),
)
FUSED = {"qkv.weight": torch.randn(12, 4), "qkv.bias": torch.randn(12), "out.weight": torch.randn(4, 4)} | {
    "token": torch.randn(1, 1, 4)
}
PIECES = {
    **{f"{n}.{p}": FUSED[f"qkv.{p}"][4 * k : 4 * k + 4] for k, n in enumerate("qkv") for p in ("weight", "bias")},
    **{"out.weight": FUSED["out.weight"], "token": FUSED["token"][0, 0]},
}


def described(tensors: dict[str, Tensor], file: Path) -> dict[str, TensorInfo]:
    if file.suffix == ".pth":
        torch.save(tensors, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return read_tensors(file)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_each_piece_is_read_as_a_tensor(name: str, tmp_path: Path):
    found = apart(described(FUSED, tmp_path / name), QKV)
    ours = {QKV.to_ours(theirs): info for theirs, info in found.items()}
    assert {each: info.shape for each, info in ours.items()} == {each: t.shape for each, t in PIECES.items()}
    assert sum(info.nbytes for info in ours.values()) == sum(tensor.nbytes for tensor in FUSED.values())
    for each, tensor in PIECES.items():
        assert torch.equal(read_tensor(ours[each]), tensor), each


@pytest.mark.parametrize("scale", [torch.tensor([0.5]), torch.arange(1.0, 13), torch.arange(1.0, 7).view(3, 2)])
def test_the_scale_of_a_piece_is_its_part_of_the_whole_scale(scale: Tensor, tmp_path: Path):
    """One for all, one for each row, and one for each block."""
    eight = FUSED["qkv.weight"].to(torch.float8_e4m3fn)
    found = apart(described(FUSED | {"qkv.weight": eight, "qkv.scale_weight": scale}, tmp_path / "a.safetensors"), QKV)
    if scale.ndim == 2:
        by = scale.repeat_interleave(4, dim=0).repeat_interleave(2, dim=1)
    else:
        by = scale.expand(12)[:, None]
    for k in range(3):
        info = found[f"qkv.weight[{k}/3]"]
        assert info.is_quantised
        torch.testing.assert_close(read_tensor(info), (eight.float() * by)[4 * k : 4 * k + 4], rtol=0, atol=0)


def test_written_together_and_apart_bit_for_bit(tmp_path: Path):
    infos = described(PIECES, tmp_path / "a.safetensors")
    whole = {name: planned(first, None, *then) for name, (first, *then) in together(infos, QKV).items()}
    write_tensors(tmp_path / "b.safetensors", whole)
    found = load_file(tmp_path / "b.safetensors")
    assert set(found) == set(FUSED) and all(torch.equal(found[name], FUSED[name]) for name in FUSED)
    again = {
        QKV.to_ours(n): planned(i, "BF16") for n, i in apart(read_tensors(tmp_path / "b.safetensors"), QKV).items()
    }
    write_tensors(tmp_path / "c.safetensors", again)
    found = load_file(tmp_path / "c.safetensors")
    assert all(torch.equal(found[name], PIECES[name].bfloat16()) for name in PIECES) and len(found) == len(PIECES)


def test_what_is_not_whole_is_refused(tmp_path: Path):
    infos = described(PIECES, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"'qkv\.bias' is made of 3 tensors of one shape; they are \[4\], \[4\]"):
        together({name: info for name, info in infos.items() if name != "k.bias"}, QKV)
    with pytest.raises(CheckpointError, match=r"they are \[4\], \[5\], \[4\]"):
        together(infos | {"k.bias": replace(infos["k.bias"], shape=(5,))}, QKV)
    for name, shape, says in (
        ("qkv.bias", (13,), "first axis must be a multiple of 3"),
        ("qkv.bias", (), "first axis must be a multiple of 3"),
        ("token", (1, 2, 4), "must begin with 2 axes of length 1"),
        ("token", (1,), "must begin with 2 axes of length 1"),
    ):
        wrong = described(FUSED | {name: torch.ones(shape)}, tmp_path / "b.safetensors")
        with pytest.raises(CheckpointError, match=rf"tensor '{name}' is \[.*\]; .*{says}"):
            apart(wrong, QKV)


def test_what_lies_beside_it_in_a_file_is_passed_over(tmp_path: Path):
    """What is ignored is neither a stray nor a component of another kind."""
    tensors = {f"mine.{name}": tensor for name, tensor in FUSED.items()} | {"mine.head": torch.ones(2)}
    other = Layout("other", "blocks.0.weight", (Row("blocks.{i}.weight", "blocks.{i}.weight"),))
    kinds = {"first": (QKV,), "second": (other,)}
    file = tmp_path / "a.safetensors"
    found = split(file, described(tensors | {"other.blocks.0.weight": torch.ones(2)}, file), kinds)
    assert set(found) == {"first"} and set(found["first"].shapes) == set(PIECES)
    assert set(split(file, described(tensors | {"else.blocks.0.weight": torch.ones(2)}, file), kinds)) == {*kinds}
    with pytest.raises(CheckpointError, match="1 tensor is of no component that is known: 'stray'"):
        split(file, described(tensors | {"stray": torch.ones(2)}, file), kinds)
