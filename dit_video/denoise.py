"""Denoising: clips as one pack of patches, from noise to latents.

The patches of all clips go through the transformer together, each clip attending only to itself, so a clip comes out
the same whatever else is in the pack. The solvers are elementwise, so the pack is one flat vector to them.
"""

import logging
import math
from collections.abc import Callable, Sequence, Set
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dit_video.clip import Clip, Settings, prompts_of
from dit_video.errors import CheckpointError, UndefinedNumbers, UsageError
from dit_video.flow.guidance import guided, needs_guidance
from dit_video.flow.levels import Levels, flow_levels
from dit_video.flow.ramps import NUM_TRAIN_TIMESTEPS
from dit_video.flow.solvers import SOLVERS, State
from dit_video.groups import BESIDE
from dit_video.machine import since_start
from dit_video.plan import PACK_TOKENS
from dit_video.prompts import encode_prompts
from dit_video.shapes import VideoShape
from dit_video.stages import Checkpoint, Stages
from dit_video.timing import Clock, Task
from dit_video.unfinished import Together, Unfinished, keeping
from dit_video.work import steps_of

if TYPE_CHECKING:
    from dit_video.models.wan.dit import WanDiT
    from dit_video.models.wan.seen import ImageKeys, TextKeys

    Keys = tuple[TextKeys, ImageKeys | None]  # of prompts, and of the clips' pictures

_log = logging.getLogger(__name__)

OnDenoised = Callable[[int, int, Sequence[Tensor]], None]  # (steps done, steps in all, latents (C, T, H, W) of clips)


@torch.no_grad()
def sample_latents(
    stages: Stages,
    clips: Sequence[Clip],
    settings: Settings,
    *,
    unfinished: Unfinished | Together | None = None,
    watch: OnDenoised | None = None,
) -> list[Tensor]:
    """The normalised latents of all clips, denoised as one pack: float32 (C, T, H, W) each, on the padded grid.

    A seed means the same noise on every device, in every pack, and in diffusers, also that which a stochastic solver
    adds on the way.

    Args:
        unfinished: where the state of denoising is kept meanwhile; what is there is gone on with.
        watch: is told after every step how the clips look by now: the latents that noise is taken to hide.

    Raises:
        DvgenError: the latents are not finite, or the model animates pictures and there is none.
    """
    if stages.checkpoint.beside and any(clip.known is None or clip.known.channels is None for clip in clips):
        raise UsageError(f"this model {BESIDE[stages.checkpoint.known_frames]}.")
    levels = flow_levels(settings.steps, shift=settings.shift, convention=settings.sigmas, solver=settings.solver)
    first = settings.first_step
    levels = Levels(levels.sigmas[first:], levels.timesteps[first:])
    sigma, total = float(levels.sigmas[0]), len(levels.timesteps)
    noise = _Noise(stages.checkpoint, clips)
    x = _flat([_begin(eps, clip.start, sigma) for eps, clip in zip(noise.draw(), clips, strict=True)]).to(stages.device)
    begin = (unfinished and unfinished.read(stages.device)) or State(0, x)
    held = held_levels(settings, stages.checkpoint.boundary, levels)
    velocity: Tensor | None = None
    if held and begin.step:
        *kept, velocity = begin.kept
        begin = State(begin.step, begin.x, tuple(kept))
    prompts = list(dict.fromkeys(text for clip in clips for text in prompts_of(clip, settings)))
    embeds = encode_prompts(stages, prompts) if begin.step < total else []
    denoiser = _Denoiser(stages, clips, settings, prompts, embeds, held, velocity)
    if begin.step == total:
        return denoiser.with_known(denoiser.unpack(begin.x))

    is_told = False

    def on_step(state: State, total: int, denoised: Tensor) -> None:
        nonlocal is_told
        if not bool(torch.isfinite(state.x).all()):
            raise UndefinedNumbers(
                f"step {state.step} of {total} gave infinite or undefined numbers: {_likely(stages.dtype)}."
            )
        _log.debug("step %d of %d", state.step, total)
        stages.progress("steps", state.step, total)
        if watch:
            watch(state.step, total, denoiser.unpack(denoised))
        try:
            if unfinished:
                unfinished.step(denoiser.with_velocity(state), total)
        except CheckpointError as error:  # no reason to lose the video as well
            if not is_told:
                stages.warn(f"the state of denoising cannot be kept: {error}")
            is_told = True

    denoiser.expert(float(levels.timesteps[begin.step]))  # loads it, before the steps are timed
    stages.progress("steps", begin.step, total)
    _log.info("the first step begins %.2f s after the program", since_start())
    shapes, before = [clip.shape for clip in clips], stages.forwards

    def measured(clock: Clock) -> Task:
        return clock.denoise(*shapes, passes=stages.forwards - before)

    with stages.timed("denoise", measured), keeping(unfinished, stages.warn):
        x = SOLVERS[settings.solver](
            denoiser, begin, levels, draw=lambda: _flat(noise.draw()).to(stages.device), on_step=on_step
        )
    return denoiser.with_known(denoiser.unpack(x))


def held_levels(settings: Settings, boundary: float | None, levels: Levels) -> set[float]:
    """The levels at which the velocity of the level before is used once more."""
    steps = zip(levels.sigmas.tolist(), steps_of(settings, boundary), strict=False)
    return {sigma for sigma, step in steps if not step.computed}


def _likely(dtype: torch.dtype) -> str:
    return "float16 overflowed; use --dtype bfloat16" if dtype == torch.float16 else "the weights are damaged"


def _begin(noise: Tensor, start: Tensor | None, sigma: float) -> Tensor:
    """What denoising begins with at level `sigma`: noise (C, T, H, W), or a start with noise on it."""
    return noise if start is None else torch.lerp(start, noise, sigma)


