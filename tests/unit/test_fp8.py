"""Products in 8-bit floats: the numbers, which a CPU can tell; the speed is for a GPU."""

import pytest
import torch

from dit_video.errors import UsageError
from dit_video.nn.fp8 import Fp8, rounded
from dit_video.nn.linear import check_quantize


def layer(rows=24, inputs=64, outputs=48, dtype=torch.bfloat16):
    torch.manual_seed(0)
    x = torch.randn(2, rows, inputs) * torch.logspace(-3, 3, rows)[:, None]  # rows of very different sizes
    weight = torch.randn(outputs, inputs) * torch.logspace(-2, 2, outputs)[:, None]
    return x.to(dtype), weight.to(dtype), torch.randn(outputs).to(dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_product_is_that_of_the_rounded_numbers(dtype):
    x, weight, bias = layer(dtype=dtype)
    (levels, scale), (w_levels, w_scale) = rounded(x.flatten(0, 1)), rounded(weight)
    want = (levels.double() * scale) @ (w_levels.double() * w_scale).t() + bias.double()
    got = Fp8(weight)(x, bias)
    assert got.dtype == dtype and got.shape == (2, 24, 48)
    error = (got.flatten(0, 1).double() - want).abs() / (want.abs().amax(1, keepdim=True))
    assert error.max().item() < (8e-3 if dtype == torch.bfloat16 else 1e-5)


def test_each_row_and_each_output_keeps_its_own_precision():
    """3 bits of mantissa round a number by 1/16 at most, 2.6 % on average; both sides of a product are rounded."""
    x, weight, _ = layer()
    x, size = x.flatten(0, 1), weight.abs().amax(1)
    error = Fp8(weight)(x, None).double() - x.double() @ weight.double().t()
    typical = x.double().norm(dim=1, keepdim=True) * weight.double().norm(dim=1) / x.shape[1] ** 0.5  # of a sum
    relative = error / typical
    assert size.max() / size.min() > 1e3 and 1e-2 < relative.square().mean().sqrt().item() < 0.05
    assert relative.square().mean(0).sqrt().max().item() < 0.07 and relative.square().mean(1).sqrt().max().item() < 0.07


def test_rows_of_zeros_stay_zeros():
    x, weight, _ = layer()
    assert Fp8(weight)(torch.zeros_like(x), None).eq(0).all()
    assert Fp8(torch.zeros_like(weight))(x, None).eq(0).all()


def test_refused_where_there_are_no_such_products(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 6))
    with pytest.raises(UsageError, match=r"8\.9 or later, and this one has 8\.6; the nearest is --quantize none"):
        check_quantize("fp8", gpu, torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    check_quantize("fp8", gpu, torch.bfloat16)
    with pytest.raises(UsageError, match=r"--quantize fp8: .* float16; the nearest is --dtype bfloat16"):
        check_quantize("fp8", gpu, torch.float16)
    with pytest.raises(UsageError, match="multiples of 16, and one is 64 to 40"):
        Fp8(torch.zeros(40, 64))
