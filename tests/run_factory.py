"""A finished RUN, written from the schemas alone: what the page is tested on."""

from pathlib import Path
from typing import Any

import numpy as np

from deltalens.store.files import write_json, write_table
from deltalens.store.run import Run, digests
from deltalens.store.schema import CONTEXT, DEADZONE, HEADS, LEDGER, MATRICES, NULLS, NUMERICS_VERSION, SCHEMA, SPECTRA

SHAPES = {"q_proj": 1, "k_proj": 0.5, "v_proj": 0.5, "o_proj": 1, "gate_proj": 3, "up_proj": 3, "down_proj": 3}
TESTED = {
    "principal_energy": 0.02,
    "spectral_energy": 1.4,
    "left_rotation": 0.3,
    "mask_low_30": 0.5,
    "zero_fraction": 0.31,
}
"""Statistics of the null table and what is observed; energies lie far outside the nulls, the rest inside."""


def matrix(name: str, kind: str, layer: int | None, rows: int, cols: int, sigma: np.ndarray, **changes: Any) -> dict:
    """A plausible row of matrices.parquet for a bf16 pair."""
    energy = float(sigma @ sigma)
    zero = energy == 0
    numbers = {
        "norm_base": 10.0, "norm_tuned": 10.1, "norm_delta": energy**0.5, "relative_change": energy**0.5 / 10,
        "cosine": 0.999, "zero_fraction": 1.0 if zero else 0.31, "changed_relative": 0.6, "changed_absolute": 0.5,
        "sigma_max": float(sigma[0]), "nuclear_norm": float(sigma.sum()), "effective_rank": 0.0 if zero else 51.25,
        "energy_effective_rank": 9.0, "participation_ratio": 5.0, "stable_rank": 3.5, "rank_50": 3, "rank_90": 20,
        "rank_99": 40, "top_energy_1": 0.3, "top_energy_4": 0.6, "top_energy_16": 0.8, "row_share_1": 0.04,
        "col_share_1": 0.03, "certificate": 1e-7, "noise_sigma": 1e-5, "snr": 4.0, "floor_edge": 0.02,
        "above_floor": 0 if zero else 9, "bulk_edge": 0.03, "spikes": 0 if zero else 3,
        "spike_energy": 0.0 if zero else 0.7, "denoised_effective_rank": None if zero else 12.5,
        "predicted_zero_fraction": 1.0 if zero else 0.29, "seconds_spectrum": 0.1, "seconds": 0.2,
    }  # fmt: skip
    return {
        "name": name, "tensor_base": f"model.{name}.weight", "tensor_tuned": f"model.{name}.weight", "layer": layer,
        "kind": kind, "expert": None, "rows": rows, "cols": cols, "dtype_base": "BF16", "dtype_tuned": "BF16",
        "status": "measured", "noise_model": "tuned_rounded", **numbers, "spikes_capped": False,
    } | changes  # fmt: skip


def context(rows: int, cols: int, number: int) -> dict[str, Any]:
    """Context and dead-zone columns: twice the null on the principals, rotation at its null."""
    k = 16
    low = {f"mask_low_{alpha}": alpha / 90 for alpha in (10, 30, 50)}
    return dict.fromkeys(CONTEXT, 0.5) | {
        "context_k": k, "principal_energy": 2 * k * k / (rows * cols), "left_energy": 1.5 * k / rows,
        "right_energy": 0.75 * k / cols, "spectral_energy": 1.25, "left_rotation": 0.2, "left_rotation_null": 0.2,
        "right_rotation": 0.3, "right_rotation_null": 0.2, "left_angle": 0.6, "left_angle_null": 0.6,
        "right_angle": 0.5, "right_angle_null": 0.6, "spectral_drift": 0.08, "spectral_drift_null": 0.09,
        "scaling": 1.0012, "scaling_null_sd": 0.0007, **low,
        "deadzone": ("dense", "sparse", "inconclusive")[number % 3], "deadzone_scale": 1e-4,
        "deadzone_sparsity": 0.1 * (number % 3), "deadzone_misfit": 1.1,
    }  # fmt: skip


def null_lines(row: dict[str, Any], hostile: str | None = None) -> list[dict[str, Any]]:
    """Lines of nulls.parquet: energies far outside both nulls, the rest inside, one without a spread."""
    lines = []
    for statistic, observed in TESTED.items():
        out = statistic in ("principal_energy", "spectral_energy")
        for null in ("gaussian", "permuted") if statistic != "zero_fraction" else ("gaussian",):
            mean, sd = (observed / 2, observed / 20) if out else (observed * 0.99, observed / 20)
            spread = None if statistic == "zero_fraction" else sd
            lines.append({
                "name": hostile or row["name"], "statistic": hostile if hostile and not out else statistic,
                "null": hostile if hostile and null == "permuted" else null, "calibration": "norm", "draws": 20,
                "observed": observed, "mean": mean, "sd": spread or 0.0,
                "z": (observed - mean) / spread if spread else None,
            })  # fmt: skip
    return lines


def zero_lines(name: str) -> list[dict[str, Any]]:
    """Lines of deadzone.parquet: eight steps with more zeros than predicted, the first without a fit."""
    return [
        {
            "name": name, "step": 2.0 ** (i - 20), "entries": 1000 * 2**i, "observed": 0.2 + 0.1 * i,
            "fitted": 0.19 + 0.1 * i if i else None, "predicted": 0.1 + 0.1 * i,
        }
        for i in range(8)
    ]  # fmt: skip


