"""Leading singular triplets of a matrix in memory, in float32: what a null needs many times and only to 1e-5."""

import numpy as np
from jaxtyping import Float, Float32, Float64

from deltalens.spectrum.gram import ZERO, gram, long_vectors, short_vectors, singular_values, tridiagonalise

EXACT_SHORT = 512
"""Up to this short side the float64 Gram matrix costs less than the Krylov steps."""

SPARE = 8
"""Vectors in the block beyond those asked for: the k-th converges by its distance to the (k + 9)-th value."""

STEPS = 8
"""Block Krylov steps; from a start within a few degrees the residual is at float32's own level by then."""

_TINY = np.finfo(np.float32).tiny


def top_triplets(
    x: Float32[np.ndarray, "p q"],
    k: int,
    start: Float[np.ndarray, "q b"] | None = None,
    seed: int = 0,
    steps: int = STEPS,
    exact_short: int = EXACT_SHORT,
) -> tuple[Float64[np.ndarray, "p k"], Float64[np.ndarray, " k"], Float64[np.ndarray, "q k"]]:
    """(long vectors, singular values, short vectors) of the k largest singular values, descending.

    Exact (float64 Gram matrix) on a small short side; block Lanczos on xᵀx with full re-orthogonalisation and one
    float64 Rayleigh–Ritz step otherwise (Golub and Underwood 1977; Musco and Musco 2015 for the block's convergence).

    Args:
        x: The long orientation, C- or Fortran-ordered; needs at least k singular values above zero.
        k: How many.
        start: Approximate leading short vectors; random by default.
        seed: Of the random start.
        steps: Krylov steps of a block of k + 8 (or of the width of `start`).
        exact_short: Largest q that takes the exact way.
    """
    p, q = x.shape
    width = min(q, k + SPARE)
    if q <= exact_short or width * steps >= q:
        form = tridiagonalise(gram((x[i : i + 1024] for i in range(0, p, 1024)), q))
        sigma, short = singular_values(form)[:k], short_vectors(form, k)
        divisor = np.maximum(sigma, ZERO * sigma[0])  # a σ of 0 has no long vector; QR completes the frame
        return long_vectors((x[i : i + 1024] for i in range(0, p, 1024)), short, divisor), sigma, short
    if start is None:
        start = np.random.default_rng(seed).standard_normal((q, width), dtype=np.float32)
    block = np.linalg.qr(start.astype(np.float32))[0]
    width = block.shape[1]
    basis = np.empty((q, width * steps), np.float32, order="F")
    image = np.empty((p, width * steps), np.float32, order="F")
    for i in range(steps):
        here = slice(i * width, (i + 1) * width)
        basis[:, here] = block
        image[:, here] = x @ block
        if i + 1 < steps:
            block = x.T @ (image[:, here] / max(np.abs(image[:, here]).max(), _TINY))  # σ² may underflow in float32
            for _ in range(2):  # twice is enough (Kahan and Parlett)
                done = basis[:, : here.stop]
                block = np.linalg.qr(block - done @ (done.T @ block))[0]
    wide = image.astype(np.float64)
    _, vectors = np.linalg.eigh(wide.T @ wide)
    vectors = vectors[:, : -k - 1 : -1]
    short, turn = np.linalg.qr(basis.astype(np.float64) @ vectors)
    long, triangle = np.linalg.qr(wide @ vectors)
    flips = np.where(np.diag(turn) * np.diag(triangle) < 0, -1.0, 1.0)  # QR may flip columns; keep x·v = +σ·u
    return long * flips, np.abs(np.diag(triangle)), short
