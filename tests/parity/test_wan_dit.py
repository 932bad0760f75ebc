"""Our Wan DiT against diffusers' on the same tiny random weights."""

from dataclasses import replace

import pytest
import torch

from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.layouts import DIFFUSERS, config_from_diffusers, config_to_diffusers
from dit_video.nn.activation import GELU

diffusers = pytest.importorskip("diffusers")

# The public models' shape in small (head width 128, Wan 2.1 and TI2V channels), and a head width that 6 does not
# divide.
CONFIGS = {
    "2.1": DiTConfig(dim=256, ffn_dim=320, num_heads=2, num_layers=3, text_dim=48),
    "TI2V": DiTConfig(dim=256, ffn_dim=320, num_heads=2, num_layers=2, in_dim=48, out_dim=48, text_dim=48),
    "head 64": DiTConfig(dim=128, ffn_dim=256, num_heads=2, num_layers=2, in_dim=32, out_dim=32, text_dim=48),
    "head 20, no norm": DiTConfig(dim=80, ffn_dim=96, num_heads=4, num_layers=2, text_dim=24, cross_attn_norm=False),
}

# Models that animate pictures: 20 more channels, and the rows of an image encoder of one picture or of two.
I2V = DiTConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=3, in_dim=36, text_dim=24, image_dim=20)
IMAGE_CONFIGS = {"I2V": I2V, "FLF2V": replace(I2V, emb_pos=14), "I2V, heads of 128": replace(I2V, dim=256)}


def build_pair(config: DiTConfig):
    """Our model and diffusers' with the same random weights, all of them of a size that matters."""
    torch.manual_seed(0)
    ours = WanDiT(config).eval()
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if "norm" in name and name.endswith("weight"):
                parameter.uniform_(0.5, 1.5)
            else:
                parameter.normal_(
                    std=0.5 if parameter.dim() < 2 or "modulation" in name else parameter[0].numel() ** -0.5
                )
    theirs = diffusers.WanTransformer3DModel.from_config(config_to_diffusers(config)).eval()
    theirs.load_state_dict(
        {DIFFUSERS.to_theirs(name): tensor for name, tensor in ours.state_dict().items()}, strict=True
    )
    return ours, theirs


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def padded(embed: torch.Tensor) -> torch.Tensor:
    """As diffusers' pipeline hands text to its transformer: zero rows up to 512."""
    return torch.nn.functional.pad(embed, (0, 0, 0, 512 - len(embed)))[None]


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("words", [1, 11, 512])
def test_one_level_matches_diffusers(name, words):
    """Wan 2.1: one timestep for the clip."""
    config = CONFIGS[name]
    ours, theirs = build_pair(config)
    latent, embed = torch.randn(config.in_dim, 3, 6, 10), torch.randn(words, config.text_dim)
    for t in (999.0, 437.5, 0.0):
        (got,) = ours([latent], [torch.full((3,), t)], ours.encode_text([embed]), [0])
        want = theirs(latent[None], torch.tensor([t]), padded(embed)).sample[0]
        assert got.shape == want.shape and got.dtype == torch.float32
        assert difference(got, want) < 3e-5


@torch.no_grad()
def test_known_first_frame_matches_diffusers():
    """Wan 2.2 TI2V (`expand_timesteps`): a timestep for each token, 0 for the clean first frame."""
    config = CONFIGS["TI2V"]
    ours, theirs = build_pair(config)
    latent, embed = torch.randn(48, 4, 6, 8), torch.randn(9, config.text_dim)
    frames = torch.tensor([0.0, 812.0, 812.0, 812.0])
    (got,) = ours([latent], [frames], ours.encode_text([embed]), [0])
    want = theirs(latent[None], frames.repeat_interleave(3 * 4)[None], padded(embed)).sample[0]
    assert difference(got, want) < 3e-5
    (uniform,) = ours([latent], [torch.full((4,), 812.0)], ours.encode_text([embed]), [0])
    assert difference(uniform, want) > 1e-2  # the known frame matters


