"""One step of the DiT: Wan 2.1 T2V 1.3B's geometry at 416x240, 17 frames, 512 text rows, against diffusers.

    python benchmarks/bench_dit_step.py [--layers 30] [--size 416x240] [--frames 17] [--rounds 2] [--weights FOLDER]
    python benchmarks/bench_dit_step.py --shipped [--size 640x360] [--frames 48]

One forward without guidance, in a process for each side with all cores; the same random weights in bfloat16 out of one
file, or with --shipped those that come with dvgen; the same latents and text. diffusers is measured in bfloat16 and in
float32 (`from_pretrained(torch_dtype=...)` and `torch.inference_mode`, as its documentation loads Wan), dvgen in both
and with products in 8 bits. How far each is from float32 is the relative root mean square of its velocity to that of
diffusers in float32. --sides names those to run, as a bfloat16 forward takes minutes on processors without such
instructions. `--profile SIDE` shows where the time of one goes.
"""

import argparse
import math
import re
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import harness
from dvgen import process

SHIPPED = Path(__file__).parent.parent / "weights/default"
TEXT = 512
SIDES = {  # whose, dtype of the weights, scheme of 8 bits
    "diffusers bfloat16": ("diffusers", "bfloat16", None),
    "diffusers float32": ("diffusers", "float32", None),
    "dvgen bfloat16": ("dvgen", "bfloat16", None),
    "dvgen float32": ("dvgen", "float32", None),
    "dvgen int8": ("dvgen", "bfloat16", "int8"),
    "dvgen float32, int8": ("dvgen", "float32", "int8"),
}


def make_weights(folder: Path, layers: int) -> None:
    """A transformer in diffusers' folder layout, of random numbers of a size at which every part matters."""
    import torch
    from safetensors.torch import save_file

    from dit_video.checkpoints.files import write_json
    from dit_video.models.wan.dit import WanDiT
    from dit_video.models.wan.layouts import DIFFUSERS, config_to_diffusers
    from dit_video.models.wan.variants import VARIANTS

    config = replace(VARIANTS["T2V-1.3B"].dit, num_layers=layers)
    torch.manual_seed(0)
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in WanDiT(config).named_parameters()}
    tensors = {}
    for name, shape in shapes.items():
        made = torch.empty(shape, dtype=torch.bfloat16)
        if re.search(r"norm.*weight$", name):
            made.uniform_(0.5, 1.5)
        else:
            small = len(shape) < 2 or "modulation" in name
            made.normal_(std=0.1 if small else shape[1:].numel() ** -0.5)
        tensors[DIFFUSERS.to_theirs(name)] = made
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", {"_class_name": "WanTransformer3DModel", **config_to_diffusers(config)})
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", {"format": "pt"})


def inputs(options: argparse.Namespace, channels: int, width: int, stride: tuple[int, int, int]):
    """Latents (C, T, H, W) and text (L, width): of the padded clip."""
    import torch

    from dit_video.shapes import parse_size

    generator = torch.Generator().manual_seed(1)
    across, down = parse_size(options.size)
    frames = 1 + math.ceil((options.frames - 1) / stride[0])
    sides = (2 * math.ceil(side / (2 * step)) for side, step in zip((down, across), stride[1:], strict=True))
    latent = torch.randn((channels, frames, *sides), generator=generator)
    return latent, torch.randn((TEXT, width), generator=generator)


def measure(options: argparse.Namespace) -> None:
    """One side, in this process: says the seconds of a forward after a shorter first one, and saves the velocity."""
    whose, dtype_name, scheme = SIDES[options.side or options.profile]
    if whose == "dvgen":
        process.prepare()
    import torch

    from dit_video.checkpoints.files import read_json
    from dit_video.checkpoints.formats import describe
    from dit_video.checkpoints.load import load_into
    from dit_video.models.wan.dit import WanDiT
    from dit_video.models.wan.layouts import DIFFUSERS, config_from_diffusers
    from dit_video.nn.linear import quantised

    folder = SHIPPED / "transformer" if options.shipped else options.weights
    config = config_from_diffusers(read_json(folder / "config.json"))
    stride = (4, 16, 16) if options.shipped else (4, 8, 8)
    latent, text = inputs(options, config.in_dim, config.text_dim, stride)
    dtype, timestep = getattr(torch, dtype_name), 637.0
    began = time.perf_counter()
    if whose == "diffusers":
        from diffusers import WanTransformer3DModel

        theirs = WanTransformer3DModel.from_pretrained(folder, torch_dtype=dtype).eval()
        clip, rows, times = latent[None].to(dtype), text[None].to(dtype), torch.tensor([timestep])

        def forward(clip: torch.Tensor) -> torch.Tensor:
            return theirs(clip, times, rows, return_dict=False)[0][0]

        short = clip[:, :, :1, :8, :8]
        full = clip
    else:

        def build() -> WanDiT:
            made = WanDiT(config)
            quantised(made.blocks, scheme)
            return made

        tensors = describe(next(folder.glob("*.safetensors")))
        kept = ("time_embedding.", "time_projection.", "head.", "modulation", "norm")  # float32, as in a run
        ours = load_into(
            build, tensors, DIFFUSERS, dtype=dtype, float32_names=lambda name: any(part in name for part in kept)
        )
        with torch.inference_mode():
            keys = ours.encode_text([text])  # once for all steps

        def forward(clip: torch.Tensor) -> torch.Tensor:
            return ours([clip], [torch.full((clip.shape[1],), timestep)], keys, [0])[0]

        short, full = latent[:, :1, :8, :8], latent
    with torch.inference_mode():
        forward(short)
        load = time.perf_counter() - began
        if options.profile:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as found:
                forward(full)
            print(found.key_averages(group_by_input_shape=True).table(sort_by="self_cpu_time_total", row_limit=40))
            return
        passes = []
        for _ in range(options.passes):
            start = time.perf_counter()
            velocity = forward(full)
            passes.append(time.perf_counter() - start)
    if options.save:
        torch.save(velocity.float(), options.save / f"{options.side}.pt")
    harness.say(step=min(passes), load=load)


