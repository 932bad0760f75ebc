"""Layers that are read when their turn comes: the same numbers, in less memory, whatever the order of things."""

import shutil
from collections.abc import Collection
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dit_video.checkpoints.formats import describe
from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.parts import Keep, Part
from dit_video.checkpoints.stored import Stored
from dit_video.checkpoints.stream import copied
from dit_video.checkpoints.transfer import Held, Transfer
from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.errors import CheckpointError
from dit_video.models import open_checkpoint
from dit_video.models.wan.layouts import DIFFUSERS
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.nn.streaming import Slot, StreamedList, layers_with, spread
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from tests.tiny import tiny_experts_folder, tiny_i2v_folder, tiny_wan21_folder
from tests.unit.test_wan_release import narrow_heads, original_folder

__all__ = ["narrow_heads"]  # a fixture

WIDTH = 4


class Counted:
    """Weights of layers 0, 1, 2 ...: the layer's number everywhere; counts what is read."""

    def __init__(self) -> None:
        self.read: list[int] = []

    def __call__(self, index: int, slot: Slot, names: Collection[str]) -> Slot:
        self.read.append(index)
        weight = slot.get("weight", torch.empty(WIDTH, WIDTH)).fill_(index)
        return {"weight": weight} | ({} if names else {"bias": slot.get("bias", torch.empty(WIDTH)).fill_(index)})


def streamed(count: int, kept: Collection[int] = ()) -> tuple[StreamedList, Counted]:
    fill = Counted()
    with torch.device("meta"):
        layers = [nn.Linear(WIDTH, WIDTH) for _ in range(count)]
    for index in kept:
        layers[index].to_empty(device="cpu")
        nn.init.constant_(layers[index].weight, index)
    return StreamedList(layers, fill, kept), fill


def test_each_layer_has_its_weights_while_it_is_used():
    layers, _ = streamed(5)
    for _ in range(3):
        for index, layer in enumerate(layers):
            assert torch.equal(layer.weight, torch.full((WIDTH, WIDTH), float(index)))
            assert all(other.weight.is_meta for other in layers._modules.values() if other is not layer)
    assert all(layer.weight.is_meta for layer in layers._modules.values())


def test_each_is_read_once_a_pass_and_into_two_layers_of_memory():
    layers, fill = streamed(5)
    places = [layer.weight.data_ptr() for _ in range(2) for layer in layers]
    layers._thread.submit(int).result()  # what was asked of the thread before is done
    assert fill.read[:10] == [0, 1, 2, 3, 4] * 2 and len(fill.read) == 11  # the next pass has begun
    assert len(set(places)) == 2


def test_kept_layers_are_not_read():
    kept = spread(6, 3)
    layers, fill = streamed(6, kept)
    for _ in range(2):
        assert [float(layer.weight.detach()[0, 0]) for layer in layers] == [0, 1, 2, 3, 4, 5]
    assert not set(fill.read) & set(kept)


def test_a_pass_that_was_broken_off_does_no_harm():
    layers, _ = streamed(5)
    for index, _layer in enumerate(layers):
        if index == 2:
            break
    assert [float(layer.weight.detach()[0, 0]) for layer in layers] == [0, 1, 2, 3, 4]


def test_a_look_at_some_weights_reads_no_others():
    layers, _ = streamed(3)
    next(iter(layers))  # something is on its way
    assert [(float(layer.weight.detach()[0, 0]), layer.bias.is_meta) for layer in layers_with(layers, "weight")] == [
        (0, True),
        (1, True),
        (2, True),
    ]
    assert [float(layer.weight.detach()[0, 0]) for layer in layers] == [0, 1, 2]


def test_an_error_of_reading_reaches_whoever_iterates():
    def fill(index: int, slot: Slot, names: Collection[str]) -> Slot:
        if index == 1:
            raise CheckpointError("gone")
        return {"weight": torch.zeros(WIDTH, WIDTH)}

    with torch.device("meta"):
        layers = StreamedList([nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3)], fill)
    with pytest.raises(CheckpointError, match="gone"):
        list(layers)


