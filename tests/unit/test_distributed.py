"""Two processes that train together do what one does."""

import os
import socket
from pathlib import Path

import torch
import torch.multiprocessing as mp
from torch import nn

from dit_video.train import distributed
from dit_video.train.optim import Muon, build_optimizers

WORLD = 2


def matrices() -> nn.ModuleDict:
    """Two shapes of matrices, an odd number of one of them, and a convolution."""
    torch.manual_seed(0)
    blocks = [nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 24), nn.Conv2d(3, 4, 3)]
    return nn.ModuleDict({"blocks": nn.ModuleList(blocks)})


def take_steps(rank: int, world: int) -> list[torch.Tensor]:
    """The weights after three steps with gradients that differ from process to process."""
    module = matrices()
    optimizers = build_optimizers([module], muon_lr=0.02, adam_lr=1e-3, weight_decay=0.0)
    assert isinstance(optimizers[0], Muon)
    for step in range(3):
        gradients = [
            [torch.randn(p.shape, generator=torch.Generator().manual_seed(100 * step + r)) for p in module.parameters()]
            for r in range(WORLD)
        ]
        for i, parameter in enumerate(module.parameters()):
            both = torch.stack([gradients[r][i] for r in range(WORLD)])
            parameter.grad = both[rank].clone() if world > 1 else both.mean(0)
        distributed.average_gradients(module.parameters(), world)
        for optimizer in optimizers:
            optimizer.step()
    return [p.detach() for p in module.parameters()]


def worker(rank: int, folder: str, port: int) -> None:
    """One of the processes."""
    os.environ |= {"WORLD_SIZE": str(WORLD), "RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    assert distributed.start("cpu") == (rank, WORLD)
    torch.save(take_steps(rank, WORLD), f"{folder}/{rank}.pt")
    assert distributed.any_process([rank == 1, False], WORLD) == [True, False]
    assert distributed.gather_objects({"rank": rank}, WORLD) == [{"rank": 0}, {"rank": 1}]
    distributed.stop()
    assert not group_threads(), "they would abort the process if they outlived the interpreter"


def group_threads() -> list[str]:
    """The names of this process's threads that belong to a group of processes (Linux alone tells)."""
    tasks = Path("/proc/self/task")
    names = [(task / "comm").read_text().strip() for task in tasks.iterdir()] if tasks.is_dir() else []
    return [name for name in names if "gloo" in name]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_processes_step_as_one(tmp_path: Path) -> None:
    mp.spawn(worker, (str(tmp_path), free_port()), nprocs=WORLD)
    alone = take_steps(0, 1)
    for rank in range(WORLD):
        for mine, expected in zip(torch.load(tmp_path / f"{rank}.pt"), alone, strict=True):
            torch.testing.assert_close(mine, expected, rtol=0, atol=1e-4)
    assert (alone[0] - next(matrices().parameters())).abs().max() > 1e-2
