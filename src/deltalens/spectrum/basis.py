"""A base matrix by its singular vectors, and what a delta does to them (docs/measures.md §4).

Everything sees the *long* orientation x [p, q] with p ≥ q. Left and right are put back at the end: the long side is
the output side of a tall matrix and the input side of a wide one.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from deltalens.spectrum.gram import ZERO, complete_vectors, gram, long_vectors, tridiagonalise
from deltalens.spectrum.ranks import numerical_rank

ROWS = 1024
"""Rows of the long side that go through a float64 copy at a time."""

_LARGE = 0.01
"""‖Δ‖²/‖W_base‖² above which the tuned Gram matrix is summed anew."""


@dataclass(frozen=True, slots=True)
class Basis:
    """W_base in its long orientation with its singular vectors.

    Attributes:
        x: The matrix.
        gram: xᵀx, lower triangle, Fortran-ordered.
        sigma: All singular values, descending.
        rank: How many are numerically above zero.
        k: How many leading ones are the principal ones.
        short: All vectors of the short side as columns, float32 (they only meet float32 deltas).
        short_k: The k leading ones, float64.
        long_k: The k leading ones of the long side, float64.
    """

    x: Float32[np.ndarray, "p q"]
    gram: Float64[np.ndarray, "q q"]
    sigma: Float64[np.ndarray, " q"]
    rank: int
    k: int
    short: Float32[np.ndarray, "q q"]
    short_k: Float64[np.ndarray, "q k"]
    long_k: Float64[np.ndarray, "p k"]

    @property
    def gap(self) -> float:
        """γ_k = σ_k − σ_{k+1}."""
        return float(self.sigma[self.k - 1] - (self.sigma[self.k] if self.k < len(self.sigma) else 0.0))


def principal_k(k: int, q: int, rank: int) -> int:
    """The k in use: as asked, but at most half of the short side (of all of it, every angle is 0) and the rank."""
    return max(1, min(k, q // 2, rank))


def decompose(x: Float32[np.ndarray, "p q"], k: int) -> Basis | None:
    """All singular vectors of a base matrix from one float64 Gram matrix; None for a zero matrix.

    Args:
        x: The long orientation.
        k: Principal vectors asked for; `principal_k` says how many there are.
    """
    q = x.shape[1]
    total = gram(slabs(x), q)
    sigma, short, leading = complete_vectors(tridiagonalise(total.copy(order="F")), min(k, q))
    rank = numerical_rank(sigma, ZERO)
    if rank == 0:
        return None
    k = principal_k(k, q, rank)
    short_k = leading[:, :k]
    long_k = long_vectors(slabs(x), short_k, sigma[:k])
    return Basis(x, total, sigma, rank, k, short, short_k, long_k)


def slabs(x: Float32[np.ndarray, "p q"]) -> list[np.ndarray]:
    """Views of x, cut along p."""
    return [x[i : i + ROWS] for i in range(0, len(x), ROWS)]


@dataclass(frozen=True, slots=True)
class Products:
    """What every statistic of a delta needs of it, from one float32 pass.

    Attributes:
        cross: xᵀΔ with x the base.
        own: ΔᵀΔ.
    """

    cross: Float32[np.ndarray, "q q"]
    own: Float32[np.ndarray, "q q"]


def products(basis: Basis, delta: Float32[np.ndarray, "p q"]) -> Products:
    """xᵀΔ and ΔᵀΔ.

    Float32 is enough: both carry a relative error of 4e-7 of Δ at most, not of W, spread over all directions alike.
    """
    return Products(basis.x.T @ delta, delta.T @ delta)  # numpy sees the symmetry of the second: half the work


def tuned_gram(basis: Basis, delta: Float32[np.ndarray, "p q"], made: Products) -> Float64[np.ndarray, "q q"]:
    """Gram matrix of x + Δ (Fortran-ordered, lower triangle).

    For a small Δ it is the base's, in float64, plus what the products add, which is nearly free and off by 4e-7 of Δ; a
    large Δ might cancel the base and leave only that error.
    """
    if np.trace(made.own, dtype=np.float64) > _LARGE * np.trace(basis.gram):
        return gram((x + d for x, d in zip(slabs(basis.x), slabs(delta), strict=True)), delta.shape[1])
    added = made.cross + made.cross.T
    added += made.own
    return basis.gram + added.T  # symmetric: its transpose is Fortran-ordered as the Gram is


def energies(basis: Basis, made: Products, norm_sq: float) -> tuple[float, float, float]:
    """Shares of ‖Δ‖² inside the principal subspaces: both sides, the long side alone, the short side alone.

    ‖U_kᵀΔV_k‖², ‖U_kᵀΔ‖² and ‖ΔV_k‖² over ‖Δ‖², with U_kᵀΔ = Σ_k⁻¹V_kᵀxᵀΔ; of an unstructured Δ they are k²/mn and k
    over each side.
    """
    other = basis.short_k.T @ made.cross / basis.sigma[: basis.k, None]
    both = other @ basis.short_k
    on_short = np.sum(basis.short_k * (made.own @ basis.short_k))
    return _share(np.sum(both**2), norm_sq), _share(np.sum(other**2), norm_sq), _share(on_short, norm_sq)


def spectral_energy(basis: Basis, made: Products, norm_sq: float) -> float:
    """κ = max(m, n)·Σ_i(u_iᵀΔv_i)²/‖Δ‖²: energy on the coordinates that change the spectrum, over their share.

    Null 1 with standard deviation √(2/q); max(m, n) for Δ ∝ W, 0 for a rotation (after the ISO index, 2607.19331).
    Taken as v_iᵀ(xᵀΔ)v_i/σ_i over the pairs numerically above zero, which needs no long vectors.
    """
    vectors = basis.short[:, : basis.rank]
    image = made.cross @ vectors
    image *= vectors
    diagonal = image.sum(axis=0, dtype=np.float64) / basis.sigma[: basis.rank]
    return float(max(basis.x.shape) * np.sum(diagonal**2) / norm_sq)


def _share(part: float, whole: float) -> float:
    return float(min(1.0, part / whole))


def turned(before: Float64[np.ndarray, "d k"], after: Float64[np.ndarray, "d k"]) -> tuple[float, float]:
    """How far a subspace has turned: 1 − ‖BᵀA‖²_F/k and the sine of the largest principal angle.

    Both by sines, the singular values of (I − BBᵀ)A (Björck and Golub 1973): cosines lose every angle below 1e-8, and
    1 − cos² every one below 1e-4 in float32.
    """
    rest = after - before @ (before.T @ after)
    rest -= before @ (before.T @ rest)
    sines = np.minimum(np.linalg.svd(rest, compute_uv=False), 1.0)
    return float(np.mean(sines**2)), float(sines[0])


def drift(base: Float64[np.ndarray, " q"], tuned: Float64[np.ndarray, " q"], norm: float) -> float:
    """`spectral_drift` = ‖σ(W_t) − σ(W_b)‖/‖Δ‖_F, at most 1 (Mirsky); 1/√max(m, n) for a small unstructured Δ."""
    return float(min(1.0, np.linalg.norm(tuned - base) / norm))


def scaling(basis: Basis, tuned: Float64[np.ndarray, " q"]) -> float:
    """Median of σ_i(W_t)/σ_i(W_b) over the base's numerically nonzero singular values."""
    return float(np.median(tuned[: basis.rank] / basis.sigma[: basis.rank]))


def scaling_null_sd(basis: Basis, norm: float) -> float:
    """Standard deviation of `scaling` around 1 for an i.i.d. Δ of this norm, to first order (ours).

    σ_i(W_t)/σ_i(W_b) = 1 + s·z_i/σ_i with s = ‖Δ‖/√(mn) and z_i ~ N(0, 1); the median of r independent ones has
    variance (r/4)/(Σ_i σ_i/(s√(2π)))². The second-order growth of σ, of relative size (‖Δ‖/‖W‖)²/2 or so, is *not* in
    it and exceeds it once ‖Δ‖/‖W‖ passes 1 % or so: judge a larger Δ by the drawn nulls.
    """
    p, q = basis.x.shape
    s = norm / np.sqrt(p * q)
    return float(s * np.sqrt(np.pi * basis.rank / 2) / np.sum(basis.sigma[: basis.rank]))
