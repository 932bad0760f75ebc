"""One step of the DiT: Wan 2.1 T2V 1.3B's geometry at 416x240, 17 frames, 512 rows of text, against diffusers.

    python benchmarks/bench_dit_step.py [--dtype bfloat16] [--layers 30] [--rounds 2] [--weights FOLDER] [--write]

One forward without guidance, the second of two, in a process for each side with all cores; the same random weights out
of one folder in bfloat16, the same latents and text. diffusers is loaded as its documentation has it for Wan,
`from_pretrained(torch_dtype=...)`, and both run under `torch.inference_mode`. dvgen makes the keys and values of the
text once for all steps, diffusers in each: so they are not in dvgen's time, and said beside it. With `--quantize int8`,
a third side, products are in 8 bits.

In float32 dvgen's velocity must be that of diffusers. In bfloat16 it must be as near to diffusers in float32 as
diffusers' in bfloat16 is; that side is run once for it. `--profile SIDE` shows where the time of one goes instead.
"""

import argparse
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import harness
from dvgen import process

TEXT, STRIDE, TIMESTEP = 512, (4, 8, 8), 637.0
PEER, EXACT = "diffusers", "diffusers in float32"
SIDES = (PEER, "dvgen", "dvgen, int8", EXACT)
SAME = 3e-5  # relative error in float32, as in tests/parity
WANTED = {"dvgen": 1.25, "dvgen, int8": 1.8}  # in bfloat16


def inputs(size: str, frames: int, channels: int, width: int):
    """Latents (C, T, H, W) of the padded clip, and text (L, width)."""
    import torch

    from dit_video.shapes import parse_size

    generator = torch.Generator().manual_seed(1)
    across, down = parse_size(size)
    depth = 1 + math.ceil((frames - 1) / STRIDE[0])
    sides = (2 * math.ceil(side / (2 * step)) for side, step in zip((down, across), STRIDE[1:], strict=True))
    latent = torch.randn((channels, depth, *sides), generator=generator)
    return latent, torch.randn((TEXT, width), generator=generator)


def load(options: argparse.Namespace, side: str) -> tuple[Callable, float]:
    """What makes the velocity (C, T, H, W) of latents on one side, and the seconds that the text's keys took."""
    import torch

    dtype = torch.float32 if side == EXACT else getattr(torch, options.dtype)
    if side in (PEER, EXACT):
        from diffusers import WanTransformer3DModel

        theirs = WanTransformer3DModel.from_pretrained(options.weights / "transformer", torch_dtype=dtype).eval()
        _, text = inputs(options.size, options.frames, theirs.config.in_channels, theirs.config.text_dim)
        rows, times = text[None].to(dtype), torch.tensor([TIMESTEP])
        return lambda clip: theirs(clip[None].to(dtype), times, rows, return_dict=False)[0][0], 0.0
    from dit_video.models import open_checkpoint

    quantize = "int8" if "int8" in side else None
    ours = open_checkpoint(options.weights).load_dit(dtype=dtype, quantize=quantize)
    _, text = inputs(options.size, options.frames, ours.config.in_dim, ours.config.text_dim)
    start = time.perf_counter()
    keys = ours.encode_text([text])
    took = time.perf_counter() - start
    return lambda clip: ours([clip], [torch.full((clip.shape[1],), TIMESTEP)], keys, [0])[0], took


def measure(options: argparse.Namespace, side: str) -> None:
    """One side, in this process: says the seconds of a forward after a first one, and saves the velocity."""
    if "dvgen" in side:
        process.prepare()
    import torch

    from dit_video.models import open_checkpoint

    config = open_checkpoint(options.weights).dit
    full, _ = inputs(options.size, options.frames, config.in_dim, config.text_dim)
    with torch.inference_mode():
        forward, text = load(options, side)
        forward(full)
        if options.profile:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as found:
                forward(full)
            print(found.key_averages(group_by_input_shape=True).table(sort_by="self_cpu_time_total", row_limit=30))
            return
        start, spent = time.perf_counter(), time.process_time()
        velocity = forward(full)
        step, spent = time.perf_counter() - start, time.process_time() - spent
    torch.save(velocity.float(), options.save / f"{side}.pt")
    harness.say(step=step, processor=spent, text=text)