def main() -> None:
    """Measure, compare, report."""
    parser = harness.parser(__doc__, rounds=2)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--size")
    parser.add_argument("--frames", type=int)
    parser.add_argument("--weights", type=Path, help="where random weights are, or are put; else a temporary folder")
    parser.add_argument("--shipped", action="store_true", help="the model that comes with dvgen, at 640x360, 48 frames")
    parser.add_argument("--sides", default=",".join(SIDES), help="names, separated by commas")
    parser.add_argument("--passes", type=int, default=1, help="of which the fastest counts, in a process")
    parser.add_argument("--profile", choices=list(SIDES))
    options = parser.parse_args()
    options.size = options.size or ("640x360" if options.shipped else "416x240")
    options.frames = options.frames or (48 if options.shipped else 17)
    if options.side or options.profile:
        measure(options)
        return
    with tempfile.TemporaryDirectory() as temporary:
        arguments: list[object] = ["--save", temporary]
        if not options.shipped:
            weights = options.weights or Path(temporary) / "weights"
            if not (weights / "config.json").is_file():
                make_weights(weights, options.layers)
            arguments += ["--weights", weights]
        names = [name for name in SIDES if name in options.sides.split(",")]
        sides = [harness.Side(name, harness.this_script(*arguments, "--side", name)) for name in names]
        runs = harness.in_turn(sides, rounds=options.rounds, warmup=False)
        report(options, runs, Path(temporary))


def report(options: argparse.Namespace, runs: dict[str, list[harness.Run]], folder: Path) -> None:
    """Errors to float32, ratios to both of diffusers' dtypes."""
    import torch

    wanted = {"dvgen bfloat16": 1.25, "dvgen int8": 1.8}
    what = "shipped model" if options.shipped else f"Wan 1.3B, {options.layers} layers"
    name = "dit_step_shipped" if options.shipped else "dit_step"
    made = harness.Report(name, f"One step of the DiT: {what}, {options.size}, {options.frames} frames", "diffusers")
    error: dict[str, float] = {}
    if "diffusers float32" in runs:
        exact = torch.load(folder / "diffusers float32.pt")
        error = {name: harness.relative_error(torch.load(folder / f"{name}.pt"), exact) for name in runs}
    for theirs in (name for name in runs if name.startswith("diffusers")):
        for ours in (name for name in runs if name.startswith("dvgen")):
            agreement = f"error {error[ours]:.2g}, theirs {error[theirs]:.2g}" if error else ""
            goal = wanted.get(ours) if theirs == "diffusers bfloat16" and not options.shipped else None
            seconds = [f"{harness.figures(runs[side], 'step'):.2f} s" for side in (theirs, ours)]
            ratio = harness.ratio(runs[theirs], runs[ours], "step")
            made.claim(f"{ours} against {theirs}", seconds[0], seconds[1], ratio, agreement, goal)
    for each, found in runs.items():
        peak = harness.figures(found, "peak").middle / 2**30
        load = harness.figures(found, "load").middle
        said = f"error to float32 {error[each]:.3g}" if error else "error not measured"
        made.notes.append(f"- {each}: {said}; loaded in {load:.1f} s; at most {peak:.1f} GiB in memory")
    made.notes = ["\n".join(made.notes), (__doc__ or "").split("\n\n")[2].replace("\n", " ")]
    print("\n\n".join(made.notes), file=sys.stderr)
    if "diffusers bfloat16" in error and "dvgen bfloat16" in error:
        gate = 1.05 * error["diffusers bfloat16"]
        print(harness.agree("bfloat16's error to float32", error["dvgen bfloat16"], gate))
    if options.write:
        made.write()


if __name__ == "__main__":
    main()
