"""What the parts of `gpu_all.py` have in common: the device, sizes, models with random weights, clocks, agreement."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from harness import relative_error, say
from torch import Tensor

from dit_video.models.wan.configs import DiTConfig, VAEConfig
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.layouts import DIFFUSERS, config_to_diffusers
from dit_video.models.wan.vae import WanVAE
from dit_video.models.wan.vae_layouts import diffusers_config, diffusers_layout
from dit_video.models.wan.variants import TINY, VARIANTS
from dit_video.nn.linear import multiplies

if TYPE_CHECKING:
    from diffusers import AutoencoderKLWan, WanTransformer3DModel

BF16 = torch.bfloat16
AGREE = 3e-2  # relative error of two computations in bfloat16 that counts as none
TEXT = 120  # rows of a prompt; diffusers pads it to 512
Run = Callable[[], Any]


@dataclass(frozen=True)
class Sizes:
    """What is measured: models, clips in latents (T, H, W), of which one is decoded, those of packs, and how often."""

    dit: DiTConfig
    vae: VAEConfig
    clip: tuple[int, int, int]
    small: tuple[int, int, int]
    pack: tuple[tuple[int, int, int], ...]
    rounds: int
    decoded: tuple[int, int, int]


def sizes(tiny: bool) -> Sizes:
    """Wan 1.3B at 832x480 in 81 frames, or what a CPU computes in seconds."""
    if tiny:
        dit, vae = replace(TINY.dit, num_layers=3, text_dim=64), TINY.vae
        return Sizes(dit, vae, (2, 8, 12), (1, 8, 8), ((2, 8, 12), (1, 4, 6), (3, 4, 8)), 2, (3, 4, 6))
    real = VARIANTS["T2V-1.3B"]
    pack = tuple((t, 30 + 2 * (n % 5), 40 + 4 * (n % 4)) for n, t in enumerate((1, 2, 3, 4, 5, 7, 9, 11)))
    return Sizes(real.dit, real.vae, (21, 60, 104), (7, 30, 40), pack, 3, (21, 60, 104))


@dataclass(frozen=True)
class Bench:
    """The device that is measured, and at which sizes."""

    device: torch.device
    tiny: bool

    @property
    def sizes(self) -> Sizes:
        return sizes(self.tiny)

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    @property
    def compiler(self) -> str:
        """What torch.compile makes code with; where the script is only tried out nothing: graphs run as they are."""
        return "inductor" if self.cuda else "eager"

    def decoder_dtype(self) -> torch.dtype:
        """Of the autoencoder: bfloat16, or float32 where that is no faster than number by number."""
        return BF16 if multiplies(BF16, self.device.type) else torch.float32

    def wait(self) -> None:
        """For all that was asked of the device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def seconds(self, runs: dict[str, Run], rounds: int | None = None) -> dict[str, list[float]]:
        """Seconds of each run, in turn; the first round is not counted."""
        found: dict[str, list[float]] = {name: [] for name in runs}
        for number in range((rounds or self.sizes.rounds) + 1):
            for name, run in runs.items():
                self.wait()
                started = time.perf_counter()
                run()
                self.wait()
                if number:
                    found[name].append(time.perf_counter() - started)
        return found

    @contextmanager
    def peak(self, what: str, *beside: torch.nn.Module) -> Iterator[None]:
        """Says the most memory of the device that its body took, with weights, but without those of models `beside`."""
        if self.cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        yield
        if self.cuda:
            held = sum(x.numel() * x.element_size() for model in beside for x in model.state_dict().values())
            say(kind="peak", what=what, gib=(torch.cuda.max_memory_allocated(self.device) - held) / 2**30)

    def compared(
        self, what: str, theirs: str, ours: str, found: dict[str, list[float]], agreement: str, wanted: float = 0
    ) -> None:
        """Says how two sides compare; wanted: the ratio that was set out for, if one was."""
        figures = {"peer": theirs, "side": ours, "theirs": found[theirs], "ours": found[ours]}
        say(kind="claim", what=what, **figures, agreement=agreement, wanted=wanted or None)


def agreed(got: Tensor, want: Tensor, limit: float = AGREE) -> str:
    """How far two results agree, in words. Raises AssertionError: they do not, and no ratio is to be told."""
    error = relative_error(got, want)
    assert error <= limit, f"the sides differ by {error:.3g}, and at most {limit:g} counts as equal"
    return f"relative error {error:.1e}"


def flat(clips: Iterable[Tensor]) -> Tensor:
    """The numbers of several clips in one tensor."""
    return torch.cat([clip.flatten() for clip in clips])


