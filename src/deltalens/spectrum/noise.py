"""What rounding alone would show: grid steps, noise floor, denoised ranks, predicted zeros.

Entries are grouped by binade (floating-point exponent): 256 counts hold all that the grid of a tensor says.
"""

import numpy as np
from jaxtyping import Float64, Int64, UInt32
from scipy.optimize import brentq
from scipy.special import erf, erfc

from deltalens.checkpoint.dtypes import DTYPES, sixteen_bit
from deltalens.spectrum.ranks import entropy_rank

BINADES = 256
"""Values of the float32 exponent field; every supported dtype upcasts into them exactly."""


def binade_index(bits: UInt32[np.ndarray, " n"]) -> UInt32[np.ndarray, " n"]:
    """The exponent field of float32 bit patterns; 0 holds zeros (and float32 subnormals)."""
    return (bits >> 23) & 0xFF


def grid_steps(dtype: str) -> Float64[np.ndarray, " binades"]:
    """ulp in each binade for a tensor stored as `dtype`: 2^(max(e, e_min) − p); a zero entry takes e_min.

    Args:
        dtype: Safetensors name; F64 is read as float32 and takes its grid.
    """
    form = DTYPES["F32" if dtype == "F64" else dtype]
    if form.precision is None or form.e_min is None:
        raise ValueError(f"{dtype} has no uniform binade grid")
    exponents = np.arange(BINADES, dtype=np.float64) - 127
    return np.exp2(np.maximum(exponents, form.e_min) - form.precision)


def rounding_variance(counts: Int64[np.ndarray, " binades"], dtype: str) -> float:
    """mean of ulp²/12 over entries counted by binade: an upper bound inside the dead zone."""
    return float(counts @ grid_steps(dtype) ** 2 / (12 * max(counts.sum(), 1)))


def noise_model(dtype_tuned: str, both_rounded: bool) -> str:
    """Which sides' rounding a delta carries: `tuned_rounded`, `both_rounded` or `none` (docs/measures.md §2).

    The base of a 16-bit pair lies on the grid that training started from, so only the tuned side rounds. A float32
    tuned side carries no rounding worth a floor, whatever the base is stored in.
    """
    if both_rounded:
        return "both_rounded"
    return "tuned_rounded" if sixteen_bit(dtype_tuned) else "none"


def noise_sigma(
    model: str,
    base: Int64[np.ndarray, " binades"],
    tuned: Int64[np.ndarray, " binades"],
    dtype_base: str,
    dtype_tuned: str,
) -> float:
    """Standard deviation of the rounding error of one entry of Δ; 0 for model `none`."""
    if model == "none":
        return 0.0
    variance = rounding_variance(tuned, dtype_tuned)
    if model == "both_rounded":
        variance += rounding_variance(base, dtype_base)
    return float(np.sqrt(variance))


def floor_edge(noise: float, m: int, n: int) -> float:
    """The largest singular value that rounding noise alone would show, with a finite-size margin."""
    return (1 + 1.5 * min(m, n) ** (-2 / 3)) * noise * (m**0.5 + n**0.5)


def snr(norm_delta_sq: float, noise: float, m: int, n: int) -> float | None:
    """Energy above the rounding noise in units of that noise; None without rounding."""
    expected = m * n * noise**2
    return max(0.0, norm_delta_sq - expected) / expected if expected > 0 else None


def shrink(observed: Float64[np.ndarray, " k"], noise: float, m: int, n: int) -> Float64[np.ndarray, " k"]:
    """True singular values behind observed ones above the bulk: the inverse of the spiked model.

    s = √((y² − σ²(m+n) + √((y² − σ²(m+n))² − 4σ⁴mn))/2) for i.i.d. noise of standard deviation σ
    (Benaych-Georges and Nadakuditi 2012). Without noise s = y.
    """
    inner = observed**2 - noise**2 * (m + n)
    return np.sqrt((inner + np.sqrt(np.maximum(inner**2 - 4 * noise**4 * m * n, 0.0))) / 2)


def denoised_effective_rank(sigma: Float64[np.ndarray, " q"], above: int, noise: float, m: int, n: int) -> float | None:
    """Roy–Vetterli effective rank of the `above` singular values over the floor, shrunk; None when there are none."""
    return entropy_rank(shrink(sigma[:above], noise, m, n)) if above else None


def predicted_zero_fraction(base: Int64[np.ndarray, " binades"], dtype: str, scale: float) -> float:
    """The share of exact zeros that a dense Gaussian update of this scale leaves after rounding (docs/measures.md §2).

    Args:
        base: Entries of W_base per binade.
        dtype: The 16-bit dtype that both sides share.
        scale: Its standard deviation, from `gaussian_scale`.
    """
    return float(base @ lost_share(grid_steps(dtype), scale) / base.sum())


def lost_share(steps: Float64[np.ndarray, " b"], scale: float) -> Float64[np.ndarray, " b"]:
    """P(|s·z| < u/2) for each step u: only updates under half a step vanish, for a weight on the grid."""
    return erf(steps / (2 * np.sqrt(2) * scale)) if scale > 0 else np.ones(len(steps))


def gaussian_scale(base: Int64[np.ndarray, " binades"], dtype: str, mean_square: float) -> float | None:
    """The standard deviation s of the dense Gaussian update that has the observed size after rounding.

    Solves Σ_b N_b·E[round_{u_b}(s·z)²]/N = mean(Δ²), z ~ N(0, 1). None for a pair whose update is so large that
    no scale solves it within float range.

    Args:
        base: Entries of W_base per binade.
        dtype: The 16-bit dtype that both sides share.
        mean_square: mean(Δ²) as observed.
    """
    if mean_square == 0:
        return 0.0
    steps = grid_steps(dtype)[base > 0]
    weights = base[base > 0] / base.sum()

    def excess(log_s: float) -> float:
        return float(np.log(weights @ _rounded_square(np.exp(log_s), steps) + 1e-300) - np.log(mean_square))

    # Rounding changes E[x²] by at most u²/12 upwards, and below the dead zone only downwards: bracket from both sides.
    high = 0.5 * np.log(mean_square) + 20
    low = 0.5 * np.log(mean_square) - 20
    if excess(low) > 0 or excess(high) < 0:
        return None
    return float(np.exp(brentq(excess, low, high, xtol=1e-10)))


def _rounded_square(s: float, steps: Float64[np.ndarray, " b"]) -> Float64[np.ndarray, " b"]:
    """E[round_u(s·z)²] for each step u: u²·Σ_{j≥1}(2j − 1)·P(|s·z| > (j − ½)u)."""
    result = s**2 + steps**2 / 12  # exact to 1e-16 once s > 2u (Poisson summation)
    coarse = steps * 2 > s
    if coarse.any():
        j = np.arange(1, 40)  # s ≤ 2u: P(|s·z| > 39.5u) < 1e-80
        u = steps[coarse, None]
        result[coarse] = (u**2 * (2 * j - 1) * erfc((j - 0.5) * u / (np.sqrt(2) * s))).sum(axis=1)
    return result
