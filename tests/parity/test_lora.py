"""LoRAs against diffusers and peft, in float32: one that dvgen trained does the same there, and one of theirs here."""

from pathlib import Path

import pytest
import torch

from dit_video.checkpoints.lora import FILE, read_lora, save_lora
from dit_video.clip import Clip, Settings
from dit_video.denoise import sample_latents
from dit_video.models import open_checkpoint
from dit_video.models.wan.layouts import DIFFUSERS
from dit_video.shapes import VideoShape
from dit_video.stages import Stages
from dit_video.train import dit
from dit_video.train.config import DiTTrainConfig, LoopConfig, OptimConfig, PhaseConfig
from tests.parity.test_wan_dit import difference, padded
from tests.tiny import tiny_experts_folder, tiny_ti2v_folder, tiny_wan21_folder

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

WRITERS = {"wan21": tiny_wan21_folder, "ti2v": tiny_ti2v_folder}
CPU = torch.device("cpu")
PROMPT, SEED = "a red ball moving right", 3


@pytest.fixture(scope="module", params=WRITERS)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny model, and a LoRA of it with an alpha of its own that dvgen trained."""
    folder = tmp_path_factory.mktemp(request.param)
    model = WRITERS[request.param](folder / "model")
    patch = pytest.MonkeyPatch()
    patch.setattr(dit, "draw_sheet", lambda *_: None)
    config = DiTTrainConfig(
        out=str(folder / "run"),
        autoencoder=str(model),
        init_from=str(model),
        lora=4,
        lora_alpha=6.0,
        loop=LoopConfig(steps=20, warmup=1, bf16=False, ema=0.5, threads=1, sheet_minutes=1e9),
        optim=OptimConfig(adam_lr=1e-2),
        phase=(PhaseConfig(images=0.5, short_side=(32, 48), frames=(5, 9)),),
        shard_clips=12,
        window=2,
        pack_tokens=96,
        known_share=0.0,
    )
    dit.train(config, resume=False, report=lambda _: None)
    patch.undo()
    return model, folder / "run" / "lora" / FILE


def pipeline(model: Path) -> "diffusers.WanPipeline":
    found = diffusers.WanPipeline.from_pretrained(model, torch_dtype=torch.float32)
    found.set_progress_bar_config(disable=True)
    return found


@torch.no_grad()
def outputs(
    model: Path, theirs: torch.nn.Module, *loras: tuple[Path, float], which: str = "transformer"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The velocity of the same noise by our transformer with LoRAs merged, and by theirs."""
    checkpoint = open_checkpoint(model).with_loras([read_lora(file, strength) for file, strength in loras])
    ours = checkpoint.load_dit(which, dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(ours.config.in_dim, 3, 4, 6, generator=generator)
    embed = torch.randn(7, ours.config.text_dim, generator=generator)
    (found,) = ours([latent], [torch.full((3,), 700.0)], ours.encode_text([embed]), [0])
    return found, theirs(latent[None], torch.tensor([700.0]), padded(embed)).sample[0]


def test_the_transformer_does_the_same_in_diffusers(trained: tuple[Path, Path]) -> None:
    model, lora = trained
    theirs = pipeline(model)
    base, same = outputs(model, theirs.transformer)
    assert difference(base, same) < 3e-5
    theirs.load_lora_weights(lora)
    found, wanted = outputs(model, theirs.transformer, (lora, 1.0))
    assert difference(found, wanted) < 3e-5
    assert difference(base, wanted) > 5e-2  # it was trained enough to tell

    theirs.set_adapters(theirs.get_active_adapters(), 0.3)
    found, wanted = outputs(model, theirs.transformer, (lora, 0.3))
    assert difference(found, wanted) < 3e-5


def test_latents_are_those_of_diffusers(trained: tuple[Path, Path]) -> None:
    model, lora = trained
    theirs = pipeline(model)
    theirs.load_lora_weights(lora.parent)  # finds the file by its usual name
    shape = VideoShape(num_frames=5, height=32, width=64)
    wanted = theirs(
        prompt=PROMPT, negative_prompt="", height=shape.height, width=shape.width, num_frames=shape.num_frames,
        num_inference_steps=4, guidance_scale=3.0, generator=torch.Generator("cpu").manual_seed(SEED),
        output_type="latent",
    ).frames[0]  # fmt: skip
    checkpoint = open_checkpoint(model).with_loras([read_lora(lora)])
    settings = Settings(steps=4, sigmas="diffusers", shift=checkpoint.defaults.shift, guidance=(3.0,))
    stages = Stages(checkpoint, dtype=torch.float32, device=CPU)
    found = sample_latents(stages, [Clip(prompt=PROMPT, shape=shape, seed=SEED)], settings)[0]
    assert difference(found, wanted) < 1e-4


@pytest.mark.parametrize("options", [{}, {"lora_alpha": 6}, {"lora_alpha": 6, "use_rslora": True}])
def test_a_lora_of_theirs_does_the_same_here(tmp_path: Path, options: dict) -> None:
    """Also with peft's configuration in the file, ranks and alphas that differ, and layers that we do not train."""
    model = tiny_wan21_folder(tmp_path / "model")
    theirs = pipeline(model)
    targets = ["attn1.to_q", "attn2.to_out.0", "ffn.net.2", "proj_out", "time_proj"]
    torch.manual_seed(1)
    patterns = {"rank_pattern": {"attn2.to_out.0": 5}, "alpha_pattern": {"ffn.net.2": 12}}
    config = peft.LoraConfig(r=3, target_modules=targets, init_lora_weights=False, **patterns, **options)
    theirs.transformer.add_adapter(config)
    state = peft.get_peft_model_state_dict(theirs.transformer)
    diffusers.WanPipeline.save_lora_weights(
        tmp_path / "lora",
        transformer_lora_layers=state,
        transformer_lora_adapter_metadata=theirs.transformer.peft_config["default"].to_dict(),
    )
    found, wanted = outputs(model, theirs.transformer, (tmp_path / "lora" / FILE, 1.0))
    assert difference(found, wanted) < 3e-5
    assert difference(outputs(model, theirs.transformer)[0], wanted) > 5e-2


def test_two_at_once_and_both_experts(tmp_path: Path) -> None:
    model = tiny_experts_folder(tmp_path / "model")
    generator = torch.Generator().manual_seed(2)
    files = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    for rank, file in enumerate(files, start=2):
        down, up = (torch.randn(size, generator=generator) for size in ((rank, 32), (32, rank)))
        save_lora({"blocks.1.cross_attn.v.weight": (down, 0.3 * up)}, file, DIFFUSERS)
    theirs = pipeline(model)
    for which in ("transformer", "transformer_2"):
        for name, file in zip("ab", files, strict=True):
            theirs.load_lora_weights(file, adapter_name=name, load_into_transformer_2=which == "transformer_2")
        module = getattr(theirs, which)
        module.set_adapters(["a", "b"], [0.5, -0.25])
        found, wanted = outputs(model, module, (files[0], 0.5), (files[1], -0.25), which=which)
        assert difference(found, wanted) < 3e-5
        assert difference(outputs(model, module, which=which)[0], wanted) > 1e-2
