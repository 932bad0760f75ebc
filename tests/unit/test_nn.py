"""The functions under the DiT: hand-written backwards against autograd, patches, positions, timesteps."""

import pytest
import torch
import torch.nn.functional as F

from dit_video.nn.adaln import gated_add, modulated_norm, timestep_embedding
from dit_video.nn.patch import patchify, token_grid, unpatchify
from dit_video.nn.rope import axis_dims, rms_norm_rotate, rope_table, rotate

TOKENS, WIDTH, HEAD = 30, 24, 12
LEVELS = pytest.mark.parametrize("levels", [1, 4])


def leaves(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape).requires_grad_() for shape in shapes]


def assert_same(fast, plain, inputs):
    """Equal values, and equal gradients of all inputs under a random weighting."""
    weight = torch.randn(plain.shape)
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    got, want = (torch.autograd.grad((out * weight).sum(), inputs) for out in (fast, plain))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@LEVELS
def test_modulated_norm(levels):
    x, shift, scale = leaves((TOKENS, WIDTH), (levels, WIDTH), (levels, WIDTH))
    level = torch.randint(levels, (TOKENS,))
    fast = modulated_norm(x, shift, scale, level, 1e-6, torch.float32)
    assert_same(fast, F.layer_norm(x, (WIDTH,), eps=1e-6) * (1 + scale[level]) + shift[level], (x, shift, scale))


@LEVELS
def test_gated_add(levels):
    x, y, gate = leaves((TOKENS, WIDTH), (TOKENS, WIDTH), (levels, WIDTH))
    level = torch.randint(levels, (TOKENS,))
    assert_same(gated_add(x, y, gate, level), x + y * gate[level], (x, y, gate))


@pytest.mark.parametrize("rotated", [False, True])
def test_rms_norm_rotate(rotated):
    x, weight = leaves((TOKENS, WIDTH), (WIDTH,))
    table = rope_table((5, 2, 3), HEAD) if rotated else None
    plain = F.rms_norm(x, (WIDTH,), weight, 1e-6)
    assert_same(rms_norm_rotate(x, weight, table, 1e-6), plain if table is None else rotate(plain, table), (x, weight))


def test_bfloat16_gradients_have_the_dtype_of_their_inputs():
    x, y, gate, weight = leaves((TOKENS, WIDTH), (TOKENS, WIDTH), (4, WIDTH), (WIDTH,))
    level = torch.randint(4, (TOKENS,))
    low = y.detach().bfloat16().requires_grad_()
    out = gated_add(x, rms_norm_rotate(low, weight, None, 1e-6).bfloat16(), gate, level)
    out = modulated_norm(out, gate, gate, level, 1e-6, torch.bfloat16)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert low.grad.dtype == torch.bfloat16 and x.grad.dtype == gate.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("head_dim", "dims"), [(128, (44, 42, 42)), (64, (24, 20, 20)), (20, (8, 6, 6)), (12, (4, 4, 4))]
)
def test_axis_dims(head_dim, dims):
    assert axis_dims(head_dim) == dims


def test_rotation_depends_on_distance_only():
    """The product of a query and a key depends on how far apart their tokens are: what RoPE is for."""
    grid = (4, 5, 6)
    table = rope_table(grid, 128).view(*grid, 64)
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
