"""Writes Wan models as diffusers folders, see `folder`."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit_video.checkpoints.files import replacing_folder, write_json
from dit_video.checkpoints.load import save_model
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.folder import WEIGHTS, defaults_of, model_index, scheduler_config
from dit_video.models.wan.layouts import DIFFUSERS, config_to_diffusers
from dit_video.models.wan.vae import WanVAE
from dit_video.models.wan.vae_layouts import diffusers_config, diffusers_layout
from dit_video.text.vocabulary import save_text_encoder, save_tokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers.models.umt5.modeling_umt5 import UMT5EncoderModel


def save_folder(
    out: Path,
    *,
    dit: WanDiT,
    vae: WanVAE,
    text: "UMT5EncoderModel",
    tokenizer: "Tokenizer",
    defaults: Mapping[str, Any],
    shift: float,
    dit_dtype: torch.dtype = torch.float32,
    vae_dtype: torch.dtype = torch.float32,
    expand_timesteps: bool = True,
) -> None:
    """Writes a folder that `WanCheckpoint` and diffusers' `WanPipeline.from_pretrained` open.

    It appears when it is whole, in the place of a checkpoint that was there. The text encoder is stored in the dtype it
    has, since transformers runs it in the one it finds.

    Args:
        defaults: the contents of dvgen.json; its keys are those that `WanCheckpoint.open` reads.
        shift: of the noise levels.
        expand_timesteps: the model knows a noise level per latent frame.

    Raises:
        CheckpointError: `out` is not a checkpoint, or cannot be written; or `defaults` has an unknown key.
    """
    with replacing_folder(Path(out)) as folder:
        for part in ("transformer", "vae", "scheduler"):
            (folder / part).mkdir()
        write_json(folder / "transformer" / "config.json", config_to_diffusers(dit.config))
        save_model(dit, folder / "transformer" / f"{WEIGHTS}.safetensors", DIFFUSERS, dit_dtype)
        write_json(folder / "vae" / "config.json", diffusers_config(vae.config))
        save_model(vae, folder / "vae" / f"{WEIGHTS}.safetensors", diffusers_layout(vae.config), vae_dtype)
        save_text_encoder(text, folder / "text_encoder")
        save_tokenizer(tokenizer, folder / "tokenizer")
        write_json(folder / "scheduler" / "scheduler_config.json", scheduler_config(shift))
        write_json(folder / "model_index.json", model_index(expand_timesteps=expand_timesteps))
        write_json(folder / "dvgen.json", defaults)
        defaults_of(folder, "custom")  # refuses what could not be read back
