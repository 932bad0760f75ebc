"""Image encoders of models that are no diffusers folders: as released, as ComfyUI's files, found, named and refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from dvgen.main import app
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPVisionModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from typer.testing import CliRunner, Result

from dit_video.checkpoints.places import Named
from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.errors import CheckpointError
from dit_video.make import encode_given
from dit_video.models import contents, open_checkpoint
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from dit_video.text.image_files import Preparation
from tests.tiny import tiny_i2v_folder
from tests.unit.test_convert import assert_equal, made, of_a_release, stored
from tests.unit.test_wan_release import narrow_heads, original_dit, original_folder, original_vae, write_tokenizer

__all__ = ["narrow_heads"]  # a fixture
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
PICTURES = np.random.default_rng(3).integers(0, 256, (2, 32, 48, 3), dtype=np.uint8)
SQUASHED = Preparation(size=(28, 28))  # as the release does, at this encoder's size


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.1 I2V as diffusers writes it."""
    return of_a_release(tiny_i2v_folder(tmp_path_factory.mktemp("wan") / "i2v"))


@pytest.fixture(scope="module")
def flf2v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for two pictures."""
    return of_a_release(tiny_i2v_folder(tmp_path_factory.mktemp("wan") / "flf2v", last=True))


@pytest.fixture
def bare(whole: Path, tmp_path: Path) -> Path:
    """The folder without its image_processor/, so that pictures are prepared as the release does."""
    path = Path(shutil.copytree(whole, tmp_path / "bare"))
    shutil.rmtree(path / "image_processor")
    return path


def transformers_names(folder: Path) -> dict[str, Tensor]:
    """The image encoder as transformers 5 writes it, without a prefix."""
    return load_file(folder / "image_encoder" / "model.safetensors")


def release_names(folder: Path) -> dict[str, Tensor]:
    """CLIP as the release stores it: its image tower under `visual.`, and beside it a text tower."""
    theirs = transformers_names(folder)
    made = {
        "cls_embedding": theirs["embeddings.class_embedding"][None, None],
        "pos_embedding": theirs["embeddings.position_embedding.weight"][None],
        "patch_embedding.weight": theirs["embeddings.patch_embedding.weight"],
        "head": torch.ones(20, 8),
    }
    for p in ("weight", "bias"):
        made[f"pre_norm.{p}"], made[f"post_norm.{p}"] = theirs[f"pre_layrnorm.{p}"], theirs[f"post_layernorm.{p}"]
        for i in range(3):
            layer = f"encoder.layers.{i}."
            qkv = [theirs[f"{layer}self_attn.{part}_proj.{p}"] for part in ("q", "k", "v")]
            made[f"transformer.{i}.attn.to_qkv.{p}"] = torch.cat(qkv)
            for ours, name in (
                ("attn.proj", "self_attn.out_proj"),
                ("norm1", "layer_norm1"),
                ("norm2", "layer_norm2"),
                ("mlp.0", "mlp.fc1"),
                ("mlp.2", "mlp.fc2"),
            ):
                made[f"transformer.{i}.{ours}.{p}"] = theirs[f"{layer}{name}.{p}"]
    textual = {
        "token_embedding.weight": (9, 6),
        "blocks.0.attn.q.weight": (6, 6),
        "norm.weight": (6,),
        "head.0.weight": (6, 6),
    }
    return (
        {f"visual.{name}": tensor for name, tensor in made.items()}
        | {f"textual.{name}": torch.ones(shape) for name, shape in textual.items()}
        | {"log_scale": torch.tensor(2.6)}
    )


def comfy_names(folder: Path) -> dict[str, Tensor]:
    """clip_vision_h.safetensors: transformers 4's names, with what comes after the last layer."""
    theirs = {f"vision_model.{name}": tensor for name, tensor in transformers_names(folder).items()}
    count = {"vision_model.embeddings.position_ids": torch.arange(5)[None]}
    return theirs | count | {"visual_projection.weight": torch.ones(8, 20)}


def released(folder: Path, out: Path) -> Path:
    """An original folder with its image encoder."""
    original_folder(folder, out)
    torch.save(release_names(folder), out / CLIP)
    return out


