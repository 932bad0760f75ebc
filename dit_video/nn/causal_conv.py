"""The one place where a causal 3D VAE convolves: every kernel takes the road that is fast on its device.

Clips are (B, C, T, H, W) in `channels_last_3d` memory, that is frames of (H, W, C) rows, so that without a copy a clip
is also a batch of channels-last images, and a 1x1x1 kernel is a matrix product over rows.

PyTorch sends a CPU 3D convolution with few channels or frames to its reference kernel (20 GFLOP/s on two cores, against
300), and the bfloat16 weight gradient of oneDNN's 3D convolution writes outside its buffers on AMX machines (torch
2.13: "free(): invalid next size"). So on the CPU the forward pass and the input gradient call oneDNN's forward kernel
by name, and the weight gradient is a 2D one per time tap.
"""

from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from dit_video.nn import winograd

_ONE = (1, 1, 1)
_WINOGRAD_CHANNELS, _WINOGRAD_TILES = 64, 256  # fewer, and Winograd's additions cost more than the products they save


def causal_conv3d(x: Tensor, weight: Tensor, bias: Tensor, *, stride: tuple[int, int] = (1, 1)) -> Tensor:
    """Convolution that looks back in time, never ahead, and keeps the sides of a frame.

    x (B, C, kt - 1 + T, H, W), the kt - 1 frames before the clip first; weight (C_out, C, kt, k, k); bias (C_out,).
    stride is (time, space), with a kernel of one pixel for the first and of one frame for the second. A spatial stride
    of 1 pads frames by k // 2 all around, one of 2 at the right and the bottom only, as `Resample` does in
    Wan-Video/Wan2.1 wan/modules/vae.py.

    Returns (B, C_out, ceil(T / stride), H / stride, W / stride).
    """
    x, weight, bias = _autocast(x, weight, bias)
    kt, k = weight.shape[2], weight.shape[3]
    if kt == 1 and k == 1:
        return F.linear(_rows(x), weight[:, :, 0, 0, 0], bias).permute(0, 4, 1, 2, 3)
    if kt == 1:
        return _conv_frames(x, weight[:, :, 0], bias, stride[1])
    if stride != (1, 1):
        assert k == 1, "a stride in time takes a kernel of one pixel"
        return _conv_time(x, weight[..., 0, 0], bias, stride[0])
    if _winograd_pays(x, weight, bias):
        return winograd.conv(x, weight, bias)
    if _onednn_takes(x):
        return _OneDNN.apply(x, weight, bias)
    return F.conv3d(x, weight, bias, padding=(0, k // 2, k // 2))


def _onednn_takes(x: Tensor) -> bool:
    """Whether oneDNN convolves this on the CPU here; it refuses bfloat16 on processors without AVX-512 or its like."""
    if x.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _winograd_pays(x: Tensor, weight: Tensor, bias: Tensor) -> bool:
    """Whether Winograd's way is the faster one here, and exact enough; it has no gradients."""
    if x.device.type != "cpu" or x.dtype != torch.float32 or weight.shape[-1] != winograd.KERNEL:
        return False
    if torch.is_grad_enabled() and any(each.requires_grad for each in (x, weight, bias)):
        return False
    tiles = (x.shape[2] - weight.shape[2] + 1) * x.shape[3] * x.shape[4] // winograd.SIDE**2
    return min(weight.shape[:2]) >= _WINOGRAD_CHANNELS and tiles >= _WINOGRAD_TILES


def upsample_conv(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Twice the rows and columns (nearest neighbour), then a 3x3 convolution.

    x (B, C, T, H, W), weight (C_out, C, 3, 3), bias (C_out,) -> (B, C_out, T, 2H, 2W). The two steps are one transposed
    convolution of stride 2, whose 4x4 kernel is the 3x3 one summed over 2x2 blocks: 4 products per pixel in place of 9,
    and the doubled frames are never written.
    """
    grown = F.pad(weight.float(), (1, 1, 1, 1))
    rows = grown[..., 1:, :] + grown[..., :-1, :]
    kernel = (rows[..., 1:] + rows[..., :-1]).flip(2, 3).transpose(0, 1)  # (C, C_out, 4, 4)
    x, kernel, bias = _autocast(x, kernel.to(weight.dtype), bias)
    kernel = kernel.contiguous(memory_format=torch.channels_last)
    return clips(F.conv_transpose2d(frames(x), kernel, bias, stride=2, padding=1), x.shape[0])


def cat_time(parts: list[Tensor]) -> Tensor:
    """Clips (B, C, T_i, H, W) one after the other, in `channels_last_3d` memory."""
    rows = [_rows(part) for part in parts]
    return (rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)).permute(0, 4, 1, 2, 3)


def stack_time(images: list[Tensor]) -> Tensor:
    """Frames (B, C, H, W) one after the other as a clip (B, C, T, H, W), in `channels_last_3d` memory."""
    return torch.stack([image.permute(0, 2, 3, 1) for image in images], dim=1).permute(0, 4, 1, 2, 3)


def frames(x: Tensor) -> Tensor:
    """A clip (B, C, T, H, W) as a batch of images (B*T, C, H, W): a view when x is in `channels_last_3d` memory."""
    return x.permute(0, 2, 1, 3, 4).flatten(0, 1)


def clips(images: Tensor, batch: int) -> Tensor:
    """Images (B*T, C, H, W) as clips (B, C, T, H, W); the inverse of `frames`."""
    return images.unflatten(0, (batch, -1)).permute(0, 2, 1, 3, 4)


def _rows(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 4, 1)  # (B, T, H, W, C)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    device = tensors[0].device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tensors[0].dtype
    return tuple(tensor.to(dtype) for tensor in tensors)


def _conv_frames(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    images, k = frames(x), weight.shape[-1]
    if stride > 1:
        images = F.pad(images, (0, k - stride, 0, k - stride))
    weight = weight.contiguous(memory_format=torch.channels_last)
    return clips(F.conv2d(images, weight, bias, stride, padding=k // 2 if stride == 1 else 0), x.shape[0])


def _conv_time(x: Tensor, weight: Tensor, bias: Tensor, stride: int) -> Tensor:
    kt = weight.shape[2]
    taps = [_rows(x)[:, tap : x.shape[2] - kt + 1 + tap : stride] for tap in range(kt)]
    return F.linear(torch.cat(taps, dim=-1), weight.transpose(1, 2).flatten(1), bias).permute(0, 4, 1, 2, 3)


class _OneDNN(torch.autograd.Function):
    """A stride-1 3D convolution by oneDNN's forward kernel, with gradients that stay off the slow and unsafe roads."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        pad = weight.shape[-1] // 2
        return torch.mkldnn_convolution(x, weight, bias, (0, pad, pad), _ONE, _ONE, 1)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        kt, pad = weight.shape[2], weight.shape[-1] // 2
        grad = grad.contiguous(memory_format=torch.channels_last_3d)
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:  # a full correlation with the mirrored kernel
            mirrored = weight.flip(2, 3, 4).transpose(0, 1)
            grad_x = torch.mkldnn_convolution(grad, mirrored, None, (kt - 1, pad, pad), _ONE, _ONE, 1)
        if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
            grad_weight, grad_bias = _weight_gradient(grad, x, weight)
        return grad_x, grad_weight, grad_bias


def _weight_gradient(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of weight and bias: per clip and time tap, the weight gradient is a 2D one."""
    pad, count = weight.shape[-1] // 2, grad.shape[2]
    taps: list[Tensor] = []
    for tap in range(weight.shape[2]):
        pairs = zip(grad.transpose(1, 2), x[:, :, tap : tap + count].transpose(1, 2), strict=True)  # (T, C, H, W) each
        parts = [_image_weight_gradient(g, images, weight[:, :, tap], pad) for g, images in pairs]
        taps.append(reduce(torch.add, parts))
    return torch.stack(taps, dim=2), grad.sum((0, 2, 3, 4))


def _image_weight_gradient(grad: Tensor, images: Tensor, weight: Tensor, pad: int) -> Tensor:
    if pad == 0:
        return (_matrix(grad).t() @ _matrix(images))[..., None, None]
    gradients = torch.ops.aten.convolution_backward(
        grad, images, weight, None, (1, 1), (pad, pad), (1, 1), False, (0, 0), 1, (False, True, False)
    )
    return gradients[1]


def _matrix(images: Tensor) -> Tensor:
    return images.permute(0, 2, 3, 1).flatten(0, 2)  # (T * H * W, C)
