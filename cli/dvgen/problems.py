"""What stands in the way of a command, gathered by a dry run instead of ending it at the first."""

from collections.abc import Iterator
from contextlib import contextmanager

from dit_video.errors import DvgenError


class Problems:
    """Sentences about what a run would be refused for."""

    def __init__(self) -> None:
        self.found: list[str] = []

    @contextmanager
    def listed(self) -> Iterator[None]:
        """What its body is refused for is a problem, and no error."""
        try:
            yield
        except DvgenError as error:
            self.add(str(error))

    def add(self, text: str) -> None:
        """One more, if it is not there yet."""
        if text not in self.found:
            self.found.append(text)
