"""Cut latents into spacetime patches and put them back together. C channels, (T, H, W) latents, (p, q, r) patch."""

from torch import Tensor

from dit_video.shapes import Size3


def token_grid(latent: Tensor, patch: Size3) -> Size3:
    """The token grid of a latent (C, T, H, W), whose sides must be multiples of the patch's."""
    assert all(side % p == 0 for side, p in zip(latent.shape[1:], patch, strict=True)), (
        "latent must be padded to the patch"
    )
    t, h, w = (side // p for side, p in zip(latent.shape[1:], patch, strict=True))
    return t, h, w


def patchify(latent: Tensor, patch: Size3) -> Tensor:
    """(C, T, H, W) to tokens (t h w, C p q r): the order of a Conv3d weight, so that the convolution is one product."""
    t, h, w = token_grid(latent, patch)
    p, q, r = patch
    x = latent.reshape(-1, t, p, h, q, w, r)  # (C, t, p, h, q, w, r)
    return x.permute(1, 3, 5, 0, 2, 4, 6).reshape(t * h * w, -1)  # (t h w, C p q r)


def unpatchify(tokens: Tensor, grid: Size3, patch: Size3) -> Tensor:
    """Tokens (t h w, p q r C) to (C, T, H, W); channels come last here, as Wan's head gives them."""
    t, h, w = grid
    p, q, r = patch
    x = tokens.reshape(t, h, w, p, q, r, -1)  # (t, h, w, p, q, r, C)
    return x.permute(6, 0, 3, 1, 4, 2, 5).reshape(-1, t * p, h * q, w * r)  # (C, T, H, W)
