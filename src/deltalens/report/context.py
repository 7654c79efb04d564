"""The change against its base: every number beside the value that a change without structure would show."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from deltalens.checkpoint.names import KINDS
from deltalens.report.words import Row, number, percent
from deltalens.spectrum import reading
from deltalens.spectrum.reading import chance


@dataclass(frozen=True, slots=True)
class Statistic:
    """One number of the context pass that has a null.

    Attributes:
        key: Its column in `matrices.parquet`.
        head: Its short name.
        null: The same for a change without structure, None where a row does not say.
        share: Whether it is read as a percentage.
    """

    key: str
    head: str
    null: Callable[[Row], float | None]
    share: bool = True


def _stored(key: str) -> Callable[[Row], float | None]:
    return lambda row: row[key]


def _by_chance(sides: str) -> Callable[[Row], float | None]:

    return lambda row: chance(row, sides)


STATISTICS = (
    Statistic("principal_energy", "principal energy", _by_chance("both")),
    Statistic("left_energy", "output-side energy", _by_chance("left")),
    Statistic("right_energy", "input-side energy", _by_chance("right")),
    Statistic("spectral_energy", "κ", lambda row: 1.0, share=False),
    Statistic("left_rotation", "output rotation", _stored("left_rotation_null")),
    Statistic("right_rotation", "input rotation", _stored("right_rotation_null")),
    Statistic("left_angle", "output angle", _stored("left_angle_null"), share=False),
    Statistic("right_angle", "input angle", _stored("right_angle_null"), share=False),
    Statistic("spectral_drift", "spectral drift", _stored("spectral_drift_null"), share=False),
)
"""What is shown over its null, in the order of the figure."""

MASKS = [(mask, alpha) for mask in ("low", "principal") for alpha in (10, 30, 50)]


def ratio_key(statistic: Statistic) -> str:
    """What the ratio of a statistic to its null is called on the page."""
    return f"{statistic.key}_ratio"


def ratios(row: Row) -> dict[str, float | None]:
    """Each statistic of one matrix over its null, None where either is missing or the null is zero."""
    found: dict[str, float | None] = {}
    for statistic in STATISTICS:
        value, null = row[statistic.key], statistic.null(row) if row[statistic.key] is not None else None
        found[ratio_key(statistic)] = value / null if value is not None and null else None
    return found


def has_context(rows: Sequence[Row]) -> bool:
    """Whether the context pass ran on any of the matrices."""
    return any(row[statistic.key] is not None for row in rows for statistic in STATISTICS)


def middle(rows: Sequence[Row], key: str) -> float | None:
    """Median of a column over the rows that have it."""
    return reading.middle([row[key] for row in rows])


def by_kind(rows: Sequence[Row]) -> list[tuple[str, list[tuple[str, str]]]]:
    """The context table: for each kind, medians as (observed, beside its null) in the order of `STATISTICS`, scaling.

    The null is the median over the same matrices.
    """
    lines = []
    kinds = {row["kind"] for row in rows}
    for kind in [*(k for k in KINDS if k in kinds), *sorted(kinds - set(KINDS))]:
        chosen = [row for row in rows if row["kind"] == kind]
        if has_context(chosen):
            cells = [_beside(chosen, statistic) for statistic in STATISTICS]
            lines.append((kind, [*cells, _scaling(chosen)]))
    return lines


def _beside(rows: Sequence[Row], statistic: Statistic) -> tuple[str, str]:
    pairs = [(row[statistic.key], statistic.null(row)) for row in rows if row[statistic.key] is not None]
    full = [(value, null) for value, null in pairs if null is not None]
    show = percent if statistic.share else number
    if not full:  # a number without its null is not printed
        return show(None), show(None)
    return show(float(median(v for v, _ in full))), show(float(median(n for _, n in full)))


def _scaling(rows: Sequence[Row]) -> tuple[str, str]:
    full = [row for row in rows if row["scaling"] is not None and row["scaling_null_sd"] is not None]
    spread = middle(full, "scaling_null_sd")
    if spread is None:
        return number(None), number(None)
    return number(middle(full, "scaling"), 5), f"1 ± {number(spread, 2)}"


def masks(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Median overlap of the changed entries with each mask, beside its expectation given |w| and beside α."""
    lines = []
    for mask, alpha in MASKS:
        key = f"mask_{mask}_{alpha}"
        full = [row for row in rows if row[key] is not None and row[f"{key}_expected"] is not None]
        if full:
            lines.append({
                "mask": "low magnitude" if mask == "low" else "principal",
                "alpha": alpha / 100,
                "matrices": len(full),
                "observed": middle(full, key),
                "expected": middle(full, f"{key}_expected"),
            })  # fmt: skip
    return lines
