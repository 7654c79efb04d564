"""Whether scores along a direction tell two groups apart, beside what directions of no meaning do (docs/measures.md).

Three questions, three nulls. *Do the labels matter?* The labels of the scores are permuted. *Does the direction?*
Random ones, isotropic or the difference of means of other prompts under permuted labels (which has the covariance that
activations have), are scored on the same prompts: where the groups lie far apart, most directions separate them. And
length is a score too. AUC stops at 1, so directions are compared by |d|.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from deltalens.direction.estimate import permuted, samples
from deltalens.errors import BadInput
from deltalens.statistics import auc, cohens_d, holm, max_t, permutation_p

DRAWS = 500
"""Directions of each null."""

PERMUTATIONS = 999
"""Permutations of the labels."""

ALPHA = 0.05

NULLS = ("random", "label-permuted")

_ROUNDING = 1e-5  # of ‖h‖: activations that agree to this differ by the order of a float32 sum

_NOTHING = 1e-12  # a d of 0 everywhere, as of prompts against themselves, is 0 over any scale

Interval = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Readings:
    """What one layer of a model holds, a row per prompt: the mean over its selected tokens.

    Attributes:
        layer: Which.
        vector: v, of any length.
        extract: Activations of both groups that null directions are made of.
        test: Of both groups that are scored.
        normalised: ⟨h, v̂⟩/‖h‖ of the test prompts of both groups.
    """

    layer: int
    vector: Float[np.ndarray, " d"]
    extract: tuple[Float32[np.ndarray, "_ d"], Float32[np.ndarray, "_ d"]]
    test: tuple[Float32[np.ndarray, "_ d"], Float32[np.ndarray, "_ d"]]
    normalised: tuple[Float64[np.ndarray, " _"], Float64[np.ndarray, " _"]]


@dataclass(frozen=True, slots=True)
class Band:
    """What the directions of one null give: the mean over them, and quantiles at 2.5 and 97.5 %.

    Attributes:
        auc: Of their AUC.
        d: Of their Cohen's d.
    """

    auc: Interval
    d: Interval


@dataclass(frozen=True, slots=True)
class Separation:
    """How far apart a direction puts the first group from the second.

    Attributes:
        layer: Which.
        n: Test prompts of both groups.
        auc: Of ⟨h, v̂⟩, with a 95 % interval.
        auc_normalised: Of ⟨h, v̂⟩/‖h‖.
        d: Cohen's d of ⟨h, v̂⟩, with a 95 % interval.
        p: Of |AUC − ½| under permuted labels.
        p_holm: The same by Holm over layers.
        p_direction: Of |d| among label-permuted directions.
        p_max_t: The same by the null of the layers' maximum.
        bands: Of each null.
        beyond: Whether |d| is beyond every null: the end of its interval nearer to 0 beyond every band, and both
            corrected p at most .05.
    """

    layer: int
    n: int
    auc: Interval
    auc_normalised: Interval
    d: Interval
    p: float
    p_holm: float
    p_direction: float
    p_max_t: float
    bands: dict[str, Band]
    beyond: bool


def separations(
    layers: Sequence[Readings], seed: int = 0, draws: int = DRAWS, permutations: int = PERMUTATIONS
) -> list[Separation]:
    """Every layer's scores, nulls and corrected p-values.

    Args:
        layers: Of one model, with the same prompts in the same order; draw i is the same permutation in all of them.
        seed: Of nulls and permutations.
        draws: Directions of each null.
        permutations: Of the labels.

    Raises:
        BadInput: The prompts have one and the same activation in a layer.
    """
    for layer in layers:
        for rows in (layer.extract, layer.test):
            _check_spread(layer, np.concatenate(rows))
    scores = [_scores(layer.test, layer.vector[None]) for layer in layers]
    pairs = [(a[:, 0], b[:, 0]) for a, b in scores]
    area = [auc(a, b) for a, b in pairs]
    effect = [_effect(a, b) for a, b in pairs]
    p = [_label_p(a, b, seed, permutations) for a, b in pairs]
    nulls = [_nulls(layer, seed, draws) for layer in layers]
    sizes = np.stack([np.abs(null["label-permuted"][1]) for null in nulls], axis=1)
    scale = np.maximum(np.sqrt(np.mean(sizes**2, axis=0)), _NOTHING)
    observed = np.abs([d for d, _, _ in effect])
    p_max_t = max_t(observed / scale, sizes / scale)
    found = []
    for i, (layer, p_holm) in enumerate(zip(layers, holm(p), strict=True)):
        bands = {name: Band(_band(null_area), _band(null_d)) for name, (null_area, null_d) in nulls[i].items()}
        d, low, high = effect[i]
        largest = max(max(-band.d[1], band.d[2]) for band in bands.values())
        found.append(
            Separation(
                layer=layer.layer,
                n=sum(map(len, layer.test)),
                auc=area[i],
                auc_normalised=auc(*layer.normalised),
                d=effect[i],
                p=p[i],
                p_holm=p_holm,
                p_direction=permutation_p(abs(d), sizes[:, i]),
                p_max_t=p_max_t[i],
                bands=bands,
                beyond=max(low, -high) > largest and max(p_holm, p_max_t[i]) <= ALPHA,
            )
        )
    return found


def _check_spread(layer: Readings, rows: Float[np.ndarray, "n d"]) -> None:
    if np.abs(rows - rows.mean(axis=0)).max() <= _ROUNDING * np.sqrt(np.mean(np.sum(rows**2, axis=1))):
        raise BadInput(
            f"all prompts have the same activation the direction of layer {layer.layer} is read",
            "--select last, another --site, or a direction of another layer",
        )


def _scores(
    groups: tuple[Float32[np.ndarray, "_ d"], Float32[np.ndarray, "_ d"]], vectors: Float[np.ndarray, "k d"]
) -> tuple[Float64[np.ndarray, "_ k"], Float64[np.ndarray, "_ k"]]:
    """⟨h, v̂⟩ of every prompt along every vector."""
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    first, second = (rows.astype(np.float64) @ unit.T for rows in groups)
    return first, second


def _effect(first: Float64[np.ndarray, " _"], second: Float64[np.ndarray, " _"]) -> Interval:
    """Cohen's d; 0 where every score is the same."""
    return (0.0, 0.0, 0.0) if np.ptp([*first, *second]) == 0 else cohens_d(first, second)


