"""Intervals, corrections and p-values: published values, defining equations, coverage, and refusals."""

import math
import random
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, chisquare
from scipy.stats import bootstrap as scipy_bootstrap

from deltalens.statistics import (
    auc,
    bootstrap,
    cohens_d,
    drawn_p,
    holm,
    max_t,
    mcnemar,
    newcombe_paired,
    permutation_p,
    ratio,
    wilson,
)

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from truth import coverage


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:857, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_published_values(successes: int, n: int, low: float, high: float) -> None:
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 7, 200, 1000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_bounds_solve_the_score_equation(n: int, level: float) -> None:
    from scipy.special import ndtri

    z = float(ndtri(0.5 + level / 2))
    for successes in {0, 1, n // 3, n - 1, n}:
        low, high = wilson(successes, n, level)
        assert 0 <= low <= successes / n <= high <= 1
        for bound in (low, high):
            if 0 < bound < 1:
                score = abs(successes / n - bound) / math.sqrt(bound * (1 - bound) / n)
                assert score == pytest.approx(z, rel=1e-9)


def test_symmetry_and_exact_ends() -> None:
    low, high = wilson(3, 40)
    assert wilson(37, 40) == pytest.approx((1 - high, 1 - low), abs=1e-15)
    assert wilson(0, 40)[0] == 0.0 and wilson(40, 40)[1] == 1.0


@pytest.mark.parametrize("rate", [0.02, 0.1, 0.5, 0.95])
def test_coverage_is_near_the_level(rate: float) -> None:
    n = 200
    exact = [math.comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(n + 1)]
    covered = sum(p for k, p in enumerate(exact) if wilson(k, n)[0] <= rate <= wilson(k, n)[1])
    assert 0.92 <= covered <= 0.985


def test_wider_at_a_higher_level_and_narrower_with_more_trials() -> None:
    rng = random.Random(0)
    for _ in range(50):
        n = rng.randint(1, 500)
        k = rng.randint(0, n)
        low, high = wilson(k, n, 0.9)
        wide_low, wide_high = wilson(k, n, 0.99)
        assert wide_low <= low and high <= wide_high
        more_low, more_high = wilson(4 * k, 4 * n, 0.9)
        assert more_high - more_low < high - low


@pytest.mark.parametrize(
    ("successes", "n", "level"), [(1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 0.0), (1, 5, 1.0)]
)
def test_bad_input_is_refused(successes: int, n: int, level: float) -> None:
    with pytest.raises(ValueError):
        wilson(successes, n, level)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    with pytest.raises(ValueError, match="outside"):
        holm([1.2])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_closed_bonferroni_test(p: list[float]) -> None:
    tests = range(len(p))
    groups = [g for size in range(1, len(p) + 1) for g in combinations(tests, size)]
    for i, adjusted in enumerate(holm(p)):
        closed = max(min(1.0, len(g) * min(p[j] for j in g)) for g in groups if i in g)
        assert adjusted == pytest.approx(closed)


def test_p_of_one_more_draw_is_uniform() -> None:
    rng = np.random.default_rng(0)
    sample = rng.normal(3, 2, (20_000, 8))
    drawn = sample[:, 1:]
    p = np.array([drawn_p(z, 7) for z in (sample[:, 0] - drawn.mean(axis=1)) / drawn.std(axis=1, ddof=1)])
    for level in (0.01, 0.05, 0.5):
        assert np.mean(p <= level) == pytest.approx(level, abs=4 * (level / 20_000) ** 0.5)
    with pytest.raises(ValueError, match="spread"):
        drawn_p(1.0, 1)


@pytest.mark.parametrize(
    ("cells", "low", "high"),
    [
        # Newcombe 1998, Statistics in Medicine 17:2635, table III, method 10: both, first only, second only, neither,
        # for first − second. The last decimal is cut off there, not rounded.
        ((36, 12, 2, 0), 0.0569, 0.3404),
        ((20, 12, 2, 16), 0.0562, 0.3292),
        ((18, 12, 2, 18), 0.0562, 0.3290),
        ((36, 14, 0, 0), 0.1528, 0.4167),
        ((35, 14, 0, 1), 0.1461, 0.4175),
        ((18, 14, 0, 18), 0.1441, 0.3963),
        ((2, 97, 1, 0), 0.8721, 0.9854),
        ((1, 97, 1, 1), 0.8736, 0.9850),
        ((0, 29, 1, 0), 0.6666, 0.9882),
        ((2, 98, 0, 0), 0.9178, 0.9945),
        ((1, 98, 0, 1), 0.9171, 0.9916),
        ((0, 30, 0, 0), 0.8395, 1.0),
        ((54, 0, 0, 0), -0.0664, 0.0664),
        ((30, 0, 0, 24), -0.0358, 0.0358),
    ],
)
def test_published_paired_differences(cells: tuple[int, int, int, int], low: float, high: float) -> None:
    both, first, second, neither = cells
    assert newcombe_paired(both, second, first, neither)[1:] == pytest.approx((low, high), abs=1e-4)


COUNT = st.integers(0, 300)


@given(COUNT, COUNT, COUNT, st.integers(1, 300))
def test_paired_difference_is_symmetric_and_holds_its_estimate(e: int, f: int, g: int, h: int) -> None:
    difference, low, high = newcombe_paired(e, f, g, h)
    assert difference == (g - f) / (e + f + g + h)
    assert -1 <= low <= difference <= high <= 1
    assert newcombe_paired(e, g, f, h) == pytest.approx((-difference, -high, -low), abs=1e-12)
    assert newcombe_paired(h, f, g, e) == pytest.approx((difference, low, high), abs=1e-12)  # failures counted
    _, wide_low, wide_high = newcombe_paired(e, f, g, h, 1 - 0.05 / 8)
    assert wide_low <= low and high <= wide_high


def test_paired_difference_is_exact_at_the_ends() -> None:
    assert newcombe_paired(0, 0, 40, 0)[2] == 1.0
    assert newcombe_paired(0, 40, 0, 0)[1] == -1.0


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_exact_binomial_test(first: int, second: int) -> None:
    expected = binomtest(first, first + second, 0.5).pvalue if first + second else 1.0
    assert mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


SKEWED = np.random.default_rng(1).exponential(1, 400)


def test_bootstrap_agrees_with_scipy_where_prompts_are_many() -> None:
    expected = scipy_bootstrap((SKEWED,), np.mean, n_resamples=9999, method="BCa", rng=np.random.default_rng(2))
    low, high = expected.confidence_interval
    value, ours_low, ours_high = bootstrap(SKEWED, range(400))
    assert value == pytest.approx(SKEWED.mean(), rel=1e-12)
    assert (ours_low, ours_high) == pytest.approx((low, high), abs=0.03 * (high - low))
    assert value - ours_low < ours_high - value  # the long tail is on the right


def test_bootstrap_resamples_prompts_and_not_items() -> None:
    prompts = [f"prompt {i}" for i in range(400)]
    alone = bootstrap(SKEWED, prompts)
    thrice = bootstrap(np.tile(SKEWED, 3), prompts * 3)
    assert thrice == pytest.approx(alone, rel=1e-12)
    _, low, high = bootstrap(np.tile(SKEWED, 3), range(1200))
    assert high - low == pytest.approx((alone[2] - alone[1]) / 3**0.5, rel=0.05)
    shuffled = np.random.default_rng(3).permutation(400)
    assert bootstrap(SKEWED[shuffled], [prompts[i] for i in shuffled]) == pytest.approx(alone, rel=1e-12)


def test_bootstrap_weighs_items_and_not_prompts() -> None:
    sizes = np.arange(400) % 5 + 1
    value, low, high = bootstrap(np.repeat(SKEWED, sizes), np.repeat(np.arange(400), sizes))
    assert low < value < high
    assert value == pytest.approx((SKEWED * sizes).sum() / sizes.sum())


def test_bootstrap_of_a_function_of_means() -> None:
    other = np.random.default_rng(4).normal(0, 1, 400)
    columns = np.stack([SKEWED, other], 1)
    difference = bootstrap(columns, range(400), lambda means: means[:, 0] - means[:, 1])
    assert difference == pytest.approx(bootstrap(SKEWED - other, range(400)), rel=1e-9)
    value, low, high = bootstrap(columns, range(400), lambda means: np.exp(means[:, 0]))
    _, log_low, log_high = bootstrap(SKEWED, range(400))
    assert (math.log(value), math.log(low), math.log(high)) == pytest.approx(
        (SKEWED.mean(), log_low, log_high), abs=3e-3
    )


def test_bootstrap_stays_on_the_scale_and_widens_with_the_level() -> None:
    rng = np.random.default_rng(5)
    for seed in range(20):
        values = rng.beta(0.1, 0.9, 50)
        before = (math.inf, -math.inf)
        for level in (0.01, 0.5, 0.95, 1 - 0.05 / 8, 1 - 1e-9):
            value, low, high = bootstrap(values, range(50), level=level, draws=1000, seed=seed)
            assert 0 <= low <= value <= high <= 1
            assert low <= before[0] and before[1] <= high
            before = low, high
    assert bootstrap([0.25] * 60, range(60)) == (0.25, 0.25, 0.25)
    assert bootstrap(values, range(50), seed=1) == bootstrap(values, range(50), seed=1)


def test_permutation_p_counts_the_observation() -> None:
    null = list(range(19))
    assert permutation_p(19.0, null) == 1 / 20
    assert permutation_p(18.0, null) == 2 / 20  # a tie speaks for the null
    assert permutation_p(-1.0, null) == 1.0


def test_permutation_p_is_uniform_under_the_null() -> None:
    samples = np.random.default_rng(6).standard_t(2, (10_000, 20))
    p = np.array([permutation_p(float(row[0]), row[1:]) for row in samples])
    assert chisquare(np.bincount(np.rint(20 * p).astype(int), minlength=21)[1:]).pvalue > 0.01


def test_max_t_keeps_the_family_and_gains_from_correlation() -> None:
    rng = np.random.default_rng(7)
    hits = 0
    for _ in range(1000):
        joint = rng.standard_normal((100, 1)) + 0.5 * rng.standard_normal((100, 10))
        hits += min(max_t(joint[0], joint[1:])) <= 0.05
    assert wilson(hits, 1000)[0] <= 0.05 <= wilson(hits, 1000)[1]
    one = rng.standard_normal((99, 1))
    copies = max_t([2.0] * 4, np.repeat(one, 4, 1))
    assert copies == [permutation_p(2.0, one[:, 0])] * 4
    assert copies[0] < holm(copies)[0]
    null = rng.standard_normal((99, 3))
    by_hand = [(1 + sum(row.max() >= t for row in null)) / 100 for t in (0.5, 3.0, 1.5)]
    assert max_t([0.5, 3.0, 1.5], null) == by_hand


SCORES = st.lists(st.integers(-3, 3), min_size=2, max_size=30)


@given(SCORES, SCORES)
def test_auc_is_the_share_of_pairs(positive: list[int], negative: list[int]) -> None:
    value, low, high = auc(positive, negative)
    pairs = [(p > n) + (p == n) / 2 for p in positive for n in negative]
    assert value == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
    assert 0 <= low <= value <= high <= 1 and low < high
    assert auc(negative, positive) == pytest.approx((1 - value, 1 - high, 1 - low), abs=1e-12)
    assert auc([3.0**p for p in positive], [3.0**n for n in negative]) == (value, low, high)
    _, wide_low, wide_high = auc(positive, negative, 0.999)
    assert wide_low <= low and high <= wide_high


def test_auc_of_separated_scores_is_not_certain() -> None:
    value, low, high = auc(range(100, 130), range(30))
    assert value == high == 1.0
    # As if one of a Bernoulli trial per positive or negative had decided it.
    assert wilson(20, 20)[0] < low < wilson(60, 60)[0]
    assert auc([1.0] * 30, [1.0] * 30)[1:] == pytest.approx(wilson(30, 60))


@given(SCORES, SCORES)
def test_effect_size_moves_as_it_should(positive: list[int], negative: list[int]) -> None:
    if len(set(positive)) == len(set(negative)) == 1:
        with pytest.raises(ValueError, match="without spread"):
            cohens_d(positive, negative)
        return
    d, low, high = cohens_d(positive, negative)
    pooled = (
        (np.var(positive) * len(positive) + np.var(negative) * len(negative)) / (len(positive + negative) - 2)
    ) ** 0.5
    assert d == pytest.approx((np.mean(positive) - np.mean(negative)) / pooled)
    assert low < d < high
    assert cohens_d(negative, positive) == pytest.approx((-d, -high, -low))
    assert cohens_d([5 + 2.5 * p for p in positive], [5 + 2.5 * n for n in negative]) == pytest.approx((d, low, high))
    _, wide_low, wide_high = cohens_d(positive, negative, 0.999)
    assert wide_low <= low and high <= wide_high


def test_effect_size_of_normal_scores_has_the_theoretical_width() -> None:
    rng = np.random.default_rng(8)
    d, low, high = cohens_d(rng.normal(1.5, 1, 4000), rng.normal(0, 1, 6000))
    theory = 1.96 * (10_000 / 24_000_000 + 1.5**2 / 20_000) ** 0.5
    assert d == pytest.approx(1.5, abs=2 * theory)
    assert (high - low) / 2 == pytest.approx(theory, rel=0.05)


FINITE = st.floats(-100, 100)


@given(FINITE, st.floats(0, 10), FINITE, st.floats(0, 10), st.floats(0, 1), st.floats(0, 1))
def test_ratio_holds_every_quotient(e: float, wide: float, t: float, broad: float, x: float, y: float) -> None:
    found = ratio((e, e + wide), (t, t + broad))
    if t <= 0 <= t + broad:
        assert found is None
        return
    assert found is not None
    if t > 1e-3:
        quotient = (e + x * wide) / (t + y * broad)
        assert found[0] - 1e-9 * abs(quotient) <= quotient <= found[1] + 1e-9 * abs(quotient)


def test_ratio_as_measures_defines_it() -> None:
    assert ratio((0.2, 0.4), (0.5, 0.8)) == pytest.approx((0.2 / 0.8, 0.4 / 0.5))
    assert ratio((-0.2, 0.4), (0.5, 0.8)) == pytest.approx((-0.2 / 0.5, 0.4 / 0.5))  # a negative end: the other end
    assert ratio((-0.4, -0.2), (0.5, 0.8)) == pytest.approx((-0.4 / 0.5, -0.2 / 0.8))
    assert ratio((0.2, 0.4), (-0.8, -0.5)) == pytest.approx((-0.4 / 0.5, -0.2 / 0.8))
    assert ratio((0.2, 0.4), (0.0, 0.8)) is None
    assert ratio((0.2, 0.4), (-0.1, 0.8)) is None


REFUSED: list[tuple[Callable[[], object], str]] = [
    (lambda: newcombe_paired(0, 0, 0, 0), "0 successes of 0"),
    (lambda: newcombe_paired(3, -1, 0, 2), "first_only = -1"),
    (lambda: newcombe_paired(3, 1, 0, 2, 1.5), "level 1.5"),
    (lambda: mcnemar(2, -3), "second_only = -3"),
    (lambda: bootstrap([0.5] * 49, range(49)), "49 clusters"),
    (lambda: bootstrap([0.5] * 98, list(range(49)) * 2), "49 clusters"),
    (lambda: bootstrap([0.5] * 60, range(61)), "60 values, but 61"),
    (lambda: bootstrap([0.5] * 59 + [math.nan], range(60)), "1 of 60"),
    (lambda: bootstrap([0.5] * 60, range(60), draws=999), "999 draws"),
    (lambda: bootstrap([0.5] * 60, range(60), level=0.0), "level 0.0"),
    (lambda: permutation_p(1.0, [0.0] * 18), "18 values where at least 19"),
    (lambda: permutation_p(math.nan, [0.0] * 19), "1 of 1"),
    (lambda: permutation_p(1.0, [0.0] * 18 + [math.inf]), "1 of 19"),
    (lambda: max_t([1.0], np.zeros((18, 1))), "18 values where at least 19"),
    (lambda: max_t([1.0, 2.0], np.zeros((19, 3))), "2 tests, but 3"),
    (lambda: auc([1.0], [1.0, 2.0]), "1 values where at least 2"),
    (lambda: auc([1.0, math.nan], [1.0, 2.0]), "1 of 2"),
    (lambda: cohens_d([1.0, 1.0], [1.0, 1.0]), "4 scores"),
    (lambda: cohens_d([1.0, 2.0], [1.0]), "1 values where at least 2"),
    (lambda: ratio((0.3, 0.2), (1.0, 2.0)), "no interval"),
    (lambda: ratio((0.1, 0.2), (math.nan, 2.0)), "nan"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=[words for _, words in REFUSED])
def test_what_has_no_answer_is_refused(call: Callable[[], object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_coverage_in_small() -> None:
    """The part `coverage` of the truth benchmark: exact where it is exact, not shown to miss where it is drawn."""
    data = coverage.run_coverage(True)
    judged = coverage.judge_coverage(data)
    assert all(goal["met"] for goal in judged[:2]), judged[:2]
    for kind in coverage.DRAWN:
        low, high = wilson(sum(c["hits"] for c in data[kind]), sum(c["trials"] for c in data[kind]))
        assert low <= 0.97 and high >= 0.93, kind
        for cell in data[kind]:
            assert wilson(cell["hits"], cell["trials"])[1] >= 0.88, cell
    near_one = [c for c in data["areas"] if c["at"] == 0.99]
    assert sum(c["rival"] for c in near_one) < 0.8 * sum(c["hits"] for c in near_one)  # why DeLong's is not used
    text, _ = coverage.show_coverage(data)
    assert len([line for line in text.splitlines() if line.startswith("|")]) > 20
