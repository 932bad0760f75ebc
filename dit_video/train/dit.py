"""Training of the diffusion transformer and its text encoder: flow matching on packed clips of native shapes."""

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dit_video.clip import Clip, Settings
from dit_video.decode import decode_frames
from dit_video.denoise import sample_latents
from dit_video.errors import CheckpointError
from dit_video.flow.loss import add_noise, flow_loss, sample_sigmas
from dit_video.flow.ramps import NUM_TRAIN_TIMESTEPS
from dit_video.models.wan.configs import DiTConfig
from dit_video.models.wan.dit import WanDiT
from dit_video.models.wan.pipeline import WanCheckpoint
from dit_video.models.wan.vae import WanVAE
from dit_video.nn import fusion
from dit_video.scenes.captions import words
from dit_video.shapes import Grid, VideoShape
from dit_video.stages import Stages
from dit_video.text.encoders import load_tokenizer
from dit_video.text.vocabulary import build_umt5, build_word_tokenizer, embed_batch, has_weights, take_weights
from dit_video.train import distributed
from dit_video.train.autoencoder import load_autoencoder
from dit_video.train.config import DiTArch, DiTTrainConfig
from dit_video.train.data import Example, PackStream, SceneShards, Shards
from dit_video.train.distil import Teacher, distil_loss
from dit_video.train.export import DEFAULTS, export
from dit_video.train.files import INDEX, FileShards, Found, Note, scan
from dit_video.train.grow import deepened
from dit_video.train.linear_code import LinearCode, load_linear_code
from dit_video.train.loop import Reporter, Run, StepResult, begin, check_device, fit, in_fast_dtype
from dit_video.train.lora import FOLDER, Adapted, Lora, build_lora, check_kind
from dit_video.train.optim import EMA, build_optimizers
from dit_video.train.seeding import numpy_generator, torch_generator
from dit_video.train.tokens import kept_tokens, loss_weights, with_known_frames
from dit_video.video.sheet import save_sheet

SHEET_PROMPTS = (
    "a red ball moving right on a white background",
    "a blue square moving up on a yellow background",
    "a green star spinning on a black background",
    "a purple triangle growing on a gray background",
    "an orange ball bouncing on a white background",
    "a white star circling clockwise on a blue background",
)


VALIDATION_CLIPS = 64


@dataclass
class Models:
    """What a DiT run trains, and what it needs beside it."""

    dit: WanDiT
    text: Any  # transformers' UMT5EncoderModel, which only dit_video.text may import
    tokenizer: Any  # of the tokenizers library, likewise
    vae: WanVAE
    grid: Grid
    code: LinearCode | None = None
    """What the encoder was trained to compute, where it was: exact, and quicker."""
    defaults: Mapping[str, Any] = field(default_factory=lambda: DEFAULTS)
    """What dvgen.json will say."""
    prompts: Sequence[str] = SHEET_PROMPTS
    """Of the sample sheets."""
    lora: Lora | None = None
    """Where low-rank changes are trained instead of the models; `text` and `tokenizer` are None then."""
    teacher: Teacher | None = None
    """Where the transformer learns to take few steps; the text encoder stays as it is then."""

    @property
    def trained(self) -> dict[str, nn.Module]:
        """What is trained."""
        if self.lora is not None:
            return {"lora": self.lora.adapters}
        return {"dit": self.dit} if self.teacher else {"dit": self.dit, "text": self.text}

    def embed(self, captions: Sequence[str]) -> list[Tensor]:
        """The embeddings (L_i, text_dim) of captions; differentiable where the text encoder is trained."""
        if self.lora is not None:
            return self.lora.texts(captions)
        return embed_batch(self.text, [self.tokenizer.encode(text).ids for text in captions])


def dit_config(arch: DiTArch, z_dim: int) -> DiTConfig:
    """The transformer's configuration for latents of `z_dim` channels."""
    return DiTConfig(
        in_dim=z_dim,
        out_dim=z_dim,
        dim=arch.dim,
        ffn_dim=arch.ffn_dim,
        num_heads=arch.num_heads,
        num_layers=arch.num_layers,
        text_dim=arch.text_dim,
    )