def _label_p(first: Float64[np.ndarray, " _"], second: Float64[np.ndarray, " _"], seed: int, draws: int) -> float:
    """P of |AUC − ½| among permutations of the labels: direction and sign are the direction's own business."""
    rng = np.random.default_rng([seed, 2])
    pooled = np.tile(np.concatenate([first, second]), (1 + draws, 1))
    rng.permuted(pooled[1:], axis=1, out=pooled[1:])
    # Half the number of pairs would come out by chance; counts, because two equal AUC may differ by a rounding.
    away = np.abs(wins(pooled.T, len(first)) - len(first) * len(second) / 2)
    return permutation_p(float(away[0]), away[1:])


def _nulls(
    layer: Readings, seed: int, draws: int
) -> dict[str, tuple[Float64[np.ndarray, " draws"], Float64[np.ndarray, " draws"]]]:
    """AUC and d of the directions of every null."""
    random = np.random.default_rng([seed, 1]).standard_normal((draws, len(layer.vector)))
    shuffled = permuted(samples(*layer.extract, paired=False), draws, seed)
    n, found = len(layer.test[0]), {}
    for name, vectors in zip(NULLS, (random, shuffled), strict=True):
        scores = np.concatenate(_scores(layer.test, vectors))
        found[name] = areas(scores, n), effects(scores, n)
    return found


def wins(scores: Float64[np.ndarray, "n draws"], first: int) -> Float64[np.ndarray, " draws"]:
    """In how many pairs of every column the one from the first rows is higher, ties counting one half."""
    from scipy.stats import rankdata

    return rankdata(scores, axis=0)[:first].sum(axis=0) - first * (first + 1) / 2


def areas(scores: Float64[np.ndarray, "n draws"], first: int) -> Float64[np.ndarray, " draws"]:
    """AUC of every column as `statistics.auc` defines it, for thousands at once; the first group is the first rows."""
    return wins(scores, first) / (first * (len(scores) - first))


def effects(scores: Float64[np.ndarray, "n draws"], first: int) -> Float64[np.ndarray, " draws"]:
    """Cohen's d of every column as `statistics.cohens_d` defines it; 0 where a column has no spread."""
    groups = scores[:first], scores[first:]
    squares = sum(((group - group.mean(axis=0)) ** 2).sum(axis=0) for group in groups)
    pooled = np.sqrt(squares / (len(scores) - 2))
    apart = groups[0].mean(axis=0) - groups[1].mean(axis=0)
    return np.divide(apart, pooled, out=np.zeros_like(apart), where=pooled > 0)


def _band(values: Float64[np.ndarray, " draws"]) -> Interval:
    low, high = np.quantile(values, [0.025, 0.975]).tolist()
    return float(values.mean()), low, high
