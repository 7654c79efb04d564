"""What each shown number is called and how it is computed: the heads of the tables and the definitions on the page."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a matrix.

    Attributes:
        key: Its column in `matrices.parquet`, or a value derived from it in `view`.
        head: Its short name.
        formula: Its definition, plain text, with its null where it has one.
        unit: "percent" for shares, "rank" for uncorrected ranks, "number" for the rest; in a map "gap" is a
            difference of shares around zero, "ratio" a quotient whose null is 1, "factor" one that stays close to it.
        group: Where the map's menu lists it; "" keeps it out of the maps.
    """

    key: str
    head: str
    formula: str
    unit: str = "number"
    group: str = ""


def _group(name: str, *columns: tuple[str, ...]) -> tuple[Column, ...]:
    return tuple(Column(*one, *(["number"] if len(one) == 3 else []), name) for one in columns)


_SIZE = _group(
    "size",
    ("relative_change", "relative change", "‖Δ‖/‖W_base‖, Frobenius norms, Δ = W_tuned − W_base", "percent"),
    ("norm_delta", "‖Δ‖", "Frobenius norm of the change"),
    ("norm_base", "‖W_base‖", "Frobenius norm of the base matrix"),
    ("cosine", "cosine", "⟨W_base, W_tuned⟩/(‖W_base‖‖W_tuned‖)"),
    ("sigma_max", "σ₁", "largest singular value of Δ"),
    ("nuclear_norm", "nuclear norm", "Σσ"),
)
_RANK = _group(
    "rank",
    (
        "denoised_effective_rank",
        "effective rank, denoised",
        "exp H(s/Σs) over the singular values above the floor, each shrunk by the spiked-model inverse",
    ),
    ("effective_rank", "effective rank, raw", "exp H(σ/Σσ), H = −Σ p ln p; rounding noise inflates it", "rank"),
    ("spike_energy", "energy in spikes", "share of Σσ² held by the spikes", "percent"),
    ("stable_rank", "stable rank, raw", "‖Δ‖²/σ₁²", "rank"),
    ("energy_effective_rank", "energy rank, raw", "exp H(σ²/Σσ²)", "rank"),
    ("participation_ratio", "participation, raw", "(Σσ²)²/Σσ⁴", "rank"),
    ("rank_50", "rank 50 %, raw", "least k with Σσ² over the first k ≥ 50 %", "rank"),
    ("rank_90", "rank 90 %, raw", "least k with Σσ² over the first k ≥ 90 %", "rank"),
    ("rank_99", "rank 99 %, raw", "least k with Σσ² over the first k ≥ 99 %", "rank"),
    ("top_energy_1", "energy of σ₁, raw", "σ₁²/Σσ²", "percent"),
    ("top_energy_4", "energy of 4, raw", "Σσ² of the first 4 over Σσ²", "percent"),
    ("top_energy_16", "energy of 16, raw", "Σσ² of the first 16 over Σσ²", "percent"),
    ("row_share_1", "largest row", "largest share of ‖Δ‖² in one row; above 25 %: row-confined", "percent"),
    ("col_share_1", "largest column", "the same for columns; above 25 %: column-confined", "percent"),
)
_NOISE = _group(
    "noise and spikes",
    ("spikes", "spikes", "number of σ above both the rounding floor and the bulk edge"),
    ("above_floor", "above the floor", "number of σ > floor edge: detectable, which is not low-rank"),
    ("floor_edge", "floor edge", "(1 + 1.5·q^(−2/3))·noise σ·(√rows + √cols), q = min(rows, cols)"),
    (
        "bulk_edge",
        "bulk edge",
        "(1 + c/√q)·σ₁ of the change less its spikes, signs at random: c = 1.1, three draws; above q = 512 1.5, one",
    ),
    ("noise_sigma", "noise σ", "√mean(ulp(w)²/12), ulp = spacing of the stored format at w"),
    ("snr", "signal to noise", "max(0, ‖Δ‖² − mn·noise σ²)/(mn·noise σ²)"),
)
_ZEROS = _group(
    "zeros",
    ("zero_fraction", "unchanged", "share of entries with Δ = 0", "percent"),
    (
        "predicted_zero_fraction",
        "unchanged, predicted",
        "share of zeros that a dense Gaussian update of this size shows through the storage grid: the null",
        "percent",
    ),
    ("zero_gap", "unchanged, observed − predicted", "share of zeros observed less the share predicted; null 0", "gap"),
    ("changed_relative", "changed > 0.1 %", "share of entries with |Δ| > 10⁻³·max(|w_base|, |w_tuned|)", "percent"),
    ("changed_absolute", "changed > 10⁻⁵", "share of entries with |Δ| > 10⁻⁵", "percent"),
    (
        "deadzone_scale",
        "dead zone: scale",
        "root mean square of the update before rounding, over the entries that moved",
    ),
    (
        "deadzone_sparsity",
        "dead zone: sparsity",
        "share π₀ of entries that never moved: the estimate when sparse, the least possible share when dense",
        "percent",
    ),
    (
        "deadzone_misfit",
        "dead zone: misfit",
        "largest gap between observed and fitted zero share of a binade, beyond sampling error",
    ),
)
_CONTEXT = _group(
    "context",
    ("principal_energy", "principal energy", "‖U_kᵀ Δ V_k‖²/‖Δ‖², U_k and V_k of the base; null k²/(mn)", "percent"),
    ("principal_energy_ratio", "principal energy / null", "the same over k²/(mn); null 1", "ratio"),
    ("left_energy", "output-side energy", "‖U_kᵀ Δ‖²/‖Δ‖²; null k/m", "percent"),
    ("left_energy_ratio", "output-side energy / null", "the same over k/m; null 1", "ratio"),
    ("right_energy", "input-side energy", "‖Δ V_k‖²/‖Δ‖²; null k/n", "percent"),
    ("right_energy_ratio", "input-side energy / null", "the same over k/n; null 1", "ratio"),
    ("spectral_energy", "κ", "max(m, n)·Σᵢ(uᵢᵀ Δ vᵢ)²/‖Δ‖², all pairs of the base; null 1 ± √(2/q)", "ratio"),
    ("left_rotation", "output rotation", "1 − ‖U_base,kᵀ U_tuned,k‖²/k; null: the next column", "percent"),
    ("left_rotation_null", "output rotation, null", "the same for W_base + Δ with random signs", "percent"),
    ("left_rotation_ratio", "output rotation / null", "the first over the second; null 1", "ratio"),
    ("right_rotation", "input rotation", "1 − ‖V_base,kᵀ V_tuned,k‖²/k; null: the next column", "percent"),
    ("right_rotation_null", "input rotation, null", "the same for W_base + Δ with random signs", "percent"),
    ("right_rotation_ratio", "input rotation / null", "the first over the second; null 1", "ratio"),
    (
        "left_angle",
        "output angle",
        "largest principal angle (radians) between the k output directions; null: the next column",
    ),
    ("left_angle_null", "output angle, null", "the same for W_base + Δ with random signs"),
    (
        "right_angle",
        "input angle",
        "largest principal angle (radians) between the k input directions; null: the next column",
    ),
    ("right_angle_null", "input angle, null", "the same for W_base + Δ with random signs"),
    (
        "left_wedin",
        "output Wedin ratio",
        "sin θ·γ_k/‖Δ‖₂, γ_k the gap after σ_k of the base; at most 2, and 1 where Δ is small against it",
    ),
    ("right_wedin", "input Wedin ratio", "the same on the input side"),
    ("spectral_drift", "spectral drift", "‖σ(W_tuned) − σ(W_base)‖/‖Δ‖; null 1/√max(m, n) for a small Δ"),
    ("spectral_drift_null", "spectral drift, null", "what a change without structure shows"),
    ("spectral_drift_ratio", "spectral drift / null", "the first over the second; null 1", "ratio"),
    ("scaling", "scaling", "median σᵢ(W_tuned)/σᵢ(W_base); null 1 ± the next column", "factor"),
    ("scaling_null_sd", "scaling, null spread", "standard deviation of the same for a change without structure"),
)
_MASKS = tuple(
    column
    for mask, words in (("low", "smallest |w_base|"), ("principal", "largest entries of the base's rank-64 part"))
    for alpha in (10, 30, 50)
    for column in _group(
        "masks (secondary)",
        (
            f"mask_{mask}_{alpha}",
            f"{mask} mask {alpha} %",
            f"share of the changed entries inside the {alpha} % with the {words}; null: the expected one",
            "percent",
        ),
        (
            f"mask_{mask}_{alpha}_expected",
            f"{mask} mask {alpha} %, expected",
            "the same if only |w_base| and the norms of row and column decided which entries change",
            "percent",
        ),
    )
)
_COST = _group(
    "",
    ("certificate", "certificate", "max over kept vectors of ‖Δᵀu − σv‖/σ₁: the error of the stored vectors"),
    ("seconds", "seconds", "time of the whole delta task of this matrix"),
    ("seconds_context", "seconds, context", "time of its context task"),
)

