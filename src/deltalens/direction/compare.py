"""Whether two directions overlap more than chance, shared inputs or shared layers explain (docs/behaviour.md §4).

overlap φ = ‖Q_aᵀQ_b‖²_F/k with k the smaller rank, for a single vector the share of its energy inside the other's span.
Each null is a set of overlaps that nothing specific would give:

    isotropic     a random subspace in place of b; its mean is max(k_a, k_b)/d
    permuted      the difference of means of permuted labels in place of the real one: matched in covariance
    sibling       the same vectors of another delta, not the one in question, in place of a
    other layer   the same vectors of every other layer in place of a

The null with the largest mean decides. The interval of φ less that mean is a bootstrap over prompts; since it does not
know how widely a null spreads, "overlapping" needs a permutation p beside it, corrected over the layers (ours).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float, Float64

from deltalens.direction.direction import SAMPLES, Direction
from deltalens.direction.estimate import Samples, difference, permuted, samples_of
from deltalens.statistics import CLUSTERS, bootstrap, holm, permutation_p

DRAWS = 1000
"""Draws of a null: Holm over 32 layers needs p-values below .05/32."""

LEVEL = 1 - 0.05 / 8
MARGIN = 0.05
ALPHA = 0.05
NOISY = 0.5


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two directions of one layer beside their nulls.

    Attributes:
        a: Id of the first, of which sibling and other layers are taken.
        b: Id of the second.
        layer: Of both.
        family: Kinds and sides of the two; p-values are corrected over the layers of a family.
        width: d.
        ranks: k_a and k_b.
        overlap: φ.
        angles: Principal angles in degrees, ascending.
        nulls: Mean overlap of each available null.
        largest: The null that decides.
        low: Lower bound of φ − largest null, None where prompts are too few or the estimate has no bootstrap.
        high: Upper bound, of φ as it would be without the noise in both differences of means.
        noise: Share of ‖difference of means‖² that permuted labels give too, the larger of two sides; 0 for weights.
            Noise dilutes an overlap by one less that share on either side; above one half nothing is called distinct.
        p: Permutation p of φ, from the permuted null where there is one, else from the isotropic one.
        p_holm: Corrected over the family.
        verdict: Of "distinct?": supported, contradicted or undecided.
        reason: Why it is undecided, or what a supported verdict does not say; else None.
    """

    a: str
    b: str
    layer: int | None
    family: str
    width: int
    ranks: tuple[int, int]
    overlap: float
    angles: tuple[float, ...]
    nulls: dict[str, float]
    largest: str
    low: float | None
    high: float | None
    noise: float
    p: float
    p_holm: float
    verdict: str
    reason: str | None


def overlap(a: Float64[np.ndarray, "d k"], b: Float64[np.ndarray, "d l"]) -> float:
    """‖AᵀB‖²_F over the smaller rank, for orthonormal columns; between 0 and 1."""
    return float(min(1.0, np.sum((a.T @ b) ** 2) / min(a.shape[1], b.shape[1])))


def energies(vectors: Float[np.ndarray, "n d"], basis: Float64[np.ndarray, "d k"]) -> Float64[np.ndarray, " n"]:
    """Share of each row's energy inside a subspace; 0 for a row of zeros, which few permuted prompts may give."""
    whole = np.sum(vectors.astype(np.float64) ** 2, axis=1)
    return np.sum((vectors @ basis) ** 2, axis=1) / np.maximum(whole, np.finfo(np.float64).tiny)


def principal_angles(a: Float64[np.ndarray, "d k"], b: Float64[np.ndarray, "d l"]) -> tuple[float, ...]:
    """Principal angles between two subspaces in degrees, ascending.

    By sines below 45°, where cosines lose all digits (Björck and Golub 1973).
    """
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    cosines = np.clip(np.linalg.svd(a.T @ b, compute_uv=False), 0, 1)
    sines = np.clip(np.linalg.svd(b - a @ (a.T @ b), compute_uv=False)[::-1], 0, 1)
    found = np.where(cosines**2 > 0.5, np.arcsin(sines), np.arccos(cosines))
    return tuple(map(float, np.degrees(found)))


