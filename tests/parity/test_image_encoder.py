"""Our image encoder against transformers' CLIPVisionModel and CLIPImageProcessor, and its names at full size."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionConfig, CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dit_video.checkpoints.fused import together
from dit_video.checkpoints.headers import TensorInfo
from dit_video.checkpoints.keymap import detect
from dit_video.checkpoints.parts import Part, split
from dit_video.errors import CheckpointError
from dit_video.models import open_checkpoint
from dit_video.text.image_files import (
    FOLDER_LAYOUTS,
    IMAGE_LAYOUTS,
    ORIGINAL,
    PLAIN,
    PREFIXED,
    ImageConfig,
    Preparation,
    image_config_of,
    image_fields,
    image_rows,
    preparation_of,
)
from dit_video.text.images import ImageEncoder, _build, prepare
from dit_video.text.layouts import TEXT_LAYOUTS
from tests.tiny import tiny_i2v_folder

SIZES = [(48, 32), (31, 77), (224, 224), (300, 171)]  # width, height


def picture(width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8 in which every pixel says something, and neighbours are alike."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    waves = np.stack([np.sin(x / 3 + y / 7), np.cos(x / 5), np.sin(x * y / 400)], axis=-1)
    noise = np.random.default_rng(1).normal(0, 20, waves.shape)
    return np.clip(127 + 100 * waves + noise, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_i2v_folder(tmp_path_factory.mktemp("wan") / "i2v")


def load(folder: Path) -> ImageEncoder:
    return open_checkpoint(folder).load_images(dtype=torch.float32)


@pytest.mark.parametrize("size", SIZES)
def test_rows_are_those_of_transformers(folder: Path, size: tuple[int, int]) -> None:
    theirs = CLIPVisionModel.from_pretrained(folder / "image_encoder").eval()
    processor = CLIPImageProcessorPil.from_pretrained(folder / "image_processor")
    pixels = processor(images=picture(*size), return_tensors="pt")
    with torch.no_grad():
        wanted = theirs(**pixels, output_hidden_states=True).hidden_states[-2]
    found = load(folder).encode(picture(*size)[None])
    assert found.shape == wanted.shape == (1, 5, 20)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 2e-5


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"size": {"height": 224, "width": 224}, "do_center_crop": False},
        {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 200}, "resample": 2},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 1.0], "resample": 1},
    ],
)
def test_pictures_are_prepared_as_by_transformers(size: tuple[int, int], options: dict[str, Any]) -> None:
    processor = CLIPImageProcessorPil(**options)
    wanted = processor(images=picture(*size), return_tensors="pt").pixel_values
    found = prepare(picture(*size)[None], preparation_of(json.loads(processor.to_json_string())))
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) < 1e-5


def test_without_a_processor_pictures_are_squashed_as_by_the_release() -> None:
    """Scaled to 224x224 bicubically, without a low-pass, whatever their shape (wan/modules/clip.py)."""
    made = picture(96, 64)
    pixels = torch.tensor(made).permute(2, 0, 1)[None].float() / 127.5 - 1
    pixels = F.interpolate(pixels, (224, 224), mode="bicubic", align_corners=False) * 0.5 + 0.5
    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])[
        ..., None, None
    ]
    assert float((prepare(made[None], Preparation()) - (pixels - mean) / std).abs().max()) < 1e-4


def test_names_with_and_without_the_prefix(folder: Path, tmp_path: Path) -> None:
    """Public files have `vision_model.` before every name, and some of them a count of the positions."""
    wanted = load(folder).encode(picture(48, 32)[None])
    file = folder / "image_encoder" / "model.safetensors"
    tensors = load_file(file)
    try:
        prefixed = {f"vision_model.{name}": tensor for name, tensor in tensors.items()}
        save_file({**prefixed, "vision_model.embeddings.position_ids": torch.arange(5)[None]}, file)
        assert torch.equal(load(folder).encode(picture(48, 32)[None]), wanted)
        save_file({**prefixed, "vision_model.extra": torch.zeros(1)}, file)
        with pytest.raises(CheckpointError, match=r"'vision_model\.extra': 0 rows of the vision_model layout"):
            load(folder)
        del prefixed["vision_model.pre_layrnorm.bias"]
        save_file(prefixed, file)
        with pytest.raises(CheckpointError, match=r"1 tensor is missing: 'vision_model\.pre_layrnorm\.bias'"):
            load(folder)
    finally:
        save_file(tensors, file)


def test_full_size_names() -> None:
    """ViT-H/14: 0.632 billion parameters without the head, 257 rows of 1280."""
    shape = dict(hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=16, patch_size=14)
    with torch.device("meta"):
        theirs = CLIPVisionModel(CLIPVisionConfig(**shape, hidden_act="gelu"))
        ours = _build(ImageConfig()).state_dict()
    assert image_config_of(theirs.config.to_dict(), Preparation()) == ImageConfig()
    assert ImageConfig().rows == 257
    assert sum(value.numel() for value in ours.values()) == pytest.approx(0.631e9, rel=2e-3)
    for layout in (*FOLDER_LAYOUTS, ORIGINAL):
        names = {layout.to_theirs(name): name for name in ours}
        assert len(names) == len(ours) and {layout.to_ours(name) for name in names} == set(ours)
        assert detect(names, (*FOLDER_LAYOUTS, ORIGINAL)) is layout
    bare = {name.removeprefix("vision_model.") for name in theirs.state_dict()}
    assert {PLAIN.to_theirs(name) for name in ours} == bare
    assert {PREFIXED.to_theirs(name) for name in ours} == {f"vision_model.{name}" for name in bare}


def released_shapes() -> dict[str, tuple[int, ...]]:
    """The image tower of the release's `clip_xlm_roberta_vit_h_14` (wan/modules/clip.py), at full size."""
    width, inner = 1280, 4 * 1280
    shapes: dict[str, tuple[int, ...]] = {
        "cls_embedding": (1, 1, width),
        "pos_embedding": (1, 257, width),
        "patch_embedding.weight": (width, 3, 14, 14),
        "head": (width, 1024),
    }
    matrices = {"attn.to_qkv": (3 * width, width), "attn.proj": (width, width)}
    matrices |= {"mlp.0": (inner, width), "mlp.2": (width, inner)}
    for norm in ("pre_norm", "post_norm", *(f"transformer.{i}.norm{n}" for i in range(32) for n in (1, 2))):
        shapes |= {f"{norm}.weight": (width,), f"{norm}.bias": (width,)}
    for name, shape in ((f"transformer.{i}.{name}", shape) for i in range(32) for name, shape in matrices.items()):
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"visual.{name}": shape for name, shape in shapes.items()}


