"""What a run does from beginning to end, and so how long it takes: told before anything is loaded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from dit_video.shapes import VideoShape
from dit_video.timing import Clock, Span, Task
from dit_video.work import Passes


@dataclass(frozen=True, kw_only=True)
class Course:
    """What a run does.

    shapes: of the clips that go through the model, one after the other. encoded: of each, the frames that are encoded
    for what is given of it. passes: of each. prompts: that the text encoder has to read. suffix: of the video; "" where
    frames are written apart, as `written` of them. keeps: all stages stay in memory, see `Stages`. sees_images: what is
    given is also seen by an image encoder.
    """

    shapes: Sequence[VideoShape]
    encoded: Sequence[int]
    passes: Passes
    prompts: int
    suffix: str
    tile: int | None = None
    keeps: bool = False
    sees_images: bool = False
    written: int = 0

    def loads(self) -> list[str]:
        """The parts that are loaded, in their order."""
        every = list(self._needed())
        return list(dict.fromkeys(every)) if self.keeps else [part for part, _ in groupby(every)]

    def _needed(self) -> Iterator[str]:
        for number, frames in enumerate(self.encoded):
            if frames and self.sees_images:
                yield "image_encoder"
            if frames:
                yield "vae"
            if self.prompts and number == 0:
                yield "text_encoder"
            yield from self.passes.by_part
            yield "vae"

    def tasks(self, clock: Clock) -> dict[str, list[Task]]:
        """What is done, by activities as of `Stages.seconds`, and "program" and "write" besides."""
        found = {"program": [clock.program()], "load": clock.loads(self.loads())}
        if self.prompts:
            found["text"] = [clock.text(self.prompts)]
        if any(self.encoded):
            pairs = zip(self.shapes, self.encoded, strict=True)
            found["encode"] = [clock.encode(_of_length(shape, count)) for shape, count in pairs if count]
        if self.passes.count:
            found["denoise"] = [clock.denoise(shape, passes=self.passes.count) for shape in self.shapes]
        suffix = "" if self.written else self.suffix
        found["decode"] = [clock.decode(shape, suffix, tile=self.tile) for shape in self.shapes]
        if self.written:
            found["write"] = [clock.write(self.written, self.shapes[0].width, self.shapes[0].height, self.suffix)]
        return found

    def expected(self, clock: Clock) -> dict[str, Span]:
        """How long each activity takes; that of the whole is their sum."""
        return {activity: clock.expected(*tasks) for activity, tasks in self.tasks(clock).items()}


def _of_length(shape: VideoShape, frames: int) -> VideoShape:
    return VideoShape(num_frames=frames, height=shape.height, width=shape.width)
