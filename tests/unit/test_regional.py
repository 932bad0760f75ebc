"""Blocks compiled once for all sizes, and calls whose shapes repeat, recorded once: what of it a CPU can tell."""

import pytest
import torch

from dit_video.errors import UsageError
from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.dit import WanDiT
from dit_video.nn import regional
from dit_video.nn.graphs import MOST, Call, Repeats
from dit_video.nn.linear import quantised
from dit_video.nn.streaming import StreamedList

CONFIG = DiTConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=3, in_dim=4, out_dim=4, text_dim=24)
PACKS = ([(2, 4, 6)], [(3, 4, 4)], [(1, 8, 6)], [(2, 4, 6), (2, 4, 6)], [(2, 4, 6), (3, 8, 4), (1, 2, 2)])


@pytest.fixture
def model():
    torch.manual_seed(0)
    return WanDiT(CONFIG).eval().requires_grad_(False)


def velocities(model, shapes, *, text=None, known=False, time=500.0):
    """Of clips (T, H, W); known: the first frame of the first one is."""
    torch.manual_seed(1)
    latents = [torch.randn(4, *shape) for shape in shapes]
    times = [torch.full((shape[0],), time) for shape in shapes]
    if known:
        times[0][0] = 0
    text = text or prompts(model, len(shapes))
    return model(latents, times, text, range(len(shapes)))


def prompts(model, count):
    torch.manual_seed(2)
    return model.encode_text([torch.randn(5 + number, 24) for number in range(count)])


def counting():
    """A backend of torch.compile that runs what it is given, and a list of all it was given."""
    made = []

    def backend(module, inputs):
        made.append(module)
        return module

    return backend, made


@torch.no_grad()
def test_blocks_are_compiled_once_for_all_sizes_packs_and_prompts(model):
    torch._dynamo.reset()
    want = [velocities(model, shapes) for shapes in PACKS]
    mixed = velocities(model, PACKS[-1], known=True)
    backend, made = counting()
    model.compile_blocks(backend=backend)
    for shapes, expected in zip(PACKS, want, strict=True):
        torch.testing.assert_close(velocities(model, shapes), expected, rtol=1e-4, atol=1e-5)
        assert len(made) == 1, shapes
    torch.testing.assert_close(velocities(model, PACKS[-1], known=True), mixed, rtol=1e-4, atol=1e-5)
    velocities(model, PACKS[0], known=True)
    assert len(made) == 2, "several noise levels in a pack are the one other form"


@pytest.mark.parametrize("side", [4, 8])
@torch.no_grad()
def test_as_many_tokens_as_another_dimension_has_are_no_case_of_their_own(model, side):
    """16 tokens, pairs of channels of a head; 64, the width."""
    torch._dynamo.reset()
    backend, made = counting()
    model.compile_blocks(backend=backend)
    for shapes in ([(4, side, side)], *PACKS):
        velocities(model, shapes)
        assert len(made) == 1, shapes


@torch.no_grad()
def test_blocks_that_attend_to_pictures_are_compiled_too():
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = DiTConfig(
        dim=64, ffn_dim=96, num_heads=2, num_layers=2, in_dim=4, out_dim=4, text_dim=24, image_dim=20, emb_pos=None
    )
    model = WanDiT(config).eval().requires_grad_(False)
    text, images = prompts(model, 1), model.encode_images([torch.randn(5, 20)])

    def run(shape):
        torch.manual_seed(1)
        told = dict(images=images, image_index=[0])
        return model([torch.randn(4, *shape)], [torch.full((shape[0],), 500.0)], text, [0], **told)

    want = [run(shape) for shape in ((2, 4, 6), (3, 4, 4))]
    backend, made = counting()
    model.compile_blocks(backend=backend)
    torch.testing.assert_close([run(shape) for shape in ((2, 4, 6), (3, 4, 4))], want, rtol=1e-4, atol=1e-5)
    assert len(made) == 1


