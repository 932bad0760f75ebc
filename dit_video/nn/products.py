"""Attention by two products of oneDNN, the first of which computes the exponentials as well.

For bfloat16 on processors with AVX-512 and without AMX: there torch's fused attention is no faster in bfloat16 than in
float32, and these products are 2.5 times as fast (docs/log.md).

softmax needs exp(s - c) of every logit s, for any c that is the same for all keys. oneDNN has no exponential to put
behind a product, but it has the sigmoid, and sigmoid(z) = exp(z) / (1 + exp(z)): for z <= -MARGIN that is the
exponential with a relative error of at most exp(-MARGIN), a sixth of bfloat16's rounding. So c is a bound of the
logits, |q| |k| / sqrt(E) at most, plus MARGIN. What rows sum to tells whether all of one lay too far below the bound.

Shapes as in nn/attention.py.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_video.nn.linear import in_one

MARGIN = 8.0
LEAST = 2.0**-100
"""What the exponentials of a row must sum to: from there on all that count in it are normal numbers in bfloat16."""
FARTHEST = 120.0
"""A shift from which it is not tried: exp(-FARTHEST + MARGIN) is about bfloat16's least number."""
KEYS = 512
"""With fewer keys torch's fused attention is as fast."""
PART = 3 * 2**20
"""Bytes of exponentials at a time, so that they are still in the cache when the second product reads them."""
THREADS = 8
"""With more of them a product would be too small to share, where fused attention shares out heads."""


def computes(v: Tensor, keys: int) -> bool:
    """Whether attention over so many keys, with these values, is faster this way, and can be done."""
    return (
        keys >= KEYS
        and v.dtype == torch.bfloat16
        and in_one(v, v.new_empty(0))
        and not torch.cpu._is_amx_tile_supported()
        and torch.get_num_threads() <= THREADS
    )


def of_clip(q: Tensor, k: Tensor, v: Tensor, key_bias: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(E) + key_bias) v of one clip, bfloat16: q (n, H, E), k and v (m, H, E), key_bias (m,)."""
    (n, heads, width), m = q.shape, len(k)
    queries = (q.transpose(0, 1) / math.sqrt(width)).contiguous()  # (H, n, E)
    keys = k.transpose(0, 1).contiguous()  # (H, m, E)
    values = v.permute(1, 2, 0).contiguous()  # (H, E, m)
    longest = [torch.linalg.vector_norm(x, dim=-1, dtype=torch.float32).amax(1) for x in (queries, keys)]  # (H,)
    bias = torch.zeros(m) if key_bias is None else key_bias.float()
    shifts = (longest[0] * longest[1] + bias.amax() + MARGIN).tolist()
    out = v.new_empty(n, heads, width)
    rows = -(-n // -(-n * m * v.element_size() // PART))  # in parts that are equal
    for head, shift in enumerate(shifts):
        shifted = bias - shift
        if not (shift <= FARTHEST and _head(queries[head], keys[head], values[head], shifted, rows, out[:, head])):
            q_h, k_h, v_h = (x[:, head][None] for x in (q, k, v))
            mask = None if key_bias is None else key_bias.to(v.dtype)[None]
            out[:, head] = F.scaled_dot_product_attention(q_h, k_h, v_h, attn_mask=mask)[0]
    return out


def _head(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, rows: int, out: Tensor) -> bool:
    """One head into out (n, E), so many queries at a time; False where all logits of one lie too far below the bound.

    q: (n, E), scaled. k: (m, E). v: (E, m). bias: (m,) float32, with the shift.
    """
    product = torch.ops.mkldnn._linear_pointwise
    for part, place in zip(q.split(rows), out.split(rows), strict=True):
        exps = product(part, k, bias, "sigmoid", [], "")  # (rows, m)
        sums = exps.sum(-1, keepdim=True, dtype=torch.float32)
        if not bool(sums.min() >= LEAST):
            return False
        torch.div(product(exps, v, None, "none", [], ""), sums, out=place)
    return True
