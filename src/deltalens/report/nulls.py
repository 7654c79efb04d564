"""The null ensemble on the page: which statistics a structureless update, seen through the same storage, also shows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from deltalens.report.glossary import named
from deltalens.report.words import Row
from deltalens.spectrum.reading import Against, against, beyond_nulls, decided, middle, null_name

DRAWN = 60
"""Matrices per run in the forest plot; the table counts all."""


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
        return decided(self.against)

    @property
    def survives(self) -> bool:
        """Whether it survives every null that it was held against."""
        return beyond_nulls(self.against)

    @property
    def word(self) -> str:
        """Which nulls it survives, in words."""
        if not self.decided:
            return "no spread in the null"
        kept = [one.null for one in self.decided if one.survived]
        if not kept:
            return "in part" if any(one.outside for one in self.decided) else "no null"
        return "every null" if len(kept) == len(self.decided) > 1 else ", ".join(kept)


def outcomes(rows: Sequence[Row] | None) -> list[Outcome]:
    """Every statistic of nulls.parquet in the order in which it is stored; none where no ensemble ran."""
    found = []
    for statistic, held in against(rows).items():
        column = named(statistic)
        observed = {
            row["name"]: row["observed"]
            for row in rows or []
            if row["statistic"] == statistic and row["mean"] is not None
        }
        found.append(Outcome(statistic, column.head, column.unit, middle(list(observed.values())), held))
    return found


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
