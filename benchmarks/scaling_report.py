"""What `bench_scaling.py` has measured, in words: fits, the roof over each stage, and where its time goes."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from harness import Report, Spread

Point = dict[str, Any]


@dataclass(frozen=True)
class Fit:
    """seconds = sum of coefficients[i] * x**i, by least squares of relative errors.

    r2: of the seconds themselves, the part of their variance that the fit explains. worst: the largest relative error.
    """

    coefficients: list[float]
    r2: float
    worst: float


def fit(x: Sequence[float], seconds: Sequence[float], degree: int) -> Fit:
    """Relative errors count, or the largest clip alone would make the fit."""
    t = np.asarray(seconds, np.float64)
    powers = np.vander(np.asarray(x, np.float64), degree + 1, increasing=True)
    scale = powers.max(0)  # columns of like size are solved exactly
    found = np.linalg.lstsq(powers / scale / t[:, None], np.ones_like(t), rcond=None)[0] / scale
    said = powers @ found
    r2 = 1 - np.square(t - said).sum() / np.square(t - t.mean()).sum()
    return Fit([float(value) for value in found], float(r2), float(np.abs(said / t - 1).max()))


@dataclass(frozen=True)
class Roof:
    """The most that a machine computes of a run, by the roofline model (Williams and others, CACM 52(4), 2009).

    intensity: FLOPs for each byte. most: GFLOP/s, of products or of what memory brings. reached: a part of `most`.
    """

    intensity: float
    most: float
    rate: float
    bound: str

    @property
    def reached(self) -> float:
        """How much of the roof."""
        return self.rate / self.most


def middle(point: Point) -> float:
    """Seconds of a point."""
    return statistics.median(point["seconds"])


def flops(point: Point) -> float:
    """All of a point."""
    return float(sum(point["flops"].values()))


def roof(point: Point, peak: float, bandwidth: float) -> Roof:
    """peak in GFLOP/s, bandwidth in GB/s."""
    intensity = flops(point) / point["bytes"]
    most = min(peak, intensity * bandwidth)
    return Roof(intensity, most, flops(point) / middle(point) / 1e9, "products" if most == peak else "memory")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def ms(point: Point) -> str:
    """Milliseconds with their spread."""
    return f"{Spread.of([1000 * x for x in point['seconds']]):.1f}"


def clip_of(point: Point) -> str:
    """A clip in words."""
    return f"{point['width']}x{point['height']}, {point['frames']} frames"


def peaks(found: dict[str, Any]) -> tuple[float, float]:
    """GFLOP/s of products in the dtype that was measured, and GB/s of memory, with two threads; the best rounds."""
    limits = found["limits"]["2"]
    return max(limits["products"][found["dtype"]]["gflops"]), max(max(each) for each in limits["memory"].values())


def report(found: dict[str, Any]) -> Report:
    """Everything that was measured, with what follows from it."""
    passes = found["transformer"]["2"]["passes"]
    auto = found["autoencoder"]["2"]
    fits = {"transformer": fit([p["tokens"] for p in passes], [middle(p) for p in passes], 2)}
    for stage in ("decode", "encode"):
        for what in ("pixels", "frames"):
            points = auto[stage][what]
            fits[f"{stage} by {what}"] = fit([size_of(p, what) for p in points], [middle(p) for p in points], 1)
    made = Report("scaling", "What dvgen costs: against tokens, pixels, frames, batch and threads", "")
    made.measured = {**found, "fits": {name: asdict(each) for name, each in fits.items()}}
    made.notes = [
        f"The model that ships, {found['dtype']}; two threads, unless said otherwise. Milliseconds are the middle of "
        "all rounds, with the least and the most in brackets. FLOPs and bytes are counted operation by operation "
        "(`benchmarks/counted.py`). The roof is the smaller of the rate of large matrix products and of what memory "
        "brings at the run's FLOPs for each byte, if nothing stayed in a cache between operations.",
        "## Limits of this machine",
        *limits(found),
        "## Fits",
        fitted(fits, found),
        rates(fits["transformer"], passes),
        "## A pass of the transformer",
        stages([(f"{p['tokens']} tokens", p) for p in passes], found),
        "## Packs",
        *(packs(name, points) for name, points in found["transformer"]["2"]["packs"].items()),
        *(part for stage in ("decode", "encode") for part in autoencoder(stage, auto[stage], found)),
        "## Threads",
        threads(found),
        "## Where the time goes",
        profiles(found),
    ]
    return made


def size_of(point: Point, what: str) -> float:
    """The x of a curve."""
    return point["width"] * point["height"] if what == "pixels" else point["frames"]


def limits(found: dict[str, Any]) -> list[str]:
    """Tables of what the machine does at best."""
    two, one = found["limits"]["2"], found["limits"]["1"]
    rows = []
    for name, each in two["products"].items():
        what = f"products of {name}, {each['size']} on a side, GFLOP/s"
        rows.append([what, f"{Spread.of(each['gflops']):.1f}", f"{Spread.of(one['products'][name]['gflops']):.1f}"])
    for tokens, rates in two["attention"].items():
        what = f"attention, 4 heads of 64, {tokens} tokens, GFLOP/s"
        rows.append([what, f"{Spread.of(rates):.1f}", f"{Spread.of(one['attention'][tokens]):.1f}"])
    for name, rates in two["memory"].items():
        rows.append([f"memory, {name}, GB/s", f"{Spread.of(rates):.1f}", f"{Spread.of(one['memory'][name]):.1f}"])
    return [table(["", "two threads", "one"], rows)]


def fitted(fits: dict[str, Fit], found: dict[str, Any]) -> str:
    """The coefficients in words, with R²."""
    a, b, c = fits["transformer"].coefficients
    rows = [
        [
            "a pass by tokens n",
            f"{1e3 * a:.2f} ms + {1e6 * b:.2f} us n + {1e9 * c:.3f} ns n²",
            f"{fits['transformer'].r2:.5f}",
            f"{fits['transformer'].worst:.1%}",
        ]
    ]
    for name, each in fits.items():
        if name == "transformer":
            continue
        a, b = each.coefficients
        x, unit = ("1000 pixels of a frame", 1e6) if name.endswith("pixels") else ("frame", 1e3)
        rows.append([name, f"{1e3 * a:.1f} ms + {unit * b:.3f} ms for each {x}", f"{each.r2:.5f}", f"{each.worst:.1%}"])
    return table(["", "time", "R²", "largest relative error"], rows)


def rates(time: Fit, passes: Sequence[Point]) -> str:
    """At what rates the parts of a pass that grow with n and with n² compute, and where the second is the larger."""
    work = fit([p["tokens"] for p in passes], [flops(p) for p in passes], 2)
    each, pairs = (w / t / 1e9 for w, t in zip(work.coefficients[1:], time.coefficients[1:], strict=True))
    even = time.coefficients[1] / time.coefficients[2]
    return (
        f"For each token a pass computes {work.coefficients[1] / 1e6:.1f} MFLOP, at {each:.0f} GFLOP/s by the fit; for "
        f"each pair of tokens {work.coefficients[2] / 1e3:.2f} kFLOP, at {pairs:.0f} GFLOP/s. From {even:.0f} tokens "
        "on attention takes longer than all that grows with n."
    )


def stages(points: Sequence[tuple[str, Point]], found: dict[str, Any]) -> str:
    """Time, work, rate and roof of each point."""
    peak, bandwidth = peaks(found)
    rows = []
    for name, point in points:
        over = roof(point, peak, bandwidth)
        rows.append(
            [
                name,
                ms(point),
                f"{flops(point) / 1e9:.2f}",
                f"{over.intensity:.1f}",
                f"{over.rate:.1f}",
                f"{over.most:.1f} ({over.bound})",
                f"{over.reached:.0%}",
            ]
        )
    return table(["", "ms", "GFLOP", "FLOPs a byte", "GFLOP/s", "roof", "reached"], rows)


def packs(name: str, points: Sequence[Point]) -> str:
    """Time for each clip of a pack."""
    alone = middle(points[0])
    rows = [
        [str(p["clips"]), str(p["tokens"]), ms(p), f"{1000 * middle(p) / p['clips']:.2f}",
         f"{alone * p['clips'] / middle(p):.2f}x"]
        for p in points
    ]  # fmt: skip
    return f"Clips of {name}:\n\n" + table(["clips", "tokens", "ms", "ms a clip", "against alone"], rows)


def autoencoder(stage: str, curves: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Both curves of a stage."""
    parts = [f"## {'Decoding' if stage == 'decode' else 'Encoding'}"]
    return parts + [stages([(clip_of(p), p) for p in curves[what]], found) for what in ("pixels", "frames")]


