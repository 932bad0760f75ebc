"""Draw results/scaling.json as docs/images/scaling_*.png.

python benchmarks/scaling_plots.py
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from harness import RESULTS, ROOT
from scaling_report import flops, middle, peaks, roof, size_of

IMAGES = ROOT / "docs" / "images"
BLUE, ORANGE, GREEN, GRAY = "#1f6fb4", "#d8701a", "#2c8a4b", "#888888"
COLOURS = {"decode": ORANGE, "encode": GREEN}


def draw(results: Path = RESULTS / "scaling.json", folder: Path = IMAGES) -> list[Path]:
    """All plots; the files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                         "grid.alpha": 0.3, "savefig.dpi": 110, "figure.constrained_layout.use": True})  # fmt: skip
    found = json.loads(results.read_text())["measured"]
    made = []
    for name, plot in (("tokens", tokens), ("clips", clips), ("packs", packs), ("roof", roofs)):
        figure = plot(plt, found)
        made.append(folder / f"scaling_{name}.png")
        figure.savefig(made[-1], metadata={"Software": None})
        plt.close(figure)
    return made


def points(axes: Any, x: Sequence[float], every: Sequence[Any], colour: str, label: str, scale: float = 1) -> None:
    """Medians, with bars from the least to the most."""
    y = np.array([scale * middle(p) for p in every])
    ends = np.array([[scale * min(p["seconds"]), scale * max(p["seconds"])] for p in every]).T
    axes.errorbar(x, y, [y - ends[0], ends[1] - y], fmt="o", ms=4, color=colour, label=label, capsize=2)


def tokens(plt: Any, found: dict[str, Any]) -> Any:
    """A pass of the transformer, with the fit and its parts."""
    figure, axes = plt.subplots(figsize=(6.4, 4))
    passes = found["transformer"]["2"]["passes"]
    a, b, c = found["fits"]["transformer"]["coefficients"]
    n = np.geomspace(passes[0]["tokens"], passes[-1]["tokens"], 100)
    axes.loglog(n, 1e3 * (a + b * n + c * n * n), color=BLUE, lw=1, label="fit a + b n + c n²")
    axes.loglog(n, 1e3 * b * n, color=GRAY, lw=1, ls="--", label="b n: layers")
    axes.loglog(n, 1e3 * c * n * n, color=GRAY, lw=1, ls=":", label="c n²: attention")
    points(axes, [p["tokens"] for p in passes], passes, BLUE, "two threads", 1e3)
    one = found["transformer"]["1"]["passes"]
    points(axes, [p["tokens"] for p in one], one, ORANGE, "one thread", 1e3)
    axes.set(xlabel="tokens n", ylabel="ms", title="A pass of the transformer, one clip")
    axes.set_ylim(bottom=1)
    axes.legend()
    return figure


def clips(plt: Any, found: dict[str, Any]) -> Any:
    """Decoding and encoding against pixels and against frames."""
    figure, both = plt.subplots(1, 2, figsize=(9, 3.6))
    for axes, what in zip(both, ("pixels", "frames"), strict=True):
        for stage, colour in COLOURS.items():
            every = found["autoencoder"]["2"][stage][what]
            x = np.array([size_of(p, what) for p in every])
            a, b = found["fits"][f"{stage} by {what}"]["coefficients"]
            unit = 1000 if what == "pixels" else 1
            points(axes, x / unit, every, colour, stage)
            axes.plot(x / unit, a + b * x, color=colour, lw=1)
        same = every[0]
        fixed = f"{same['frames']} frames" if what == "pixels" else f"{same['width']}x{same['height']}"
        label = "thousands of pixels in a frame" if what == "pixels" else "frames"
        axes.set(xlabel=label, ylabel="s", title=fixed, xlim=(0, None), ylim=(0, None))
        axes.legend()
    return figure


def packs(plt: Any, found: dict[str, Any]) -> Any:
    """Time for each clip of a pack, as a part of that of one alone."""
    figure, axes = plt.subplots(figsize=(6.4, 3.6))
    for (name, every), colour in zip(found["transformer"]["2"]["packs"].items(), (BLUE, ORANGE), strict=True):
        alone = middle(every[0])
        axes.semilogx(
            [p["clips"] for p in every], [middle(p) / p["clips"] / alone for p in every], "o-", ms=4, lw=1,
            color=colour, label=f"clips of {name}: {1000 * alone:.1f} ms alone",
        )  # fmt: skip
    ticks = [p["clips"] for p in every]
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set(xlabel="clips in a pack", ylabel="time for each, one alone = 1", ylim=(0, None))
    axes.legend()
    return figure


def roofs(plt: Any, found: dict[str, Any]) -> Any:
    """Rates under the roof of the machine."""
    figure, axes = plt.subplots(figsize=(6.8, 4.2))
    peak, bandwidth = peaks(found)
    x = np.geomspace(0.5, 300, 200)
    axes.loglog(
        x, np.minimum(peak, x * bandwidth), color="black", lw=1.2, label=f"{bandwidth:.0f} GB/s, {peak:.0f} GFLOP/s"
    )
    auto = found["autoencoder"]["2"]
    every = {"a pass": (BLUE, "o", found["transformer"]["2"]["passes"])}
    for stage, colour in COLOURS.items():
        every[stage] = colour, "s", [*auto[stage]["pixels"], *auto[stage]["frames"]]
    for name, (colour, marker, stage) in every.items():
        over = [roof(p, peak, bandwidth) for p in stage]
        size = [15 + 10 * np.log10(max(1, flops(p) / 1e8)) for p in stage]
        x_y = [o.intensity for o in over], [o.rate for o in over]
        axes.scatter(*x_y, s=size, color=colour, marker=marker, label=name, alpha=0.8, zorder=3)
    axes.set(xlabel="FLOPs for each byte of operands", ylabel="GFLOP/s", title="The roof, and what is reached")
    axes.legend(loc="lower right")
    return figure


if __name__ == "__main__":
    for file in draw():
        print(file.relative_to(ROOT))
