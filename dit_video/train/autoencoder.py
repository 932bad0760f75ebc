"""Training of the causal VAE on the procedural world or on files: reconstruct the pixels from latents that carry noise.

With `linear_code` the latents are given: the encoder learns to compute a linear code (train/linear_code.py), the
decoder to read it, each for itself. Without, encoder and decoder find a code together.

The noise is what makes the latents good to diffuse: the decoder must read a shape from latents with errors like those
that a transformer leaves (compare the noise in arXiv 2501.09755 and 2304.09479).
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_video.checkpoints.files import load_tensors, save_tensors
from dit_video.errors import CheckpointError, DvgenError, UsageError
from dit_video.models.wan.configs import VAEConfig
from dit_video.models.wan.vae import WanVAE
from dit_video.nn.pixels import pad_frames, to_frames, to_video
from dit_video.shapes import Grid, VideoShape, round_up
from dit_video.train import distributed, linear_code
from dit_video.train.clips import Batch, Clips, SceneClips
from dit_video.train.config import AutoencoderArch, AutoencoderConfig
from dit_video.train.denoised import Denoiser
from dit_video.train.file_clips import FileClips
from dit_video.train.files import INDEX, Note, scan
from dit_video.train.linear_code import LinearCode, fit_linear_code, load_linear_code
from dit_video.train.loop import Reporter, Run, StepResult, begin, check_device, fit, in_fast_dtype
from dit_video.train.optim import EMA, build_optimizers
from dit_video.train.seeding import numpy_generator, torch_generator
from dit_video.train.vae_init import initialise
from dit_video.video.sheet import save_sheet

AUTOENCODER = "autoencoder.safetensors"
STATISTICS_CLIPS = 256
DENOISED_SHARE = 0.7  # of the batches: the rest keeps clean latents readable


def vae_config(arch: AutoencoderArch) -> VAEConfig:
    """The VAE's configuration while it trains: latents are not normalised yet (mean 0, deviation 1)."""
    return VAEConfig(**dataclasses.asdict(arch), latents_mean=(0.0,) * arch.z_dim, latents_std=(1.0,) * arch.z_dim)


class NoData:
    """The stream of an autoencoder's run: batches depend on the step alone, so there is no place to save."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""


@dataclass
class Models:
    """What an autoencoder's run trains, and what it needs beside it."""

    vae: WanVAE
    start: WanVAE | None = None
    """What it began with."""
    code: LinearCode | None = None
    denoiser: Denoiser | None = None

    @property
    def grid(self) -> Grid:
        """The arithmetic of sizes."""
        return Grid(stride=self.vae.config.stride)


def train(config: AutoencoderConfig, *, resume: bool, report: Reporter, note: Note = lambda _: None) -> Path:
    """Train, resume, and write the finished autoencoder: averaged weights, measured latent statistics.

    Raises:
        CheckpointError: nothing to resume, a run that would be lost, or an `init_from` or a `denoiser` that do not fit.
        DvgenError: files that cannot be trained on.
        UsageError: this machine lacks the device, or a geometry that does not fit together.
    """
    folder = Path(config.out)
    models = check(config, resume=resume)
    clips, validation = find_clips(config, models, folder / INDEX, note)
    config = dataclasses.replace(config, loop=in_fast_dtype(config.loop, note))
    begin(folder, resume=resume)
    if not resume:
        (folder / linear_code.FILE).unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    rank, world = distributed.start(config.loop.device)
    if config.loop.threads:
        torch.set_num_threads(config.loop.threads)
    torch.manual_seed(config.loop.seed)
    vae = models.vae = WanVAE(vae_config(config.arch))
    there = folder if resume else Path(config.init_from) if config.init_from else None
    code = models.code = _code(config, clips, models.grid, there)
    if models.start is None:
        initialise(vae, video := clips.first_look(), code(video) if code else None)
    else:
        vae.load_state_dict(models.start.state_dict())
    if code is not None and rank == 0 and not resume:
        code.save(folder)
    run = make_run(config, models, rank, world)
    if resume:
        run.resume()
        start = models.start
        if start and config.decoder_only and not torch.equal(_encoder_vector(vae), _encoder_vector(start)):
            raise CheckpointError(f"{config.init_from}: its encoder is not the one that this run began with.")
    sheet_clips = clips.sheet_clips()

    def step(n: int) -> StepResult:
        batches = clips.step(numpy_generator(config.loop.seed, rank, n))
        return step_result(config, models, batches, torch_generator(config.loop.seed, rank, n))

    fit(
        run,
        step,
        lambda path: reconstruction_sheet(vae, path, sheet_clips),
        report,
        _validation(config, models, validation),
    )
    run.ema.swap()
    if rank == 0:
        save_autoencoder(_finished(vae, _final_config(vae, config, clips, models.start)), folder)
    run.ema.swap()
    distributed.stop()
    return folder


