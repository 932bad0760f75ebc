"""`dvgen scenes`: the procedural training world as captioned files."""

from pathlib import Path
from typing import Annotated

import typer

from dit_video.shapes import parse_size
from dvgen import console, options
from dvgen.logs import with_logging

MAX_COUNT = 1_000_000


@with_logging
def scenes(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new or empty folder.", show_default=False)],
    count: Annotated[str, options.option("--count", "N", "How many.", of="scenes")] = "16",
    seed: Annotated[str, options.option("--seed", "N", "Scene i of a seed is always the same.", of="scenes")] = "0",
    size: Annotated[
        str | None, options.option("--size", "WxH", "One size for all; mixed native sizes without it.", of="scenes")
    ] = None,
    frames: Annotated[
        str | None,
        options.option("--frames", "N", "One length for all; 1 to 97 frames, mixed, without it.", of="scenes"),
    ] = None,
    fps: Annotated[str, options.option("--fps", "F", "Frames per second.", of="scenes")] = "12",
    held_out: Annotated[
        bool,
        options.option("--held-out", None, "Combinations and wordings that are kept out of training.", of="scenes"),
    ] = False,
    quiet: Annotated[
        bool, options.option("--quiet -q", None, "Print errors and the result only.", panel=options.MESSAGES)
    ] = False,
) -> None:
    """Write scenes of the training world: 000000.mp4 (.png for one frame) and its caption in 000000.txt, and so on."""
    total = options.whole("--count", count, 1, MAX_COUNT)
    first = options.seed(seed)
    rate = options.fps(fps)
    shape, length = options.given(size, parse_size), options.given(frames, options.frames)

    from dit_video.scenes.files import write_scenes

    paths = write_scenes(out, total, first, size=shape, num_frames=length, held_out=held_out, fps=rate)
    with console.Speaker(quiet=quiet) as speaker:
        speaker.progress("scenes", 0, total)
        for index, _ in enumerate(paths, start=1):
            speaker.progress("scenes", index, total)
    console.result(str(out))
