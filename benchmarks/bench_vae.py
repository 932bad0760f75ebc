"""The autoencoder against diffusers' AutoencoderKLWan: time and memory of encoding and decoding, with the same weights.

    python benchmarks/bench_vae.py [--case shipped|full-size] [--task encode|decode] [--dtype bfloat16] [--write]

`shipped` is the autoencoder of the model that ships, `full-size` that of Wan 2.1 with random weights. dvgen runs as its
command runs it: with the settings of its process, encoding and decoding one latent frame after the other, of which
frames go on to a file as they are ready. diffusers runs under inference_mode, with tiling and slicing off and all
threads. What is encoded are frames of 8 bits, as they come from a file. Each run is a process of its own that makes a
tiny clip first; seconds are those of the clip, memory is that of the whole process. `--size` and `--frames` are for
trying things.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import harness

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Case:
    """An autoencoder, and a clip for it."""

    what: str
    size: str
    frames: int
    faster: dict[str, float]
    """The ratio of times that we set out for, by dtype."""


CASES = {
    "shipped": Case(what="shipped autoencoder", size="640x384", frames=49, faster={"float32": 4.0, "bfloat16": 2.0}),
    "full-size": Case(what="Wan 2.1 autoencoder", size="416x240", frames=9, faster={"bfloat16": 1.3}),
}
SMALLER = 2.0
TASKS = ("encode", "decode")
SIDES = ("diffusers", "diffusers, our process", "dvgen")
LIMITS = {"float32": 2e-5, "bfloat16": 5e-2}  # of the relative error of what comes out
TINY = ("64x64", 5)


class Theirs:
    """diffusers' autoencoder, with the whitening that its pipeline does."""

    def __init__(self, folder: Path, dtype: str):
        import torch
        from diffusers import AutoencoderKLWan

        self.vae = AutoencoderKLWan.from_pretrained(folder, torch_dtype=getattr(torch, dtype)).eval()
        config = self.vae.config
        self.channels = config.z_dim
        self.stride = (config.scale_factor_temporal, config.scale_factor_spatial, config.scale_factor_spatial)
        mean, deviation = torch.tensor([config.latents_mean, config.latents_std]).view(2, 1, -1, 1, 1, 1)
        self.mean, self.deviation = mean.to(self.vae.dtype), deviation.to(self.vae.dtype)

    def decode(self, latents: "Tensor") -> "Iterator[Tensor]":
        """The pixels of whitened latents."""
        yield self.vae.decode(latents * self.deviation + self.mean).sample

    def encode(self, frames: "np.ndarray") -> "Iterator[Tensor]":
        """The whitened latents of frames, which are prepared as diffusers' pipelines do."""
        from diffusers.video_processor import VideoProcessor

        video = VideoProcessor(vae_scale_factor=self.stride[1]).preprocess_video(frames.astype("float32") / 255)
        video = video.to(self.vae.dtype)
        yield (self.vae.encode(video).latent_dist.mode() - self.mean) / self.deviation


class Ours:
    """dvgen's, loaded as from a checkpoint."""

    def __init__(self, folder: Path, dtype: str):
        import torch

        from dit_video.checkpoints.files import read_headers, read_json
        from dit_video.checkpoints.load import load_into
        from dit_video.models.wan.folder import WEIGHTS
        from dit_video.models.wan.vae import WanVAE
        from dit_video.models.wan.vae_layouts import diffusers_layout, from_diffusers_config

        config = from_diffusers_config(read_json(folder / "config.json"))
        headers, layout = read_headers(folder, WEIGHTS), diffusers_layout(config)
        self.vae = load_into(lambda: WanVAE(config), headers, layout, dtype=getattr(torch, dtype))
        self.channels, self.stride = config.z_dim, config.stride

    def decode(self, latents: "Tensor") -> "Iterator[Tensor]":
        """As `decode.decode_frames` does."""
        return self.vae.decode_stream(latents)

    def encode(self, frames: "np.ndarray") -> "Iterator[Tensor]":
        """The latents of frames."""
        from dit_video.known import encode_frames

        yield encode_frames(self.vae, frames)[None]


