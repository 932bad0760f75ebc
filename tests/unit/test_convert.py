"""Models in other layouts: round trips bit for bit, what is refused, and what is lost."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dit_video.checkpoints import write
from dit_video.checkpoints.files import read_headers
from dit_video.checkpoints.stored import read_tensor
from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.errors import CheckpointError
from dit_video.models import open_checkpoint
from dit_video.models.wan import convert as converting
from dit_video.models.wan.convert import Conversion, convert
from dit_video.models.wan.inferred import WAN_2_1_VAE
from dit_video.models.wan.vae_layouts import WAN_2_2_VAE
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from tests.tiny import tiny_experts_folder, tiny_i2v_folder, tiny_ti2v_folder, tiny_wan21_folder
from tests.unit.test_stored import write_gguf
from tests.unit.test_wan_release import (
    assert_same,
    folder,
    narrow_heads,
    original_dit,
    original_folder,
    original_vae,
    tensors,
    write_tokenizer,
)

__all__ = ["folder", "narrow_heads"]  # fixtures
STEM = "diffusion_pytorch_model"
LAYOUTS = ("original", "comfyui")


def change(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def of_a_release(path: Path) -> Path:
    """A tiny folder with the latent constants of the release, which no shape tells."""
    change(path / "vae" / "config.json", latents_mean=WAN_2_1_VAE.latents_mean, latents_std=WAN_2_1_VAE.latents_std)
    return path


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan 2.1 in bfloat16, but for what the release keeps in float32, and a VAE in float16."""
    path = of_a_release(tiny_wan21_folder(tmp_path_factory.mktemp("mixed") / "wan", dtype=torch.bfloat16))
    for part, kept, dtype in (
        ("transformer", ("norm", "scale_shift_table", "time_"), torch.float32),
        ("vae", ("",), torch.float16),
    ):
        file = path / part / f"{STEM}.safetensors"
        found = {n: t.to(dtype) if any(word in n for word in kept) else t for n, t in load_file(file).items()}
        save_file(found, file, {"format": "pt"})
    return path


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return of_a_release(tiny_experts_folder(tmp_path_factory.mktemp("experts") / "wan22"))


def made(source: Path, out: Path, layout: str, **options: Any) -> Conversion:
    conversion = convert(open_checkpoint(source), out, layout, **options)
    conversion.write()
    return conversion