def comfyui(folder: Path, out: Path) -> Path:
    """ComfyUI's folders; the transformer's file."""
    for name in ("diffusion_models", "vae", "text_encoders", "clip_vision"):
        (out / name).mkdir(parents=True)
    model = out / "diffusion_models" / "wan2.1_i2v_480p_14B_fp16.safetensors"
    save_file(original_dit(folder), model)
    save_file(original_vae(folder), out / "vae" / "wan_2.1_vae.safetensors")
    shutil.copy(folder / "text_encoder" / "model.safetensors", out / "text_encoders" / "umt5_xxl.safetensors")
    write_tokenizer(folder, out / "text_encoders")
    save_file(comfy_names(folder), out / "clip_vision" / "clip_vision_h.safetensors")
    return model


FORMS: dict[str, Callable[[Path, Path], Path]] = {"original": released, "comfyui": comfyui}


def run(*arguments: str | Path, code: int = 0) -> Result:
    found = CliRunner().invoke(app, list(map(str, arguments)))
    assert found.exit_code == code, (found.stdout, found.stderr, found.exception)
    return found


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def rows(checkpoint: WanCheckpoint, pictures: np.ndarray) -> Tensor:
    return checkpoint.load_images(dtype=torch.float32).encode(pictures)


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_those_of_transformers_for_pictures_as_the_release_prepares_them(
    whole: Path, tmp_path: Path, form: str
):
    """wan/modules/clip.py: pictures from -1 to 1 scaled bicubically, then CLIP's mean and deviation."""
    found = open_checkpoint(FORMS[form](whole, tmp_path / "model"))
    assert found.images is not None and found.images.preparation == SQUASHED
    assert found.images.num_attention_heads == 2 and found.images.num_hidden_layers == 3
    pixels = torch.tensor(PICTURES).permute(0, 3, 1, 2) / 127.5 - 1
    pixels = F.interpolate(pixels, (28, 28), mode="bicubic", align_corners=False) * 0.5 + 0.5
    mean, std = torch.tensor([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]])[
        ..., None, None
    ]
    model = CLIPVisionModel.from_pretrained(whole / "image_encoder").eval()
    with torch.no_grad():
        wanted = model(pixel_values=(pixels - mean) / std, output_hidden_states=True).hidden_states[-2]
    assert relative(rows(found, PICTURES), wanted) < 2e-5


@pytest.mark.parametrize(("form", "beside"), [("original", "."), ("comfyui", "clip_vision"), ("comfyui", ".")])
def test_an_image_processor_beside_says_how_pictures_are_prepared(whole: Path, tmp_path: Path, form: str, beside: str):
    path = FORMS[form](whole, tmp_path / "model")
    shutil.copytree(whole / "image_processor", tmp_path / "model" / beside / "image_processor")
    found = open_checkpoint(path)
    assert found.images == open_checkpoint(whole).images and found.images.preparation != SQUASHED
    model = CLIPVisionModel.from_pretrained(whole / "image_encoder").eval()
    pixels = CLIPImageProcessorPil.from_pretrained(whole / "image_processor")(
        images=list(PICTURES), return_tensors="pt"
    )
    with torch.no_grad():
        wanted = model(**pixels, output_hidden_states=True).hidden_states[-2]
    assert relative(rows(found, PICTURES), wanted) < 2e-5


def latents(path: Path, last: bool) -> Tensor:
    shape = VideoShape(num_frames=9, height=32, width=48)
    given = {0: PICTURES[:1]} | ({2: np.repeat(PICTURES[1:], 4, axis=0)} if last else {})
    stages = Stages(open_checkpoint(path), dtype=torch.float32, device=torch.device("cpu"))
    clip = Clip(prompt="a red ball", negative="blue", shape=shape, seed=7, known=encode_given(stages, shape, given))
    settings = Settings(steps=3, shift=3.0, sigmas="release", guidance=(4.0,))
    return sample_latents(stages, [clip], settings)[0]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", ["whole", "flf2v"])
