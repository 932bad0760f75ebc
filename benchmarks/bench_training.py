"""Training of the transformer on clips of any size and length: packed, padded, and resized to one shape.

    python benchmarks/bench_training.py [--rounds 2] [--clips 24] [--tokens 2048] [--dtype float32] [--write]
    python benchmarks/bench_training.py --side packed [--attention sdpa] [--compile]

Clips are drawn from the last phase of `configs/dit-small.toml`, the architecture is that of the model that ships, with
random weights, and a step is forward and backward. Sides:

    packed   as `dvgen train` does: first fit into packs of --tokens
    padded   the same model and as many clips a step, in the order drawn, all padded to the longest of the step,
             which attention does not see
    sorted   the same, with clips of like lengths together, which no longer makes steps that are like each other
    resized  every clip as 256x144 in 24 frames

Tokens are useful where a clip has them: not padding, and not what resizing adds to a smaller clip. The gradient of all
clips together must be the same packed, padded and sorted. With `--side` one side alone is measured; --attention
chooses a backend of nn/attention.py, and --compile fuses the elementwise functions first.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MethodType

import harness
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dit_video.models.wan.dit import UNSEEN, SelfAttention, WanDiT
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.models.wan.seen import OfClips
from dit_video.nn import attention, fusion
from dit_video.nn.adaln import timestep_embedding
from dit_video.nn.packing import Pack, make_pack, pack_tokens
from dit_video.nn.patch import patchify
from dit_video.shapes import Size3, VideoShape
from dit_video.train.config import DiTTrainConfig, load_config
from dit_video.train.data import sample_shape
from dit_video.train.packing import pack_in_chunks

SIDES = ("packed", "padded", "sorted", "resized")
WORDS = 12  # rows of a caption
ONE_SHAPE = VideoShape(num_frames=24, height=144, width=256)
CONFIG = harness.ROOT / "configs" / "dit-small.toml"
CHECKPOINT = WanCheckpoint.open(harness.ROOT / "weights" / "default")
SAME = {"float32": 1e-3, "bfloat16": 0.1}  # relative error of the gradient; its sums have another order


def grids_of(count: int) -> list[Size3]:
    """The grids of patches of clips drawn from the config's last phase."""
    rng, phase = np.random.default_rng(0), load_config(CONFIG, DiTTrainConfig).phase[-1]
    grid = CHECKPOINT.grid
    return [grid.tokens(grid.latent(sample_shape(rng, phase))) for _ in range(count)]


def steps_of(side: str, tokens: Sequence[int], budget: int) -> list[tuple[int, ...]]:
    """The clips of every step; sides that do not pack have as many steps as packing makes."""
    packs = pack_in_chunks(tokens, budget)
    if side == "packed":
        return packs
    order = sorted(range(len(tokens)), key=lambda n: tokens[n]) if side == "sorted" else range(len(tokens))
    return [tuple(map(int, part)) for part in np.array_split(list(order), len(packs))]


@dataclass(frozen=True, kw_only=True)
class Padded(Pack):
    """A pack all of whose clips are padded to the longest. bias: (N,) of the keys, which keeps padding out."""

    bias: Tensor


def unseeing(self: SelfAttention, x: Tensor, pack: Pack) -> Tensor:
    """`SelfAttention.forward` that does not see the padding of a `Padded` pack."""
    q, k = (self.heads(norm(layer(x), pack.rope)) for norm, layer in ((self.norm_q, self.q), (self.norm_k, self.k)))
    assert isinstance(pack, Padded)
    y = attention.attention(q, k, self.heads(self.v(x)), lengths=pack.spans, key_bias=pack.bias)
    return self.o(y.flatten(1))


def padded(pack: Pack) -> tuple[Padded, Tensor, Tensor]:
    """A pack padded, the token that stands at each of its places, and which of them are the clips'."""
    lengths = torch.tensor(pack.spans.lengths)
    place = torch.arange(int(lengths.max()))
    real = (place < lengths[:, None]).flatten()
    source = torch.where(place < lengths[:, None], pack.spans.starts[:-1, None] + place, 0).flatten()
    made = Padded(
        order=pack.order,
        spans=attention.Spans([len(place)] * len(lengths)),
        rope=pack.rope[source],
        timesteps=pack.timesteps,
        level=pack.level[source],
        bias=torch.where(real, 0.0, UNSEEN),
    )
    return made, source, real


class Clips:
    """Random latents, levels, captions and targets of clips with these grids of patches."""

    def __init__(self, grids: Sequence[Size3]) -> None:
        self.grids, config = grids, CHECKPOINT.dit
        t, p, q = config.patch
        self.latents, self.targets, self.times, self.texts = [], [], [], []
        for number, (frames, height, width) in enumerate(grids):
            generator = torch.Generator().manual_seed(number)
            self.latents.append(torch.randn(config.in_dim, frames * t, height * p, width * q, generator=generator))
            self.targets.append(
                torch.randn(prod(grids[number]), prod(config.patch) * config.out_dim, generator=generator)
            )
            self.times.append(torch.full((frames * t,), 1000 * float(torch.rand((), generator=generator))))
            self.texts.append(torch.randn(WORDS, config.text_dim, generator=generator))


