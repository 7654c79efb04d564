"""Where the squared change went: shares and sizes by kind and by status, each tensor counted once."""

from collections.abc import Mapping, Sequence
from typing import Any

from deltalens.report.words import Row
from deltalens.store.schema import COUNTED

VECTORS, UNMEASURED = "vectors (norm gains, biases)", "unmeasured tensors"
_STATUSES = ("measured", "vector", "unmeasured", "refused", "unpaired", "tied", "buffer")


def shares(rows: Sequence[Row], ledger: Sequence[Row]) -> dict[str, float]:
    """Share of the squared delta norm by kind, largest first; they sum to 1, or to 0 where nothing changed."""
    found = _by_kind(rows, ledger, "share")
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def entries(rows: Sequence[Row], ledger: Sequence[Row]) -> dict[str, float]:
    """Share of the compared entries by kind: what the shares of the squared change are read against."""
    counts = _by_kind(rows, ledger, "elements")
    total = sum(counts.values())
    return {kind: count / total for kind, count in counts.items()} if total else {}


def _by_kind(rows: Sequence[Row], ledger: Sequence[Row], key: str) -> dict[str, float]:
    kinds = {row["stored_name"]: row["kind"] for row in rows}
    sums: dict[str, float] = {}
    for row in ledger:
        if row["status"] in COUNTED:
            kind = VECTORS if row["status"] == "vector" else kinds.get(row["name"], UNMEASURED)
            sums[kind] = sums.get(kind, 0.0) + (row[key] or 0)
    return sums


def by_status(ledgers: Sequence[Sequence[Row]]) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each status that occurs: tensors, elements and share in each run."""
    lines = []
    for status in (*_STATUSES, None):  # None is the sum
        cells = []
        for ledger in ledgers:
            rows = [row for row in ledger if status in (None, row["status"])]
            sums = {key: sum(row[key] or 0 for row in rows) for key in ("elements", "share")}
            cells.append({"tensors": len(rows), **sums})
        if any(cell["tensors"] for cell in cells):
            lines.append((status or "sum", cells))
    return lines


def across(
    found: Sequence[Mapping[str, float]], sizes: Sequence[Mapping[str, float]]
) -> list[tuple[str, list[tuple[float | None, float | None]]]]:
    """For each kind, largest share first: share of the squared change and of the entries in each run."""
    order = list(dict.fromkeys(kind for one in found for kind in one))
    order.sort(key=lambda kind: -max(one.get(kind, 0.0) for one in found))
    return [(kind, [(one.get(kind), size.get(kind)) for one, size in zip(found, sizes, strict=True)]) for kind in order]


def without_spectrum(ledger: Sequence[Row], limit: int) -> tuple[list[Row], int]:
    """Tensors without a spectrum, the refused and those with the most change first, and how many are not listed."""
    rows = [row for row in ledger if row["status"] != "measured"]
    rows.sort(key=lambda row: (row["status"] != "refused", -(row["share"] or 0.0)))
    return rows[:limit], max(0, len(rows) - limit)
