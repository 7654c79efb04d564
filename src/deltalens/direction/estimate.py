"""Directions from two groups of activations, and the draws that their nulls are made of.

Groups are *paired* when row i of both comes from one prompt (two models, or matched prompts): everything then works on
the differences. Draws are linear in the rows, so a few hundred of them are one matrix product.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from deltalens.direction.direction import SAMPLES, Direction

HELD_OUT = 0.25
"""Share of the rows that the probe is judged on."""

_PENALTY = 1.0  # of ½‖w‖² beside the summed log-loss, on rows scaled to mean squared norm d: the usual default


@dataclass(frozen=True, slots=True)
class Probe:
    """A logistic probe.

    Attributes:
        vector: Along the weights, as long as the groups' means are apart along them.
        right: Held-out rows that it puts into their group.
        held_out: How many were held out.
    """

    vector: Float64[np.ndarray, " d"]
    right: int
    held_out: int


@dataclass(frozen=True, slots=True)
class Samples:
    """What a difference of means is taken from, and its null and interval are drawn from.

    Attributes:
        rows: The paired differences, or the rows of the first group and then of the second.
        first: How many belong to the first group; None for pairs.
    """

    rows: Float32[np.ndarray, "n d"]
    first: int | None


def samples(first: Float32[np.ndarray, "a d"], second: Float32[np.ndarray, "b d"], paired: bool) -> Samples:
    """The samples of two groups."""
    return Samples(first - second, None) if paired else Samples(np.concatenate([first, second]), len(first))


def samples_of(direction: Direction, bank: Sequence[Direction]) -> Samples | None:
    """The samples that a bank holds of one of its directions, None for one that has none."""
    found = [d for d in bank if d.kind == SAMPLES and d.id == direction.source.get("samples")]
    return Samples(found[0].vectors, found[0].source["first"]) if found else None


def difference(of: Samples) -> Float64[np.ndarray, " d"]:
    """The difference of means, first group less second."""
    wide = of.rows.astype(np.float64)
    return wide.mean(axis=0) if of.first is None else wide[: of.first].mean(axis=0) - wide[of.first :].mean(axis=0)


def principal(rows: Float32[np.ndarray, "n d"]) -> Float64[np.ndarray, " d"]:
    """The first principal direction of paired differences about zero, as long as their root mean square along it.

    About zero and not about their mean, which would take out just what all pairs share (RepE, 2310.01405, gets there by
    shuffling the order within pairs). It points to where the mean difference does.
    """
    wide = rows.astype(np.float64)
    _, sigma, right = np.linalg.svd(wide, full_matrices=False)
    towards = 1.0 if wide.mean(axis=0) @ right[0] >= 0 else -1.0
    return towards * right[0] * sigma[0] / len(wide) ** 0.5


def probe(first: Float32[np.ndarray, "a d"], second: Float32[np.ndarray, "b d"], paired: bool, seed: int) -> Probe:
    """A logistic regression (L-BFGS, ridge) that tells the groups apart, judged on a quarter of the rows held out.

    Both rows of a pair are held out together: they share their prompt.

    Args:
        first: Rows of the first group, towards which the direction points; at least 4.
        second: Rows of the second group; at least 4.
        paired: Whether row i of both comes from one prompt.
        seed: Of the split.
    """
    from scipy.optimize import minimize

    rng = np.random.default_rng(seed)
    out_first = _held_out(len(first), rng)
    out_second = out_first if paired else _held_out(len(second), rng)
    seen = np.concatenate([first[~out_first], second[~out_second]]).astype(np.float64)
    label = np.repeat([1.0, -1.0], [np.count_nonzero(~out_first), np.count_nonzero(~out_second)])
    middle = seen.mean(axis=0)
    scale = np.sqrt(np.mean((seen - middle) ** 2))
    x = (seen - middle) / scale

    def loss(wb: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = wb[:-1], wb[-1]
        margin = label * (x @ w + b)
        value = np.logaddexp(0, -margin).sum() + _PENALTY / 2 * w @ w
        slope = -label / (1 + np.exp(np.minimum(margin, 700.0)))  # beyond 700 exp overflows and the slope is 0 anyway
        return float(value), np.append(x.T @ slope + _PENALTY * w, slope.sum())

    found = minimize(loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    w, b = found[:-1], found[-1]
    tested = np.concatenate([first[out_first], second[out_second]])
    truth = np.repeat([True, False], [np.count_nonzero(out_first), np.count_nonzero(out_second)])
    right = int(np.count_nonzero(((tested - middle) / scale @ w + b > 0) == truth))
    along = w / np.linalg.norm(w)
    apart = along @ (first.mean(axis=0, dtype=np.float64) - second.mean(axis=0, dtype=np.float64))
    return Probe(along * apart, right, len(tested))


def permuted(of: Samples, draws: int, seed: int) -> Float64[np.ndarray, "draws d"]:
    """Differences of means under permuted labels, of the covariance that the rows have within their groups.

    Rows are centred by group before: a real difference would otherwise dominate every permuted one, whose direction
    would then be the observed one (ours). Labels are shuffled, or, of pairs, swapped.

    Args:
        of: The samples.
        draws: How many.
        seed: Of the permutations.
    """
    rng = np.random.default_rng(seed)
    rows, first, n = of.rows, of.first, len(of.rows)
    if first is None:
        centred = rows - rows.mean(axis=0, dtype=np.float64)
        return rng.choice([-1.0, 1.0], (draws, n)) @ centred / n
    means = [part.mean(axis=0, dtype=np.float64) for part in (rows[:first], rows[first:])]
    centred = rows - np.repeat(means, [first, n - first], axis=0)
    weights = np.repeat([1 / first, -1 / (n - first)], [first, n - first])
    return rng.permuted(np.tile(weights, (draws, 1)), axis=1) @ centred


def _held_out(n: int, rng: np.random.Generator) -> np.ndarray:
    mask = np.zeros(n, dtype=bool)
    mask[rng.permutation(n)[: max(1, round(n * HELD_OUT))]] = True
    return mask
