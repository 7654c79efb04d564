"""The tables of a RUN, assembled from its parts in the order of the pair's rows, never of completion."""

import json
from collections.abc import Callable
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from deltalens.checkpoint.pair import Pair, Row
from deltalens.checkpoint.write import write_safetensors
from deltalens.store.files import write_table
from deltalens.store.parts import Part
from deltalens.store.schema import COUNTED, DEADZONE, HEADS, LEDGER, MATRICES, NULLS, SCHEMA, SPECTRA

FAR = 0.5
"""Median relative change from which a pair is doubted; a choice of ours, ten times what the embedded family moves."""

LOW_COSINE = 0.9
"""cos = .9 belongs to a relative change of .5 at equal norms; unrelated models have cos near 0."""

TABLES = (
    *("matrices.parquet", "ledger.parquet", "spectra.parquet", "deadzone.parquet", "directions.safetensors"),
    *("nulls.parquet", "heads.parquet"),  # where their passes ran
)


def write_tables(
    out: Path, pair: Pair, loaders: dict[str, Callable[[int], Part]], counts: dict[str, int]
) -> tuple[dict[str, Any], list[str]]:
    """Write every table of a RUN.

    Args:
        out: The RUN directory.
        pair: Its rows give the order.
        loaders: By pass, the part of task i; those of the pass `delta` are the rows of the pair, called again for the
            vectors, so that they are never all in memory.
        counts: By pass, the number of its tasks.

    Returns:
        The totals for `run.json`, and warnings that only the data could give.
    """
    load = loaders["delta"]
    context = iter(loaders["context"](i).row for i in range(counts["context"])) if "context" in loaders else None
    matrices, spectra, zeros, ledger = [], [], [], []
    without: dict[str, list[str]] = {}
    bank: list[tuple[str, str, tuple[int, ...]]] = []
    owner: dict[str, tuple[int, str]] = {}
    base_sq = 0.0
    for i, row in enumerate(pair.rows):
        part = load(i)
        ledger.append(_ledger_row(row, part.row))
        if row.status == "measured":
            against = next(context) if context else {}
            matrices.append(_matrix_row(row, part.row | against))
            if against.get("context_reason") and part.row.get("norm_delta"):  # a zero delta speaks for itself
                without.setdefault(against["context_reason"], []).append(row.name.name)
            base_sq += (part.row.get("norm_base") or 0.0) ** 2
        else:
            base_sq += part.row.get("norm_base_sq") or 0.0
        if "sigma" in part.arrays:
            spectra.append({"name": row.name.name, "sigma": part.arrays["sigma"]})
        if "zeros" in part.arrays:
            zeros += [_zeros_row(row, line) for line in part.arrays["zeros"].tolist()]
        if "left" in part.arrays:
            k = len(part.arrays["left"])
            for key, dtype in (("left", "F32"), ("right", "F32"), ("sigma", "F64")):
                entry = f"{row.name.name}.{key}"
                owner[entry] = i, key
                bank.append((entry, dtype, (k,) if key == "sigma" else part.arrays[key].shape))
    total = float(sum(r["norm_delta_sq"] for r in ledger if r["status"] in COUNTED))
    for r in ledger:
        r["share"] = r["norm_delta_sq"] / total if r["status"] in COUNTED and total else 0.0

    def vectors(entry: str) -> np.ndarray:
        i, key = owner[entry]
        arrays = load(i).arrays
        return arrays[key][: len(arrays["left"])]

    for name, schema in (("nulls", NULLS), ("heads", HEADS)):
        if name in loaders:
            rows = [r for i in range(counts[name]) for r in loaders[name](i).row["rows"]]
            write_table(out / f"{name}.parquet", _shares(rows) if name == "heads" else rows, schema)
    write_table(out / "matrices.parquet", matrices, MATRICES)
    write_table(out / "spectra.parquet", spectra, SPECTRA)
    write_table(out / "ledger.parquet", ledger, LEDGER)
    write_table(out / "deadzone.parquet", zeros, DEADZONE)
    write_safetensors(
        out / "directions.safetensors",
        bank,
        vectors,
        {"deltalens": json.dumps({"schema": SCHEMA, "signs": "largest |entry| of left positive"})},
    )
    notes = [f"no context for {_some(names)}: {reason}" for reason, names in without.items()]
    return _totals(ledger, matrices, total, base_sq), _warnings(ledger, matrices, total) + notes


