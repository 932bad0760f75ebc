"""The encoders of T5 (arXiv 1910.10683) and UMT5 (arXiv 2304.09151), as transformers computes them.

    B prompts, L tokens of each, D width of the embeddings, H heads of A numbers, F width within the feed-forward

The names are those of transformers (models/t5 and models/umt5), which files have, and so is the order of all
operations: the numbers are the same to the last bit. To import its classes takes longer than to read a prompt.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IN_FLOAT32 = ("wo",)
"""Modules whose weights stay in float32 where the others are float16, which their sums would leave."""


def gelu_new(x: Tensor) -> Tensor:
    """GELU by tanh, in the steps of transformers' `NewGELUActivation`; torch's own differs in the last bits."""
    return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


FEED_FORWARDS: dict[str, tuple[bool, Callable[[Tensor], Tensor]]] = {
    "relu": (False, F.relu),
    "gelu": (False, F.gelu),
    "gated-gelu": (True, gelu_new),
    "gated-silu": (True, F.silu),
}
"""By the name in a config.json: whether a gate is multiplied, and the activation."""


@dataclass(frozen=True, kw_only=True)
class T5Config:
    """The fields of an encoder's config.json.

    every_bias: each layer has biases by distance of its own, as in UMT5; in T5 all have those of the first.
    """

    vocab_size: int
    d_model: int = 512
    d_kv: int = 64
    d_ff: int
    num_layers: int
    num_heads: int
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_epsilon: float = 1e-6
    feed_forward_proj: str
    every_bias: bool

    def __post_init__(self) -> None:
        """Raises ValueError: there is no such encoder."""
        for each in fields(self):
            value = getattr(self, each.name)
            if each.type is int and (type(value) is not int or value < 1):
                raise ValueError(f"{each.name} is {value!r}; it must be a whole number from 1")
        if type(self.layer_norm_epsilon) not in (int, float):
            raise ValueError(f"layer_norm_epsilon is {self.layer_norm_epsilon!r}; it must be a number")
        if self.feed_forward_proj not in FEED_FORWARDS:
            known = ", ".join(FEED_FORWARDS)
            raise ValueError(f"feed_forward_proj is {self.feed_forward_proj!r}; it must be one of {known}")
        if not 1 <= self.relative_attention_num_buckets // 4 < self.relative_attention_max_distance:
            raise ValueError(
                f"relative_attention_num_buckets is {self.relative_attention_num_buckets}; it must be from 4, and a "
                f"quarter of it below relative_attention_max_distance, {self.relative_attention_max_distance}"
            )

    def over(self, fields_of_file: Mapping[str, Any]) -> "T5Config":
        """This with the fields that a config.json has. Raises ValueError."""
        known = {each.name for each in fields(self)} - {"every_bias"}
        return replace(self, **{name: value for name, value in fields_of_file.items() if name in known})


CONFIGS = {
    "umt5": T5Config(
        vocab_size=250112, d_ff=1024, num_layers=8, num_heads=6, feed_forward_proj="gated-gelu", every_bias=True
    ),
    "t5": T5Config(vocab_size=32128, d_ff=2048, num_layers=6, num_heads=8, feed_forward_proj="relu", every_bias=False),
}
"""By "model_type" of a config.json: what transformers takes for fields that are not there."""


class RMSNorm(nn.Module):
    """A norm without mean and bias, whose mean square is summed in float32."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.d_model))
        self.eps = config.layer_norm_epsilon

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D) of the weight's dtype."""
        x = x * torch.rsqrt(x.to(torch.float32).pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * (x.to(self.weight.dtype) if self.weight.dtype != torch.float32 else x)


class Embedding(nn.Embedding):
    """One that is not initialised: to draw numbers without memory for them torch imports its compiler, two seconds."""

    def reset_parameters(self) -> None:
        """Its weights come from a file."""


class Attention(nn.Module):
    """Attention without a scale, to whose logits a bias by distance is added."""

    def __init__(self, config: T5Config, *, has_bias: bool) -> None:
        super().__init__()
        self.heads, inner = config.num_heads, config.num_heads * config.d_kv
        self.q, self.k, self.v = (nn.Linear(config.d_model, inner, bias=False) for _ in range(3))
        self.o = nn.Linear(inner, config.d_model, bias=False)
        self.relative_attention_bias: Embedding | None = None
        if has_bias:
            self.relative_attention_bias = Embedding(config.relative_attention_num_buckets, self.heads)

    def forward(self, x: Tensor, buckets: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, L, D) and the buckets (L, L) to (B, L, D), and the bias (1, H, L, L): its own, or that which it was
        given."""
        if self.relative_attention_bias is not None:
            bias = self.relative_attention_bias(buckets).permute(2, 0, 1)[None]  # 1 H L L
        assert bias is not None
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.contiguous(), scale=1.0)  # B H L A
        return self.o(y.transpose(1, 2).flatten(2)), bias


def buckets_of(length: int, count: int, max_distance: int) -> Tensor:
    """The bucket (L, L) of each token as seen from each: half of them for what follows; of either half the first for
    single distances, the others for ever longer ranges of them up to the maximum."""
    place = torch.arange(length)
    distance = place[None, :] - place[:, None]  # L L
    half, single = count // 2, count // 4
    near = distance.abs()
    far = torch.log(near.float() / single) / math.log(max_distance / single) * (half - single)
    far = (single + far.to(torch.long)).clamp(max=half - 1)
    return (distance > 0).to(torch.long) * half + torch.where(near < single, near, far)


class FeedForward(nn.Module):
    """Two linear layers, and in most models a third that is multiplied with what the activation gave."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.gated, self.activation = FEED_FORWARDS[config.feed_forward_proj]
        if self.gated:
            self.wi_0, self.wi_1 = (nn.Linear(config.d_model, config.d_ff, bias=False) for _ in range(2))
        else:
            self.wi = nn.Linear(config.d_model, config.d_ff, bias=False)
        self.wo = nn.Linear(config.d_ff, config.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D) of the last layer's dtype."""
        y = self.activation(self.wi_0(x)) * self.wi_1(x) if self.gated else self.activation(self.wi(x))  # B L F
        return self.wo(y.to(self.wo.weight.dtype))


class AttentionLayer(nn.Module):
    """Attention behind a norm, added to what it was given."""

    def __init__(self, config: T5Config, *, has_bias: bool) -> None:
        super().__init__()
        self.SelfAttention = Attention(config, has_bias=has_bias)
        self.layer_norm = RMSNorm(config)

    def forward(self, x: Tensor, buckets: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """See `Attention`."""
        y, bias = self.SelfAttention(self.layer_norm(x), buckets, bias)
        return x + y, bias


class FeedForwardLayer(nn.Module):
    """The feed-forward behind a norm, added to what it was given."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.DenseReluDense = FeedForward(config)
        self.layer_norm = RMSNorm(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        return x + self.DenseReluDense(self.layer_norm(x))


class Block(nn.Module):
    """Attention, then the feed-forward."""

    def __init__(self, config: T5Config, *, has_bias: bool) -> None:
        super().__init__()
        self.layer = nn.ModuleList([AttentionLayer(config, has_bias=has_bias), FeedForwardLayer(config)])

    def forward(self, x: Tensor, buckets: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, L, D) and the buckets (L, L) to (B, L, D), and the bias (1, H, L, L) that was added."""
        x, bias = self.layer[0](x, buckets, bias)
        return _finite(self.layer[1](_finite(x))), bias


def _finite(x: Tensor) -> Tensor:
    """float16 that overflowed, at large numbers instead of infinite ones."""
    if x.dtype != torch.float16:
        return x
    most = torch.finfo(x.dtype).max
    limit = torch.where(torch.isinf(x).any(), most - 1000, most)
    return x.clamp(min=-limit, max=limit)


class Stack(nn.Module):
    """The blocks, and a last norm."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        biases = (config.every_bias or number == 0 for number in range(config.num_layers))
        self.config = config
        self.block = nn.ModuleList(Block(config, has_bias=has_bias) for has_bias in biases)
        self.final_layer_norm = RMSNorm(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, D) to (B, L, D)."""
        count, most = self.config.relative_attention_num_buckets, self.config.relative_attention_max_distance
        buckets, bias = buckets_of(x.shape[1], count, most).to(x.device), None  # (L, L), the same for all layers
        for block in self.block:
            x, bias = block(x, buckets, bias)
        return self.final_layer_norm(x)


class T5Encoder(nn.Module):
    """Tokens to embeddings, without padding."""

    def __init__(self, config: T5Config) -> None:
        super().__init__()
        self.config = config
        self.shared = Embedding(config.vocab_size, config.d_model)
        self.encoder = Stack(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Numbers of tokens (B, L) to embeddings (B, L, D)."""
        return self.encoder(self.shared(ids))