def full_size(shapes: dict[str, tuple[int, ...]]) -> Part:
    """The encoder among tensors of these names and shapes."""
    infos = {
        name: TensorInfo(name=name, dtype="F16", shape=shape, file=Path("x"), nbytes=2 * int(np.prod(shape)))
        for name, shape in shapes.items()
    }
    (part,) = split(Path("x"), infos, {"text_encoder": TEXT_LAYOUTS, "image_encoder": IMAGE_LAYOUTS}).values()
    return part


def test_full_size_names_and_shapes_of_files() -> None:
    """The release's and ComfyUI's: every name is exactly one of ours, and every one of ours is there."""
    with torch.device("meta"):
        ours = {name: tuple(value.shape) for name, value in _build(ImageConfig()).state_dict().items()}
    comfy = {f"vision_model.{name}": shape for name, shape in ours.items()}
    comfy |= {"vision_model.embeddings.position_ids": (1, 257), "visual_projection.weight": (1024, 1280)}
    towers = {"textual.blocks.0.attn.q.weight": (1024, 1024), "textual.head.0.weight": (1024, 1024), "log_scale": ()}
    for shapes in (released_shapes() | towers, comfy, comfy | {"text_model.final_layer_norm.weight": (1024,)}):
        part = full_size(shapes)
        assert part.shapes == ours and len(part.tensors) == len(ours)
        assert sum(info.nbytes for info in part.tensors.values()) == part.summary.nbytes == 2 * part.summary.parameters
        assert image_config_of(image_fields(part), None) == ImageConfig() and image_rows(part) == (257, 1280)
    back = together(full_size(comfy).tensors, ORIGINAL)
    made = {
        f"visual.{name}": (sum(part.shape[0] for part in parts), *parts[0].shape[1:]) for name, parts in back.items()
    }
    assert made == {name: shape for name, shape in released_shapes().items() if name != "visual.head"}
    assert len(released_shapes()) == 392 and len(ours) == 519


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize is False"),
        ({"size": {"longest_edge": 224}}, "'height'"),
        ({"size": {"shortest_edge": 100}}, "crop_size"),
        ({"image_std": [0, 1, 1]}, "image_std"),
        ({"rescale_factor": 1.0}, "rescale_factor"),
        ({"resample": 17}, "17"),
        ({"crop_size": None}, "a side of None"),
    ],
)
def test_a_preparation_that_is_none_is_refused(change: dict[str, Any], message: str) -> None:
    fields = json.loads(CLIPImageProcessorPil().to_json_string())
    with pytest.raises(CheckpointError, match=rf"preprocessor_config\.json: .*{message}"):
        preparation_of({**fields, **change})


def test_older_files_give_sizes_as_numbers() -> None:
    assert preparation_of({"size": 224, "crop_size": 224}) == Preparation(size=224, crop=(224, 224), resample=3)
