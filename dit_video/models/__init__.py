"""The families of models, each in a folder of its own that is imported when one of its checkpoints is opened."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video.checkpoints.files import find_checkpoint, read_json
from dit_video.errors import CheckpointError

if TYPE_CHECKING:
    from dit_video.models.wan.pipeline import WanCheckpoint

FAMILIES = {"wan": "dit_video.models.wan.pipeline"}
"""Family name -> the module whose `open_checkpoint(folder)` describes a checkpoint and loads its stages."""

_PIPELINES = {"WanPipeline": "wan"}  # `_class_name` in a diffusers folder's model_index.json -> family


def open_checkpoint(name: str | Path | None = None) -> "WanCheckpoint":
    """A checkpoint as its headers and configs describe it: by path, by shipped name, or None for the default.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to no known family.
    """
    folder = find_checkpoint(name)
    pipeline = read_json(folder / "model_index.json").get("_class_name")
    if pipeline not in _PIPELINES:
        known = ", ".join(_PIPELINES)
        raise CheckpointError(f"{folder}: the pipeline class {pipeline!r} is not supported; it must be one of {known}.")
    return import_module(FAMILIES[_PIPELINES[pipeline]]).open_checkpoint(folder)
