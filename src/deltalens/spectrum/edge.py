"""Spikes: singular values that neither rounding nor the sizes of the entries can explain (docs/measures.md §2).

The null spectrum is σ₁ of the delta with the sign of every entry drawn at random. Sign flips keep each entry's size,
and with it row scales, column scales and heavy tails, and destroy any low rank that is spread over rows and columns.
Spikes already found are taken out first, else they would raise the edge that they are judged by.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from deltalens.spectrum.delta import Delta
from deltalens.spectrum.gram import (
    ZERO,
    Tridiagonal,
    accumulate,
    gram,
    long_vectors,
    short_vectors,
    singular_values,
    tridiagonalise,
)

EXACT_SHORT = 512
"""Up to this short side σ₁ is exact; above it 30 Lanczos steps find it to better than the edge's own spread."""

DRAWS = 3
"""Sign matrices up to `EXACT_SHORT`. Their largest σ₁ stands higher where rows and columns are uneven and hardly higher
where they are alike, so a narrower margin over it is safe for both. Above, two more would triple the edge's cost."""

MARGIN, MARGIN_LANCZOS = 1.1, 1.5
"""Head room of the edge times √q, over the largest of `DRAWS` and over the single one. On row- and column-scaled noise
(the worst of nine) 1.1 over three alarms in about .1 % of them, 1.1 over one in about 1 % (docs/truth.md, *one E*)."""

MOST_VECTORS = 256
MOST_ROUNDS = 8
_SIGN_ROWS = 1024  # rows of X per seeded draw, so that the signs do not depend on block sizes


@dataclass(frozen=True, slots=True)
class Spikes:
    """The outcome for one delta.

    Attributes:
        edge: `bulk_edge`, in units of σ.
        count: `spikes`, at most 256.
        capped: Whether more than 256 lie above both edges.
    """

    edge: float
    count: int
    capped: bool