def stored(path: Path) -> dict[str, Tensor]:
    """All tensors of a diffusers folder, shards or not, by part and name."""
    found = {}
    for place in sorted(path.iterdir()):
        for stem in (STEM, "model"):
            if any(place.glob(f"{stem}*.safetensors")):
                headers = read_headers(place, stem)
                found |= {f"{place.name}/{name}": read_tensor(info) for name, info in headers.items()}
    return found


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Names, dtypes, shapes and bits."""
    assert set(found) == set(wanted) and found
    for name, tensor in wanted.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape), name
        assert torch.equal(found[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8)), name


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("form", ["folder", "mixed", "experts"])
def test_there_and_back_bit_for_bit(layout: str, form: str, tmp_path: Path, request: pytest.FixtureRequest):
    source: Path = request.getfixturevalue(form)
    there = made(source, tmp_path / "there", layout)
    back = made(there.out / there.model, tmp_path / "back", "diffusers")
    assert_equal(stored(back.out), stored(source))
    assert not there.dequantised and not back.dequantised
    found, wanted = open_checkpoint(back.out), open_checkpoint(source)
    assert (found.dit, found.vae, found.boundary) == (
        wanted.dit,
        wanted.vae,
        wanted.boundary,
    )
    assert (found.expand_timesteps, found.known_frames) == (wanted.expand_timesteps, wanted.known_frames)


@pytest.mark.parametrize("layout", ["diffusers", *LAYOUTS])
def test_what_is_written_opens_and_gives_the_same_latents(layout: str, experts: Path, tmp_path: Path):
    there = made(experts, tmp_path / "there", layout)
    settings = Settings(steps=3, shift=3.0, sigmas="release", guidance=(4.0, 3.0))
    clip = Clip(prompt="a red ball", negative="blue", shape=VideoShape(num_frames=5, height=32, width=32), seed=1)
    ours, theirs = (
        sample_latents(Stages(open_checkpoint(path), dtype=torch.float32, device=torch.device("cpu")), [clip], settings)
        for path in (there.out / there.model, experts)
    )
    # Weights that are maps of files lie at other distances from a cache line, and products are summed in another order.
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-5)


def test_the_files_of_each_layout(folder: Path, experts: Path, tmp_path: Path):
    def files(path: Path, pattern: str = "*.safetensors") -> list[str]:
        return sorted(file.relative_to(path).as_posix() for file in path.rglob(pattern))

    there = made(folder, tmp_path / "a", "original")
    rest = ["Wan2.1_VAE.safetensors", "models_t5_umt5-xxl-enc.safetensors"]
    assert files(there.out) == [rest[0], f"{STEM}.safetensors", rest[1]] and there.model == "."
    assert files(there.out, "*.json")[0] == "config.json" and (there.out / "google/umt5-xxl/tokenizer.json").is_file()
    there = made(experts, tmp_path / "b", "original")
    assert files(there.out) == [
        *(rest[0], f"high_noise_model/{STEM}.safetensors", f"low_noise_model/{STEM}.safetensors", rest[1])
    ]
    there = made(experts, tmp_path / "a_high_noise_b", "comfyui")
    assert files(there.out) == [
        "diffusion_models/a_high-noise_b_high_noise.safetensors",
        "diffusion_models/a_high-noise_b_low_noise.safetensors",
        "text_encoders/a_high-noise_b_umt5.safetensors",
        "vae/a_high-noise_b_vae.safetensors",
    ]
    assert_same(open_checkpoint(there.out / there.model), experts)


def test_the_release_names_its_tensors_and_its_configuration_as_it_does(folder: Path, tmp_path: Path):
    there = made(folder, tmp_path / "there", "original").out
    assert_equal(load_file(there / f"{STEM}.safetensors"), original_dit(folder))
    assert_equal(load_file(there / "Wan2.1_VAE.safetensors"), original_vae(folder))
    text = load_file(there / "models_t5_umt5-xxl-enc.safetensors")
    assert {"token_embedding.weight", "blocks.1.attn.q.weight", "norm.weight"} <= set(text)
    fields = json.loads((there / "config.json").read_text())
    assert {"model_type": "t2v", "dim": 32, "num_heads": 2, "num_layers": 2, "text_len": 512}.items() <= fields.items()
    # norm2 and norm3 are swapped between the two namings.
    mine, theirs = load_file(there / f"{STEM}.safetensors"), tensors(folder, "transformer")
    assert torch.equal(mine["blocks.0.norm3.weight"], theirs["blocks.0.norm2.weight"])


def test_shards_and_their_index(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(converting, "SHARD_BYTES", 60_000)
    for layout, place in (("diffusers", "transformer"), ("original", ".")):
        there = made(folder, tmp_path / layout, layout).out
        assert len(list((there / place).glob(f"{STEM}-*-of-*.safetensors"))) > 2
        assert (there / place / f"{STEM}.safetensors.index.json").is_file()
    assert_equal(stored(tmp_path / "diffusers"), stored(folder))
    assert_equal(stored(made(tmp_path / "original", tmp_path / "back", "diffusers").out), stored(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_another_dtype_is_that_of_every_part(mixed: Path, tmp_path: Path, dtype: torch.dtype):
    there = made(mixed, tmp_path / "there", "diffusers", dtype=str(dtype).removeprefix("torch."))
    assert_equal(stored(there.out), {name: tensor.to(dtype) for name, tensor in stored(mixed).items()})
    config = json.loads((there.out / "text_encoder" / "config.json").read_text())
    assert config["dtype"] == str(dtype).removeprefix("torch.")


def test_a_folder_keeps_its_small_files_and_says_what_it_leaves(folder: Path, tmp_path: Path):
    source = Path(shutil.copytree(folder, tmp_path / "in"))
    (source / "README.md").write_text("hello")
    ours = {"steps": 3, "size": "64x32", "knows": {"objects": ["ball"]}, "known_frames": "any"}
    (source / "dvgen.json").write_text(json.dumps(ours))
    there = made(source, tmp_path / "there", "diffusers")
    assert there.lost == ("README.md: no part of the model, and left behind",)
    for file in (file for file in source.rglob("*.json")):
        assert (there.out / file.relative_to(source)).read_bytes() == file.read_bytes()
    lost = convert(open_checkpoint(source), tmp_path / "x", "original").lost
    assert lost[0] == (
        "defaults (width, height, steps, shift), known words, known frames (any): only a diffusers folder has room for "
        "them"
    )


def test_defaults_that_the_name_of_a_folder_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A tiny I2V stands for the release's, which is called 480P or 720P and nothing else tells which."""
    source = tiny_i2v_folder(tmp_path / "Wan2.1-I2V-14B-720P")
    from dit_video.models.wan import pipeline

    found = open_checkpoint(source)
    for name in ("I2V-14B-480P", "I2V-14B-720P"):
        release = pipeline.VARIANTS[name]
        tiny = converting.replace(release, dit=found.dit, vae=found.vae)
        monkeypatch.setitem(pipeline.VARIANTS, name, tiny)
    found = open_checkpoint(source)
    assert (found.variant, found.defaults.width) == ("I2V-14B-720P", 1280)
    there = made(source, tmp_path / "mine", "diffusers")
    assert json.loads((there.out / "dvgen.json").read_text()) == {"size": "1280x720"}
    assert open_checkpoint(there.out).defaults == found.defaults
    again = made(source, tmp_path / "mine-720P", "diffusers")
    assert not (again.out / "dvgen.json").exists() and open_checkpoint(again.out).defaults == found.defaults


