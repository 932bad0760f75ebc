"""The functions under the DiT: modulation, positions, patches, timesteps; and their compiled forms."""

import shutil

import pytest
import torch
import torch.nn.functional as F

from dit_video.nn import feed_forward, fusion
from dit_video.nn.activation import GELU, gelu_tanh
from dit_video.nn.adaln import gated_add, modulated_norm, timestep_embedding
from dit_video.nn.feed_forward import FeedForward
from dit_video.nn.linear import in_one, linear
from dit_video.nn.patch import patchify, token_grid, unpatchify
from dit_video.nn.rope import axis_dims, rms_norm_rotate, rope_table, rotate

TOKENS, WIDTH, HEAD = 30, 24, 12


def leaves(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("levels", [1, 4])
def test_modulation_uses_each_tokens_level(levels):
    x, y, shift, scale, gate = leaves((TOKENS, WIDTH), (TOKENS, WIDTH), *[(levels, WIDTH)] * 3)
    level = torch.randint(levels, (TOKENS,))
    want = F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale[level]) + shift[level]
    torch.testing.assert_close(modulated_norm(x, shift, scale, level, 1e-6, torch.float32), want)
    torch.testing.assert_close(gated_add(x, y, gate, level), x + y * gate[level])


def values_and_gradients():
    """Of every fusable function, for one and several levels, with and without a table, in bfloat16."""
    level, table = torch.arange(TOKENS) % 4, rope_table((5, 2, 3), HEAD)
    x, y, weight, *tables = leaves((TOKENS, WIDTH), (TOKENS, WIDTH), (WIDTH,), *[(4, WIDTH)] * 3)
    low = y.detach().bfloat16().requires_grad_()
    outputs = [
        modulated_norm(x, tables[0], tables[1], level, 1e-6, torch.bfloat16),
        modulated_norm(x, tables[0][:1], tables[1][:1], level, 1e-6, torch.float32),
        gated_add(x, low, tables[2], level),
        gated_add(x, low, tables[2][:1], level),
        rms_norm_rotate(low, weight, table, 1e-6),
        rms_norm_rotate(low, weight, None, 1e-6),
        gelu_tanh(low),
        gelu_tanh(y),
    ]
    torch.manual_seed(1)
    torch.stack([(out.float() * torch.randn(TOKENS, WIDTH)).sum() for out in outputs]).sum().backward()
    return [*outputs, *(leaf.grad for leaf in (x, y, low, weight, *tables))]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs g++")
def test_compiled_functions_are_the_same():
    plain = values_and_gradients()
    fusion.enable()
    try:
        compiled = values_and_gradients()
    finally:
        fusion.enable(False)
    for got, want in zip(compiled, plain, strict=True):
        assert got.dtype == want.dtype
        tolerance = 1e-5 if want.dtype == torch.float32 else 1e-2
        torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dims", [(44, 42, 42), (24, 20, 20), (8, 6, 6), (4, 4, 4)])
def test_axis_dims(dims):
    assert axis_dims(sum(dims)) == dims


def test_rotation_depends_on_distance_only():
    """The product of a query and a key depends on how far apart their tokens are: what RoPE is for."""
    grid = (4, 5, 6)
    table = rope_table(grid, 128).view(*grid, 64, 2)
    q, k = torch.randn(1, 128), torch.randn(1, 128)

    def product(a, b):
        return (rotate(q, table[a][None]) * rotate(k, table[b][None])).sum().item()

    assert product((0, 1, 2), (1, 3, 2)) == pytest.approx(product((2, 2, 5), (3, 4, 5)), abs=1e-4)
    swapped = product((0, 1, 2), (1, 1, 4))  # the same steps along other axes
    assert abs(product((0, 1, 2), (1, 3, 2)) - swapped) > 1e-3


def test_patches_are_a_convolution_and_come_back():
    latent, weight = torch.randn(5, 2, 6, 8), torch.randn(7, 5, 1, 2, 2)
    tokens = patchify(latent, (1, 2, 2))
    want = F.conv3d(latent[None], weight, stride=(1, 2, 2))[0].flatten(1).T
    torch.testing.assert_close(tokens @ weight.flatten(1).T, want, rtol=1e-4, atol=1e-5)
    assert token_grid(latent, (1, 2, 2)) == (2, 3, 4)
    channels_last = tokens.unflatten(-1, (5, 4)).transpose(1, 2).flatten(1)
    assert torch.equal(unpatchify(channels_last, (2, 3, 4), (1, 2, 2)), latent)


