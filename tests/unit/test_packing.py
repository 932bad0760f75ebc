"""Packing: a pack equals its clips one by one, whatever is beside them and in whatever order."""

import math
from dataclasses import replace

import pytest
import torch

from dit_video.models.wan import dit
from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.dit import UNSEEN, WanDiT
from dit_video.nn.graphs import Repeats
from dit_video.nn.packing import make_pack, pack_tokens, unpack_tokens

CONFIG = DiTConfig(dim=80, ffn_dim=96, num_heads=4, num_layers=3, in_dim=6, out_dim=6, freq_dim=32, text_dim=24)
CPU = torch.device("cpu")


def random_model(config: DiTConfig = CONFIG) -> WanDiT:
    """All weights of a size that matters: nothing starts as zero."""
    torch.manual_seed(0)
    model = WanDiT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5 if parameter.dim() < 2 else parameter[0].numel() ** -0.5)
    return model


def clips():
    """Latents, timesteps per frame, prompts, and which prompt each clip has; grids, levels and prompts recur."""
    torch.manual_seed(1)
    sizes = [(3, 6, 4), (1, 8, 8), (3, 6, 4), (5, 2, 10), (1, 2, 2)]
    latents = [torch.randn(CONFIG.in_dim, *size) for size in sizes]
    timesteps = [
        torch.tensor([0.0, 731.0, 731.0]),
        torch.tensor([37.5]),
        torch.tensor([900.0, 900.0, 0.0]),
        torch.tensor([0.0, 500.0, 731.0, 20.0, 0.0]),
        torch.tensor([731.0]),
    ]
    return latents, timesteps, [torch.randn(rows, CONFIG.text_dim) for rows in (9, 1, 30)], [0, 1, 2, 0, 1]


def assert_near(got, want):
    for a, b in zip(got, want, strict=True):
        assert a.shape == b.shape
        assert ((a - b).abs().max() / b.abs().max()).item() < 1e-5


def one_by_one(model, latents, timesteps, prompts, text_index):
    return [
        model([latent], [times], model.encode_text([prompts[index]]), [0])[0]
        for latent, times, index in zip(latents, timesteps, text_index, strict=True)
    ]


@torch.no_grad()
def test_a_pack_equals_its_clips_in_any_order():
    model = random_model()
    latents, timesteps, prompts, text_index = clips()
    want = one_by_one(model, latents, timesteps, prompts, text_index)
    text = model.encode_text(prompts)
    for order in ([0, 1, 2, 3, 4], [4, 2, 0, 3, 1], [3, 1, 4, 2, 0]):
        got = model([latents[i] for i in order], [timesteps[i] for i in order], text, [text_index[i] for i in order])
        assert_near(got, [want[i] for i in order])


def test_gradients_of_a_pack_equal_the_sum_of_its_clips():
    """Training takes another attention backend and hand-written backwards: these must be packing-invariant too."""
    model = random_model()
    latents, timesteps, prompts, text_index = clips()
    weights = [torch.randn_like(latent) for latent in latents]

    def gradients(outputs):
        model.zero_grad()
        torch.stack([(out * w).sum() for out, w in zip(outputs, weights, strict=True)]).sum().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    packed = gradients(model(latents, timesteps, model.encode_text(prompts), text_index))
    separate = gradients(one_by_one(model, latents, timesteps, prompts, text_index))
    for name, gradient in packed.items():
        error = (gradient - separate[name]).norm() / (separate[name].norm() + 1e-6 * gradient.numel() ** 0.5)
        assert error.item() < 1e-4, name


@torch.no_grad()
def test_modulation_is_computed_once_for_each_distinct_level(monkeypatch):
    model = random_model()
    latents, timesteps, prompts, text_index = clips()
    seen = []
    embed = dit.timestep_embedding
    monkeypatch.setattr(dit, "timestep_embedding", lambda t, dim: seen.append(t.tolist()) or embed(t, dim))
    model(latents, timesteps, model.encode_text(prompts), text_index)
    assert seen == [[0.0, 20.0, 37.5, 500.0, 731.0, 900.0]]  # 13 latent frames, 107 tokens, 6 rows


@torch.no_grad()
def test_text_is_encoded_once_for_each_prompt():
    """Keys of 3 prompts serve 5 clips, and the padding to 512 is one row."""
    model = random_model()
    *_, prompts, _ = clips()
    text = model.encode_text(prompts)
    assert len(text.keys) == CONFIG.num_layers
    assert text.keys[0].shape == (3, 31, CONFIG.num_heads, CONFIG.head_dim)
    assert text.bias.shape == (3, 31)
    for row, prompt in zip(text.bias, prompts, strict=True):
        length = len(prompt)
        assert not row[:length].any() and (row[length + 1 :] == UNSEEN).all()
        assert float(row[length]) == pytest.approx(math.log(512 - length))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_prompt_gives_a_clip_the_same_numbers_whatever_is_encoded_with_it(dtype: torch.dtype):
    """In bfloat16 too, where the logarithm of another number of padding rows would be rounded otherwise."""
    model = random_model().to(dtype)
    latents, timesteps, prompts, _ = clips()
    for number, prompt in enumerate(prompts):
        together = model(latents[:1], timesteps[:1], model.encode_text(prompts), [number])[0]
        alone = model(latents[:1], timesteps[:1], model.encode_text([prompt]), [0])[0]
        torch.testing.assert_close(together, alone, rtol=0, atol=2e-5 if dtype == torch.float32 else 2e-2)


def copying(function, inputs):
    """Stands for what records on a GPU: a replay reads the memory that it was recorded with."""
    static = tuple(x.clone() for x in inputs)

    def replay(*given):
        for place, x in zip(static, given, strict=True):
            place.copy_(x)
        return function(*static).clone()

    return replay