def check(config: AutoencoderConfig, *, resume: bool) -> Models:
    """What the config names, loaded, beside an autoencoder that is not drawn yet; nothing is written.

    Raises:
        CheckpointError, UsageError: as `train`.
    """
    check_device(config.loop)
    try:
        geometry = vae_config(config.arch)
    except DvgenError as error:
        raise UsageError(f"arch: {error}") from None
    start = _start(config)
    _check_code(config, Path(config.out), resume)
    with torch.device("meta"):
        models = Models(WanVAE(geometry), start)
    if config.denoiser and start:
        models.denoiser = Denoiser(Path(config.denoiser), start)
    return models


def find_clips(
    config: AutoencoderConfig, models: Models, index: Path, note: Note
) -> tuple[Clips, Sequence[Sequence[Batch]]]:
    """The clips to train on, and steps to validate with. Raises DvgenError."""
    if config.files is None:
        return SceneClips(config, models.grid), ()
    found = scan(config.files, index, note, captioned=bool(config.denoiser))
    clips = FileClips(config, models.grid, found, note)
    return clips, clips.validation()


def make_run(config: AutoencoderConfig, models: Models, rank: int = 0, world: int = 1) -> Run:
    """The state of a run of `models`, which go to its device."""
    vae, device = models.vae, config.loop.device
    if models.code is not None:
        models.code.to(device)
    if models.denoiser is not None:
        models.denoiser.load(device, torch.bfloat16 if config.loop.bf16 else torch.float32)
    if config.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.conv1.requires_grad_(False)
    vae.to(device)
    optim = config.optim
    return Run(
        folder=Path(config.out),
        config=config.loop,
        modules={"vae": vae},
        optimizers=build_optimizers(
            [vae], muon_lr=optim.muon_lr, adam_lr=optim.adam_lr, weight_decay=optim.weight_decay
        ),
        ema=EMA([vae], decay=config.loop.ema),
        data=NoData(),
        rank=rank,
        world=world,
    )


def step_result(
    config: AutoencoderConfig, models: Models, batches: Sequence[Batch], generator: torch.Generator
) -> StepResult:
    """The loss of a step's batches, its clips and its tokens."""
    loss = reconstruction_loss(models.vae, batches, config, generator, models.code, models.denoiser)
    tokens = 0
    for batch in batches:
        latent = models.grid.latent(batch.shape)
        tokens += len(batch.video) * latent.frames * latent.height * latent.width // 4
    return StepResult(loss, sum(len(batch.video) for batch in batches), tokens)


def _validation(
    config: AutoencoderConfig, models: Models, steps: Sequence[Sequence[Batch]]
) -> Callable[[], float] | None:
    """The mean loss on the clips that are kept from training, always with the same noise."""

    @torch.no_grad()
    def loss() -> float:
        losses = [
            reconstruction_loss(models.vae, batches, config, torch_generator(0, 0, n), models.code)
            for n, batches in enumerate(steps)
        ]
        pixels = torch.tensor([float(sum(batch.video.numel() for batch in batches)) for batches in steps])
        return float((torch.stack(losses).cpu() * pixels).sum() / pixels.sum())

    return loss if steps else None


def _start(config: AutoencoderConfig) -> WanVAE | None:
    """The autoencoder to begin with, if the config names one. Raises CheckpointError."""
    if not config.init_from:
        return None
    start = load_autoencoder(Path(config.init_from))
    for name, wanted in dataclasses.asdict(config.arch).items():
        if (there := getattr(start.config, name)) != wanted:
            raise CheckpointError(f"{config.init_from}: its {name} is {there}, and this config's [arch] has {wanted}.")
    return start


