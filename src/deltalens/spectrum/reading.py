"""What the numbers of a RUN amount to: the words of docs/measures.md with their bounds, and what chance would show."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from deltalens.spectrum.nulls import survives
from deltalens.store.run import Run

Row = Mapping[str, Any]

LEADING = 20
"""A change is asked to be low-rank within its first q/20 directions."""

LOW_RANK = (0.2, 0.5)
"""Share of the squared change in the leading spikes: not low-rank up to the first, low-rank from the second."""

EXPLAINED = (-0.05, 0.12)
"""Observed minus predicted zero share inside which dense updates of every tested shape lie, both ends included."""

CHANCE = (0.8, 1.25)
"""Observed over null inside which a number is "about chance"."""

EQUAL = 1.05
"""Two changes are of equal size when neither is more than this times the other."""

NAMES = {
    "gaussian": "Gaussian",
    "laplace": "Laplace",
    "permuted": "permuted within binades",
    "proportional": "proportional to |w|",
}
"""What the stored nulls are called."""


@dataclass(frozen=True, slots=True)
class Leading:
    """What the leading spikes of a run hold.

    Attributes:
        share: Of Σσ², in the first min(spikes, ⌈q/20⌉) σ, over all matrices with a spike count together.
        weak: Share of Σσ² in matrices with a signal to noise below 1.
        matrices: How many were counted.
    """

    share: float
    weak: float
    matrices: int

    @property
    def noisy(self) -> bool:
        """Whether half of the squared change is no stronger than rounding, which leaves the question undecided."""
        return self.weak >= 0.5

    @property
    def word(self) -> str:
        """One of "low-rank", "not low-rank" and "undecided", by docs/measures.md §7."""
        if self.noisy or LOW_RANK[0] < self.share < LOW_RANK[1]:
            return "undecided"
        return "low-rank" if self.share >= LOW_RANK[1] else "not low-rank"


def leading(run: Run) -> Leading | None:
    """The share that the leading spikes hold; None where nothing changed or nothing was counted."""
    total = held = weak = 0.0
    count = 0
    for row in run.matrices.to_pylist():
        if not row["norm_delta"] or row["spikes"] is None:
            continue
        energy = np.square(run.spectrum(row["name"]))
        whole = float(energy.sum())
        count += 1
        total += whole
        held += float(energy[: min(row["spikes"], math.ceil(len(energy) / LEADING))].sum())
        weak += whole if row["snr"] is not None and row["snr"] < 1 else 0.0
    return Leading(held / total, weak / total, count) if total > 0 else None


def zero_word(observed: int | float | None, predicted: int | float | None) -> str | None:
    """The word for a share of unchanged entries beside the one that rounding predicts, None without a prediction."""
    if observed is None or predicted is None:
        return None
    gap, slack = observed - predicted, 1e-12  # .35 − .40 is not −.05 in binary; a bound must not hang on that
    if gap > EXPLAINED[1] + slack:
        return "sparser"
    return "denser" if gap < EXPLAINED[0] - slack else "explained by precision"


def chance(row: Row, sides: str) -> float | None:
    """k/m for the `left` side, k/n for the `right` one, their product for `both`; None without context."""
    k = row["context_k"]
    if not k:
        return None
    left, right = min(1.0, k / row["rows"]), min(1.0, k / row["cols"])
    return {"left": left, "right": right, "both": left * right}[sides]


def principal(rows: Sequence[Row]) -> tuple[float, float] | None:
    """Principal energy and k²/(mn), both weighted by ‖Δ‖² over the matrices; None without context."""
    known = [(row, null) for row in rows if row["principal_energy"] is not None and (null := chance(row, "both"))]
    whole = sum(row["norm_delta"] ** 2 for row, _ in known)
    if whole <= 0:
        return None
    held = sum(row["principal_energy"] * row["norm_delta"] ** 2 for row, _ in known)
    return held / whole, sum(null * row["norm_delta"] ** 2 for row, null in known) / whole


def equal_size(first: float | None, second: float | None) -> bool:
    """Whether two relative changes may be compared: neither is more than 5 % larger than the other."""
    return bool(first and second) and max(first or 0.0, second or 0.0) <= EQUAL * min(first or 0.0, second or 0.0)


@dataclass(frozen=True, slots=True)
class Against:
    """One statistic against one null, over the matrices tested.

    Attributes:
        null: Name of the null, with its calibration where that is not the norm.
        tested: Matrices with a z.
        outside: Those of them that the draws do not explain, by `spectrum.nulls.survives`.
        mean: Median of the null's mean.
        z: Median z.
    """

    null: str
    tested: int
    outside: int
    mean: float | None
    z: float | None

    @property
    def survived(self) -> bool:
        """Whether the draws explain fewer than half of the matrices tested."""
        return 2 * self.outside > self.tested


def against(rows: Sequence[Row] | None) -> dict[str, tuple[Against, ...]]:
    """Every statistic of nulls.parquet in the order in which it is stored, against each null; none where none ran."""
    groups: dict[str, dict[str, list[Row]]] = {}
    beyond = survives([dict(row) for row in rows or []])
    for row in rows or []:
        if row["observed"] is not None and row["mean"] is not None:  # a refused or empty statistic says nothing
            groups.setdefault(row["statistic"], {}).setdefault(null_name(row), []).append(row)
    return {
        statistic: tuple(_against(null, held, beyond) for null, held in by_null.items())
        for statistic, by_null in groups.items()
    }


def decided(of: Sequence[Against]) -> tuple[Against, ...]:
    """The nulls with at least one z: only these can be survived or not."""
    return tuple(one for one in of if one.tested)


def beyond_nulls(of: Sequence[Against]) -> bool:
    """Whether a statistic survives every null that it was held against."""
    return bool(decided(of)) and all(one.survived for one in decided(of))


def null_name(row: Row) -> str:
    """What a null is called, its calibration added where it is not the norm."""
    name = NAMES.get(row["null"], row["null"])
    return name if row["calibration"] == "norm" else f"{name} (by {row['calibration']})"


def _against(null: str, rows: Sequence[Row], beyond: Mapping[tuple[str, str], tuple[str, ...]]) -> Against:
    known = [row for row in rows if row["z"] is not None]
    outside = sum(_label(row) in beyond[row["name"], row["statistic"]] for row in known)
    means, zs = [r["mean"] for r in rows], [r["z"] for r in known]
    return Against(null, len(known), outside, middle(means), middle(zs))


def _label(row: Row) -> str:
    """What `survives` calls a null."""
    return row["null"] if row["calibration"] == "norm" else f"{row['null']}/{row['calibration']}"


def middle(values: Sequence[float | None]) -> float | None:
    """Median of the values that there are."""
    known = [value for value in values if value is not None]
    return float(median(known)) if known else None
