"""Numbers read off one spectrum: ranks, energies, concentration. Definitions: docs/measures.md."""

import numpy as np
from jaxtyping import Float64


def numerical_rank(sigma: Float64[np.ndarray, " q"], zero: float) -> int:
    """How many singular values lie above `zero`·σ₁."""
    return int(np.count_nonzero(sigma > zero * sigma[0])) if sigma[0] > 0 else 0


def entropy_rank(weights: Float64[np.ndarray, " q"]) -> float:
    """exp of the entropy of weights/Σweights, 0 when all are 0.

    With σ this is the effective rank of Roy and Vetterli (2007), with σ² the energy effective rank.
    """
    total = weights.sum()
    if total <= 0:
        return 0.0
    shares = weights[weights > 0] / total
    return float(np.exp(-np.sum(shares * np.log(shares))))


def cumulative_energy(sigma: Float64[np.ndarray, " q"]) -> Float64[np.ndarray, " q"]:
    """Σ_{≤k}σ²/Σσ² for every k; relative to σ₁ first, so that tiny deltas do not underflow."""
    energy = (sigma / sigma[0]) ** 2
    return np.cumsum(energy) / energy.sum()


def energy_rank(sigma: Float64[np.ndarray, " q"], share: float) -> int:
    """The least k with Σ_{≤k}σ² ≥ share·Σσ², 0 when all are 0."""
    if not sigma.any():
        return 0
    return min(len(sigma), int(np.searchsorted(cumulative_energy(sigma), share)) + 1)  # the last may round below 1


def shape_of(sigma: Float64[np.ndarray, " q"]) -> dict[str, float | int]:
    """Every rank and energy column of one complete spectrum.

    Args:
        sigma: All singular values, descending. All zero gives 0 for every column.
    """
    if sigma[0] <= 0:
        return dict.fromkeys(_COLUMNS, 0)
    energy = (sigma / sigma[0]) ** 2  # relative, so that tiny deltas do not underflow in σ⁴
    total = energy.sum()
    cumulative = cumulative_energy(sigma)
    return {
        "sigma_max": float(sigma[0]),
        "nuclear_norm": float(sigma.sum()),
        "effective_rank": entropy_rank(sigma),
        "energy_effective_rank": entropy_rank(energy),
        "participation_ratio": float(total**2 / np.sum(energy**2)),
        "stable_rank": float(total),
        **{f"rank_{p}": energy_rank(sigma, p / 100) for p in (50, 90, 99)},
        **{f"top_energy_{k}": float(cumulative[min(k, len(sigma)) - 1]) for k in (1, 4, 16)},
    }


_COLUMNS = (
    "sigma_max",
    "nuclear_norm",
    "effective_rank",
    "energy_effective_rank",
    "participation_ratio",
    "stable_rank",
    "rank_50",
    "rank_90",
    "rank_99",
    "top_energy_1",
    "top_energy_4",
    "top_energy_16",
)
