"""Decode time of dit_video's WanVAE and of diffusers' AutoencoderKLWan, same random weights, same latents, one run.

    python benchmarks/bench_vae_decode.py [--size 640x384] [--frames 49] [--threads 2] [--form unshuffle4|unshuffle2] [--dtype float32]

Prints the seconds of each, the ratio, and the largest difference between the two results. The reference takes minutes at the default size.
"""

import argparse
import os
import time
from collections.abc import Callable

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin are far slower on a shared machine

import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from dit_video.models.wan.vae import VAEConfig, WanVAE
from dit_video.models.wan.vae_layouts import diffusers_config, diffusers_layout
from dit_video.shapes import parse_size

FORMS = {
    "unshuffle4": VAEConfig(
        dim=32, decoder_dim=32, z_dim=32, dim_mult=(1, 2, 2), num_res_blocks=1, temporal_downsample=(True, True),
        residual=True, patch=4, latents_mean=(0.0,) * 32, latents_std=(1.0,) * 32,
    ),
    "unshuffle2": VAEConfig(
        dim=24, decoder_dim=24, z_dim=48, dim_mult=(1, 2, 4, 4), num_res_blocks=1, residual=True, patch=2,
        latents_mean=(0.0,) * 48, latents_std=(1.0,) * 48,
    ),
}  # fmt: skip


def timed(run: Callable[[], Tensor], repeats: int) -> tuple[float, Tensor]:
    """The fastest of `repeats` runs in seconds, and the last result."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = run()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="640x384")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--form", choices=FORMS, default="unshuffle4")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config, dtype = FORMS[options.form], getattr(torch, options.dtype)
    theirs = AutoencoderKLWan.from_config(diffusers_config(config)).to(dtype).eval()
    ours = WanVAE(config).to(dtype).eval()
    layout = diffusers_layout(config)
    ours.load_state_dict({layout.to_ours(name): value for name, value in theirs.state_dict().items()})

    width, height = parse_size(options.size)
    t, h, w = config.stride
    latents = torch.randn(1, config.z_dim, 1 + (options.frames - 1) // t, height // h, width // w, dtype=dtype)
    print(
        f"{options.form}, {width // w * w}x{height // h * h}x{1 + (latents.shape[2] - 1) * t}, {options.dtype}, {options.threads} threads"
    )

    whole, ours_out = timed(lambda: ours.decode(latents).clamp(-1, 1), 3)
    print(f"dit_video, whole clip     {whole:8.2f} s", flush=True)
    stream, _ = timed(lambda: torch.cat(list(ours.decode_stream(latents)), dim=2), 3)
    print(f"dit_video, frame by frame {stream:8.2f} s", flush=True)
    reference, their_out = timed(lambda: theirs.decode(latents).sample, 1)
    print(f"diffusers                 {reference:8.2f} s")
    print(
        f"ratio: {reference / stream:.1f} streamed, {reference / whole:.1f} whole; largest difference {(ours_out - their_out).abs().max():.1e}"
    )


if __name__ == "__main__":
    main()
