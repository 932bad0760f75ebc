"""Key tables: exactly one row per name, both ways, and layouts told apart by their fingerprints."""

import pytest

from dit_video.checkpoints.keymap import Layout, Row, detect, identity, piece_name, whole_name
from dit_video.errors import CheckpointError

LAYOUT = Layout(
    name="theirs",
    fingerprint="proj_out.weight",
    rows=(
        Row("blocks.{i}.attn.q.{p}", "layers.{i}.to_q.{p}"),
        Row("blocks.{i}.parts.{j}.gain", "layers.{i}.part_{j}_gain"),
        Row("head.{p}", "proj_out.{p}"),
        Row("a.b", "a_b"),
    ),
)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("blocks.0.attn.q.weight", "layers.0.to_q.weight"),
        ("blocks.12.attn.q.bias", "layers.12.to_q.bias"),
        ("blocks.3.parts.10.gain", "layers.3.part_10_gain"),
        ("head.weight", "proj_out.weight"),
        ("a.b", "a_b"),
    ],
)
def test_names_translate_both_ways(ours: str, theirs: str) -> None:
    assert LAYOUT.to_ours(theirs) == ours
    assert LAYOUT.to_theirs(ours) == theirs


@pytest.mark.parametrize(
    "name",
    [
        "layers.x.to_q.weight",  # {i} is a whole number
        "layers.0.to_q.scale",  # {p} is weight or bias
        "layers.0.to_q.weight.more",  # the whole name must match
        "model.layers.0.to_q.weight",
        "aXb",  # a dot is a dot
        "layers.0.to_q.weight\n",
    ],
)
def test_unknown_name_is_refused_by_name(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"0 rows of the theirs layout match it; there must be exactly one"):
        LAYOUT.to_ours(name)


def test_dots_in_a_table_are_literal() -> None:
    with pytest.raises(CheckpointError, match="'aXb': 0 rows"):
        LAYOUT.to_theirs("aXb")


def test_two_rows_for_one_name_are_refused() -> None:
    doubled = Layout(name="doubled", fingerprint="x", rows=(Row("a.{i}.w", "b.{i}.w"), Row("a.0.w", "b.0.w")))
    with pytest.raises(CheckpointError, match="2 rows of the doubled layout"):
        doubled.to_ours("b.0.w")
    assert doubled.to_ours("b.1.w") == "a.1.w"


def test_identity_rows() -> None:
    layout = Layout(name="same", fingerprint="x", rows=identity(["x", "blocks.{i}.{p}"]))
    assert layout.to_ours("blocks.7.bias") == layout.to_theirs("blocks.7.bias") == "blocks.7.bias"


def test_detect_takes_the_one_whose_fingerprint_is_there() -> None:
    other = Layout(name="other", fingerprint="head.weight", rows=())
    assert detect(["proj_out.weight", "layers.0.to_q.weight"], [LAYOUT, other]) is LAYOUT
    assert detect(iter(["head.weight"]), iter([LAYOUT, other])) is other


@pytest.mark.parametrize(("names", "count"), [(["nothing"], 0), (["proj_out.weight", "head.weight"], 2)])
def test_detect_refuses_none_and_several(names: list[str], count: int) -> None:
    other = Layout(name="other", fingerprint="head.weight", rows=())
    with pytest.raises(CheckpointError, match=f"match {count} known layouts.*theirs, other"):
        detect(names, [LAYOUT, other])


FUSED = Layout(
    name="fused",
    fingerprint="a_b.weight",
    rows=(Row("a.{p}", "a_b.{p}", piece=(0, 2)), Row("b.{p}", "a_b.{p}", piece=(1, 2)), Row("c", "c", lead=1)),
    ignored=("towers.*", "count"),
)


def test_a_piece_has_a_name_and_a_row_of_its_own() -> None:
    for ours, theirs in (("a.bias", "a_b.bias[0/2]"), ("b.bias", "a_b.bias[1/2]"), ("c", "c")):
        assert FUSED.to_theirs(ours) == theirs and FUSED.to_ours(theirs) == ours
    assert [row.ours for row in FUSED.formed("a_b.weight")] == ["a.{p}", "b.{p}"] and not FUSED.formed("d")
    with pytest.raises(CheckpointError, match="0 rows of the fused layout match it"):
        FUSED.to_ours("a_b.weight")
    assert whole_name(piece_name("x.weight", (1, 3))) == ("x.weight", 1) and whole_name("x[a]") == ("x[a]", None)


def test_names_that_are_passed_over() -> None:
    assert FUSED.ignores("towers.0.weight") and FUSED.ignores("count")
    assert not FUSED.ignores("my.count") and not LAYOUT.ignores("count")
