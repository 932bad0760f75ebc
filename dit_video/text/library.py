"""transformers, which image encoders and text encoders to be trained are built of.

It is imported when it is first used: that takes seconds.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def has_library() -> bool:
    """Whether it is imported already."""
    return "transformers.modeling_utils" in sys.modules


def import_library() -> None:
    """Import it: most of what loading a small encoder takes."""
    import transformers.modeling_utils  # noqa: F401


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No bars and no warnings of transformers' own: problems are raised as errors, progress is the caller's to show."""
    from transformers.utils import logging

    bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