def build(config: DiTTrainConfig, found: Found | None = None, note: Note = lambda _: None) -> Models:
    """Fresh models (seeded), or those of `init_from`, a diffusers folder of the same architecture; on the CPU.

    A transformer of fewer layers than [arch] has is deepened.

    found: the files that are trained on, where it is files: fresh models know the words of their captions.

    Raises:
        CheckpointError: the autoencoder, `init_from` or a teacher, see `train`.
    """
    vae = load_autoencoder(Path(config.autoencoder)).requires_grad_(False)
    torch.manual_seed(config.loop.seed)
    if config.lora:
        return _build_lora(config, vae, found, note)
    arch = config.arch
    dit = WanDiT(dit_config(arch, vae.config.z_dim))
    dit.init_weights()
    tokenizer = build_word_tokenizer(words() if found is None else found.captions)
    if config.init_from:
        checkpoint = _open("init_from", config.init_from)
        tokenizer = load_tokenizer(Path(config.init_from) / "tokenizer")
    text: Any = build_umt5(
        vocab_size=tokenizer.get_vocab_size(),
        d_model=arch.text_dim,
        layers=arch.text_layers,
        heads=arch.text_heads,
        d_kv=arch.text_dim // arch.text_heads,
        d_ff=arch.text_ffn,
    )
    if config.init_from:
        dit.load_state_dict(_weights(checkpoint, config.init_from, dit.config, note))
        if not dit.guarded:
            raise CheckpointError(f"{config.init_from}: its cross-attention has no channel that keeps the padding out.")
        try:
            take_weights(text, checkpoint.load_text(dtype=torch.float32, device="cpu").module)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise CheckpointError(f"{config.init_from}: its text encoder is of another size ({reason}).") from None
    dit.hold_padding_out()
    grid = Grid(stride=vae.config.stride, patch=dit.config.patch)
    models = Models(dit, text, tokenizer, vae, grid, load_linear_code(Path(config.autoencoder)))
    if config.distil:
        teacher = _teacher(config.distil.teacher, models, note) if config.distil.teacher else copy.deepcopy(dit)
        models.teacher = Teacher(teacher.requires_grad_(False), config.distil)
        text.requires_grad_(False)
        how = {"steps": config.distil.steps, "guidance": [1.0], "solver": "euler"}
        models.defaults = {**models.defaults, **how}
    if found is not None:
        models.defaults, models.prompts = defaults_of_files(found), found.captions[: len(SHEET_PROMPTS)]
    return models


def _open(key: str, folder: str) -> WanCheckpoint:
    """The model that a key of the config names. Raises CheckpointError."""
    if not (Path(folder) / "model_index.json").is_file():
        raise CheckpointError(
            f"{key} = {folder!r}: must be a diffusers folder, and there is no {folder}/model_index.json."
        )
    return WanCheckpoint.open(Path(folder))


def _teacher(folder: str, models: Models, note: Note) -> WanDiT:
    """The transformer of another model, which must read prompts as these do. Raises CheckpointError."""
    checkpoint, dit = _open("[distil] teacher", folder), WanDiT(models.dit.config)
    dit.load_state_dict(_weights(checkpoint, folder, dit.config, note))
    text = checkpoint.load_text(dtype=torch.float32, device="cpu").module
    vocabulary = load_tokenizer(Path(folder) / "tokenizer").get_vocab()
    if not has_weights(models.text, text) or vocabulary != models.tokenizer.get_vocab():
        raise CheckpointError(f"{folder}: its text encoder is not that of init_from, as a teacher's must be.")
    return dit


def _weights(checkpoint: WanCheckpoint, folder: str, wanted: DiTConfig, note: Note) -> dict[str, Tensor]:
    """The transformer of a checkpoint, deepened to the layers that are wanted. Raises CheckpointError."""
    layers = checkpoint.dit.num_layers
    if dataclasses.replace(checkpoint.dit, num_layers=wanted.num_layers) != wanted or layers > wanted.num_layers:
        raise CheckpointError(f"{folder}: its transformer is of another size than this config's [arch].")
    weights = checkpoint.load_dit(dtype=torch.float32, device="cpu").state_dict()
    if layers < wanted.num_layers:
        note(f"{folder}: its transformer of {layers} layers is deepened to {wanted.num_layers}.")
        weights = deepened(weights, layers, wanted.num_layers)
    return weights


