"""The folder where what took time to find out is kept from one run to the next."""

import os
from pathlib import Path

FOLDER = "DVGEN_CACHE"  # the environment's name of the folder; empty: nothing is kept


def users_folder(part: str) -> Path | None:
    """The folder of one kind of thing, of whoever runs this: in the system's folder for such things, or where `FOLDER`
    says; None where nothing is to be kept. It need not be there yet."""
    import platformdirs

    folder = os.environ.get(FOLDER)
    if folder == "":
        return None
    place = Path(folder) if folder else platformdirs.user_cache_path("dvgen", appauthor=False)
    return place / part
