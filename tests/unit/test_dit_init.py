"""How the DiT starts training: every block the identity, the words of a prompt not drowned by its padding."""

import dataclasses

import torch
import torch.nn.functional as F

from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.dit import WanDiT
from dit_video.train.grow import deepened
from dit_video.train.optim import build_optimizers

CONFIG = DiTConfig(dim=256, ffn_dim=512, num_heads=4, num_layers=3, in_dim=8, out_dim=8, text_dim=128)


def fresh_model() -> WanDiT:
    torch.manual_seed(0)
    model = WanDiT(CONFIG)
    model.init_weights(torch.Generator().manual_seed(7))
    return model


def test_blocks_start_as_the_identity():
    model = fresh_model()
    after = {}
    for index, block in enumerate(model.blocks):
        block.register_forward_hook(lambda _, args, out, index=index: after.update({index: (args[0], out)}))
    text = model.encode_text([torch.randn(5, CONFIG.text_dim)])
    (out,) = model([torch.randn(8, 3, 4, 6)], [torch.tensor([0.0, 400.0, 400.0])], text, [0])
    assert out.abs().max().item() == 0
    for before, now in after.values():
        assert before.abs().max().item() > 0.1 and torch.equal(before, now)


def test_every_branch_learns():
    """No branch has both its gate and its output zero: after a few steps of gradient descent all parameters moved."""
    model = fresh_model()
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    torch.manual_seed(1)
    latent, target, prompt = torch.randn(8, 2, 6, 6), torch.randn(8, 2, 6, 6), torch.randn(6, CONFIG.text_dim)
    for _ in range(4):
        (out,) = model([latent], [torch.tensor([300.0, 700.0])], model.encode_text([prompt]), [0])
        (out - target).square().mean().backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 1.0 * parameter.grad
                parameter.grad = None
    still = [name for name, parameter in model.named_parameters() if torch.equal(parameter, start[name])]
    assert not still


@torch.no_grad()
def test_a_deeper_transformer_begins_as_the_same_function():
    model = fresh_model()
    for parameter in model.parameters():
        parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    deep = WanDiT(dataclasses.replace(CONFIG, num_layers=5))
    deep.load_state_dict(deepened(model.state_dict(), 3, 5))
    latent, levels, prompt = torch.randn(8, 2, 6, 6), torch.tensor([300.0, 700.0]), torch.randn(6, CONFIG.text_dim)
    (few,), (many,) = (net([latent], [levels], net.encode_text([prompt]), [0]) for net in (model, deep))
    assert few.abs().max() > 0.1
    torch.testing.assert_close(many, few)


def test_new_blocks_are_spread_over_the_inner_ones():
    state = {f"blocks.{index}.ffn.0.weight": torch.tensor(float(index)) for index in range(6)}
    deep = deepened(state | {"head.weight": torch.tensor(9.0)}, 6, 10)
    order = [int(deep[f"blocks.{index}.ffn.0.weight"]) for index in range(10)]
    assert order == [0, 1, 1, 2, 2, 3, 3, 4, 4, 5] and deep["head.weight"] == 9.0


@torch.no_grad()
def attention_to_padding(model: WanDiT, scale: float = 1.0) -> float:
    """The most that a head gives to the 498 rows of padding behind 14 words, on average over queries."""
    x = scale * F.layer_norm(torch.randn(400, CONFIG.dim), (CONFIG.dim,))
    text = model.encode_text([torch.randn(14, CONFIG.text_dim)])
    most = 0.0
    for block, keys in zip(model.blocks, text.keys, strict=True):
        attn = block.cross_attn
        q = attn.heads(attn.norm_q(attn.q(x), None))  # (N, H, E)
        logits = torch.einsum("nhe,she->nhs", q, keys[0]) / CONFIG.head_dim**0.5 + text.bias
        most = max(most, logits.softmax(-1)[..., -1].mean(0).max().item())
    return most


def test_padding_is_not_heard_at_the_start():
    model = fresh_model()
    assert attention_to_padding(model) < 1e-6
    assert attention_to_padding(model, scale=20) < 0.05  # as when the weights of q have grown
    for block in model.blocks:
        block.cross_attn.q.bias.data.zero_()
    assert attention_to_padding(model) > 0.5  # it is the guards that do it


def test_padding_stays_out_in_training():
    model = fresh_model()
    model.hold_padding_out()
    optimizers = build_optimizers([model], muon_lr=0.1, adam_lr=0.01, weight_decay=0.0)
    torch.manual_seed(1)
    latent, target, prompt = torch.randn(8, 2, 6, 6), torch.randn(8, 2, 6, 6), torch.randn(6, CONFIG.text_dim)
    before = model.blocks[0].cross_attn.q.weight.detach().clone()
    for _ in range(10):
        (out,) = model([latent], [torch.tensor([300.0, 700.0])], model.encode_text([prompt]), [0])
        (out - target).square().mean().backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    assert (model.blocks[0].cross_attn.q.weight - before).abs().max() > 0.01
    assert attention_to_padding(model) < 1e-6


def test_initialisation_is_seeded():
    first, second = fresh_model(), fresh_model()
    torch.manual_seed(5)
    second.init_weights(torch.Generator().manual_seed(7))
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
