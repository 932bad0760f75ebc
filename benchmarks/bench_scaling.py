"""What a pass of the transformer, decoding and encoding cost: against tokens, pixels, frames, batch and threads.

    python benchmarks/bench_scaling.py [--rounds 3] [--dtype float32] [--small] [--only limits,transformer] [--write]

Of the shipped model, whose weights are loaded and whose inputs are random. Also what this machine can do at best:
matrix products by dtype, attention, memory. Each part runs in a process of its own with the settings of the `dvgen`
command's; the points of a curve are timed in turn, round by round, after a run that is not counted. `--write` writes
results/scaling.md and .json, and draws docs/images/scaling_*.png with matplotlib; `scaling_plots.py` draws them again.
`--small` is to try it out.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import harness
from dvgen import process

Clip = tuple[int, int, int]  # latents (T, H, W)
DIT = [(1, 10, 16), (4, 10, 16), (7, 10, 16), (7, 16, 20), (13, 14, 24), (13, 24, 28), (13, 24, 40), (17, 24, 40)]
OF_THREADS = [(7, 10, 16), (7, 16, 20), (13, 14, 24)]
PACKED = {"256x144, 24 frames": ((7, 10, 16), (1, 2, 4, 8)), "64x64, 1 frame": ((1, 4, 4), (1, 2, 4, 8, 16, 32, 64))}
SIZES = [(8, 8), (10, 16), (14, 24), (18, 32), (24, 40)]
LENGTHS = [1, 2, 4, 7, 13, 25]
AT_SIZE, AT_LENGTH = (10, 16), 4
VAE_OF_THREADS = [(1, 10, 16), (4, 10, 16), (4, 14, 24)]
WORDS = 12  # of a prompt, as the text encoder's rows
Run = Callable[[], Any]


def in_turn(runs: dict[str, Run], rounds: int, *, enough: float = 0.2) -> dict[str, list[float]]:
    """Seconds of each run, in turn; each time so many calls as take `enough` seconds, of which the mean counts."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    calls: dict[str, int] = {}
    for number in range(rounds + 1):
        for name, run in runs.items():
            count = calls.get(name, 1)
            began = time.perf_counter()
            for _ in range(count):
                run()
            took = (time.perf_counter() - began) / count
            if number == 0:
                calls[name] = max(1, min(50, round(enough / took)))
            else:
                found[name].append(took)
    return found


def limits(options: argparse.Namespace) -> dict[str, Any]:
    """GFLOP/s of products by dtype and of attention, GB/s of memory."""
    import torch

    from dit_video.nn import int8

    def until_slow(make: Callable[[int], Run]) -> tuple[int, Run]:
        size = 256
        while True:
            run = make(size)
            run()
            began = time.perf_counter()
            run()
            if time.perf_counter() - began > 0.05 or size == 2048:
                return size, run
            size *= 2

    def product(dtype: "torch.dtype") -> Callable[[int], Run]:
        def make(size: int) -> Run:
            a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
            return lambda: torch.mm(a, b)

        return make

    def eighths(size: int) -> Run:
        levels = torch.randint(-127, 128, (size, size), dtype=torch.int8)
        made = int8.Int8(torch.randn(size, size))
        return lambda: int8._multiplied(levels, made.packed, made.scale, made.zeros)

    kinds = {str(d).removeprefix("torch."): product(d) for d in (torch.float32, torch.bfloat16, torch.float16)}
    kinds["int8"] = eighths
    found: dict[str, Any] = {"products": {}, "attention": {}, "memory": {}}
    for name, make in kinds.items():
        size, run = until_slow(make)
        seconds = in_turn({"": run}, options.rounds)[""]
        found["products"][name] = {"size": size, "gflops": [2 * size**3 / x / 1e9 for x in seconds]}
    for tokens in (256, 1024, 4096):
        q, k, v = (torch.randn(1, 4, tokens, 64) for _ in range(3))
        run = lambda q=q, k=k, v=v: torch.nn.functional.scaled_dot_product_attention(q, k, v)  # noqa: E731
        seconds = in_turn({"": run}, options.rounds)[""]
        found["attention"][str(tokens)] = [4 * tokens**2 * 256 / x / 1e9 for x in seconds]
    count = 2**20 if options.small else 2**26
    a, b, c = (torch.ones(count) for _ in range(3))
    for name, run, passes in (("copy", lambda: c.copy_(a), 2), ("triad", lambda: torch.add(a, b, alpha=3, out=c), 3)):
        found["memory"][name] = [passes * 4 * count / x / 1e9 for x in in_turn({"": run}, options.rounds)[""]]
    return found


