"""Overlaps against known geometry, their nulls against known laws, and verdicts on planted overlap."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import kstest

from deltalens.direction.compare import Comparison, compare, energies, isotropic, overall, overlap, principal_angles
from deltalens.direction.direction import SAMPLES, Direction
from deltalens.direction.estimate import difference, permuted, samples
from deltalens.statistics import permutation_p


def subspace(rng: np.random.Generator, d: int, k: int) -> np.ndarray:
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def test_overlap_and_angles_of_a_known_pair() -> None:
    axes, angle = np.eye(8), np.radians(3e-7)
    a = axes[:, :3]
    turned = np.column_stack(
        [axes[:, 0] * np.cos(angle) + axes[:, 5] * np.sin(angle), (axes[:, 1] + axes[:, 6]) / 2**0.5]
    )
    assert overlap(a, turned) == pytest.approx((1 + 0.5) / 2)
    assert overlap(turned, a) == overlap(a, turned)
    np.testing.assert_allclose(principal_angles(a, turned), [3e-7, 45], rtol=1e-6)
    np.testing.assert_allclose(principal_angles(turned, a), [3e-7, 45], rtol=1e-6)
    np.testing.assert_allclose(energies(np.array([[3.0, 0, 0, 0, 4, 0, 0, 0], [0.0] * 8]), a), [9 / 25, 0])


@pytest.mark.parametrize(("d", "k", "m"), [(32, 4, 1), (32, 1, 4), (64, 5, 3), (40, 2, 8)])
def test_null_of_random_subspaces(d: int, k: int, m: int) -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([overlap(subspace(rng, d, k), subspace(rng, d, m)) for _ in range(2000)])
    assert drawn.mean() == pytest.approx(max(k, m) / d, rel=0.03)
    assert kstest(drawn, isotropic(d, k, m, 2000, 1)).pvalue > 0.01


@pytest.mark.parametrize("paired", [True, False])
def test_permutation_p_is_uniform_under_the_null(paired: bool) -> None:
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        scale = np.geomspace(4, 0.25, 24)
        first, second = ((rng.standard_normal((40, 24)) * scale).astype(np.float32) for _ in range(2))
        read = samples(first, second, paired)
        basis = subspace(rng, 24, 3)
        observed = energies(difference(read)[None], basis)[0]
        found.append(permutation_p(observed, energies(permuted(read, 199, seed), basis)))
    assert kstest(found, "uniform").pvalue > 0.01


def weights(layer: int, basis: np.ndarray, **source: object) -> Direction:
    source = {"side": "left", "input": False} | source
    return Direction(
        f"layers.{layer}.writers",
        basis.T.astype(np.float32),
        layer,
        "writers",
        "residual",
        "resid_post",
        sigma=tuple([1.0] * basis.shape[1]),
        source=source,
    )


def activations(layer: int, shift: np.ndarray, n: int = 60, seed: int = 0) -> list[Direction]:
    """A difference of means of two groups that lie `shift` apart, and its rows."""
    rng = np.random.default_rng(100 * seed + layer)
    first, second = (rng.standard_normal((n, len(shift))) for _ in range(2))
    read = samples((first + shift).astype(np.float32), second.astype(np.float32), False)
    mean = difference(read)[None].astype(np.float32)
    made = Direction(
        f"layers.{layer}.difference",
        mean,
        layer,
        "difference",
        "residual",
        "resid_post",
        contrast="A − B",
        seeds=(seed,),
    )
    name = f"layers.{layer}.samples"
    return [
        replace(made, source={"samples": name}),
        replace(made, id=name, vectors=read.rows, kind=SAMPLES, source={"first": n}),
    ]


D = 64


def compared(inside: float, **how: object) -> list[Comparison]:
    """Writers of three layers against a difference of means of which a share `inside` lies in the middle layer's."""
    rng = np.random.default_rng(5)
    a = [weights(layer, subspace(rng, D, 2)) for layer in range(3)]
    b = []
    for layer in range(3):
        basis = a[layer].basis
        outside = rng.standard_normal(D)
        for d in a:  # orthogonal to the writers of every layer
            outside -= d.basis @ (d.basis.T @ outside)
        share = inside if layer == 1 else 0.0
        shift = share**0.5 * basis[:, 0] + (1 - share) ** 0.5 * outside / np.linalg.norm(outside)
        b += activations(layer, 6 * shift)
    return compare(a, b, **how)


def test_orthogonal_is_distinct() -> None:
    rows = compared(0.0)
    assert [row.verdict for row in rows] == ["supported"] * 3
    assert overall(rows) == "supported"
    assert all(row.high < 0.05 and row.reason is None for row in rows)
    assert set(rows[0].nulls) == {"isotropic", "permuted", "other layer"}


