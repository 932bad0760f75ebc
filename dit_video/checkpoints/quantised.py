"""Quantised weights of ComfyUI's files: a weight and, beside it, the scale that it is multiplied by.

    older   X.weight  X.scale_weight  [X.scale_input]  and a tensor `scaled_fp8` as a mark
    newer   X.weight  X.weight_scale  [X.input_scale]  [X.comfy_quant: JSON in bytes]  and `_quantization_metadata`

(ComfyUI, QUANTIZATION.md.) Scales of inputs are for kernels that quantise activations; they are not used. A weight of 8
bits without a scale is a plain cast.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from dit_video.checkpoints.formats import SAFETENSORS
from dit_video.checkpoints.headers import TensorInfo, read_bytes
from dit_video.errors import CheckpointError

FORMATS = {
    "float8_e4m3fn": ("F8_E4M3",),
    "float8_e5m2": ("F8_E5M2",),
    "int8_tensorwise": ("I8",),
    "int8_blockwise": ("I8",),
}
METADATA = "_quantization_metadata"
_MARK = "scaled_fp8"
_SCALES = ("scale_weight", "weight_scale")
_UNUSED = ("scale_input", "input_scale")
_SECOND = ("weight_scale_2", "pre_quant_scale")  # of formats that are not supported
_FORMAT = "comfy_quant"


def peeled(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> dict[str, TensorInfo]:
    """The tensors of a file without those that only say how others are quantised, which are with them as `scale`.

    metadata: of the file, see `headers.read_metadata`.

    Raises:
        CheckpointError: a format that is not supported, or a scale that does not fit its weight.
    """
    formats = _formats(tensors, metadata)
    found: dict[str, TensorInfo] = {}
    for name, info in tensors.items():
        layer, _, leaf = name.rpartition(".")
        if leaf in (*_SCALES, *_UNUSED, _FORMAT, _MARK):
            continue
        if leaf in _SECOND:
            raise CheckpointError(f"{info.file}: {name!r}: weights with a second scale (nvfp4, AWQ) are not supported.")
        if leaf == "weight":
            scale = next((tensors[f"{layer}.{s}"] for s in _SCALES if f"{layer}.{s}" in tensors), None)
            info = _checked(info, scale, formats.get(layer))
        found[name] = info
    return found


def _formats(tensors: Mapping[str, TensorInfo], metadata: Mapping[str, str]) -> dict[str, str]:
    """The format of each layer, of those that say it."""
    found: dict[str, Any] = {}
    file = next((info.file for info in tensors.values()), None)
    try:
        for layer, about in json.loads(metadata.get(METADATA, "{}")).get("layers", {}).items():
            found[layer] = about["format"]
        told = [info for name, info in tensors.items() if name.rpartition(".")[2] == _FORMAT]
        for info in told:
            if info.dtype != "U8" or info.numel > 10_000:
                raise ValueError(f"{info.name!r} is no text")
        for info, text in zip(told, _texts(told), strict=True):
            found[info.name.rpartition(".")[0]] = json.loads(text)["format"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{file}: what it says of its quantisation is damaged ({error}).") from error
    if unknown := sorted({str(kind) for kind in found.values() if kind not in FORMATS}):
        known = ", ".join(FORMATS)
        raise CheckpointError(f"{file}: is quantised as {unknown[0]!r}, which is not supported; {known} are.")
    return found


def _texts(told: Sequence[TensorInfo]) -> Iterator[bytes]:
    """The bytes of tensors of one file; without torch, but of a pickle."""
    if not told:
        return
    if told[0].file.suffix.lower() in SAFETENSORS:
        yield from read_bytes(told[0].file, told)
        return
    from dit_video.checkpoints.stored import read_tensor

    for info in told:
        yield bytes(read_tensor(info).tolist())


def _checked(info: TensorInfo, scale: TensorInfo | None, kind: str | None) -> TensorInfo:
    """The weight with its scale. Raises CheckpointError."""
    if kind and info.dtype not in FORMATS[kind]:
        raise CheckpointError(f"{info.file}: {info.name!r} is said to be {kind} and is {info.dtype}.")
    if scale is None:
        if info.dtype in ("I8", "U8"):
            raise CheckpointError(f"{info.file}: {info.name!r} is {info.dtype} and has no scale beside it.")
        return info
    blocks = len(scale.shape) == len(info.shape) == 2 and all(
        n and side % n == 0 for side, n in zip(info.shape, scale.shape, strict=True)
    )
    if scale.numel != 1 and scale.shape != info.shape[:1] and not blocks:
        shapes = f"{list(scale.shape)}, which does not fit its {list(info.shape)}"
        raise CheckpointError(f"{info.file}: the scale of {info.name!r} is {shapes}.")
    if scale.dtype not in ("F32", "F16", "BF16"):
        raise CheckpointError(f"{scale.file}: the scale {scale.name!r} is {scale.dtype}; it must be a float.")
    return replace(info, scale=scale)