def curve(runs: dict[str, Run], rounds: int, about: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Each run's seconds and work beside what is said about it."""
    from counted import counted

    work = {name: counted(run) for name, run in runs.items()}
    found = in_turn(runs, rounds)
    return [
        {**about[name], "seconds": found[name], "flops": dict(work[name].flops), "bytes": work[name].bytes}
        for name in runs
    ]


def where(run: Run) -> dict[str, Any]:
    """Where the time of a run goes."""
    from counted import counted, profiled

    profile = profiled(run)
    return {"seconds": profile.seconds, "most": profile.most, "flops": dict(counted(run).flops)}


def transformer(options: argparse.Namespace) -> dict[str, Any]:
    """Passes of one clip by tokens, of packs by clips, and where a pass's time goes."""
    import torch

    dit = model().load_dit(dtype=getattr(torch, options.dtype))
    dit.requires_grad_(False)
    keys = dit.encode_text([torch.randn(WORDS, dit.config.text_dim)])

    def of(clip: Clip, count: int = 1) -> Run:
        latents = [torch.randn(dit.config.in_dim, *clip) for _ in range(count)]
        times = [torch.full((clip[0],), 500.0)] * count
        return lambda: dit(latents, times, keys, [0] * count)

    def tokens(clip: Clip) -> int:
        return clip[0] * clip[1] * clip[2] // 4

    chosen = OF_THREADS if options.threads == 1 else DIT
    chosen = chosen[:3] if options.small else chosen
    runs = {str(clip): of(clip) for clip in chosen}
    about: dict[str, dict[str, float]] = {str(clip): {"tokens": tokens(clip)} for clip in chosen}
    found: dict[str, Any] = {"passes": curve(runs, options.rounds, about)}
    if options.threads == 1:
        return found
    found["packs"] = {}
    for name, (clip, counts) in PACKED.items():
        runs = {str(count): of(clip, count) for count in counts}
        packs = {str(count): {"clips": count, "tokens": count * tokens(clip)} for count in counts}
        found["packs"][name] = curve(runs, options.rounds, packs)
    found["profile"] = {f"{tokens(clip)} tokens": where(of(clip)) for clip in (chosen[2], chosen[-2])}
    return found


def autoencoder(options: argparse.Namespace) -> dict[str, Any]:
    """Decoding and encoding by pixels and by frames, and where their time goes."""
    import torch

    vae = model().load_vae(dtype=getattr(torch, options.dtype))
    vae.requires_grad_(False)
    t, h, w = vae.config.stride

    def decode(clip: Clip) -> Run:
        latents = torch.randn(1, vae.config.z_dim, *clip)

        def run() -> None:
            for _ in vae.decode_stream(latents):
                pass

        return run

    def encode(clip: Clip) -> Run:
        video = torch.rand(1, 3, 1 + (clip[0] - 1) * t, clip[1] * h, clip[2] * w).mul_(2).sub_(1)
        return lambda: vae.encode(video, chunk=1)

    def about(clip: Clip) -> dict[str, float]:
        return {"frames": 1 + (clip[0] - 1) * t, "width": clip[2] * w, "height": clip[1] * h}

    by_size = [(AT_LENGTH, *size) for size in SIZES]
    by_length = [(length, *AT_SIZE) for length in LENGTHS]
    curves = {"threads": VAE_OF_THREADS} if options.threads == 1 else {"pixels": by_size, "frames": by_length}
    found: dict[str, Any] = {}
    for name, make in (("decode", decode), ("encode", encode)):
        found[name] = {}
        for what, clips in curves.items():
            clips = clips[:3] if options.small else clips
            runs = {str(clip): make(clip) for clip in clips}
            found[name][what] = curve(runs, options.rounds, {str(clip): about(clip) for clip in clips})
        if options.threads != 1:
            found[name]["profile"] = where(make((AT_LENGTH, *(AT_SIZE if options.small else SIZES[2]))))
    return found


PARTS = {"limits": limits, "transformer": transformer, "autoencoder": autoencoder}


def model() -> Any:
    """The one that ships."""
    from dit_video.models.wan.pipeline import open_checkpoint

    return open_checkpoint(harness.ROOT / "weights" / "default")


def measure(options: argparse.Namespace) -> None:
    """One part, in this process, and with so many threads."""
    name, threads = options.side.split(",")
    options.threads = int(threads)
    process.prepare()
    import torch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    with torch.inference_mode():
        harness.say(**PARTS[name](options))


def refuse(dtype: str) -> None:
    """Refuse a dtype in which this processor does not multiply, so that its times would say nothing."""
    import torch

    from dit_video.nn.linear import multiplies

    if not multiplies(getattr(torch, dtype), "cpu"):
        raise SystemExit(f"--dtype {dtype}: this processor does not multiply in it; the nearest is float32.")


def main(arguments: Sequence[str] | None = None) -> None:
    """All parts, with two threads and with one."""
    parser = harness.parser(__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--small", action="store_true", help="the smallest three of each curve")
    parser.add_argument("--only", help="parts, with commas between")
    options = parser.parse_args(arguments)
    if options.side:
        measure(options)
        return
    refuse(options.dtype)
    if options.write and (options.small or options.only):
        parser.error("--write takes neither --small nor --only: the results are those of everything")
    found: dict[str, Any] = {"dtype": options.dtype}
    for name in options.only.split(",") if options.only else PARTS:
        for threads in (2, 1):
            side = harness.Side(f"{name}, {threads} threads", harness.this_script("--side", f"{name},{threads}"))
            began = time.monotonic()
            found.setdefault(name, {})[str(threads)] = dict(harness.run(side).said)
            print(f"{side.name}: {time.monotonic() - began:.0f} s", flush=True)
    if options.save:
        options.save.write_text(json.dumps(found))
    if options.only:
        print(json.dumps(found, indent=1))
        return
    from scaling_report import report

    made = report(found)
    print("\n\n".join(made.notes))
    if options.write:
        made.write(arguments)
        from scaling_plots import draw

        draw()


if __name__ == "__main__":
    main()
