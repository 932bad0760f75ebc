"""The settings that a model is best sampled with; known before torch is imported.

Sources: Wan-Video/Wan2.1 and Wan2.2, wan/configs/*.py and generate.py; 1.3B's shift and guidance from its README.
"""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """What to sample with where the user says nothing.

    guidance: one scale, or those of the high-noise and the low-noise expert. sigmas: "release" or "diffusers". window:
    the longest clip that it makes well, in frames, where that is not `frames`.
    """

    width: int = 832
    height: int = 480
    frames: int = 81
    fps: float = 16
    steps: int = 50
    guidance: tuple[float, ...] = (5.0,)
    negative: str = ""
    shift: float = 5.0
    solver: str = "unipc"
    sigmas: str = "release"
    window: int | None = None


RELEASES = {
    "T2V-1.3B": Defaults(shift=8.0, guidance=(6.0,)),
    "T2V-14B": Defaults(width=1280, height=720),
    "T2V-A14B": Defaults(width=1280, height=720, steps=40, guidance=(4.0, 3.0), shift=12.0),
    "TI2V-5B": Defaults(width=1280, height=704, frames=121, fps=24),
    "I2V-14B-480P": Defaults(steps=40, shift=3.0),
    "I2V-14B-720P": Defaults(width=1280, height=720, steps=40),
    "FLF2V-14B": Defaults(width=1280, height=720, shift=16.0),
    "I2V-A14B": Defaults(width=1280, height=720, steps=40, guidance=(3.5, 3.5)),
}
"""By the names of `variants.VARIANTS`."""

TINY_DEFAULTS = Defaults(width=128, height=72, frames=9, fps=8, steps=4)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Settings for models that were changed in one way, by a LoRA or in whole, whatever they were before.

    solver: of models with one transformer. experts_solver: of those with two.
    """

    steps: int
    guidance: tuple[float, ...]
    shift: float
    sigmas: str
    solver: str
    experts_solver: str

    def over(self, defaults: Defaults, *, experts: bool) -> Defaults:
        """A model's defaults with these settings; experts: it has two transformers."""
        return replace(
            defaults,
            steps=self.steps,
            guidance=self.guidance,
            shift=self.shift,
            sigmas=self.sigmas,
            solver=self.experts_solver if experts else self.solver,
        )


# Distilled to four steps without guidance. Those of Wan 2.1 learnt to leap to the clean latents from noise that is
# drawn anew at every level (Self-Forcing, and LightX2V's WanStepDistillScheduler), those of 2.2 to go straight on
# (LightX2V's Wan22StepDistillScheduler, and Wan2.2-Lightning).
PRESETS = {
    "distilled": Preset(steps=4, guidance=(1.0,), shift=5.0, sigmas="release", solver="lcm", experts_solver="euler"),
}