def test_without_a_compiler_it_is_refused(monkeypatch):
    regional.check_compiler("cpu")
    monkeypatch.setattr(regional, "which", lambda _: None)
    with pytest.raises(UsageError, match=r"--compile needs a C\+\+ compiler"):
        regional.check_compiler("cpu")
    with pytest.raises(UsageError, match="nothing is compiled for mps"):
        regional.check_compiler("mps")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: False)
    with pytest.raises(UsageError, match="--compile needs Triton"):
        regional.check_compiler("cuda")


class Recorder:
    """Stands for a GPU's: what is recorded reads the memory that it was recorded with, and so does its replay."""

    def __init__(self):
        self.replays = 0

    def __call__(self, function, inputs):
        static = tuple(x.clone() for x in inputs)

        def replay(*given):
            self.replays += 1
            for place, x in zip(static, given, strict=True):
                place.copy_(x)
            return function(*static).clone()

        return replay


@torch.no_grad()
def test_a_repeated_call_is_recorded_and_replayed_with_its_own_numbers(model):
    text, recorder = prompts(model, 1), Recorder()
    times = (900.0, 700.0, 500.0, 100.0)
    want = [velocities(model, PACKS[0], text=text, time=time)[0] for time in times]
    model.graphs = Repeats(recorder)
    got = [velocities(model, PACKS[0], text=text, time=time)[0] for time in times]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    assert (model.graphs.recorded, recorder.replays) == (1, 3)


@torch.no_grad()
def test_other_shapes_prompts_and_known_frames_are_other_calls(model):
    recorder = Recorder()
    model.graphs = Repeats(recorder)
    text = prompts(model, 1)
    velocities(model, PACKS[0], text=text)
    velocities(model, PACKS[1], text=text)
    velocities(model, PACKS[0], text=prompts(model, 1))  # the same numbers elsewhere in memory
    velocities(model, PACKS[0], text=text, known=True)
    assert model.graphs.recorded == recorder.replays == 0
    velocities(model, PACKS[0], text=text, known=True)
    assert model.graphs.recorded == 1


def test_the_kinds_that_were_called_last_are_kept():
    recorder, x = Recorder(), torch.ones(2)
    repeats = Repeats(recorder)
    kinds = [Call(number, ()) for number in range(MOST + 1)]
    for _ in range(2):
        for kind in kinds[:MOST]:
            repeats(kind, torch.neg, x)
    assert repeats.recorded == MOST
    repeats(kinds[MOST], torch.neg, x)  # the first one goes
    repeats(kinds[1], torch.neg, x)
    assert repeats.recorded == MOST
    repeats(kinds[0], torch.neg, x)
    repeats(kinds[0], torch.neg, x)
    assert repeats.recorded == MOST + 1
    assert torch.equal(repeats(kinds[0], torch.neg, 3 * x), -3 * x)


@torch.no_grad()
def test_streamed_blocks_are_compiled_once_too(model):
    torch._dynamo.reset()
    want = [velocities(model, shapes) for shapes in PACKS[:3]]
    weights = [{name: tensor.clone() for name, tensor in block.named_parameters()} for block in model.blocks]

    def fill(index, slot, names):
        chosen = {name: tensor for name, tensor in weights[index].items() if not names or name.startswith(tuple(names))}
        return {name: tensor.clone() for name, tensor in chosen.items()}

    model.blocks = StreamedList(model.blocks, fill, kept=[1])
    backend, made = counting()
    model.compile_blocks(backend=backend)
    for shapes, expected in zip(PACKS, want, strict=False):
        torch.testing.assert_close(velocities(model, shapes), expected, rtol=1e-4, atol=1e-5)
    assert len(made) == 1


@torch.no_grad()
def test_quantised_blocks_are_compiled_once_too(model):
    torch._dynamo.reset()
    model.bfloat16()
    quantised(model.blocks, "fp8")
    want = [velocities(model, shapes) for shapes in PACKS]
    backend, made = counting()
    model.compile_blocks(backend=backend)
    for shapes, expected in zip(PACKS, want, strict=True):
        torch.testing.assert_close(velocities(model, shapes), expected, rtol=2e-2, atol=2e-2)
    assert len(made) == 1