def test_planted_overlap_contradicts_distinctness_in_its_layer() -> None:
    rows = compared(0.5)
    assert [row.verdict for row in rows] == ["supported", "contradicted", "supported"]
    assert overall(rows) == "contradicted"
    planted = rows[1]
    assert planted.overlap == pytest.approx(0.5, abs=0.1)
    assert planted.low < planted.overlap - planted.nulls[planted.largest] < planted.high
    assert planted.p == pytest.approx(1 / 1001)
    assert planted.p_holm == pytest.approx(3 / 1001)
    assert planted.angles[0] == pytest.approx(45, abs=8)


def test_the_largest_null_decides() -> None:
    """A sibling that overlaps as much as the delta in question takes its claim away."""
    rng = np.random.default_rng(0)
    basis = subspace(rng, D, 2)
    bank = activations(1, 6 * basis[:, 0])
    assert compare([weights(1, basis)], bank)[0].verdict == "contradicted"
    row = compare([weights(1, basis)], bank, sibling=[weights(1, basis)])[0]
    assert (row.largest, row.verdict) == ("sibling", "supported")
    assert row.nulls["sibling"] == pytest.approx(row.overlap)
    assert "no more than the sibling" in str(row.reason)  # said, for the overlap is there


def test_shared_inputs_are_undecided_without_a_matched_null() -> None:
    rng = np.random.default_rng(0)
    a, b = (replace(weights(1, subspace(rng, D, 2), side="right", input=True), kind="q_proj") for _ in range(2))
    row = compare([a], [b])[0]
    assert row.verdict == "undecided"
    assert "sibling" in str(row.reason)
    assert compare([a], [b], sibling=[a])[0].verdict == "supported"
    assert compare([a], activations(1, rng.standard_normal(D)))[0].verdict != "undecided"  # permuted: matched


def test_few_prompts_are_undecided() -> None:
    rng = np.random.default_rng(0)
    basis = subspace(rng, D, 2)
    row = compare([weights(1, basis)], activations(1, 6 * basis[:, 0], n=20))[0]
    assert (row.verdict, row.low) == ("undecided", None)
    assert "50 prompts" in str(row.reason)
    assert row.p == pytest.approx(1 / 1001)


def test_a_noisy_difference_is_not_called_distinct() -> None:
    rng = np.random.default_rng(0)
    basis, outside = np.hsplit(subspace(rng, D, 3), [2])
    row = compare([weights(1, basis)], activations(1, 0.5 * outside[:, 0]))[0]
    assert 0.5 < row.noise < 1.2
    assert row.verdict == "undecided"
    assert "more prompts" in str(row.reason)
    clear = compare([weights(1, basis)], activations(1, 6 * outside[:, 0]))[0]
    assert clear.noise == pytest.approx(D / 30 / 36, rel=0.2)
    assert clear.verdict == "supported"


def test_noise_dilutes_an_overlap_and_the_upper_bound_knows() -> None:
    # Two shifts of true φ = .6, each a fifth noise: the plain overlap reads about .4, and so does its bootstrap.
    axes = np.linalg.qr(np.random.default_rng(3).standard_normal((64, 2)))[0].T
    length = (4 * 2 * 64 / 60) ** 0.5  # four times the noise's expected energy, 2d/n
    one, two = length * axes[0], length * (0.6**0.5 * axes[0] + 0.4**0.5 * axes[1])
    rows = [compare(activations(0, one, seed=s), activations(0, two, seed=1000 + s))[0] for s in range(10)]
    assert np.mean([row.overlap for row in rows]) < 0.45
    assert all(0.1 < row.noise < 0.3 for row in rows)
    assert sum(row.high is not None and row.high + row.nulls[row.largest] >= 0.6 for row in rows) >= 9


def test_two_differences_of_means() -> None:
    shift = np.eye(D)[0] * 6
    same = compare(activations(1, shift), activations(1, shift, seed=3))[0]
    assert same.verdict == "contradicted"
    excess = same.overlap - same.nulls[same.largest]
    assert 0.7 < same.low < excess <= same.high + 1e-6
    other = compare(activations(1, shift), activations(1, np.eye(D)[1] * 6, seed=3))[0]
    assert other.verdict == "supported"


def test_only_one_layer_space_and_width_is_compared() -> None:
    rng = np.random.default_rng(0)
    a = weights(1, subspace(rng, D, 2))
    assert compare([a], [replace(a, layer=2)]) == []
    assert compare([a], [replace(a, space="neurons")]) == []
    assert compare([a], [weights(1, subspace(rng, D // 2, 2))]) == []
    assert compare([a], [a])[0].overlap == pytest.approx(1)


def test_the_verdict_is_reproducible() -> None:
    assert compared(0.5) == compared(0.5)


@pytest.mark.slow
def test_false_alarms_and_coverage() -> None:
    """Unrelated directions are called overlapping in at most 5 % of banks of eight layers."""
    alarms = 0
    for seed in range(100):
        rng = np.random.default_rng(seed)
        a = [weights(layer, subspace(rng, D, 4)) for layer in range(8)]
        b = [d for layer in range(8) for d in activations(layer, rng.standard_normal(D), n=30, seed=seed)]
        alarms += overall(compare(a, b, draws=400)) == "contradicted"
    assert alarms <= 11  # 5 % of 100, plus three standard errors
