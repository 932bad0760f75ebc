"""Solvers of the probability-flow ODE, and of the SDE with the same marginals.

Pure functions from noise to latents over a list of noise levels. On the flow path x_sigma = alpha x0 + sigma eps,
alpha = 1 - sigma, a step of the ODE from sigma to sigma' is

    x' = (sigma' / sigma) x + (1 - sigma' / sigma) x0*

with some estimate x0* of the clean latents over the step, and the solvers differ only in that estimate. At sigma' = 0
the step gives x0* itself, exactly. A stochastic solver moves further towards x0* and adds new noise up to the level
sigma', so that errors of earlier steps fade. The papers write the second factor as alpha' (1 - exp(-h)), where h is the
growth over the step of lambda = log(alpha / sigma), half the log-SNR, in which the higher orders are polynomial.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from torch import Tensor

from dit_video.flow.levels import Levels

Denoise = Callable[[Tensor, float, float], Tensor]  # (x, sigma, timestep) -> denoised x0, the shape of x
Draw = Callable[[], Tensor]  # standard normal numbers in the shape of x, new ones each time


@dataclass(frozen=True)
class State:
    """Where a solver is: the steps that are done, x after them, and what of earlier steps the next one needs."""

    step: int
    x: Tensor
    kept: tuple[Tensor, ...] = ()


OnStep = Callable[[State, int, Tensor], None]  # (the state after the step, steps in all, denoised)


class Solver(Protocol):
    """Integrates from where `begin` is, of which the first has no steps done and x at `levels.sigmas[0]`, to 0.

    x has any shape (every operation is elementwise). From a state that `on_step` was given, the rest is bit for bit as
    if it had not been left. Only the stochastic ones draw: as often as steps are done where they begin in the middle,
    for numbers that are not used again.
    """

    def __call__(
        self, denoise: Denoise, begin: State, levels: Levels, *, draw: Draw, on_step: OnStep | None = None
    ) -> Tensor: ...


def euler(denoise: Denoise, begin: State, levels: Levels, *, draw: Draw, on_step: OnStep | None = None) -> Tensor:
    """Euler's method, first order; the same as DDIM (Song et al., arXiv 2010.02502) on the flow path. N evaluations."""
    sigmas, x = levels.sigmas.tolist(), begin.x
    for i, timestep in _steps(levels, begin):
        denoised = denoise(x, sigmas[i], timestep)
        x = _move(x, denoised, sigmas[i], sigmas[i + 1])
        if on_step:
            on_step(State(i + 1, x), len(levels.timesteps), denoised)
    return x


def heun(denoise: Denoise, begin: State, levels: Levels, *, draw: Draw, on_step: OnStep | None = None) -> Tensor:
    """Heun's method, second order: Karras et al. (arXiv 2206.00364), algorithm 1. 2N - 1 evaluations.

    The velocity d x / d sigma is averaged over both ends of a step; the last step, to sigma 0, is Euler's.
    """
    sigmas, timesteps, x = levels.sigmas.tolist(), levels.timesteps.tolist(), begin.x
    for i, timestep in _steps(levels, begin):
        sigma, sigma_next = sigmas[i], sigmas[i + 1]
        denoised = denoise(x, sigma, timestep)
        ahead = _move(x, denoised, sigma, sigma_next)
        if sigma_next > 0:
            velocity = (x - denoised) / sigma
            denoised = denoise(ahead, sigma_next, timesteps[i + 1])
            velocity_next = (ahead - denoised) / sigma_next
            ahead = x + (sigma_next - sigma) * 0.5 * (velocity + velocity_next)
        x = ahead
        if on_step:
            on_step(State(i + 1, x), len(timesteps), denoised)
    return x


