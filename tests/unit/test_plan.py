"""Estimates before loading: they grow with the video, and what cannot fit is refused with something that does."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

import pytest
import torch

from dit_video.checkpoints.headers import Summary
from dit_video.checkpoints.parts import Keep, Layers
from dit_video.errors import UsageError
from dit_video.machine import available_memory, memory_for
from dit_video.models.wan.random import RandomCheckpoint
from dit_video.models.wan.variants import VARIANTS
from dit_video.plan import Plan, check_memory, plan
from dit_video.shapes import MIN_TILE, VideoShape

CPU = torch.device("cpu")
WAN_14B = RandomCheckpoint(
    dit=VARIANTS["T2V-14B"].dit,
    vae=VARIANTS["T2V-14B"].vae,
    components={"transformer": Summary(parameters=14_290_000_000, nbytes=28_600_000_000, dtypes=("bfloat16",))},
)


def video(frames: int, height: int, width: int) -> VideoShape:
    return VideoShape(num_frames=frames, height=height, width=width)


def test_patches_weights_and_growth():
    small, large = (plan(WAN_14B, video(81, height, width), itemsize=2) for height, width in ((480, 832), (720, 1280)))
    assert (small.grid, small.tokens, large.tokens) == ((21, 30, 52), 32_760, 75_600)
    assert 28.5e9 < small.denoise_bytes < large.denoise_bytes < 80e9
    assert small.decode_bytes < large.decode_bytes
    # The paper counts 2 operations per multiply-add: 2 x 14.3e9 x tokens, and attention on top.
    assert 2 * 14.29e9 * 32_760 * 0.9 < small.pass_flops < 3 * 2 * 14.29e9 * 32_760


@pytest.mark.parametrize("shape", [video(81, 4096, 4096), video(1, 16384, 8192), video(2_000_000, 64, 64)])
def test_the_nearest_size_fits(shape: VideoShape):
    limit = 10**9
    with pytest.raises(UsageError, match=re.escape(f"{shape}: ")) as caught:
        check_memory(RandomCheckpoint(), shape, itemsize=4, available=limit)
    nearest = re.search(r"the nearest of this shape is (\d+)x(\d+)", str(caught.value))
    if nearest is None:
        assert "no size of this length fits" in str(caught.value)
        return
    width, height = int(nearest[1]), int(nearest[2])
    assert check_memory(RandomCheckpoint(), video(shape.num_frames, height, width), itemsize=4, available=limit)
    assert width / height == pytest.approx(shape.width / shape.height, rel=0.1)


def test_frames_that_do_not_fit_whole_are_decoded_in_tiles():
    shape = video(5, 1024, 1024)
    whole, tiled = (plan(RandomCheckpoint(), shape, itemsize=4, tile=tile) for tile in (None, MIN_TILE))
    assert whole.decode_bytes > tiled.decode_bytes > tiled.denoise_bytes

    def tile(available: int) -> int | None:
        return check_memory(RandomCheckpoint(), shape, itemsize=4, available=available).tile

    assert (tile(whole.nbytes), tile(whole.nbytes - 1), tile(tiled.nbytes)) == (None, MIN_TILE, MIN_TILE)
    with pytest.raises(UsageError):
        tile(tiled.nbytes - 1)


def test_weights_that_do_not_fit_are_named():
    with pytest.raises(UsageError, match=r"transformer alone takes 57 GB .* 24 GB; try --dtype bfloat16"):
        check_memory(WAN_14B, video(81, 480, 832), itemsize=4, available=24 * 10**9)


@dataclass(frozen=True, kw_only=True)
class Streamable(RandomCheckpoint):
    """A model whose layers can be streamed, with the figures of Wan 14B and UMT5-XXL."""

    held: Mapping[str, Layers] | None = None

    @property
    def layers(self) -> Mapping[str, Layers]:
        return self.held or {
            "transformer": Layers(40, 352_000_000, 210_000_000),
            "text_encoder": Layers(24, 193_000_000, 4096),
        }


STREAMABLE = Streamable(
    dit=WAN_14B.dit,
    vae=WAN_14B.vae,
    components={
        "transformer": Summary(parameters=14_290_000_000, nbytes=28_600_000_000, dtypes=("bfloat16",)),
        "text_encoder": Summary(parameters=5_680_000_000, nbytes=11_400_000_000, dtypes=("bfloat16",)),
    },
)


def test_layers_that_do_not_fit_are_streamed():
    shape = video(9, 240, 416)

    def planned(gigabytes: float) -> Plan:
        return check_memory(STREAMABLE, shape, itemsize=2, available=int(gigabytes * 1e9))

    assert planned(40).keep_layers == {}
    assert planned(24).keep_layers.keys() == {"transformer"}
    keeps = [planned(gigabytes).keep_layers["transformer"].layers for gigabytes in (4, 6, 12, 24)]
    assert keeps[0] < keeps[1] < keeps[2] < keeps[3] < 40
    for gigabytes in (4, 6, 12, 24):
        assert planned(gigabytes).nbytes <= gigabytes * 1e9
    assert planned(12).nbytes > 11e9, "what there is is used"
    assert planned(6).keep_layers["text_encoder"].layers > 0
    with pytest.raises(UsageError, match=r"denoising its .* takes about .* GB of memory, and there are 1\.5"):
        planned(1.5)


def test_what_a_device_has_room_for_as_it_is_stored_is_held_there():
    shape, eight_bits = video(9, 240, 416), 14_300_000_000

    def planned(gigabytes: float, stored: int | None, *, holds: bool = True) -> Mapping[str, Keep]:
        layers = STREAMABLE.layers | {"transformer": replace(STREAMABLE.layers["transformer"], stored=stored)}
        model = Streamable(dit=WAN_14B.dit, vae=WAN_14B.vae, components=STREAMABLE.components, held=layers)
        found = check_memory(model, shape, itemsize=2, available=int(gigabytes * 1e9), holds=holds)
        assert found.nbytes <= gigabytes * 1e9
        return found.keep_layers

    assert planned(24, eight_bits) == {"transformer": Keep(stored=True)}
    assert planned(40, eight_bits) == {}
    assert planned(24, None) == planned(24, eight_bits, holds=False)
    assert planned(24, None)["transformer"].layers > 25
    assert planned(12, eight_bits)["transformer"] == planned(12, None)["transformer"]


def test_this_machine_has_memory():
    assert 10**8 < available_memory(CPU) < 10**14
    assert available_memory(CPU) * 0.8 < memory_for(CPU, None) < available_memory(CPU)
    assert 5e9 < memory_for(CPU, 6 * 2**30) < 6 * 2**30


def test_given_frames_are_encoded_whole_where_decoding_is_tiled():
    shape = video(17, 1024, 1024)
    tiled = plan(RandomCheckpoint(), shape, itemsize=4, tile=MIN_TILE)
    encoding = plan(RandomCheckpoint(), shape, itemsize=4, tile=MIN_TILE, encodes=True)
    assert tiled.encode_bytes == 0 and encoding.nbytes == encoding.encode_bytes > tiled.nbytes
    assert check_memory(RandomCheckpoint(), shape, itemsize=4, available=tiled.nbytes).tile == MIN_TILE
    with pytest.raises(UsageError, match=r"encoding its .* patches takes about .*; the nearest of this shape is"):
        check_memory(RandomCheckpoint(), shape, itemsize=4, available=tiled.nbytes, encodes=True)


def test_models_that_animate_pictures_encode_the_whole_clip():
    small = replace(RandomCheckpoint().dit, in_dim=36)  # denoises in less memory than it encodes
    encoder = Summary(parameters=2 * 10**9, nbytes=4 * 10**9, dtypes=("bfloat16",))
    model = RandomCheckpoint(dit=small, vae=VARIANTS["I2V-A14B"].vae, components={"image_encoder": encoder})
    made = plan(model, video(81, 720, 1280), itemsize=2, tile=MIN_TILE)
    assert plan(WAN_14B, video(81, 720, 1280), itemsize=2).encode_bytes == 0
    assert made.nbytes == made.encode_bytes > max(made.decode_bytes, made.denoise_bytes)
    assert plan(model, video(121, 720, 1280), itemsize=2).encode_bytes > made.encode_bytes
    with pytest.raises(UsageError, match=r"encoding its 75,600 patches takes about 8\.4 GB"):
        check_memory(model, video(81, 720, 1280), itemsize=2, available=made.nbytes - 1)
    with pytest.raises(UsageError, match=r"image_encoder alone takes 4\.0 GB"):
        check_memory(model, video(81, 720, 1280), itemsize=2, available=3 * 10**9)