def _build_lora(config: DiTTrainConfig, vae: WanVAE, found: Found | None, note: Note) -> Models:
    dit, lora = build_lora(config, vae.config, note)
    grid, code = Grid(stride=vae.config.stride, patch=dit.config.patch), load_linear_code(Path(config.autoencoder))
    models = Models(dit, None, None, vae, grid, code, lora=lora)
    if found is not None:
        models.prompts = found.captions[: len(SHEET_PROMPTS)]
    return models


def train(config: DiTTrainConfig, *, resume: bool, report: Reporter, note: Note = lambda _: None) -> Path:
    """Train or resume a run in `config.out`: checkpoint.pt holds everything, `model/` the averaged weights as a
    diffusers folder, or `lora/` the file of a LoRA.

    Raises:
        CheckpointError: the autoencoder, `init_from` or a teacher, nothing to resume, or a run that would be lost.
        UsageError: this machine lacks the device.
    """
    folder = Path(config.out)
    check_device(config.loop)
    config = dataclasses.replace(config, loop=in_fast_dtype(config.loop, note))
    if resume:
        check_kind(folder, config)
    found = scan(config.files, folder / INDEX, note) if config.files else None
    models = build(config, found, note)  # what it refuses is refused before there is a folder
    begin(folder, resume=resume)
    rank, world = distributed.start(config.loop.device)
    if config.loop.threads:
        torch.set_num_threads(config.loop.threads)
    fusion.enable(config.loop.fuse)
    embed_captions(models, found.captions if found else (), rank, world)
    run, stream = prepare(config, models, rank, world, found=found, note=note)
    if resume:
        run.resume()

    def step(n: int) -> StepResult:
        pack = stream.next()
        loss = pack_loss(
            models, pack, config, numpy_generator(config.loop.seed, rank, n), torch_generator(config.loop.seed, rank, n)
        )
        return StepResult(loss, len(pack), sum(stream.tokens(example) for example in pack))

    def snapshot(path: Path) -> None:
        dtype = torch.bfloat16 if config.loop.bf16 else torch.float32
        device = torch.device(config.loop.device)
        if models.lora is not None:
            models.lora.adapters.save(folder / FOLDER)
            draw_sheet(adapted_stages(models, models.lora, device, dtype), path, models.prompts)
            return
        export(models, folder / "model")
        sample_sheet(folder / "model", path, prompts=models.prompts, device=device, dtype=dtype)

    fit(run, step, snapshot, report, _validation(config, models, stream.shards, found))
    distributed.stop()
    return folder


def embed_captions(models: Models, captions: Sequence[str], rank: int = 0, world: int = 1) -> None:
    """With a LoRA: embed what is known to be needed, so that the text encoder is not needed any more."""
    if models.lora is not None:
        models.lora.texts.fill(["", *models.prompts, *captions], rank, world)


def adapted_stages(models: Models, lora: Lora, device: torch.device, dtype: torch.dtype) -> Stages:
    """The models of a LoRA's run to sample with, their prompts embedded already."""
    stages = Stages(Adapted(models.dit, models.vae, lora.checkpoint), dtype=dtype, device=device)
    prompts = ["", *models.prompts]
    stages.embeds |= zip(prompts, lora.texts(prompts), strict=True)
    return stages


