"""The shapes of a Wan model's transformer and autoencoder: known from headers and configs, without torch."""

from dataclasses import dataclass
from itertools import pairwise

from dit_video.errors import DvgenError
from dit_video.shapes import Size3


@dataclass(frozen=True, kw_only=True)
class DiTConfig:
    """The shape of the transformer; field names are the original release's.

    in_dim: channels of a latent, and those that models which animate pictures take beside it. image_dim: width of the
    image encoder's rows, of models that attend to them. emb_pos: the rows that have a learnt position, of models that
    attend to two pictures.
    """

    patch: Size3 = (1, 2, 2)
    in_dim: int = 16
    out_dim: int = 16
    dim: int
    ffn_dim: int
    freq_dim: int = 256
    num_heads: int
    num_layers: int
    text_dim: int = 4096
    text_len: int = 512
    eps: float = 1e-6
    cross_attn_norm: bool = True
    image_dim: int | None = None
    emb_pos: int | None = None

    def __post_init__(self) -> None:
        assert self.dim % (2 * self.num_heads) == 0, "RoPE turns pairs of channels: heads must have an even width"
        assert self.patch[0] == 1, "a latent frame has a noise level of its own: patches are one frame deep"
        assert self.emb_pos is None or self.image_dim is not None, "positions are those of an image encoder's rows"

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.num_heads


@dataclass(frozen=True, kw_only=True)
class VAEConfig:
    """The shape of a Wan VAE and the constants that whiten its latents; the defaults are Wan 2.1's shape.

    Raises:
        DvgenError: fields that do not fit together.
    """

    dim: int = 96
    decoder_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    residual: bool = False
    patch: int = 1
    latents_mean: tuple[float, ...]
    latents_std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            levels, given = len(self.dim_mult), len(self.temporal_downsample)
            raise DvgenError(f"temporal_downsample has {given} entries: {levels} levels need {levels - 1}.")
        for name in ("latents_mean", "latents_std"):
            if (given := len(getattr(self, name))) != self.z_dim:
                raise DvgenError(f"{name} has {given} values: z_dim {self.z_dim} needs {self.z_dim}.")
        growth = [b / a for a, b in pairwise((1, *self.dim_mult))]
        if self.residual and not (growth[-1] == 1 and set(growth) <= {1, 2, 4}):
            raise DvgenError(
                f"dim_mult {self.dim_mult}: a residual VAE's shortcuts need factors of 1, 2 or 4 from level to level "
                "and the last two levels equal, for example (1, 2, 4, 4)."
            )

    @property
    def stride(self) -> tuple[int, int, int]:
        """Pixels per latent in time, height and width."""
        space = self.patch * 2 ** (len(self.dim_mult) - 1)
        return 2 ** sum(self.temporal_downsample), space, space
