"""The VAE by itself: chunks, streams and tiles equal the whole, and what is wrong is refused."""

import weakref
from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dit_video.errors import DvgenError, UsageError
from dit_video.models.wan import vae as module
from dit_video.models.wan import vae_layers
from dit_video.models.wan.configs import VAEConfig
from dit_video.models.wan.vae import WanVAE
from dit_video.nn.tiling import OVERLAP, windows

SHAPES = {
    "2.1": dict(dim=8, decoder_dim=8, num_res_blocks=2),
    "2.2, unshuffle 2": dict(dim=8, decoder_dim=8, num_res_blocks=1, residual=True, patch=2),
    "2.2, unshuffle 4": dict(
        dim=8,
        decoder_dim=16,
        num_res_blocks=1,
        residual=True,
        patch=4,
        dim_mult=(1, 2, 2),
        temporal_downsample=(True, True),
    ),
}


def model(form: str) -> WanVAE:
    """Random weights, attention included, and pixels of standard deviation one half."""
    torch.manual_seed(1)
    vae = WanVAE(VAEConfig(**SHAPES[form], z_dim=8, latents_mean=(0.1,) * 8, latents_std=(1.3,) * 8)).eval()
    projection = vae.decoder.middle[1].proj.weight.data
    projection.uniform_(-(projection.shape[1] ** -0.5), projection.shape[1] ** -0.5)
    with torch.no_grad():
        scale = 0.5 / vae.decode(torch.randn(1, 8, 3, 6, 6)).std()
        for parameter in vae.decoder.head["2"].parameters():
            parameter *= scale
    return vae


@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
@pytest.mark.parametrize("form", SHAPES)
@torch.no_grad()
def test_chunked_equals_whole(form: str, chunk: int):
    vae = model(form)
    latents = torch.randn(2, 8, 6, 4, 5)
    whole = vae.decode(latents)
    chunks = list(vae.decode_stream(latents, chunk=chunk))
    assert torch.cat(chunks, dim=2).sub(whole.clamp(-1, 1)).abs().max() < 1e-5
    assert whole.abs().max() > 1, "the clamp must have something to do"
    lengths = [1 + 4 * (chunk - 1)] + [4 * chunk] * 5
    assert [part.shape[2] for part in chunks[:-1]] == lengths[: len(chunks) - 1]

    video = torch.rand(2, 3, 21, 2 * vae.config.stride[1], 3 * vae.config.stride[1]) * 2 - 1
    mean, _ = vae.encode_moments(video)
    assert torch.allclose(vae.encode(video), vae.whiten(mean), atol=1e-5)
    assert torch.allclose(vae.encode(video, chunk=chunk), vae.whiten(mean), atol=1e-5)


@pytest.mark.parametrize("form", SHAPES)
@torch.no_grad()
def test_large_frames_one_by_one_are_the_same(form: str, monkeypatch: pytest.MonkeyPatch):
    vae, seen, encoded = model(form), [], []
    latents = torch.randn(1, 8, 3, 4, 5)
    video = torch.rand(1, 3, 9, 2 * vae.config.stride[1], 3 * vae.config.stride[1]) * 2 - 1
    vae.decoder.head.register_forward_hook(lambda layer, args, y: seen.append(y.shape[2]))
    vae.encoder.conv1.register_forward_hook(lambda layer, args, y: encoded.append(y.shape[2]))
    pixels, whitened = torch.cat([*vae.decode_stream(latents)], dim=2), vae.encode(video, chunk=1)
    assert seen == [1, 4, 4]
    monkeypatch.setattr(vae_layers, "PART", 1)
    assert torch.allclose(torch.cat([*vae.decode_stream(latents)], dim=2), pixels, atol=1e-5)
    assert torch.allclose(vae.encode(video, chunk=1), whitened, atol=1e-5)
    assert seen == [1, 4, 4, *[1] * 9]
    assert encoded == [1, 4, 4, *[1] * 9]


