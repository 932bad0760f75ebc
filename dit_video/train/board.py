"""TensorBoard: what log.jsonl says as scalars, and the sample sheets as pictures, in event files beside it."""

from pathlib import Path
from typing import Any

from dit_video.video.io import read_picture

FLUSH_SECONDS = 10


class Board:
    """The event files of a run's folder; a run without TensorBoard has one that writes nothing.

    step: where a resumed run goes on. What was written beyond it belongs to steps that are lost, and is hidden.
    """

    def __init__(self, folder: Path, *, wanted: bool, step: int):
        self.writer: Any = None
        if wanted:
            from torch.utils.tensorboard import SummaryWriter  # takes a second

            self.writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None, flush_secs=FLUSH_SECONDS)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """One point of each curve, by its name in log.jsonl."""
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def sheet(self, step: int, path: Path) -> None:
        """A sample sheet that was just written."""
        if self.writer is not None:
            self.writer.add_image("sheet", read_picture(path), step, dataformats="HWC")

    def close(self) -> None:
        """Write what is waiting."""
        if self.writer is not None:
            self.writer.close()
