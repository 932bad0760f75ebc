"""Two shots, joined by new frames and closed into a loop: python shots.py [FILE.mp4 [MODEL]]"""

import sys

import numpy as np

from dit_video import Video, load_model

FILE, MODEL = [*sys.argv[1:], *["shots.mp4", "default"][len(sys.argv[1:]) :]]
SHOTS = ["a red ball moving right on a white background", "a blue ball growing on a white background"]


def show(stage: str, done: int, total: int) -> None:
    print(f"\r{stage} {done}/{total}", end=" " * 20, file=sys.stderr)


def watch(step: int, total: int, latents) -> None:
    if not np.isfinite(latents.std().item()):
        raise SystemExit("this seed has gone astray")


model = load_model(MODEL, progress=show)
film: Video | None = None
for seed, prompt in enumerate(SHOTS, start=7):
    shot = model.generate(prompt, size=(160, 96), frames=17, steps=8, seed=seed, on_step=watch)
    joined = shot if film is None else model.connect(film.frames, shot.frames, frames=8, steps=8, fps=shot.fps)
    film = joined
looped = model.extend(film.frames, loop=8, steps=8, fps=film.fps)
written = looped.save(FILE, overwrite=True)
print(f"\n{written.path}: {written.frames} frames, {written.width}x{written.height}")