@torch.no_grad()
def test_only_large_frames_give_their_memory_back(monkeypatch: pytest.MonkeyPatch):
    vae, asked = model("2.1"), []

    def giving_back(large: bool):
        asked.append(large)
        return nullcontext()

    monkeypatch.setattr(module, "giving_back", giving_back)
    monkeypatch.setattr(module, "PART", 8 * 48 * 56 * 4)  # bytes of a frame of 56x48 with 8 channels
    for width, large in ((56, False), (64, True)):
        asked.clear()
        list(vae.decode_stream(torch.randn(1, 8, 2, 6, width // 8)))
        vae.encode(torch.zeros(1, 3, 5, 48, width), chunk=1)
        assert asked == [large] * 4


@pytest.mark.parametrize("form", SHAPES)
def test_frames_do_not_see_the_future(form: str):
    vae = model(form)
    latents = torch.randn(1, 8, 4, 3, 3)
    changed = latents.clone()
    changed[:, :, 2:] += 1
    with torch.no_grad():
        before, after = vae.decode(latents), vae.decode(changed)
        assert torch.allclose(before[:, :, :5], after[:, :, :5], atol=1e-6)
        assert (before[:, :, 5:] - after[:, :, 5:]).abs().amax((0, 1, 3, 4)).min() > 1e-3
        still = vae.decode(latents[:, :, :1])
    assert torch.allclose(still, before[:, :, :1], atol=1e-5)


def test_the_stream_gives_frames_as_they_are_ready_in_constant_memory():
    vae = model("2.2, unshuffle 4")
    kept: list[int] = []

    def count(module, args, output) -> None:
        _, memory = args
        kept.append(sum(each.untyped_storage().nbytes() for frames in memory.frames.values() for each in frames))

    handle = vae.decoder.upsamples[0].register_forward_hook(count)
    stream = vae.decode_stream(torch.randn(1, 8, 9, 4, 4))
    assert next(stream).shape == (1, 3, 1, 64, 64)
    assert len(kept) == 1, "the first frame must not wait for the second latent frame"
    shapes = [chunk.shape[2] for chunk in stream]
    handle.remove()
    assert shapes == [4] * 8 and len(kept) == 9
    assert kept[3:] == [kept[3]] * 6


@pytest.mark.parametrize("form", SHAPES)
@torch.no_grad()
def test_tiled_is_close_to_whole(form: str):
    vae = model(form)
    smooth = F.interpolate(torch.randn(1, 16, 5, 5), size=(32, 40), mode="bilinear").view(1, 8, 2, 32, 40)
    latents = smooth + 0.2 * torch.randn_like(smooth)
    whole = torch.cat(list(vae.decode_stream(latents)), dim=2)
    tiled = torch.cat(list(vae.decode_stream(latents, tile=2 * OVERLAP)), dim=2)
    assert psnr(tiled, whole) > 48
    assert not torch.equal(tiled, whole)
    wide = torch.cat(list(vae.decode_stream(latents, tile=40)), dim=2)
    assert torch.equal(wide, whole), "a tile as large as the frames is no tile"


def psnr(value: Tensor, reference: Tensor) -> float:
    """Decibels, of pixels in [-1, 1]."""
    return (10 * torch.log10(4 / (value - reference).square().mean())).item()


@pytest.mark.parametrize(("length", "size"), [(24, 24), (25, 24), (100, 24), (57, 31), (10, 64)])
def test_windows_cover_and_sum_to_one(length: int, size: int):
    total = torch.zeros(length * 4)
    reach = 0
    for window, weights in windows(length, size, 4):
        assert window.start <= max(reach - OVERLAP, 0) and window.stop - window.start == min(size, length)
        assert weights.min() >= 0
        total[window.start * 4 : window.stop * 4] += weights
        reach = window.stop
    assert reach == length
    assert torch.allclose(total, torch.ones_like(total))


def test_a_tile_that_is_too_small_is_refused():
    vae = model("2.1")
    with pytest.raises(UsageError, match=f"a tile of 20 latents.*the nearest is {2 * OVERLAP}"):
        next(vae.decode_stream(torch.randn(1, 8, 1, 40, 40), tile=20))


@pytest.mark.parametrize(("frames", "height", "width"), [(4, 64, 64), (5, 60, 64), (5, 64, 72)])
def test_off_grid_videos_are_refused(frames: int, height: int, width: int):
    vae = model("2.2, unshuffle 4")
    for encode in (vae.encode, vae.encode_moments):
        with pytest.raises(UsageError, match=f"{width}x{height}, {frames} frames.*1 \\+ 4k frames.*multiples of 16"):
            encode(torch.zeros(1, 3, frames, height, width))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temporal_downsample": (True,)}, "temporal_downsample has 1 entries: 4 levels need 3"),
        ({"z_dim": 9}, "latents_mean has 8 values"),
        ({"residual": True, "dim_mult": (1, 2, 4, 8)}, "the last two levels equal"),
        ({"residual": True, "dim_mult": (1, 3, 3, 3)}, "factors of 1, 2 or 4"),
    ],
)
def test_configs_that_cannot_be_built_are_refused(change: dict, words: str):
    fields = dict(z_dim=8, latents_mean=(0.0,) * 8, latents_std=(1.0,) * 8) | change
    with pytest.raises(DvgenError, match=words):
        VAEConfig(**fields)


def test_strides():
    constants = dict(z_dim=8, latents_mean=(0.0,) * 8, latents_std=(1.0,) * 8)
    strides = [VAEConfig(**shape, **constants).stride for shape in SHAPES.values()]
    assert strides == [(4, 8, 8), (4, 16, 16), (4, 16, 16)]


@pytest.mark.parametrize("frames", [1, 5])
def test_it_learns_under_bfloat16_autocast(frames: int):
    vae = model("2.2, unshuffle 4").train()
    video = (
        torch.rand(2, 3, 1, 2, 2).repeat_interleave(16, 3).repeat_interleave(16, 4).repeat(1, 1, frames, 1, 1) * 2 - 1
    )
    optimiser = torch.optim.Adam(vae.parameters(), 3e-3)
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16):
            mean, _ = vae.encode_moments(video)
            loss = (vae.decode(vae.whiten(mean)).float() - video).square().mean()
        optimiser.zero_grad()
        loss.backward()
        assert all(p.grad is None or p.grad.dtype == torch.float32 for p in vae.parameters())
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision_weights(dtype: torch.dtype):
    vae = model("2.2, unshuffle 4")
    latents = torch.randn(1, 8, 2, 4, 4)
    reference = torch.cat(list(vae.decode_stream(latents)), dim=2)
    vae = vae.to(dtype)
    chunks = list(vae.decode_stream(latents.to(dtype)))
    assert all(chunk.dtype == torch.float32 for chunk in chunks)
    assert psnr(torch.cat(chunks, dim=2), reference) > 30


@torch.no_grad()
def test_one_tile_at_a_time_keeps_its_past(monkeypatch: pytest.MonkeyPatch):
    vae, made = model(next(iter(SHAPES))), []
    real, enlarge = module.Memory, vae.decoder.enlarge

    def memory():
        found = real()
        made.append(weakref.ref(found))
        return found

    def watched(*args):
        assert sum(each() is not None for each in made) <= 2  # the tile's own, and that of what comes before all tiles
        return enlarge(*args)

    monkeypatch.setattr(module, "Memory", memory)
    monkeypatch.setattr(vae.decoder, "enlarge", watched)
    frames = sum(chunk.shape[2] for chunk in vae.decode_stream(torch.randn(1, 8, 3, 40, 40), tile=2 * OVERLAP))
    assert frames == 9 and len(made) == 1 + 9  # 3 x 3 tiles
