"""Wilson's interval: published values, the defining equation, coverage, and refusals."""

import math
import random

import pytest

from deltalens.statistics import wilson


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
