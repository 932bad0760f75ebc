"""The house rules, read off the source.

Imports only go down, each heavy package has one owner, and the command line imports none of them when it starts.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

from dvgen.commands import LISTED

ROOT = Path(__file__).parents[1]
LAYERS = (
    ("errors", "shapes", "atomic", "claims", "processes", "cache", "limits", "allocator"),
    ("nn", "flow", "checkpoints", "text", "video", "scenes"),
    ("models",),
    (
        *("place", "work", "machine", "plan", "timing", "course", "groups", "windows"),
        *("known", "given", "clip", "unfinished"),
        *("stages", "prompts", "denoise", "decode", "preview"),
    ),
    ("latents", "make", "extend", "calibrate", "api"),
    ("train", "evaluate", "evaluate_modes"),
    ("dvgen",),
)
OWNERS = {
    "typer": "dvgen",
    "rich": "dvgen",
    "transformers": "text",
    "tokenizers": "text",
    "ftfy": "text",
    "imageio": "video",
    "imageio_ffmpeg": "video",
    "safetensors": "checkpoints",
    "tensorboard": "train",
}
HEAVY = {
    "torch",
    "numpy",
    "transformers",
    "tokenizers",
    "imageio",
    "imageio_ffmpeg",
    "safetensors",
    "tensorboard",
    "PIL",
    "rich",
}


def sources() -> list[Path]:
    return sorted([*(ROOT / "dit_video").rglob("*.py"), *(ROOT / "cli" / "dvgen").rglob("*.py")])


def module_name(path: Path) -> str:
    base = ROOT / "cli" if "cli" in path.relative_to(ROOT).parts else ROOT
    return ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")


def statements(tree: ast.AST, *, at_import: bool) -> Iterator[ast.stmt]:
    """Every statement that can run; with `at_import`, only those that run when the module is imported."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.stmt):
            yield node
        yield from statements(node, at_import=at_import)


def imported(path: Path, *, at_import: bool = False) -> set[str]:
    """The modules that a file imports, by their full names; `from a import b` counts as a and as a.b."""
    names: set[str] = set()
    for node in statements(ast.parse(path.read_text()), at_import=at_import):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room(module: str) -> str | None:
    """The room of a module of ours: "nn" of dit_video.nn.rope, "dvgen" of the command line, None for a root."""
    package, _, rest = module.partition(".")
    if package == "dvgen":
        return "dvgen"
    return rest.split(".")[0] if package == "dit_video" and rest else None


def layer(name: str) -> int:
    found = [number for number, rooms in enumerate(LAYERS) if name in rooms]
    assert found, f"the room {name!r} is in no layer"
    return found[0]


def test_every_module_is_in_a_layer():
    rooms = {name for path in sources() if (name := room(module_name(path)))}
    assert {layer(name) for name in rooms} == set(range(len(LAYERS)))


def test_imports_only_go_down():
    for path in sources():
        here = room(module_name(path))
        for name in imported(path):
            there = room(name)
            if here is None or there is None or there.startswith("__"):
                continue
            assert layer(there) <= layer(here), f"{path.relative_to(ROOT)} imports {name}, which is above it"


def test_model_families_do_not_know_each_other():
    for path in sources():
        parts = module_name(path).split(".")
        if parts[:2] != ["dit_video", "models"] or len(parts) < 3:
            continue
        for name in imported(path):
            other = name.split(".")
            if other[:2] == ["dit_video", "models"] and len(other) > 2:
                assert other[2] == parts[2], f"{path.relative_to(ROOT)} imports {name} of another family"


def test_heavy_packages_have_one_owner():
    for path in sources():
        for name in imported(path):
            package = name.removeprefix("torch.utils.").split(".")[0]  # torch.utils.tensorboard
            if package in OWNERS:
                assert room(module_name(path)) == OWNERS[package], f"{path.relative_to(ROOT)} imports {package}"


def reached_from(*begin: str) -> set[str]:
    """The modules of ours that are imported with these; none of them imports anything heavy at that."""
    files = {module_name(path): path for path in sources()}
    reached, waiting = set(), set(begin)
    while waiting:
        name = waiting.pop()
        reached.add(name)
        names = imported(files[name], at_import=True)
        heavy = {found.split(".")[0] for found in names} & HEAVY
        assert not heavy, f"{name} imports {', '.join(sorted(heavy))} when it is imported"
        packages = {".".join(found.split(".")[:n]) for found in names for n in range(1, 5)}
        waiting |= {found for found in packages if found in files} - reached
    return reached


def test_the_command_line_imports_nothing_heavy():
    reached = reached_from(
        "dvgen.main", "dvgen.__main__", *{f"dvgen.{each.place.partition(':')[0]}" for each in LISTED}
    )
    assert {"dvgen.sample", "dvgen.train", "dit_video.errors", "dit_video.shapes"} <= reached


def test_a_checkpoint_is_described_without_anything_heavy():
    """Headers and configs tell what a run will be, long before torch is needed."""
    opening = [f"dit_video.models.wan.{name}" for name in ("pipeline", "folder", "release", "random")]
    rooms = ("plan", "machine", "clip", "given", "windows", "flow.ramps", "text.cache")
    planning = [f"dit_video.{name}" for name in rooms]
    reached = reached_from("dit_video.models", *opening, *planning)
    assert {"dit_video.checkpoints.formats", "dit_video.text.image_files"} <= reached


def test_the_walk_sees_a_wrong_import(tmp_path):
    """The rules above would pass on anything if the walk found no imports."""
    file = tmp_path / "module.py"
    file.write_text(
        "import torch.nn\nif TYPE_CHECKING:\n    import numpy\nfrom rich import table\n"
        "def f():\n    from dit_video.models import wan\n"
    )
    assert imported(file) == {"torch.nn", "rich", "rich.table", "dit_video.models", "dit_video.models.wan"}
    assert imported(file, at_import=True) == {"torch.nn", "rich", "rich.table"}
