"""Every attention backend against the definition, forward and backward."""

import pytest
import torch

from dit_video.nn.attention import BACKENDS, attention

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


@pytest.mark.parametrize("backend", ["sdpa", "tiled"])
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
