"""Deeper transformers from trained ones, without changing what they compute."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

_OUTPUTS = ("self_attn.o", "cross_attn.o", "ffn.2")  # of a block: what it adds to the tokens


def deepened(state: Mapping[str, Tensor], layers: int, wanted: int) -> dict[str, Tensor]:
    """The weights of a `WanDiT` of `layers` blocks as those of one of `wanted`, which computes the same.

    The new blocks are copies of the inner ones, evenly spread, each right after its original and with zeros for what it
    adds; so they are the identity until they are trained (stacking as in Gong et al., ICML 2019, kept exact as in
    Net2Net, arXiv 1511.05641).

    Args:
        state: by the release's names.
        wanted: more than `layers`.
    """
    inner = min(1, layers - 1), max(layers - 2, 0)
    copied = np.linspace(*inner, wanted - layers).round().astype(int).tolist()
    sources = sorted([*((block, False) for block in range(layers)), *((block, True) for block in copied)])
    grown = {name: tensor for name, tensor in state.items() if not name.startswith("blocks.")}
    for index, (block, is_copy) in enumerate(sources):
        prefix = f"blocks.{block}."
        for name, tensor in state.items():
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                silent = is_copy and rest.rpartition(".")[0] in _OUTPUTS
                grown[f"blocks.{index}.{rest}"] = torch.zeros_like(tensor) if silent else tensor.clone()
    return grown
