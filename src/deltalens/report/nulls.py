"""The null ensemble on the page: which statistics a structureless update, seen through the same storage, also shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from deltalens.report.glossary import named
from deltalens.report.words import Row
from deltalens.spectrum.nulls import survives

DRAWN = 60
"""Matrices per run in the forest plot; the table counts all."""

NAMES = {
    "gaussian": "Gaussian",
    "laplace": "Laplace",
    "permuted": "permuted within binades",
    "proportional": "proportional to |w|",
}
"""What the stored nulls are called."""


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


@dataclass(frozen=True, slots=True)
class Outcome:
    """One statistic against every null that it was held against.

    Attributes:
        statistic: Its column.
        head: Its short name.
        unit: As in the glossary.
        observed: Median over the matrices tested.
        against: One per null.
    """

    statistic: str
    head: str
    unit: str
    observed: float | None
    against: tuple[Against, ...]

    @property
    def decided(self) -> tuple[Against, ...]:
        """The nulls with at least one z: only these can be survived or not."""
        return tuple(one for one in self.against if one.tested)

    @property
    def survives(self) -> bool:
        """Whether it survives every null that it was held against."""
        return bool(self.decided) and all(one.survived for one in self.decided)

    @property
    def word(self) -> str:
        """Which nulls it survives, in words."""
        if not self.decided:
            return "no spread in the null"
        kept = [one.null for one in self.decided if one.survived]
        if not kept:
            return "in part" if any(one.outside for one in self.decided) else "no null"
        return "every null" if len(kept) == len(self.decided) > 1 else ", ".join(kept)


def null_name(row: Row) -> str:
    """What a null is called, its calibration added where it is not the norm."""
    name = NAMES.get(row["null"], row["null"])
    return name if row["calibration"] == "norm" else f"{name} (by {row['calibration']})"


def outcomes(rows: Sequence[Row] | None) -> list[Outcome]:
    """Every statistic of nulls.parquet in the order in which it is stored; none where no ensemble ran."""
    groups: dict[str, dict[str, list[Row]]] = {}
    beyond = survives([dict(row) for row in rows or []])
    for row in rows or []:
        if row["observed"] is not None and row["mean"] is not None:  # a refused or empty statistic says nothing
            groups.setdefault(row["statistic"], {}).setdefault(null_name(row), []).append(row)
    found = []
    for statistic, by_null in groups.items():
        column = named(statistic)
        observed = {row["name"]: row["observed"] for held in by_null.values() for row in held}
        against = tuple(_against(null, held, beyond) for null, held in by_null.items())
        found.append(Outcome(statistic, column.head, column.unit, _median(list(observed.values())), against))
    return found


def _against(null: str, rows: Sequence[Row], beyond: Mapping[tuple[str, str], tuple[str, ...]]) -> Against:
    known = [row for row in rows if row["z"] is not None]
    outside = sum(_label(row) in beyond[row["name"], row["statistic"]] for row in known)
    return Against(null, len(known), outside, _median([r["mean"] for r in rows]), _median([r["z"] for r in known]))


def _label(row: Row) -> str:
    """What `survives` calls a null."""
    return row["null"] if row["calibration"] == "norm" else f"{row['null']}/{row['calibration']}"


def _median(values: list[float]) -> float | None:
    return float(median(values)) if values else None


def nulls_of(all_tested: Sequence[Sequence[Outcome]]) -> list[str]:
    """Every null that any run was held against, in the order found."""
    return list(dict.fromkeys(one.null for run in all_tested for line in run for one in line.against))


def forest(rows: Sequence[Row] | None) -> dict[str, Any]:
    """The forest plot of one run: per statistic, the rows as [matrix, null, observed, mean, sd, z].

    Matrices and nulls are named once, and rows refer to them by their place.
    """
    names: dict[str, int] = {}
    labels: dict[str, int] = {}
    found: dict[str, list[list[Any]]] = {}
    for row in rows or []:
        if row["observed"] is None or row["mean"] is None:
            continue
        if row["name"] not in names and len(names) == DRAWN:
            continue
        matrix = names.setdefault(row["name"], len(names))
        null = labels.setdefault(null_name(row), len(labels))
        found.setdefault(row["statistic"], []).append([matrix, null, row["observed"], row["mean"], row["sd"], row["z"]])
    return {"matrices": list(names), "nulls": list(labels), "rows": found}