def test_timestep_embedding():
    embedding = timestep_embedding(torch.tensor([0.0, 999.5]), 8)
    assert embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    angles = torch.tensor([999.5, 99.95, 9.995, 0.9995], dtype=torch.float64)
    torch.testing.assert_close(embedding[1], torch.cat([angles.cos(), angles.sin()]).float())


def test_gelu_without_gradients_is_that_of_torch():
    x = torch.cat([torch.randn(10_000) * 4, torch.tensor([0.0, -1e20, 1e20, -30.0])])
    want = F.gelu(x.double(), approximate="tanh")
    with torch.no_grad():
        assert ((gelu_tanh(x) - want).abs() <= 1e-6 * x.abs().clamp(min=1)).all()
        for dtype, rounding in ((torch.bfloat16, 2**-8), (torch.float16, 2**-10)):
            y = torch.randn(150, 8, dtype=dtype) * 4
            got, want = gelu_tanh(y), F.gelu(y.double(), approximate="tanh")
            assert got.dtype == dtype and ((got - want).abs() <= rounding * want.abs() + 1e-5).all()


@pytest.mark.parametrize("together", [False, True])
@torch.no_grad()
def test_a_feed_forward_in_parts_is_the_whole(together: bool, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    layers, seen = FeedForward(8, 32), []
    x = torch.randn(203, 8)
    layers[2].register_forward_hook(lambda layer, args, y: seen.append(len(y)))
    whole = layers.layers(x)
    monkeypatch.setattr(feed_forward, "in_one", lambda *_: together)
    monkeypatch.setattr(feed_forward, "ROWS", 50)
    monkeypatch.setattr(feed_forward, "PART", 100 * 32 * 4)
    torch.testing.assert_close(layers(x), whole, rtol=1e-5, atol=1e-6)
    assert seen == [203, *([100, 100, 3] if together else [50] * 4 + [3])]


@torch.no_grad()
def test_what_hooks_into_a_feed_forward_sees_what_comes_before_gelu():
    """As LoRA's factors do in training."""
    layers, x = FeedForward(8, 32), torch.randn(20, 8)
    plain = F.linear(x, layers[0].weight, layers[0].bias)
    handle = layers[0].register_forward_hook(lambda layer, args, y: y + 1)
    torch.testing.assert_close(layers(x), layers[2](F.gelu(plain + 1, approximate="tanh")))
    handle.remove()
    torch.testing.assert_close(layers(x), layers[2](F.gelu(plain, approximate="tanh")))


def test_products_with_gelu_are_one_where_that_is_quick():
    x, weight = torch.randn(4, 8), torch.randn(6, 8)
    quick = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    with torch.no_grad():
        assert in_one(x, weight) == quick
        assert not in_one(x, weight.mT.contiguous().mT)
    assert not in_one(x, weight), "it gives no gradients"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_with_gelu_in_one_is_both(dtype: torch.dtype):
    """Without gradients oneDNN computes both in one where it is quick; with them each is computed by itself."""
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(shape).to(dtype) for shape in ((70, 48), (96, 48), (96,)))
    want = F.gelu(F.linear(x.double(), weight.double(), bias.double()), approximate="tanh")
    apart = linear(x, weight, bias, GELU())
    with torch.no_grad():
        together, plain = linear(x, weight, bias, GELU()), linear(x, weight, bias)
    assert together.dtype == apart.dtype == dtype
    limit = 1e-6 if dtype == torch.float32 else 5e-3
    for got in (apart, together):
        assert (got - want).norm() / want.norm() < limit
    torch.testing.assert_close(plain, F.linear(x, weight, bias))


@pytest.mark.parametrize("rotated", [True, False])
def test_the_norm_of_queries_without_gradients_is_the_one_with_them(rotated: bool):
    (x, weight), table = leaves((TOKENS, WIDTH), (WIDTH,)), rope_table((5, 2, 3), HEAD) if rotated else None
    want = rms_norm_rotate(x, weight, table, 1e-6)
    with torch.no_grad():
        torch.testing.assert_close(rms_norm_rotate(x, weight, table, 1e-6), want)
        assert rms_norm_rotate(x.bfloat16(), weight, table, 1e-6).dtype == torch.bfloat16
