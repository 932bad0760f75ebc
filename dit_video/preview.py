"""What a clip looks like while it is denoised: a linear map from latents to small frames, in place of the autoencoder.

Latents that a decoder reads well are nearly a linear function of coarse pixels, so least squares on a few drawn clips
finds a map that is thousands of times cheaper than the decoder: one matrix for the first latent frame, which stands for
one frame, and one for all others, which stand for several (the "latent2rgb" previews of other programs have one matrix,
and one pixel for each latent).
"""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dit_video.checkpoints.files import load_tensors, save_tensors
from dit_video.errors import CheckpointError, DvgenError
from dit_video.nn.pixels import to_frames, to_video
from dit_video.shapes import VideoShape
from dit_video.video.output import PREVIEW
from dit_video.video.quick_gif import write_quick_gif

if TYPE_CHECKING:
    from dit_video.models.wan.vae import WanVAE

POOL = 4  # pixels on the side of a preview's pixel
LEAST_WIDTH = 240  # pixels of a preview, about: smaller ones are enlarged
CLIPS, SIDE, GROUPS = 10, 128, 2  # clips that the map is fitted to: their number, sides, latent frames after the first
RIDGE = 1e-3  # of the mean square of a latent: keeps the map small where latents hardly vary
SHARE = 0.02  # of the time of denoising that previews may take
FIRST = 0.1  # seconds that the first one is taken to need


