"""Tensors of files on their way to a device, and in its memory as they are stored."""

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor

from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.stored import Stored, ready


class Transfer:
    """Copies tensors to a device, those of a GPU through two buffers of pinned memory that take turns.

    A map of a file is pageable memory, of which the driver copies piece by piece and waits for each; from pinned memory
    the GPU fetches itself, while the next tensor is read into the other buffer. One thread at a time.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: list[Tensor | None] = [None, None]
        self._fetched: list[torch.cuda.Event | None] = [None, None]
        self._turn = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; on a GPU it is there for what the current stream does next."""
        if self.device.type != "cuda":
            return tensor.to(self.device)
        self._turn = 1 - self._turn
        fetched = self._fetched[self._turn]
        if fetched is not None:
            fetched.synchronize()
        nbytes = tensor.numel() * tensor.element_size()
        buffer = self._buffers[self._turn]
        if buffer is None or len(buffer) < nbytes:
            buffer = self._buffers[self._turn] = torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        pinned = buffer[:nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
        moved = pinned.to(self.device, non_blocking=True)
        fetched = self._fetched[self._turn] = torch.cuda.Event()
        fetched.record(torch.cuda.current_stream(self.device))
        return moved


class Held:
    """Tensors in the memory of a device as they are stored: of fp8, half of what bfloat16 takes.

    Raises:
        CheckpointError: a file cannot be read.
    """

    def __init__(self, infos: Iterable[TensorInfo], transfer: Transfer) -> None:
        self._tensors: dict[TensorInfo, Tensor] = {}
        every = [each for info in infos for each in (info, info.scale) if each is not None]
        for file, group in groupby(sorted(every, key=lambda info: info.file), key=lambda info: info.file):
            with Stored(file) as stored:
                for info in group:
                    self._tensors[info] = transfer(stored.raw(info))

    def get(self, info: TensorInfo) -> Tensor:
        """A tensor ready for use: itself, or float32 if it is quantised."""
        return ready(info, self._tensors.__getitem__)
