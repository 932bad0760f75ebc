"""The training loop: step, average, log, save, resume. What a step computes is the caller's."""

import json
import math
import pickle
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dit_video import atomic, machine
from dit_video.errors import CheckpointError, DvgenError, UsageError
from dit_video.nn.linear import multiplies
from dit_video.train import distributed
from dit_video.train.board import Board
from dit_video.train.config import LoopConfig
from dit_video.train.optim import EMA

CHECKPOINT = "checkpoint.pt"
OF_CONFIG = ("initial_lr", "weight_decay")  # what a resumed run takes from its config, which may have been changed
CURVES = ("loss", "learning_rate", "grad_norm", "clips_per_second", "tokens_per_second")  # of TensorBoard
AGREE_EVERY = 10  # steps from one question to the other processes whether it is time to save or to stop to the next


@dataclass(frozen=True)
class StepResult:
    """One step's loss (a scalar with gradients), its clips and its tokens."""

    loss: Tensor
    clips: int
    tokens: int


@dataclass(frozen=True)
class Progress:
    """One line of the log: means since the previous line; seconds_left is an estimate."""

    step: int
    steps: int
    loss: float
    learning_rate: float
    grad_norm: float
    clips_per_second: float
    tokens_per_second: float
    seconds: float
    seconds_left: float


Reporter = Callable[[Progress], None]


class Data(Protocol):
    """Where a loop's examples come from: any object whose place in the stream can be saved."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass
class Run:
    """All that a training run consists of and that a checkpoint must hold."""

    folder: Path
    config: LoopConfig
    modules: dict[str, nn.Module]
    optimizers: Sequence[Optimizer]
    ema: EMA
    data: Data
    step: int = 0
    rank: int = 0
    world: int = 1

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every trained parameter."""
        return [p for module in self.modules.values() for p in module.parameters() if p.requires_grad]

    def save(self) -> None:
        """Write the whole state to `checkpoint.pt` under a temporary name, then rename it; all processes call it."""
        places = distributed.gather_objects(self.data.state_dict(), self.world)  # each has data of its own
        if self.rank != 0:
            return
        state = {
            "step": self.step,
            "modules": {name: module.state_dict() for name, module in self.modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "ema": self.ema.state_dict(),
            "data": places,
        }
        try:
            with atomic.replacing(self.folder / CHECKPOINT) as part:
                torch.save(state, part)
        except (OSError, RuntimeError) as error:  # a RuntimeError is how torch says that a disk is full
            raise CheckpointError(f"{self.folder / CHECKPOINT}: cannot be written ({error}).") from error

    def resume(self) -> None:
        """Go on from `checkpoint.pt`; every following step is bit for bit what it would have been.

        Raises:
            CheckpointError: it is damaged, or of another architecture or another number of processes.
        """
        path = self.folder / CHECKPOINT
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{path}: cannot be read ({(str(error) or 'it is empty').splitlines()[0]})."
            ) from None
        if len(state["data"]) != self.world:
            raise CheckpointError(
                f"{path}: was written by {len(state['data'])} processes, not {self.world}; resume with as many "
                f"(torchrun --nproc-per-node {len(state['data'])})."
            )
        try:
            for name, module in self.modules.items():
                module.load_state_dict(state["modules"][name])
        except (RuntimeError, KeyError) as error:
            raise CheckpointError(
                f"{path}: is not of this config's architecture ({str(error).splitlines()[-1].strip()})."
            ) from None
        if len(state["optimizers"]) != len(self.optimizers):
            raise CheckpointError(f"{path}: was trained {_with_muon(state['optimizers'])}; resume it so.")
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            chosen = [{key: group[key] for key in OF_CONFIG} for group in optimizer.param_groups]
            try:
                optimizer.load_state_dict(saved)
            except ValueError:
                raise CheckpointError(
                    f"{path}: was trained with other parameters free (decoder_only); resume it so."
                ) from None
            for group, values in zip(optimizer.param_groups, chosen, strict=True):
                group.update(values)
        self.ema.load_state_dict(state["ema"])
        self.data.load_state_dict(state["data"][self.rank])
        self.step = state["step"]


def _with_muon(optimizers: Sequence[Any]) -> str:
    return "with Muon (muon_lr above 0)" if len(optimizers) == 2 else "without Muon (muon_lr = 0)"


def check_device(config: LoopConfig) -> None:
    """Refuse a device that this machine lacks, before there is a folder. Raises UsageError."""
    kind = config.device.partition(":")[0]
    if kind not in machine.devices():
        raise UsageError(f"device is {config.device!r}: PyTorch finds none on this machine; the nearest is cpu.")


def in_fast_dtype(config: LoopConfig, note: Callable[[str], None]) -> LoopConfig:
    """The config without bfloat16 where the processor does not multiply it, which is noted: torch takes many times as
    long for its products there as in float32, and has none of some convolutions."""
    if not config.bf16 or multiplies(torch.bfloat16, torch.device(config.device).type):
        return config
    note("bf16 is true, but this processor does not multiply bfloat16: training computes in float32.")
    return replace(config, bf16=False)


def begin(folder: Path, *, resume: bool) -> None:
    """Make a run's folder; a run that is there already must be meant to go on.

    Raises:
        CheckpointError: it holds a run and `resume` is False, or it holds none and `resume` is True.
    """
    if resume and not (folder / CHECKPOINT).is_file():
        raise CheckpointError(f"{folder}: has no {CHECKPOINT} to resume; run without --resume to start.")
    if (folder / CHECKPOINT).exists() and not resume:
        raise CheckpointError(f"{folder}: holds a run already; pass --resume to go on with it, or choose another out.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be made ({error.strerror}).") from None


