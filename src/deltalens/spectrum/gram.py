"""One float64 Gram matrix per delta: its tridiagonal form gives the whole spectrum and the top vectors.

A delta is handed over as blocks of its *long* orientation: X of shape [p, q] with p ≥ q, cut along p. The Gram
G = XᵀX is accumulated in float64 products (float32 products would lose everything below 1e-4·σ₁), reduced once to
tridiagonal form, and that form serves both the eigenvalues and, later, any number of eigenvectors. For float32
input this is more accurate than a float32 SVD down to about 1e-8·σ₁, and several times faster.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64
from scipy.linalg import eigh_tridiagonal, get_blas_funcs, get_lapack_funcs

_syrk = get_blas_funcs("syrk", dtype=np.float64)
_sytrd, _sytrd_lwork, _sterf, _stevd, _ormqr = get_lapack_funcs(
    ("sytrd", "sytrd_lwork", "sterf", "stevd", "ormqr"), dtype=np.float64
)

(_ormqr_single,) = get_lapack_funcs(("ormqr",), dtype=np.float32)

ZERO = 1e-7
"""σ at or below this share of σ₁ is numerically zero: a float64 Gram resolves 1e-8·σ₁, float32 input 1e-7·σ₁."""


@dataclass(frozen=True, slots=True)
class Tridiagonal:
    """G = Q T Qᵀ as LAPACK's dsytrd leaves it.

    Attributes:
        diagonal: Of T, [q].
        off: Off-diagonal of T, [q − 1].
        reflectors: Householder vectors of Q below the diagonal, [q, q].
        tau: Their scalars, [q − 1].
    """

    diagonal: Float64[np.ndarray, " q"]
    off: Float64[np.ndarray, " q_minus_1"]
    reflectors: Float64[np.ndarray, "q q"]
    tau: Float64[np.ndarray, " q_minus_1"]


def accumulate(gram: Float64[np.ndarray, "q q"], block: Float[np.ndarray, "c q"]) -> None:
    """Add blockᵀ·block to the lower triangle of `gram`, in place and in float64.

    Args:
        gram: Fortran-ordered accumulator; the upper triangle is never touched.
        block: Rows of the long orientation; any dtype, C- or Fortran-ordered.
    """
    block = block.astype(np.float64, order="K", copy=False)
    if block.flags.f_contiguous:
        _syrk(1.0, block, beta=1.0, c=gram, trans=1, lower=1, overwrite_c=1)
    else:
        _syrk(1.0, np.ascontiguousarray(block).T, beta=1.0, c=gram, trans=0, lower=1, overwrite_c=1)


def gram(blocks: Iterable[Float[np.ndarray, "_ q"]], q: int) -> Float64[np.ndarray, "q q"]:
    """The lower triangle of Σ blockᵀ·block, Fortran-ordered."""
    total = np.zeros((q, q), order="F")
    for block in blocks:
        accumulate(total, block)
    return total


def tridiagonalise(total: Float64[np.ndarray, "q q"]) -> Tridiagonal:
    """Reduce a Gram matrix (lower triangle read, then overwritten) to tridiagonal form."""
    q = len(total)
    if q == 1:  # LAPACK's wrapper refuses the empty off-diagonal
        return Tridiagonal(total[0].copy(), np.empty(0), total, np.empty(0))
    work, _ = _sytrd_lwork(q, lower=1)
    reflectors, diagonal, off, tau, info = _sytrd(total, lower=1, lwork=int(work), overwrite_a=1)
    _check("dsytrd", info)
    return Tridiagonal(diagonal, off, reflectors, tau)


def singular_values(form: Tridiagonal) -> Float64[np.ndarray, " q"]:
    """All singular values, descending: the roots of the eigenvalues of G, clamped at 0."""
    if len(form.diagonal) == 1:
        return np.sqrt(np.maximum(form.diagonal, 0.0))
    values, info = _sterf(form.diagonal, form.off)
    _check("dsterf", info)
    return np.sqrt(np.maximum(values[::-1], 0.0))


def short_vectors(form: Tridiagonal, k: int) -> Float64[np.ndarray, "q k"]:
    """The k leading eigenvectors of G (singular vectors of the short side) as orthonormal columns."""
    q = len(form.diagonal)
    if q == 1:
        return np.ones((1, 1))
    _, vectors = eigh_tridiagonal(form.diagonal, form.off, select="i", select_range=(q - k, q - 1))
    return _back(form, vectors[:, ::-1])


def complete_vectors(
    form: Tridiagonal, k: int
) -> tuple[Float64[np.ndarray, " q"], Float32[np.ndarray, "q q"], Float64[np.ndarray, "q k"]]:
    """All singular values, descending, all vectors of the short side in float32, and the k leading ones in float64.

    By divide and conquer: six to nine times faster than asking `short_vectors` for all (measured at q = 1536). The
    vectors of T are found in float64: a float32 T would mix all those below 3e-4·σ₁, and save a tenth of the time.
    """
    if len(form.diagonal) == 1:
        return np.sqrt(np.maximum(form.diagonal, 0.0)), np.ones((1, 1), np.float32), np.ones((1, 1))
    values, vectors, info = _stevd(form.diagonal, form.off, compute_v=1)
    _check("dstevd", info)
    vectors = vectors[:, ::-1]
    return np.sqrt(np.maximum(values[::-1], 0.0)), _back(form, vectors, np.float32), _back(form, vectors[:, :k])


def _back(form: Tridiagonal, vectors: Float64[np.ndarray, "q k"], dtype: type = np.float64) -> np.ndarray:
    """Q times eigenvectors of T."""
    # Q = diag(1, Q') with Q' stored as the reflectors of a QR factorisation one row further down.
    multiply = _ormqr if dtype is np.float64 else _ormqr_single
    with np.errstate(over="ignore"):  # what may overflow lies above the diagonal and is not read
        below = form.reflectors[1:, :-1].astype(dtype, order="F")
    lower = vectors[1:].astype(dtype, order="F")
    tau = form.tau.astype(dtype)
    _, work, _ = multiply("L", "N", below, tau, lower, -1)
    lower, _, info = multiply("L", "N", below, tau, lower, int(work[0]), overwrite_c=1)
    _check("ormqr", info)
    return np.vstack([vectors[:1].astype(dtype), lower])


def long_vectors(
    blocks: Iterable[Float[np.ndarray, "_ q"]],
    short: Float64[np.ndarray, "q k"],
    sigma: Float64[np.ndarray, " k"],
) -> Float64[np.ndarray, "p k"]:
    """The other side, X·v/σ, made exactly orthonormal by QR.

    Args:
        blocks: The long orientation, cut along p (one more pass).
        short: Vectors of the short side.
        sigma: Their singular values, all above ZERO·σ₁.
    """
    product = np.concatenate([block.astype(np.float64) @ short for block in blocks]) / sigma
    orthonormal, triangle = np.linalg.qr(product)
    return orthonormal * np.where(np.diag(triangle) < 0, -1.0, 1.0)  # QR may flip a column; keep X·v = +σ·u


def certificate(
    blocks: Iterable[Float[np.ndarray, "_ q"]],
    long: Float64[np.ndarray, "p k"],
    short: Float64[np.ndarray, "q k"],
    sigma: Float64[np.ndarray, " k"],
    left_is_long: bool,
) -> float:
    """max over kept vectors of ‖ΔWᵀu − σv‖/σ₁ (docs/measures.md §1), the proof that they are what they say.

    Args:
        blocks: The long orientation of ΔW, cut along p (one more pass).
        long: Vectors of the long side.
        short: Vectors of the short side.
        sigma: Singular values.
        left_is_long: Whether u lives on the long side (rows ≥ cols).
    """
    if left_is_long:
        image = np.zeros_like(short)
        start = 0
        for block in blocks:
            image += block.astype(np.float64).T @ long[start : start + len(block)]
            start += len(block)
        residual = image - short * sigma
    else:
        residual = np.concatenate([block.astype(np.float64) @ short for block in blocks]) - long * sigma
    return float(np.max(np.linalg.norm(residual, axis=0)) / sigma[0])


def fix_signs(
    left: Float64[np.ndarray, "m k"], right: Float64[np.ndarray, "n k"]
) -> tuple[Float32[np.ndarray, "k m"], Float32[np.ndarray, "k n"]]:
    """Rows for storage, with the largest |entry| of each left vector positive and the right one following."""
    top = np.abs(left).argmax(axis=0)
    signs = np.where(left[top, np.arange(left.shape[1])] < 0, -1.0, 1.0)
    return (
        np.ascontiguousarray((left * signs).T, dtype=np.float32),
        np.ascontiguousarray((right * signs).T, dtype=np.float32),
    )


def _check(routine: str, info: int) -> None:
    if info != 0:
        raise np.linalg.LinAlgError(f"{routine} failed with info={info}")
