"""The context task of one matrix: its delta against its base (docs/measures.md §4).

Both sides are held in float32, so matrices over 2²⁷ entries (512 MB a side) have no context; in practice these are
embeddings, whose rows are tokens and whose principal directions say little about training.
"""

from dataclasses import dataclass
from math import asin
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

from deltalens.checkpoint.pair import Row
from deltalens.checkpoint.read import BLOCK_BYTES, HELD_ENTRIES, read_matrix
from deltalens.spectrum.basis import (
    Basis,
    Products,
    decompose,
    drift,
    energies,
    products,
    scaling,
    scaling_null_sd,
    slabs,
    spectral_energy,
    tuned_gram,
    turned,
)
from deltalens.spectrum.delta import Delta
from deltalens.spectrum.draw import chunks
from deltalens.spectrum.edge import lanczos_top, seed_of, signs
from deltalens.spectrum.gram import ZERO, long_vectors, short_vectors, singular_values, tridiagonalise
from deltalens.spectrum.krylov import SPARE, STEPS, top_triplets
from deltalens.spectrum.masks import MASK_K, expected, masks, overlaps
from deltalens.spectrum.ranks import numerical_rank
from deltalens.store.parts import Part
from deltalens.store.schema import CONTEXT

_LARGEST = 1e15
"""Larger entries would overflow in float32 products; weights are a millionth of a millionth of it."""


@dataclass(frozen=True, slots=True)
class ContextSettings:
    """Everything besides the inputs that a context number may depend on.

    Attributes:
        k: Principal singular vectors; a matrix uses at most half of its short side (`context_k` says how many).
        block_bytes: Largest block read from one side, as float32.
        seed: Of the sign flips behind the null angles.
        threads: BLAS threads; sums are taken in another order with another count.
    """

    k: int = 16
    block_bytes: int = BLOCK_BYTES
    seed: int = 0
    threads: int = 1


def cost(row: Row) -> float:
    """Arithmetic of one context task, in the unit of `checkpoint.plan.flops`; 0 where there is no context."""
    m, n = row.shape
    q = min(m, n)
    if m * n > HELD_ENTRIES:
        return 0.0
    grams = 2.5 * m * n * q  # a float64 Gram matrix, a cross product and a Gram matrix in float32
    frames = (2 * 4 / 3 + 4 / 3 + 2 + 1) * q**3  # two tridiagonal forms, all vectors of one, κ
    return grams + frames + (6 * MASK_K + 4 * STEPS * (16 + SPARE)) * m * n


def measure_context(row: Row, settings: ContextSettings, target_norm: float | None = None) -> Part:
    """Measure the delta of one 2-D tensor against its base.

    Angles are in radians. A null angle or rotation is that of W_base + Δ∘E with E one seeded ±1 matrix, not rounded
    again (the drawn nulls are).

    Args:
        row: The pair of tensors.
        settings: Of the context pass.
        target_norm: Scale Δ to this norm and round again first, as `--size-matched` does.

    Returns:
        A part without arrays whose row holds every column of `store.schema.CONTEXT`, `context_k`, `seconds_context` and
        `context_reason`. Where a number is undefined it is None; where all are (zero base, zero delta, NaN or Inf, over
        2²⁷ entries), so is `context_k`, and the reason says why.
    """
    began = perf_counter()
    if row.shape[0] * row.shape[1] > HELD_ENTRIES:
        return _part({}, None, "more than 2^27 entries: both sides are not held", began)
    assert row.base is not None and row.tuned is not None
    base, tuned = (read_matrix(info, settings.block_bytes) for info in (row.base, row.tuned))
    if reason := unusable(base) or unusable(tuned):
        return _part({}, None, reason, began)
    basis = decompose(long(base), settings.k)
    if basis is None:
        return _part({}, None, "the base matrix is zero", began)
    delta = np.subtract(tuned, base, out=tuned) if target_norm is None else matched(row, settings, target_norm)
    norm_sq = square(delta)
    if norm_sq == 0:
        return _part({}, None, "the delta is zero", began)
    norm = norm_sq**0.5
    x = long(delta)
    made = products(basis, x)
    both, on_long, on_short = energies(basis, made, norm_sq)
    sigma, after = frame(basis, x, made)
    own = made.own
    largest = lanczos_top(lambda v: own @ v, len(own), 0)  # any start will do
    changed = delta != 0
    held = masks(base, basis)
    found: dict[str, Any] = {
        "principal_energy": both,
        "spectral_energy": spectral_energy(basis, made, norm_sq),
        "spectral_drift": drift(basis.sigma, sigma, norm),
        "spectral_drift_null": max(row.shape) ** -0.5,
        "scaling": scaling(basis, sigma),
        "scaling_null_sd": scaling_null_sd(basis, norm),
        **overlaps(held, changed),
        **{f"{name}_expected": value for name, value in expected(held, base, changed).items()},
    }
    del held, changed, made, own
    flipped = _flip(x, delta, base, seed_of(row.name.name, settings.seed))
    null = top_triplets(flipped, basis.k, basis.short[:, : basis.k + SPARE])
    sides: dict[str, dict[str, float | None]] = {"long": {"energy": on_long}, "short": {"energy": on_short}}
    for side, start, end, other in (
        ("long", basis.long_k, None if after is None else after[0], null[0]),
        ("short", basis.short_k, None if after is None else after[1], null[2]),
    ):
        sides[side] |= _rotation(start, end, basis.gap / largest if largest > 0 else None)
        turn, sine = turned(start, other)
        sides[side] |= {"rotation_null": turn, "angle_null": asin(sine)}
    for side, name in zip(("long", "short"), sides_of(row), strict=True):
        found |= {f"{name}_{key}": value for key, value in sides[side].items()}
    return _part(found, basis.k, None, began)


