"""`dvgen scenes`: the procedural training world as captioned files."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dit_video.errors import MediaError
from dvgen import console, options

if TYPE_CHECKING:
    import numpy as np

    from dit_video.scenes.world import Scene

MAX_COUNT = 1_000_000


def scenes(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.", show_default=False)],
    count: Annotated[str, typer.Option(metavar="N", help="How many.")] = "16",
    seed: Annotated[str, typer.Option(metavar="N", help="Scene i of a seed is always the same.")] = "0",
    size: Annotated[
        str | None, typer.Option(metavar="WxH", help="One size for all; mixed native sizes without it.")
    ] = None,
    frames: Annotated[
        str | None, typer.Option(metavar="N", help="One length for all; 1 to 97 frames, mixed, without it.")
    ] = None,
    fps: Annotated[str, typer.Option(metavar="F", help="Frames per second.")] = "12",
    held_out: Annotated[
        bool, typer.Option("--held-out", help="Combinations and wordings that are kept out of training.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print errors and the result only.")] = False,
) -> None:
    """Write scenes of the training world: 000000.mp4 (.png for one frame) and its caption in 000000.txt, and so on."""
    total = options.whole("--count", count, 1, MAX_COUNT)
    first = options.seed(seed)
    rate = options.fps(fps)
    shape, length = options.given(size, options.size), options.given(frames, options.frames)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise MediaError(f"{out}: must be a new or empty folder; choose another name.")
    if not out.parent.is_dir():
        raise MediaError(f"{out}: the folder {out.parent} does not exist; create it first.")

    import numpy as np

    from dit_video.scenes.captions import caption
    from dit_video.scenes.render import render
    from dit_video.video.io import write_video

    out.mkdir(exist_ok=True)
    with console.Speaker(quiet=quiet) as speaker:
        speaker.progress("scenes", 0, total)
        for index in range(total):
            rng = np.random.default_rng((first, index))
            scene = _draw(rng, shape, length, held_out)
            suffix = ".png" if scene.num_frames == 1 else ".mp4"
            write_video(out / f"{index:06d}{suffix}", iter(render(scene)), fps=rate)
            (out / f"{index:06d}.txt").write_text(caption(scene, rng, held_out=held_out) + "\n")
            speaker.progress("scenes", index + 1, total)
    console.result(str(out))


def _draw(rng: "np.random.Generator", shape: tuple[int, int] | None, frames: int | None, held_out: bool) -> "Scene":
    from dit_video.scenes.world import MAX_FRAMES, sample_scene, sample_size

    size = shape or sample_size(rng)
    return sample_scene(rng, num_frames=frames or int(rng.integers(1, MAX_FRAMES + 1)), size=size, held_out=held_out)