@pytest.mark.parametrize(("count", "keep"), [(1, 0), (4, 0), (4, 1), (40, 7), (4, 4)])
def test_spread(count: int, keep: int):
    kept = spread(count, keep)
    assert len(kept) == keep and set(kept) <= set(range(count))
    gaps = [after - before for before, after in zip([-1, *kept], [*kept, count], strict=True)]
    assert max(gaps) <= -(-count // max(keep, 1)) + 1


HERE = {"device": torch.device("cpu")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [tiny_wan21_folder, tiny_i2v_folder])
def test_streamed_models_give_the_same_numbers(tmp_path: Path, make, dtype: torch.dtype):
    checkpoint = open_checkpoint(make(tmp_path / "wan"))
    inputs = torch.randn(checkpoint.dit.in_dim, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    prompts = ["a red ball moving right", "the cat!"]
    results = []
    for keep in (None, Keep(0), Keep(1), Keep(stored=True)):
        embeds = checkpoint.load_text(dtype=dtype, keep=keep).encode(prompts)
        dit = checkpoint.load_dit(dtype=dtype, keep=keep)
        more = {}
        if checkpoint.dit.image_dim is not None:
            rows = torch.randn(5, checkpoint.dit.image_dim, generator=torch.Generator().manual_seed(1))
            more = {"images": dit.encode_images([rows]), "image_index": [0, 0]}
        text = dit.encode_text(embeds)
        with torch.no_grad():
            velocity = dit([inputs, inputs], [torch.tensor([500.0, 500.0])] * 2, text, [0, 1], **more)
        results.append([*embeds, *velocity])
        kept = range(2) if keep is None else spread(2, keep.layers)
        for name, parameter in dit.blocks.named_parameters():
            assert parameter.is_meta == (int(name.split(".")[0]) not in kept)
    for whole, *others in zip(*results, strict=True):
        assert all(torch.equal(whole, other) for other in others)


def test_streamed_experts_give_the_same_latents(tmp_path: Path):
    checkpoint = open_checkpoint(tiny_experts_folder(tmp_path / "wan"))
    clip = Clip(prompt="a cat", shape=VideoShape(num_frames=5, height=32, width=32), seed=3)
    settings = Settings(steps=3, guidance=(3.0, 2.0), shift=5.0)
    whole, streamed = (
        sample_latents(Stages(checkpoint, dtype=torch.float32, keep_layers=keep, **HERE), [clip], settings)[0]
        for keep in ({}, {"transformer": Keep(), "transformer_2": Keep(1), "text_encoder": Keep(stored=True)})
    )
    assert torch.equal(whole, streamed)


def in_eight_bits(out: Path) -> Path:
    """A tiny model of the release whose blocks have matrices in fp8 with scales, as ComfyUI writes them."""
    folder = original_folder(tiny_wan21_folder(out / "made"), out / "wan")
    file = folder / "diffusion_pytorch_model.safetensors"
    found = load_file(file)
    for name in [name for name in found if name.startswith("blocks.") and found[name].ndim == 2]:
        found[name] = (found[name] * 8).to(torch.float8_e4m3fn)
        found[name.replace(".weight", ".scale_weight")] = torch.tensor([0.125])
    save_file(found | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}, file)
    return folder


def same_velocities(checkpoint: WanCheckpoint, device: str, *keeps: Keep | None) -> list[torch.Tensor]:
    """What a transformer in bfloat16 gives, however its layers are kept."""
    inputs = torch.randn(checkpoint.dit.in_dim, 2, 4, 4, generator=torch.Generator().manual_seed(0)).to(device)
    embed = torch.randn(5, checkpoint.dit.text_dim, generator=torch.Generator().manual_seed(1)).to(device)
    found = []
    for keep in keeps:
        dit = checkpoint.load_dit(dtype=torch.bfloat16, device=device, keep=keep)
        with torch.no_grad():
            text = dit.encode_text([embed])
            for _ in range(2):
                found += dit([inputs], [torch.tensor([500.0, 500.0])], text, [0])
    return found


def test_layers_held_as_they_are_stored(tmp_path: Path):
    checkpoint = open_checkpoint(in_eight_bits(tmp_path / "wan"))
    layers, whole = checkpoint.layers["transformer"], checkpoint.parts["transformer"]
    assert layers.stored == sum(info.nbytes for name, info in whole.tensors.items() if name.startswith("blocks.")) + (
        4 * sum(info.scale is not None for info in whole.tensors.values())
    )
    first, *others = same_velocities(checkpoint, "cpu", None, Keep(), Keep(stored=True))
    assert len(others) == 5 and all(torch.equal(first, other) for other in others)
    held = Held(whole.tensors.values(), Transfer(torch.device("cpu")))
    shutil.rmtree(tmp_path / "wan")
    info = next(info for info in whole.tensors.values() if info.scale is not None)
    assert held.get(info).dtype == torch.float32 and held.get(info).shape == info.shape


def test_quantised_blocks_are_not_held():
    part = Part(
        where=Path("a.gguf"),
        layout=DIFFUSERS,
        tensors={
            name: TensorInfo(name=name, dtype=dtype, shape=(64, 64), file=Path("a.gguf"), nbytes=4096)
            for name, dtype in (("blocks.0.attn1.to_q.weight", "Q8_0"), ("blocks.0.attn1.to_k.weight", "F16"))
        },
    )
    assert part.layers("blocks").stored is None


@pytest.mark.gpu
def test_on_a_gpu_streamed_and_held_layers_give_the_same_numbers(tmp_path: Path):
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    for make in (tiny_wan21_folder, in_eight_bits):
        checkpoint = open_checkpoint(make(tmp_path / make.__name__))
        first, *others = same_velocities(checkpoint, "cuda", None, Keep(), Keep(1), Keep(stored=True))
        assert len(others) == 7 and all(torch.equal(first, other) for other in others)


@pytest.mark.gpu
def test_pinned_buffers_take_turns():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    transfer = Transfer(torch.device("cuda"))
    sizes = (10, 1_000_000, 3, 5_000_000, 20, 1)
    tensors = [torch.randn(size, generator=torch.Generator().manual_seed(size)) for size in sizes]
    moved = [transfer(tensor) for tensor in tensors]
    assert all(torch.equal(there.cpu(), here) for there, here in zip(moved, tensors, strict=True))


def test_rows_are_those_of_the_whole_matrix(tmp_path: Path):
    from dit_video.checkpoints.parts import read_tensors

    weight = torch.randn(8, 6)
    save_file(
        {
            "a.weight": weight,
            "b.weight": weight.to(torch.float8_e4m3fn),
            "b.scale_weight": torch.tensor(0.5),
            "c.weight": weight.to(torch.int8),
            "c.weight_scale": torch.arange(8.0),
            "d.weight": weight.to(torch.int8),
            "d.weight_scale": torch.arange(12.0).view(4, 3),
        },
        tmp_path / "a.safetensors",
    )
    torch.save({"e.weight": weight}, tmp_path / "a.pth")
    index = torch.tensor([5, 0, 5, 7])
    for file in (tmp_path / "a.safetensors", tmp_path / "a.pth"):
        tensors = read_tensors(file)
        assert tensors
        with Stored(file) as stored:
            for info in tensors.values():
                assert torch.equal(stored.rows(info, index), stored.get(info)[index])


def test_rows_of_quantised_files(tmp_path: Path):
    gguf = pytest.importorskip("gguf")
    import numpy as np

    file = tmp_path / "a.gguf"
    weight = np.random.default_rng(0).standard_normal((8, 64), dtype=np.float32)
    writer = gguf.GGUFWriter(file, "t5")
    writer.add_tensor("a", weight.astype(np.float16))
    for kind in ("Q8_0", "BF16"):
        number = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(kind, gguf.quantize(weight, number), raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    index = torch.tensor([5, 0, 5, 7])
    with Stored(file) as stored:
        for info in describe(file).values():
            assert torch.equal(stored.rows(info, index), stored.get(info)[index])


@pytest.mark.parametrize("rows", [3, 3000])
def test_memory_is_filled_again_wherever_the_next_tensor_begins(rows: int):
    room = torch.arange(rows * 64 + 64, dtype=torch.float32)
    place: torch.Tensor | None = None
    for offset in (0, 3, 10, 16):
        tensor = room[offset : offset + rows * 64].view(rows, 64)
        before = place
        place = copied(tensor, before)
        assert torch.equal(place, tensor) and (place.data_ptr() - tensor.data_ptr()) % 64 == 0
        assert before is None or place.untyped_storage().data_ptr() == before.untyped_storage().data_ptr()
    assert place is not None
    for other in (room[:60].view(3, 20), room.bfloat16()[: place.numel()].view(place.shape)):
        assert copied(other, place).untyped_storage().data_ptr() != place.untyped_storage().data_ptr()