def _matrix_row(row: Row, numbers: dict[str, Any]) -> dict[str, Any]:
    assert row.base is not None and row.tuned is not None
    return {
        **{key: numbers.get(key) for key in MATRICES.names},
        "name": row.name.name,
        "tensor_base": row.base.name,
        "tensor_tuned": row.tuned.name,
        "layer": row.name.layer,
        "kind": row.name.kind,
        "expert": row.name.expert,
        "rows": row.shape[0],
        "cols": row.shape[1],
        "dtype_base": row.base.dtype,
        "dtype_tuned": row.tuned.dtype,
    }


def _ledger_row(row: Row, numbers: dict[str, Any]) -> dict[str, Any]:
    info = row.base or row.tuned
    return {
        "tensor_base": row.base.name if row.base else None,
        "tensor_tuned": row.tuned.name if row.tuned else None,
        "name": row.name.name,
        "status": numbers["status"],
        "reason": numbers["reason"],
        "elements": info.elements if info else 0,
        "norm_delta_sq": numbers["norm_delta_sq"],
    }


def _zeros_row(row: Row, line: list[float]) -> dict[str, Any]:
    step, entries, observed, fitted, predicted = line
    return {
        "name": row.name.name,
        "step": step,
        "entries": int(entries),
        "observed": observed,
        "fitted": None if isnan(fitted) else fitted,
        "predicted": predicted,
    }


def _shares(heads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Head slices with their share of ‖Δ‖² over all slices of q, k, v and o; the products qk and ov have none."""
    slices = [r for r in heads if r["kind"] not in ("qk", "ov")]
    total = sum(r["norm_delta_sq"] for r in slices)
    return [
        r | {"share": r["norm_delta_sq"] / total if total and r["kind"] not in ("qk", "ov") else None} for r in heads
    ]


def _totals(
    ledger: list[dict[str, Any]], matrices: list[dict[str, Any]], total: float, base_sq: float
) -> dict[str, Any]:
    counted = [r for r in ledger if r["status"] in COUNTED]
    return {
        "tensors": len(ledger),
        "matrices": sum(r["status"] == "measured" for r in matrices),
        "compared": len(counted),
        "refused": sum(r["status"] == "refused" for r in ledger),
        "elements": sum(r["elements"] for r in counted),
        "norm_delta": total**0.5,
        "norm_base": base_sq**0.5,
        "relative_change": (total / base_sq) ** 0.5 if base_sq else None,
        "share_measured": sum(r["share"] for r in ledger if r["status"] == "measured"),
    }


def _warnings(ledger: list[dict[str, Any]], matrices: list[dict[str, Any]], total: float) -> list[str]:
    refused = [r for r in ledger if r["status"] == "refused"]
    found = [f"refused: {r['name']} ({r['reason']})" for r in refused[:3]]
    if len(refused) > 3:
        found.append(f"refused: {len(refused) - 3} more tensors, see ledger.parquet")
    found += _parentage(matrices)
    if total == 0 and any(r["status"] in COUNTED for r in ledger):
        found.append("every difference is zero: the two sides hold the same weights")
    return found


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} matrices ({names[0]}, …)"


def _parentage(matrices: list[dict[str, Any]]) -> list[str]:
    """A warning when the numbers say that the tuned side was not trained from this base."""
    changes = [r["relative_change"] for r in matrices if r["relative_change"] is not None]
    cosines = [r["cosine"] for r in matrices if r["cosine"] is not None]
    if not changes or not cosines:
        return []
    change, cosine = median(changes), median(cosines)
    if change < FAR and cosine > LOW_COSINE:
        return []
    return [
        f"is this the right base? median relative change {change:.2g}, median cosine {cosine:.2g}: too far for a child"
    ]
