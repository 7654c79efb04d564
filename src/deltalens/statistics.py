"""Intervals, tests and corrections: the only place that computes them. Imports nothing of ours.

Every interval was chosen by its measured coverage (`make truth`, docs/truth.md); what was tried and lost is said where
the winner is defined. `level` is two-sided coverage, strictly between 0 and 1. Input outside a function's domain raises
ValueError with the number in it.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
from jaxtyping import Float64, Real

Values = Sequence[float | int] | Real[np.ndarray, "_"]

CLUSTERS = 50
"""Fewest prompts for a bootstrap (docs/behaviour.md §3): below, its intervals of skewed measures are too short."""

DRAWS = 19
"""Fewest null draws for a permutation p: with 19, the smallest possible p is 1/20."""


def _tail(level: float) -> float:
    """The probability that a two-sided level leaves on either side."""
    if not 0 < level < 1:
        raise ValueError(f"level {level} is not between 0 and 1")
    return (1 - level) / 2


def _counts(**counts: int) -> None:
    """Refuse what is not a count."""
    for name, count in counts.items():
        if count < 0 or count != int(count):
            raise ValueError(f"{name} = {count} is not a whole number from 0 up")


def _array(values: Values | Sequence[Sequence[float]] | np.ndarray, least: int) -> np.ndarray:
    """Finite float64 values, at least `least` of them."""
    array = np.asarray(values, np.float64)
    if len(array) < least:
        raise ValueError(f"{len(array)} values where at least {least} are needed")
    if wrong := int((~np.isfinite(array)).sum()):
        raise ValueError(f"{wrong} of {array.size} values are not finite")
    return array


def _score(rate: float, n: float | int, level: float) -> tuple[float, float]:
    """Wilson's interval; n need not be whole."""
    z = -NormalDist().inv_cdf(_tail(level))
    shrink = 1 + z * z / n
    centre = (rate + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # Exact at the ends, where rounding would leave ±1e-17 and so a bound outside [0, 1].
    return (0.0 if rate == 0 else centre - half, 1.0 if rate == 1 else centre + half)


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a rate, without continuity correction (Wilson 1927, JASA 22:209).

    Unlike successes/n ± 1.96 standard errors, it keeps its coverage near 0 and 1, where think ratios live.

    Args:
        successes: Number of successes, 0 to n.
        n: Number of trials, at least 1.
        level: Two-sided coverage.

    Returns:
        Lower and upper bound, both within [0, 1]; exactly 0 at no success and exactly 1 at no failure.
    """
    _counts(successes=successes, n=n)
    if successes > n or n == 0:
        raise ValueError(f"{successes} successes of {n} trials is not a rate")
    return _score(successes / n, n, level)


def newcombe_paired(
    both: int, first_only: int, second_only: int, neither: int, level: float = 0.95
) -> tuple[float, float, float]:
    """Newcombe's score interval of rate_second − rate_first on the same items (1998, Stat. Med. 17:2635, method 10).

    The two Wilson intervals are combined by squaring and adding, with the correlation φ of the pairs; a positive φ
    takes a continuity correction, so that identical arms keep an interval of some width.

    From the numbers of items on which both arms succeed, only the first, only the second, or neither, to the
    difference, its lower and its upper bound, all within [−1, 1].
    """
    _counts(both=both, first_only=first_only, second_only=second_only, neither=neither)
    n = both + first_only + second_only + neither
    first, second = both + first_only, both + second_only
    first_low, first_high = wilson(first, n, level)
    second_low, second_high = wilson(second, n, level)
    cross, margins = both * neither - first_only * second_only, first * (n - first) * second * (n - second)
    if cross > 0:
        cross = max(cross - n / 2, 0)
    phi = cross / math.sqrt(margins) if margins else 0.0

    def joined(a: float, b: float) -> float:
        return math.sqrt(a * a - 2 * phi * a * b + b * b)

    down = joined(second / n - second_low, first_high - first / n)
    up = joined(second_high - second / n, first / n - first_low)
    difference = (second_only - first_only) / n
    return difference, max(-1.0, difference - down), min(1.0, difference + up)


def mcnemar(first_only: int, second_only: int) -> float:
    """Exact two-sided p of McNemar's test that two arms succeed equally often on the same items.

    Binomial, not mid-p: twice the smaller tail of Binomial(first_only + second_only, ½), at most 1. Items on which the
    arms agree do not count.
    """
    _counts(first_only=first_only, second_only=second_only)
    from scipy.special import bdtr  # slow to import: error paths and --help need not pay

    return min(1.0, 2 * float(bdtr(min(first_only, second_only), first_only + second_only, 0.5)))


def bootstrap(
    values: Values | Real[np.ndarray, "_ columns"],
    clusters: Sequence[Hashable] | np.ndarray,
    statistic: Literal["mean"] | Callable[[Float64[np.ndarray, "draws columns"]], np.ndarray] = "mean",
    level: float = 0.95,
    draws: int = 10_000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """BCa bootstrap of a mean, or of a function of means, that resamples whole prompts.

    Efron's BCa (1987, JASA 82:171) with Hesterberg's widening for few clusters (2015, Am. Stat. 69:371), which asks
    for the quantiles of Student's t. It covers 91 to 94 % of skewed means of 50 prompts, the percentile bootstrap 89 to
    94 %; the bootstrap-t is infinitely wide once a resample may be constant, and leaves the scale of a probability.
    A paired difference is the bootstrap of values already differenced. None serves a statistic whose bias exceeds its
    spread, such as the overlap of two noisy vectors: the interval is then about the biased value.

    Args:
        values: A continuous measure per item, or several as columns.
        clusters: The prompt of each item, 50 of them at least.
        statistic: "mean", or a function of the columns' means over items, from [draws, columns] to [draws].
        level: Two-sided coverage.
        draws: Resamples, at least 1000; the default leaves 31 of them beyond either bound at level 1 − .05/8.
        seed: Of the resampling.

    Returns:
        Value, lower and upper bound (widened to hold the value).
    """
    items = _array(values, 1)
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    if len(cluster) != len(items):
        raise ValueError(f"{len(items)} values, but {len(cluster)} labels of clusters")
    if (count := int(cluster.max()) + 1) < CLUSTERS:
        raise ValueError(f"{count} clusters are too few for a bootstrap, which needs {CLUSTERS}")
    if draws < 1000:
        raise ValueError(f"{draws} draws are too few for a bootstrap, which needs 1000")
    tail = _tail(level)
    sums = np.stack([np.bincount(cluster, column, count) for column in items.reshape(len(items), -1).T], 1)
    sizes = np.bincount(cluster, minlength=count).astype(np.float64)
    function = (lambda means: means[:, 0]) if statistic == "mean" else statistic
    value = float(function(sums.sum(0, keepdims=True) / sizes.sum())[0])
    left_out = function((sums.sum(0) - sums) / (sizes.sum() - sizes)[:, None])
    rng, parts = np.random.default_rng(seed), []
    for start in range(0, draws, 1000):  # a thousand at a time bound the memory
        rows = min(1000, draws - start)
        chosen = rng.integers(count, size=(rows, count)) + count * np.arange(rows)[:, None]
        weights = np.bincount(chosen.ravel(), minlength=rows * count).reshape(rows, count).astype(np.float64)
        parts.append(function((weights @ sums) / (weights @ sizes)[:, None]))
    low, high = _bca(np.concatenate(parts), value, left_out, tail)
    return value, min(value, low), max(value, high)


def _bca(
    sample: Float64[np.ndarray, "draws"], value: float, left_out: Float64[np.ndarray, "clusters"], tail: float
) -> list[float]:
    """Both bounds, from the draws, the estimate and the estimates without each cluster."""
    from scipy.special import ndtr, ndtri, stdtrit

    count, draws = len(left_out), len(sample)
    pull = left_out.mean() - left_out
    spread = float((pull**2).sum())
    acceleration = float((pull**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    below = float(np.mean(sample < value) + np.mean(sample == value) / 2)
    bias = float(ndtri(min(max(below, 0.5 / draws), 1 - 0.5 / draws)))
    wide = math.sqrt(count / (count - 1)) * float(stdtrit(count - 1, tail))
    shifted = [bias + wide, bias - wide]
    # Where 1/acceleration is passed, far beyond a verdict's level, the map has a pole: the bound is the last draw.
    shares = [ndtr(bias + z / max(1 - acceleration * z, 1e-9)) for z in shifted]
    return np.quantile(sample, shares).tolist()


def permutation_p(observed: float, null: Values) -> float:
    """P-value of an observation against at least 19 draws of its null, (1 + #{null ≥ observed})/(1 + draws).

    The observation counts as one of the draws, so p is never 0 and is valid at any number of draws
    (Phipson and Smyth 2010).
    """
    draws = _array(null, DRAWS)
    _array([observed], 1)
    return (1 + int((draws >= observed).sum())) / (1 + len(draws))


def max_t(observed: Values, null: Real[np.ndarray, "draws tests"]) -> list[float]:
    """P-values of many tests adjusted by the null of their maximum (Westfall and Young 1993, single-step maxT).

    They keep the chance of any false rejection at α and, unlike Holm's, gain from correlation between the tests.

    Args:
        observed: One statistic per test, standardised, large against the null; |t| of both arguments is two-sided.
        null: At least 19 joint draws of all statistics, as the same permutation gives them.
    """
    draws, tests = _array(null, DRAWS), _array(observed, 1)
    if draws.shape[1] != len(tests):
        raise ValueError(f"{len(tests)} tests, but {draws.shape[1]} in the null")
    largest = draws.max(1)
    return [permutation_p(float(t), largest) for t in tests]


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of a family of tests (Holm 1979, Scand. J. Statist. 6:65).

    Rejecting where the adjusted value is at most α keeps the chance of any false rejection at α, whatever the
    dependence between the tests.

    Returns:
        Adjusted values in the order of `p_values`.
    """
    for p in p_values:
        if not 0 <= p <= 1:
            raise ValueError(f"a p-value of {p} is outside [0, 1]")
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
    """
    if draws < 2:
        raise ValueError(f"{draws} draws have no spread")
    from scipy.special import stdtr

    return float(2 * stdtr(draws - 1, -abs(z) / math.sqrt(1 + 1 / draws)))


def auc(positive: Values, negative: Values, level: float = 0.95) -> tuple[float, float, float]:
    """Area under the ROC curve, P(positive > negative) + ½ P(equal), with a score interval (ours).

    Wilson's interval at the effective number of trials, AUC(1 − AUC) over DeLong's variance (1988, Biometrics 44:837).
    That number is taken with one positive and one negative added that tie with everything, which keeps it finite
    when the samples are separated, and is at most one trial per observation. DeLong's own interval covers 47 to 89 % at
    an AUC of .99; Hanley and McNeil's variance, which knows no data, fails where spreads and sizes differ.

    Args:
        positive: Scores that should be high, at least 2.
        negative: Scores that should be low, at least 2.
        level: Two-sided coverage.

    Returns:
        AUC, lower and upper bound, all within [0, 1].
    """
    high, low = _array(positive, 2), _array(negative, 2)

    def beaten(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
        """The share of `others` below each score, ties counting one half."""
        ordered = np.sort(others)
        left, right = np.searchsorted(ordered, scores, "left"), np.searchsorted(ordered, scores, "right")
        return (left + right) / (2 * len(others))

    area = float(beaten(high, low).mean())
    sides = [np.append(side, 0.5) for side in (beaten(high, low), 1 - beaten(low, high))]
    variance = sum(float(side.var(ddof=1)) / len(side) for side in sides)
    centre = float(sides[0].mean() + sides[1].mean()) / 2
    n = len(high) + len(low)
    trials = min(n, centre * (1 - centre) / variance) if variance > 0 else n
    return (area, *_score(area, trials, level))


def cohens_d(positive: Values, negative: Values, level: float = 0.95) -> tuple[float, float, float]:
    """Cohen's d, the difference of means over the pooled standard deviation, with a distribution-free interval.

    Delta method with the observed spreads and fourth moments, Student's t with Welch and Satterthwaite's degrees of
    freedom. Normal theory covers 76 to 86 % where d = 4 meets other shapes or unequal spreads meet unequal sizes.

    Args:
        positive: Scores that should be high, at least 2.
        negative: Scores that should be low, at least 2.
        level: Two-sided coverage.

    Returns:
        d, lower and upper bound, in pooled standard deviations.
    """
    sides = [_array(positive, 2), _array(negative, 2)]
    tail = _tail(level)
    from scipy.special import stdtrit

    free = len(sides[0]) + len(sides[1]) - 2
    pooled = math.sqrt(sum(float(((x - x.mean()) ** 2).sum()) for x in sides) / free)
    if pooled == 0:
        raise ValueError(f"{free + 2} scores without spread have no d")
    d = float(sides[0].mean() - sides[1].mean()) / pooled
    parts = []
    for x, sign in zip(sides, (1, -1), strict=True):
        z = (x - x.mean()) / pooled
        parts.append(float(np.var(sign * z - d / 2 * len(x) / (free + 2) * z**2, ddof=1)) / len(x))
    freedom = sum(parts) ** 2 / sum(part**2 / (len(x) - 1) for part, x in zip(parts, sides, strict=True))
    half = -float(stdtrit(freedom, tail)) * math.sqrt(sum(parts))
    return d, d - half, d + half


def ratio(numerator: tuple[float, float], denominator: tuple[float, float]) -> tuple[float, float] | None:
    """All quotients of two intervals: [L_e/U_t, U_e/L_t], of F = edit's effect/tuned model's.

    The extremes lie in the corners, which is the rule that a negative end is divided by the denominator's other end,
    and holds for a negative denominator too. None where the denominator's interval holds 0: F is undefined.
    """
    for low, high in (numerator, denominator):
        if not low <= high:
            raise ValueError(f"[{low}, {high}] is no interval")
    if denominator[0] <= 0 <= denominator[1]:
        return None
    corners = [e / t for e in numerator for t in denominator]
    return min(corners), max(corners)
