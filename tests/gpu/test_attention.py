"""Every backend of attention on the GPU, in bfloat16, against the definition in float64 on the CPU."""

import pytest
import torch

from dit_video.nn import varlen
from dit_video.nn.attention import attention
from tests.gpu.compare import BF16, error

pytestmark = pytest.mark.gpu

LENGTHS = [70, 70, 333, 640, 1, 70]
TEXT = [3, 3, 40, 40, 5, 3]
HEADS = 3


def numbers(width, kv_lengths, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    sizes = (sum(LENGTHS), sum(kv_lengths), sum(kv_lengths))
    return [torch.randn(size, HEADS, width, generator=generator).to(dtype).to(device) for size in sizes]


def bias_of(count):
    """As of text: a row of padding that stands for many, and rows that are not seen."""
    bias = torch.zeros(count)
    bias[1::3], bias[2::3] = 6.2166, -1e4
    return bias


def check(device, width, kv_lengths, biased, **how):
    bias = bias_of(sum(kv_lengths)) if biased else None
    told = dict(lengths=LENGTHS, kv_lengths=kv_lengths)
    want = attention(*numbers(width, kv_lengths), **told, key_bias=bias, backend="reference")
    bias = None if bias is None else bias.to(device)
    got = attention(*numbers(width, kv_lengths, BF16, device), **told, key_bias=bias, **how)
    assert got.dtype == BF16 and error(got, want) < 2e-2


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("kv_lengths", [LENGTHS, TEXT], ids=["self", "cross"])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("backend", [None, "sdpa", "varlen"])
def test_backends(device, backend, width, kv_lengths, biased):
    check(device, width, kv_lengths, biased, backend=backend)


@pytest.mark.parametrize("kernel", sorted(varlen.CALLS))
@pytest.mark.parametrize("biased", [False, True])
def test_kernels_of_one_call(device, monkeypatch, kernel, biased):
    call = varlen.CALLS[kernel]() if device.type == "cuda" or kernel == "jagged" else None
    if call is None:
        pytest.skip(f"{kernel} is not there")
    monkeypatch.setattr(varlen, "found", lambda _: (kernel, call))
    check(device, 128, TEXT, biased, backend="varlen")


def test_one_call_is_chosen_for_mixed_packs(cuda, monkeypatch):
    called = []
    name, call = varlen.found("cuda")
    monkeypatch.setattr(varlen, "found", lambda _: (name, lambda *told: called.append(name) or call(*told)))
    q, k, v = numbers(128, LENGTHS, BF16, cuda)
    attention(q, k, v, lengths=LENGTHS)
    assert called == [name]
    attention(q.float(), k.float(), v.float(), lengths=LENGTHS)
    attention(q[:140], k[:140], v[:140], lengths=[70, 70])
    assert called == [name], "float32 and packs of one length need no such call"


@pytest.mark.parametrize("biased", [False, True])
def test_gradients_of_one_call(device, biased):
    results = []
    bias = bias_of(sum(TEXT)) if biased else None
    for where, dtype, backend in ("cpu", torch.float32, "reference"), (device, BF16, "varlen"):
        q, k, v = (x.requires_grad_() for x in numbers(64, TEXT, dtype, where))
        moved = None if bias is None else bias.to(where)
        out = attention(q, k, v, lengths=LENGTHS, kv_lengths=TEXT, key_bias=moved, backend=backend)
        out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(where, dtype))
        results.append([q.grad, k.grad, v.grad])
    for got, want in zip(results[1], results[0], strict=True):
        assert error(got, want) < 2e-2


def test_a_clip_is_the_same_in_any_company(device):
    q, k, v = numbers(128, LENGTHS, BF16, device)
    together = attention(q, k, v, lengths=LENGTHS).split(LENGTHS)
    parts = zip(*(x.split(LENGTHS) for x in (q, k, v)), strict=True)
    for (q_i, k_i, v_i), got in zip(parts, together, strict=True):
        alone = attention(q_i, k_i, v_i, lengths=[len(q_i)])
        assert error(got, alone.float()) < 5e-3