def _check_code(config: AutoencoderConfig, folder: Path, resume: bool) -> None:
    """Refuse what would change a code on the way. Raises CheckpointError or UsageError."""
    if resume and config.linear_code != (folder / linear_code.FILE).is_file():
        there, other = ("no", "false") if config.linear_code else ("a", "true")
        raise CheckpointError(f"{folder}: this run has {there} linear code; resume it with linear_code = {other}.")
    if not config.linear_code:
        return
    side = vae_config(config.arch).stride[1]
    if side % linear_code.SIDES:
        nearest = round_up(side, linear_code.SIDES)
        raise UsageError(
            f"linear_code is true and a latent has {side} pixels on a side: it takes multiples of "
            f"{linear_code.SIDES}; the nearest is {nearest}."
        )
    if config.decoder_only and not (Path(config.init_from) / linear_code.FILE).is_file():
        raise CheckpointError(f"{config.init_from}: has no {linear_code.FILE}, so its encoder computes another code.")


def _code(config: AutoencoderConfig, clips: Clips, grid: Grid, folder: Path | None) -> LinearCode | None:
    """The linear code of this run, if its config wants one: the one in `folder`, or one fitted now."""
    if not config.linear_code:
        return None
    if folder is not None and (there := load_linear_code(folder)) is not None:
        return there
    rng = numpy_generator(config.loop.seed, 1 << 20, 1)
    return fit_linear_code(clips.code_clips(rng), config.arch.z_dim, grid.stride)


def _final_config(vae: WanVAE, config: AutoencoderConfig, clips: Clips, start: WanVAE | None) -> VAEConfig:
    """The config of the finished autoencoder: a linear code is whitened as it is, an encoder that was kept has its
    statistics, another one's are measured.
    """
    if config.linear_code:
        return vae_config(config.arch)
    return start.config if start and config.decoder_only else measured_statistics(vae, config, clips)


def _encoder_vector(vae: WanVAE) -> Tensor:
    return torch.cat([p.detach().flatten().cpu() for part in (vae.encoder, vae.conv1) for p in part.parameters()])


def reconstruction_loss(
    vae: WanVAE,
    batches: Sequence[Batch],
    config: AutoencoderConfig,
    generator: torch.Generator,
    code: LinearCode | None = None,
    denoiser: Denoiser | None = None,
) -> Tensor:
    """Weighted L1 + L2 of the reconstruction from noisy latents, L1 of its spatial differences (`edge_weight`: corners
    and points), and a weak pull of each channel's deviation towards 1; the mean over all pixels of the batches.

    The noise is relative to the channel's own deviation in the step, so inflating the latents cannot escape it. With a
    `code` the decoder reads that, and the mean squared error of the encoder against it takes the place of the pull.
    With a `denoiser` most of the batches are what that makes of the latents at levels below `denoise_from`.
    """
    device = next(vae.parameters()).device
    videos = [batch.video.to(device) for batch in batches]
    pixels = sum(video.numel() for video in videos)
    total = torch.zeros((), device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=config.loop.bf16):
        # An encoder that is left as it is matters only where its latents are the code.
        asked = code is None or not config.decoder_only
        with torch.set_grad_enabled(torch.is_grad_enabled() and not config.decoder_only):
            means = [vae.encode_moments(video)[0].float() if asked else None for video in videos]
        coded = [mean if code is None else code(video) for mean, video in zip(means, videos, strict=True)]
        given = [latents for latents in coded if latents is not None]
        deviation = torch.cat([x.transpose(0, 1).flatten(1) for x in given], dim=1).std(dim=1).view(1, -1, 1, 1, 1)
        for batch, video, mean, latents in zip(batches, videos, means, given, strict=True):
            seen = _noised(latents, deviation.detach(), batch.captions, config, generator, denoiser)
            part = _error(vae.decode(seen).float() - video, batch.weights.to(device), config.edge_weight)
            if code is not None and mean is not None:
                part = part + (mean - latents).square().mean()
            total = total + part * (video.numel() / pixels)
    if code is not None:
        return total
    return total + 1e-3 * deviation.clamp_min(1e-6).log().square().mean()


