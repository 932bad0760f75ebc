"""Linear layers: in the dtype that the processor multiplies, and quantised to 8 bits."""

import pytest
import torch

from dit_video.checkpoints.formats import describe
from dit_video.checkpoints.load import load_into, save_model
from dit_video.checkpoints.parts import Keep
from dit_video.errors import UsageError
from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.layouts import DIFFUSERS
from dit_video.models.wan.pipeline import open_checkpoint
from dit_video.nn import int8, linear, parts
from dit_video.nn.int8 import Int8
from dit_video.nn.linear import Linear, check_quantize, quantised, several
from tests.tiny import tiny_wan21_folder

CONFIG = DiTConfig(dim=128, ffn_dim=256, num_heads=2, num_layers=3, text_dim=48)


def as_defined(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, limit: int) -> torch.Tensor:
    """Both quantised as said, the product in whole numbers, each step by itself."""
    margin = 1 + torch.finfo(x.dtype).eps / 2  # scales are rounded, and none down
    row, token = weight.abs().amax(1) / limit, (x.float().abs().amax(1) * margin / 127).to(x.dtype).float()
    w, a = (weight / row[:, None]).round().long(), (x / token[:, None]).round().long()
    assert w.abs().max() == limit and a.abs().max() == 127
    return ((a @ w.T) * token.double()[:, None] * row.double() + bias).float()


