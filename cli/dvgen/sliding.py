"""Clips from their beginning that are longer than a model makes at once: window by window, each going on from the last
frames of the one before, decoded and written as they come, so that memory does not grow with the length."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_video.errors import UsageError
from dvgen.pictures import Placed
from dvgen.prepared import InWindows
from dvgen.sampling import Sampling

if TYPE_CHECKING:
    from dit_video.extend import Extended
    from dit_video.shapes import VideoShape
    from dit_video.stages import Stages
    from dit_video.unfinished import Unfinished
    from dvgen.prepared import _Watching


@dataclass(frozen=True, kw_only=True)
class Sliding(InWindows):
    """A clip made in windows. images, fit: pictures that are frames of it."""

    images: Sequence[Placed] = ()
    fit: str = "cover"

    @property
    def _whole(self) -> "VideoShape":
        return replace(self.plan.shape, num_frames=self.frames)

    def _shapes(self) -> "list[VideoShape]":
        return [replace(self.plan.shape, num_frames=size) for size in self.division.whole_sizes(self.frames)]

    def _encoded(self) -> list[int]:
        from dit_video.groups import encoded_frames, group_of

        if self.checkpoint.beside:
            return [shape.num_frames for shape in self._shapes()]
        stride = self.checkpoint.grid.stride[0]
        groups = {group_of(image.of(self.frames), stride) for image in self.images}
        first, *rest = [self.division.before] * self.windows
        first = encoded_frames(
            {group for group in groups if group <= (self.plan.shape.num_frames - 1) // stride}, stride
        )
        return [first, *rest]

    def write(
        self, stages: "Stages", output: Path, unfinished: "Unfinished | None", watching: "_Watching | None" = None
    ) -> "Extended":
        """See `Prepared`."""
        from dit_video.decode import shown
        from dit_video.extend import write_extended
        from dvgen import pictures

        read, grid = pictures.read(self.images), self.checkpoint.grid
        given = pictures.given(read, self._whole, grid, self.fit, lambda _: None)
        maker = self._maker(stages, unfinished)
        frames = maker.checked(
            maker.whole(self.frames, given, pictures.seen(read, self._whole, grid)), f"{output}: the video"
        )
        if watching and watching.show:
            frames = shown(frames, watching.show)
        how: dict[str, Any] = {"overwrite": self.sampling.overwrite, "comment": self.comment}
        return write_extended(maker, frames, output, fps=self.fps, old_frames=0, **how)


def check_options(sampling: Sampling, frames: int, longest: int) -> None:
    """Refuses what only clips that are made at once can have; longest: of those. Raises UsageError."""
    given = {
        f"--count {sampling.count}": sampling.count > 1,
        "--keep-latents": sampling.keep_latents,
        f"--save-latents {sampling.save_latents}": sampling.save_latents,
        f"--preview-file {sampling.preview_file}": sampling.preview_file,
    }
    for option, is_given in given.items():
        if is_given:
            rule = f"{frames} frames are made in windows, and this is for clips that are made at once"
            raise UsageError(f"{option}: {rule}; the nearest number of frames is {longest}.")