def latent_size(checkpoint: Checkpoint, shape: VideoShape) -> tuple[int, int, int, int]:
    """The latents (C, T, H, W) of a clip of that shape."""
    latent = checkpoint.grid.latent(shape)
    return checkpoint.latent_channels, latent.frames, latent.height, latent.width


class _Noise:
    """The noise of a pack, each clip's out of a generator of its own on the CPU, in float32."""

    def __init__(self, checkpoint: Checkpoint, clips: Sequence[Clip]) -> None:
        self.sizes = [latent_size(checkpoint, clip.shape) for clip in clips]
        self.generators = [torch.Generator("cpu").manual_seed(clip.seed) for clip in clips]

    def draw(self) -> list[Tensor]:
        """The next numbers of every clip: (C, T, H, W) each."""
        return [torch.randn(size, generator=g) for size, g in zip(self.sizes, self.generators, strict=True)]


class _Denoiser:
    """denoise(x, sigma, timestep) of a pack, x and the result flat: its clips' (C, T, H, W) one after the other.

    held: levels at which the latest velocity is used once more. velocity: that, flat, where there are any.
    """

    def __init__(
        self,
        stages: Stages,
        clips: Sequence[Clip],
        settings: Settings,
        prompts: list[str],
        embeds: list[Tensor],
        held: Set[float],
        velocity: Tensor | None,
    ) -> None:
        self.held, self.velocity = held, velocity
        self.stages, self.settings, self.embeds = stages, settings, embeds
        self.sizes = [latent_size(stages.checkpoint, clip.shape) for clip in clips]
        self.cond = [prompts.index(clip.prompt) for clip in clips]
        self.uncond = [prompts.index(clip.negative) for clip in clips if clip.negative in prompts]
        grid = stages.checkpoint.grid
        tokens = sum(math.prod(grid.tokens(grid.latent(clip.shape))) for clip in clips)
        self.together = 2 * tokens <= PACK_TOKENS
        self.keys: dict[str, Keys] = {}
        self.known = [clip.known and clip.known.to(stages.device) for clip in clips]

    def expert(self, timestep: float) -> "tuple[WanDiT, Keys, float]":
        """The transformer for a timestep, its keys of the prompts and of the clips' pictures, its guidance scale."""
        boundary = self.stages.checkpoint.boundary
        low_noise = boundary is not None and timestep < boundary * NUM_TRAIN_TIMESTEPS
        which = "transformer_2" if low_noise else "transformer"
        dit = self.stages.dit(which)
        if which not in self.keys:
            images = [known.images for known in self.known if known is not None and known.images is not None]
            self.keys = {which: (dit.encode_text(self.embeds), dit.encode_images(images) if images else None)}
        return dit, self.keys[which], self.settings.guidance[-1 if low_noise else 0]

    def __call__(self, x: Tensor, sigma: float, timestep: float) -> Tensor:
        velocity = self.velocity if sigma in self.held else None
        if velocity is None:
            velocity = self._velocity(x, sigma, timestep)
        if self.held:
            self.velocity = velocity
        return _flat(self.with_known(self.unpack(x - sigma * velocity)))

    def with_velocity(self, state: State) -> State:
        """What is kept of a run: the solver's state, and the velocity last where a step may need it."""
        if not self.held:
            return state
        assert self.velocity is not None
        return State(state.step, state.x, (*state.kept, self.velocity))

    def _velocity(self, x: Tensor, sigma: float, timestep: float) -> Tensor:
        """The velocity of the pack, guided where it is, flat."""
        dit, keys, scale = self.expert(timestep)
        latents = [
            clean if known is None or known.channels is None else torch.cat([clean, known.channels])
            for clean, known in zip(self.with_known(self.unpack(x)), self.known, strict=True)
        ]
        times = [self._times(timestep, clip) for clip in range(len(self.sizes))]
        if not needs_guidance(sigma, scale, self.settings.guidance_interval):
            return self._predict(dit, keys, latents, times, self.cond)
        if self.together:
            cond, uncond = self._predict(dit, keys, latents, times, self.cond + self.uncond).chunk(2)
        else:
            cond, uncond = (self._predict(dit, keys, latents, times, prompts) for prompts in (self.cond, self.uncond))
        return guided(cond, uncond, scale)

    def _predict(
        self, dit: "WanDiT", keys: "Keys", latents: list[Tensor], times: list[Tensor], prompts: list[int]
    ) -> Tensor:
        """The flat velocity of the pack, with a prompt for each of its clips, or for each of the pack several times."""
        text, images = keys
        if images is None:
            return _flat(dit(latents, times, text, prompts))
        index = [clip % len(self.sizes) for clip in range(len(prompts))]
        return _flat(dit(latents, times, text, prompts, images=images, image_index=index))

    def _times(self, timestep: float, clip: int) -> Tensor:
        """The timestep of each latent frame of a clip: 0 of those that are known."""
        times, known = torch.full((self.sizes[clip][1],), timestep), self.known[clip]
        return times if known is None else times.masked_fill(known.frames.cpu(), 0.0)

    def with_known(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents (C, T, H, W) with what is known of each clip in its place."""
        return [
            x if known is None else torch.where(known.frames[None, :, None, None], known.latents, x)
            for x, known in zip(latents, self.known, strict=True)
        ]

    def unpack(self, x: Tensor) -> list[Tensor]:
        """The clips' latents (C, T, H, W), out of the flat pack."""
        parts = x.split([math.prod(size) for size in self.sizes])
        return [part.view(size) for part, size in zip(parts, self.sizes, strict=True)]


def _flat(latents: Sequence[Tensor]) -> Tensor:
    return torch.cat([x.flatten() for x in latents])