def test_every_form_gives_the_same_latents(model: str, form: str, tmp_path: Path, request: pytest.FixtureRequest):
    folder = Path(shutil.copytree(request.getfixturevalue(model), tmp_path / "folder"))
    shutil.rmtree(folder / "image_processor")
    last = model == "flf2v"
    # Weights that begin at other places in their files are summed in another order.
    assert relative(latents(FORMS[form](folder, tmp_path / "model"), last), latents(folder, last)) < 1e-5


@pytest.mark.parametrize("form", FORMS)
def test_what_was_taken_is_said_and_listed(whole: Path, tmp_path: Path, form: str):
    path = FORMS[form](whole, tmp_path / "model")
    file = next(file for file in (tmp_path / "model").rglob("*clip*") if file.is_file())
    assert f"image encoder: {file}" in open_checkpoint(path).took
    about = json.loads(run("info", path, "--json").stdout)
    theirs = transformers_names(whole)
    assert about["components"]["image_encoder"]["parameters"] == sum(tensor.numel() for tensor in theirs.values())
    assert f"took         image encoder: {file}" in run("info", path).stdout
    file.unlink()
    about = json.loads(run("info", path, "--json").stdout)
    assert about["missing"] == "its image encoder is not beside it; name it with --image-encoder."


def test_a_file_alone_is_an_image_encoder_and_nothing_else(whole: Path, tmp_path: Path):
    """The text tower of the release's file has names that Wan's own text encoder has too."""
    file = tmp_path / CLIP
    torch.save(release_names(whole), file)
    assert set(contents(file)) == {"image_encoder"}
    said = run("info", file).stdout
    assert "image_encoder" in said and "textual" not in said and "and this one as --image-encoder" in said