def difference(got: torch.Tensor, want: torch.Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_is_what_it_is_defined_to_be(dtype):
    torch.manual_seed(0)
    x, weight, bias = torch.randn(37, 96, dtype=dtype), torch.randn(80, 96), torch.randn(80)
    x[3] *= 100  # a token with a scale of its own
    product = Int8(weight)
    want = as_defined(x, weight, bias, 127 if int8._adds_exactly() else 64)
    got = product(x, bias)
    assert got.dtype == dtype
    assert difference(got, want) < (1e-3 if dtype == torch.float32 else 4e-3)
    along = ((got.double() - bias) * (want - bias)).sum(1) / (want - bias).square().sum(1)
    assert (along - 1).abs().mean() < 4e-4  # rows are not longer or shorter as a whole
    exact = x.double() @ weight.double().T + bias
    assert 1e-3 < difference(got, exact) < 2.5e-2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_signed_and_unsigned_numbers_give_the_same(monkeypatch, dtype):
    """Some processors multiply only the one kind fast. By parts of rows or whole likewise."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(37, 96).to(dtype), torch.randn(80, 96), torch.randn(80)
    monkeypatch.setattr(int8, "_adds_exactly", lambda: False)  # smaller weights, exact with whichever products
    found = []
    for unsigned in (False, True):
        monkeypatch.setattr(int8, "_unsigned", lambda unsigned=unsigned: unsigned)
        found.append(Int8(weight)(x, bias))
    monkeypatch.setattr(parts, "PART", 500)
    found.append(Int8(weight)(x, bias))
    assert all(y.dtype == dtype and torch.equal(y, found[0]) for y in found)


def test_layers_of_one_input_round_it_once(monkeypatch):
    torch.manual_seed(0)
    layers = [Linear(96, 80) for _ in range(3)]
    x = torch.randn(2, 37, 96)
    with torch.no_grad():
        plain = [layer(x) for layer in layers]
        assert all(torch.equal(a, b) for a, b in zip(several(x, layers), plain, strict=True))
        quantised(layers, "int8")
        alone, calls = [layer(x) for layer in layers], []
        monkeypatch.setattr(linear.Rounded, "of", lambda x, of=int8.Rounded.of: calls.append(x) or of(x))
        assert all(torch.equal(a, b) for a, b in zip(several(x, layers), alone, strict=True))
    assert len(calls) == 1 and not torch.equal(alone[0], plain[0])


def test_the_largest_numbers_do_not_saturate():
    """Products of 8 bits are added in 16 where there is no VNNI, so that large pairs are cut off silently."""
    weight = torch.ones(32, 512)
    weight[1] = -1
    weight[2, ::2] = -1
    x = torch.ones(3, 512)
    x[1] = -1
    got = Int8(weight)(x, None)
    torch.testing.assert_close(got, x @ weight.T, rtol=1e-6, atol=1e-3)


def test_zeros_stay_zero():
    product = Int8(torch.zeros(32, 64))
    assert (product(torch.randn(4, 64), None) == 0).all()
    assert (Int8(torch.randn(32, 64))(torch.zeros(2, 64), torch.ones(32)) == 1).all()


def test_weights_of_16_bits_are_multiplied_in_float32_where_the_processor_does_not(monkeypatch):
    torch.manual_seed(0)
    model = WanDiT(CONFIG).to(torch.bfloat16).eval()
    exact = WanDiT(CONFIG).eval()
    exact.load_state_dict(model.state_dict())
    latent, embed, times = torch.randn(16, 2, 4, 6), torch.randn(5, 48), [torch.full((2,), 500.0)]

    def error(supported: bool) -> float:
        monkeypatch.setattr(linear, "multiplies", lambda dtype, device: supported)
        with torch.no_grad():
            return difference(*(m([latent], times, m.encode_text([embed]), [0])[0] for m in (model, exact)))

    assert error(False) < 1e-5 < error(True) < 2e-2


@torch.no_grad()
def test_a_model_is_quantised_as_it_is_loaded(tmp_path):
    torch.manual_seed(0)
    model, file = WanDiT(CONFIG).eval(), tmp_path / "model.safetensors"
    save_model(model, file, DIFFUSERS)

    def build() -> WanDiT:
        made = WanDiT(CONFIG)
        quantised(made.blocks, "int8")
        return made

    loaded = load_into(build, describe(file), DIFFUSERS, dtype=torch.float32)
    layers = [module for module in loaded.modules() if isinstance(module, Linear)]
    of_blocks = [module for block in loaded.blocks for module in block.modules() if isinstance(module, Linear)]
    assert len(of_blocks) == 3 * 10
    for layer in layers:
        assert layer.weight.is_meta == (layer.product is not None) == any(layer is each for each in of_blocks)
    at_use = WanDiT(CONFIG).eval()  # whose weights are not dropped
    at_use.load_state_dict(model.state_dict())
    for module in at_use.blocks.modules():
        if isinstance(module, Linear):
            module.scheme = "int8"
    latent, embed, times = torch.randn(16, 2, 4, 6), torch.randn(5, 48), [torch.full((2,), 500.0)]
    want, got, same = (m([latent], times, m.encode_text([embed]), [0])[0] for m in (model, loaded, at_use))
    assert difference(got, same) < 1e-3 < difference(got, want) < 3e-2


@torch.no_grad()
def test_layers_that_are_streamed_are_quantised_as_those_that_stay(tmp_path):
    checkpoint = open_checkpoint(tiny_wan21_folder(tmp_path / "wan"))
    dits = [
        checkpoint.load_dit(dtype=torch.float32, keep=keep, quantize=scheme)
        for keep, scheme in ((None, None), (None, "int8"), (Keep(1), "int8"))
    ]
    layers = [[each for each in dit.blocks.modules() if isinstance(each, Linear)] for dit in dits]
    settled = [sum(each.product is not None for each in found) for found in layers]
    assert settled == [0, len(layers[1]), len(layers[2]) // len(dits[2].blocks)]  # of the one block that stays
    torch.manual_seed(0)
    config = checkpoint.dit
    latent, embed, times = (
        torch.randn(config.in_dim, 2, 4, 4),
        torch.randn(5, config.text_dim),
        [torch.full((2,), 500.0)],
    )
    for _ in range(2):  # weights are read again
        exact, whole, streamed = (dit([latent], times, dit.encode_text([embed]), [0])[0] for dit in dits)
        assert torch.equal(streamed, whole) and 1e-3 < difference(whole, exact) < 5e-2


@torch.no_grad()
def test_what_a_lora_adds_is_in_the_weights_before_they_are_quantised(tmp_path):
    torch.manual_seed(0)
    file, name = tmp_path / "model.safetensors", "blocks.0.self_attn.q.weight"
    model = WanDiT(CONFIG)
    save_model(model, file, DIFFUSERS)
    delta = torch.randn(CONFIG.dim, CONFIG.dim)

    def build() -> WanDiT:
        made = WanDiT(CONFIG)
        quantised(made.blocks, "int8")
        return made

    def change(which: str, tensor: torch.Tensor) -> torch.Tensor:
        return tensor + delta if which == name else tensor

    loaded = load_into(build, describe(file), DIFFUSERS, dtype=torch.float32, change=change)
    layer, x = loaded.blocks[0].self_attn.q, torch.randn(6, CONFIG.dim)
    assert torch.equal(layer(x), Int8(model.get_parameter(name) + delta)(x, layer.bias))


def test_refused_where_there_are_no_such_products():
    check_quantize(None, torch.device("cuda"), torch.float32)
    check_quantize("int8", torch.device("cpu"), torch.float32)
    with pytest.raises(UsageError, match=r"^--quantize int8: .* this is cuda; the nearest is --device cpu"):
        check_quantize("int8", torch.device("cuda"), torch.bfloat16)
    with pytest.raises(UsageError, match="--quantize int8 and --compile: only one"):
        check_quantize("int8", torch.device("cpu"), torch.float32, compiled=True)
    with pytest.raises(UsageError, match=r"^--quantize fp8: .* this is cpu; the nearest is --quantize int8"):
        check_quantize("fp8", torch.device("cpu"), torch.bfloat16)