def dpmpp_2m(denoise: Denoise, begin: State, levels: Levels, *, draw: Draw, on_step: OnStep | None = None) -> Tensor:
    """DPM-Solver++(2M), second-order multistep: Lu et al. (arXiv 2211.01095), algorithm 2. N evaluations.

    First order in the first and the last step, as in diffusers' `DPMSolverMultistepScheduler` (midpoint, final sigma 0)
    and Wan's `FlowDPMSolverMultistepScheduler`.
    """
    sigmas, total, x, previous = levels.sigmas.tolist(), len(levels.timesteps), begin.x, begin.kept
    for i, timestep in _steps(levels, begin):
        denoised = denoise(x, sigmas[i], timestep)
        estimate = denoised
        if previous and i + 1 < total:
            estimate = _extrapolated(denoised, previous[0], *sigmas[i - 1 : i + 2])
        x = _move(x, estimate, sigmas[i], sigmas[i + 1])
        previous = (denoised,)
        if on_step:
            on_step(State(i + 1, x, previous), total, denoised)
    return x


def dpmpp_2m_sde(
    denoise: Denoise, begin: State, levels: Levels, *, draw: Draw, on_step: OnStep | None = None
) -> Tensor:
    """SDE-DPM-Solver++(2M): Lu et al. (arXiv 2211.01095), appendix; the estimates of `dpmpp_2m`. N evaluations.

    Noise is drawn once a step, as in diffusers' `DPMSolverMultistepScheduler` with "sde-dpmsolver++" (midpoint).
    """
    sigmas, total, x, previous = levels.sigmas.tolist(), len(levels.timesteps), begin.x, begin.kept
    _draw_again(draw, begin)
    for i, timestep in _steps(levels, begin):
        denoised = denoise(x, sigmas[i], timestep)
        estimate = denoised
        if previous and i + 1 < total:
            estimate = _extrapolated(denoised, previous[0], *sigmas[i - 1 : i + 2])
        x = _move_and_renew(x, estimate, draw(), sigmas[i], sigmas[i + 1])
        previous = (denoised,)
        if on_step:
            on_step(State(i + 1, x, previous), total, denoised)
    return x


def unipc(denoise: Denoise, begin: State, levels: Levels, *, draw: Draw, on_step: OnStep | None = None) -> Tensor:
    """UniPC-2 with B2(h) and data prediction: Zhao et al. (arXiv 2302.04867), section 3. N evaluations.

    Each evaluation also corrects the step that led to it (UniC), at no further cost; then UniP, which at order 2 is the
    step of DPM-Solver++(2M), predicts the next. UniP is of first order in the first and the last step, as in Wan's
    `FlowUniPCMultistepScheduler` and diffusers' `UniPCMultistepScheduler`.
    """
    sigmas, total, x = levels.sigmas.tolist(), len(levels.timesteps), begin.x
    # The corrected latents that the latest step started from, and the denoised estimates of earlier levels, at most
    # two, the latest last.
    start, *previous = begin.kept or (x,)
    for i, timestep in _steps(levels, begin):
        denoised = denoise(x, sigmas[i], timestep)
        if previous:
            x = _corrected(start, denoised, previous, sigmas[max(i - 2, 0) : i + 1])
        estimate = denoised
        if previous and i + 1 < total:
            estimate = _extrapolated(denoised, previous[-1], *sigmas[i - 1 : i + 2])
        start, previous = x, [*previous[-1:], denoised]
        x = _move(x, estimate, sigmas[i], sigmas[i + 1])
        if on_step:
            on_step(State(i + 1, x, (start, *previous)), total, denoised)
    return x


def lcm(denoise: Denoise, begin: State, levels: Levels, *, draw: Draw, on_step: OnStep | None = None) -> Tensor:
    """Multistep sampling of consistency models: Song et al. (arXiv 2303.01469), algorithm 1. N evaluations.

    Every step ends with nothing but new noise on the estimate, as in latent consistency models (arXiv 2310.04378),
    Self-Forcing (arXiv 2506.08009) and diffusers' `FlowMatchLCMScheduler`. For models that are distilled to leap to x0
    from any level; of others it makes blurred ones.
    """
    sigmas, x = levels.sigmas.tolist(), begin.x
    _draw_again(draw, begin)
    for i, timestep in _steps(levels, begin):
        x = denoised = denoise(x, sigmas[i], timestep)
        if sigmas[i + 1] > 0:
            x = (1 - sigmas[i + 1]) * denoised + sigmas[i + 1] * draw()
        if on_step:
            on_step(State(i + 1, x), len(levels.timesteps), denoised)
    return x