@torch.no_grad()
def transformer(bench: Bench) -> WanDiT:
    """Our transformer with random weights, in bfloat16."""
    torch.manual_seed(0)
    with torch.device(bench.device):
        return WanDiT(bench.sizes.dit).to(BF16).eval().requires_grad_(False)


@torch.no_grad()
def transformers(bench: Bench) -> tuple[WanDiT, "WanTransformer3DModel"]:
    """Our transformer and diffusers' with the same random weights, in bfloat16."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    with torch.device(bench.device):
        theirs = WanTransformer3DModel.from_config(config_to_diffusers(bench.sizes.dit)).eval().requires_grad_(False)
    for name, parameter in theirs.named_parameters():
        if parameter.ndim == 1:  # what an initialisation leaves at 0 or 1 would hide a wrong result
            parameter.add_(0.1 * torch.randn_like(parameter))
        if not set(name.split(".")) & set(theirs._keep_in_fp32_modules):  # as its from_pretrained does
            parameter.data = parameter.to(BF16)
    with torch.device("meta"):
        ours = WanDiT(bench.sizes.dit)
    ours.load_state_dict({DIFFUSERS.to_ours(name): x.to(BF16) for name, x in theirs.state_dict().items()}, assign=True)
    return ours.eval().requires_grad_(False), theirs


def inputs(bench: Bench, clip: tuple[int, int, int] | None = None) -> tuple[Tensor, Tensor]:
    """Latents (C, T, H, W) and the rows of a prompt (L, width)."""
    generator, config = torch.Generator().manual_seed(1), bench.sizes.dit
    latents = torch.randn(config.in_dim, *(clip or bench.sizes.clip), generator=generator)
    text = torch.randn(TEXT, config.text_dim, generator=generator)
    return latents.to(bench.device), text.to(bench.device)


def passes(bench: Bench, ours: WanDiT, clip: tuple[int, int, int] | None = None) -> Run:
    """A pass of our transformer over a clip; what is made of the prompt is made before, as in sampling."""
    latents, text = inputs(bench, clip)
    keys, times = ours.encode_text([text]), [torch.full((latents.shape[1],), 500.0)]
    return lambda: ours([latents], times, keys, [0])[0]


def their_pass(bench: Bench, theirs: "WanTransformer3DModel") -> Run:
    """A pass of diffusers' over the same clip, as its pipeline calls it."""
    latents, text = inputs(bench)
    padded = torch.nn.functional.pad(text, (0, 0, 0, 512 - TEXT))[None].to(BF16)
    hidden, time_ = latents[None].to(BF16), torch.tensor([500.0], device=bench.device)
    return lambda: theirs(hidden_states=hidden, timestep=time_, encoder_hidden_states=padded, return_dict=False)[0][0]


@torch.no_grad()
def decoders(bench: Bench) -> tuple[WanVAE, "AutoencoderKLWan", str]:
    """Our autoencoder and diffusers' with the same random weights, and how far they agree in float32."""
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    config = bench.sizes.vae
    with torch.device(bench.device):
        theirs = AutoencoderKLWan.from_config(diffusers_config(config)).eval()
    with torch.device("meta"):
        ours = WanVAE(config)
    layout = diffusers_layout(config)
    state = {layout.to_ours(name): x.clone() for name, x in theirs.state_dict().items()}
    ours.load_state_dict(state, assign=True)
    torch.backends.cudnn.allow_tf32 = False  # in float32, where 16 bits hide nothing
    part = torch.randn(1, config.z_dim, 3, *(min(side, 16) for side in bench.sizes.decoded[1:])).to(bench.device)
    want = theirs.decode(ours.unwhiten(part), return_dict=False)[0]
    agreement = agreed(torch.cat(list(ours.decode_stream(part)), dim=2), want, 1e-3)
    dtype = bench.decoder_dtype()
    return ours.to(dtype).eval().requires_grad_(False), theirs.to(dtype), f"in float32 {agreement}"


def decoding(bench: Bench, ours: WanVAE, theirs: "AutoencoderKLWan") -> dict[str, Run]:
    """Decoding of the clip by both, whole videos."""
    latents = torch.randn(1, ours.config.z_dim, *bench.sizes.decoded, generator=torch.Generator().manual_seed(1))
    latents = latents.to(bench.device, bench.decoder_dtype())
    raw = ours.unwhiten(latents)  # diffusers' pipeline does it before
    return {
        "diffusers": lambda: theirs.decode(raw, return_dict=False)[0],
        "dvgen": lambda: torch.cat(list(ours.decode_stream(latents)), dim=2),
    }
