"""Attention over packed clips: each clip's queries see that clip's keys only (NaViT, arXiv 2307.06304).

Shapes: N query and M key tokens of all clips; H heads of width E; n query and m key tokens of one clip; G clips that
run as one batch.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dit_video.nn import products
from dit_video.nn.varlen import Lengths, suits, varlen

# (q (N, H, E), k (M, H, E), v (M, H, E), lengths, kv_lengths, key_bias (M,) or None) -> (N, H, E)
Backend = Callable[[Tensor, Tensor, Tensor, Lengths, Lengths, Tensor | None], Tensor]

TILE = 32  # tiled attention pads clips to multiples of this many tokens
# Tiled attention keeps n m H probabilities for its backward; longer clips go to fused attention, which does not.
TILED_MAX_LENGTH = 2048


class Spans:
    """How many tokens each clip has in a sequence of all clips, as code that is compiled can be told.

    lengths: of the clips. starts: (clips + 1,) int64 on the CPU, where each begins, and the end; a tensor, because
    compiled code is good for any values in it, but only for the very tuple that it was compiled with.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = tuple(lengths)
        self.starts = torch.tensor([*itertools.accumulate(lengths, initial=0)])

    @property
    def total(self) -> int:
        """Tokens of all clips."""
        return sum(self.lengths)


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    lengths: Sequence[int] | Spans,
    kv_lengths: Sequence[int] | Spans | None = None,
    key_bias: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """softmax(q k^T / sqrt(E) + key_bias) v, block diagonal over clips.

    Args:
        q: (N, H, E), the queries of all clips one after the other.
        k, v: (M, H, E), the keys and values likewise. q and k may be float32 where v is not.
        lengths: queries of each clip; they sum to N. Compiled code takes them as Spans.
        kv_lengths: keys of each clip; they sum to M. None: the same as `lengths` (self-attention).
        key_bias: (M,) added to the logits of each key; it gets no gradient.
        backend: a name in BACKENDS; None chooses by device, length and whether gradients are wanted.

    Returns:
        (N, H, E) of v's dtype.
    """
    kv_lengths = lengths if kv_lengths is None else kv_lengths
    if torch.compiler.is_compiling():
        assert isinstance(lengths, Spans) and isinstance(kv_lengths, Spans) and backend is None
        return torch.ops.dvgen.packed_attention(q, k, v, lengths.starts, kv_lengths.starts, key_bias)
    lengths = lengths.lengths if isinstance(lengths, Spans) else tuple(lengths)
    kv_lengths = kv_lengths.lengths if isinstance(kv_lengths, Spans) else tuple(kv_lengths)
    assert sum(lengths) == len(q) and sum(kv_lengths) == len(k) == len(v), "lengths must cover the pack"
    if backend is None:
        training = q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad
        pairs = set(zip(lengths, kv_lengths, strict=True))
        backend = "tiled" if training and max(lengths + kv_lengths) <= TILED_MAX_LENGTH else "sdpa"
        if len(pairs) > 1 and suits(v, biased=key_bias is not None):
            backend = "varlen"  # one call where "sdpa" makes one for each length
        elif any(products.suits(v, *pair) for pair in pairs):
            backend = "products"
    return BACKENDS[backend](q, k, v, lengths, kv_lengths, key_bias)


@torch.library.custom_op("dvgen::packed_attention", mutates_args=())
def _compiled(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, kv_starts: Tensor, key_bias: Tensor | None) -> Tensor:
    """`attention` as one operation to the compiler, which need not know how many clips there are; without gradients."""
    lengths, kv_lengths = starts.diff().tolist(), kv_starts.diff().tolist()
    return attention(q, k, v, lengths=lengths, kv_lengths=kv_lengths, key_bias=key_bias).contiguous()


@_compiled.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, kv_starts: Tensor, key_bias: Tensor | None) -> Tensor:
    return v.new_empty(q.shape)


def sdpa(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, kv_lengths: Lengths, key_bias: Tensor | None) -> Tensor:
    """torch's fused attention; consecutive clips of equal lengths run as one batch."""
    return _by_groups(_fused, q, k, v, lengths, kv_lengths, key_bias)


def by_products(
    q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, kv_lengths: Lengths, key_bias: Tensor | None
) -> Tensor:
    """Clips for which that is faster one by one as in nn/products.py, without gradients; others as in `sdpa`."""
    return _by_groups(_products, q, k, v, lengths, kv_lengths, key_bias)


