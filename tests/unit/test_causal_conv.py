"""The fast roads of the VAE's layers against what they compute, written plainly: values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dit_video.nn import winograd
from dit_video.nn.causal_conv import causal_conv3d, clips, frames, upsample_conv
from dit_video.nn.resample import add_duplicated, average_down, pixel_shuffle, pixel_unshuffle
from dit_video.nn.rms_silu import rms_norm


def gap(value: Tensor, reference: Tensor) -> float:
    assert value.shape == reference.shape
    return ((value - reference).abs().max() / reference.abs().max().clamp_min(1e-12)).item()


def same_with_gradients(fast, plain, *inputs: Tensor, gate: float = 1e-5) -> None:
    """`fast` and `plain` agree on `inputs`, and so do the gradients of a random sum of their results."""
    results, gradients = [], []
    for function in (fast, plain):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        result = function(*leaves)
        weights = torch.randn(result.shape, generator=torch.Generator().manual_seed(1))
        gradients.append(torch.autograd.grad((result * weights).sum(), leaves))
        results.append(result.detach())
    assert gap(*results) < gate
    for ours, reference in zip(*gradients, strict=True):
        assert gap(ours, reference) < 10 * gate


def plain_conv(x: Tensor, weight: Tensor, bias: Tensor, stride: tuple[int, int]) -> Tensor:
    k = weight.shape[-1]
    x = F.pad(x, (k // 2,) * 4 if stride[1] == 1 else (0, 1, 0, 1))
    return F.conv3d(x, weight, bias, (stride[0], stride[1], stride[1]))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride"),
    [
        ((3, 3, 3), (1, 1)),
        ((3, 1, 1), (1, 1)),
        ((1, 1, 1), (1, 1)),
        ((1, 3, 3), (1, 1)),
        ((1, 3, 3), (1, 2)),
        ((3, 1, 1), (2, 1)),
    ],
)
@pytest.mark.parametrize("dims", [(3, 8), (16, 12)])
def test_every_kernel(dims: tuple[int, int], kernel: tuple[int, int, int], stride: tuple[int, int], batch: int):
    torch.manual_seed(0)
    x = torch.randn(batch, dims[0], 7, 6, 10).contiguous(memory_format=torch.channels_last_3d)
    weight, bias = torch.randn(dims[1], dims[0], *kernel), torch.randn(dims[1])
    same_with_gradients(
        lambda *inputs: causal_conv3d(*inputs, stride=stride),
        lambda *inputs: plain_conv(*inputs, stride),
        x, weight, bias,
    )  # fmt: skip


def test_channels_stay_together_in_memory():
    x = torch.randn(1, 16, 5, 6, 8).contiguous(memory_format=torch.channels_last_3d)
    for kernel in ((3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1)):
        out = causal_conv3d(x, torch.randn(16, 16, *kernel), torch.randn(16))
        assert out.is_contiguous(memory_format=torch.channels_last_3d)
        assert frames(out).data_ptr() == out.data_ptr()
    assert torch.equal(clips(frames(x), 1), x)


@pytest.mark.parametrize("shape", [(1, 32, 3, 96, 96), (2, 32, 3, 96, 64)])
def test_bfloat16_gradients_at_the_sizes_that_break_conv3d(shape: tuple[int, ...]):
    """torch 2.13's own bfloat16 conv3d corrupts the heap here on AMX machines."""
    torch.manual_seed(0)
    x = torch.randn(shape).contiguous(memory_format=torch.channels_last_3d)
    weight, bias = torch.randn(32, 32, 3, 3, 3) * 0.05, torch.randn(32)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            out = causal_conv3d(*leaves)
        assert out.dtype == dtype
        gradients.append(torch.autograd.grad((out * torch.sin(torch.arange(out.shape[-1]))).float().sum(), leaves))
    for reference, rounded in zip(*gradients, strict=True):
        assert rounded.dtype == torch.float32
        assert gap(rounded, reference) < 0.02


@pytest.mark.parametrize("dims", [(8, 8), (16, 6)])
def test_upsample_conv(dims: tuple[int, int]):
    torch.manual_seed(0)
    x = torch.randn(2, dims[0], 3, 5, 7).contiguous(memory_format=torch.channels_last_3d)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        doubled = F.interpolate(x, scale_factor=(1, 2, 2), mode="nearest-exact")
        return plain_conv(doubled, weight.unsqueeze(2), bias, (1, 1))

    same_with_gradients(upsample_conv, plain, x, torch.randn(dims[1], dims[0], 3, 3), torch.randn(dims[1]))


@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shape", [(2, 8, 3, 4, 5), (1, 48, 3, 40, 40)])  # less and more than one block
def test_rms_norm(shape: tuple[int, ...], silu: bool):
    torch.manual_seed(0)

    def plain(x: Tensor, gamma: Tensor) -> Tensor:
        normed = F.normalize(x, dim=1) * x.shape[1] ** 0.5 * gamma.view(-1, 1, 1, 1)
        return F.pad(F.silu(normed) if silu else normed, (0, 0, 0, 0, 2, 0))

    same_with_gradients(
        lambda *inputs: rms_norm(*inputs, silu=silu, room=2), plain, torch.randn(shape), torch.rand(shape[1])
    )