def measure(options: argparse.Namespace) -> None:
    """One side, in this process: says the seconds of the clip, and leaves what came out, float32, in a file."""
    if options.side != "diffusers":
        from dvgen import process

        process.prepare()
    import numpy as np
    import torch

    from dit_video.shapes import parse_size

    torch.set_num_threads(options.threads or os.cpu_count() or 1)
    side = (Ours if options.side == "dvgen" else Theirs)(options.folder, options.dtype)
    case, (task,) = CASES[options.case[0]], options.task
    t, h, w = side.stride
    with torch.inference_mode():
        for size, frames in (TINY, (options.size or case.size, options.frames or case.frames)):
            width, height = parse_size(size)
            generator = torch.Generator().manual_seed(0)
            if task == "encode":
                given = np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)
            else:
                shape = (1, side.channels, 1 + (frames - 1) // t, height // h, width // w)
                given = torch.randn(shape, generator=generator).to(getattr(torch, options.dtype))
            seconds, parts = 0.0, getattr(side, task)(given)
            with options.save.open("wb") as file:
                while True:
                    start = time.perf_counter()
                    part = next(parts, None)
                    seconds += time.perf_counter() - start
                    if part is None:
                        break
                    for frame in part[0].unbind(1):
                        file.write(frame.float().contiguous().numpy())
                    del part
    harness.say(clip=seconds)


def compare(options: argparse.Namespace, report: harness.Report, folder: Path) -> None:
    """One case and task: its lines of the report. Raises Differs."""
    case, (task,) = CASES[options.case[0]], options.task
    names = [each for each in SIDES if each != SIDES[1] or options.case[0] == "shipped"]
    files = {name: Path(f"{folder}-{names.index(name)}") for name in names}
    path = {"PYTHONPATH": os.pathsep.join([str(harness.ROOT), str(harness.ROOT / "cli")])}
    sides = []
    for name in names:
        given = ["--side", name, "--save", files[name], "--folder", folder, "--case", *options.case, "--task", task]
        given += ["--dtype", options.dtype]
        for option in ("size", "frames", "threads"):
            given += [f"--{option}", getattr(options, option)] if getattr(options, option) else []
        sides.append(harness.Side(name, [sys.executable, sys.argv[0], *map(str, given)], path))
    runs = harness.in_turn(sides, rounds=options.rounds, warmup=False)
    same = agreement(files["dvgen"], files["diffusers"], LIMITS[options.dtype])
    theirs, ours = runs["diffusers"], runs["dvgen"]
    what = f"{case.what}, {task} {options.size or case.size}, {options.frames or case.frames} frames, {options.dtype}"
    seconds = [f"{harness.figures(each, 'clip'):.2f} s" for each in (theirs, ours)]
    report.claim(f"{what}: time", *seconds, harness.ratio(theirs, ours, "clip"), same, case.faster.get(options.dtype))
    peaks = [f"{harness.figures(each, 'peak').middle / 2**20:.0f} MiB" for each in (theirs, ours)]
    report.claim(f"{what}: peak memory", *peaks, harness.ratio(theirs, ours, "peak"), same, SMALLER)
    if helped := runs.get(SIDES[1]):
        said = f"{harness.figures(helped, 'clip'):.2f} s, {harness.ratio(helped, ours, 'clip'):.2f} times dvgen's"
        report.notes.append(
            f"{what}: diffusers with the settings of dvgen's process (huge pages, freed memory kept) {said}, in "
            f"{harness.figures(helped, 'peak').middle / 2**20:.0f} MiB."
        )


def agreement(ours: Path, theirs: Path, limit: float) -> str:
    """How far two files of float32 agree. Raises Differs."""
    import numpy as np
    import torch

    a, b = (torch.from_numpy(np.fromfile(file, np.float32)) for file in (ours, theirs))
    if a.shape != b.shape:
        raise harness.Differs(f"dvgen made {len(a)} numbers and diffusers {len(b)}.")
    return harness.agree("relative error", harness.relative_error(a, b), limit)


def weights(case: str, folder: Path) -> Path:
    """The folder of the autoencoder; that of a full size is made."""
    if case == "shipped":
        return harness.ROOT / "weights" / "default" / "vae"
    import torch
    from make_full_size import write_vae

    from dit_video.models.wan.variants import VARIANTS

    torch.manual_seed(0)
    (folder / "vae").mkdir()
    write_vae(VARIANTS["T2V-1.3B"].vae, folder / "vae")
    return folder / "vae"


def main() -> None:
    """All cases and tasks, or those that are named."""
    parser = harness.parser(__doc__, rounds=2)
    parser.add_argument("--case", choices=CASES, action="append", help="only this one; repeatable")
    parser.add_argument("--task", choices=TASKS, action="append", help="only this one; repeatable")
    parser.add_argument("--dtype", choices=LIMITS, default="float32")
    parser.add_argument("--size")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        measure(options)
        return

    import torch

    from dit_video.nn.linear import multiplies

    if not multiplies(getattr(torch, options.dtype), "cpu"):
        sys.exit(f"--dtype {options.dtype}: this processor does not multiply in it; the nearest is --dtype float32.")
    report = harness.Report(f"vae_{options.dtype}", "The autoencoder: dvgen against diffusers", "diffusers")
    for case in options.case or CASES:
        with tempfile.TemporaryDirectory() as name:
            found = weights(case, Path(name))
            there = Path(name) / "weights"  # what is made is left beside it
            there.symlink_to(found)
            for task in options.task or TASKS:
                compare(argparse.Namespace(**vars(options) | {"case": [case], "task": [task]}), report, there)
    report.notes.append(
        "The shipped weights, and random ones of the full size; clips and latents are random. Both sides use all "
        "cores. diffusers runs under `torch.inference_mode`, without tiling or slicing; its weights in `channels_last` "
        "memory made encoding with the shipped autoencoder slower (1.9 s against 1.4 s of processor time for 5 frames "
        "of 640x384 on one thread). dvgen runs as its command does."
    )
    if options.write:
        report.write()


if __name__ == "__main__":
    main()
