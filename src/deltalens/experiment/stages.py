"""Two stages of training, root → middle → tuned: what the second shares with the first, undoes, and adds (ours).

Per matrix Δ₁ = W_middle − W_root, Δ₂ = W_tuned − W_middle and Δ = Δ₁ + Δ₂; what is shared, undone, repeated, turned or
new in Δ₂, and beside which nulls, is defined in `experiment.inside`. The other layer of a null is the one before; of
the first, the last. Streamed, one matrix of the three checkpoints at a time: float32 differences, float64 sums.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.pair import Pair, Row
from deltalens.checkpoint.read import BLOCK_BYTES
from deltalens.direction.compare import overlap, principal_angles
from deltalens.errors import Refused
from deltalens.experiment.inside import SHARES, Leading, Null, leading, shares, wide
from deltalens.spectrum.delta import Delta, Sums
from deltalens.store.results import SUMMARY

METHODS = {
    "cosine": "⟨Δ₁, Δ₂⟩/(‖Δ₁‖‖Δ₂‖)",
    "cosine_rounding": "−mn·noise_sigma²/(‖Δ₁‖‖Δ₂‖): the most that rounding of the middle explains",
    "energy_ratio": "‖Δ‖²/(‖Δ₁‖² + ‖Δ₂‖²)",
    "cancelled": "max(0, −⟨Δ₁, Δ₂⟩/‖Δ₁‖²): how much of Δ₁ is taken back; above 1 Δ₂ goes beyond the root",
    "remaining": "(1 + ⟨Δ₁, Δ₂⟩/‖Δ₁‖²)²: energy of Δ along Δ₁ over ‖Δ₁‖²",
    "shared_left": "‖PΔ₂‖²/‖Δ₂‖²",
    "shared_right": "‖Δ₂Q‖²/‖Δ₂‖²; unrelated deltas on the same inputs share this side too",
    "shared": "‖PΔ₂Q‖²/‖Δ₂‖²; unrelated deltas on the same inputs share the right side too",
    "undone": "of shared, against Δ₁ₖ",
    "repeated": "of shared, along Δ₁ₖ",
    "turned": "of shared, at right angles to Δ₁ₖ",
    "left_only": "‖PΔ₂(1 − Q)‖²/‖Δ₂‖²",
    "right_only": "‖(1 − P)Δ₂Q‖²/‖Δ₂‖²",
    "new": "‖(1 − P)Δ₂(1 − Q)‖²/‖Δ₂‖²",
    "overlap_left": "φ of the leading left subspaces of Δ₁ and Δ₂",
    "overlap_right": "φ of the leading right subspaces of Δ₁ and Δ₂",
    "angle_left": "smallest principal angle of the leading left subspaces, degrees",
    "angle_right": "smallest principal angle of the leading right subspaces, degrees",
}
"""Every metric and what it is; the six shares from `undone` to `new` sum to 1."""

_SUBSPACES = tuple(METHODS)[-4:]
_BARE = ("cosine_rounding", "energy_ratio", "turned", "left_only", "right_only")
"""Metrics without a null of their own: functions of those that have one."""

SPREAD = 1.96
"""Standard deviations that hold 95 % of a sum over many entries of random sign."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """One matrix over both stages.

    Attributes:
        name: Canonical.
        layer: Its layer, None outside the blocks.
        kind: Its kind.
        ranks: k₁ and k₂, how many vectors count as leading.
        spikes: Whether each of them counts spikes; else it is 16, or the numerical rank where that is lower.
        first_sq: ‖Δ₁‖².
        second_sq: ‖Δ₂‖².
        whole_sq: ‖Δ‖².
        product: ⟨Δ₁, Δ₂⟩.
        flips: ΣΔ₁²Δ₂² over entries, the variance of ⟨Δ₁, Δ₂⟩ under random signs.
        rounding: mn·noise_sigma² of the middle. Its rounding stands in both deltas with opposite signs, unless the
            second stage started from the rounded weights.
        values: By metric; None where it would divide by a zero delta.
        nulls: By metric, the deciding null: of the cosine the |cosine|, of what is cancelled the most and of what
            remains the least that 95 % of random signs of Δ₂ give; of angles the smallest.
        angles: All principal angles of the leading subspaces in degrees, ascending: left, right.
    """

    name: str
    layer: int | None
    kind: str
    ranks: tuple[int, int]
    spikes: tuple[bool, bool]
    first_sq: float
    second_sq: float
    whole_sq: float
    product: float
    flips: float
    rounding: float
    values: dict[str, float | None]
    nulls: dict[str, Null]
    angles: tuple[tuple[float, ...], tuple[float, ...]]


@dataclass(frozen=True, slots=True)
class Stages:
    """A three-way decomposition.

    Attributes:
        sources: Root, middle and tuned as they were given.
        matrices: In table order.
        values: By metric, over all matrices. Cosine, energy_ratio, cancelled and remaining are those of all matrices
            joined into one vector, shares are of Σ‖Δ₂‖², overlaps and angles are means with the energy shares in both
            deltas as weights.
        nulls: The same of the deciding nulls.
        left_out: What is no matrix of both stages, and why.
    """

    sources: tuple[str, str, str]
    matrices: tuple[Matrix, ...]
    values: dict[str, float | None]
    nulls: dict[str, float]
    left_out: tuple[tuple[str, str], ...]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Rows of `store.results.SUMMARY`: arm `all`, whose low and high hold 90 % of the matrices, then each matrix.

        Each metric is followed by its deciding null as `METRIC_null`, whose method names it.
        """
        found = []
        for metric, value in self.values.items():
            each = np.array([m.values[metric] for m in self.matrices if m.values[metric] is not None], np.float64)
            low, high = np.quantile(each, [0.05, 0.95]).tolist() if len(each) else (None, None)
            spread = {"n": len(self.matrices), "low": low, "high": high}
            found.append(_row("all", metric, value, f"{METHODS[metric]}; low, high: 90 % of matrices", **spread))
            if metric in self.nulls:
                found.append(_row("all", f"{metric}_null", self.nulls[metric], "deciding nulls", n=len(self.matrices)))
        for m in self.matrices:
            k = f"k = {m.ranks[0]}, {m.ranks[1]}"
            for metric, value in m.values.items():
                found.append(_row(m.name, metric, value, f"{METHODS[metric]}; {k}"))
                if metric in m.nulls:
                    found.append(_row(m.name, f"{metric}_null", *m.nulls[metric]))
        return found


