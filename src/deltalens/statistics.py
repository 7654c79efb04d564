"""Intervals, tests and corrections: the only place that computes them. Imports nothing of ours."""

import math
from collections.abc import Sequence
from statistics import NormalDist


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate, without continuity correction (Wilson 1927, JASA 22:209).

    Unlike successes/n ± 1.96 standard errors, it keeps its coverage near 0 and 1, where think ratios live.

    Args:
        successes: Number of successes, 0 to n.
        n: Number of trials, at least 1.
        level: Two-sided coverage, strictly between 0 and 1.

    Returns:
        Lower and upper bound, both within [0, 1]; exactly 0 at no success and exactly 1 at no failure.

    Raises:
        ValueError: The counts are not whole numbers with 0 ≤ successes ≤ n and n ≥ 1, or the level is outside
            (0, 1).
    """
    if successes != int(successes) or n != int(n):
        raise ValueError(f"counts must be whole numbers, not {successes} of {n}")
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is not a rate")
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    z = NormalDist().inv_cdf(0.5 + level / 2)
    rate, shrink = successes / n, 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # Exact at the ends, where rounding would leave ±1e-17 and so a bound outside [0, 1].
    return (0.0 if successes == 0 else centre - half, 1.0 if successes == n else centre + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of a family of tests (Holm 1979, Scand. J. Statist. 6:65).

    Rejecting where the adjusted value is at most α keeps the chance of any false rejection at α, whatever the
    dependence between the tests.

    Args:
        p_values: One per test, each in [0, 1].

    Returns:
        Adjusted values in the same order.

    Raises:
        ValueError: A value is outside [0, 1].
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError("a p-value is outside [0, 1]")
    adjusted, worst = [0.0] * len(p_values), 0.0
    for done, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, (len(p_values) - done) * p_values[i]))
        adjusted[i] = worst
    return adjusted


def drawn_p(z: float, draws: int) -> float:
    """Two-sided p of one observation against `draws` independent normal draws of unknown mean and spread.

    z/√(1 + 1/n) follows Student's t with n − 1 degrees of freedom when the observation is one more draw. (Reading z
    itself as normal would reject 7 % at 5 % with 20 draws, and 5 times too often in the far tail.)

    Args:
        z: (observed − mean)/sd, with the sample standard deviation.
        draws: n, at least 2.

    Raises:
        ValueError: Fewer than two draws.
    """
    if draws < 2:
        raise ValueError(f"{draws} draws have no spread")
    from scipy.special import stdtr  # slow to import: error paths and --help need not pay

    return float(2 * stdtr(draws - 1, -abs(z) / math.sqrt(1 + 1 / draws)))
