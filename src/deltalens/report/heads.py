"""The change head by head: a map of layers and heads for each slice of attention."""

from collections.abc import Sequence
from typing import Any

from deltalens.report.words import Row

SLICES = {
    "q": "q: query rows",
    "k": "k: key rows",
    "v": "v: value rows",
    "o": "o: output columns",
    "qk": "QK product (gauge-free)",
    "ov": "OV product (gauge-free)",
}
"""What the stored slices are called. Products do not change when a head's inner basis is rotated; slices do."""

VALUES = {
    "relative_change": ("relative change", "percent"),
    "share": ("share of attention's ‖Δ‖²", "percent"),
}
"""What the map can show of a slice; a raw rank without its denoised partner is not among it."""


def place(row: Row) -> int | None:
    """The column of a row: its head, or its key-value group where a slice has one per group."""
    return row["group"] if row["head"] is None else row["head"]


def slices(rows: Sequence[Row] | None) -> dict[str, dict[str, Any]]:
    """Per slice, the layers, the heads and one grid of six-digit numbers per value; empty without heads.

    A slice that no known name fits keeps its stored one.
    """
    groups: dict[str, list[Row]] = {}
    for row in rows or []:
        if row["layer"] is not None and place(row) is not None:
            groups.setdefault(row["kind"], []).append(row)
    ordered = [*(k for k in SLICES if k in groups), *sorted(groups.keys() - set(SLICES))]
    return {kind: _grids(groups[kind]) for kind in ordered}


def _grids(rows: Sequence[Row]) -> dict[str, Any]:
    layers, heads = (
        sorted({row["layer"] for row in rows}),
        sorted({head for row in rows if (head := place(row)) is not None}),
    )
    at = {layer: i for i, layer in enumerate(layers)}, {head: i for i, head in enumerate(heads)}
    grids: dict[str, list[list[float | None]]] = {key: [[None] * len(heads) for _ in layers] for key in VALUES}
    for row in rows:
        head = place(row)
        for key, grid in grids.items():
            if row[key] is not None and head is not None:
                grid[at[0][row["layer"]]][at[1][head]] = float(f"{row[key]:.6g}")
    return {"layers": layers, "heads": heads, **grids}


def choices(found: Sequence[dict[str, dict[str, Any]]]) -> list[list[str]]:
    """The slices that any run has, as [key, label], in the order of `SLICES`."""
    kinds = list(dict.fromkeys(kind for one in found for kind in one))
    order = list(SLICES)
    kinds.sort(key=lambda kind: order.index(kind) if kind in SLICES else len(order))
    return [[kind, SLICES.get(kind, kind)] for kind in kinds]