def _validation(
    config: DiTTrainConfig, models: Models, shards: Shards, found: Found | None
) -> Callable[[], float] | None:
    """The mean loss on the clips that are kept from training, VALIDATION_CLIPS at most, always with the same noise."""
    if found is None or not found.validation or not isinstance(shards, FileShards):
        return None
    drawn = (shards.example(piece, np.random.default_rng(n)) for n, piece in enumerate(found.validation))
    examples = list(islice((example for example in drawn if example is not None), VALIDATION_CLIPS))
    plain = dataclasses.replace(config, caption_dropout=0.0, known_share=0.0, drop_share=0.0, noise_share=0.0)

    @torch.no_grad()
    def loss() -> float:
        losses = [
            pack_loss(models, [example], plain, numpy_generator(0, 0, n), torch_generator(0, 0, 4 * n + turn))
            for n, example in enumerate(examples)
            for turn in range(4)
        ]
        return float(torch.stack(losses).mean())

    return loss if examples else None


def prepare(
    config: DiTTrainConfig,
    models: Models,
    rank: int = 0,
    world: int = 1,
    *,
    found: Found | None = None,
    note: Note = lambda _: None,
) -> tuple[Run, PackStream]:
    """The state and the data of a run of `models`, which go to its device, before its first step."""
    made_by, seed = fingerprint(models.vae, models.code), (config.loop.seed, rank)
    encode, clips, out = make_encode(config, models), config.shard_clips, Path(config.out)
    shards: Shards
    if config.files is not None and found is not None:
        shards = FileShards(
            out / "latents", found.training, config.files, models.grid, encode,
            clips=clips, seed=seed, fingerprint=made_by, note=note,
        )  # fmt: skip
    else:
        shards = SceneShards(
            out / f"cache-{rank}", config.phase, models.grid, encode, clips=clips, seed=seed, fingerprint=made_by
        )
    return make_run(config, models, shards, rank, world)


def make_encode(config: DiTTrainConfig, models: Models) -> Callable[[Tensor], Tensor]:
    """From videos (B, 3, T, H, W) in [-1, 1] to the latents that are trained on; the encoder goes to the device."""
    device = config.loop.device
    encoder = models.vae if models.code is None else models.code
    encoder.to(device)

    @torch.no_grad()
    def encode(video: Tensor) -> Tensor:
        if models.code is not None:
            return models.code(video.to(device))
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.loop.bf16):
            return models.vae.encode(video.to(device)).float()

    return encode


def make_run(
    config: DiTTrainConfig, models: Models, shards: Shards, rank: int = 0, world: int = 1
) -> tuple[Run, PackStream]:
    """The state of a run on `shards`, and its stream of packs; the models go to the device."""
    models.dit.to(config.loop.device)
    if models.teacher:
        models.teacher.dit.to(config.loop.device)
        models.text.to(config.loop.device)
    trained = {name: module.to(config.loop.device) for name, module in models.trained.items()}
    stream = PackStream(shards, window=config.window, pack_tokens=config.pack_tokens, seed=(config.loop.seed, rank, 7))
    optim = config.optim
    run = Run(
        folder=Path(config.out),
        config=config.loop,
        modules=trained,
        optimizers=build_optimizers(
            [*trained.values()],
            muon_lr=optim.muon_lr,
            adam_lr=optim.adam_lr,
            weight_decay=optim.weight_decay,
            text=[]
            if models.lora or models.teacher
            else [*models.text.parameters(), *models.dit.text_embedding.parameters()],
            text_lr=optim.text_lr,
        ),
        ema=EMA([*trained.values()], decay=config.loop.ema),
        data=stream,
        rank=rank,
        world=world,
    )
    return run, stream


