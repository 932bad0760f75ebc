"""What a video would take, before anything is loaded: memory and arithmetic, from the configs and the shape alone.

Estimates, not promises: they are there to refuse what cannot work, and to warn of what takes hours.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from dit_video.errors import UsageError
from dit_video.shapes import MIN_SIDE, MIN_TILE, Grid, VideoShape
from dit_video.work import forward_flops

if TYPE_CHECKING:
    from dit_video.checkpoints.headers import Summary
    from dit_video.checkpoints.parts import Keep, Layers
    from dit_video.models.wan.configs import DiTConfig, VAEConfig

_log = logging.getLogger(__name__)

DECODER_WORK = 24  # frames of features of the decoder's last level alive at a time, of one tile
DECODER_PAST = 16  # frames of them that it keeps as its memory of the past, of one tile
ENCODER_WORK = 45  # frames of features of the encoder's first level alive at a time, its memory of the past included
PACK_TOKENS = 16_384  # above this many the two passes of guidance run one after the other, in half of the memory
TEXT_WORK = 200_000_000  # bytes of the text encoder's work on 512 tokens
PIXEL_FRAMES = 16  # frames of pixels alive at a time


class Described(Protocol):
    """A model as its headers and configs describe it; layers: of the parts that can be streamed."""

    @property
    def by_library(self) -> frozenset[str]: ...

    @property
    def dit(self) -> "DiTConfig": ...

    @property
    def vae(self) -> "VAEConfig": ...

    @property
    def grid(self) -> Grid: ...

    @property
    def beside(self) -> bool: ...

    @property
    def components(self) -> "Mapping[str, Summary]": ...

    @property
    def layers(self) -> "Mapping[str, Layers]": ...


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The patches (time, height, width) of a video, and the bytes and operations that they take.

    tile: latents on a side of the windows that the decoder works in; None for whole frames. text_bytes, denoise_bytes,
    decode_bytes: with the weights of the stage. encode_bytes: likewise, where more than the first frame is encoded, as
    always in models that take pictures beside the noise; else 0, as one frame takes less than decoding. pass_flops: of
    one clip once through the transformer. keep_layers: of the parts whose layers are streamed, what of them stays in
    memory.
    """

    shape: VideoShape
    padded: VideoShape
    grid: tuple[int, int, int]
    tile: int | None
    text_bytes: int
    denoise_bytes: int
    decode_bytes: int
    encode_bytes: int
    pass_flops: float
    keep_layers: "Mapping[str, Keep]"

    @property
    def tokens(self) -> int:
        """The number of patches."""
        return math.prod(self.grid)

    @property
    def nbytes(self) -> int:
        """The most memory at a time: stages are loaded one after the other."""
        return max(self.text_bytes, self.denoise_bytes, self.decode_bytes, self.encode_bytes)

    def words(self, available: int) -> str:
        """What its stages take, and how, of the bytes that there are."""
        taken = {"text": self.text_bytes, "encode": self.encode_bytes}
        taken |= {"denoise": self.denoise_bytes, "decode": self.decode_bytes}
        parts = [f"{stage} {_gigabytes(nbytes)}" for stage, nbytes in taken.items() if nbytes]
        parts += [f"the {part}'s layers are streamed, {keep}" for part, keep in self.keep_layers.items()]
        parts += [f"decoded in tiles of {self.tile} latents"] * bool(self.tile)
        return f"{self.shape}: {', '.join(parts)}; there are {_gigabytes(available)}"


