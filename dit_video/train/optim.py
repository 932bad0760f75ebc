"""Optimisers: Muon for the transformer's matrices, AdamW for everything else, and the moving average of the weights."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dit_video.train import distributed

# Quintic Newton-Schulz coefficients of Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/).
_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices to `matrices` (B, rows, columns), roughly, by Newton-Schulz in bfloat16.

    Source: Muon, https://kellerjordan.github.io/posts/muon/.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(Optimizer):
    """Momentum, orthogonalised: W <- W (1 - lr * decay) - lr * sqrt(max(1, rows/columns)) * NewtonSchulz(momentum),
    Nesterov style.

    A convolution is the matrix (C_out, C_in * taps), with sqrt(rows/columns) as its scale: its input is that much
    longer. Matrices of one shape are orthogonalised together as one batched product, each process doing its share of
    them. Source: https://kellerjordan.github.io/posts/muon/.
    """

    def __init__(self, params: Iterable[nn.Parameter], *, lr: float, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(list(params), {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:  # type: ignore[override]
        """One update of all matrices."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.shape].append(parameter)
            batches = [
                torch.stack([self._momentum(p, group["momentum"]).flatten(1) for p in b]) for b in by_shape.values()
            ]
            for (shape, parameters), directions in zip(by_shape.items(), self._orthogonalised(batches), strict=True):
                rows, columns = directions.shape[1:]
                scale = group["lr"] * max(1.0 if len(shape) == 2 else 0.0, rows / columns) ** 0.5
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction.to(parameter).view_as(parameter), alpha=-scale)

    @staticmethod
    def _orthogonalised(batches: list[Tensor]) -> list[Tensor]:
        """`orthogonalise` of batches of matrices that are the same on all processes: each takes every n-th matrix."""
        rank, world = distributed.place()
        if world == 1:
            return [orthogonalise(batch) for batch in batches]
        shares = [[range(r, len(batch), world) for batch in batches] for r in range(world)]
        mine = [
            orthogonalise(batch[r.start :: world]) for batch, r in zip(batches, shares[rank], strict=True) if len(r)
        ]
        sizes = [sum(len(r) * b[0].numel() for r, b in zip(each, batches, strict=True)) for each in shares]
        parts = distributed.gather([part.flatten() for part in mine], sizes, torch.bfloat16)
        results = [torch.empty_like(batch, dtype=torch.bfloat16) for batch in batches]
        for each, part in zip(shares, parts, strict=True):
            counts = [len(r) * b[0].numel() for r, b in zip(each, batches, strict=True)]
            for result, r, piece in zip(results, each, part.split(counts), strict=True):
                result[r.start :: world] = piece.view(len(r), *result.shape[1:])
        return results

    def _momentum(self, parameter: nn.Parameter, momentum: float) -> Tensor:
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        assert parameter.grad is not None
        state["momentum"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(state["momentum"], momentum)


MUON_INSIDE = ("blocks.", "encoder.downsamples.", "encoder.middle.", "decoder.upsamples.", "decoder.middle.")


def build_optimizers(
    modules: Sequence[nn.Module],
    *,
    muon_lr: float,
    adam_lr: float,
    weight_decay: float,
    text: Iterable[nn.Parameter] = (),
    text_lr: float = 0.0,
) -> list[Optimizer]:
    """Muon (when muon_lr > 0) over the matrices of transformer blocks and the convolutions of an autoencoder, AdamW
    over everything else: with `text_lr` over the parameters in `text`, which are also in `modules`.
    """
    named = [(name, p) for module in modules for name, p in module.named_parameters() if p.requires_grad]
    matrices = [
        p
        for name, p in named
        if muon_lr > 0 and name.startswith(MUON_INSIDE) and name.endswith("weight") and p.ndim >= 2
    ]
    slow = list(text)
    chosen = {id(p) for p in (*matrices, *slow)}
    groups: list[dict[str, Any]] = [{"params": [p for _, p in named if id(p) not in chosen], "lr": adam_lr}]
    if slow:
        groups.append({"params": slow, "lr": text_lr})
    adam = torch.optim.AdamW(groups, lr=adam_lr, betas=(0.9, 0.98), eps=1e-10, weight_decay=0.0, fused=True)
    optimizers: list[Optimizer] = [Muon(matrices, lr=muon_lr, weight_decay=weight_decay), adam] if matrices else [adam]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


class EMA:
    """An exponential moving average of weights whose horizon grows with training (EDM2, arXiv 2312.02696, section
    3.1).
    """

    def __init__(self, modules: Sequence[nn.Module], *, decay: float):
        self.modules, self.decay, self.updates = list(modules), decay, 0
        self.shadow = [p.detach().clone() for p in self._parameters()]

    def _parameters(self) -> list[nn.Parameter]:
        return [p for module in self.modules for p in module.parameters()]

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the weights: by 1 - decay, or by more while there are few updates."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + 9))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self._parameters()], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average, in place; call it again to undo."""
        for average, parameter in zip(self.shadow, self._parameters(), strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    def state_dict(self) -> dict[str, object]:
        """Everything that a resumed run needs."""
        return {"shadow": self.shadow, "updates": self.updates}

    def load_state_dict(self, state: dict) -> None:
        """Undo `state_dict`."""
        self.updates = state["updates"]
        for mine, theirs in zip(self.shadow, state["shadow"], strict=True):
            mine.copy_(theirs)