def head_lines(layers: int, hostile: str | None = None) -> list[dict[str, Any]]:
    """Four query heads in two groups; the products of head 1 in layer 0 changed most."""
    lines = []
    for layer in range(layers):
        for kind, count in (("q", 4), ("k", 2), ("v", 2), ("o", 4), ("qk", 4), ("ov", 4)):
            for head in range(count):
                lines.append({
                    "name": f"layers.{layer}.{kind}.{head}", "layer": layer,
                    "kind": hostile if hostile and kind == "k" else kind,
                    "head": None if kind in "kv" else head, "group": head // (count // 2), "norm_delta_sq": 0.1,
                    "share": None if kind in ("qk", "ov") else 0.01 * (1 + head),
                    "relative_change": 0.04 if (layer, head) == (0, 1) else 0.02, "sigma_max": 0.2, "stable_rank": 2.5,
                })  # fmt: skip
    return lines


def make_run(
    folder: Path,
    layers: int = 2,
    width: int = 32,
    scale: float = 1.0,
    sides: tuple[str, str] = ("family:instruct", "family:reasoning"),
    rename: dict[str, str] | None = None,
    warnings: tuple[str, ...] = (),
    refused: str | None = None,
    size_matched: Any = None,
    full: bool = False,
    hostile: str | None = None,
    decay: float | None = None,
    **changes: Any,
) -> Run:
    """A finished RUN; keyword arguments change every row.

    Args:
        folder: Where, made here.
        layers: Its depth.
        width: Its model width.
        scale: Factor on every singular value.
        sides: Sources of base and tuned.
        rename: New names of some matrices.
        warnings: For the record.
        refused: Name of a matrix without numbers.
        size_matched: For the settings.
        full: Whether context, dead zone, nulls and heads were measured too.
        hostile: A text for every name in nulls.parquet and every slice in heads.parquet.
        decay: Ratio of each singular value to the one before it; without, a seeded draw.
        changes: Columns with another value in every row.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows, spectra, ledger = [], [], []
    plan = [("embed", "embed", None, 2 * width, width)]
    for layer in range(layers):
        for kind, factor in SHAPES.items():
            tall, name = int(width * factor), f"layers.{layer}.{kind}"
            plan.append((name, kind, layer, *((width, tall) if kind == "down_proj" else (tall, width))))
    for name, kind, layer, m, n in plan:
        name = (rename or {}).get(name, name)
        sigma = scale * np.sort(rng.gamma(1.0, 0.02, min(m, n)))[::-1]
        if decay is not None:
            sigma = 0.1 * scale * decay ** np.arange(min(m, n), dtype=np.float64)
        more = context(m, n, len(rows)) if full else {}
        rows.append(matrix(name, kind, layer, m, n, sigma, **(more | changes)))
        if name == refused:
            gone = {key: None for key in MATRICES.names if key in rows[-1] and MATRICES.names.index(key) > 10}
            rows[-1] |= gone | {"status": "refused"}
        else:
            spectra.append({"name": name, "sigma": sigma})
        ledger.append({
            "tensor_base": name, "tensor_tuned": name, "name": name, "status": rows[-1]["status"],
            "reason": "NaN or Inf in tuned" if name == refused else None, "elements": m * n,
            "norm_delta_sq": None if name == refused else float(sigma @ sigma), "share": 0.0,
        })  # fmt: skip
    ledger.append({
        "tensor_base": "model.norm.weight", "tensor_tuned": "model.norm.weight", "name": "norm", "status": "vector",
        "reason": None, "elements": width, "norm_delta_sq": 1e-4 * scale, "share": 0.0,
    })  # fmt: skip
    total = sum(line["norm_delta_sq"] or 0.0 for line in ledger)
    for line in ledger:
        line["share"] = (line["norm_delta_sq"] or 0.0) / total if total else 0.0
    if full:
        write_table(folder / "nulls.parquet", [line for row in rows[1:8] for line in null_lines(row, hostile)], NULLS)
        write_table(folder / "heads.parquet", head_lines(layers, hostile), HEADS)
        write_table(folder / "deadzone.parquet", [line for row in rows for line in zero_lines(row["name"])], DEADZONE)
    write_table(folder / "matrices.parquet", rows, MATRICES)
    write_table(folder / "spectra.parquet", spectra, SPECTRA)
    write_table(folder / "ledger.parquet", ledger, LEDGER)
    (folder / "directions.safetensors").write_bytes(b"")
    identity = {
        "files": [{"name": "model.safetensors", "size": 1234, "header_sha256": "ab12", "sample_sha256": "cd34"}]
    }
    record = {
        "schema": SCHEMA, "numerics_version": NUMERICS_VERSION, "deltalens": "0.1.0", "status": "complete",
        "pair": {side: {"source": source, "path": "/x", "revision": None, "identity": identity, "mtimes": {}}
                 for side, source in zip(("base", "tuned"), sides, strict=True)},
        "settings": {"top": 16, "both_rounded": False, "match": None, "threads": 2, "block_bytes": 67108864, "seed": 0,
                     "size_matched": size_matched},
        "warnings": list(warnings),
        "totals": {"matrices": len(rows), "refused": 0, "tensors": len(ledger), "compared": len(ledger),
                   "elements": 801536, "norm_delta": total**0.5, "norm_base": 20.0,
                   "relative_change": total**0.5 / 20, "share_measured": 0.99, "seconds": 1.9},
        "environment": {"python": "3.11.7", "torch": "2.13.0", "platform": "Linux", "cpu_count": 2},
        "layout": "0", "passes": {"context": None, "nulls": None}, "parentage": {},
        "tables": digests(folder, tuple(path.name for path in sorted(folder.iterdir()))), "peak_rss_bytes": 400_000_000,
        "command": "deltalens measure family:instruct family:reasoning --out RUN",
    }  # fmt: skip
    write_json(folder / "run.json", record)
    return Run.open(folder)
