"""What makes a GPU fast gives the numbers of what is plain: compiled blocks, CUDA graphs, 8-bit products, streaming."""

import pytest
import torch

from dit_video.checkpoints.parts import Keep
from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.pipeline import open_checkpoint
from dit_video.nn.fp8 import Fp8, check_fp8
from dit_video.nn.graphs import Repeats
from dit_video.nn.regional import check_compiler
from tests.gpu.compare import BF16, error
from tests.tiny import tiny_wan21_folder

pytestmark = pytest.mark.gpu

CONFIG = DiTConfig(dim=256, ffn_dim=512, num_heads=2, num_layers=4, in_dim=16, out_dim=16, text_dim=64)
PACKS = ([(2, 8, 12)], [(3, 8, 8)], [(5, 12, 8)], [(2, 8, 12), (2, 8, 12)], [(2, 8, 12), (3, 16, 8), (1, 4, 4)])


@pytest.fixture
def model(device):
    torch.manual_seed(0)
    return WanDiT(CONFIG).to(device, BF16).eval().requires_grad_(False)


def text_of(model, count):
    generator = torch.Generator().manual_seed(2)
    return model.encode_text([torch.randn(5 + number, 64, generator=generator) for number in range(count)])


def velocities(model, shapes, *, text=None, time=500.0):
    generator = torch.Generator().manual_seed(1)
    where = model.patch_embedding.weight.device
    latents = [torch.randn(16, *shape, generator=generator).to(where) for shape in shapes]
    times = [torch.full((shape[0],), time) for shape in shapes]
    return model(latents, times, text or text_of(model, len(shapes)), range(len(shapes)))


@torch.no_grad()
def test_compiled_blocks_are_not_compiled_again(model):
    from torch._dynamo.utils import counters

    check_compiler(model.patch_embedding.weight.device.type)
    torch._dynamo.reset()
    counters.clear()
    want = [velocities(model, shapes) for shapes in PACKS]
    model.compile_blocks()
    for shapes, expected in zip(PACKS, want, strict=True):
        for got, exact in zip(velocities(model, shapes), expected, strict=True):
            assert error(got, exact) < 2e-2
        assert counters["stats"]["unique_graphs"] == 1, shapes


@torch.no_grad()
def test_graphs_give_the_numbers_of_plain_calls(model, cuda):
    text, times = text_of(model, 1), (900.0, 700.0, 500.0, 300.0)
    want = [velocities(model, PACKS[0], text=text, time=time)[0] for time in times]
    model.graphs = Repeats()
    got = [velocities(model, PACKS[0], text=text, time=time)[0] for time in times]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert model.graphs.recorded == 1


@torch.no_grad()
def test_graphs_of_two_passes_of_guidance_and_of_packs(model, cuda):
    texts = [text_of(model, 3), text_of(model, 3)]
    want = [[x.clone() for x in velocities(model, PACKS[-1], text=text)] for text in texts]
    model.graphs = Repeats()
    for _ in range(4):
        first, second = (velocities(model, PACKS[-1], text=text) for text in texts)
        for got, exact in ((first, want[0]), (second, want[1])):
            assert all(torch.equal(a, b) for a, b in zip(got, exact, strict=True))
    assert model.graphs.recorded == 2


@torch.no_grad()
def test_graphs_of_compiled_blocks(model, cuda):
    torch._dynamo.reset()
    text = text_of(model, 1)
    want = velocities(model, PACKS[0], text=text)[0]
    model.compile_blocks()
    model.graphs = Repeats()
    for _ in range(4):
        got = velocities(model, PACKS[0], text=text)[0]
    assert model.graphs.recorded == 1 and error(got, want) < 2e-2


def test_products_of_8_bits(device):
    if device.type == "cuda":
        check_fp8(device)
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(1000, 512, generator=generator), torch.randn(768, 512, generator=generator)
    bias = torch.randn(768, generator=generator)
    want = x @ weight.t() + bias
    product = Fp8(weight.to(device, BF16))
    assert product.levels.element_size() == 1
    assert 1e-3 < error(product(x.to(device, BF16), bias.to(device, BF16)), want) < 0.05


@torch.no_grad()
def test_streamed_layers_are_those_that_stay(tmp_path, device):
    checkpoint = open_checkpoint(tiny_wan21_folder(tmp_path / "wan"))
    results = []
    for keep in (None, Keep(), Keep(1)):
        dit = checkpoint.load_dit(dtype=BF16, device=device, keep=keep)
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(dit.config.in_dim, 2, 4, 4, generator=generator).to(device)
        text = dit.encode_text([torch.randn(4, dit.config.text_dim, generator=generator).to(device)])
        results.append([dit([latents], [torch.full((2,), 500.0)], text, [0])[0] for _ in range(3)])
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other, strict=True))


def test_streaming_takes_less_memory(tmp_path, cuda):
    """Two layers and what is kept, where all would be there: measured, not planned."""
    from dit_video.checkpoints.load import load_into
    from dit_video.checkpoints.stream import Stream
    from dit_video.models.wan.pipeline import STREAMED

    checkpoint = open_checkpoint(tiny_wan21_folder(tmp_path / "wan"))
    part = checkpoint.parts["transformer"]
    peaks = []
    for stream in (None, Stream(STREAMED["transformer"], keep=Keep())):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        told = dict(dtype=BF16, device=cuda, stream=stream)
        module = load_into(lambda: WanDiT(checkpoint.dit), part.tensors, part.layout, **told)
        peaks.append(torch.cuda.memory_allocated() - before)
        del module
    assert peaks[1] < peaks[0]
