"""The arithmetic of the scaling benchmark: what is counted, fitted and said; not how long anything takes."""

import json
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import counted

    return counted


@pytest.fixture
def scaling_report(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import scaling_report

    return scaling_report


@torch.no_grad()
def test_flops_and_bytes_of_operations(counted):
    a, b = torch.randn(3, 5), torch.randn(5, 7)
    work = counted.counted(lambda: (a @ b).add_(1).view(21))
    assert work.flops[counted.PRODUCTS] == 2 * 3 * 5 * 7
    assert work.bytes == 4 * (15 + 35 + 21) + 4 * (21 + 21), "operands and result; what is added to is read and written"
    q = torch.randn(1, 2, 6, 8)
    work = counted.counted(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert work.flops[counted.ATTENTION] == 4 * 2 * 6 * 6 * 8
    x, weight = torch.randn(1, 4, 3, 6, 6), torch.randn(5, 4, 3, 3, 3)
    work = counted.counted(lambda: torch.mkldnn_convolution(x, weight, None, (0, 1, 1), (1, 1, 1), (1, 1, 1), 1))
    assert work.flops[counted.CONVOLUTIONS] == 2 * 5 * 4 * 27 * (1 * 6 * 6)


@torch.no_grad()
def test_a_pass_is_counted_as_the_formula_says(counted):
    """Beyond the formula of estimates there are cross-attention, the embeddings of the level, patches and the head."""
    from dit_video.models.wan.configs import DiTConfig
    from dit_video.models.wan.dit import WanDiT
    from dit_video.work import forward_flops

    config = DiTConfig(dim=64, ffn_dim=96, num_heads=2, num_layers=3, in_dim=4, out_dim=4, text_dim=24)
    dit = WanDiT(config).requires_grad_(False)
    keys = dit.encode_text([torch.randn(5, 24)])
    latents = [torch.randn(4, 4, 16, 16)]
    work = counted.counted(lambda: dit(latents, [torch.full((4,), 500.0)], keys, [0]))
    with torch.inference_mode():
        assert counted.counted(lambda: dit(latents, [torch.full((4,), 500.0)], keys, [0])).flops == work.flops
    tokens = 4 * 8 * 8
    assert forward_flops(config, tokens) <= work.all_flops <= 1.1 * forward_flops(config, tokens)


def test_fits_find_their_coefficients(scaling_report):
    x = [40, 160, 280, 560, 1092, 2184, 3120, 4080]
    found = scaling_report.fit(x, [5e-3 + 2e-4 * n + 3e-8 * n**2 for n in x], 2)
    assert found.coefficients == pytest.approx([5e-3, 2e-4, 3e-8], rel=1e-6)
    assert found.r2 == pytest.approx(1) and found.worst < 1e-6
    bent = scaling_report.fit(x, [5e-3 + 3e-8 * n**2 for n in x], 1)
    assert bent.r2 < 0.99 and bent.worst > 0.1


def test_the_roof_is_the_lower_of_two(scaling_report):
    point = {"seconds": [0.2, 0.1, 0.3], "flops": {"matrix products": 4e9}, "bytes": 1e9}
    over = scaling_report.roof(point, peak=100.0, bandwidth=10.0)
    assert (over.intensity, over.most, over.bound) == (4.0, 40.0, "memory")
    assert over.rate == pytest.approx(20.0) and over.reached == pytest.approx(0.5)
    assert scaling_report.roof(point, peak=30.0, bandwidth=10.0).bound == "products"


def made_up():
    """What the benchmark measures, with numbers of no machine."""

    def point(size, **about):
        return {
            **about,
            "seconds": [size * 1e-3, size * 1.1e-3],
            "flops": {"matrix products": size * 1e7},
            "bytes": 1e6,
        }

    def clips(sizes):
        return [point(10 + size, frames=1 + 4 * size, width=160 + size, height=90) for size in sizes]

    profile = {
        "seconds": {"matrix products": 0.3, "all else": 0.1},
        "most": {"mul": 0.1},
        "flops": {"matrix products": 1e9},
    }
    curves = {"pixels": clips([1, 2, 5]), "frames": clips([1, 3, 4]), "profile": profile}
    passes = [point(n, tokens=n) for n in (10, 20, 40, 80)]
    packs = {name: [point(n, clips=n, tokens=9 * n) for n in (1, 2, 4)] for name in ("large", "small")}
    rates = {
        "products": {"float32": {"size": 64, "gflops": [80.0, 90.0]}, "int8": {"size": 64, "gflops": [70.0]}},
        "attention": {"256": [50.0]},
        "memory": {"copy": [9.0, 10.0], "triad": [8.0]},
    }
    return {
        "dtype": "float32",
        "limits": {"1": rates, "2": rates},
        "transformer": {
            "1": {"passes": passes[:2]},
            "2": {"passes": passes, "packs": packs, "profile": {"80": profile}},
        },
        "autoencoder": {
            "1": {stage: {"threads": curves["pixels"][:2]} for stage in ("decode", "encode")},
            "2": {"decode": curves, "encode": curves},
        },
    }


def test_what_was_measured_is_said_and_drawn(scaling_report, monkeypatch, tmp_path):
    made = scaling_report.report(made_up())
    text = "\n".join(made.notes)
    assert "| products of float32, 64 on a side, GFLOP/s | 85.0 (80.0 to 90.0) |" in text
    assert "| 4 | 36 | 4.2 (4.0 to 4.4) | 1.05 | 1.00x |" in text, "packs"
    assert "| a pass, 20 tokens | 21.0 (20.0 to 22.0) | 21.0 (20.0 to 22.0) | 1.00x |" in text, "threads"
    assert "| decode | 75% at 3 GFLOP/s |" in text, "profile"
    monkeypatch.setattr("harness.RESULTS", tmp_path)
    made.write(["--write"])
    assert json.loads((tmp_path / "scaling.json").read_text())["claims"] == []
    assert "set out for" not in (tmp_path / "scaling.md").read_text()
    pytest.importorskip("matplotlib")
    import scaling_plots

    files = scaling_plots.draw(tmp_path / "scaling.json", tmp_path)
    assert len(files) == 4 and all(file.stat().st_size > 5000 for file in files)