def test_places_where_people_keep_them(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = released(whole, tmp_path / "model")
    (model / CLIP).unlink()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    snapshot = tmp_path / "cache" / "models--Comfy-Org--Wan" / "snapshots" / "abc"
    for file in (
        snapshot / "my_clip.safetensors",
        Path("weights") / "my_clip.safetensors",
        snapshot / "split_files" / "clip_vision" / "clip_vision_h.safetensors",
        Path("weights") / "clip_vision" / "clip_vision_h.safetensors",
        model / "clip_vision" / "clip_h.safetensors",
    ):
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(comfy_names(whole), file)
        assert f"image encoder: {file}" in open_checkpoint(model).took


@pytest.mark.parametrize("write", [release_names, comfy_names, transformers_names])
def test_a_named_file_is_taken(whole: Path, tmp_path: Path, write: Callable[[Path], dict[str, Tensor]]):
    model = released(whole, tmp_path / "model")
    wanted = rows(open_checkpoint(model), PICTURES)
    file = tmp_path / "named.safetensors"
    save_file({name: tensor.clone() for name, tensor in write(whole).items()}, file)
    (model / CLIP).unlink()
    found = open_checkpoint(model, Named(image_encoder=file))
    assert found.parts["image_encoder"].where == file and not any("image" in line for line in found.took)
    assert relative(rows(found, PICTURES), wanted) < 1e-6


def test_the_file_of_a_diffusers_folder_comes_with_what_is_said_there(whole: Path, tmp_path: Path):
    model = released(whole, tmp_path / "model")
    config = json.loads((whole / "image_encoder" / "config.json").read_text())
    folder = Path(shutil.copytree(whole, tmp_path / "folder"))
    (folder / "image_encoder" / "config.json").write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    found = open_checkpoint(model, Named(image_encoder=folder / "image_encoder" / "model.safetensors"))
    assert found.images == open_checkpoint(folder).images
    assert found.images is not None and found.images.hidden_act == "quick_gelu"


def test_the_command_makes_the_video_of_the_folder(bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import imageio.v3 as iio

    monkeypatch.chdir(tmp_path)
    iio.imwrite("p.png", PICTURES[0])
    model = released(bare, tmp_path / "model")
    shutil.move(model / CLIP, tmp_path / "elsewhere.pth")
    options = ("--image", "p.png", "--frames", "5", "--steps", "2", "--seed", "1", "--shift", "3", "--guidance", "3")
    same = ("sample", "a cat", *options, "--dtype", "float32", "--save-latents")
    run(*same, "a.safetensors", "-o", "a.mp4", "-m", bare)
    run(*same, "b.safetensors", "-o", "b.mp4", "-m", model, "--image-encoder", "elsewhere.pth")
    ours, theirs = (load_file(f"{name}.safetensors")["latents"] for name in "ba")
    assert relative(ours, theirs) < 1e-5
    said = run(*same, "c.safetensors", "-o", "c.mp4", "-m", model, code=1).stderr
    assert "its image encoder is not beside it; name it with --image-encoder." in " ".join(said.split())


# What is refused.


def clip_text(folder: Path) -> dict[str, Tensor]:
    return {
        "text_model.embeddings.token_embedding.weight": torch.ones(9, 6),
        "text_model.final_layer_norm.weight": torch.ones(6),
    }


def wider(folder: Path) -> dict[str, Tensor]:
    """An encoder of 40 instead of 20."""
    found = transformers_names(folder)
    return {
        name: tensor.repeat_interleave(2, dim=tensor.ndim - 1 if "position" in name else 0)
        for name, tensor in found.items()
    }


def cut(word: str) -> Callable[[Path], dict[str, Tensor]]:
    return lambda folder: {name: tensor for name, tensor in release_names(folder).items() if word not in name}


def odd(folder: Path) -> dict[str, Tensor]:
    found = release_names(folder)
    found["visual.transformer.1.attn.to_qkv.bias"] = torch.ones(59)
    return found


def stacked(folder: Path) -> dict[str, Tensor]:
    found = release_names(folder)
    return found | {"visual.pos_embedding": found["visual.pos_embedding"].repeat(2, 1, 1)}


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (clip_text, "must hold an image encoder, and holds the text encoder of a CLIP."),
        (wider, "does not fit this transformer: its rows are 40 wide, not 20."),
        (lambda folder: {"a.weight": torch.ones(2)}, "must hold an image encoder, and holds none that is known."),
        (lambda folder: original_vae(folder), "must hold an image encoder, and holds a vae."),
        (odd, "tensor 'visual.transformer.1.attn.to_qkv.bias' is [59]; its first axis must be a multiple of 3."),
        (stacked, "tensor 'visual.pos_embedding' is [2, 5, 20]; it must begin with an axis of length 1."),
    ],
)
def test_files_that_are_no_image_encoder_of_this_model(
    whole: Path, tmp_path: Path, write: Callable[[Path], dict[str, Tensor]], message: str
):
    model, file = released(whole, tmp_path / "model"), tmp_path / "clip.safetensors"
    save_file({name: tensor.contiguous().clone() for name, tensor in write(whole).items()}, file)
    with pytest.raises(CheckpointError) as raised:
        open_checkpoint(model, Named(image_encoder=file))
    assert str(raised.value) == f"{file}: {message}"
    (model / CLIP).unlink()  # found beside, it is named as what was tried
    shutil.move(file, model / "clip.safetensors")
    with pytest.raises(CheckpointError, match=r"its image encoder is not beside it .*clip\.safetensors: "):
        open_checkpoint(model)


def test_an_encoder_of_too_few_rows_for_two_pictures(flf2v: Path, tmp_path: Path):
    model = released(flf2v, tmp_path / "model")
    found = release_names(flf2v)
    torch.save(found | {"visual.pos_embedding": torch.ones(1, 10, 20)}, model / CLIP)
    with pytest.raises(CheckpointError, match="two pictures become 20 rows, not 10"):
        open_checkpoint(model)


def test_a_tensor_that_is_not_there_or_one_too_many(whole: Path, tmp_path: Path):
    model = released(whole, tmp_path / "model")
    torch.save(cut("1.attn.to_qkv.bias")(whole), model / CLIP)
    with pytest.raises(CheckpointError, match=r"1 tensor is missing: 'transformer\.1\.attn\.to_qkv\.bias'"):
        rows(open_checkpoint(model), PICTURES)
    torch.save(release_names(whole) | {"visual.extra": torch.ones(1)}, model / CLIP)
    with pytest.raises(CheckpointError, match="tensor 'extra': 0 rows of the original layout match it"):
        open_checkpoint(model)


