"""Training speed of the DiT: forward and backward of packs of small clips under bfloat16 autocast.

    OMP_NUM_THREADS=2 python benchmarks/bench_dit.py [--packs 8] [--tokens 2048] [--attention sdpa] [--compile]
    [--profile]

Prints tokens/s of wall time and of CPU time (on a shared machine the second is the steadier), and with --profile
where the time goes; --compile fuses the elementwise functions first; --attention chooses a backend of
nn/attention.py.
"""

import argparse
import random
import time

import torch
from torch import Tensor

from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.dit import WanDiT
from dit_video.nn import attention, fusion

CONFIG = DiTConfig(dim=256, ffn_dim=1024, num_heads=4, num_layers=10, in_dim=32, out_dim=32, text_dim=128)


def random_pack(rng: random.Random, budget: int) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Latents, timesteps and text rows of clips of 12 to 300 tokens that fill `budget`; some first frames are known."""
    latents, timesteps, texts = [], [], []
    while budget >= 12:
        t, h, w = rng.choice([1, 2, 3, 4, 5, 7]), rng.randint(3, 8), rng.randint(3, 8)
        if not 12 <= t * h * w <= 300:
            continue
        if t * h * w > budget:
            t, h, w = 1, 3, 4
        budget -= t * h * w
        latents.append(torch.randn(CONFIG.in_dim, t, 2 * h, 2 * w))
        times = torch.full((t,), 1000 * rng.random())
        if t > 1 and rng.random() < 0.3:
            times[0] = 0.0
        timesteps.append(times)
        texts.append(torch.randn(rng.randint(8, 20), CONFIG.text_dim))
    return latents, timesteps, texts


def step(model: WanDiT, pack: tuple[list[Tensor], list[Tensor], list[Tensor]]) -> None:
    """One forward and backward, without the optimizer."""
    latents, timesteps, texts = pack
    with torch.autocast("cpu", torch.bfloat16):
        out = model(latents, timesteps, model.encode_text(texts), range(len(texts)))
    torch.stack([velocity.square().mean() for velocity in out]).mean().backward()
    model.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--packs", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--attention", choices=["tiled", "sdpa"], default="tiled")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--profile", action="store_true")
    args = parser.parse_args()
    fusion.enable(args.compile)
    if args.attention == "sdpa":
        attention.TILED_MAX_LENGTH = 0  # no clip is short enough for the other one

    torch.manual_seed(0)
    model = WanDiT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():  # nothing is zero, so nothing is cheaper than in training
            parameter.normal_(std=0.05)
    rng = random.Random(0)
    packs = [random_pack(rng, args.tokens) for _ in range(args.packs)]
    tokens = sum(latent[0].numel() // 4 for latents, _, _ in packs for latent in latents)
    clips = sum(len(latents) for latents, _, _ in packs)
    step(model, packs[0])

    walls, cpus = [], []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        for pack in packs:
            step(model, pack)
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    print(
        f"{tokens} tokens in {clips} clips, {torch.get_num_threads()} threads: "
        f"{tokens / min(walls):.0f} tokens/s of wall time, {tokens / min(cpus):.0f} tokens per CPU second"
    )
    if args.profile:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            for pack in packs:
                step(model, pack)
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=40, max_name_column_width=60))


if __name__ == "__main__":
    main()
