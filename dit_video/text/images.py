"""Image encoders: what a model reads of a picture beside the prompt, by CLIP's vision transformer (arXiv 2103.00020).

`image_files` knows their files.
"""

from dataclasses import fields
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from dit_video.checkpoints.load import load_into
from dit_video.checkpoints.parts import Part
from dit_video.text.image_files import ImageConfig, Preparation, weights_of
from dit_video.text.library import quiet_transformers

if TYPE_CHECKING:
    from transformers.models.clip.modeling_clip import CLIPVisionModel


def prepare(pictures: np.ndarray, how: Preparation) -> Tensor:
    """Pictures (n, H, W, 3) uint8 as the encoder takes them: (n, 3, h, w) float32."""
    if how.resample is None:
        pixels = torch.tensor(pictures).permute(0, 3, 1, 2).float() / 255
        pixels = F.interpolate(pixels, how.shape, mode="bicubic", align_corners=False)  # n 3 h w
    else:
        scaled = np.stack([_scaled(picture, how) for picture in pictures])
        pixels = torch.tensor(scaled).permute(0, 3, 1, 2).float() / 255
    mean, std = torch.tensor([how.mean, how.std]).view(2, 3, 1, 1)
    return (pixels - mean) / std


def _scaled(picture: np.ndarray, how: Preparation) -> np.ndarray:
    """A picture (H, W, 3) scaled by Pillow's filter, and its middle cut out."""
    height, width = picture.shape[:2]
    if isinstance(how.size, int):
        short = min(height, width)
        height, width = (how.size if side == short else int(how.size * side / short) for side in (height, width))
    else:
        height, width = how.size
    made = np.asarray(Image.fromarray(picture).resize((width, height), how.resample))
    cut_height, cut_width = how.crop or (height, width)
    top, left = (height - cut_height) // 2, (width - cut_width) // 2
    return made[top : top + cut_height, left : left + cut_width]


class ImageEncoder:
    """A preparation and an encoder: pictures in, rows out."""

    def __init__(self, module: nn.Module, preparation: Preparation) -> None:
        self.module, self.preparation = module, preparation

    @torch.no_grad()
    def encode(self, pictures: np.ndarray) -> Tensor:
        """Rows (n, R, W) of pictures (n, H, W, 3) uint8: the output of the last layer but one, without a norm."""
        like = next(self.module.parameters())
        pixels = prepare(pictures, self.preparation).to(like.device, like.dtype)
        return self.module(pixel_values=pixels, output_hidden_states=True).hidden_states[-2]


def load_image_encoder(
    part: Part, config: ImageConfig, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> ImageEncoder:
    """The encoder that a part is.

    Raises:
        CheckpointError: a tensor is missing, unexpected, mis-shaped or unreadable.
    """
    with quiet_transformers():
        module = load_into(lambda: _build(config), weights_of(part).tensors, part.layout, dtype=dtype, device=device)
    return ImageEncoder(module, config.preparation)


def _build(config: ImageConfig) -> "CLIPVisionModel":
    from transformers.models.clip.configuration_clip import CLIPVisionConfig
    from transformers.models.clip.modeling_clip import CLIPVisionModel

    shape = {each.name: getattr(config, each.name) for each in fields(config) if each.name != "preparation"}
    module = CLIPVisionModel(CLIPVisionConfig(**shape))
    return getattr(module, "vision_model", module)  # transformers 4 has it one level further down
