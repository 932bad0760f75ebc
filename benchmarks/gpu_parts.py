"""What `gpu_all.py` measures, a part each; each is run in a process of its own and says every figure at once.

Wan 1.3B and its autoencoder with random weights, made on the device. Sides take turns in one process, round by round,
each after a run that is not counted; times are those of the device, waited for.
"""

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from gpu_bench import (
    BF16,
    Bench,
    Run,
    agreed,
    decoders,
    decoding,
    flat,
    inputs,
    passes,
    their_pass,
    transformer,
    transformers,
)
from harness import say
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit_video.checkpoints.stream import copied
from dit_video.checkpoints.transfer import Transfer
from dit_video.errors import UsageError
from dit_video.models.wan.vae import WanVAE
from dit_video.nn import causal_conv, varlen
from dit_video.nn.attention import attention
from dit_video.nn.fp8 import check_fp8
from dit_video.nn.graphs import Repeats
from dit_video.nn.linear import Linear, quantised
from dit_video.nn.streaming import StreamedList

if TYPE_CHECKING:
    from diffusers import WanTransformer3DModel


@torch.inference_mode()
def dit(bench: Bench) -> None:
    """A pass of the transformer, against diffusers, both as they are and both with compiled blocks."""
    ours, theirs = transformers(bench)
    runs = {"diffusers": their_pass(bench, theirs), "dvgen": passes(bench, ours)}
    agreement = agreed(runs["dvgen"](), runs["diffusers"]())
    found = bench.seconds(runs)
    bench.compared("a pass of the transformer", "diffusers", "dvgen", found, agreement, 1.5)
    for name, beside in (("diffusers", ours), ("dvgen", theirs)):
        with bench.peak(f"a pass of {name}", beside):
            runs[name]()
    if bench.cuda:
        with theirs_on(theirs, "_native_cudnn"):
            say(kind="seconds", what="diffusers' pass with cuDNN's attention", seconds=bench.seconds(runs)["diffusers"])
    ours.compile_blocks(backend=bench.compiler)
    theirs.compile_repeated_blocks(fullgraph=True, backend=bench.compiler)
    started = time.perf_counter()
    agreement = agreed(runs["dvgen"](), runs["diffusers"]())
    say(kind="seconds", what="compiling both and a pass of each", seconds=[time.perf_counter() - started])
    found = bench.seconds(runs)
    bench.compared("a pass with compiled blocks", "diffusers", "dvgen", found, agreement, 1.2)


@contextmanager
def theirs_on(theirs: "WanTransformer3DModel", backend: str) -> Iterator[None]:
    """diffusers' transformer with another of its attention backends."""
    theirs.set_attention_backend(backend)
    try:
        yield
    finally:
        theirs.set_attention_backend("native")


@torch.inference_mode()
def vae(bench: Bench) -> None:
    """Decoding, against diffusers: what it takes of time and memory."""
    ours, theirs, agreement = decoders(bench)
    runs = decoding(bench, ours, theirs)
    for name, beside in (("diffusers", ours), ("dvgen", theirs)):
        with bench.peak(f"decoding by {name}", beside):
            runs[name]()
    bench.compared("decoding", "diffusers", "dvgen", bench.seconds(runs, 2), agreement, 1.5)


@torch.inference_mode()
def compiled_vae(bench: Bench) -> None:
    """Decoding with both decoders compiled; dvgen has no option for it, so this says if it would be worth one."""
    if not bench.cuda:  # what is tried out is a GPU's road, and oneDNN's convolution is none that compilers know
        causal_conv._onednn_takes = lambda x: False
    ours, theirs, agreement = decoders(bench)
    runs = decoding(bench, ours, theirs)
    want = {name: run() for name, run in runs.items()}
    for name, decoder in (("diffusers", theirs.decoder), ("dvgen", ours.decoder)):
        torch._dynamo.reset()
        started = time.perf_counter()
        if name == "dvgen":
            ours.decoder.enlarge = torch.compile(ours.decoder.enlarge, backend=bench.compiler)
        else:
            decoder.compile(backend=bench.compiler)
        agreed(runs[name](), want[name])
        bench.wait()
        say(kind="seconds", what=f"compiling the decoder of {name} and a clip", seconds=[time.perf_counter() - started])
    found = bench.seconds(runs, 2)
    bench.compared("decoding, both compiled", "diffusers", "dvgen", found, agreement, 1.2)