def stages(root: str | os.PathLike[str], middle: str | os.PathLike[str], tuned: str | os.PathLike[str]) -> Stages:
    """Decompose root → middle → tuned.

    Args:
        root: Where the first stage starts: a local path, `hub-id[@revision]` or `family:NAME`.
        middle: Where it ends and the second starts.
        tuned: Where that ends.

    Raises:
        BadInput: A checkpoint cannot be opened.
        Refused: Two of them are not comparable, or no matrix is in all three.
    """
    chosen, left_out = _common(Pair.open(root, middle), Pair.open(middle, tuned))
    groups: dict[Any, list[tuple[Row, Row]]] = {}
    for first, second in chosen:
        groups.setdefault((place(first.name.name, first.name.layer), first.shape), []).append((first, second))
    found: dict[str, Matrix] = {}
    for group in groups.values():
        before: Leading | None = None
        if len(group) > 1:
            delta, sums = _scanned(group[-1][0])
            before = leading(group[-1][0], delta, sums) if sums.finite else None
        for first, second in group:
            matrix, before = _matrix(first, second, before)
            if matrix is None:
                left_out.append((first.name.name, "NaN or Inf"))
            else:
                found[matrix.name] = matrix
    if not found:
        raise Refused(f"no matrix of {root}, {middle} and {tuned} can be compared")
    matrices = tuple(found[first.name.name] for first, _ in chosen if first.name.name in found)
    return Stages((str(root), str(middle), str(tuned)), matrices, *_pooled(matrices), tuple(left_out))


def place(name: str, layer: int | None) -> str:
    """The name of a matrix without its layer: the same for whatever takes its place in other layers."""
    return name if layer is None else name.replace(f".{layer}.", ".*.", 1)


def _common(one: Pair, two: Pair) -> tuple[list[tuple[Row, Row]], list[tuple[str, str]]]:
    """Matrices that both stages measure and read alike from the middle, and the rest with a reason."""
    second = {row.name.name: row for row in two.rows}
    chosen, left_out = [], []
    for row in one.rows:
        other = second.pop(row.name.name, None)
        if other is None:
            left_out.append((row.name.name, "only in the first stage"))
        elif worse := next((r for r in (row, other) if r.status != "measured"), None):
            left_out.append((row.name.name, worse.reason or worse.status))
        elif row.tuned != other.base or row.transposed != other.transposed:
            left_out.append((row.name.name, "the stages read different parts of the middle"))
        else:
            chosen.append((row, other))
    return chosen, left_out + [(name, "only in the second stage") for name in second]


def _scanned(row: Row) -> tuple[Delta, Sums]:
    delta = Delta(row, BLOCK_BYTES)
    return delta, delta.scan()