def threads(found: dict[str, Any]) -> str:
    """One thread against two, where both were measured."""
    one, two = ({} for _ in range(2))
    for threads_, into in (("1", one), ("2", two)):
        for p in found["transformer"][threads_]["passes"]:
            into[f"a pass, {p['tokens']} tokens"] = p
        for stage in ("decode", "encode"):
            for points in (x for what, x in found["autoencoder"][threads_][stage].items() if what != "profile"):
                into |= {f"{stage}, {clip_of(p)}": p for p in points}
    rows = [
        [name, ms(one[name]), ms(p), f"{middle(one[name]) / middle(p):.2f}x"] for name, p in two.items() if name in one
    ]
    return table(["", "one thread, ms", "two, ms", "gain"], rows)


def profiles(found: dict[str, Any]) -> str:
    """Shares of the time, and rates, by group of operations; and what is most of the rest."""
    every = {f"a pass, {name}": each for name, each in found["transformer"]["2"]["profile"].items()}
    for stage in ("decode", "encode"):
        every[stage] = found["autoencoder"]["2"][stage]["profile"]
    groups = ["matrix products", "convolutions", "attention", "all else"]
    rows = []
    for name, each in every.items():
        total, cells = sum(each["seconds"].values()), []
        for group in groups:
            seconds, work = each["seconds"].get(group, 0.0), each["flops"].get(group, 0.0)
            rate = f" at {work / seconds / 1e9:.0f} GFLOP/s" if work and seconds else ""
            cells.append(f"{seconds / total:.0%}{rate}" if seconds else "")
        most = ", ".join(f"{op} {seconds / total:.0%}" for op, seconds in list(each["most"].items())[:4])
        rows.append([name, *cells, most])
    return table(["", *groups, "most of all else"], rows)
