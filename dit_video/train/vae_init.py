"""A start for the autoencoder from data: its linear ends are fitted, so that training begins with blurred pictures
instead of noise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dit_video.models.wan.vae import Decoder, Encoder, WanVAE
from dit_video.models.wan.vae_layers import CausalConv3d
from dit_video.nn.resample import pixel_unshuffle

RIDGE = 1e-5
CONSTANT = 1.0  # of the constant channels, beside principal components of deviation 1 at most


def rows(x: Tensor) -> Tensor:
    """(B, C, T, H, W) -> (B T H W, C)."""
    return x.movedim(1, -1).flatten(0, -2)


def principal(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """(mean (C,), directions (count, C)) of rows (N, C): unit vectors of most variance first; random ones once C are
    used up.
    """
    mean = x.mean(0)
    _, _, directions = torch.linalg.svd((x - mean).T @ (x - mean) / len(x))
    extra = torch.nn.functional.normalize(torch.randn(max(0, count - len(directions)), x.shape[1]), dim=1)
    return mean, torch.cat([directions, extra])[:count]


def least_squares(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(matrix (D, C), bias (D,)) of the linear map from rows x (N, C) nearest to rows y (N, D), with a little ridge."""
    centre_x, centre_y = x.mean(0), y.mean(0)
    x, y = x - centre_x, y - centre_y
    gram = x.T @ x / len(x)
    matrix = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * torch.eye(len(gram)), x.T @ y / len(x)).T
    return matrix, centre_y - matrix @ centre_x


def set_linear(conv: nn.Module, matrix: Tensor, bias: Tensor) -> None:
    """Make a causal convolution compute matrix @ x + bias: the newest, central tap carries it, the others start at
    zero.
    """
    assert isinstance(conv, CausalConv3d)
    weight = conv.weight
    weight.zero_()
    weight[:, :, -1, weight.shape[3] // 2, weight.shape[4] // 2] = matrix
    conv.bias.copy_(bias)


@torch.no_grad()
def initialise(vae: WanVAE, video: Tensor, code: Tensor | None = None) -> None:
    """Fit the ends of `vae` to `video` (B, 3, T, H, W) in [-1, 1]; every residual block between starts as the identity.

    The encoder's first layer takes principal components of the pixel patches (each with both signs, since silu(x) -
    silu(-x) = x), its head whitens principal components of what the average-down shortcuts bring, or comes nearest to
    `code`, the latents (B, z_dim, t, h, w) that it shall learn to compute; the decoder's first layer spreads latents
    over its channels, its head is the least-squares map from what the duplicate-up shortcuts bring to the pixels.
    """
    for name, parameter in vae.named_parameters():
        if name.endswith((".residual.6.weight", ".residual.6.bias", ".proj.weight", ".proj.bias")):
            nn.init.zeros_(parameter)
        elif name.endswith("gamma") and ".middle.1." not in name:
            parameter[-2:] = 0  # the constant channels set the scale of a norm, and are then out of the way
    patches = pixel_unshuffle(video, vae.config.patch)
    _set_signed(vae.encoder.conv1, rows(patches))

    features = rows(_head_features(vae.encoder, patches))
    if code is None:
        mean, directions = principal(features, vae.config.z_dim)
        spread = ((features - mean) @ directions.T).std(0)
        matrix = directions / spread.clamp_min(0.3 * float(spread.max()))[:, None]
        bias = -matrix @ mean
    else:
        matrix, bias = least_squares(features, rows(code))
    zeros = torch.zeros_like(matrix)  # the logarithms of the variance
    set_linear(vae.encoder.head["2"], torch.cat([matrix, zeros]), torch.cat([bias, zeros[:, 0]]))
    identity = torch.eye(vae.config.z_dim)
    vae.conv1.weight[:, :, 0, 0, 0] = torch.eye(2 * vae.config.z_dim)
    vae.conv2.weight[:, :, 0, 0, 0] = identity
    nn.init.zeros_(vae.conv1.bias)
    nn.init.zeros_(vae.conv2.bias)

    latents = vae.encode_moments(video)[0] if code is None else code
    _set_signed(vae.decoder.conv1, rows(latents))
    set_linear(vae.decoder.head["2"], *least_squares(rows(_head_features(vae.decoder, latents)), rows(patches)))


def _set_signed(conv: CausalConv3d, x: Tensor) -> None:
    """Half of the channels take principal components of rows `x`, scaled to deviation 1 at most, the other half the
    same with the sign turned.

    The last two channels are constant and large: an RMS norm keeps the size of the others only beside them.
    """
    count = conv.weight.shape[0] // 2 - 1
    mean, directions = principal(x, count)
    matrix = directions / ((x - mean) @ directions.T).std(0).max()
    constant = x.new_zeros(2, x.shape[1])
    set_linear(
        conv,
        torch.cat([matrix, -matrix, constant]),
        torch.cat([-matrix @ mean, matrix @ mean, x.new_full((2,), CONSTANT)]),
    )


def _head_features(stack: Encoder | Decoder, x: Tensor) -> Tensor:
    """What the head's convolution of an encoder or decoder sees for input `x`."""
    seen: list[Tensor] = []
    gamma = stack.head["0"].get_parameter("gamma").flatten()
    conv = stack.head["2"]
    handle = conv.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    stack(x)
    handle.remove()
    channels = seen[0].movedim(1, -1).float()
    return F.silu(F.normalize(channels, dim=-1) * len(gamma) ** 0.5 * gamma).movedim(-1, 1)
