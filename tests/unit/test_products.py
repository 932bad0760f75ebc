"""Attention by two products, the first of which computes the exponentials, against the definition."""

import math

import pytest
import torch

from dit_video.nn import attention as attention_module
from dit_video.nn import products
from dit_video.nn.attention import attention
from dit_video.nn.linear import multiplies

DTYPES = [
    torch.float32,
    pytest.param(torch.bfloat16, marks=pytest.mark.skipif(not multiplies(torch.bfloat16, "cpu"), reason="emulated")),
]
# The exponential is off by exp(-MARGIN) at most; bfloat16 rounds logits' factors, exponentials, sums and results.
ERROR = {torch.float32: 5e-4, torch.bfloat16: 8e-3}


def inputs(queries: int, keys: int, heads: int = 3, width: int = 24, *, scale: float = 1.0, dtype=torch.float32):
    torch.manual_seed(0)
    q, k, v = (torch.randn(size, heads, width) for size in (queries, keys, keys))
    return [x.to(dtype) for x in (scale * q, k, v)]


def exact(q, k, v, bias=None):
    return attention(q, k, v, lengths=[len(q)], kv_lengths=[len(k)], key_bias=bias, backend="reference").float()


def error(got, want) -> float:
    return ((got.float() - want).norm() / want.norm()).item()


pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [0.1, 1.0, 4.0])
def test_it_is_the_definition(monkeypatch, dtype, scale):
    q, k, v = inputs(70, 90, scale=scale, dtype=dtype)
    want = exact(q, k, v)
    monkeypatch.setattr(products.F, "scaled_dot_product_attention", None)  # it gets there by itself
    assert error(products.attention_of_clip(q, k, v), want) < ERROR[dtype]
    monkeypatch.setattr(products, "PART", 90 * q.element_size() * 16)  # parts of which the last is smaller
    got = products.attention_of_clip(q, k, v)
    assert got.shape == q.shape and got.dtype == dtype
    assert error(got, want) < ERROR[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_biases_are_added_to_logits(monkeypatch, dtype):
    q, k, v = inputs(40, 60, dtype=dtype)
    bias = torch.linspace(-3, 3, 60)
    bias[10], bias[20:30] = math.log(500), -1e4  # one for many, and some that are not seen
    want = exact(q, k, v, bias)
    assert error(products.attention_of_clip(q, k, v, bias), want) < ERROR[dtype]
    changed, k = v.clone(), k.clone()
    changed[20:30], k[20:30] = 1e3, 50.0  # whose lengths do not count either
    monkeypatch.setattr(products.F, "scaled_dot_product_attention", None)
    assert error(products.attention_of_clip(q, k, changed, bias), want) < ERROR[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("norm", [60.0, 1e4])
def test_logits_far_below_the_bound_are_computed_otherwise(monkeypatch, dtype, norm):
    """One key so long that all others' logits are next to nothing beside the bound, for queries that look away."""
    q, k, v = inputs(16, 20, heads=2, dtype=dtype)
    q[:, 1], k[:, 1] = q[:, 1].abs(), k[:, 1].abs()
    k[5, 1] *= -norm / k[5, 1].norm()
    fused, calls = products.F.scaled_dot_product_attention, []

    def counted(*x, **options):
        calls.append(x)
        return fused(*x, **options)

    monkeypatch.setattr(products.F, "scaled_dot_product_attention", counted)
    got = products.attention_of_clip(q, k, v)
    assert [x[0].shape for x in calls] == [(1, 1, 16, 24)]  # of the second head alone
    assert error(got, exact(q, k, v)) < ERROR[dtype]


@pytest.mark.parametrize("biased", [False, True])
def test_packs_are_taken_apart(monkeypatch, biased):
    """Clips of equal and of other lengths; those with few keys go to fused attention."""
    lengths, kv_lengths = [7, 7, 30, 5], [12, 12, 40, 3]
    q, k, v = inputs(sum(lengths), sum(kv_lengths))
    bias = torch.linspace(-2, 2, len(k)) if biased else None
    kinds = {"lengths": lengths, "kv_lengths": kv_lengths, "key_bias": bias}
    seen = []

    def suits(v, queries, keys):
        seen.append((queries, keys))
        return keys >= 10

    monkeypatch.setattr(attention_module.products, "suits", suits)
    got = attention(q, k, v, **kinds)
    assert seen[-3:] == [(7, 12), (30, 40), (5, 3)]  # group by group, after the backend was chosen
    assert error(got, attention(q, k, v, **kinds, backend="reference").float()) < ERROR[torch.float32]


def test_it_is_taken_without_being_asked_for(monkeypatch):
    if not products.suits(torch.zeros(1, dtype=torch.bfloat16), 600, 600):
        pytest.skip("not on such processors")
    q, k, v = inputs(600, 600, heads=2, width=64, dtype=torch.bfloat16)
    want = exact(q, k, v)
    monkeypatch.setattr(products.F, "scaled_dot_product_attention", None)
    assert error(attention(q, k, v, lengths=[600]), want) < ERROR[torch.bfloat16]


def test_where_it_is_taken(monkeypatch):
    v, told = torch.zeros(1, dtype=torch.bfloat16), {"oneDNN": True, "AMX": False, "threads": 2}
    monkeypatch.setattr(products, "onednn_multiplies", lambda x: told["oneDNN"])
    monkeypatch.setattr(products, "has_amx", lambda: told["AMX"])
    monkeypatch.setattr(torch, "get_num_threads", lambda: told["threads"])
    assert products.suits(v, 2000, 2000)
    assert not products.suits(v.float(), 2000, 2000)
    assert not products.suits(v, 100_000, 100) and not products.suits(v, 0, 2000) and not products.suits(v, 100, 2000)
    for name, value in (("oneDNN", False), ("AMX", True), ("threads", 64)):
        before, told[name] = told[name], value
        assert not products.suits(v, 2000, 2000), name
        told[name] = before