def test_rms_norm_of_black_is_black():
    x = torch.zeros(1, 4, 1, 2, 2, requires_grad=True)
    out = rms_norm(x, torch.ones(4), silu=True)
    assert out.abs().max() == 0
    assert torch.isfinite(torch.autograd.grad(out.sum(), x)[0]).all()


def plain_average_down(x: Tensor, out_dim: int, time: int, space: int) -> Tensor:
    """The definition: blocks of neighbours become channels, groups of which are averaged."""
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
    x = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))  # B C T t H h W w
    x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
    return x.unflatten(1, (out_dim, -1)).mean(2)


def plain_duplicate_up(x: Tensor, out_dim: int, time: int) -> Tensor:
    """The definition: channels are repeated, then dealt out to the neighbours of a block."""
    x = x.repeat_interleave(out_dim * time * 4 // x.shape[1], dim=1).unflatten(1, (out_dim, time, 2, 2))
    x = x.permute(0, 1, 5, 2, 6, 3, 7, 4)  # B C T t H h W w
    return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


@pytest.mark.parametrize("frame_count", [1, 4, 5])
@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("growth", [1, 2, 4])
def test_average_down(growth: int, time: int, frame_count: int):
    torch.manual_seed(0)
    same_with_gradients(
        lambda x: average_down(x, 6 * growth, time, 2),
        lambda x: plain_average_down(x, 6 * growth, time, 2),
        torch.randn(2, 6, frame_count, 4, 6).contiguous(memory_format=torch.channels_last_3d),
    )


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("shrink", [1, 2, 4])
def test_add_duplicated(shrink: int, time: int, first: bool):
    torch.manual_seed(0)
    skip = time - 1 if first else 0
    same_with_gradients(
        lambda base, x: add_duplicated(base, x, time, first=first),
        lambda base, x: base + plain_duplicate_up(x, 6, time)[:, :, skip:],
        torch.randn(2, 6, 3 * time - skip, 8, 10).contiguous(memory_format=torch.channels_last_3d),
        torch.randn(2, 6 * shrink, 3, 4, 5).contiguous(memory_format=torch.channels_last_3d),
    )


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_pixel_shuffle(patch: int):
    video = torch.arange(2 * 3 * 2 * 8 * 16, dtype=torch.float32).view(2, 3, 2, 8, 16)
    x = pixel_unshuffle(video, patch)
    assert x.shape == (2, 3 * patch**2, 2, 8 // patch, 16 // patch)
    assert torch.equal(pixel_shuffle(x, patch), video)
    if patch == 2:  # channel 1 is the next row of the same column: Wan 2.2's order is (C, column, row)
        assert torch.equal(x[:, 1], video[:, 0, :, 1::2, ::2])


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("size", [(8, 12), (9, 30), (3, 2)])  # rows and columns in whole tiles or not
def test_winograd(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], kernel: int):
    monkeypatch.setattr(winograd, "_BLOCK", 2000)  # several blocks
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4 + kernel, *size).contiguous(memory_format=torch.channels_last_3d)
    weight, bias = torch.randn(10, 6, kernel, 3, 3), torch.randn(10)
    out = winograd.conv(x, weight, bias)
    assert out.is_contiguous(memory_format=torch.channels_last_3d)
    assert gap(out, plain_conv(x, weight, bias, (1, 1))) < 1e-5


def test_winograd_with_a_channel_a_thousand_times_larger():
    """Beside float64: what the others add is not lost."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(1, 64, 4, 16, 16), torch.randn(64, 64, 3, 3, 3), torch.randn(64)
    x[:, 3] *= 1000
    exact = plain_conv(x.double(), weight.double(), bias.double(), (1, 1))
    out = winograd.conv(x.contiguous(memory_format=torch.channels_last_3d), weight, bias)
    assert gap(out, exact) < 3e-5
    x[:, 3] = 0
    assert (
        gap(exact, plain_conv(x.double(), weight.double(), bias.double(), (1, 1))) > 0.9
    )  # that channel is nearly all


def test_winograd_leaves_a_bias_its_gradients():
    torch.manual_seed(0)
    x = torch.randn(1, 64, 6, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    bias = torch.randn(64, requires_grad=True)
    causal_conv3d(x, torch.randn(64, 64, 3, 3, 3), bias).sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((64,), 4.0 * 32 * 32))


def test_winograd_is_for_large_clips_without_gradients(monkeypatch: pytest.MonkeyPatch):
    calls = []
    monkeypatch.setattr(winograd, "conv", lambda *inputs: calls.append(inputs) or inputs[0])
    x = torch.randn(1, 64, 6, 32, 32).contiguous(memory_format=torch.channels_last_3d)
    weight, bias = torch.randn(64, 64, 3, 3, 3, requires_grad=True), torch.randn(64)
    causal_conv3d(x, weight, bias)
    with torch.no_grad():
        causal_conv3d(x[..., :8], weight, bias)
        causal_conv3d(x, weight[:32], bias[:32])
        assert not calls
        causal_conv3d(x, weight, bias)
    assert len(calls) == 1
