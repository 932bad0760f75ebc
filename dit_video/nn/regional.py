"""A transformer's blocks compiled, all of them as one function: what is around them stays as it is (regional
compilation, https://docs.pytorch.org/tutorials/recipes/regional_compilation.html).

All blocks are alike, so the first one is compiled and the others use it. Sizes are symbols in it: clips of another
size, pack or prompt are computed by the same code. There are two forms of it, for packs of one noise level and of
several, of which each is compiled when it is first needed.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from shutil import which
from typing import Any

import torch
from torch import Tensor, nn

from dit_video.errors import UsageError
from dit_video.nn.linear import multiplies


def compile_blocks(blocks: Iterable[nn.Module], *, backend: Any = "inductor") -> None:
    """Let each block be compiled when it is first called; backend: as of torch.compile."""
    torch.compiler.assume_constant_result(multiplies)  # here, since it imports the compiler: two seconds
    for block in blocks:
        block.compile(dynamic=True, fullgraph=True, backend=backend)


def any_length(*tensors: Tensor | None) -> None:
    """Let the first dimension of tensors be any number to compiled code, which else would take it for that of another
    dimension that is as large by chance. For tensors that go into operations the compiler does not look into."""
    for tensor in tensors:
        if tensor is not None:
            torch._dynamo.decorators.mark_unbacked(tensor, 0)


def own_sizes() -> AbstractContextManager[None]:
    """While blocks are called in this, sizes that are equal by chance are compiled as different ones: else a clip of as
    many tokens as a head has pairs of channels is the only one that its code is good for."""
    return torch.fx.experimental._config.patch(use_duck_shape=False)  # type: ignore[attr-defined]


def check_compiler(device: str) -> None:
    """Refuses to compile where what torch compiles with is not there; device: its kind. Raises UsageError."""
    if device == "cuda":
        from torch.utils._triton import has_triton

        if not has_triton():
            raise UsageError("--compile needs Triton on a GPU, and this PyTorch has none; leave --compile out.")
        return
    from torch._inductor.config import cpp

    names = [cpp.cxx] if isinstance(cpp.cxx, str) else [name for name in cpp.cxx if name]
    if device == "cpu" and not any(which(name) for name in names):
        raise UsageError(
            f"--compile needs a C++ compiler on the CPU, and there is no {names[-1]}; leave --compile out."
        )
    if device not in ("cpu", "cuda"):
        raise UsageError(f"--compile: nothing is compiled for {device}; the nearest is to leave it out.")