# (q (G, n, H, E), k (G, m, H, E), v (G, m, H, E), key_bias (G, m) or None) -> (G, n, H, E)
_OfGroup = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def _by_groups(
    of_group: _OfGroup, q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, kv_lengths: Lengths, key_bias: Tensor | None
) -> Tensor:
    """Consecutive clips of equal lengths as one group, all in v's dtype, but the bias."""
    pairs = itertools.groupby(zip(lengths, kv_lengths, strict=True))
    groups = [(n, m, sum(1 for _ in clips)) for (n, m), clips in pairs]
    # split, not slices: its backward is one concatenation instead of a zero-filled tensor for every group
    queries, keys = [n * count for n, _, count in groups], [m * count for _, m, count in groups]
    biases = [None] * len(groups) if key_bias is None else key_bias.split(keys)
    q, k = q.to(v.dtype), k.to(v.dtype)
    out = []
    parts = zip(groups, q.split(queries), k.split(keys), v.split(keys), biases, strict=True)
    for (_, _, count), q_g, k_g, v_g, bias in parts:
        q_g, k_g, v_g = (x.unflatten(0, (count, -1)) for x in (q_g, k_g, v_g))  # (G, n or m, H, E)
        out.append(of_group(q_g, k_g, v_g, None if bias is None else bias.view(count, -1)).flatten(0, 1))  # (G n, H, E)
    return out[0] if len(out) == 1 else torch.cat(out)  # (N, H, E)


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    mask = None if bias is None else bias.to(v.dtype)[:, None, None]  # (G, 1, 1, m)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (G, H, n or m, E)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def _products(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    if not products.suits(v, q.shape[1], k.shape[1]):
        return _fused(q, k, v, bias)
    clips = zip(q, k, v, [None] * len(q) if bias is None else bias, strict=True)
    return torch.stack([products.attention_of_clip(*clip) for clip in clips])


def reference(
    q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, kv_lengths: Lengths, key_bias: Tensor | None
) -> Tensor:
    """The definition in float64, clip by clip: what the other backends are tested against."""
    bias = torch.zeros(len(k), device=k.device) if key_bias is None else key_bias
    queries = q.double().split(lengths)
    keys, values, biases = (x.double().split(kv_lengths) for x in (k, v, bias))
    out = []
    for q_i, k_i, v_i, bias_i in zip(queries, keys, values, biases, strict=True):
        logits = torch.einsum("nhe,mhe->hnm", q_i, k_i) / q.shape[-1] ** 0.5 + bias_i  # (H, n, m)
        out.append(torch.einsum("hnm,mhe->nhe", logits.softmax(-1), v_i))  # (n, H, E)
    return torch.cat(out).to(v.dtype)  # (N, H, E)


def tiled(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, kv_lengths: Lengths, key_bias: Tensor | None) -> Tensor:
    """Product, softmax, product in v's dtype, with their backward: for training on a CPU with many short clips.

    There it takes less than half the time of fused attention (benchmarks/bench_training.py, --attention). Clips are
    padded to multiples of TILE tokens and those of equal padded lengths run as one batch. So products are few, and
    oneDNN, which compiles a kernel for every new shape of a bfloat16 product (milliseconds each), meets the same few
    shapes again and again.
    """
    return _Tiled.apply(q, k, v, key_bias, _tiling(lengths, kv_lengths, q.shape[1]))


BACKENDS: dict[str, Backend] = {
    "sdpa": sdpa,
    "products": by_products,
    "tiled": tiled,
    "varlen": varlen,
    "reference": reference,
}


@dataclass(frozen=True)
class _Side:
    """Where the rows (token, head) of all queries, or of all keys, lie among the padded rows (clip, head, token).

    gather: (padded rows,) row of each padded row, any for padding. scatter: (rows,) padded row of each row.
    padding: (padded rows,) bool. lengths: the padded length of each group.
    """

    gather: Tensor
    scatter: Tensor
    padding: Tensor
    lengths: tuple[int, ...]

    def pad(self, x: Tensor, counts: Sequence[int]) -> list[Tensor]:
        """(N, H, E) to one (G H, n, E) for each group."""
        return self.split(x.flatten(0, 1).index_select(0, self.gather), counts, x.shape[1])

    def split(self, rows: Tensor, counts: Sequence[int], heads: int) -> list[Tensor]:
        """Padded rows (rows, E) to one view (G H, n, E) for each group."""
        batches = [count * heads for count in counts]
        parts = rows.split([batch * n for batch, n in zip(batches, self.lengths, strict=True)])
        return [part.unflatten(0, (batch, -1)) for part, batch in zip(parts, batches, strict=True)]

    def unpad(self, rows: Tensor, heads: int) -> Tensor:
        """Padded rows (rows, E) to (N, H, E)."""
        return rows.index_select(0, self.scatter).unflatten(0, (-1, heads))


