"""Attention over a whole pack in one call: kernels that are told where each clip begins (FlashAttention-2, 2307.08691).

Three of them, the first that is there: torch's own (torch.nn.attention.varlen, since 2.10), that of the package
flash-attn, and torch's attention over jagged nested tensors, which alone runs on the CPU too.

Shapes: as in nn/attention.py.
"""

import inspect
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import import_module
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

Lengths = tuple[int, ...]
# (q (N, H, E), k (M, H, E), v (M, H, E), starts of queries and of keys (clips + 1,) int32, longest of queries and of
# keys, scale) -> (N, H, E)
Call = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, int, int, float], Tensor]

WIDEST = 256  # channels of a head that the kernels take
EIGHT = 8  # they take multiples of so many
CAPABILITY = (8, 0)  # of a GPU that they run on: Ampere and later


def varlen(q: Tensor, k: Tensor, v: Tensor, lengths: Lengths, kv_lengths: Lengths, key_bias: Tensor | None) -> Tensor:
    """Attention of all clips in one call; the bias of keys goes through channels of their own, see `with_bias`."""
    width, scale = q.shape[-1], q.shape[-1] ** -0.5
    q, k = q.to(v.dtype), k.to(v.dtype)
    if key_bias is not None:
        q, k, v = with_bias(q, k, v, key_bias, scale)
    queries, keys = starts(lengths, q.device), starts(kv_lengths, q.device)
    _, call = found(q.device.type)
    return call(q, k, v, queries, keys, max(lengths), max(kv_lengths), scale).narrow(-1, 0, width)


def suits(v: Tensor, *, biased: bool) -> bool:
    """Whether the kernels take values like these: on a GPU they know, in 16 bits, of a width they know."""
    width = v.shape[-1] + (EIGHT if biased else 0)
    return (
        v.device.type == "cuda"
        and v.dtype in (torch.bfloat16, torch.float16)
        and width % EIGHT == 0
        and width <= WIDEST
        and torch.cuda.get_device_capability(v.device) >= CAPABILITY
    )


def with_bias(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (..., E + 8) whose product q k^T scale holds the bias (M,) of keys, for kernels that take none.

    Two channels carry it, 1 in queries; in keys bias / scale, and what its rounding left, so that it is as exact in 16
    bits as a bias is that is added. Biases that leave nothing of a key are cut to what the dtype holds.
    """
    exact = (bias.detach().float() / scale).clamp(min=torch.finfo(v.dtype).min / 2)
    rounded = exact.to(v.dtype)
    rest = (exact - rounded.float()).to(v.dtype)
    of_keys = torch.stack([rounded, rest], dim=-1)[:, None].expand(-1, k.shape[1], -1)  # (M, H, 2)
    k = torch.cat([k, F.pad(of_keys, (0, EIGHT - 2))], dim=-1)
    ones = F.pad(q.new_ones(2), (0, EIGHT - 2)).expand(*q.shape[:-1], -1)  # (N, H, 8)
    return torch.cat([q, ones], dim=-1), k, F.pad(v, (0, EIGHT))


@lru_cache(maxsize=4096)  # many more than graphs are kept of, which read these where they were recorded
def starts(lengths: Lengths, device: torch.device) -> Tensor:
    """Where each clip begins, and the end: (clips + 1,) int32, made once for all blocks and steps."""
    with torch.inference_mode(False):  # training may want what sampling has made
        return torch.tensor(list(accumulate(lengths, initial=0)), dtype=torch.int32, device=device)


@cache
def found(device: str) -> tuple[str, Call]:
    """The kernel that is used on a kind of device, and its name."""
    for name, find in CALLS.items():
        call = find() if device == "cuda" or name == "jagged" else None
        if call is not None:
            return name, call
    raise AssertionError("jagged tensors are in every torch that we take")


def _torch() -> Call | None:
    try:
        kernel = import_module("torch.nn.attention.varlen").varlen_attn
    except (ImportError, AttributeError):
        return None
    if "scale" not in inspect.signature(kernel).parameters:  # the first versions had none
        return None
    return lambda q, k, v, queries, keys, longest, longest_key, scale: kernel(
        q, k, v, queries, keys, longest, longest_key, scale=scale
    )


def _flash_attn() -> Call | None:
    try:
        kernel = import_module("flash_attn").flash_attn_varlen_func
    except (ImportError, AttributeError):
        return None
    return lambda q, k, v, queries, keys, longest, longest_key, scale: kernel(
        q, k, v, queries, keys, longest, longest_key, softmax_scale=scale
    )


def _jagged() -> Call:
    def call(
        q: Tensor, k: Tensor, v: Tensor, queries: Tensor, keys: Tensor, longest: int, longest_key: int, scale: float
    ) -> Tensor:
        def nested(x: Tensor, begin: Tensor, most: int) -> Tensor:
            return torch.nested.nested_tensor_from_jagged(x, begin.long(), min_seqlen=1, max_seqlen=most)

        q_g = nested(q, queries, longest).transpose(1, 2)
        k_g, v_g = (nested(x, keys, longest_key).transpose(1, 2) for x in (k, v))
        return F.scaled_dot_product_attention(q_g, k_g, v_g, scale=scale).transpose(1, 2).values()

    return call


CALLS: dict[str, Callable[[], Call | None]] = {"torch": _torch, "flash-attn": _flash_attn, "jagged": _jagged}
"""How each kernel is looked for, the preferred one first."""
