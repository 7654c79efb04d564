"""What each operator makes of one tensor: the table of operators, line by line.

    interpolate   W_b + λΔ              lox        W_t + αΔ_k
    truncate      W_b + αΔ_k            contrast   W + k(θ⁺ − θ⁻)
    revert        W_t − αΔ_k            cut        (I − αQQᵀ)W of a writer, W(I − αQQᵀ) of a reader and of embed
    negate        W_b − αΔ              restore    W + αP_U(W_ref − W)P_V, a side may be left out
    add           b + αv

Δ = W_t − W_b. Where a whole delta is taken (rank `full`) nothing is decomposed: the coefficients of W_b and W_t say it.
"""

import numpy as np
from jaxtyping import Float64

from deltalens.edit.form import Form

Basis = Float64[np.ndarray, "_ _"]
"""Orthonormal columns."""

_RANK = 1e-6  # directions are stored in float32


def interpolate(base: Form, delta: Form, strength: float) -> Form:
    """W_b + λΔ (task arithmetic of one vector, arXiv 2212.04089; the transition of arXiv 2510.10977)."""
    return base + strength * delta


def truncate(base: Form, part: Form, strength: float) -> Form:
    """W_b + αΔ_k: only the leading part of the delta, put in."""
    return base + strength * part


def revert(now: Form, part: Form, strength: float) -> Form:
    """W − αΔ_k: the leading part of the delta, taken out."""
    return now - strength * part


def negate(base: Form, delta: Form, strength: float) -> Form:
    """W_b − αΔ: the opposite of what was learned (arXiv 2212.04089)."""
    return base - strength * delta


def lox(now: Form, part: Form, strength: float) -> Form:
    """W + αU_kU_kᵀΔ = W + αΔ_k: further along the leading part (arXiv 2506.15606)."""
    return now + strength * part


def contrast(now: Form, plus: Form, minus: Form, strength: float) -> Form:
    """W + k(θ⁺ − θ⁻) (contrastive weight steering, arXiv 2511.05408)."""
    return now + strength * (plus - minus)


def cut_output(now: Form, q: Basis, strength: float) -> Form:
    """(I − αQQᵀ)W: at α = 1 nothing is written along Q any more (arXiv 2406.11717)."""
    return now + Form.product(q, -strength * now.transposed_times(q))


def cut_input(now: Form, q: Basis, strength: float) -> Form:
    """W(I − αQQᵀ): at α = 1 nothing is read along Q any more."""
    return now + Form.product(-strength * now.times(q), q.T.copy())


def restore(now: Form, reference: Form, left: Basis | None, right: Basis | None, strength: float) -> Form:
    """W + αP_U(W_ref − W)P_V: the reference again inside a block (the subspace form of arXiv 2508.16546, ours)."""
    missing = reference - now
    if left is None:
        assert right is not None
        return now + Form.product(strength * missing.times(right), right.T.copy())
    rows = left.T @ missing.times(right) @ right.T if right is not None else missing.transposed_times(left)
    return now + Form.product(strength * left, rows)


def add(now: Form, vector: Float64[np.ndarray, " d"], strength: float) -> Form:
    """b + αv: the output moves by αv at every token."""
    return now + Form.product(strength * vector[:, None], np.ones((1, 1)))


def orthonormal(columns: Float64[np.ndarray, "d r"], size: float) -> Basis:
    """An orthonormal basis of a span; what lies below 1e-6 of a size is rounding, and left out.

    Args:
        columns: They may depend on each other, or all be 0: then the basis has no column.
        size: The largest singular value that columns of this kind could have.
    """
    left, sigma, _ = np.linalg.svd(columns, full_matrices=False)
    return np.ascontiguousarray(left[:, sigma > _RANK * size])
