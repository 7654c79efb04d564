"""Is a transition along λ sharp? Where it lies, how wide it is, and how much of it one short stretch holds.

Everything here takes the measure as an array [points, prompts] with the λ of its points, and resamples whole prompts.
A measure that falls on the way to the tuned model (`p_skip`) is read as 1 − p, so that every curve rises.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float64

from deltalens.evaluate.scores import Row, mean
from deltalens.statistics import CLUSTERS, bootstrap
from deltalens.sweep.verdicts import CONTRADICTED, LEVEL, SUPPORTED, UNDECIDED, Verdict, unseparated

POINTS = 21
"""Fewest λ in [0, 1] for a verdict."""
CLIP = 1e-6
"""Probabilities nearer to 0 or 1 than this are this far from it: beyond, float32 softmax has no digits left."""
WINDOW = 0.2
"""Length of the stretch of λ whose share of the change is taken: a straight line has .2 of it there."""
SHARP, SMOOTH = 0.6, 0.4
"""Shares from which on a transition is sharp, and up to which it is smooth."""

Lambdas = Sequence[float]
Curve = Float64[np.ndarray, "points prompts"]


def log_odds(p: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """log(p/(1 − p)), p clipped to [1e-6, 1 − 1e-6]."""
    p = np.clip(p, CLIP, 1 - CLIP)
    return np.log(p) - np.log1p(-p)


def sharpness(lambdas: Lambdas, p: Curve, level: float = LEVEL) -> Row:
    """J, the largest share of the total change of the log-odds inside any λ-window of .2 (docs/behaviour.md, ours).

    The log-odds are those of every prompt, averaged: what is straight on each prompt has J = .2 however far the prompts
    lie apart, where the log-odds of an averaged p would bend. Between points the curve is straight.

    Args:
        lambdas: Ascending, 0 and 1 among them; points outside are left out.
        p: Probabilities.
        level: Coverage of the interval.

    Returns:
        n, value, low, high, method and p of a row of a summary. The value is None where the interval of the total
        change holds 0.
    """
    at, curve = _unit(lambdas, log_odds(_rising(p)))
    starts = np.unique(np.clip([*at, *(at - WINDOW)], 0, 1 - WINDOW))  # a piecewise linear share peaks at a knot
    knots = np.eye(len(at))
    windows = np.array([[np.interp(s + WINDOW, at, k) - np.interp(s, at, k) for k in knots] for s in starts])

    def share(means: Float64[np.ndarray, "draws points"]) -> Float64[np.ndarray, " draws"]:
        total = means[:, -1] - means[:, 0]
        return (np.sign(total)[:, None] * (means @ windows.T)).max(1) / np.abs(total)

    total = curve[-1] - curve[0]
    if len(total) < CLUSTERS:
        value = float(share(curve.mean(1)[None])[0]) if total.mean() else None
        return _row(len(total), value)
    _, low, high = bootstrap(total, range(len(total)), level=level)
    if low <= 0 <= high:
        return _row(len(total), None) | {"method": "the log-odds do not change"}
    return _row(len(total), *bootstrap(curve.T, range(len(total)), share, level))


def lambda_at(lambdas: Lambdas, p: Curve, at: float = 0.5, odds: bool = True, level: float = LEVEL) -> Row:
    """λ at which the mean over prompts first reaches a value (λ50 by default).

    Args:
        lambdas: Ascending.
        p: Probabilities, or 0 and 1.
        at: The value.
        odds: Interpolate between points in log-odds, which recovers a logistic exactly; else in the mean itself, of
            something that may jump between them: the interval then holds both neighbours.
        level: Coverage of the interval.

    Returns:
        As `sharpness`; the value is None where the curve begins above or never gets there, and a draw that does so
        counts as the first or the last λ.
    """
    rising = _rising(p)
    found = _interval(rising, lambda means: _crossing(lambdas, means, at, odds), level, _reached(rising, at))
    if odds or found["low"] is None:
        return found
    i = int((rising.mean(1) >= at).argmax())
    low, high = min(found["low"], lambdas[i - 1]), max(found["high"], lambdas[i])
    return found | {"low": low, "high": high, "method": "bootstrap by item, no finer than the points"}


def width(lambdas: Lambdas, p: Curve, level: float = LEVEL) -> Row:
    """λ(p = .9) − λ(p = .1) of the mean over prompts; see `lambda_at`."""
    rising = _rising(p)

    def between(means: Float64[np.ndarray, "draws points"]) -> Float64[np.ndarray, " draws"]:
        return _crossing(lambdas, means, 0.9, True) - _crossing(lambdas, means, 0.1, True)

    return _interval(rising, between, level, _reached(rising, 0.1) and _reached(rising, 0.9))


def verdict(lambdas: Lambdas, p: Curve, found: Row) -> Verdict:
    """Whether the transition is sharp (docs/behaviour.md).

    Clipping flattens the ends of a steep line. Where most prompts are clipped over more than half of [0, 1], a straight
    line would look sharp as well, and the answer is `undecided` (ours).

    Args:
        lambdas: Ascending.
        p: Probabilities.
        found: What `sharpness` says of them.
    """
    at, curve = _unit(lambdas, p)
    if len(at) < POINTS:
        return Verdict(UNDECIDED, f"{len(at)} points in [0, 1], {POINTS} are needed")
    if found["low"] is None:
        return Verdict(UNDECIDED, found["method"])
    if (why := unseparated(mean((curve[-1] - curve[0]).tolist(), LEVEL))) is not None:
        return Verdict(UNDECIDED, why)
    if found["high"] <= SMOOTH:
        return Verdict(CONTRADICTED, "smooth in log-odds")
    if found["low"] < SHARP:
        return Verdict(UNDECIDED, f"J is neither at least {SHARP} nor at most {SMOOTH}")
    clipped = ((curve <= CLIP) | (curve >= 1 - CLIP)).mean(1) > 0.5
    if not clipped.all() and np.ptp(at[~clipped]) >= WINDOW / SMOOTH:
        return Verdict(SUPPORTED, f"most of the change lies within {WINDOW} of λ")
    return Verdict(UNDECIDED, f"p is within {CLIP:g} of 0 or 1 at most λ: steep and sharp look alike")


def _unit(
    lambdas: Lambdas, curve: Curve
) -> tuple[Float64[np.ndarray, " inside"], Float64[np.ndarray, "inside prompts"]]:
    """The points in [0, 1]."""
    at = np.asarray(lambdas, np.float64)
    inside = (at >= 0) & (at <= 1)
    return at[inside], curve[inside]


def _rising(p: Curve) -> Curve:
    means = p.mean(1)
    return p if means[-1] >= means[0] else 1 - p


def _reached(rising: Curve, at: float) -> bool:
    means = rising.mean(1)
    return bool(means[0] < at <= means.max())


def _crossing(
    lambdas: Lambdas, means: Float64[np.ndarray, "draws points"], at: float, odds: bool
) -> Float64[np.ndarray, " draws"]:
    x = np.asarray(lambdas, np.float64)
    y, level = (log_odds(means), float(log_odds(np.array([at]))[0])) if odds else (means, at)
    above = y >= level
    i = np.maximum(above.argmax(1), 1)
    rows = np.arange(len(y))
    before, after = y[rows, i - 1], y[rows, i]
    step = np.where(after > before, after - before, 1.0)
    found = x[i - 1] + (level - before) / step * (x[i] - x[i - 1])
    return np.where(above[:, 0], x[0], np.where(above.any(1), found, x[-1]))


def _interval(
    curve: Curve, statistic: Callable[[Float64[np.ndarray, "draws points"]], np.ndarray], level: float, defined: bool
) -> Row:
    n = curve.shape[1]
    if not defined:
        return _row(n, None) | {"method": "not reached"}
    if n < CLUSTERS:
        return _row(n, float(statistic(curve.mean(1)[None])[0]))
    return _row(n, *bootstrap(curve.T, range(n), statistic, level))


def _row(n: int, value: float | None, low: float | None = None, high: float | None = None) -> Row:
    method = f"n < {CLUSTERS}" if low is None else "bootstrap by item"
    return {"n": n, "value": value, "low": low, "high": high, "method": method, "p": None}
