"""The data behind the figures: what the page's script draws, as plain JSON values."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from deltalens.checkpoint.names import KINDS
from deltalens.report.glossary import GAP, MAPPED
from deltalens.report.headline import Row, facts, measured
from deltalens.store.run import Run

POINTS = 256
"""Points drawn of one spectrum; every value stays in spectra.parquet."""

BUDGET = 400_000
"""Points drawn on one page, about 4.5 MB of JSON beside 4.8 MB of plotly."""

_BEFORE, _AFTER = "in", "out"
_INPUTS = ("embed", "pos_embed")


def grid(views: Sequence[Sequence[Row]]) -> dict[str, list[str]]:
    """The axes that the heat maps of all runs share.

    Args:
        views: The rows of each run.

    Returns:
        `kinds`, top to bottom, and `columns`: "in" for tables before the first layer, the layers, "out" for the rest.
    """
    rows = [row for view in views for row in view]
    present = {row["kind"] for row in rows}
    kinds = [kind for kind in KINDS if kind in present] + sorted(present - set(KINDS))
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    ends = {column(row) for row in rows if row["layer"] is None}
    names = [str(layer) for layer in layers]
    columns = [*([_BEFORE] if _BEFORE in ends else []), *names, *([_AFTER] if _AFTER in ends else [])]
    return {"kinds": kinds, "columns": columns}


def column(row: Row) -> str:
    """The heat-map column of one matrix."""
    if row["layer"] is not None:
        return str(row["layer"])
    return _BEFORE if row["kind"] in _INPUTS else _AFTER


def indices(length: int, points: int) -> list[int]:
    """At most `points` positions in a spectrum of `length`, zero-based, log-spaced, both ends included."""
    if length <= points:
        return list(range(length))
    wanted = np.unique(np.round(np.geomspace(1, length, points)).astype(int))
    while len(wanted) < points:  # rounding merges the first ones; fill up so that small k are all there
        free = np.setdiff1d(np.arange(1, length + 1), wanted)
        wanted = np.union1d(wanted, free[: points - len(wanted)])
    return [int(k) - 1 for k in wanted]


def cell(row: Row, key: str) -> float | int | None:
    """The heat-map value of one matrix, None where it is not defined."""
    if key != GAP.key:
        return row[key]
    observed, predicted = row["zero_fraction"], row["predicted_zero_fraction"]
    return None if observed is None or predicted is None else observed - predicted


def depth(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Median raw and denoised effective rank per layer, both over the matrices that have a denoised one."""
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    curves: dict[str, list[Any]] = {"layer": layers, "raw": [], "denoised": [], "matrices": []}
    for layer in layers:
        ranked = [r for r in rows if r["layer"] == layer and r["denoised_effective_rank"] is not None]
        curves["matrices"].append(len(ranked))
        curves["raw"].append(float(median(r["effective_rank"] for r in ranked)) if ranked else None)
        curves["denoised"].append(float(median(r["denoised_effective_rank"] for r in ranked)) if ranked else None)
    return curves


def spectra(run: Run, rows: Sequence[Row], points: int) -> list[list[float] | None]:
    """Drawn values of each row's spectrum at `indices`, six digits, None where there is none or it is all zero."""
    drawn: list[list[float] | None] = []
    for row in rows:
        if not measured(row) or not row["norm_delta"]:
            drawn.append(None)
            continue
        sigma = run.spectrum(row["stored_name"])
        drawn.append([float(f"{value:.6g}") for value in sigma[indices(len(sigma), points)]])
    return drawn


def payload(
    runs: Sequence[Run], labels: Sequence[str], views: Sequence[Sequence[Row]], kept: Sequence[Sequence[Row]]
) -> dict[str, Any]:
    """Everything that the script of the page needs.

    Args:
        runs: The runs, for their spectra.
        labels: What each is called.
        views: All rows of each run, for the heat maps and curves.
        kept: The rows of each run whose spectra are drawn, a subset in the same order.
    """
    points = max(32, min(POINTS, BUDGET // max(1, sum(map(len, kept)))))
    axes = grid(views)
    lengths = {min(row["rows"], row["cols"]) for rows in kept for row in rows}
    return {
        "metrics": [{"key": m.key, "head": m.head, "formula": m.formula, "unit": m.unit} for m in MAPPED],
        **axes,
        "indices": {str(length): [k + 1 for k in indices(length, points)] for length in sorted(lengths)},
        "first": _first(kept),
        "runs": [
            _run(run, label, rows, chosen, axes, points)
            for run, label, rows, chosen in zip(runs, labels, views, kept, strict=True)
        ],
    }


def _run(
    run: Run,
    label: str,
    rows: Sequence[Row],
    kept: Sequence[Row],
    axes: Mapping[str, list[str]],
    points: int,
) -> dict[str, Any]:
    drawn = {row["name"]: place for place, row in enumerate(kept)}
    kinds, columns = ({name: i for i, name in enumerate(axes[key])} for key in ("kinds", "columns"))
    return {
        "label": label,
        "names": [row["name"] for row in rows],
        "place": [[kinds[row["kind"]], columns[column(row)]] for row in rows],
        "columns": {metric.key: [cell(row, metric.key) for row in rows] for metric in MAPPED},
        "drawn": [drawn.get(row["name"]) for row in rows],
        "spectra": spectra(run, kept, points),
        "lengths": [min(row["rows"], row["cols"]) for row in kept],
        "edges": [[_edge(row, "floor_edge"), _edge(row, "bulk_edge")] for row in kept],
        "spikes": [row["spikes"] for row in kept],
        "facts": [facts(row) for row in kept],
        "depth": depth(rows),
    }


def _edge(row: Row, key: str) -> float | None:
    return row[key] or None  # an edge of zero is no edge, and has no place on a logarithmic axis


def _first(kept: Sequence[Sequence[Row]]) -> str | None:
    """The matrix that is open at first: the largest change of the last run."""
    changed = [row for row in (kept[-1] if kept else []) if row["norm_delta"]]
    return max(changed, key=lambda row: row["norm_delta"])["name"] if changed else None