@torch.inference_mode()
def packs(bench: Bench) -> None:
    """Attention over clips of different lengths: one call, and a call for each; and a pass over the pack."""
    config = bench.sizes.dit
    lengths = sorted(t * (h // 2) * (w // 2) for t, h, w in bench.sizes.pack)
    generator = torch.Generator(bench.device).manual_seed(0)
    size = (sum(lengths), config.num_heads, config.head_dim)
    q, k, v = (torch.randn(size, device=bench.device, generator=generator).to(BF16) for _ in range(3))
    say(kind="note", what=f"packs: one call is {varlen.found(bench.device.type)[0]}; lengths {lengths}")
    runs: dict[str, Run] = {
        name: lambda backend=backend: attention(q, k, v, lengths=lengths, backend=backend)
        for name, backend in (("a call for each clip", "sdpa"), ("one call", "varlen"))
    }
    agreement = agreed(runs["one call"](), runs["a call for each clip"](), 1e-2)
    found = bench.seconds(runs, 10)
    bench.compared("attention of a pack", "a call for each clip", "one call", found, agreement)
    ours = transformer(bench)
    text = inputs(bench)[1]
    clips = [inputs(bench, clip)[0] for clip in bench.sizes.pack]
    times = [torch.full((clip.shape[1],), 500.0) for clip in clips]
    keys = ours.encode_text([text])
    whole: dict[str, Run] = {
        "clips alone": lambda: flat(ours([x], [t], keys, [0])[0] for x, t in zip(clips, times, strict=True)),
        "packed": lambda: flat(ours(clips, times, keys, [0] * len(clips))),
    }
    agreement = agreed(whole["packed"](), whole["clips alone"]())
    found = bench.seconds(whole)
    bench.compared(f"{len(clips)} small clips", "clips alone", "packed", found, agreement)


@torch.inference_mode()
def fp8(bench: Bench) -> None:
    """A pass with linear layers in 8-bit floats, against bfloat16."""
    if bench.cuda:
        check_fp8(bench.device)
    plain = transformer(bench)
    rounded = copy.deepcopy(plain)
    quantised(rounded.blocks, "fp8")
    for layer in rounded.modules():
        if isinstance(layer, Linear):
            layer.settle()
    runs = {"bfloat16": passes(bench, plain), "fp8": passes(bench, rounded)}
    agreement = agreed(runs["fp8"](), runs["bfloat16"](), 0.15)
    bench.compared("linear layers in fp8", "bfloat16", "fp8", bench.seconds(runs), agreement)
    for model in (plain, rounded):
        model.compile_blocks(backend=bench.compiler)
    bench.compared("the same with compiled blocks", "bfloat16", "fp8", bench.seconds(runs), agreement)
    run = runs["fp8"]
    del runs, plain, model
    with bench.peak("a pass in fp8 with compiled blocks"):
        run()


@torch.inference_mode()
def compiled_sizes(bench: Bench) -> None:
    """Compiled blocks meet other sizes and packs: what each costs the first time, and how often is compiled."""
    from torch._dynamo.utils import counters

    ours = transformer(bench)
    text = inputs(bench)[1]
    keys = ours.encode_text([text])
    every = [[bench.sizes.small], [bench.sizes.clip], *([clip] for clip in bench.sizes.pack), [*bench.sizes.pack]]

    def run(clips: list[tuple[int, int, int]]) -> Tensor:
        latents = [inputs(bench, clip)[0] for clip in clips]
        times = [torch.full((clip[0],), 500.0) for clip in clips]
        return flat(ours(latents, times, keys, [0] * len(clips)))

    want = [run(clips) for clips in every]
    counters.clear()
    ours.compile_blocks(backend=bench.compiler)
    for number, (clips, expected) in enumerate(zip(every, want, strict=True)):
        before = counters["stats"]["unique_graphs"]
        bench.wait()
        started = time.perf_counter()
        got = run(clips)
        bench.wait()
        seconds = time.perf_counter() - started
        told = f"{len(clips)} clips" if len(clips) > 1 else "x".join(map(str, clips[0]))
        made = counters["stats"]["unique_graphs"] - before
        what = f"first pass over {told} latents: {agreed(got, expected)}; compiled {made} times"
        say(kind="seconds", what=what, seconds=[seconds])
        assert not number or not made, f"compiled again for {told}"


@torch.inference_mode()
def graphs(bench: Bench) -> None:
    """A pass over a small clip, whose kernels are started one by one, or replayed."""
    if not bench.cuda:
        raise UsageError(f"there are no CUDA graphs on {bench.device.type}")
    plain = transformer(bench)
    recorded = copy.deepcopy(plain)
    recorded.graphs = Repeats()
    each = {"as it comes": plain, "replayed": recorded}
    runs = {name: passes(bench, model, bench.sizes.small) for name, model in each.items()}
    for _ in range(3):
        replay = runs["replayed"]()
    assert recorded.graphs.recorded == 1 and torch.equal(replay, runs["as it comes"]()), "a replay gave other numbers"
    bench.compared("a pass over a small clip", "as it comes", "replayed", bench.seconds(runs, 10), "equal")


@torch.inference_mode()
def stream(bench: Bench) -> None:
    """A pass with all blocks in the host's memory, each fetched while the one before computes."""
    resident = transformer(bench)
    streamed = copy.deepcopy(resident)
    weights = [{name: x.detach().cpu().clone() for name, x in block.named_parameters()} for block in streamed.blocks]
    move = Transfer(bench.device)

    def fill(index: int, slot: dict[str, Tensor], names: Any) -> dict[str, Tensor]:
        wanted = {n: x for n, x in weights[index].items() if not names or n.startswith(tuple(names))}
        return {name: copied(move(x), slot.get(name)) for name, x in wanted.items()}

    started = time.perf_counter()
    for index in range(len(weights)):
        fill(index, {}, ())
    bench.wait()
    say(kind="seconds", what="fetching all blocks, and nothing else", seconds=[time.perf_counter() - started])
    streamed.blocks = StreamedList(streamed.blocks.to("meta"), fill)
    runs = {"resident": passes(bench, resident), "streamed": passes(bench, streamed)}
    agreement = agreed(runs["streamed"](), runs["resident"](), 1e-3)
    bench.compared("a pass with streamed blocks", "resident", "streamed", bench.seconds(runs), agreement)
    run = runs["streamed"]
    del runs, resident
    with bench.peak("a pass with all blocks streamed"):
        run()


def frames(bench: Bench) -> None:
    """Decoding into a file, frames copied while the next are decoded, or waited for."""
    import tempfile
    from pathlib import Path

    from dit_video import decode
    from dit_video.nn.pixels import one_ahead
    from dit_video.shapes import VideoShape
    from dit_video.video.io import write_video

    torch.manual_seed(0)
    with torch.device(bench.device):
        ours = WanVAE(bench.sizes.vae).to(bench.decoder_dtype()).eval().requires_grad_(False)
    (t, h, w), (count, rows, columns) = bench.sizes.vae.stride, bench.sizes.decoded
    shape = VideoShape(num_frames=1 + (count - 1) * t, height=rows * h, width=columns * w)
    latents = torch.randn(bench.sizes.vae.z_dim, *bench.sizes.decoded).to(bench.device)
    made: dict[str, bytes] = {}

    def run(name: str, ahead: bool) -> None:
        decode.one_ahead = lambda parts, *, ahead: one_ahead(parts, ahead=go)
        go = ahead
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "a.mp4"
            write_video(file, decode.decode_frames(ours, latents, shape), fps=16)
            made[name] = file.read_bytes()

    runs: dict[str, Run] = {"waited for": lambda: run("waited for", False), "ahead": lambda: run("ahead", True)}
    found = bench.seconds(runs, 2)
    assert made["ahead"] == made["waited for"], "the files differ"
    bench.compared("decoding into a file", "waited for", "ahead", found, "equal files")


@torch.inference_mode()
def kernels(bench: Bench) -> None:
    """Self-attention of the clip by each of torch's kernels, of which the fastest would be the one to choose."""
    config, (t, h, w) = bench.sizes.dit, bench.sizes.clip
    tokens = t * (h // 2) * (w // 2)
    generator = torch.Generator(bench.device).manual_seed(0)
    shape = (1, config.num_heads, tokens, config.head_dim)
    q, k, v = (torch.randn(shape, device=bench.device, generator=generator).to(BF16) for _ in range(3))
    for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):

        def run(backend: SDPBackend = backend) -> None:
            with sdpa_kernel(backend):
                torch.nn.functional.scaled_dot_product_attention(q, k, v)

        try:
            say(kind="seconds", what=f"self-attention, {backend.name}", seconds=bench.seconds({"run": run}, 5)["run"])
        except RuntimeError as error:
            say(kind="note", what=f"self-attention, {backend.name}: {str(error).splitlines()[0]}")


PARTS: dict[str, tuple[Callable[[Bench], None], int]] = {
    "dit": (dit, 130),
    "vae": (vae, 45),
    "packs": (packs, 30),
    "fp8": (fp8, 60),
    "graphs": (graphs, 25),
    "sizes": (compiled_sizes, 35),
    "stream": (stream, 30),
    "frames": (frames, 35),
    "kernels": (kernels, 15),
    "compiled_vae": (compiled_vae, 80),
}
"""What is measured, the most important first, and for how many seconds at most."""