def fingerprint(vae: WanVAE, code: LinearCode | None = None) -> str:
    """A name for an autoencoder's weights and statistics, or for the code in its place, so that cached latents of
    another one are never used.
    """
    digest = hashlib.sha256(repr(vae.config).encode())
    for tensor in (code or vae).state_dict().values():
        digest.update(tensor.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def pack_loss(
    models: Models,
    pack: Sequence[Example],
    config: DiTTrainConfig,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Tensor:
    """The flow-matching loss of one pack: a wording, a noise level and, for some videos, known frames are drawn for
    each clip.
    """
    if models.teacher is not None:
        return _distil_loss(models, models.teacher, pack, config, rng, generator)
    device = config.loop.device
    clean = [example.latents.to(device).float() for example in pack]
    noise = [torch.randn(x.shape, generator=generator).to(device) for x in clean]
    levels = sample_sigmas(
        len(pack),
        mean=config.level_mean,
        std=config.level_std,
        shift=config.shift,
        noise_share=config.noise_share,
        generator=generator,
    )
    sigmas = [
        with_known_frames(level, x.shape[1], config.known_share, rng) for level, x in zip(levels, clean, strict=True)
    ]
    noisy = [add_noise(x, eps, sigma) for x, eps, sigma in zip(clean, noise, sigmas, strict=True)]
    keep = [kept_tokens(e.objects, s, models.grid.patch, config, rng) for e, s in zip(pack, sigmas, strict=True)]
    weights = [
        loss_weights(e.objects, s, kept, models.grid.patch, config.object_weight).to(device)
        for e, s, kept in zip(pack, sigmas, keep, strict=True)
    ]

    captions = [
        "" if rng.random() < config.caption_dropout else e.captions[rng.integers(len(e.captions))] for e in pack
    ]
    distinct = sorted(set(captions))
    embeds = models.embed(distinct)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.loop.bf16):
        text = models.dit.encode_text(embeds)
        velocity = models.dit(
            noisy, [s * NUM_TRAIN_TIMESTEPS for s in sigmas], text, [distinct.index(c) for c in captions], keep
        )
    return flow_loss([v.float() for v in velocity], clean, noise, sigmas, weights)


def _distil_loss(
    models: Models,
    teacher: Teacher,
    pack: Sequence[Example],
    config: DiTTrainConfig,
    rng: np.random.Generator,
    generator: torch.Generator,
) -> Tensor:
    """The loss of one pack against what the teacher makes of it."""
    device, bf16 = config.loop.device, config.loop.bf16
    clean = [example.latents.to(device).float() for example in pack]
    one = torch.ones(())
    known = [with_known_frames(one, x.shape[1], config.known_share, rng).eq(0).to(device) for x in clean]
    captions = [e.captions[rng.integers(len(e.captions))] for e in pack]
    distinct = ["", *sorted(set(captions))]
    with torch.no_grad():
        embeds = models.embed(distinct)
    prompts = [distinct.index(caption) for caption in captions]
    targets = teacher.targets(clean, known, embeds, prompts, generator=generator, bf16=bf16)
    weights = [
        loss_weights(e.objects, target.sigma, None, models.grid.patch, config.object_weight).to(device)
        for e, target in zip(pack, targets, strict=True)
    ]
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
        return distil_loss(models.dit, targets, embeds, prompts, weights)


def defaults_of_files(found: Found) -> dict[str, Any]:
    """dvgen.json of a model of files: the middle one of their clips says what is made where nothing is asked for."""
    pieces = sorted(found.training, key=lambda piece: piece.shape.width * piece.shape.height * piece.shape.num_frames)
    piece = pieces[len(pieces) // 2]
    longest = max(each.shape.num_frames for each in pieces)
    shape = {"size": f"{piece.shape.width}x{piece.shape.height}", "frames": piece.shape.num_frames, "window": longest}
    rest = {name: value for name, value in DEFAULTS.items() if name != "knows"}
    return {**rest, **shape, "fps": piece.fps or DEFAULTS["fps"]}


def sample_sheet(
    model: Path,
    path: Path,
    *,
    prompts: Sequence[str] = SHEET_PROMPTS,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """A picture of a few prompts at 192x128, 17 frames, by the checkpoint in the folder `model`, each clip a row."""
    draw_sheet(Stages(WanCheckpoint.open(model), dtype=dtype, device=device), path, prompts)


def draw_sheet(stages: Stages, path: Path, prompts: Sequence[str]) -> None:
    """The same by any stages."""
    shape = VideoShape(num_frames=17, height=128, width=192)
    clips = [Clip(prompt=prompt, shape=shape, seed=seed) for seed, prompt in enumerate(prompts)]
    latents = sample_latents(stages, clips, Settings(steps=16, shift=3.0, guidance=(4.0,)))
    save_sheet(path, [np.stack(list(decode_frames(stages.vae, each, shape)))[::4] for each in latents])
