"""What all commands that denoise have in common: checked options, the checkpoint they open, where the result goes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_video import latents, limits
from dit_video.checkpoints.hashes import known_hash, together
from dit_video.clip import settings_of
from dit_video.errors import UsageError
from dit_video.models.wan.defaults import PRESETS, RELEASES, TINY_DEFAULTS, Defaults
from dit_video.video.output import check_file, check_video, previewed
from dvgen import chosen, console, options
from dvgen.chosen import Chosen
from dvgen.problems import Problems
from dvgen.recipe import Recipe, read_recipe, recipe_of

if TYPE_CHECKING:
    import torch

    from dit_video.clip import Settings
    from dit_video.models.wan.pipeline import WanCheckpoint
    from dit_video.models.wan.random import RandomCheckpoint
    from dit_video.plan import Plan
    from dit_video.shapes import VideoShape
    from dit_video.stages import Stages
    from dit_video.unfinished import Unfinished


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Checked options; None leaves a value to the checkpoint."""

    negative: str | None
    model: Chosen
    preset: str | None
    steps: int | None
    solver: str | None
    sigmas: str | None
    shift: float | None
    guidance: tuple[float, ...] | None
    guidance_interval: tuple[float, float] | None
    fast: bool
    seed: int
    seed_drawn: bool
    count: int
    time_budget: float | None
    dtype: str
    device: str
    memory: int | None
    quantize: str | None
    compile: bool
    cuda_graphs: bool
    output: Path | None
    save_latents: Path | None
    keep_latents: bool
    sheet: Path | None
    preview_file: Path | None
    overwrite: bool
    fresh: bool
    strict: bool
    no_recipe: bool
    expected_model: str | None
    tile: int | None
    as_json: bool
    quiet: bool
    problems: Problems | None = None  # of a dry run, which gathers them

    def listing(self) -> AbstractContextManager[None]:
        """What its body is refused for is listed in a dry run, and an error otherwise."""
        return self.problems.listed() if self.problems else nullcontext()

    def check_model(self) -> dict[str, Any]:
        """Refuses models and settings that do not fit, before torch is imported; the contents of dvgen.json, if any.

        Raises:
            UsageError, CheckpointError: they do not fit, or there is no such model.
        """
        return self.model.check(self.guidance)

    def rates(self, ours: dict[str, Any], fps: float | None) -> list[float]:
        """The frames per second of the clip: one, or those of all releases where the checkpoint must be opened to tell.

        ours: the contents of dvgen.json. fps: what was asked for.
        """
        if fps is not None:
            return [fps]
        if self.model.random:
            return [TINY_DEFAULTS.fps]
        fps = ours.get("fps")
        if isinstance(fps, int | float) and fps > 0:
            return [float(fps)]
        return sorted({defaults.fps for defaults in (Defaults(), *RELEASES.values())})

    @property
    def each(self) -> "list[Sampling]":
        """This for every video that is asked for: with the next seeds, which are in the names of their files."""
        if self.count == 1:
            return [self]
        if self.seed + self.count - 1 > limits.MAX_SEED:
            rule = f"the last seed would be more than {limits.MAX_SEED}"
            given = f"--seed {self.seed} and --count {self.count}"
            raise UsageError(f"{given}: {rule}; the nearest seed is {limits.MAX_SEED - self.count + 1}.")
        seeds = [self.seed + number for number in range(self.count)]
        output = self.output
        names = [output and output.with_name(f"{output.stem}-{seed}{output.suffix}") for seed in seeds]
        return [replace(self, seed=seed, output=name, count=1) for seed, name in zip(seeds, names, strict=True)]

    def check_output(self, frames: int, fps: float) -> None:
        """Refuses files that could not be written. Raises UsageError, MediaError."""
        for output in (each.output for each in self.each):
            if output:  # of several videos those that are there already may be left as they are
                with self.listing():
                    overwrite = self.overwrite or self.count > 1
                    check_video(output, frames, fps=fps, overwrite=overwrite, option="--output")
        with self.listing():
            self._check_others()

    def _check_others(self) -> None:
        """Refuses files beside the video that could not be written. Raises UsageError, MediaError."""
        if self.count > 1 and self.save_latents:
            given = f"--count {self.count} and --save-latents {self.save_latents}"
            raise UsageError(f"{given}: one file holds the latents of one video; use --keep-latents.")
        if self.sheet:
            check_file(self.sheet, (".png",), overwrite=self.overwrite, option="--sheet")
        if self.preview_file:
            of = previewed(self.preview_file)
            overwrite = self.overwrite or (of is not None and not of.exists())  # left by what was broken off
            check_file(self.preview_file, (".gif",), overwrite=overwrite, option="--preview-file")
            if self.preview_file == self.output:
                raise UsageError(f"--preview-file {self.preview_file}: is the file of the video; name another one.")
        if self.keep_latents and self.save_latents:
            given = f"--keep-latents and --save-latents {self.save_latents}"
            raise UsageError(f"{given}: only one of the two can be given.")
        if self.count == 1:
            self.latents_of(self.output)

    def open(self) -> "WanCheckpoint | RandomCheckpoint":
        """The checkpoint. Raises UsageError, CheckpointError."""
        return self.model.open()

    def defaults(self, checkpoint: "WanCheckpoint | RandomCheckpoint") -> Defaults:
        """What to sample with where nothing else was asked for: the preset's settings over the checkpoint's."""
        if self.preset is None:
            return checkpoint.defaults
        return PRESETS[self.preset].over(checkpoint.defaults, experts=checkpoint.boundary is not None)

    def tell_preset(self, checkpoint: "WanCheckpoint | RandomCheckpoint", speaker: console.Speaker) -> None:
        """Say what the preset set, but for what was asked for otherwise."""
        if self.preset is None:
            return
        found = self.defaults(checkpoint)
        values = {
            "steps": f"{found.steps}",
            "solver": found.solver,
            "sigmas": found.sigmas,
            "shift": f"{found.shift:g}",
            "guidance": ",".join(f"{scale:g}" for scale in found.guidance),
        }
        ours = [f"--{name} {value}" for name, value in values.items() if getattr(self, name) is None]
        speaker.note(f"preset {self.preset}: {' '.join(ours) or 'nothing, since all of it was given'}")

    def settings(self, checkpoint: "WanCheckpoint | RandomCheckpoint", *, strength: float = 1.0) -> "Settings":
        """How to denoise: what was asked for, and the checkpoint's defaults for the rest. Raises UsageError."""
        return settings_of(
            checkpoint.defaults,
            experts=checkpoint.boundary is not None,
            preset=self.preset,
            steps=self.steps,
            solver=self.solver,
            sigmas=self.sigmas,
            shift=self.shift,
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
            fast=self.fast,
            strength=strength,
        )

    def negative_of(self, checkpoint: "WanCheckpoint | RandomCheckpoint") -> str:
        """The negative prompt."""
        return checkpoint.defaults.negative if self.negative is None else self.negative

    def output_of(self, name: str, frames: int, fps: float) -> Path:
        """The file to write: what was asked for, or made from a name and the seed. Raises UsageError, MediaError."""
        suffix = ".png" if frames == 1 else ".mp4"
        output = self.output or options.made_name(name, self.seed, suffix, Path())
        check_video(output, frames, fps=fps, overwrite=self.overwrite, option="--output")
        return output

    def there_already(self, name: str, frames: int, recipe: Recipe | None) -> Path | None:
        """The file that the same recipe has made before under the name that it would get now, if there is one."""
        output = self.output or options.first_name(name, self.seed, ".png" if frames == 1 else ".mp4", Path())
        if self.overwrite or recipe is None or not output.is_file():
            return None
        found = read_recipe(output)
        return output if found is not None and found.makes_the_same(recipe) else None

    def tell_size(
        self, checkpoint: "WanCheckpoint | RandomCheckpoint", shape: "VideoShape", speaker: console.Speaker
    ) -> None:
        """Warn of a size or length that the model was not trained on, if it says so."""
        if words := checkpoint.untrained(shape):
            self.warn(speaker)(words)

    def recipe(
        self,
        command: str,
        arguments: Sequence[str],
        checkpoint: "WanCheckpoint | RandomCheckpoint",
        settings: "Settings",
        place: "tuple[torch.device, torch.dtype]",
        *,
        files: Sequence[Path] = (),
        **video: Any,
    ) -> Recipe | None:
        """The recipe that goes into the file, if one does.

        files: the pictures and clips that are read. video: options of the command's own.
        """
        if self.no_recipe:
            return None
        from dit_video.machine import dtype_name

        device, dtype = place
        how = {
            "negative": self.negative_of(checkpoint),
            "seed": self.seed,
            "steps": settings.steps,
            "solver": settings.solver,
            "sigmas": settings.sigmas,
            "shift": settings.shift,
            "guidance": settings.guidance,
            "guidance-interval": settings.guidance_interval,
            "fast": settings.fast,
            "dtype": dtype_name(dtype),
            "device": device.type,
            "quantize": self.quantize,
            "compile": self.compile,
            "cuda-graphs": self.cuda_graphs,
        }
        options = {**video, **how, **self.model.line()}
        model, content = checkpoint.signature[:16], (together(checkpoint.files, known_hash) or "")[:16]
        return recipe_of(command, arguments, options, model=model, content=content, files=files)

    def latents_of(self, output: Path | None, unfinished: "Unfinished | None" = None) -> Path | None:
        """The file of the latents, if they are to be kept; output: the video's, if it has a name yet.

        unfinished: of this command, which may find its own latents, left without a video. Without it any command's may
        be these.

        Raises:
            UsageError, MediaError: it cannot be written.
        """
        file = output.with_suffix(".safetensors") if output and self.keep_latents else self.save_latents
        if file is None:
            return None
        found = latents.made_by(file) if output is None or not output.exists() else None
        is_ours = found is not None and (unfinished is None or found == (unfinished.key, self.seed))
        option = "--keep-latents" if self.keep_latents else "--save-latents"
        check_file(file, (".safetensors",), overwrite=self.overwrite or is_ours, option=option)
        return file

    def go_on(self, key: str, speaker: console.Speaker) -> "tuple[Sampling, Unfinished]":
        """Where the state of denoising is kept, and this with the seed of what the same command left, if it goes on.

        key: see `key_of`.
        """
        from dit_video.unfinished import Unfinished, find

        folder = self.output.parent if self.output else Path()
        found = find(folder, key, None if self.seed_drawn else self.seed)
        if found is None:
            seed = self._seed_of_latents(key)
            ours = self if seed is None or self.fresh else replace(self, seed=seed, seed_drawn=False)
            unfinished = Unfinished(folder, key, ours.seed)
            if unfinished.is_in_use:
                speaker.note("another process is making the same; this one begins anew, apart from it")
            return ours, unfinished
        there = f"{found.step} of {found.steps} steps of the same command are there"
        if found.part:
            there = f"{there}, in {'window' if self.count == 1 else 'video'} {found.part + 1}"
        if self.fresh or not speaker.ask(f"{there}. Go on from them?", otherwise=True):
            if not self.seed_drawn:
                Unfinished(folder, key, self.seed).remove()
            return self, Unfinished(folder, key, self.seed)
        speaker.note(f"{there}, with the seed {found.seed}: going on (--fresh begins anew)")
        return replace(self, seed=found.seed, seed_drawn=False), Unfinished(folder, key, found.seed)

    def _seed_of_latents(self, key: str) -> int | None:
        """The seed of the latents that the same command has left without a video, if it has."""
        if self.output is None or self.output.exists():
            return None
        file = self.output.with_suffix(".safetensors") if self.keep_latents else self.save_latents
        found = latents.made_by(file) if file else None
        return found[1] if found and found[0] == key and (self.seed_drawn or found[1] == self.seed) else None

    def tell_seed(self, speaker: console.Speaker) -> None:
        """Say which seed it is; one that was drawn also when quiet."""
        seeds = f"seed {self.seed}" if self.count == 1 else f"seeds {self.seed} to {self.seed + self.count - 1}"
        if self.seed_drawn:
            self.warn(speaker)(f"{seeds} (drawn)")
        else:
            speaker.note(seeds)

    def warn(self, speaker: console.Speaker) -> Callable[[str], None]:
        """Where warnings go: the JSON object has what they say, so that with it they are notes."""
        return speaker.note if self.as_json and not self.problems else speaker.warn

    def stages(
        self,
        checkpoint: "WanCheckpoint | RandomCheckpoint",
        device: "torch.device",
        dtype: "torch.dtype",
        speaker: console.Speaker,
        plan: "Plan",
        *,
        keep: bool = False,
    ) -> "Stages":
        """The checkpoint's stages, to be loaded as the plan says."""
        from dit_video.machine import dtype_name
        from dit_video.stages import Stages
        from dit_video.text.cache import made_by, users_cache
        from dit_video.timing import users_clock

        files, warn = checkpoint.text_files, self.warn(speaker)
        if self.expected_model not in (None, checkpoint.signature[:16]):
            warn("the model is not the one of the recipe: its files differ, and so may the frames.")
        if self.expected_model and plan.tile and not self.tile:
            warn("frames are decoded in tiles, and those of the recipe were not: they may differ a little.")
        chosen.tell(checkpoint, speaker.note, warn)
        self.tell_preset(checkpoint, speaker)
        return Stages(
            checkpoint,
            dtype=dtype,
            device=device,
            keep=keep,
            keep_layers=plan.keep_layers,
            cache=users_cache(made_by(files, dtype_name(dtype), device.type)) if files else None,
            clock=users_clock(checkpoint, dtype_name(dtype), device.type, plan.keep_layers, self.quantize),
            quantize=self.quantize,
            compile=self.compile,
            graphs=self.cuda_graphs,
            progress=speaker.progress,
            note=speaker.note,
            warn=warn,
        )

    def plan(
        self,
        checkpoint: "WanCheckpoint | RandomCheckpoint",
        shape: "VideoShape",
        device: "torch.device",
        dtype: "torch.dtype",
        *,
        encodes: bool = False,
    ) -> "Plan":
        """What one clip takes, within the memory that there is for it; encodes: see `plan`. Raises UsageError."""
        from dit_video.machine import memory_for
        from dit_video.plan import check_memory, plan

        available = memory_for(device, self.memory)
        holds = device.type != "cpu"
        with self.listing():
            return check_memory(
                checkpoint,
                shape,
                itemsize=dtype.itemsize,
                available=available,
                holds=holds,
                encodes=encodes,
                tile=self.tile,
                quantised=self.quantize is not None,
            )
        return plan(checkpoint, shape, itemsize=dtype.itemsize, encodes=encodes, tile=self.tile)

    def place(self) -> "tuple[torch.device, torch.dtype]":
        """The device and the dtype. Raises UsageError."""
        from dit_video.limits import check_graphs
        from dit_video.machine import pick_device, pick_dtype

        device = pick_device(self.device)
        check_graphs(self.cuda_graphs, device.type)
        if self.compile:
            from dit_video.nn.regional import check_compiler

            check_compiler(device.type)
        dtype = pick_dtype(self.dtype, device)
        if self.quantize:
            from dit_video.nn.linear import check_quantize

            check_quantize(self.quantize, device, dtype, compiled=self.compile)
        return device, dtype