@lru_cache(maxsize=64)
def isotropic(width: int, rank_a: int, rank_b: int, draws: int, seed: int) -> Float64[np.ndarray, " draws"]:
    """Overlaps of a subspace with random ones; whichever the fixed one is, the first axes stand for it."""
    rng = np.random.default_rng(seed)
    fixed, drawn = max(rank_a, rank_b), min(rank_a, rank_b)
    if drawn == 1:
        rows = rng.standard_normal((draws, width))
        return np.sum(rows[:, :fixed] ** 2, axis=1) / np.sum(rows**2, axis=1)
    found = [np.linalg.qr(rng.standard_normal((width, drawn)))[0][:fixed] for _ in range(draws)]
    return np.array([np.sum(part**2) / drawn for part in found])


def compare(
    a: Sequence[Direction],
    b: Sequence[Direction],
    *,
    sibling: Sequence[Direction] = (),
    draws: int = DRAWS,
    seed: int = 0,
) -> list[Comparison]:
    """Every direction of a with every one of b that shares its layer, space and width.

    Args:
        a: Directions of one bank, its samples among them.
        b: Of another.
        sibling: Directions of a delta that is not in question, made as those of a were.
        draws: Of every random null.
        seed: Of nulls and bootstrap.

    Returns:
        In the order of a, then b; empty where nothing is comparable.
    """
    found: list[tuple[Direction, Direction, _Measured]] = []
    for first in a:
        for second in b:
            if SAMPLES not in (first.kind, second.kind) and _place(first) == _place(second):
                found.append((first, second, _measure(first, second, a, b, sibling, draws, seed)))
    families: dict[str, list[int]] = {}
    for i, (first, second, _) in enumerate(found):
        families.setdefault(f"{_label(first)} × {_label(second)}", []).append(i)
    results: dict[int, Comparison] = {}
    for family, members in families.items():
        adjusted = holm([found[i][2].p for i in members])
        for i, p in zip(members, adjusted, strict=True):
            results[i] = _judge(*found[i], family, p)
    return [results[i] for i in range(len(found))]


def overall(rows: Sequence[Comparison]) -> str:
    """One verdict for "distinct?" over the layers of a family: contradicted by any, supported only by all."""
    verdicts = {row.verdict for row in rows}
    if "contradicted" in verdicts:
        return "contradicted"
    return "supported" if verdicts == {"supported"} else "undecided"


@dataclass(frozen=True, slots=True)
class _Measured:
    overlap: float
    nulls: dict[str, Float64[np.ndarray, " n"]]
    bounds: tuple[float, float] | None
    noise: float
    p: float


def _measure(
    first: Direction,
    second: Direction,
    a: Sequence[Direction],
    b: Sequence[Direction],
    sibling: Sequence[Direction],
    draws: int,
    seed: int,
) -> _Measured:
    basis_a, basis_b = first.basis, second.basis
    observed = overlap(basis_a, basis_b)
    nulls = {"isotropic": isotropic(len(basis_a), basis_a.shape[1], basis_b.shape[1], draws, seed)}
    samples_a, samples_b = samples_of(first, a), samples_of(second, b)
    noise, kept = 0.0, 1.0
    for samples, other in ((samples_a, basis_b), (samples_b, basis_a)):
        if samples is not None:
            shuffled = permuted(samples, draws, seed)
            nulls["permuted"] = energies(shuffled, other)  # of both sides the second's
            length = np.sum(difference(samples) ** 2)
            share = float(np.mean(np.sum(shuffled**2, axis=1)) / length)
            noise, kept = max(noise, share), kept * max(1 - share, 1e-9)
    twins = [d for d in sibling if _place(d) == _place(first) and _label(d) == _label(first)]
    if twins:
        nulls["sibling"] = np.array([overlap(d.basis, basis_b) for d in twins])
    others = [
        d for d in a if _label(d) == _label(first) and d.layer != first.layer and _place(d)[1:] == _place(first)[1:]
    ]
    if others:
        nulls["other layer"] = np.array([overlap(d.basis, basis_b) for d in others])
    bounds = _bounds([(first, samples_a), (second, samples_b)], observed, seed)
    return _Measured(
        observed,
        nulls,
        # The bootstrap is around the diluted φ: undiluted, its upper bound is one for the directions themselves.
        None if bounds is None else (bounds[0], min(1.0, bounds[1] / kept)),
        noise,
        permutation_p(observed, nulls.get("permuted", nulls["isotropic"])),
    )


