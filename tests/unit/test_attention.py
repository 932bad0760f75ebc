"""Every attention backend against the definition, forward and backward."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from dit_video.nn import varlen
from dit_video.nn.attention import BACKENDS, Spans, attention

LENGTHS = [7, 7, 33, 64, 1, 7]
KV_LENGTHS = [3, 3, 40, 40, 5, 3]
HEADS, WIDTH = 3, 20


def packed(generator_seed: int, kv_lengths: list[int], dtype=torch.float32):
    torch.manual_seed(generator_seed)
    sizes = (sum(LENGTHS), sum(kv_lengths), sum(kv_lengths))
    return [torch.randn(size, HEADS, WIDTH).to(dtype).requires_grad_() for size in sizes]


def run(backend, kv_lengths, bias, dtype=torch.float32):
    """Output and gradients of q, k, v."""
    q, k, v = packed(0, kv_lengths or LENGTHS, dtype)
    out = attention(q, k, v, lengths=LENGTHS, kv_lengths=kv_lengths, key_bias=bias, backend=backend)
    torch.manual_seed(1)
    out.backward(torch.randn(out.shape).to(dtype))
    return [out.detach(), q.grad, k.grad, v.grad]


@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"reference"}))
@pytest.mark.parametrize("kv_lengths", [None, KV_LENGTHS], ids=["self", "cross"])
@pytest.mark.parametrize("biased", [False, True])
def test_backend_matches_the_definition(backend, kv_lengths, biased):
    bias = torch.linspace(-3, 6, sum(kv_lengths or LENGTHS)) if biased else None
    for got, want in zip(run(backend, kv_lengths, bias), run("reference", kv_lengths, bias), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("backend", ["sdpa", "tiled", "varlen"])
def test_bfloat16_is_near_the_definition(backend):
    bias = torch.linspace(-1, 3, sum(KV_LENGTHS))
    exact = run("reference", KV_LENGTHS, bias)
    for got, want in zip(run(backend, KV_LENGTHS, bias, torch.bfloat16), exact, strict=True):
        assert got.dtype == torch.bfloat16
        assert ((got.float() - want).norm() / want.norm()).item() < 2e-2


def test_a_clip_sees_only_itself():
    """Changing one clip's keys leaves all other clips' outputs as they were, bit for bit."""
    q, k, v = (x.detach() for x in packed(0, LENGTHS))
    before = attention(q, k, v, lengths=LENGTHS).split(LENGTHS)
    start = sum(LENGTHS[:2])
    k[start : start + LENGTHS[2]] += 1.0
    v[start : start + LENGTHS[2]] *= -2.0
    after = attention(q, k, v, lengths=LENGTHS).split(LENGTHS)
    changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
    assert changed == [False, False, True, False, False, False]


def test_key_bias_of_log_count_stands_for_equal_keys():
    """One key with bias log(c) is the same as c copies of it: what folds the text padding."""
    q, k, v = torch.randn(5, HEADS, WIDTH), torch.randn(4, HEADS, WIDTH), torch.randn(4, HEADS, WIDTH)
    many = [torch.cat([x, x[-1:].expand(9, -1, -1)]) for x in (k, v)]
    want = attention(q, *many, lengths=[5], kv_lengths=[13])
    bias = torch.tensor([0.0, 0.0, 0.0, 10.0]).clamp(min=1).log()
    torch.testing.assert_close(attention(q, k, v, lengths=[5], kv_lengths=[4], key_bias=bias), want)


def by_starts(q, k, v, queries, keys, longest, longest_key, scale):
    """What FlashAttention's kernels are asked for, written out: clip i has the rows from start i to start i + 1."""
    assert queries.dtype == keys.dtype == torch.int32
    out = torch.full_like(q, torch.nan)
    for begin, end, k_begin, k_end in zip(queries[:-1], queries[1:], keys[:-1], keys[1:], strict=True):
        assert 0 < end - begin <= longest and 0 < k_end - k_begin <= longest_key
        logits = torch.einsum("nhe,mhe->hnm", q[begin:end].double(), k[k_begin:k_end].double()) * scale
        out[begin:end] = torch.einsum("hnm,mhe->nhe", logits.softmax(-1), v[k_begin:k_end].double()).to(v.dtype)
    return out