def loss_of(model: WanDiT, clips: Clips, step: Sequence[int], *, pad: bool) -> Tensor:
    """The sum of squares of what the model gets wrong about the clips of a step."""
    config = model.config
    pack = make_pack(
        [clips.grids[n] for n in step],
        [clips.times[n] for n in step],
        head_dim=config.head_dim,
        device=torch.device("cpu"),
    )
    x = pack_tokens([patchify(clips.latents[n], config.patch) for n in step], pack)
    targets = pack_tokens([clips.targets[n] for n in step], pack)
    text = model.encode_text([clips.texts[n] for n in step])
    real: Tensor | slice = slice(None)
    if pad:
        pack, source, real = padded(pack)
        x = x[source]
    sinusoids = timestep_embedding(pack.timesteps, config.freq_dim)
    velocity = model.through(x, sinusoids, pack, OfClips(text, range(len(step)), pack), None)
    return F.mse_loss(velocity[real].float(), targets, reduction="sum")


def measure(options: argparse.Namespace) -> None:
    """One side: say its seconds and tokens, and save the gradient of all clips."""
    side, dtype = options.side, getattr(torch, options.dtype)
    own = grids_of(options.clips)
    tokens = [prod(grid) for grid in own]
    steps = steps_of(side, tokens, options.tokens)
    grid = CHECKPOINT.grid
    clips = Clips([grid.tokens(grid.latent(ONE_SHAPE))] * len(own) if side == "resized" else own)
    fusion.enable(options.compile)
    if options.attention == "sdpa":
        attention.TILED_MAX_LENGTH = 0  # no clip is short enough for the other one
    torch.manual_seed(0)
    model, pad = WanDiT(CHECKPOINT.dit), side in ("padded", "sorted")
    with torch.no_grad():
        for parameter in model.parameters():  # nothing is zero, so nothing is cheaper than in training
            parameter.normal_(std=0.05)
    if pad:
        for block in model.blocks:
            block.self_attn.forward = MethodType(unseeing, block.self_attn)

    def train(step: Sequence[int]) -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = loss_of(model, clips, step, pad=pad) / sum(tokens)
        loss.backward()

    train(steps[0])
    model.zero_grad(set_to_none=True)
    start, cpu = time.perf_counter(), time.process_time()
    for step in steps:
        train(step)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    computed = [prod(each) for each in clips.grids]
    total = sum(len(step) * max(computed[n] for n in step) if pad else sum(computed[n] for n in step) for step in steps)
    if options.save:
        np.save(options.save, torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).numpy())
    useful = sum(map(min, computed, tokens))
    figures = {"useful": useful, "computed": total, "of_clips": sum(tokens), "steps": len(steps)}
    harness.say(seconds_of_steps=seconds, cpu_of_steps=cpu, rate=useful / seconds, **figures)


def main() -> None:
    """All sides in turn, or the one that is named."""
    parser = harness.parser(__doc__, rounds=2)
    parser.add_argument("--clips", type=int, default=24)
    parser.add_argument("--tokens", type=int, default=2048, help="of a pack")
    parser.add_argument("--dtype", choices=SAME, default="float32", help="bfloat16 where the processor multiplies it")
    parser.add_argument("--attention", choices=["tiled", "sdpa"], default="tiled")
    parser.add_argument("--compile", action="store_true")
    options: argparse.Namespace = parser.parse_args()
    harness.check_dtype(options.dtype)
    if options.side:
        measure(options)
        return
    path = {"PYTHONPATH": os.pathsep.join([str(harness.ROOT), str(harness.ROOT / "cli")])}
    with tempfile.TemporaryDirectory() as name:
        files = {side: Path(name) / f"{side}.npy" for side in SIDES}
        sides = [
            harness.Side(side, harness.this_script("--side", side, "--save", file), path)
            for side, file in files.items()
        ]
        runs = harness.in_turn(sides, rounds=options.rounds, warmup=False)
        ours = np.load(files["packed"]).astype(np.float64)
        errors = [np.linalg.norm(np.load(files[side]) - ours) / np.linalg.norm(ours) for side in ("padded", "sorted")]
    same = harness.agree("largest relative error of the gradient", float(max(errors)), SAME[options.dtype])
    report = harness.Report(
        "training", "Useful tokens a second in training: packed against padded and resized", "padded or resized"
    )
    what = {
        "padded": "every clip padded to the longest of its step",
        "sorted": "the same, clips of like lengths together",
        "resized": f"every clip as {ONE_SHAPE.width}x{ONE_SHAPE.height} in {ONE_SHAPE.num_frames} frames",
    }
    packed = runs["packed"]
    for side, words in what.items():
        told = [f"{harness.figures(each, 'rate'):.0f} tokens/s" for each in (runs[side], packed)]
        ratio = harness.ratio(packed, runs[side], "rate")
        report.claim(f"training, {options.dtype}: {words}", *told, ratio, "" if side == "resized" else same)
    first = {side: runs[side][0].said for side in SIDES}
    rows = ["| | useful tokens | computed | of them wasted | lost |", "|---|---|---|---|---|"]
    for side, said in first.items():
        wasted, lost = 1 - said["useful"] / said["computed"], 1 - said["useful"] / said["of_clips"]
        rows.append(f"| {side} | {said['useful']:,} | {said['computed']:,} | {wasted:.1%} | {lost:.1%} |")
    report.notes.append("\n".join(rows))
    report.notes.append(
        f"{options.clips} clips of the last phase of `configs/dit-small.toml`, {first['packed']['steps']} steps of "
        f"forward and backward on the architecture that ships, with random weights; packs of {options.tokens:,} "
        "tokens. Lost is what the clips had and resizing took. The optimiser's step and the encoding of clips are the "
        "same on all sides and left out. Padding is not seen by attention, and costs as much as other tokens elsewhere."
    )
    if options.write:
        report.write()


if __name__ == "__main__":
    main()