def matched(row: Row, settings: Any, target_norm: float) -> Float32[np.ndarray, "r c"]:
    """Δ in its stored orientation, scaled to a norm and rounded again.

    Args:
        row: The pair of tensors, of at most 2²⁷ entries.
        settings: Anything with `block_bytes`.
        target_norm: ‖Δ‖ to reach.
    """
    delta = Delta(row, settings.block_bytes, target_norm=target_norm)
    delta.scan()
    assert delta.held is not None
    return np.ascontiguousarray(delta.held.T) if row.transposed else delta.held


def long(w: Float32[np.ndarray, "r c"]) -> Float32[np.ndarray, "p q"]:
    """The long orientation: w, or a view of its transpose when it is wide."""
    return w if w.shape[0] >= w.shape[1] else w.T


def sides_of(row: Row) -> tuple[str, str]:
    """What the long and the short side of a stored tensor are: (left, right) or (right, left)."""
    assert row.base is not None
    rows_are_long = row.base.shape[0] >= row.base.shape[1]
    return ("left", "right") if rows_are_long != row.transposed else ("right", "left")


def square(w: Float32[np.ndarray, "r c"]) -> float:
    """‖w‖² in float64."""
    flat = (w[rows].ravel().astype(np.float64) for rows in chunks(w))
    return float(sum(part @ part for part in flat))


def frame(
    basis: Basis, delta: Float32[np.ndarray, "p q"], made: Products
) -> tuple[Float64[np.ndarray, " q"], tuple[Float64[np.ndarray, "p k"], Float64[np.ndarray, "q k"]] | None]:
    """The spectrum of x + Δ and its k leading vectors (long, short), None where it has fewer."""
    form = tridiagonalise(tuned_gram(basis, delta, made))
    sigma = singular_values(form)
    if numerical_rank(sigma, ZERO) < basis.k:
        return sigma, None
    short = short_vectors(form, basis.k)
    tuned = (x + d for x, d in zip(slabs(basis.x), slabs(delta), strict=True))
    return sigma, (long_vectors(tuned, short, sigma[: basis.k]), short)


def _rotation(
    before: Float64[np.ndarray, "d k"], after: Float64[np.ndarray, "d k"] | None, gap: float | None
) -> dict[str, float | None]:
    """Rotation, angle and Wedin ratio of one side; `gap` is γ_k/‖Δ‖₂."""
    if after is None:
        return {"rotation": None, "angle": None, "wedin": None}
    turn, sine = turned(before, after)
    return {"rotation": turn, "angle": asin(sine), "wedin": None if gap is None else sine * gap}


def _flip(
    x: Float32[np.ndarray, "p q"],
    delta: Float32[np.ndarray, "r c"],
    base: Float32[np.ndarray, "r c"],
    seed: int,
) -> Float32[np.ndarray, "p q"]:
    """W_base + Δ∘E in the long orientation, in place of the delta that x is a view of."""
    start = 0
    for slab in slabs(x):
        slab *= signs(start, len(slab), x.shape[1], seed)
        start += len(slab)
    delta += base
    return x


def unusable(w: Float32[np.ndarray, "r c"]) -> str | None:
    """Why a side has no context, None if nothing stands against it."""
    low, high = float(w.min()), float(w.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        return "NaN or Inf"
    return f"entries above {_LARGEST:g} in size" if max(high, -low) > _LARGEST else None


def _part(found: dict[str, Any], k: int | None, reason: str | None, began: float) -> Part:
    row = {name: found.get(name) for name in CONTEXT}
    return Part({**row, "context_k": k, "context_reason": reason, "seconds_context": perf_counter() - began}, {})
