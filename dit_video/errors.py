"""The errors a user can cause: each is one sentence with the value, the rule and the nearest valid value."""


class DvgenError(Exception):
    """Anything the user can put right; shown as one sentence, without a traceback."""

    exit_code = 1


class UsageError(DvgenError):
    """A wrong option or option value."""

    exit_code = 2


class CheckpointError(DvgenError):
    """A checkpoint that is missing, damaged, or not of a known layout."""


class UndefinedNumbers(DvgenError):
    """A computation that gave infinite or undefined numbers, and would again."""


class MediaError(DvgenError):
    """A video or image file that cannot be read or written."""