SOLVERS: dict[str, Solver] = {
    "euler": euler,
    "heun": heun,
    "dpmpp-2m": dpmpp_2m,
    "dpmpp-2m-sde": dpmpp_2m_sde,
    "unipc": unipc,
    "lcm": lcm,
}


def _steps(levels: Levels, begin: State) -> Iterator[tuple[int, float]]:
    """The steps that are left: their numbers and timesteps."""
    return islice(enumerate(levels.timesteps.tolist()), begin.step, None)


def _draw_again(draw: Draw, begin: State) -> None:
    """Draw what the steps that are done have drawn."""
    for _ in range(begin.step):
        draw()


def _log_snr(sigma: float) -> float:
    """lambda = log(alpha / sigma), half the log-SNR: -inf for pure noise, +inf for clean latents."""
    if sigma == 0.0:
        return math.inf
    return math.log1p(-sigma) - math.log(sigma) if sigma < 1.0 else -math.inf


def _move(x: Tensor, estimate: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The step from sigma to sigma_next for one estimate of x0: exact if the denoiser is constant over the step."""
    if sigma_next == 0.0:
        return estimate
    ratio = sigma_next / sigma
    return ratio * x + (1 - ratio) * estimate


def _move_and_renew(x: Tensor, estimate: Tensor, noise: Tensor, sigma: float, sigma_next: float) -> Tensor:
    """The same step of the SDE: of the old noise exp(-h) is left, the rest is new. From pure noise all of it is new."""
    if sigma_next == 0.0:
        return estimate
    left = math.exp(_log_snr(sigma) - _log_snr(sigma_next))  # exp(-h)
    old, renewed = sigma_next / sigma * left, math.sqrt(1 - left * left)
    return old * x + (1 - sigma_next) * renewed**2 * estimate + sigma_next * renewed * noise


def _extrapolated(latest: Tensor, earlier: Tensor, sigma_before: float, sigma: float, sigma_next: float) -> Tensor:
    """x0 in the middle of the coming step (in lambda), on the line through the latest two estimates."""
    r = (_log_snr(sigma) - _log_snr(sigma_before)) / (_log_snr(sigma_next) - _log_snr(sigma))
    return latest + (latest - earlier) / (2 * r)


def _corrected(start: Tensor, denoised: Tensor, previous: list[Tensor], sigmas: list[float]) -> Tensor:
    """UniC-p: the step between the last two of `sigmas` again, now that `denoised`, the estimate at its end, is known.

    start: the latents that the step set out from. previous: the p estimates before `denoised`, the latest at `start`.

    The slopes (D - D_0) / r of the estimate, with r a level's distance from `start` in lambda in units of the step, are
    weighted by rho, the solution of UniPC's linear system for B2(h) = exp(h) - 1, h negated for data prediction; UniC-1
    uses 1/2.
    """
    *before, sigma, sigma_next = sigmas
    latest = previous[-1]
    if len(previous) == 1:
        return _move(start, latest + 0.5 * (denoised - latest), sigma, sigma_next)
    h = _log_snr(sigma_next) - _log_snr(sigma)
    r = (_log_snr(before[-1]) - _log_snr(sigma)) / h  # below 0; the new level has r = 1
    b_h = math.expm1(-h)
    h_phi_2 = b_h / -h - 1
    h_phi_3 = h_phi_2 / -h - 0.5
    b_1, b_2 = h_phi_2 / b_h, 2 * h_phi_3 / b_h
    rho = (b_1 - b_2) / (1 - r)  # rho + rho_new = b_1,  r rho + rho_new = b_2
    estimate = latest + (rho / r) * (previous[0] - latest) + (b_1 - rho) * (denoised - latest)
    return _move(start, estimate, sigma, sigma_next)