def _noised(
    latents: Tensor,
    deviation: Tensor,
    captions: Sequence[str],
    config: AutoencoderConfig,
    generator: torch.Generator,
    denoiser: Denoiser | None,
) -> Tensor:
    """What the decoder is given to read."""
    level = torch.randn(len(latents), 1, 1, 1, 1, generator=generator).abs().to(latents) * config.latent_noise
    noise = torch.randn(latents.shape, generator=generator).to(latents)
    if denoiser is not None and torch.rand((), generator=generator) < DENOISED_SHARE:
        sigma = config.denoise_from * torch.rand(len(latents), generator=generator)
        return denoiser(latents, captions, sigma, generator)
    return latents + level * deviation * noise


def _error(error: Tensor, weights: Tensor, edge_weight: float) -> Tensor:
    """The loss of an error (B, 3, T, H, W) of the pixels."""
    weights = weights / weights.mean()
    loss = (weights * (error.abs() + error.square())).mean()
    for axis in (-2, -1):
        edges = weights.narrow(axis, 1, error.shape[axis] - 1) * error.diff(dim=axis).abs()
        loss = loss + edge_weight * edges.mean()
    return loss


@torch.no_grad()
def measured_statistics(vae: WanVAE, config: AutoencoderConfig, clips: Clips) -> VAEConfig:
    """The config of `vae` with the mean and deviation of each latent channel over native training clips."""
    rng = np.random.default_rng((config.loop.seed, 1))
    total = torch.zeros(config.arch.z_dim, dtype=torch.float64)
    squares, count = total.clone(), 0
    measured = 0
    while measured < STATISTICS_CLIPS:
        for batch in clips.step(rng):
            video = batch.video[:8].to(config.loop.device)
            latents = vae.encode_moments(video)[0].cpu().double().transpose(0, 1).flatten(1)
            total, squares = total + latents.sum(1), squares + latents.square().sum(1)
            count, measured = count + latents.shape[1], measured + len(video)
    mean = total / count
    std = (squares / count - mean.square()).sqrt()
    return dataclasses.replace(vae.config, latents_mean=tuple(mean.tolist()), latents_std=tuple(std.tolist()))


def _finished(vae: WanVAE, config: VAEConfig) -> WanVAE:
    """A copy of `vae` with another config."""
    finished = WanVAE(config)
    finished.load_state_dict(vae.state_dict())
    return finished


def save_autoencoder(vae: WanVAE, folder: Path) -> None:
    """Write `autoencoder.safetensors`: the weights, and in its metadata the geometry and the latent statistics.

    Raises:
        CheckpointError: it cannot be written.
    """
    tensors = {name: value.contiguous().cpu() for name, value in vae.state_dict().items()}
    save_tensors(tensors, folder / AUTOENCODER, metadata={"config": json.dumps(dataclasses.asdict(vae.config))})


def load_autoencoder(folder: Path) -> WanVAE:
    """The autoencoder of a training run's folder or of a diffusers folder, in float32.

    Raises:
        CheckpointError: there is none, or it is damaged.
    """
    if (folder / "model_index.json").is_file():
        from dit_video.models.wan.pipeline import WanCheckpoint

        return WanCheckpoint.open(folder).load_vae(dtype=torch.float32, device="cpu")
    tensors, metadata = load_tensors(folder / AUTOENCODER)
    if "config" not in metadata:
        raise CheckpointError(f"{folder / AUTOENCODER}: lacks its geometry; it was not written by this trainer.")
    values: dict[str, Any] = json.loads(metadata["config"])
    fields: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
    vae = WanVAE(VAEConfig(**fields))
    vae.load_state_dict(tensors)
    return vae.eval()


@torch.no_grad()
def reconstruction_sheet(vae: WanVAE, path: Path, clips: Sequence[np.ndarray]) -> None:
    """A picture of originals (odd rows) and reconstructions (even rows), every fourth frame of clips (T, H, W, 3)."""
    grid, device = Grid(stride=vae.config.stride), next(vae.parameters()).device
    rows = []
    for frames in clips:
        t, h, w = frames.shape[:3]
        padded = pad_frames(frames, grid.padded(VideoShape(num_frames=t, height=h, width=w)))
        rebuilt = to_frames(vae.decode(vae.encode_moments(to_video(padded[None]).to(device))[0])[0])
        rows += [frames[::4], rebuilt[:t, :h, :w][::4]]
    save_sheet(path, rows)