@torch.no_grad()
@pytest.mark.parametrize("name", IMAGE_CONFIGS)
def test_models_that_see_pictures_match_diffusers(name):
    config = IMAGE_CONFIGS[name]
    ours, theirs = build_pair(config)
    latent, embed = torch.randn(config.in_dim, 3, 6, 10), torch.randn(9, config.text_dim)
    images = torch.randn(2 if config.emb_pos else 1, 7, config.image_dim)  # pictures, rows of each, width
    keys = ours.encode_images([images.flatten(0, 1)])
    for t in (999.0, 437.5):
        times = [torch.full((3,), t)]
        (got,) = ours([latent], times, ours.encode_text([embed]), [0], images=keys, image_index=[0])
        want = theirs(latent[None], torch.tensor([t]), padded(embed), images).sample[0]
        assert got.shape == (config.out_dim, 3, 6, 10)
        assert difference(got, want) < 3e-5
    other = ours.encode_images([images.flatten(0, 1).flip(0)])
    (changed,) = ours([latent], times, ours.encode_text([embed]), [0], images=other, image_index=[0])
    assert (difference(changed, want) > 1e-3) == bool(config.emb_pos)  # only positions tell the order of rows


@torch.no_grad()
@pytest.mark.parametrize("name", IMAGE_CONFIGS)
def test_rows_of_pictures_are_embedded_as_in_diffusers(name):
    """Alone, since its GELU is the exact one, unlike the blocks', and the velocity hardly tells."""
    config = IMAGE_CONFIGS[name]
    ours, theirs = build_pair(config)
    images = torch.randn(2 if config.emb_pos else 1, 7, config.image_dim)
    want = theirs.condition_embedder.image_embedder(images)
    assert difference(ours.img_emb(images.flatten(0, 1)[None]), want) < 3e-6
    ours.img_emb.proj[2] = GELU()
    assert difference(ours.img_emb(images.flatten(0, 1)[None]), want) > 3e-5


@torch.no_grad()
def test_clips_with_their_own_pictures_are_packed():
    ours, _ = build_pair(I2V)
    latents = [torch.randn(36, frames, 6, 4) for frames in (3, 1, 3)]
    times, text = [torch.full((x.shape[1],), 700.0) for x in latents], ours.encode_text([torch.randn(5, 24)])
    sets = [torch.randn(7, 20) for _ in range(2)]
    keys, index = ours.encode_images(sets), [1, 0, 0]
    packed = ours(latents, times, text, [0, 0, 0], images=keys, image_index=index)
    for clip, together in enumerate(packed):
        one = ours.encode_images([sets[index[clip]]])
        (alone,) = ours([latents[clip]], [times[clip]], text, [0], images=one, image_index=[0])
        assert difference(together, alone) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(("dtype", "limit"), [(torch.bfloat16, 1e-2), (torch.float16, 2e-3)])
def test_low_precision_stays_near_float32(dtype, limit):
    """Relative L2 distance from diffusers in float32; float32 islands keep it small."""
    config = CONFIGS["2.1"]
    ours, theirs = build_pair(config)
    latent, embed = torch.randn(config.in_dim, 3, 8, 12), torch.randn(17, config.text_dim)
    want = theirs(latent[None], torch.tensor([637.0]), padded(embed)).sample[0]
    text_free = [torch.full((3,), 637.0)]
    low = ours.to(dtype)
    (got,) = low([latent], text_free, low.encode_text([embed]), [0])
    assert got.dtype == torch.float32
    assert ((got - want).norm() / want.norm()).item() < limit


@torch.no_grad()
def test_autocast_stays_near_float32():
    config = CONFIGS["head 64"]
    ours, theirs = build_pair(config)
    latent, embed = torch.randn(config.in_dim, 3, 8, 12), torch.randn(17, config.text_dim)
    want = theirs(latent[None], torch.tensor([637.0]), padded(embed)).sample[0]
    with torch.autocast("cpu", torch.bfloat16):
        (got,) = ours([latent], [torch.full((3,), 637.0)], ours.encode_text([embed]), [0])
    assert got.dtype == torch.float32
    assert ((got - want).norm() / want.norm()).item() < 1e-2


@pytest.mark.parametrize("config", (CONFIGS | IMAGE_CONFIGS).values(), ids=CONFIGS | IMAGE_CONFIGS)
def test_config_round_trip(config):
    fields = diffusers.WanTransformer3DModel.from_config(config_to_diffusers(config)).config
    assert config_from_diffusers(fields) == config
