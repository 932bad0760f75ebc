"""Data-parallel training through torch.distributed, started by torchrun; one process when it is not."""

import gc
import importlib
import os
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def start(device: str) -> tuple[int, int]:
    """(rank, world size): joins the group that torchrun announces in the environment, or (0, 1) alone."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return 0, 1
    if not dist.is_initialized():
        # torch.distributed.nn.functional has the group that there is at its import as a default argument, and the first
        # optimiser imports it. The group's threads would then outlive `stop`, and abort the process when they drop a
        # tensor while the interpreter is taken down ("terminate called without an active exception").
        importlib.import_module("torch._dynamo")
        cuda = device.startswith("cuda")
        if cuda:
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
    return dist.get_rank(), world


def place() -> tuple[int, int]:
    """(rank, world size) of the group that `start` joined, or (0, 1)."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gather(mine: Sequence[Tensor], sizes: Sequence[int], dtype: torch.dtype) -> list[Tensor]:
    """What every process brings, in the order of ranks: flat tensors of `dtype`, `sizes[r]` numbers from rank r."""
    device = mine[0].device if mine else torch.device("cpu")
    # As bytes, since not every backend knows every dtype; of one length, as all_gather wants it.
    sent = torch.cat([*mine, torch.empty(max(sizes) - sum(map(len, mine)), dtype=dtype, device=device)])
    got = [torch.empty_like(sent) for _ in sizes]
    dist.all_gather([each.view(torch.uint8) for each in got], sent.view(torch.uint8))
    return [each[:size] for each, size in zip(got, sizes, strict=True)]


def average_gradients(parameters: Iterable[nn.Parameter], world: int) -> None:
    """Replace each gradient by its mean over all processes, in one flat exchange; a parameter that a process did not
    use counts as 0 there.
    """
    if world == 1:
        return
    grads = []
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        grads.append(parameter.grad)
    flat = torch.cat([g.reshape(-1) for g in grads])
    dist.all_reduce(flat)
    flat /= world
    for grad, part in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def any_process(flags: Sequence[bool], world: int) -> list[bool]:
    """Which of `flags` are true on any process: the same answer on all of them."""
    if world == 1:
        return list(flags)
    values = torch.tensor([float(flag) for flag in flags])
    dist.all_reduce(values, op=dist.ReduceOp.MAX)
    return [bool(value) for value in values.tolist()]


def gather_objects(mine: Any, world: int) -> list[Any]:
    """What every process brings, in the order of ranks."""
    if world == 1:
        return [mine]
    everyones: list[Any] = [None] * world
    dist.all_gather_object(everyones, mine)
    return everyones


def stop() -> None:
    """Leave the group, where there is one, and wait until its threads have ended."""
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()