def seed_of(name: str, seed: int) -> int:
    """A 64-bit seed for one matrix, the same on every machine."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{name}".encode()).digest()[:8], "little")


def find_spikes(delta: Delta, form: Tridiagonal, sigma: Float64[np.ndarray, " q"], floor: float, seed: int) -> Spikes:
    """Count the singular values above both the rounding floor and the sign-flip edge.

    The edge is (1 + c/√q)·σ₁(R∘E)/√((1 − k/m)(1 − k/n)), with R = Δ less the k spikes found so far and E a seeded ±1
    matrix, the same in every round: c = 1.1 and the largest σ₁ of three E up to q = 512, c = 1.5 and one E above.
    k starts at 0, may only grow, and the search stops when it is unchanged, after at most 8 rounds.

    Args:
        delta: Its blocks are read once per round.
        form: Tridiagonal form of its Gram matrix, for the vectors of the spikes.
        sigma: Its complete spectrum.
        floor: `floor_edge`.
        seed: Of E.
    """
    q, p = delta.short, delta.long
    zero = ZERO * sigma[0]
    # A power of two that brings Δ near 1: squares of a float32 delta of 1e±20 leave float32's range.
    scale = 2.0 ** float(np.clip(-np.frexp(sigma[0])[1], -126, 126))
    k, edge = 0, 0.0
    margin = 1 + (MARGIN if q <= EXACT_SHORT else MARGIN_LANCZOS) / q**0.5
    for _ in range(MOST_ROUNDS):
        if k >= q:  # nothing is left to flip
            break
        flipped = _top(_residual(delta, form, sigma, k, scale), delta, seed) / scale
        edge = float(margin * flipped / ((1 - k / q) * (1 - k / p)) ** 0.5)
        found = int(np.count_nonzero(sigma > max(floor, edge, zero)))
        if min(found, MOST_VECTORS) <= k:
            break
        k = min(found, MOST_VECTORS)
    above = int(np.count_nonzero(sigma > max(floor, edge, zero)))
    return Spikes(edge, min(above, MOST_VECTORS), above > MOST_VECTORS)


def _residual(
    delta: Delta, form: Tridiagonal, sigma: Float64[np.ndarray, " q"], k: int, scale: float
) -> Iterator[Float32[np.ndarray, "_ q"]]:
    """Blocks of X less its k leading terms, times `scale`."""
    if k:
        short = short_vectors(form, k)
        left = (long_vectors(delta.blocks(), short, sigma[:k]) * sigma[:k]).astype(np.float32)
        right = short.T.astype(np.float32)
    start = 0
    for block in delta.blocks():
        residual = block - left[start : start + len(block)] @ right if k else block
        yield residual * np.float32(scale)
        start += len(block)


def signs(start: int, count: int, width: int, seed: int, draw: int = 0) -> Float32[np.ndarray, "c q"]:
    """Rows start … start + count of the E numbered `draw`, drawn in fixed groups of rows."""
    first, last = start // _SIGN_ROWS, (start + count - 1) // _SIGN_ROWS
    groups = []
    for group in range(first, last + 1):
        raw = np.random.Philox(key=seed + (draw << 64), counter=group << 64).random_raw(-(-_SIGN_ROWS * width // 64))
        groups.append(np.unpackbits(raw.view(np.uint8), count=_SIGN_ROWS * width).reshape(_SIGN_ROWS, width))
    bits = np.concatenate(groups)[start - first * _SIGN_ROWS :][:count]
    return bits.astype(np.float32) * 2 - 1


def _top(residual: Iterable[Float32[np.ndarray, "_ q"]], delta: Delta, seed: int) -> float:
    """σ₁ of the residual with random signs: exact and the largest of three when small, by Lanczos otherwise."""
    q = delta.short
    if q <= EXACT_SHORT:
        totals = [np.zeros((q, q), order="F") for _ in range(DRAWS)]
        start = 0
        for block in residual:
            for draw, total in enumerate(totals):
                accumulate(total, block * signs(start, len(block), q, seed, draw))
            start += len(block)
        return max(float(singular_values(tridiagonalise(total))[0]) for total in totals)
    if delta.held is None:  # one pass into a Gram matrix instead of sixty over the disk
        total = gram(_flipped(residual, seed), q)
        total += np.tril(total, -1).T
        return lanczos_top(lambda v: (total @ v).astype(np.float32), q, seed)
    whole = np.empty((delta.long, q), np.float32)
    start = 0
    for block in _flipped(residual, seed):
        whole[start : start + len(block)] = block
        start += len(block)
    return lanczos_top(lambda v: whole.T @ (whole @ v), q, seed)


def _flipped(residual: Iterable[Float32[np.ndarray, "_ q"]], seed: int) -> Iterator[Float32[np.ndarray, "_ q"]]:
    """The blocks, times the first E."""
    start = 0
    for block in residual:
        yield block * signs(start, len(block), block.shape[1], seed)
        start += len(block)


def lanczos_top(
    product: Callable[[Float32[np.ndarray, " q"]], Float32[np.ndarray, " q"]],
    q: int,
    seed: int,
    steps: int = 30,
) -> float:
    """√ of the largest eigenvalue of a symmetric positive operator, by Lanczos with full re-orthogonalisation.

    Args:
        product: v ↦ XᵀXv in float32.
        q: Its dimension.
        seed: Of the starting vector.
        steps: Krylov dimension.
    """
    basis = np.zeros((steps, q), np.float32)
    alpha, beta = np.zeros(steps), np.zeros(steps)
    v = np.random.default_rng(seed).standard_normal(q).astype(np.float32)
    v /= np.linalg.norm(v)
    for i in range(steps):
        basis[i] = v
        w = product(v)
        alpha[i] = float(v @ w)
        for _ in range(2):  # twice is enough (Kahan and Parlett)
            w = w - basis[: i + 1].T @ (basis[: i + 1] @ w)
        beta[i] = float(np.linalg.norm(w))
        if beta[i] <= 1e-6 * abs(alpha[0]) or i == steps - 1:
            steps = i + 1
            break
        v = w / np.float32(beta[i])
    tridiagonal = np.diag(alpha[:steps]) + np.diag(beta[: steps - 1], 1) + np.diag(beta[: steps - 1], -1)
    return float(np.sqrt(max(np.linalg.eigvalsh(tridiagonal)[-1], 0.0)))