class Mischief:
    """Something that is not a tensor and whose unpickling would leave a mark."""

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return Path.mkdir, (Path("was-run"),)


def test_no_code_of_a_pickle_is_run(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    model = released(whole, tmp_path / "model")
    torch.save(release_names(whole) | {"visual.x": Mischief()}, model / CLIP)
    with pytest.raises(CheckpointError, match="is not a file of tensors alone"):
        open_checkpoint(model, Named(image_encoder=model / CLIP))
    assert not Path("was-run").exists()


def test_a_model_without_use_for_one(whole: Path, tmp_path: Path):
    model = released(whole, tmp_path / "model")
    blind = {name: tensor for name, tensor in original_dit(whole).items() if "img" not in name}
    save_file(blind, model / "diffusion_pytorch_model.safetensors")
    assert open_checkpoint(model).images is None
    with pytest.raises(CheckpointError, match=r"--image-encoder .*: the model .* takes no image encoder"):
        open_checkpoint(model, Named(image_encoder=model / CLIP))
    with pytest.raises(CheckpointError, match=r"holds an image encoder and no transformer; pass .* as --image-encoder"):
        open_checkpoint(model / CLIP)


# Written in other layouts.


@pytest.mark.parametrize("layout", ["original", "comfyui"])
@pytest.mark.parametrize("model", ["whole", "flf2v"])
def test_there_and_back_bit_for_bit(model: str, layout: str, tmp_path: Path, request: pytest.FixtureRequest):
    source: Path = request.getfixturevalue(model)
    there = made(source, tmp_path / "there", layout)
    back = made(there.out / there.model, tmp_path / "back", "diffusers")
    wanted = {
        name.replace("image_encoder/", "image_encoder/vision_model."): each for name, each in stored(source).items()
    }
    assert_equal(stored(back.out), wanted)
    found, before = open_checkpoint(back.out), open_checkpoint(source)
    assert found.images is not None and before.images is not None
    assert (found.images.hidden_size, found.images.rows) == (before.images.hidden_size, before.images.rows)
    assert CLIPVisionModel.from_pretrained(back.out / "image_encoder").config.hidden_act == "gelu"


def test_a_release_and_comfyuis_files_become_each_other(whole: Path, tmp_path: Path):
    model = released(whole, tmp_path / "model")
    comfy = made(model, tmp_path / "comfy", "comfyui")
    (file,) = (comfy.out / "clip_vision").iterdir()
    unused = ("position_ids", "visual_projection")
    assert_equal(
        load_file(file), {n: each for n, each in comfy_names(whole).items() if not any(u in n for u in unused)}
    )
    again = made(comfy.out / comfy.model, tmp_path / "again", "original")
    (file,) = again.out.glob("models_clip*")
    tower = {n: each for n, each in release_names(whole).items() if n.startswith("visual.") and n != "visual.head"}
    assert_equal(load_file(file), tower)
    assert any("image encoder: written alone" in note for note in again.notes)


def test_pieces_of_two_dtypes_are_float32_in_one(whole: Path, tmp_path: Path):
    source = Path(shutil.copytree(whole, tmp_path / "in"))
    file = source / "image_encoder" / "model.safetensors"
    found = load_file(file)
    name = "encoder.layers.0.self_attn.q_proj.weight"
    save_file(found | {name: found[name].bfloat16()}, file, {"format": "pt"})
    (file,) = made(source, tmp_path / "there", "original").out.glob("models_clip*")
    fused = load_file(file)["visual.transformer.0.attn.to_qkv.weight"]
    assert fused.dtype == torch.float32 and torch.equal(fused[:20], found[name].bfloat16().float())


def test_what_shapes_do_not_tell_is_refused(whole: Path, tmp_path: Path):
    source = Path(shutil.copytree(whole, tmp_path / "in"))
    config = json.loads((source / "image_encoder" / "config.json").read_text())
    (source / "image_encoder" / "config.json").write_text(json.dumps(config | {"hidden_act": "quick_gelu"}))
    for layout in ("original", "comfyui"):
        with pytest.raises(
            CheckpointError, match="hidden_act is 'quick_gelu'; only a diffusers folder has room for that"
        ):
            made(source, tmp_path / layout, layout)