def learning_rate_factor(step: int, config: LoopConfig) -> float:
    """1 after a linear warm-up, and a linear fall to zero over the last `decay` steps (warm-up, stable, decay)."""
    rise = min(1.0, (step + 1) / max(1, config.warmup))
    left = config.steps - step
    fall = min(1.0, left / config.decay) if config.decay else 1.0
    return rise * fall


def fit(
    run: Run,
    step: Callable[[int], StepResult],
    sheet: Callable[[Path], None],
    report: Reporter,
    validate: Callable[[], float] | None = None,
) -> None:
    """Train `run` to its last step or its time limit; state, log and sample sheets go to its folder.

    Args:
        step: computes the loss of step number n; it may use only `run.data` and generators seeded by n, so that a
        resumed run is identical.
        sheet: writes a picture of samples made with the averaged weights.
        report: called every `log_every` steps, and each such line is appended to `log.jsonl`.
        validate: the loss of the averaged weights on clips that are not trained on; appended to `log.jsonl` too.

    With `tensorboard` lines and sheets also go to event files in the folder.

    Raises:
        DvgenError: a gradient is not finite.
    """
    config = run.config
    board = Board(run.folder, wanted=config.tensorboard and run.rank == 0, step=run.step)
    meter = _Meter(run)
    started = last_save = last_sheet = last_validation = time.monotonic()
    expired = False
    while run.step < config.steps and not expired:
        result = step(run.step)
        meter.add(result, optimise(run, result.loss))
        if run.step % config.log_every == 0 or run.step == config.steps:
            _log(run, meter.line(), report, board)
        if run.step % AGREE_EVERY:
            continue
        now = time.monotonic()
        expired, save_due, sheet_due, validation_due = distributed.any_process(
            [now - started > config.minutes * 60, now - last_save > config.save_minutes * 60,
             now - last_sheet > config.sheet_minutes * 60, now - last_validation > config.validate_minutes * 60],
            run.world,
        )  # fmt: skip
        if save_due and not expired:
            run.save()
            last_save = time.monotonic()
        if sheet_due and not expired:
            _sheet(run, sheet, board)
            last_sheet = time.monotonic()
        if validation_due and not expired:
            _validate(run, validate, board)
            last_validation = time.monotonic()
    run.save()
    _validate(run, validate, board)
    _sheet(run, sheet, board)
    board.close()


def optimise(run: Run, loss: Tensor) -> float:
    """One update of the parameters and their average; the norm of the gradient before it was clipped."""
    factor = learning_rate_factor(run.step, run.config)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
    loss.backward()
    distributed.average_gradients(run.parameters, run.world)
    norm = float(nn.utils.clip_grad_norm_(run.parameters, run.config.clip_grad))
    if not math.isfinite(norm):
        raise DvgenError(f"step {run.step}: the gradient is not finite; lower the learning rate and resume.")
    for optimizer in run.optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    run.ema.update()
    run.step += 1
    return norm


class _Meter:
    """Means and rates between two lines of the log."""

    def __init__(self, run: Run) -> None:
        self.run, self.first = run, run.step
        self.started = self.since = time.monotonic()
        self.losses: list[float] = []
        self.clips = self.tokens = 0
        self.norm = 0.0

    def add(self, result: StepResult, norm: float) -> None:
        """Count one step."""
        self.losses.append(float(result.loss.detach()))
        self.clips, self.tokens, self.norm = self.clips + result.clips, self.tokens + result.tokens, norm

    def line(self) -> Progress:
        """The line of the steps since the last one."""
        run, now = self.run, time.monotonic()
        seconds, lapse = now - self.started, now - self.since
        seconds_left = (run.config.steps - run.step) * seconds / (run.step - self.first)
        line = Progress(
            step=run.step,
            steps=run.config.steps,
            loss=sum(self.losses) / len(self.losses),
            learning_rate=run.optimizers[0].param_groups[0]["lr"],
            grad_norm=self.norm,
            clips_per_second=run.world * self.clips / lapse,
            tokens_per_second=run.world * self.tokens / lapse,
            seconds=seconds,
            seconds_left=min(seconds_left, run.config.minutes * 60 - seconds),
        )
        self.losses, self.clips, self.tokens, self.since = [], 0, 0, now
        return line


def _log(run: Run, line: Progress, report: Reporter, board: Board) -> None:
    if run.rank == 0:
        board.scalars(line.step, {name: getattr(line, name) for name in CURVES})
        with (run.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")
        report(line)


def _validate(run: Run, validate: Callable[[], float] | None, board: Board) -> None:
    if run.rank == 0 and validate is not None:
        run.ema.swap()
        try:
            loss = validate()
        finally:
            run.ema.swap()
        with (run.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps({"step": run.step, "validation_loss": loss}) + "\n")
        board.scalars(run.step, {"validation_loss": loss})


def _sheet(run: Run, sheet: Callable[[Path], None], board: Board) -> None:
    if run.rank == 0:
        path = run.folder / f"sheet-{run.step:06d}.png"
        run.ema.swap()
        try:
            sheet(path)
        finally:
            run.ema.swap()
        board.sheet(run.step, path)
