"""What a run computes and moves, operation by operation: counted while it runs, and timed by torch's profiler.

FLOPs are those of products, convolutions and attention (a multiplication and an addition are two). Bytes are the
tensors that operations read and write, views left out: what memory would move if nothing stayed in a cache in between.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import conv_flop_count, flop_registry, sdpa_flop_count

Run = Callable[[], Any]
PRODUCTS, CONVOLUTIONS, ATTENTION, REST = "matrix products", "convolutions", "attention", "all else"
aten: Any = torch.ops.aten
VIEWS = {"expand", "permute", "transpose", "t", "view", "_unsafe_view", "slice", "select", "split", "unsqueeze"}
VIEWS |= {"squeeze", "unbind", "as_strided", "detach", "alias", "split_with_sizes", "chunk", "unfold", "empty", "diff"}
ONEDNN_LINEAR: Any = torch.ops.mkldnn._linear_pointwise  # with what follows; of attention as well
TOLD = {*flop_registry, aten.mkldnn_convolution, ONEDNN_LINEAR}
ONLY_WRITTEN = {"copy_", "zero_", "fill_"}  # what is their first argument is not read
VIEWS |= {"empty_like", "new_empty", "empty_strided", "_reshape_alias", "lift_fresh", "reshape", "narrow"}


def flops_of(function: Any, arguments: tuple[Any, ...], out: Any) -> tuple[str, float]:
    """The group of an operation, and its FLOPs."""
    packet = function.overloadpacket
    if packet is aten.mkldnn_convolution:
        return CONVOLUTIONS, conv_flop_count(arguments[0].shape, arguments[1].shape, out.shape)
    if packet is aten._scaled_dot_product_flash_attention_for_cpu:
        return ATTENTION, sdpa_flop_count(*(x.shape for x in arguments[:3]))
    if packet is ONEDNN_LINEAR:
        return PRODUCTS, 2.0 * out.numel() * arguments[1].shape[1]
    if packet not in flop_registry:
        return REST, 0.0
    name = packet.__name__
    group = CONVOLUTIONS if "conv" in name else ATTENTION if "attention" in name else PRODUCTS
    return group, flop_registry[packet](*arguments, out_val=out)


@dataclass
class Work:
    """FLOPs by group, and bytes."""

    flops: Counter[str] = field(default_factory=Counter)
    bytes: int = 0

    @property
    def all_flops(self) -> float:
        """Of all groups."""
        return float(sum(self.flops.values()))


class _Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.work = Work()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.overloadpacket not in TOLD:  # what is made of other operations is seen as those, in inference mode too
            with self:
                out = func.decompose(*args, **(kwargs or {}))
            if out is not NotImplemented:
                return out
        out = func(*args, **(kwargs or {}))
        group, flops = flops_of(func, args, out)
        if flops:
            self.work.flops[group] += flops
        name = func.overloadpacket.__name__
        if name not in VIEWS:
            given = {key: value for key, value in (kwargs or {}).items() if key != "out"}
            read = args[1:] if name in ONLY_WRITTEN else args
            tensors = [x for x in tree_leaves((read, given, out)) if isinstance(x, Tensor)]
            self.work.bytes += sum(x.numel() * x.element_size() for x in tensors)
        return out


def counted(run: Run) -> Work:
    """What one call of `run` computes and moves."""
    with _Counting() as counting:
        run()
    return counting.work


def group_of(name: str) -> str:
    """The group of an operation by the name that the profiler has for it."""
    if "conv" in name:
        return CONVOLUTIONS
    if "attention" in name:
        return ATTENTION
    known = {"addmm", "mm", "bmm", "baddbmm", "linear", "mkldnn::_linear_pointwise"}
    return PRODUCTS if name.removeprefix("aten::") in known else REST


@dataclass
class Profile:
    """Seconds by group, and the operations that took most of what is in no group."""

    seconds: dict[str, float]
    most: dict[str, float]


def profiled(run: Run) -> Profile:
    """Of the calling thread, in one call of `run`: where it computes with others, it waits for them."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run()
    groups: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    for event in profile.key_averages():
        group = group_of(event.key)
        groups[group] += event.self_cpu_time_total / 1e6
        if group == REST:
            rest[event.key.removeprefix("aten::")] += event.self_cpu_time_total / 1e6
    return Profile(dict(groups), dict(rest.most_common(6)))
