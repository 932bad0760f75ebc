"""What a trained transformer gets right in one step from each noise level: where its errors come from.

    python benchmarks/denoise_by_level.py runs/dit-small/model --clips 20

True clips of the training split are noised to each level and denoised in one step: with their caption, without one and
with the caption of another clip. Prints the mean squared error of the clean latents (over all, and over the cells of
the object), and what the detector reads from the prediction that had the caption. Where the caption makes no difference
and the attribute is not read either, the level was not trained enough, or the attribute is decided elsewhere.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from dit_video.evaluate import fixed_questions
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.nn.pixels import pad_frames, to_frames, to_video
from dit_video.scenes.detector import detect, score
from dit_video.scenes.render import render
from dit_video.shapes import VideoShape
from dit_video.train.data import object_mask

LEVELS = (0.3, 0.6, 0.8, 0.9, 0.95, 0.98, 0.999)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--clips", type=int, default=20)
    options = parser.parse_args()

    checkpoint = WanCheckpoint.open(options.model)
    dit, vae, text = (
        load(dtype=torch.float32) for load in (checkpoint.load_dit, checkpoint.load_vae, checkpoint.load_text)
    )
    shape = VideoShape(num_frames=24, height=144, width=256)
    padded = checkpoint.grid.padded(shape)
    questions = fixed_questions(options.clips, shape, split="training")
    videos = (to_video(pad_frames(render(question.scene), padded)[None]) for question in questions)
    count = len(questions)
    captions = {
        "caption": range(1, count + 1),
        "none": [0] * count,
        "another's": [1 + (i + 1) % count for i in range(count)],
    }

    with torch.autocast("cpu", torch.bfloat16):
        clean = [vae.encode(video)[0].float() for video in videos]
        objects = [object_mask(question.scene, padded, checkpoint.grid.stride) for question in questions]
        keys = dit.encode_text(text.encode(["", *(question.prompt for question in questions)]))
        generator = torch.Generator().manual_seed(1)
        noise = [torch.randn(x.shape, generator=generator) for x in clean]
        for level in LEVELS:
            noisy = [torch.lerp(x, eps, level) for x, eps in zip(clean, noise, strict=True)]
            times = [torch.full((x.shape[1],), 1000 * level) for x in clean]
            line, told = f"{level:5.3f} ", []
            for name, index in captions.items():
                velocity = dit(noisy, times, keys, list(index))
                found = [x - level * v.float() for x, v in zip(noisy, velocity, strict=True)]
                errors = [(a - b).square() for a, b in zip(found, clean, strict=True)]
                inside = np.mean([float(error[:, cells].mean()) for error, cells in zip(errors, objects, strict=True)])
                line += f"  {name} {np.mean([float(error.mean()) for error in errors]):.3f} object {inside:.3f}"
                told = told or found
            right: dict[str, float] = {}
            for question, latents in zip(questions, told, strict=True):
                frames = to_frames(vae.decode(latents[None])[0])[: shape.num_frames, : shape.height, : shape.width]
                for field, value in score(detect(frames), question.scene).items():
                    right[field] = right.get(field, 0) + value / count
            print(line, " ".join(f"{field} {share:.2f}" for field, share in right.items()), sep="  ", flush=True)


if __name__ == "__main__":
    main()