@pytest.mark.parametrize("kv_lengths", [None, KV_LENGTHS], ids=["self", "cross"])
@pytest.mark.parametrize("biased", [False, True])
def test_one_call_is_told_the_right_places(monkeypatch, kv_lengths, biased):
    monkeypatch.setattr(varlen, "found", lambda _: ("written out", by_starts))
    q, k, v = (x.detach() for x in packed(0, kv_lengths or LENGTHS))
    bias = torch.linspace(-3, 6, len(k)) if biased else None
    told = dict(lengths=LENGTHS, kv_lengths=kv_lengths, key_bias=bias)
    got, want = (attention(q, k, v, **told, backend=backend) for backend in ("varlen", "reference"))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_bias_in_channels_is_as_exact_as_one_that_is_added(monkeypatch, dtype):
    """The bias that folds the padding of the text, and the one that leaves nothing of a key, in 16 bits."""
    monkeypatch.setattr(varlen, "found", lambda _: ("written out", by_starts))
    q, k, v = (x.detach() for x in packed(0, KV_LENGTHS, dtype))
    bias = torch.zeros(len(k))
    bias[1::3], bias[2::3] = 6.2166, -1e4
    told = dict(lengths=LENGTHS, kv_lengths=KV_LENGTHS, key_bias=bias)
    want = attention(*(x.float() for x in (q, k, v)), **told, backend="reference")
    got = attention(q, k, v, **told, backend="varlen")
    assert ((got.float() - want).norm() / want.norm()).item() < (4e-3 if dtype == torch.bfloat16 else 1e-3)


def test_kernels_are_taken_in_order(monkeypatch):
    monkeypatch.setattr(varlen, "found", varlen.found.__wrapped__)
    assert varlen.found("cpu")[0] == "jagged"
    for gone, expected in ((), "torch"), (("torch",), "flash-attn"), (("torch", "flash-attn"), "jagged"):
        calls = {name: (lambda: None) if name in gone else (lambda: by_starts) for name in varlen.CALLS}
        monkeypatch.setattr(varlen, "CALLS", calls)
        assert varlen.found("cuda") == (expected, by_starts)


def test_one_call_is_for_16_bits_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    with FakeTensorMode():  # tensors without numbers may be on any device
        half, single = torch.empty(4, 2, 128, device="cuda").bfloat16(), torch.empty(4, 2, 128, device="cuda")
        assert varlen.suits(half, biased=False) and varlen.suits(half, biased=True)
        assert not varlen.suits(half.cpu(), biased=False) and not varlen.suits(single, biased=False)
        widest = half.new_empty(4, 2, 256)
        assert varlen.suits(widest, biased=False) and not varlen.suits(widest, biased=True)
        assert not varlen.suits(half.new_empty(4, 2, 20), biased=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
        assert not varlen.suits(half, biased=False)


def test_clips_of_different_lengths_are_one_call_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    calls = []

    def call(q, k, v, queries, keys, *_):
        calls.append(queries.shape)
        return torch.empty_like(q)

    monkeypatch.setattr(varlen, "found", lambda _: ("counted", call))
    monkeypatch.setattr(varlen, "starts", varlen.starts.__wrapped__)  # nothing of this is kept for others
    with FakeTensorMode():
        q = torch.empty(12, 2, 128, device="cuda", dtype=torch.bfloat16)
        assert attention(q, q, q, lengths=[3, 4, 5]).shape == q.shape
        attention(q, q, q, lengths=[4, 4, 4])
    assert calls == [(4,)]


def test_spans():
    spans = Spans([3, 4, 1])
    assert spans.lengths == (3, 4, 1) and spans.starts.tolist() == [0, 3, 7, 8] and spans.total == 8
