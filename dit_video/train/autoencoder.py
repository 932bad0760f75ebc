"""Training of the causal VAE on the procedural world: reconstruct the pixels from latents that carry noise.

With `linear_code` the latents are given: the encoder learns to compute a linear code (train/linear_code.py), the
decoder to read it, each for itself. Without, encoder and decoder find a code together.

The noise is what makes the latents good to diffuse: the decoder must read a shape from latents with errors like those
that a transformer leaves (compare the noise in arXiv 2501.09755 and 2304.09479).
"""

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dit_video.checkpoints.files import load_tensors, save_tensors
from dit_video.errors import CheckpointError, DvgenError, UsageError
from dit_video.models.wan.vae import VAEConfig, WanVAE
from dit_video.nn.pixels import pad_frames, to_frames, to_video
from dit_video.scenes.captions import caption
from dit_video.scenes.render import render
from dit_video.shapes import Grid, VideoShape, round_up
from dit_video.train import distributed, linear_code
from dit_video.train.config import AutoencoderArch, AutoencoderConfig
from dit_video.train.data import object_mask, sample_shape, scene_batch
from dit_video.train.denoised import Denoiser
from dit_video.train.linear_code import LinearCode, fit_linear_code, load_linear_code
from dit_video.train.loop import Reporter, Run, StepResult, begin, check_device, fit
from dit_video.train.optim import EMA, build_optimizers
from dit_video.train.seeding import numpy_generator, torch_generator
from dit_video.train.sheets import save_sheet
from dit_video.train.vae_init import initialise

AUTOENCODER = "autoencoder.safetensors"
STATISTICS_CLIPS = 256
CODE_CLIPS = 400
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