def test_quantised_weights_become_bfloat16(folder: Path, tmp_path: Path):
    source = original_folder(folder, tmp_path / "wan")
    weights = load_file(source / f"{STEM}.safetensors")
    name, scale = "blocks.0.ffn.0.weight", torch.tensor([0.25])
    eight = (weights[name] / scale).to(torch.float8_e4m3fn)
    scales = {name.replace("weight", "scale_weight"): scale, "scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    save_file(weights | {name: eight} | scales, source / f"{STEM}.safetensors")
    there = made(source, tmp_path / "there", "comfyui")
    assert there.dequantised == {"transformer": ("float8_e4m3fn",)}
    wanted = weights | {name: (eight.float() * scale).to(torch.bfloat16)}
    assert_equal(load_file(there.out / there.model), wanted)


def test_gguf(folder: Path, tmp_path: Path):
    (tmp_path / "in").mkdir()
    weights = original_dit(folder)
    quantised = {name: "Q8_0" for name, each in weights.items() if each.ndim == 2 and each.shape[-1] % 32 == 0}
    import gguf

    kinds = {name: gguf.GGMLQuantizationType[kind] for name, kind in quantised.items()}
    file = write_gguf(tmp_path / "in" / "wan.gguf", weights, kinds)
    save_file(original_vae(folder), tmp_path / "in" / "vae.safetensors")
    shutil.copy(folder / "text_encoder" / "model.safetensors", tmp_path / "in" / "umt5.safetensors")
    write_tokenizer(folder, tmp_path / "in")
    there = made(file, tmp_path / "there", "diffusers")
    assert there.dequantised == {"transformer": ("Q8_0",)} and quantised
    found, wanted = stored(there.out), stored(folder)
    for name, tensor in wanted.items():
        ours = converting.DIFFUSERS.to_ours(name.removeprefix("transformer/")) if name.startswith("trans") else name
        if ours in quantised:
            assert found[name].dtype == torch.bfloat16
            torch.testing.assert_close(found[name].float(), tensor, rtol=0.02, atol=0.02)
        else:
            assert_equal({name: found[name]}, {name: tensor})


def with_sentencepiece(folder: Path, out: Path) -> Path:
    """The folder with a tokenizer that was made from a sentencepiece file, as UMT5's is."""
    path = Path(shutil.copytree(folder, out))
    (path / "words.txt").write_text("a red ball moving right\nthe cat\nblue star on the left\n" * 20)
    sentencepiece.SentencePieceTrainer.train(
        input=str(path / "words.txt"), model_prefix=str(path / "spiece"), vocab_size=40, hard_vocab_limit=False,
        pad_id=0, eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    shutil.rmtree(path / "tokenizer")
    (path / "tokenizer").mkdir()
    shutil.move(path / "spiece.model", path / "tokenizer" / "spiece.model")
    return path


def test_the_tokenizer_goes_with_comfyuis_text_encoder(folder: Path, tmp_path: Path):
    source = with_sentencepiece(folder, tmp_path / "in")
    spiece = (source / "tokenizer" / "spiece.model").read_bytes()
    there = made(source, tmp_path / "there", "comfyui")
    (file,) = (there.out / "text_encoders").iterdir()
    assert bytes(load_file(file)["spiece_model"].tolist()) == spiece
    assert load_file(file)["spiece_model"].dtype == torch.uint8
    prompt = "a red ball, the blue cat"
    wanted = open_checkpoint(source).load_text(dtype=torch.float32).token_ids(prompt)
    for layout, place in (("diffusers", "tokenizer"), ("original", "google/umt5-xxl")):
        back = made(there.out / there.model, tmp_path / layout, layout).out
        assert (back / place / "spiece.model").read_bytes() == spiece and (back / place / "tokenizer.json").is_file()
        assert open_checkpoint(back).load_text(dtype=torch.float32).token_ids(prompt) == wanted
    assert not made(folder, tmp_path / "no", "comfyui").out.joinpath("text_encoders", "spiece.model").exists()
    assert (tmp_path / "no" / "text_encoders" / "tokenizer.json").is_file()


def test_an_image_encoder_goes_along(tmp_path: Path):
    source = of_a_release(tiny_i2v_folder(tmp_path / "in"))
    there = made(source, tmp_path / "there", "diffusers")
    assert_equal(stored(there.out), stored(source))
    assert open_checkpoint(there.out).images == open_checkpoint(source).images
    there = made(source, tmp_path / "comfy", "comfyui")
    assert "the preparation of pictures: only a diffusers folder has room" in there.lost[0].split(", ")[-1]
    (file,) = (there.out / "clip_vision").iterdir()
    ours = {f"image_encoder/{name.removeprefix('vision_model.')}": each for name, each in load_file(file).items()}
    assert_equal(ours, {name: each for name, each in stored(source).items() if name.startswith("image_encoder/")})


# What is refused.


def damage(**config: Any) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        change(path / "transformer" / "config.json", **config)

    return apply


def lose(file: str, name: str) -> Callable[[Path], None]:
    def apply(path: Path) -> None:
        found = load_file(path / file)
        del found[name]
        save_file(found, path / file)

    return apply


@pytest.mark.parametrize(
    ("layout", "apply", "message"),
    [
        ("comfyui", damage(eps=1e-5), "eps is 1e-05; the comfyui layout has no room for it and means 1e-06"),
        (
            "original",
            lambda path: change(path / "text_encoder" / "config.json", relative_attention_max_distance=64),
            "relative_attention_max_distance is 64; only a diffusers folder has room for that; elsewhere it means 128",
        ),
        (
            "original",
            lambda path: change(path / "model_index.json", expand_timesteps=True),
            "noise levels per latent frame go with a VAE of the 2.2 form",
        ),
        (
            "diffusers",
            lose(f"transformer/{STEM}.safetensors", "proj_out.bias"),
            "transformer: 1 tensor is missing: 'proj_out.bias'",
        ),
        (
            "original",
            lose("text_encoder/model.safetensors", "encoder.block.1.layer.1.layer_norm.weight"),
            r"text_encoder: 1 tensor is missing: 'encoder.block.1.layer.1.layer_norm.weight'",
        ),
        ("original", lose(f"vae/{STEM}.safetensors", "quant_conv.bias"), "vae: 1 tensor is missing: 'quant_conv.bias'"),
    ],
)
def test_what_cannot_be_written_is_refused(
    folder: Path, tmp_path: Path, layout: str, apply: Callable[[Path], None], message: str
):
    source = Path(shutil.copytree(folder, tmp_path / "in"))
    apply(source)
    with pytest.raises(CheckpointError, match=message):
        convert(open_checkpoint(source), tmp_path / "out", layout)


def test_another_boundary_of_experts(experts: Path, tmp_path: Path):
    source = Path(shutil.copytree(experts, tmp_path / "in"))
    change(source / "model_index.json", boundary_ratio=0.5)
    with pytest.raises(
        CheckpointError, match=r"experts is 0\.5; the comfyui layout has no room for it and means 0\.875"
    ):
        convert(open_checkpoint(source), tmp_path / "out", "comfyui")


def test_an_autoencoder_with_constants_of_its_own(tmp_path: Path):
    source = tiny_ti2v_folder(tmp_path / "in")
    assert open_checkpoint(source).vae.z_dim != WAN_2_2_VAE.z_dim
    for layout in LAYOUTS:
        there = made(source, tmp_path / layout, layout)
        assert any("constants of its own" in note for note in there.notes)
        assert (there.out / "vae" / "config.json").is_file()
        assert_same(open_checkpoint(there.out / there.model), source)
        assert_equal(stored(made(there.out / there.model, tmp_path / f"{layout}2", "diffusers").out), stored(source))


def test_a_folder_that_holds_the_model_itself(folder: Path, tmp_path: Path):
    source = Path(shutil.copytree(folder, tmp_path / "in"))
    for out in (source, tmp_path):
        with pytest.raises(CheckpointError, match=r"holds .*, which is to be converted; choose another folder"):
            convert(open_checkpoint(source), out, "diffusers")


def test_a_disk_that_is_too_small(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    conversion = convert(open_checkpoint(folder), tmp_path / "out", "original")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    with pytest.raises(
        CheckpointError, match=r"out: it takes \d\.\d MB, and 0\.0 MB are free there; choose a folder on"
    ):
        conversion.write()
    assert list(tmp_path.iterdir()) == []


def test_nothing_stays_of_what_fails(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    conversion = convert(open_checkpoint(folder), tmp_path / "out", "comfyui")

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "vae" and done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversion.write(stop)
    assert list(tmp_path.iterdir()) == []

    def broken(info: Any) -> Tensor:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(write, "read_tensor", broken)
    with pytest.raises(CheckpointError, match=r"cannot be written \(Input/output error\)"):
        conversion.write()
    assert list(tmp_path.iterdir()) == []


def test_one_tensor_is_in_memory_at_a_time(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import weakref

    alive: list[weakref.ref[Tensor]] = []
    most = 0

    def read(info: Any) -> Tensor:
        nonlocal most
        tensor = read_tensor(info)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(each() is not None for each in alive))
        return tensor

    monkeypatch.setattr(write, "read_tensor", read)
    made(folder, tmp_path / "out", "original", dtype="bfloat16")
    assert len(alive) > 100 and most == 1