@torch.no_grad()
@pytest.mark.parametrize("dropped", [False, True], ids=["whole", "dropped"])
@pytest.mark.parametrize("pictures", [False, True], ids=["text", "pictures"])
@pytest.mark.parametrize("way", ["plain", "compiled", "recorded"])
def test_clips_with_several_prompts_equal_those_with_one_each(monkeypatch, way: str, pictures: bool, dropped: bool):
    torch._dynamo.reset()
    model = random_model(replace(CONFIG, image_dim=20, emb_pos=None) if pictures else CONFIG).requires_grad_(False)
    latents, timesteps, prompts, text_index = clips()
    text, again = model.encode_text(prompts), [1, 1, 0, 2, 2]
    images = model.encode_images([torch.randn(5, 20), torch.randn(5, 20)]) if pictures else None
    seen, others = ([0, 1, 0, 1, 1], [1, 1, 0, 0, 1]) if pictures else ([], [])
    keep = [torch.tensor([1, 4, 9, 17]), None, torch.arange(6), None, None] if dropped else None

    def predicted(texts: list[int], sets: list[int], times: list[torch.Tensor] = timesteps):
        return model(latents, times, text, texts, keep, images, sets)

    flipped = [times.flip(0) for times in timesteps]  # other frames are known, of as many levels
    want = [*predicted(text_index, seen), *predicted(again, others)]
    of_flipped = [*predicted(text_index, seen, flipped), *predicted(again, others, flipped)]
    assert not torch.equal(want[0], want[5]) and not torch.equal(want[0], of_flipped[0])
    calls: list[int] = []
    recorded = None
    if way == "compiled":
        model.compile_blocks(backend=lambda module, _: lambda *inputs: calls.append(1) or module(*inputs))
    elif way == "recorded":
        recorded = model.graphs = Repeats(copying)
    for _ in range(3):  # as it is, recorded, and replayed
        assert_near(predicted(text_index + again, seen + others), want)
    assert_near(predicted(text_index + again, seen + others, flipped), of_flipped)
    if way != "plain":
        assert len(calls) == (4 * CONFIG.num_layers if way == "compiled" else 0)  # the first block is compiled too
        assert recorded is None or recorded.recorded == 1
        return
    tokens = []
    monkeypatch.setattr(model.blocks[0].self_attn.q, "forward", lambda x: tokens.append(len(x)) or x)
    predicted(text_index + again, seen + others)
    kept = [None] * 5 if keep is None else keep
    counts = [clip[0].numel() // 4 if rows is None else len(rows) for clip, rows in zip(latents, kept, strict=True)]
    assert tokens == [sum(counts)]  # the first self-attention sees each clip once


@torch.no_grad()
def test_passes_counts_clips():
    model = random_model()
    latents, timesteps, prompts, text_index = clips()
    model(latents, timesteps, model.encode_text(prompts), text_index)
    model(latents[:1], timesteps[:1], model.encode_text(prompts[:1]), [0])
    assert model.passes == 6


def test_packing_and_unpacking_are_inverse():
    grids = [(2, 3, 1), (1, 1, 1), (2, 3, 1), (1, 4, 2)]
    timesteps = [torch.tensor([5.0, 0.0]), torch.tensor([7.0]), torch.tensor([5.0, 5.0]), torch.tensor([0.0])]
    pack = make_pack(grids, timesteps, head_dim=12, device=CPU)
    tokens = [torch.randn(t * h * w, 3) for t, h, w in grids]
    for got, want in zip(unpack_tokens(pack_tokens(tokens, pack), pack), tokens, strict=True):
        assert torch.equal(got, want)


def test_each_token_has_the_level_and_position_of_its_frame():
    grids = [(2, 1, 2), (1, 1, 1), (2, 1, 2)]
    timesteps = [torch.tensor([5.0, 0.0]), torch.tensor([7.0]), torch.tensor([0.0, 5.0])]
    pack = make_pack(grids, timesteps, head_dim=12, device=CPU)
    levels = unpack_tokens(pack.timesteps[pack.level][:, None], pack)
    assert [level.flatten().tolist() for level in levels] == [[5, 5, 0, 0], [7], [0, 0, 5, 5]]
    alone = make_pack(grids[:1], timesteps[:1], head_dim=12, device=CPU)
    positions = unpack_tokens(pack.rope, pack)
    assert torch.equal(positions[0], alone.rope) and torch.equal(positions[2], alone.rope)


@torch.no_grad()
def test_dropped_tokens_are_as_if_they_were_not_there():
    model = random_model()
    latents, timesteps, prompts, text_index = clips()
    text = model.encode_text(prompts)
    # The first frame of the first clip alone, in a pack with whole clips: a clip of one frame.
    keep = [torch.arange(3 * 2), None, torch.arange(3 * 3 * 2), None, None]
    got = model(latents, timesteps, text, text_index, keep)
    want = model([latents[0][:, :1], *latents[1:]], [timesteps[0][:1], *timesteps[1:]], text, text_index)
    assert_near([got[0][:, :1], *got[1:]], want)
    assert not got[0][:, 1:].any()

    scattered = torch.tensor([1, 4, 9, 17])
    before = model(latents[:1], timesteps[:1], text, [0], [scattered])[0]
    changed = latents[0].clone()
    changed[:, 0, :2, :2] += 5  # token 0, which is dropped
    assert torch.equal(model([changed], timesteps[:1], text, [0], [scattered])[0], before)
    assert (before != 0).any(0).sum() == len(scattered) * 4  # latents of a token