def plan(
    checkpoint: Described,
    shape: VideoShape,
    *,
    itemsize: int,
    tile: int | None = None,
    available: int | None = None,
    holds: bool = False,
    encodes: bool = False,
    quantised: bool = False,
) -> Plan:
    """The plan of one guided clip, parameters of `itemsize` bytes, decoded whole or in windows of `tile` latents.

    tile: frames that are no larger are decoded whole. available: bytes that there are; layers of parts that do not fit
    in them beside their stage's work are streamed. holds: they may be held as they are stored, on a device with memory
    of its own (elsewhere the system's cache of the disk does that). encodes: more than its first frame is given, or it
    starts from frames. quantised: the weights of the transformers' blocks that stay in memory take one byte each.
    """
    from dit_video.checkpoints.parts import Keep

    dit, vae = checkpoint.dit, checkpoint.vae
    padded = checkpoint.grid.padded(shape)
    latent = checkpoint.grid.latent(shape)
    grid = checkpoint.grid.tokens(latent)
    tile = tile if tile and max(latent.height, latent.width) > tile else None
    tokens = math.prod(grid)
    # The residual stream, its modulated copy, six rows of modulation and the normalised q and k are float32.
    together = 2 * tokens if 2 * tokens <= PACK_TOKENS else tokens  # conditional and unconditional
    activations = together * (10 * 4 * dit.dim + itemsize * (4 * dit.dim + 2 * dit.ffn_dim))
    # The keys and values of two prompts, as long as they may be, in every layer.
    activations += 2 * dit.num_layers * 2 * dit.text_len * dit.dim * itemsize
    area = padded.height * padded.width
    _, down, across = vae.stride
    window = min(padded.height, tile * down) * min(padded.width, tile * across) if tile else area
    features = vae.decoder_dim * vae.dim_mult[0] * (DECODER_PAST + DECODER_WORK) * window // vae.patch**2
    if tile:  # what the decoder begins with, of the whole clip
        latent = checkpoint.grid.latent(shape)
        features += vae.decoder_dim * vae.dim_mult[-1] * latent.frames * latent.height * latent.width
    pixels = PIXEL_FRAMES * 3 * area * 4  # float32
    work = {name: TEXT_WORK if name == "text_encoder" else activations for name in checkpoint.layers}
    keep_layers = {}
    weights = {name: part.parameters * itemsize for name, part in checkpoint.components.items()}
    for name, layers in checkpoint.layers.items():
        each = layers.largest * (1 if quantised and name.startswith("transformer") else itemsize)  # that stays
        weights[name] -= layers.count * (layers.largest * itemsize - each)
        if available is not None and weights[name] + work[name] > available:
            least, room = layers.parameters(0) * itemsize, available - work[name]
            if holds and layers.stored is not None and least + layers.stored <= room:
                keep_layers[name], weights[name] = Keep(stored=True), least + layers.stored
                continue
            fit = min(max((room - least) // each, 0), layers.count)
            keep_layers[name], weights[name] = Keep(fit), least + min(fit, max(layers.count - 2, 0)) * each
    encoded = ENCODER_WORK * vae.dim // vae.patch**2 + 3 * padded.num_frames  # numbers for every pixel of a frame
    return Plan(
        shape=shape,
        padded=padded,
        grid=grid,
        tile=tile,
        text_bytes=weights.get("text_encoder", 0) + TEXT_WORK * ("text_encoder" in weights),
        denoise_bytes=max((weights[name] for name in weights if name.startswith("transformer")), default=0)
        + activations,
        decode_bytes=weights.get("vae", 0) + features * itemsize + pixels,
        encode_bytes=weights.get("vae", 0) + encoded * area * itemsize if checkpoint.beside or encodes else 0,
        pass_flops=forward_flops(dit, tokens),
        keep_layers=keep_layers,
    )


def weights_bytes(checkpoint: Described, itemsize: int) -> int:
    """What all stages take together, parameters of `itemsize` bytes."""
    return sum(part.parameters for part in checkpoint.components.values()) * itemsize


def check_memory(
    checkpoint: Described,
    shape: VideoShape,
    *,
    itemsize: int,
    available: int,
    holds: bool = False,
    encodes: bool = False,
    tile: int | None = None,
    quantised: bool = False,
) -> Plan:
    """The plan of a clip that fits in `available` bytes: with all weights in memory and its frames decoded whole where
    that fits, else with layers that are streamed, and in tiles; holds, encodes, quantised: see `plan`. tile: that it is
    to have, whatever fits.

    Raises:
        UsageError: it does not; the message says what it would take and the nearest size that fits.
    """
    for part, summary in checkpoint.components.items():
        if part not in checkpoint.layers and summary.parameters * itemsize > available:
            dtype = "--dtype bfloat16 and " if itemsize > 2 else ""
            needs = (
                f"takes {_gigabytes(summary.parameters * itemsize)} of memory, and there are {_gigabytes(available)}"
            )
            raise UsageError(f"this model's {part} alone {needs}; try {dtype}a smaller model.")
    that_may_fit = partial(
        _plan_that_may_fit,
        checkpoint,
        tile=tile,
        itemsize=itemsize,
        available=available,
        holds=holds,
        encodes=encodes,
        quantised=quantised,
    )
    wanted = that_may_fit(shape)
    _log.info("%s", wanted.words(available))
    if wanted.nbytes <= available:
        return wanted
    stages = {"denoising": wanted.denoise_bytes, "decoding": wanted.decode_bytes, "encoding": wanted.encode_bytes}
    stages["reading the prompt of"] = wanted.text_bytes
    part = max(stages, key=lambda name: stages[name])
    needs = f"{part} its {wanted.tokens:,} patches takes about {_gigabytes(wanted.nbytes)} of memory"
    nearest = _nearest(shape, lambda smaller: that_may_fit(smaller).nbytes <= available)
    raise UsageError(f"{shape}: {needs}, and there are {_gigabytes(available)}; {nearest}.")


def tokens_together(checkpoint: Described, *, itemsize: int, available: int) -> int:
    """The most tokens of several clips that go through the transformer in one pass, with and without the prompt."""
    dit = checkpoint.dit
    weights = max((part.parameters for name, part in checkpoint.components.items() if "transformer" in name), default=0)
    each = 2 * (10 * 4 * dit.dim + itemsize * (4 * dit.dim + 2 * dit.ffn_dim))
    return min(PACK_TOKENS // 2, max(available // 2 - weights * itemsize, 0) // each)


def decoding_tile(checkpoint: Described, shape: VideoShape, *, itemsize: int, available: int) -> int | None:
    """The side of the tiles that frames are decoded in, in latents; None where they fit whole.

    Raises:
        UsageError: not even tiles fit.
    """
    for tile in (None, MIN_TILE):
        needed = plan(checkpoint, shape, itemsize=itemsize, tile=tile).decode_bytes
        if needed <= available:
            return tile
    needs = f"decoding takes about {_gigabytes(needed)} of memory, and there are {_gigabytes(available)}"
    raise UsageError(f"{shape}: {needs}; decode on a machine with more.")


def _plan_that_may_fit(
    checkpoint: Described, shape: VideoShape, *, available: int, tile: int | None, **options: Any
) -> Plan:
    wanted = plan(checkpoint, shape, tile=tile, available=available, **options)
    if tile or wanted.nbytes <= available:
        return wanted
    return plan(checkpoint, shape, tile=MIN_TILE, available=available, **options)


def _nearest(shape: VideoShape, fits: Callable[[VideoShape], bool]) -> str:
    scale = min(shape.width, shape.height)
    for side in sorted({scale * n // 64 for n in range(1, 64)}, reverse=True):
        smaller = replace(shape, width=shape.width * side // scale, height=shape.height * side // scale)
        if side >= MIN_SIDE and fits(smaller):
            return f"the nearest of this shape is {smaller.width}x{smaller.height}"
    return "no size of this length fits: ask for fewer frames, or use a smaller model"


def _gigabytes(nbytes: int) -> str:
    return f"{nbytes / 1e9:,.0f} GB" if nbytes >= 1e10 else f"{nbytes / 1e9:.1f} GB"
