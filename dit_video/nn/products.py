"""Attention by two products of oneDNN, the first of which computes the exponentials as well.

For bfloat16 on processors with AVX-512 and without AMX: there torch's fused attention is no faster in bfloat16 than in
float32, and these products are 2.5 times as fast (docs/log.md).

softmax needs exp(s - c) of every logit s, for any c that is the same for all keys. oneDNN has no exponential to put
behind a product, but it has the sigmoid, and sigmoid(z) = exp(z) / (1 + exp(z)): for z <= -MARGIN that is the
exponential with a relative error of at most exp(-MARGIN), a sixth of bfloat16's rounding. So c is a bound of the
logits, |q| |k| / sqrt(E) + key_bias at most, plus MARGIN. What rows sum to tells whether all of one lay too far below
the bound. Shapes as in nn/attention.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_video.nn.linear import onednn_multiplies
from dit_video.nn.processor import has_amx

MARGIN = 8.0
LEAST = 2.0**-100
"""What the exponentials of a row must sum to: from there on all that count in it are normal numbers in bfloat16."""
FARTHEST = 120.0
"""A shift from which it is not tried: with LEAST a row's largest logit must be within some 69 of it."""
KEYS = 512
"""With fewer keys, or fewer pairs of a query and a key than the square of it, torch's fused attention is as fast."""
PART = 3 * 2**20
"""Bytes of exponentials at a time, so that they are still in the cache when the second product reads them."""
THREADS = 8
"""With more of them a product might be too small to share, where fused attention shares out heads: not measured."""


def suits(v: Tensor, queries: int, keys: int) -> bool:
    """Whether attention of so many queries to so many keys, with these values, is faster this way, and can be done."""
    return (
        keys >= KEYS
        and queries * keys >= KEYS**2
        and v.dtype == torch.bfloat16
        and onednn_multiplies(v)
        and not has_amx()
        and torch.get_num_threads() <= THREADS
    )


def attention_of_clip(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(E) + key_bias) v of one clip, without gradients.

    q (n, H, E), k and v (m, H, E), of one dtype that oneDNN multiplies, and key_bias (m,), to (n, H, E).
    """
    (n, heads, width), m = q.shape, len(k)
    queries = (q.transpose(0, 1) / math.sqrt(width)).contiguous()  # (H, n, E)
    keys = k.transpose(0, 1).contiguous()  # (H, m, E)
    values = v.permute(1, 2, 0).contiguous()  # (H, E, m)
    of_queries, of_keys = (torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32) for x in (queries, keys))
    bias = torch.zeros(m) if key_bias is None else key_bias.float()
    shifts = (of_queries.amax(1, keepdim=True) * of_keys + bias).amax(1) + MARGIN  # (H,)
    out = v.new_empty(n, heads, width)
    rows = -(-n // -(-n * m * v.element_size() // PART))  # in parts that are equal
    left = [
        head
        for head, shift in enumerate(shifts.tolist())
        if not shift <= FARTHEST or not _head(queries[head], keys[head], values[head], bias - shift, rows, out[:, head])
    ]
    if left:
        q, k, v = (x[:, left].transpose(0, 1)[None] for x in (q, k, v))  # (1, H, n or m, E): what is fused has a batch
        mask = None if key_bias is None else key_bias.to(v.dtype).view(1, 1, 1, m)
        out[:, left] = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[0].transpose(0, 1)
    return out


def _head(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rows: int, out: Tensor) -> bool:
    """One head into out (n, E), so many queries at a time; False where all logits of one lie too far below the bound.

    q: (n, E), scaled. k: (m, E). v: (E, m). bias: (m,) float32, less the shift.
    """
    product = torch.ops.mkldnn._linear_pointwise
    for part, place in zip(q.split(rows), out.split(rows), strict=True):
        exps = product(part, k, bias, "sigmoid", [], "")  # (rows, m)
        sums = exps.sum(-1, keepdim=True, dtype=torch.float32)
        if not bool(sums.min() >= LEAST):
            return False
        torch.div(product(exps, v, None, "none", [], ""), sums, out=place)
    return True
