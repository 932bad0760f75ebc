"""Convolutions of 3x3 pixels with a quarter of the products, for processors: Winograd's F(4x4, 3x3).

Four by four results of one channel are computed from six by six pixels. Both are moved to another basis, by additions,
in which a convolution is 36 products instead of 144 (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", arXiv 1509.09308, section 4). In that basis the channels and the frames that a causal kernel looks at are
summed by matrix products. In float32 the results are two to three times in the mean, and up to six at worst, as far
from exact ones as those of oneDNN's convolution (64 to 384 channels, also if one is a thousand times larger than the
others); 16 bits would be too few.

    T frames; n m rows and columns of tiles; C channels in, D out; i j rows and columns of the basis, 6 each.
"""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

KERNEL = 3
"""Pixels on a side of a kernel."""

SIDE = 4
"""Pixels on a side of a tile of results."""

_BASIS = SIDE + KERNEL - 1
_BLOCK = 2**20
"""Values of one row of the basis that are worked on at a time: few enough for the caches."""

_FROM_KERNEL = (  # G of the paper
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolution that looks back in time, with frames padded by one pixel all around; without gradients.

    x (B, C, kt - 1 + T, H, W) and the result (B, D, T, H, W), both float32 in `channels_last_3d` memory; weight
    (D, C, kt, 3, 3); bias (D,).
    """
    clips = x.permute(0, 2, 3, 4, 1)  # (B, kt - 1 + T, H, W, C)
    batch, seen, height, width, _ = clips.shape
    kernel = _in_basis(weight)
    out = x.new_empty(batch, seen - weight.shape[2] + 1, height, width, len(weight))
    columns = -(-width // SIDE)
    lines = max(1, _BLOCK // (_BASIS * columns * max(seen * x.shape[1], out.shape[1] * len(weight))))
    for clip, target in zip(clips, out, strict=True):
        for top in range(0, height, lines * SIDE):
            _rows(clip, target, kernel, bias, top, min(top + lines * SIDE, height))
    return out.permute(0, 4, 1, 2, 3)


def _rows(clip: Tensor, target: Tensor, kernel: Tensor, bias: Tensor, top: int, bottom: int) -> None:
    """Rows from `top` up to `bottom` of a clip (kt - 1 + T, H, W, C), into the target (T, H, W, D)."""
    seen, height, width, dim = clip.shape
    count, out_dim = len(target), target.shape[-1]
    n, m = -(-(bottom - top) // SIDE), -(-width // SIDE)
    padded = clip.new_zeros(seen, n * SIDE + 2, m * SIDE + 2, dim)
    first, last = max(top - 1, 0), min(top + n * SIDE + 1, height)
    padded[:, first - top + 1 : last - top + 1, 1 : width + 1] = clip[:, first:last]
    lines = clip.new_empty(seen, n, m * SIDE + 2, dim)
    pixels = clip.new_empty(_BASIS, seen, n, m, dim)
    sums = clip.new_empty(_BASIS, count * n * m, out_dim)
    half = clip.new_empty(_BASIS, SIDE, count, n, m, out_dim)  # i, and columns as they are
    for i in range(_BASIS):
        _to_basis(_every(padded, 1), i, lines)
        _all_to_basis(_every(lines, 2), pixels)
        for tap in range(kernel.shape[2]):
            taken = pixels[:, tap : tap + count].flatten(1, 3)  # (j, T n m, C)
            if tap:
                sums.baddbmm_(taken, kernel[i, :, tap])
            else:
                torch.bmm(taken, kernel[i, :, tap], out=sums)
        if i == 1:
            sums[1] += bias  # what is added there is added to every pixel
        _from_basis(sums.unflatten(1, (count, n, m)), half[i].unbind(0))
    whole = (bottom - top) % SIDE == width % SIDE == 0
    made = target[:, top:bottom] if whole else target.new_empty(count, n * SIDE, m * SIDE, out_dim)
    tiles = made.unflatten(2, (m, SIDE)).unflatten(1, (n, SIDE)).permute(2, 4, 0, 1, 3, 5)  # (4, 4, T, n, m, D)
    _from_basis(half, tiles.unbind(0))
    if not whole:
        target[:, top:bottom] = made[:, : bottom - top, :width]


def _every(x: Tensor, dim: int) -> list[Tensor]:
    """The first to sixth place of every tile along a dimension, which overlap by two."""
    return list(x.unfold(dim, _BASIS, SIDE).unbind(-1))


def _to_basis(d: Sequence[Tensor], i: int, out: Tensor) -> None:
    """One number of the basis of six places."""
    if i in (0, 5):
        a, b, c = d[0 if i == 0 else 1], d[2 if i == 0 else 3], d[4 if i == 0 else 5]
        torch.add(c, a, alpha=4, out=out).sub_(b, alpha=5)
        return
    far, sign = (4, 1) if i < 3 else (1, 2)
    odd = torch.sub(d[3], d[1], alpha=far)
    torch.sub(d[4], d[2], alpha=far, out=out).add_(odd, alpha=sign if i % 2 else -sign)


def _all_to_basis(d: Sequence[Tensor], out: Tensor) -> None:
    """All six numbers of the basis: what two of them share is computed once."""
    for i in (0, 5):
        _to_basis(d, i, out[i])
    odd = torch.empty_like(out[0])
    for i, far, factor in ((1, 4, 1), (3, 1, 2)):
        torch.sub(d[3], d[1], alpha=far, out=odd)
        even = torch.sub(d[4], d[2], alpha=far, out=out[i + 1])
        torch.add(even, odd, alpha=factor, out=out[i])
        even.sub_(odd, alpha=factor)


def _from_basis(m: Tensor, out: Sequence[Tensor]) -> None:
    """Four results of six numbers of the basis; m (6, ...) is used up."""
    near, far = m[1] + m[2], m[3] + m[4]
    m[1].sub_(m[2])
    m[3].sub_(m[4])
    torch.add(m[0], near, out=out[0]).add_(far)
    torch.add(m[1], m[3], alpha=2, out=out[1])
    torch.add(near, far, alpha=4, out=out[2])
    torch.add(m[5], m[1], out=out[3]).add_(m[3], alpha=8)


def _in_basis(weight: Tensor) -> Tensor:
    """Kernels (D, C, kt, 3, 3) in the basis: (i, j, kt, C, D)."""
    taps = weight.permute(3, 4, 2, 1, 0).reshape(9, -1)
    return (_change() @ taps).view(_BASIS, _BASIS, weight.shape[2], weight.shape[1], weight.shape[0])


@cache
def _change() -> Tensor:
    rows = torch.tensor(_FROM_KERNEL, dtype=torch.float64)
    return torch.kron(rows, rows).float()