def _bounds(
    sides: Sequence[tuple[Direction, Samples | None]], observed: float, seed: int
) -> tuple[float, float] | None:
    """Bounds of φ over resampled prompts; weights have one value, an estimate that is no function of means none."""
    estimated = [(d, samples) for d, samples in sides if d.contrast is not None]
    if not estimated:
        return observed, observed
    columns: list[np.ndarray] = []
    spans, widths = [], []
    total = sum(len(samples.rows) for _, samples in estimated if samples is not None)
    start = 0
    for direction, samples in estimated:
        if samples is None or direction.kind != "difference":
            return None
        # Coordinates in the span of the rows, at most as many as there are prompts.
        span = np.linalg.svd(samples.rows.astype(np.float64), full_matrices=False)[2].T
        coordinates = samples.rows @ span
        n = len(coordinates)
        for group in [slice(0, n)] if samples.first is None else [slice(0, samples.first), slice(samples.first, n)]:
            block = np.zeros((total, span.shape[1] + 1))
            block[start : start + n][group] = np.column_stack([coordinates[group], np.ones(len(coordinates[group]))])
            columns.append(block)
        spans.append(span)
        widths.append(1 if samples.first is None else 2)
        start += n
    if total < CLUSTERS:
        return None
    ends = np.cumsum([block.shape[1] for block in columns])[:-1]

    def statistic(means: Float64[np.ndarray, "draws columns"]) -> Float64[np.ndarray, " draws"]:
        # The mean of a group is that of its column over that of its indicator, drawn or not.
        groups = [part[:, :-1] / np.maximum(part[:, -1:], 1e-300) for part in np.split(means, ends, axis=1)]
        vectors = []
        for width in widths:
            own, groups = groups[:width], groups[width:]
            vectors.append(own[0] - own[1] if width == 2 else own[0])
        if len(vectors) == 1:
            other = next(d for d, _ in sides if d is not estimated[0][0])
            return energies(vectors[0], spans[0].T @ other.basis)
        inner = np.sum((vectors[0] @ (spans[0].T @ spans[1])) * vectors[1], axis=1) ** 2
        return inner / (np.sum(vectors[0] ** 2, axis=1) * np.sum(vectors[1] ** 2, axis=1))

    _, low, high = bootstrap(np.concatenate(columns, axis=1), range(total), statistic, LEVEL, seed=seed)
    return low, high


def _judge(first: Direction, second: Direction, measured: _Measured, family: str, p_holm: float) -> Comparison:
    means = {name: float(values.mean()) for name, values in measured.nulls.items()}
    largest = max(means, key=means.__getitem__)
    low, high = (None, None) if measured.bounds is None else (x - means[largest] for x in measured.bounds)
    verdict, reason = "undecided", None
    if any(d.source.get("input") for d in (first, second)) and not {"permuted", "sibling"} & set(means):
        reason = "unrelated deltas share the subspaces of their inputs: needs a sibling or activations"
    elif low is None or high is None:
        reason = f"no interval: needs a difference of means over at least {CLUSTERS} prompts"
    elif low > 0 and p_holm <= ALPHA:  # also where the excess is small: it is there
        verdict = "contradicted"
    elif high < MARGIN and measured.noise <= NOISY:
        verdict = "supported"
        if measured.overlap - means["isotropic"] >= MARGIN:
            reason = f"they do overlap, but no more than the {largest} null"
    elif measured.noise > NOISY:
        reason = "most of a difference of means is noise: needs more prompts"
    else:
        reason = "the interval holds both answers" if low <= 0 else "not significant over the layers"
    return Comparison(
        a=first.id,
        b=second.id,
        layer=first.layer,
        family=family,
        width=first.vectors.shape[1],
        ranks=(first.basis.shape[1], second.basis.shape[1]),
        overlap=measured.overlap,
        angles=principal_angles(first.basis, second.basis),
        nulls=means,
        largest=largest,
        low=low,
        high=high,
        noise=measured.noise,
        p=measured.p,
        p_holm=p_holm,
        verdict=verdict,
        reason=reason,
    )


def _place(d: Direction) -> tuple[int | None, str, int]:
    return d.layer, d.space, d.vectors.shape[1]


def _label(d: Direction) -> str:
    """Kind and, of a matrix, side: the same in every layer."""
    side = d.source.get("side")
    return d.kind if side is None or d.kind == "writers" else f"{d.kind}.{side}"