def check_dtype(name: str) -> None:
    """Refuses a dtype whose products this processor emulates: their time says nothing."""
    import torch

    from dit_video.nn.linear import multiplies

    if not multiplies(getattr(torch, name), "cpu"):
        sys.exit(f"--dtype {name}: this processor does not multiply it, so its time says nothing; use --dtype float32.")


def main() -> None:
    """Measure, compare, report."""
    parser = harness.parser(__doc__, rounds=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--size", default="416x240")
    parser.add_argument("--frames", type=int, default=17)
    parser.add_argument("--weights", type=Path, help="a folder of make_full_size.py, made if it is not there")
    parser.add_argument("--profile", choices=SIDES)
    options = parser.parse_args()
    if options.side:
        measure(options, options.side)
        return
    check_dtype(options.dtype)
    with tempfile.TemporaryDirectory() as temporary:
        options.weights = options.weights or Path(temporary) / "model"
        if not options.weights.is_dir():
            import make_full_size

            make_full_size.write("T2V-1.3B", options.weights, text_encoder="one-layer", layers=options.layers)
        if options.profile:
            measure(options, options.profile)
            return
        own = ("--weights", options.weights, "--save", temporary)
        sides = {name: harness.Side(name, harness.this_script(*own, "--side", name)) for name in SIDES}
        exact = PEER
        if options.dtype != "float32":
            exact = EXACT
            harness.run(sides[EXACT])
        runs = harness.in_turn([sides[name] for name in SIDES if name != EXACT], rounds=options.rounds, warmup=False)
        report(options, runs, exact, Path(temporary))


def report(options: argparse.Namespace, runs: dict[str, list[harness.Run]], exact: str, folder: Path) -> None:
    """Errors to float32, and ratios. Raises Differs."""
    import torch

    want = torch.load(folder / f"{exact}.pt")
    error = {name: harness.relative_error(torch.load(folder / f"{name}.pt"), want) for name in runs}
    limit = SAME if options.dtype == "float32" else 1.05 * error[PEER]
    agreed = {"dvgen": harness.agree(f"relative error to {exact}", error["dvgen"], limit)}
    agreed["dvgen, int8"] = f"relative error to {exact} {error['dvgen, int8']:.3g}, not lossless"
    what = f"Wan 1.3B, {options.layers} layers, {options.size}, {options.frames} frames, {options.dtype}"
    made = harness.Report(f"dit_step_{options.dtype}", f"One step of the DiT: {what}", PEER)
    for name in ("dvgen", "dvgen, int8"):
        goal = WANTED[name] if options.dtype == "bfloat16" else None
        seconds = [f"{harness.figures(runs[side], 'step'):.2f} s" for side in (PEER, name)]
        suffix = ", `--quantize int8`" if "int8" in name else ""
        ratio = harness.ratio(runs[PEER], runs[name], "step")
        made.claim(f"one step of the DiT, {what}{suffix}", *seconds, ratio, agreed[name], goal)
    for name, found in runs.items():
        spent, peak = harness.figures(found, "processor").middle, harness.figures(found, "peak").middle / 2**30
        keys = f"; keys of the text, once for all steps: {harness.figures(found, 'text').middle:.2f} s"
        made.notes.append(
            f"- {name}: {spent:.1f} s of processor time a step, at most {peak:.1f} GiB resident"
            f"{keys if 'dvgen' in name else ''}"
        )
    made.notes = ["\n".join(made.notes), " ".join((__doc__ or "").split("\n\n")[2].split())]
    if options.write:
        made.write()


if __name__ == "__main__":
    main()
