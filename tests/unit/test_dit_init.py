"""How the DiT starts training: every block the identity, the words of a prompt not drowned by its padding."""

import torch
import torch.nn.functional as F

from dit_video.models.wan.dit import DiTConfig, WanDiT

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
def test_words_outweigh_the_padding_at_the_start():
    """498 rows of padding share one key; without the biases of q and k they would get nearly all of the attention."""
    model = fresh_model()
    x = F.layer_norm(torch.randn(400, CONFIG.dim), (CONFIG.dim,))
    text = model.encode_text([torch.randn(14, CONFIG.text_dim)])
    for block, keys in zip(model.blocks, text.keys, strict=True):
        attn = block.cross_attn
        q = attn.heads(attn.norm_q(attn.q(x), None))  # (N, H, E)
        logits = torch.einsum("nhe,she->nhs", q, keys[0]) / CONFIG.head_dim**0.5 + text.bias
        words = 1 - logits.softmax(-1)[..., -1].mean().item()
        assert words > 0.5
        unbiased = torch.einsum("nhe,she->nhs", attn.heads(attn.norm_q(attn.q(x) - attn.q.bias, None)), keys[0])
        assert 1 - (unbiased / CONFIG.head_dim**0.5 + text.bias).softmax(-1)[..., -1].mean().item() < 0.1


def test_initialisation_is_seeded():
    first, second = fresh_model(), fresh_model()
    torch.manual_seed(5)
    second.init_weights(torch.Generator().manual_seed(7))
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), name
