"""A prompt to an MP4 by diffusers, as its documentation has it; what `bench_whole.py` compares the command with.

    python benchmarks/whole_diffusers.py weights/default out.mp4 --size 640x384 --frames 49

Its ways to be fast on a CPU: `torch.inference_mode`, weights in the dtype that is computed in, loading with little
memory (its default), all cores. It rounds sizes down to its grid, so ask for sizes on it. The file is written with the
coding that dvgen's files have.
"""

import argparse
import time
from pathlib import Path

import imageio
import numpy as np
import torch
from diffusers import WanPipeline


def main() -> None:
    """Make one video."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--prompt", default="a red ball moving right on a white background")
    parser.add_argument("--size", default="640x384")
    parser.add_argument("--frames", type=int, default=49)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=4.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--fps", type=int, default=12)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--save", type=Path, help="also the frames, as .npy")
    parser.add_argument("--first-step", type=Path, help="also when the transformer was first called, in seconds")
    options = parser.parse_args()
    pipeline = WanPipeline.from_pretrained(options.model, torch_dtype=getattr(torch, options.dtype))
    pipeline.set_progress_bar_config(disable=True)
    if options.first_step:
        called: list[float] = []
        pipeline.transformer.register_forward_pre_hook(lambda *_: called.append(time.time()))
    width, height = map(int, options.size.split("x"))
    with torch.inference_mode():
        frames = pipeline(
            prompt=options.prompt,
            negative_prompt="",
            width=width,
            height=height,
            num_frames=options.frames,
            num_inference_steps=options.steps,
            guidance_scale=options.guidance,
            generator=torch.Generator("cpu").manual_seed(options.seed),
            output_type="np",
        ).frames[0]
    pixels = (frames * 255).round().astype(np.uint8)
    coding = ["-crf", "16", "-preset", "medium"]
    with imageio.get_writer(
        options.output, fps=options.fps, codec="libx264", quality=None, macro_block_size=1, ffmpeg_params=coding
    ) as writer:
        for frame in pixels:
            writer.append_data(frame)
    if options.save:
        np.save(options.save, pixels)
    if options.first_step:
        options.first_step.write_text(str(called[0]))


if __name__ == "__main__":
    main()