@dataclass(frozen=True, kw_only=True)
class PreviewMap:
    """Latents to frames, linearly.

    first: (C + 1, 3 p p) to the frame of the first latent frame, p pixels on a side of each latent; the last row is for
    a constant. others: (C + 1, t 3 p p) to the t frames of each other one.
    """

    first: Tensor
    others: Tensor

    def __call__(self, latents: Tensor) -> np.ndarray:
        """Frames (T, h p, w p, 3) uint8 of normalised latents (C, 1 + k, h, w) of any device."""
        x = latents.float().cpu().movedim(0, -1)  # T h w C
        x = F.pad(x, (0, 1), value=1.0)
        parts = [_frames(x[:1] @ self.first, 1)]
        if len(x) > 1:
            parts.append(_frames(x[1:] @ self.others, self.others.shape[1] // self.first.shape[1]))
        return to_frames(torch.cat(parts, dim=1))


def _frames(pixels: Tensor, count: int) -> Tensor:
    """(3, T count, h p, w p) in [-1, 1] of rows (T, h, w, count 3 p p) of numbers."""
    groups, height, width, size = pixels.shape
    side = round((size // (3 * count)) ** 0.5)
    x = pixels.view(groups, height, width, count, 3, side, side)
    return x.permute(4, 0, 3, 1, 5, 2, 6).reshape(3, groups * count, height * side, width * side)


def _rows(video: Tensor, count: int, side: int) -> Tensor:
    """The reverse of `_frames`."""
    _, frames, height, width = video.shape
    x = video.view(3, frames // count, count, height // side, side, width // side, side)
    return x.permute(1, 3, 5, 2, 0, 4, 6).reshape(-1, count * 3 * side * side)


@torch.no_grad()
def fit_preview(vae: "WanVAE", *, clips: int = CLIPS) -> PreviewMap:
    """The map of an autoencoder, fitted to what it makes of a few clips of smooth colours and shapes that move."""
    stride, down, _ = vae.config.stride
    side = max(down // POOL, 1)
    like = next(vae.parameters())
    rows: dict[str, tuple[list[Tensor], list[Tensor]]] = {"first": ([], []), "others": ([], [])}
    for frames in _drawn(clips, 1 + GROUPS * stride):
        video = to_video(frames[None])
        latents = vae.encode(video.to(like.device, like.dtype), chunk=1)[0].float().cpu()  # C T h w
        small = F.avg_pool2d(video[0].movedim(1, 0), down // side).movedim(0, 1)  # 3 T h p w p
        x = F.pad(latents.movedim(0, -1), (0, 1), value=1.0)  # T h w C + 1
        for name, part, pixels, count in (("first", x[:1], small[:, :1], 1), ("others", x[1:], small[:, 1:], stride)):
            rows[name][0].append(part.flatten(0, 2))
            rows[name][1].append(_rows(pixels, count, side))
    found = {name: _least_squares(torch.cat(x), torch.cat(y)) for name, (x, y) in rows.items()}
    return PreviewMap(first=found["first"], others=found["others"])


def _least_squares(x: Tensor, y: Tensor) -> Tensor:
    x, y = x.double(), y.double()
    square = x.T @ x
    ridge = RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    return torch.linalg.solve(square + ridge, x.T @ y).float().contiguous()


def _drawn(clips: int, num_frames: int) -> list[np.ndarray]:
    """Clips (T, H, W, 3) uint8: a slope from one colour to another, over which discs of further ones move."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:SIDE, 0:SIDE].astype(np.float32) / SIDE
    found = []
    for _ in range(clips):
        ends, angle = rng.uniform(0, 255, (2, 3)), rng.uniform(0, 2 * np.pi)
        slope = (0.5 + (x - 0.5) * np.cos(angle) + (y - 0.5) * np.sin(angle)).clip(0, 1)[..., None]
        frames = np.repeat((ends[0] + slope * (ends[1] - ends[0]))[None], num_frames, axis=0)
        for _ in range(5):
            colour, radius = rng.uniform(0, 255, 3), rng.uniform(0.05, 0.25)
            place, speed = rng.uniform(0, 1, 2), rng.uniform(-0.02, 0.02, 2)
            for number, frame in enumerate(frames):
                away = np.hypot(x - place[0] - number * speed[0], y - place[1] - number * speed[1])
                frame[:] += (colour - frame) * ((radius - away) * SIDE + 0.5).clip(0, 1)[..., None]
        found.append(frames.round().astype(np.uint8))
    return found


def preview_map(vae: "Callable[[], WanVAE]", identity: str, folder: Path | None) -> PreviewMap:
    """The map of an autoencoder, as it was fitted before, or fitted now and kept in `folder`.

    vae: loads it, if it is needed. identity: says which one it is.
    """
    name = hashlib.sha256(repr((identity, POOL, CLIPS, SIDE, GROUPS, RIDGE)).encode()).hexdigest()
    file = None if folder is None else folder / f"{name}.safetensors"
    if file is not None and file.is_file():
        try:
            tensors, _ = load_tensors(file)
            return PreviewMap(first=tensors["first"], others=tensors["others"])
        except (CheckpointError, KeyError):
            pass  # fitted again, and written anew
    found = fit_preview(vae())
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_tensors({"first": found.first, "others": found.others}, file)
        except (CheckpointError, OSError):
            pass  # it is fitted again next time
    return found


class Preview:
    """A GIF of a clip as it stands, written again every few steps, as often as a small share of the time allows.

    of: the video that is made. seconds: that it took so far.
    """

    def __init__(
        self,
        path: Path,
        shape: VideoShape,
        fps: float,
        to_pixels: PreviewMap,
        warn: Callable[[str], None],
        *,
        share: float = SHARE,
        of: Path | None = None,
    ) -> None:
        self.path, self.shape, self.fps, self.to_pixels, self.warn = path, shape, fps, to_pixels, warn
        self.share = share
        self.comment = f"{PREVIEW}{of.absolute()}" if of else ""
        self.seconds = 0.0
        self._took = FIRST
        self._began = time.monotonic()

    def __call__(self, step: int, total: int, denoised: Sequence[Tensor]) -> None:
        """A step is done: the latents (C, T, h, w) of the only clip are shown if it is time, and once at least."""
        began = time.monotonic()
        never = step == total and self.seconds == 0
        if self.share == 0 or (not never and self.seconds + self._took > self.share * (began - self._began)):
            return
        try:
            self.write(denoised[0])
        except DvgenError as error:  # no reason to lose the video as well
            self.warn(f"there will be no preview: {error}")
            self.share = 0.0
        self._took = time.monotonic() - began
        self.seconds += self._took

    def write(self, latents: Tensor) -> None:
        """Writes the clip of these latents (C, T, h, w). Raises MediaError."""
        frames = self.to_pixels(latents)[: self.shape.num_frames]
        height, width = (max(1, -(-side // POOL)) for side in (self.shape.height, self.shape.width))
        larger = max(1, LEAST_WIDTH // width)  # so that a small clip can be looked at
        shown = frames[:, :height, :width].repeat(larger, axis=1).repeat(larger, axis=2)
        write_quick_gif(self.path, np.ascontiguousarray(shown), fps=self.fps, comment=self.comment)
