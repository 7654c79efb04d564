"""Controls matched in length, operating and breaking points of hand-made curves, and what a claim rests on."""

import json
from typing import Any

import numpy as np
import pytest

from deltalens.direction.direction import Direction
from deltalens.direction.estimate import Samples
from deltalens.sweep.arms import (
    SEEDS,
    Arm,
    breaking_point,
    broken,
    direction_controls,
    effect_minus_largest_control,
    operating_point,
)


def direction(layer: int, vectors: np.ndarray) -> Direction:
    return Direction(f"layers.{layer}.difference", vectors.astype(np.float32), layer, "difference", "residual")


@pytest.mark.parametrize(
    ("strengths", "effects", "expected"),
    [
        ((0.5, 1.0, 2.0, 4.0), (0.01, 0.89, 0.91, 1.0), 2.0),  # .89 is just short of 90 %
        ((4.0, 0.5, 2.0), (0.95, 0.1, 1.0), 2.0),  # strengths in any order
        ((1.0, 2.0, 3.0), (0.9, 1.0, -0.2), 1.0),  # past its peak a curve may come down, and beyond
        ((-1.0, -2.0), (-0.5, -0.52), -1.0),  # a fall is an effect
        ((1.0, 2.0), (0.3, -0.9), 2.0),  # what goes the other way does not reach
        ((1.0, 2.0), (0.0, 0.0), 1.0),
    ],
)
def test_operating_point(strengths: tuple[float, ...], effects: tuple[float, ...], expected: float) -> None:
    assert operating_point(strengths, effects) == expected