def train(config: AutoencoderConfig, *, resume: bool, report: Reporter) -> Path:
    """Train, resume, and write the finished autoencoder: averaged weights, measured latent statistics.

    Raises:
        CheckpointError: nothing to resume, a run that would be lost, or an `init_from` or a `denoiser` that do not fit.
        UsageError: this machine lacks the device, or a geometry that does not fit together.
    """
    folder, device = Path(config.out), config.loop.device
    check_device(config.loop)
    try:
        vae_config(config.arch)
    except DvgenError as error:
        raise UsageError(f"arch: {error}") from None
    start = _start(config)
    _check_code(config, folder, resume)
    denoiser = Denoiser(Path(config.denoiser), start) if config.denoiser and start else None
    begin(folder, resume=resume)
    if not resume:
        (folder / linear_code.FILE).unlink(missing_ok=True)  # of a run that ended before its first checkpoint
    rank, world = distributed.start(config.loop.device)
    if config.loop.threads:
        torch.set_num_threads(config.loop.threads)
    torch.manual_seed(config.loop.seed)
    vae = WanVAE(vae_config(config.arch))
    code = _code(config, folder if resume else Path(config.init_from) if config.init_from else None)
    if start is None:
        initialise(vae, video := first_look(config), code(video) if code else None)
    else:
        vae.load_state_dict(start.state_dict())
    if code is not None:
        code.to(device)
        if rank == 0 and not resume:
            code.save(folder)
    if denoiser is not None:
        denoiser.load(device, torch.bfloat16 if config.loop.bf16 else torch.float32)
    if config.decoder_only:
        vae.encoder.requires_grad_(False)
        vae.conv1.requires_grad_(False)
    vae.to(device)
    grid = Grid(stride=vae.config.stride)
    run = Run(
        folder=folder,
        config=config.loop,
        modules={"vae": vae},
        optimizers=build_optimizers(
            [vae], muon_lr=config.optim.muon_lr, adam_lr=config.optim.adam_lr, weight_decay=config.optim.weight_decay
        ),
        ema=EMA([vae], decay=config.loop.ema),
        data=NoData(),
        rank=rank,
        world=world,
    )
    if resume:
        run.resume()
        if start and config.decoder_only and not torch.equal(_encoder_vector(vae), _encoder_vector(start)):
            raise CheckpointError(f"{config.init_from}: its encoder is not the one that this run began with.")

    def step(n: int) -> StepResult:
        batch = make_batch(config, grid, numpy_generator(config.loop.seed, rank, n))
        batch = dataclasses.replace(batch, video=batch.video.to(device), weights=batch.weights.to(device))
        loss = reconstruction_loss(vae, batch, config, torch_generator(config.loop.seed, rank, n), code, denoiser)
        latent = grid.latent(batch.shape)
        return StepResult(loss, len(batch.video), len(batch.video) * latent.frames * latent.height * latent.width // 4)

    fit(run, step, lambda path: reconstruction_sheet(vae, path), report)
    run.ema.swap()
    if rank == 0:
        save_autoencoder(_finished(vae, _final_config(vae, config, start)), folder)
    run.ema.swap()
    distributed.stop()
    return folder


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


def _code(config: AutoencoderConfig, folder: Path | None) -> LinearCode | None:
    """The linear code of this run, if its config wants one: the one in `folder`, or one fitted now."""
    if not config.linear_code:
        return None
    if folder is not None and (there := load_linear_code(folder)) is not None:
        return there
    grid, rng = Grid(stride=vae_config(config.arch).stride), numpy_generator(config.loop.seed, 1 << 20, 1)
    return fit_linear_code(code_clips(config, grid, rng), config.arch.z_dim, grid.stride)


def code_clips(config: AutoencoderConfig, grid: Grid, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Native clips to fit a linear code to: (video (3, T, H, W), cells with an object (t, h, w))."""
    for _ in range(CODE_CLIPS):
        shape = sample_shape(rng, config.data)
        padded = grid.padded(shape)
        (scene,) = scene_batch(rng, shape, 1, config.data.second_object)
        yield to_video(pad_frames(render(scene), padded)[None])[0], object_mask(scene, padded, grid.stride)


def _final_config(vae: WanVAE, config: AutoencoderConfig, start: WanVAE | None) -> VAEConfig:
    """The config of the finished autoencoder: a linear code is whitened as it is, an encoder that was kept has its
    statistics, another one's are measured.
    """
    if config.linear_code:
        return vae_config(config.arch)
    return start.config if start and config.decoder_only else measured_statistics(vae, config)


def _encoder_vector(vae: WanVAE) -> Tensor:
    return torch.cat([p.detach().flatten().cpu() for part in (vae.encoder, vae.conv1) for p in part.parameters()])


def first_look(config: AutoencoderConfig) -> Tensor:
    """Clips (B, 3, T, H, W) of one common shape to fit the start to."""
    shape = VideoShape(num_frames=9, height=96, width=128)
    rng = numpy_generator(config.loop.seed, 1 << 20, 0)
    return to_video(np.stack([render(scene) for scene in scene_batch(rng, shape, 48)]))


@dataclass(frozen=True)
class Batch:
    """Clips of one native shape, padded to whole latents by their own edge: video (B, 3, T, H, W) in [-1, 1], weights
    (B, 1, T, H, W), and captions.
    """

    shape: VideoShape
    video: Tensor
    weights: Tensor
    captions: tuple[str, ...]


def make_batch(config: AutoencoderConfig, grid: Grid, rng: np.random.Generator) -> Batch:
    """The batch that `rng` draws."""
    shape = sample_shape(rng, config.data)
    padded = grid.padded(shape)
    count = max(1, round(config.batch_pixels / (padded.num_frames * padded.height * padded.width)))
    scenes = scene_batch(rng, shape, min(count, 64), config.data.second_object)
    video = to_video(np.stack([pad_frames(render(scene), padded) for scene in scenes]))
    masks = torch.stack([object_mask(scene, padded) for scene in scenes])[:, None]
    captions = tuple(caption(scene, rng) for scene in scenes) if config.denoiser else ("",) * len(scenes)
    return Batch(shape, video, 1 + (config.object_weight - 1) * masks.float(), captions)


def reconstruction_loss(
    vae: WanVAE,
    batch: Batch,
    config: AutoencoderConfig,
    generator: torch.Generator,
    code: LinearCode | None = None,
    denoiser: Denoiser | None = None,
) -> Tensor:
    """Weighted L1 + L2 of the reconstruction from noisy latents, L1 of its spatial differences (`edge_weight`: corners
    and points), and a weak pull of each channel's deviation towards 1.

    The noise is relative to the channel's own deviation in the batch, so inflating the latents cannot escape it. With a
    `code` the decoder reads that, and the mean squared error of the encoder against it takes the place of the pull.
    With a `denoiser` most of the batches are what that makes of the latents at levels below `denoise_from`.
    """
    video, weights = batch.video, batch.weights
    with torch.autocast(video.device.type, torch.bfloat16, enabled=config.loop.bf16):
        # An encoder that is left as it is matters only where its latents are the code.
        asked = code is None or not config.decoder_only
        with torch.set_grad_enabled(not config.decoder_only):
            mean = vae.encode_moments(video)[0].float() if asked else None
        latents = code(video) if code is not None else mean
        assert latents is not None
        deviation = latents.std(dim=(0, 2, 3, 4), keepdim=True)
        level = torch.randn(len(latents), 1, 1, 1, 1, generator=generator).abs().to(latents) * config.latent_noise
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        seen = latents + level * deviation.detach() * noise
        if denoiser is not None and torch.rand((), generator=generator) < DENOISED_SHARE:
            sigma = config.denoise_from * torch.rand(len(latents), generator=generator)
            seen = denoiser(latents, batch.captions, sigma, generator)
        error = vae.decode(seen).float() - video
    weights = weights / weights.mean()
    loss = (weights * (error.abs() + error.square())).mean()
    for axis in (-2, -1):
        edges = weights.narrow(axis, 1, error.shape[axis] - 1) * error.diff(dim=axis).abs()
        loss = loss + config.edge_weight * edges.mean()
    if code is not None:
        return loss if mean is None else loss + (mean - latents).square().mean()
    return loss + 1e-3 * deviation.clamp_min(1e-6).log().square().mean()


@torch.no_grad()
def measured_statistics(vae: WanVAE, config: AutoencoderConfig) -> VAEConfig:
    """The config of `vae` with the mean and deviation of each latent channel over native training clips."""
    rng = np.random.default_rng((config.loop.seed, 1))
    total = torch.zeros(config.arch.z_dim, dtype=torch.float64)
    squares, count = total.clone(), 0
    grid, clips = Grid(stride=vae.config.stride), 0
    while clips < STATISTICS_CLIPS:
        video = make_batch(config, grid, rng).video
        latents = vae.encode_moments(video[:8].to(config.loop.device))[0].cpu().double().transpose(0, 1).flatten(1)
        total, squares = total + latents.sum(1), squares + latents.square().sum(1)
        count, clips = count + latents.shape[1], clips + min(8, len(video))
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
def reconstruction_sheet(vae: WanVAE, path: Path) -> None:
    """A picture of originals (odd rows) and reconstructions (even rows) of a few scenes that are always the same."""
    rows = []
    rng = np.random.default_rng(12345)
    shape = VideoShape(num_frames=17, height=128, width=224)
    for scene in scene_batch(rng, shape, 6):
        frames = render(scene)
        video = to_video(frames[None]).to(next(vae.parameters()).device)
        rebuilt = to_frames(vae.decode(vae.encode_moments(video)[0])[0])
        rows += [frames[::4], rebuilt[::4]]
    save_sheet(path, rows)