@dataclass(frozen=True)
class _Tiling:
    """Groups of clips of equal padded lengths: their numbers of clips, and where queries and keys go."""

    counts: tuple[int, ...]
    queries: _Side
    keys: _Side


@lru_cache(maxsize=16)
def _tiling(lengths: Lengths, kv_lengths: Lengths, heads: int) -> _Tiling:
    """The tiling of a pack; cached because all blocks of the model ask for the same two."""
    padded = [(-(-n // TILE) * TILE, -(-m // TILE) * TILE) for n, m in zip(lengths, kv_lengths, strict=True)]
    order = sorted(range(len(padded)), key=lambda i: padded[i])
    groups = [(key, sum(1 for _ in clips)) for key, clips in itertools.groupby(padded[i] for i in order)]
    sides = []
    for side, sizes in enumerate((lengths, kv_lengths)):
        starts = list(itertools.accumulate(sizes, initial=0))
        rows = []
        for i in order:
            position = torch.arange(padded[i][side]).expand(heads, -1)  # (H, n)
            row = (starts[i] + position) * heads + torch.arange(heads)[:, None]
            rows.append(torch.where(position < sizes[i], row, -1).flatten())
        gather = torch.cat(rows)
        padding = gather < 0
        scatter = torch.empty(sum(sizes) * heads, dtype=torch.int64)
        scatter[gather[~padding]] = torch.arange(len(gather))[~padding]
        sides.append(_Side(gather.clamp(min=0), scatter, padding, tuple(key[side] for key, _ in groups)))
    return _Tiling(tuple(count for _, count in groups), *sides)


class _Tiled(Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None, tiling: _Tiling) -> Tensor:
        heads, counts, queries, keys = q.shape[1], tiling.counts, tiling.queries, tiling.keys
        ctx.tiling, ctx.dtypes, ctx.scale = tiling, (q.dtype, k.dtype), q.shape[-1] ** -0.5
        bias = torch.zeros(len(k)) if key_bias is None else key_bias
        bias = bias.repeat_interleave(heads).index_select(0, keys.gather).masked_fill_(keys.padding, -torch.inf)
        out = torch.empty(len(queries.gather), v.shape[-1], dtype=v.dtype)
        q_s, k_s, v_s = queries.pad(q.to(v.dtype), counts), keys.pad(k.to(v.dtype), counts), keys.pad(v, counts)
        bias_s, out_s = keys.split(bias.to(v.dtype), counts, heads), queries.split(out, counts, heads)
        probs = []
        with torch.autocast("cpu", enabled=False):
            for q_g, k_g, v_g, bias_g, out_g in zip(q_s, k_s, v_s, bias_s, out_s, strict=True):
                logits = torch.baddbmm(bias_g[:, None], q_g, k_g.mT, alpha=ctx.scale)  # (G H, n, m)
                probs.append(logits.softmax(-1))
                torch.bmm(probs[-1], v_g, out=out_g)  # (G H, n, E)
        ctx.save_for_backward(*q_s, *k_s, *v_s, *probs)
        return queries.unpad(out, heads)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tiling, scale, heads = ctx.tiling, ctx.scale, grad.shape[1]
        counts, queries, keys = tiling.counts, tiling.queries, tiling.keys
        q_s, k_s, v_s, probs = (ctx.saved_tensors[i * len(counts) : (i + 1) * len(counts)] for i in range(4))
        g = grad.flatten(0, 1).index_select(0, queries.gather).masked_fill_(queries.padding[:, None], 0)
        g_s = queries.split(g, counts, heads)
        d_q, d_k, d_v = (torch.empty(len(s.gather), g.shape[-1], dtype=g.dtype) for s in (queries, keys, keys))
        d_qs, d_ks, d_vs = (
            queries.split(d_q, counts, heads),
            keys.split(d_k, counts, heads),
            keys.split(d_v, counts, heads),
        )
        with torch.autocast("cpu", enabled=False):
            for i, (g_g, p) in enumerate(zip(g_s, probs, strict=True)):
                torch.bmm(p.mT, g_g, out=d_vs[i])
                d_logits = torch._softmax_backward_data(torch.bmm(g_g, v_s[i].mT), p, -1, p.dtype)  # (G H, n, m)
                torch.baddbmm(d_qs[i], d_logits, k_s[i], beta=0, alpha=scale, out=d_qs[i])
                torch.baddbmm(d_ks[i], d_logits.mT, q_s[i], beta=0, alpha=scale, out=d_ks[i])
        d_q, d_k = queries.unpad(d_q, heads).to(ctx.dtypes[0]), keys.unpad(d_k, heads).to(ctx.dtypes[1])
        return d_q, d_k, keys.unpad(d_v, heads), None, None