def test_controls_have_its_length_and_no_more_of_it_than_chance() -> None:
    rng = np.random.default_rng(0)
    d, n = 64, 80
    scale = np.where(np.arange(d) < 8, 10.0, 0.1)  # activations live in 8 of 64 dimensions
    rows = (rng.standard_normal((n, d)) * scale + 3 * scale).astype(np.float32)
    v = direction(2, 7 * rng.standard_normal((1, d)))
    others = [direction(layer, rng.standard_normal((1, d))) for layer in (0, 1, 3)]
    found = direction_controls(v, Samples(rows, n // 2), others)
    assert [c.kind for c in found] == ["permuted"] * SEEDS + ["isotropic"] * SEEDS + ["wrong layer"] * 3
    assert [c.name for c in found[-3:]] == ["v of layer 0", "v of layer 1", "v of layer 3"]
    assert [c.seed for c in found[:SEEDS]] == list(range(SEEDS))
    length = np.linalg.norm(v.vectors)
    for control in found:
        assert np.linalg.norm(control.vectors) == pytest.approx(length, rel=1e-5)
    inside = [float((c.vectors[0, :8] ** 2).sum() / length**2) for c in found]
    assert min(inside[:SEEDS]) > 0.99  # the covariance of the activations
    assert max(inside[SEEDS : 2 * SEEDS]) < 0.4  # of nothing: 8/64
    unit = np.stack([c.vectors[0] / length for c in found[: 2 * SEEDS]])
    assert np.abs(unit @ unit.T - np.eye(2 * SEEDS)).max() < 0.98  # no control twice
    again = direction_controls(v, Samples(rows, n // 2), others)
    assert all(np.array_equal(a.vectors, b.vectors) for a, b in zip(found, again, strict=True))


def test_a_subspace_is_controlled_row_by_row_and_many_layers_are_thinned() -> None:
    rng = np.random.default_rng(1)
    v = direction(2, np.diag([1.0, 5.0, 9.0, 1.0])[:3])
    others = [direction(layer, rng.standard_normal((3, 4))) for layer in range(30)]
    found = direction_controls(v, Samples(rng.standard_normal((9, 4)).astype(np.float32), 4), others, seeds=[7])
    assert [c.name for c in found[:2]] == ["permuted 7", "isotropic 7"]
    assert [c.layer for c in found[2:]] == [0, 7, 14, 22, 29]
    for control in found:
        assert np.allclose(np.linalg.norm(control.vectors, axis=1), [1, 5, 9], rtol=1e-5)


def test_the_claim_is_about_the_largest_control_by_size_and_paired() -> None:
    rng = np.random.default_rng(2)
    n = 80
    base = rng.uniform(0, 0.5, n)
    edit = base + 0.4
    controls = {"up": base + 0.1, "down": base - 0.3 * np.ones(n), "none": base}
    found = effect_minus_largest_control(base.tolist(), edit.tolist(), {k: v.tolist() for k, v in controls.items()})
    assert found["reference"] == "down" and found["n"] == n
    assert found["value"] == pytest.approx(0.1) and found["low"] == pytest.approx(0.1)  # items vary, pairs do not
    fall = effect_minus_largest_control(edit.tolist(), base.tolist(), {"up": (edit + 0.1).tolist()})
    assert fall["value"] == pytest.approx(0.3)
    few = effect_minus_largest_control([0.0] * 9, [1.0] * 9, {"c": [0.5] * 9})
    assert few["value"] == pytest.approx(0.5) and few["low"] is None


def test_an_interval_of_the_claim_covers_its_truth() -> None:
    """A control as strong as the edit: 0 lies in about 95 % of intervals."""
    inside = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        base, edit, control = (rng.normal(mean, 0.3, 60).tolist() for mean in (0.0, 0.5, 0.5))
        found = effect_minus_largest_control(base, edit, {"c": control})
        inside += found["low"] <= 0 <= found["high"]
    assert 88 <= inside <= 100


def rows(n: int, forced: int, loops: int = 0, malformed: int = 0) -> list[dict[str, Any]]:
    """n items: the first `forced` answered right when forced, the first `loops` looping, the last ones malformed."""
    found = []
    for i in range(n):
        common = {"item": str(i), "text": "x", "truncated": False, "loop": False, "format_ok": True, "correct": True}
        free = {"mode": "free", "loop": i < loops, "format_ok": i < n - malformed}
        found += [common | free, common | {"mode": "forced", "correct": i < forced}]
    return found


BASE = rows(100, 100)


@pytest.mark.parametrize(
    ("arm", "perplexities", "words"),
    [
        (rows(100, 100), None, ()),
        (rows(100, 91), None, ()),  # −.09
        (rows(100, 90), None, ("forced accuracy -0.10",)),
        (rows(100, 100, loops=10), None, ("loops +0.10",)),
        (rows(100, 100, malformed=50), None, ("format failures +0.50",)),
        (rows(100, 100), (3.0, 5.9), ()),
        (rows(100, 100), (3.0, 6.0), ("perplexity ×2",)),
        (
            rows(100, 20, malformed=30),
            (3.0, 30.0),
            ("forced accuracy -0.80", "format failures +0.30", "perplexity ×10"),
        ),
        (rows(8, 7), None, ()),  # −.125 of eight items is one item: the interval holds 0
    ],
)
def test_broken(arm: list[dict[str, Any]], perplexities: tuple[float, float] | None, words: tuple[str, ...]) -> None:
    n = len(arm) // 2
    assert broken(BASE[: 2 * n], arm, perplexities) == words


def test_what_was_never_generated_cannot_break() -> None:
    silent = [row | {"text": None, "format_ok": None, "correct": None, "loop": None} for row in BASE]
    assert broken(BASE, silent, None) == ()


def test_breaking_point() -> None:
    assert breaking_point((1.0, 2.0, 4.0), [(), ("loops +0.30",), ()]) == 2.0  # also where it mends again
    assert breaking_point((-4.0, -1.0, -2.0), [("x",), (), ("y",)]) == -2.0
    assert breaking_point((1.0, 2.0), [(), ()]) is None


def test_an_arm_is_data() -> None:
    edit = {"operator": "add", "strength": 1.5}
    arm = Arm("layer 2, +1.5 v", "edit", edit, functional_norm=3.0)
    assert json.loads(arm.row["edit"]) == edit and arm.labels["strength"] == 1.5
    assert (
        arm.row["edit_hash"] == arm.labels["edit_hash"] != Arm("a", "edit", edit | {"strength": 2.0}).row["edit_hash"]
    )
    assert Arm("baseline", "baseline").row["edit"] is Arm("baseline", "baseline").labels["edit_hash"] is None
