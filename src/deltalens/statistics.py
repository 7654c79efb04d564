"""Intervals, tests and corrections: the only place that computes them. Imports nothing of ours."""

import math
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
