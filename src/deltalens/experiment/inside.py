"""How much of one delta lies inside the leading singular subspaces of another, beside what chance puts there (ours).

U and V are the k leading left and right singular vectors of Δ₁, k its spikes (docs/measures.md §2), 16 where it has
none; P = UUᵀ, Q = VVᵀ. Then

    ‖Δ₂‖² = ‖PΔ₂Q‖² + ‖PΔ₂(1 − Q)‖² + ‖(1 − P)Δ₂Q‖² + ‖(1 − P)Δ₂(1 − Q)‖²
              shared       left only       right only            new

and of the shared part what lies along Δ₁'s own leading part Δ₁ₖ *undoes* it where it points against it, *repeats* it
where it points along, and the rest *turns* it. Nulls of a share, of which the largest decides (of `new` the smallest):

    isotropic     an unstructured Δ₂: k/m, k/n, k²/mn
    sign flip     Δ₂ with every sign drawn at random, in expectation: Σᵢⱼ PᵢᵢQⱼⱼ(Δ₂)ᵢⱼ² of the shared part, and so on.
                  It knows which rows and columns changed most
    other layer   the first k directions of another Δ₁ of the same kind and shape

None of them knows the inputs: unrelated deltas on the same inputs share their right subspaces, so that shares on the
right, or on both sides, are no evidence by themselves (docs/measures.md §4).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.pair import Row
from deltalens.spectrum.delta import Delta, Sums
from deltalens.spectrum.edge import MOST_VECTORS
from deltalens.spectrum.gram import ZERO, long_vectors, short_vectors
from deltalens.spectrum.matrix import Settings, spectrum_of
from deltalens.spectrum.ranks import numerical_rank

RANK = 16
"""k of a delta without spikes: the number of vectors that `measure` keeps."""

PARTS = ("undone", "repeated", "turned", "left_only", "right_only", "new")
"""What ‖Δ₂‖² is made of; these shares sum to 1."""

SHARES = ("shared_left", "shared_right", "shared", *PARTS)

Null = tuple[float, str]
"""A value and the name of the null that gives it."""


@dataclass(frozen=True, slots=True)
class Leading:
    """Leading singular vectors of a delta in its long orientation, as columns.

    Attributes:
        long: Of the long side, more than k of them: a null of another layer takes that layer's k.
        short: Of the short side.
        sigma: Their singular values.
        k: How many count as leading.
        spikes: Whether these are spikes; else they are 16, or as many as the delta has.
        noise: `noise_sigma` of the delta.
    """

    long: Float64[np.ndarray, "p h"]
    short: Float64[np.ndarray, "q h"]
    sigma: Float64[np.ndarray, " h"]
    k: int
    spikes: bool
    noise: float


@dataclass(frozen=True, slots=True)
class Inside:
    """Shares of ‖Δ₂‖² inside the subspaces of Δ₁.

    Attributes:
        long: On the long side, whatever the other.
        short: On the short side.
        both: On both.
        undone: Along −Δ₁ₖ.
        repeated: Along Δ₁ₖ.
    """

    long: float
    short: float
    both: float
    undone: float
    repeated: float


def leading(row: Row, delta: Delta, sums: Sums) -> Leading:
    """The leading vectors of a delta, and up to 256 in all.

    Args:
        row: The pair of tensors.
        delta: Of them, scanned.
        sums: What the scan found, all finite.
    """
    found = spectrum_of(row, delta, sums, Settings())
    rank, spikes = numerical_rank(found.sigma, ZERO), found.spikes.count
    held = min(MOST_VECTORS, rank)
    short, long = np.empty((delta.short, 0)), np.empty((delta.long, 0))
    if held:
        short = short_vectors(found.form, held)
        long = long_vectors(delta.blocks(), short, found.sigma[:held])
    return Leading(long, short, found.sigma[:held], min(spikes or RANK, held), spikes > 0, found.noise)


def wide(delta: Delta) -> Iterator[Float64[np.ndarray, "_ q"]]:
    """Blocks of the long orientation in float64, copies."""
    return (block.astype(np.float64) for block in delta.blocks())


def shares(
    here: Leading, elsewhere: Leading | None, second: Delta, energy: float, tall: bool
) -> dict[str, tuple[float, Null]]:
    """Every share of ‖Δ₂‖² and its deciding null.

    Args:
        here: Of Δ₁.
        elsewhere: Of another layer's Δ₁, for a null.
        second: Δ₂, scanned.
        energy: ‖Δ₂‖², not 0.
        tall: Whether the left side is the long one.
    """
    k, p, q = here.k, second.long, second.short
    seen, flipped = inside(here, k, second, energy)
    nulls = {"isotropic": Inside(k / p, k / q, k * k / (p * q), 1 / (2 * p * q), 1 / (2 * p * q)), "sign flip": flipped}
    if elsewhere is not None:
        nulls["other layer"] = inside(elsewhere, k, second, energy)[0]
    drawn = {name: _named(null, tall) for name, null in nulls.items()}
    return {
        metric: (value, (min if metric == "new" else max)((named[metric], name) for name, named in drawn.items()))
        for metric, value in _named(seen, tall).items()
    }


def inside(first: Leading, k: int, second: Delta, energy: float) -> tuple[Inside, Inside]:
    """What lies inside the first k directions of a delta, and what would in expectation under random signs."""
    u, v, sigma = first.long[:, :k], first.short[:, :k], first.sigma[:k]
    if not u.shape[1]:
        return Inside(0.0, 0.0, 0.0, 0.0, 0.0), Inside(0.0, 0.0, 0.0, 0.0, 0.0)
    on_u, on_v = np.sum(u * u, axis=1), np.sum(v * v, axis=1)  # diagonals of P and Q
    image = np.zeros((u.shape[1], len(v)))  # UᵀΔ₂
    short = flip_long = flip_short = flip_both = flip_along = 0.0
    start = 0
    for x in wide(second):
        rows = slice(start, start + len(x))
        image += u[rows].T @ x
        short += float(np.sum((x @ v) ** 2))
        x *= x
        by_row = x @ on_v
        flip_long += float(on_u[rows] @ x.sum(axis=1))
        flip_short += float(by_row.sum())
        flip_both += float(on_u[rows] @ by_row)
        flip_along += float(np.sum(((u[rows] * sigma) @ v.T) ** 2 * x))
        start += len(x)
    core = image @ v
    along, length = float(sigma @ np.diag(core)), float(sigma @ sigma)  # ⟨Δ₁ₖ, Δ₂⟩, ‖Δ₁ₖ‖²
    seen = (np.sum(image**2), short, np.sum(core**2), min(0.0, along) ** 2 / length, max(0.0, along) ** 2 / length)
    half = flip_along / length / 2  # either sign is as likely
    return (
        Inside(*(float(part / energy) for part in seen)),
        Inside(flip_long / energy, flip_short / energy, flip_both / energy, half / energy, half / energy),
    )


def _named(found: Inside, tall: bool) -> dict[str, float]:
    left, right = (found.long, found.short) if tall else (found.short, found.long)
    both = found.both
    return {
        "shared_left": left,
        "shared_right": right,
        "shared": both,
        "undone": found.undone,
        "repeated": found.repeated,
        # Differences of equal sums may round below 0.
        "turned": max(0.0, both - found.undone - found.repeated),
        "left_only": max(0.0, left - both),
        "right_only": max(0.0, right - both),
        "new": max(0.0, 1 - left - right + both),
    }