MAPPED = (*_SIZE, *_RANK, *_NOISE, *_ZEROS, *_CONTEXT, *_MASKS)
"""What the heat map can show, the first by default; a column that no run has is left out."""

COLUMNS = (*MAPPED, *_COST)
"""Every column of the table, in its order: raw ranks never stand without the denoised one before them."""

PRINTED = (
    *("relative_change", "denoised_effective_rank", "effective_rank", "spikes", "spike_energy", "above_floor", "snr"),
    *("zero_fraction", "predicted_zero_fraction", "principal_energy_ratio", "spectral_energy"),
    *("left_rotation_ratio", "right_rotation_ratio"),
)
"""The columns of the table that fit on paper."""

_BY_KEY = {column.key: column for column in COLUMNS}


def named(key: str) -> Column:
    """The column called `key`, or one that only repeats a name that this page does not know."""
    return _BY_KEY.get(key) or Column(key, key.replace("_", " "), "")


WORDS = (
    ("Δ, delta", "tuned weights minus base weights, entry by entry, in float32 with float64 sums"),
    ("σ, spectrum", "all singular values of one Δ, largest first"),
    ("spikes", "σ above both the rounding floor and the bulk edge; the only values called so here"),
    ("rounding floor", "largest σ that rounding the stored weights is expected to leave: nothing below it is evidence"),
    ("bulk edge", "largest σ expected of a change with the same entry sizes and random signs: no shared direction"),
    ("Marchenko–Pastur edge", "‖Δ‖/√(mn)·(√m + √n), for reference only: equal entries are assumed, which fails here"),
    ("detectable", "above the rounding floor; a dense change is detectable in all of its σ without being low-rank"),
    ("low-rank", "the first min(spikes, q/20) σ hold at least half of Σσ²; not low-rank: at most a fifth"),
    ("explained by precision", "observed − predicted share of unchanged entries between −5 and 12 points"),
    ("sparser, denser", "the same difference above 12 points, below −5 points"),
    ("dense, sparse, inconclusive", "at most 5 % of the entries never moved, at least 5 %, or the zeros do not say"),
    ("null", "the same number for a change without structure: no number stands without one"),
    ("N0, null ensemble", "seeded updates without structure, added to the base and rounded like the stored weights"),
    (
        "survives a null",
        "in most matrices tested the draws do not explain it: p of z = (observed − mean)/sd at most 5 % after Holm's "
        "correction over all statistics and nulls of that matrix",
    ),
    ("size-matched", "the change scaled to another run's ‖Δ‖ per matrix, rounded again and measured"),
    ("gauge-free", "unchanged when the inner basis of a head is rotated: the QK and OV products, not their factors"),
    ("row-confined, column-confined", "more than 25 % of ‖Δ‖² in one row, one column; never counted as a spike"),
    ("share of ‖Δ‖²", "squared norm of one tensor's change over that of all tensors, each counted once"),
    ("measured", "two-dimensional: full spectrum"),
    ("vector", "one-dimensional (norm gains, biases): norm only"),
    ("unmeasured", "three or more dimensions: norm only"),
    ("tied, unpaired, refused, buffer", "shared storage; on one side only; NaN or Inf inside; not floating point"),
)
"""The words of the page."""
