"""Intervals, corrections and p-values: published values, defining equations, coverage, and refusals."""

import math
import random

import numpy as np
import pytest

from deltalens.statistics import drawn_p, holm, wilson


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


def test_p_of_one_more_draw_is_uniform() -> None:
    rng = np.random.default_rng(0)
    sample = rng.normal(3, 2, (20_000, 8))
    drawn = sample[:, 1:]
    p = np.array([drawn_p(z, 7) for z in (sample[:, 0] - drawn.mean(axis=1)) / drawn.std(axis=1, ddof=1)])
    for level in (0.01, 0.05, 0.5):
        assert np.mean(p <= level) == pytest.approx(level, abs=4 * (level / 20_000) ** 0.5)
    with pytest.raises(ValueError, match="spread"):
        drawn_p(1.0, 1)
