"""The data behind the figures: what the page's script draws, as plain JSON values."""

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

from deltalens.checkpoint.names import KINDS
from deltalens.report.context import STATISTICS, has_context, ratio_key
from deltalens.report.glossary import MAPPED, Column, named
from deltalens.report.heads import VALUES, choices, slices
from deltalens.report.nulls import forest
from deltalens.report.view import View
from deltalens.report.words import Row, facts, measured
from deltalens.spectrum.reading import EXPLAINED
from deltalens.store.run import Run

POINTS = 256
"""Points drawn of one spectrum; every value stays in spectra.parquet."""

BUDGET = 300_000
"""Points drawn on one page, about 3.4 MB of JSON beside 4.8 MB of plotly."""

_BEFORE, _AFTER = "in", "out"
_INPUTS = ("embed", "pos_embed")

CURVES = ("effective_rank", "denoised_effective_rank", "top_energy_4", "top_energy_16", "spike_energy")
"""What is drawn over depth: raw beside denoised."""


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


def cells(rows: Sequence[Row], drawn: Mapping[str, int], axes: Mapping[str, list[str]]) -> dict[str, Any]:
    """The heat map of one run: its cells, and for each column one value per cell.

    A cell of one matrix holds its stored numbers, a cell of several (experts) their medians.

    Returns:
        `place` [kind, column] of each cell, `count` of its matrices, `name` of the first, `open` the place of the
        first one whose spectrum is drawn or None, `columns` by key.
    """
    kinds, columns = ({name: i for i, name in enumerate(axes[key])} for key in ("kinds", "columns"))
    grouped: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        grouped.setdefault((kinds[row["kind"]], columns[column(row)]), []).append(row)
    held = list(grouped.values())
    return {
        "place": [list(place) for place in grouped],
        "count": [len(cell) for cell in held],
        "name": [cell[0]["name"] for cell in held],
        "open": [next((drawn[row["name"]] for row in cell if row["name"] in drawn), None) for cell in held],
        "columns": {metric.key: [_middle(cell, metric.key) for cell in held] for metric in MAPPED},
    }


def _middle(rows: Sequence[Row], key: str) -> float | int | None:
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return None
    return values[0] if len(rows) == 1 else float(median(values))


def depth(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Median of each of `CURVES` per layer, all over the matrices that have a denoised rank."""
    layers = sorted({row["layer"] for row in rows if row["layer"] is not None})
    curves: dict[str, list[Any]] = {"layer": layers, "matrices": [], **{key: [] for key in CURVES}}
    for layer in layers:
        ranked = [r for r in rows if r["layer"] == layer and r["denoised_effective_rank"] is not None]
        curves["matrices"].append(len(ranked))
        for key in CURVES:
            known = [r[key] for r in ranked if r[key] is not None]
            curves[key].append(float(median(known)) if known else None)
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


def binades(view: View, rows: Sequence[Row]) -> list[list[list[float | int | None]]]:
    """Per row, its zeros by step: the step, its entries, and their zero share observed, predicted and fitted."""
    lines: dict[str, list[list[float | int | None]]] = {}
    for row in view.zeros or []:
        shares = [_short(row[key]) for key in ("observed", "predicted", "fitted")]
        lines.setdefault(row["stored_name"], []).append([row["step"], row["entries"], *shares])
    return [lines.get(row["stored_name"], []) for row in rows]


def edges(row: Row) -> list[float | None]:
    """Floor, bulk edge, and for reference the Marchenko–Pastur edge of i.i.d. entries of this ‖Δ‖."""
    m, n = row["rows"], row["cols"]
    reference = row["norm_delta"] / (m * n) ** 0.5 * (m**0.5 + n**0.5) if row["norm_delta"] else None
    # an edge of zero is no edge, and has no place on a logarithmic axis
    return [row["floor_edge"] or None, row["bulk_edge"] or None, reference]


def payload(views: Sequence[View], kept: Sequence[Sequence[Row]]) -> dict[str, Any]:
    """Everything that the script of the page needs.

    Args:
        views: The runs.
        kept: The rows of each run that are drawn one by one, a subset in the same order.
    """
    points = max(32, min(POINTS, BUDGET // max(1, sum(map(len, kept)))))
    axes = grid([view.rows for view in views])
    lengths = {min(row["rows"], row["cols"]) for rows in kept for row in rows}
    heads = [slices(view.heads) for view in views]
    shown = [m for m in MAPPED if any(row[m.key] is not None for view in views for row in view.rows)]
    statistics = list(dict.fromkeys(row["statistic"] for view in views for row in view.nulls or []))
    return {
        "metrics": [_metric(column) for column in shown],
        **axes,
        "indices": {str(length): [k + 1 for k in indices(length, points)] for length in sorted(lengths)},
        "first": _first(kept),
        "band": list(EXPLAINED),
        "ratios": [{"key": ratio_key(s), "head": s.head} for s in STATISTICS],
        "statistics": [_metric(named(key)) for key in statistics],
        "slices": choices(heads),
        "headValues": [{"key": key, "head": head, "unit": unit} for key, (head, unit) in VALUES.items()],
        "runs": [
            _run(view, chosen, axes, points, {m.key for m in shown}, by_head)
            for view, chosen, by_head in zip(views, kept, heads, strict=True)
        ],
    }


def _metric(column: Column) -> dict[str, str]:
    return {"key": column.key, "head": column.head, "formula": column.formula, "unit": column.unit, "of": column.group}


def _run(
    view: View,
    kept: Sequence[Row],
    axes: Mapping[str, list[str]],
    points: int,
    shown: set[str],
    by_head: Mapping[str, Any],
) -> dict[str, Any]:
    maps = cells(view.rows, {row["name"]: place for place, row in enumerate(kept)}, axes)
    maps["columns"] = {key: values for key, values in maps["columns"].items() if key in shown}
    zeros = [[row["predicted_zero_fraction"], row["zero_fraction"], row["deadzone"]] for row in kept]
    ratios = {ratio_key(s): [_short(row[ratio_key(s)]) for row in kept] for s in STATISTICS}
    return {
        "label": view.label,
        "cells": maps,
        "names": [row["name"] for row in kept],
        "kinds": [row["kind"] for row in kept],
        "spectra": spectra(view.run, kept, points),
        "lengths": [min(row["rows"], row["cols"]) for row in kept],
        "edges": [edges(row) for row in kept],
        "spikes": [row["spikes"] for row in kept],
        "facts": [facts(row) for row in kept],
        "zeros": zeros,
        "binades": binades(view, kept),
        "ratios": ratios if has_context(kept) else None,
        "depth": depth(view.rows),
        "forest": forest(view.nulls),
        "heads": by_head,
    }


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")


def _first(kept: Sequence[Sequence[Row]]) -> str | None:
    """The matrix that is open at first: the largest change of the last run."""
    changed = [row for row in (kept[-1] if kept else []) if row["norm_delta"]]
    return max(changed, key=lambda row: row["norm_delta"])["name"] if changed else None
