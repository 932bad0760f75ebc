"""dvgen's library: video diffusion transformers over packed spacetime patches."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dit_video.api import Model, Video, generate, load_model

__version__ = "0.1.0"
__all__ = ["Model", "Video", "generate", "load_model"]


def __getattr__(name: str) -> Any:
    if name in __all__:  # torch is imported when one of them is first used
        from dit_video import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