def _matrix(one: Row, two: Row, before: Leading | None) -> tuple[Matrix | None, Leading | None]:
    """One matrix, and the leading vectors of its Δ₁ for the next layer; None for what is not finite."""
    (first, first_sums), (second, second_sums) = _scanned(one), _scanned(two)
    here = leading(one, first, first_sums) if first_sums.finite else None
    if here is None or not second_sums.finite:
        return None, here
    later = leading(two, second, second_sums)
    a, b = first_sums.delta_sq, second_sums.delta_sq
    product = whole = flips = 0.0
    for x, y in zip(wide(first), wide(second), strict=True):
        product += float(np.vdot(x, y))
        whole += float(np.sum((x + y) ** 2))
        flips += float(np.sum((x * y) ** 2))
    rounding = first.rows * first.cols * here.noise**2
    values, bounds = _along(a, b, whole, product, rounding), _along_bounds(a, b, flips)
    nulls: dict[str, Null] = {metric: (bound, "sign flip, 95 %") for metric, bound in bounds.items()}
    values |= dict.fromkeys((*SHARES, *_SUBSPACES))
    angles: dict[str, tuple[float, ...]] = {"left": (), "right": ()}
    if b:
        for metric, (value, null) in shares(here, before, second, b, first.tall).items():
            values[metric] = value
            if metric not in _BARE:
                nulls[metric] = null
    if a and b:
        for side, end in zip(("left", "right") if first.tall else ("right", "left"), ("long", "short"), strict=True):
            own, others = getattr(here, end)[:, : here.k], getattr(later, end)[:, : later.k]
            elsewhere = None if before is None else getattr(before, end)[:, : here.k]
            angles[side] = principal_angles(own, others)
            values |= {f"overlap_{side}": overlap(own, others), f"angle_{side}": angles[side][0]}
            nulls[f"overlap_{side}"], nulls[f"angle_{side}"] = _subspace_nulls(here.k, others, elsewhere)
    ranks, spikes = (here.k, later.k), (here.spikes, later.spikes)
    norms = (a, b, whole, product, flips, rounding)
    sides = angles["left"], angles["right"]
    return Matrix(one.name.name, one.name.layer, one.name.kind, ranks, spikes, *norms, values, nulls, sides), here


def _along(a: float, b: float, whole: float, product: float, rounding: float) -> dict[str, float | None]:
    """What follows from the norms and the product of two deltas, each a matrix or all of them joined."""
    length = (a * b) ** 0.5
    return {
        "cosine": product / length if length else None,
        "cosine_rounding": -rounding / length if length else None,
        "energy_ratio": whole / (a + b) if a + b else None,
        "cancelled": max(0.0, -product / a) if a else None,
        "remaining": (1 + product / a) ** 2 if a else None,
    }


def _along_bounds(a: float, b: float, flips: float) -> dict[str, float]:
    """Within which 95 % of random signs of Δ₂ keep |cosine|, cancelled (below) and remaining (above)."""
    if not a or not b:
        return {}
    size = SPREAD * flips**0.5
    return {"cosine": size / (a * b) ** 0.5, "cancelled": size / a, "remaining": max(0.0, 1 - size / a) ** 2}


def _subspace_nulls(
    k: int, others: Float64[np.ndarray, "d l"], elsewhere: Float64[np.ndarray, "d j"] | None
) -> tuple[Null, Null]:
    """The deciding nulls of the overlap of k directions with `others` and of their smallest angle."""
    d, other = others.shape
    overlaps = [(max(k, other) / d, "isotropic")]
    smallest = [(_chance_angle(d, k, other), "isotropic")]
    if elsewhere is not None and elsewhere.shape[1]:
        overlaps.append((overlap(elsewhere, others), "other layer"))
        smallest.append((principal_angles(elsewhere, others)[0], "other layer"))
    return max(overlaps), min(smallest)


@lru_cache(maxsize=256)
def _chance_angle(width: int, k: int, other: int) -> float:
    """Mean smallest angle in degrees between a subspace and a random one, of eight seeded draws."""
    if k + other > width:
        return 0.0
    small, large = sorted((k, other))
    rng = np.random.default_rng(0)
    tops = (np.linalg.qr(rng.standard_normal((width, small)))[0][:large] for _ in range(8))
    cosines = [min(1.0, np.linalg.svd(top, compute_uv=False)[0]) for top in tops]
    return float(np.degrees(np.mean(np.arccos(cosines))))


def _pooled(matrices: Sequence[Matrix]) -> tuple[dict[str, float | None], dict[str, float]]:
    """All matrices as one, values and deciding nulls alike."""
    sums = [sum(getattr(m, name) for m in matrices) for name in ("first_sq", "second_sq", "whole_sq", "product")]
    a, b = sums[:2]
    values = _along(*sums, sum(m.rounding for m in matrices))
    nulls = _along_bounds(a, b, sum(m.flips for m in matrices))
    for metric in (*SHARES, *_SUBSPACES):
        held = [m for m in matrices if m.values[metric] is not None]
        weights = [m.second_sq if metric in SHARES else m.first_sq / a + m.second_sq / b for m in held]
        values[metric] = float(np.average([m.values[metric] for m in held], weights=weights)) if held else None
        if held and metric not in _BARE:
            nulls[metric] = float(np.average([m.nulls[metric][0] for m in held], weights=weights))
    return values, nulls


def _row(arm: str, metric: str, value: float | None, method: str, n: int = 1, **more: float | None) -> dict[str, Any]:
    found = {"arm": arm, "metric": metric, "n": n, "value": value, "method": method, **more}
    return dict.fromkeys(SUMMARY.names) | found
