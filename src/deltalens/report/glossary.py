"""What each shown number is called and how it is computed: the heads of the tables and the definitions on the page."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a matrix.

    Attributes:
        key: Its column in `matrices.parquet`, or a difference named here.
        head: Its short name.
        formula: Its definition, plain text.
        unit: "percent" for shares, "rank" for uncorrected ranks, "number" for the rest, "gap" where zero is the middle.
    """

    key: str
    head: str
    formula: str
    unit: str = "number"


COLUMNS = (
    Column("relative_change", "relative change", "‖Δ‖/‖W_base‖, Frobenius norms, Δ = W_tuned − W_base", "percent"),
    Column(
        "denoised_effective_rank",
        "effective rank, denoised",
        "exp H(s/Σs) over the singular values above the floor, each shrunk by the spiked-model inverse",
    ),
    Column("effective_rank", "effective rank, raw", "exp H(σ/Σσ), H = −Σ p ln p; rounding noise inflates it", "rank"),
    Column("spikes", "spikes", "number of σ above both the rounding floor and the bulk edge"),
    Column("spike_energy", "energy in spikes", "share of Σσ² held by the spikes", "percent"),
    Column("above_floor", "above the floor", "number of σ > floor edge: detectable, which is not low-rank"),
    Column("floor_edge", "floor edge", "(1 + 1.5·q^(−2/3))·noise σ·(√rows + √cols), q = min(rows, cols)"),
    Column("bulk_edge", "bulk edge", "(1 + 1.5/√q)·σ₁ of the change less its spikes, under seeded random signs"),
    Column("noise_sigma", "noise σ", "√mean(ulp(w)²/12), ulp = spacing of the stored format at w"),
    Column("snr", "signal to noise", "max(0, ‖Δ‖² − mn·noise σ²)/(mn·noise σ²)"),
    Column("zero_fraction", "unchanged", "share of entries with Δ = 0", "percent"),
    Column(
        "predicted_zero_fraction",
        "unchanged, predicted",
        "share of zeros that a dense Gaussian update of this size shows through the storage grid",
        "percent",
    ),
    Column(
        "changed_relative", "changed > 0.1 %", "share of entries with |Δ| > 10⁻³·max(|w_base|, |w_tuned|)", "percent"
    ),
    Column("changed_absolute", "changed > 10⁻⁵", "share of entries with |Δ| > 10⁻⁵", "percent"),
    Column("cosine", "cosine", "⟨W_base, W_tuned⟩/(‖W_base‖‖W_tuned‖)"),
    Column("norm_delta", "‖Δ‖", "Frobenius norm of the change"),
    Column("norm_base", "‖W_base‖", "Frobenius norm of the base matrix"),
    Column("sigma_max", "σ₁", "largest singular value of Δ"),
    Column("stable_rank", "stable rank, raw", "‖Δ‖²/σ₁²", "rank"),
    Column("energy_effective_rank", "energy rank, raw", "exp H(σ²/Σσ²)", "rank"),
    Column("participation_ratio", "participation, raw", "(Σσ²)²/Σσ⁴", "rank"),
    Column("rank_50", "rank 50 %, raw", "least k with Σσ² over the first k ≥ 50 %", "rank"),
    Column("rank_90", "rank 90 %, raw", "least k with Σσ² over the first k ≥ 90 %", "rank"),
    Column("rank_99", "rank 99 %, raw", "least k with Σσ² over the first k ≥ 99 %", "rank"),
    Column("top_energy_1", "energy of σ₁", "σ₁²/Σσ²", "percent"),
    Column("top_energy_4", "energy of 4", "Σσ² of the first 4 over Σσ²", "percent"),
    Column("top_energy_16", "energy of 16", "Σσ² of the first 16 over Σσ²", "percent"),
    Column("row_share_1", "largest row", "largest share of ‖Δ‖² in one row; above 25 %: row-confined", "percent"),
    Column("col_share_1", "largest column", "the same for columns; above 25 %: column-confined", "percent"),
    Column("nuclear_norm", "nuclear norm", "Σσ"),
    Column("certificate", "certificate", "max over kept vectors of ‖Δᵀu − σv‖/σ₁: the error of the stored vectors"),
    Column("seconds", "seconds", "time of the whole task for this matrix"),
)
"""Every column of the table, in its order: raw ranks never stand without the denoised one before them."""

GAP = Column("zero_gap", "unchanged, observed − predicted", "share of zeros observed less the share predicted", "gap")

_MAPPED = ["relative_change", "denoised_effective_rank", "effective_rank", "spikes", "spike_energy"]
_ALSO = ["zero_fraction", "snr", "stable_rank", "top_energy_1", "row_share_1", "col_share_1"]
_BY_KEY = {column.key: column for column in COLUMNS}

MAPPED = (*(_BY_KEY[key] for key in _MAPPED), GAP, *(_BY_KEY[key] for key in _ALSO))
"""What the heat map can show, the first by default."""

WORDS = (
    ("Δ, delta", "tuned weights minus base weights, entry by entry, in float32 with float64 sums"),
    ("σ, spectrum", "all singular values of one Δ, largest first"),
    ("spikes", "σ above both the rounding floor and the bulk edge; the only values called so here"),
    ("rounding floor", "largest σ that rounding the stored weights is expected to leave: nothing below it is evidence"),
    ("bulk edge", "largest σ expected of a change with the same entry sizes and random signs: no shared direction"),
    ("detectable", "above the rounding floor; a dense change is detectable in all of its σ without being low-rank"),
    ("explained by precision", "observed − predicted share of unchanged entries between −5 and 12 points"),
    ("sparser, denser", "the same difference above 12 points, below −5 points"),
    ("row-confined, column-confined", "more than 25 % of ‖Δ‖² in one row, one column; never counted as a spike"),
    ("share of ‖Δ‖²", "squared norm of one tensor's change over that of all tensors, each counted once"),
    ("measured", "two-dimensional: full spectrum"),
    ("vector", "one-dimensional (norm gains, biases): norm only"),
    ("unmeasured", "three or more dimensions: norm only"),
    ("tied, unpaired, refused, buffer", "shared storage; on one side only; NaN or Inf inside; not floating point"),
)
"""The words of the page."""
