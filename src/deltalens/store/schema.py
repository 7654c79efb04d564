"""The columns of a RUN, once: every table that is written or read goes through these schemas."""

import pyarrow as pa

SCHEMA = 1
"""Layout of a RUN; a reader refuses what it does not know."""

NUMERICS_VERSION = 2
"""Raised whenever a number could change for the same input; stored parts of another version are redone."""

_IDENTITY = [
    ("name", pa.string()),
    ("tensor_base", pa.string()),
    ("tensor_tuned", pa.string()),
    ("layer", pa.int32()),
    ("kind", pa.string()),
    ("expert", pa.int32()),
    ("rows", pa.int64()),
    ("cols", pa.int64()),
    ("dtype_base", pa.string()),
    ("dtype_tuned", pa.string()),
    ("status", pa.string()),
]

_COUNTS = {"rank_50", "rank_90", "rank_99", "above_floor", "spikes"}

_NUMBERS = [
    *("norm_base", "norm_tuned", "norm_delta", "relative_change", "cosine"),
    *("zero_fraction", "changed_relative", "changed_absolute"),
    *("sigma_max", "nuclear_norm", "effective_rank", "energy_effective_rank", "participation_ratio", "stable_rank"),
    *("rank_50", "rank_90", "rank_99", "top_energy_1", "top_energy_4", "top_energy_16"),
    *("row_share_1", "col_share_1", "certificate"),
    *("noise_sigma", "snr", "floor_edge", "above_floor", "bulk_edge", "spikes", "spike_energy"),
    *("denoised_effective_rank", "predicted_zero_fraction", "seconds_spectrum", "seconds", "seconds_context"),
]

_DEADZONE = ["deadzone_scale", "deadzone_sparsity", "deadzone_misfit"]

CONTEXT = [
    *("principal_energy", "left_energy", "right_energy", "spectral_energy"),
    *("left_rotation", "right_rotation", "left_rotation_null", "right_rotation_null"),
    *("left_angle", "right_angle", "left_angle_null", "right_angle_null", "left_wedin", "right_wedin"),
    *("spectral_drift", "spectral_drift_null", "scaling", "scaling_null_sd"),
    *(
        f"mask_{mask}_{alpha}{part}"
        for mask in ("low", "principal")
        for alpha in (10, 30, 50)
        for part in ("", "_expected")
    ),
]
"""Columns of the context pass, null when it was off."""

MATRICES = pa.schema(
    [
        *_IDENTITY,
        ("noise_model", pa.string()),
        *((name, pa.int64() if name in _COUNTS else pa.float64()) for name in _NUMBERS),
        ("spikes_capped", pa.bool_()),
        ("deadzone", pa.string()),
        *((name, pa.float64()) for name in _DEADZONE),
        ("context_k", pa.int64()),
        *((name, pa.float64()) for name in CONTEXT),
    ]
)
"""One row per 2-D matrix that both sides hold; formulas in docs/measures.md."""

LEDGER = pa.schema(
    [
        ("tensor_base", pa.string()),
        ("tensor_tuned", pa.string()),
        ("name", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("elements", pa.int64()),
        ("norm_delta_sq", pa.float64()),
        ("share", pa.float64()),
    ]
)
"""One row per tensor of either side; shares of the squared delta norm sum to 1."""

SPECTRA = pa.schema([("name", pa.string()), ("sigma", pa.list_(pa.float64()))])
"""The complete singular values of each delta, descending."""

DEADZONE = pa.schema(
    [
        ("name", pa.string()),
        ("step", pa.float64()),
        ("entries", pa.int64()),
        ("observed", pa.float64()),
        ("fitted", pa.float64()),
        ("predicted", pa.float64()),
    ]
)
"""One row per matrix and step of the storage grid: shares of entries with Δ = 0, finest step first."""

NULLS = pa.schema(
    [
        ("name", pa.string()),
        ("statistic", pa.string()),
        ("null", pa.string()),
        ("calibration", pa.string()),
        ("draws", pa.int64()),
        ("observed", pa.float64()),
        ("mean", pa.float64()),
        ("sd", pa.float64()),
        ("z", pa.float64()),
    ]
)
"""One row per matrix, statistic and null: what a structureless update seen through the same storage would show."""

HEADS = pa.schema(
    [
        ("name", pa.string()),
        ("layer", pa.int32()),
        ("kind", pa.string()),
        ("head", pa.int32()),
        ("group", pa.int32()),
        ("norm_delta_sq", pa.float64()),
        ("share", pa.float64()),
        ("relative_change", pa.float64()),
        ("sigma_max", pa.float64()),
        ("stable_rank", pa.float64()),
    ]
)
"""One row per attention head and slice (q, k, v, o) or gauge-free product (qk, ov)."""

TIMINGS = ("seconds_spectrum", "seconds", "seconds_context")
"""Columns that differ between identical runs and are left out of every comparison."""

COUNTED = ("measured", "vector", "unmeasured")
"""Ledger statuses whose squared norms make up the total."""
