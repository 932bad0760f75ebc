"""From a training run to the folder that is shipped: a diffusers pipeline folder that dvgen and `WanPipeline` both
open.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from dit_video.models.wan.save import save_folder
from dit_video.scenes.world import BACKGROUNDS, COLOURS, MOTIONS, SHAPES

if TYPE_CHECKING:
    from dit_video.train.dit import Models

# What a diffusers folder has no field for; dvgen.json beside model_index.json holds it.
DEFAULTS = {
    "steps": 20,
    "guidance": [4.0],
    "negative": "",
    "size": "256x144",
    "frames": 24,
    "fps": 12,
    "solver": "unipc",
    "sigmas": "release",
    "window": 49,
    "known_frames": "any",
    "knows": {
        "objects": ["ball", *SHAPES],
        "colours": list(COLOURS),
        "backgrounds": list(BACKGROUNDS),
        "motions": list(MOTIONS),
        "sizes": ["small", "large"],
    },
}


def export(models: "Models", out: Path) -> None:
    """Write the models as they are now (weights of the moving average, if swapped in) to a diffusers folder.

    The transformer and the autoencoder are stored in float16, the text encoder in float32, because transformers runs
    a model in the dtype it is stored in. A linear code goes with them, for training to go on.
    """
    save_folder(
        out,
        dit=models.dit,
        vae=models.vae,
        text=models.text,
        tokenizer=models.tokenizer,
        defaults=models.defaults,
        shift=models.teacher.config.shift if models.teacher else 3.0,
        dit_dtype=torch.float16,
        vae_dtype=torch.float16,
    )
    if models.code is not None:
        models.code.save(out)
