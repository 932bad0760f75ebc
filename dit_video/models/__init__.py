"""The families of models, each in a folder of its own that is imported when one of its checkpoints is opened."""

import logging
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from dit_video.checkpoints.files import read_json
from dit_video.checkpoints.places import Named, find_checkpoint, is_diffusers
from dit_video.errors import CheckpointError

if TYPE_CHECKING:
    from dit_video.checkpoints.parts import Part
    from dit_video.models.wan.pipeline import WanCheckpoint

_log = logging.getLogger(__name__)

FAMILIES = {"wan": "dit_video.models.wan.pipeline"}
"""Family name -> the module whose `open_checkpoint(place, named)` describes a checkpoint and loads its stages."""

# `_class_name` in a diffusers folder's model_index.json -> family
_PIPELINES = {"WanPipeline": "wan", "WanImageToVideoPipeline": "wan"}


def open_checkpoint(name: str | Path | None = None, named: Named | None = None) -> "WanCheckpoint":
    """A checkpoint as its headers and configs describe it: by path, by shipped or cached name, or None for the default.

    named: files for parts that are not in it.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to no known family.
    """
    place, named = find_checkpoint(name), named or Named()
    family = "wan"  # the only one whose files are told by their tensors' names
    if is_diffusers(place):
        pipeline = read_json(place / "model_index.json").get("_class_name")
        if pipeline not in _PIPELINES:
            known = ", ".join(_PIPELINES)
            raise CheckpointError(
                f"{place}: the pipeline class {pipeline!r} is not supported; it must be one of {known}."
            )
        family = _PIPELINES[pipeline]
    found: WanCheckpoint = import_module(FAMILIES[family]).open_checkpoint(place, named)
    parts = ", ".join(f"{part} {'/'.join(summary.dtypes)}" for part, summary in found.components.items())
    _log.info("the model in %s: %s, in the layout %s; %s", place, found.variant or family, found.layout, parts)
    return found


def contents(name: str | Path) -> "dict[str, Part]":
    """The components of a file or an original folder by their kinds, also where they make no whole model.

    Raises:
        CheckpointError: there is none, it is damaged, or it belongs to no known family.
    """
    from dit_video.models.wan.release import contents

    return contents(find_checkpoint(name))
