"""Structureless deltas: noise on a base, rounded as the tuned side was stored, at a size of choice."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import sqrt

import numpy as np
from jaxtyping import Float32, Int64

from deltalens.errors import BadInput
from deltalens.spectrum.matching import find_scale
from deltalens.spectrum.noise import binade_index
from deltalens.spectrum.rounding import to_grid

NULLS = ("gaussian", "permuted", "laplace", "proportional")
"""Every null: i.i.d. normal, the observed delta permuted within binades of |w|, i.i.d. Laplace, |w| times normal."""

_CHUNK = 2**18  # entries at a time: the temporaries stay in the cache
_PRECISION = 0.1
"""Calibration error in units of the target's own sampling spread: a mismatch of 1 % in size would be 40 of them on a
large matrix, and every zero share would then "survive" its null."""


@dataclass(slots=True)
class Draw:
    """One draw: W_base, unit noise, and the delta that storage would show at some scale.

    Attributes:
        base: W_base in its stored orientation.
        noise: Of any size.
        dtype: That the tuned side is stored in.
        scale: Last asked for.
        delta: round(W_base + scale·noise) − W_base at it.
        norm: ‖delta‖.
        changed: Share of its entries that are not zero.
    """

    base: Float32[np.ndarray, "r c"]
    noise: Float32[np.ndarray, "r c"]
    dtype: str
    delta: Float32[np.ndarray, "r c"] = field(init=False)
    scale: float = 0.0
    norm: float = 0.0
    changed: float = 0.0

    def __post_init__(self) -> None:
        self.delta = np.empty_like(self.base)

    def at(self, scale: float) -> None:
        """Round at this scale; fills `delta`, `norm` and `changed`."""
        square, changed = 0.0, 0
        for rows in chunks(self.base):
            tuned = self.noise[rows] * np.float32(scale)
            tuned += self.base[rows]
            part = np.subtract(to_grid(tuned, self.dtype), self.base[rows], out=self.delta[rows])
            square += float(np.sum(part.astype(np.float64) ** 2))
            changed += int(np.count_nonzero(part))
        self.scale, self.norm, self.changed = scale, sqrt(square), changed / self.base.size


def noise(null: str, rng: np.random.Generator, base: Float32[np.ndarray, "r c"]) -> Float32[np.ndarray, "r c"]:
    """Noise of one kind in the shape of a base.

    Raises:
        BadInput: An unknown null, or `permuted`, which is made of a delta.
    """
    if null == "gaussian":
        return rng.standard_normal(base.shape, dtype=np.float32)
    if null == "laplace":
        size = rng.standard_exponential(base.shape, dtype=np.float32)
        size *= rng.integers(0, 2, base.shape, dtype=np.int8) * 2 - 1
        return size
    if null == "proportional":
        return rng.standard_normal(base.shape, dtype=np.float32) * np.abs(base)
    raise BadInput(f"there is no null called {null}", f"one of {', '.join(NULLS)}")


@dataclass(frozen=True, slots=True)
class Groups:
    """Entries of a base sorted by group.

    Attributes:
        order: Flat positions, group by group.
        bounds: Where each group starts in it, and the end.
    """

    order: Int64[np.ndarray, " n"]
    bounds: Int64[np.ndarray, " g"]


def binade_groups(base: Float32[np.ndarray, "r c"]) -> Groups:
    """Entries by the binade of |w|, with +2^e and −2^e apart.

    From a power of two the next number towards zero is only half a step away; such half steps, put on any other
    entry of the binade, would be rounded away, and the null would hold fewer changes than the delta.
    """
    bits = base.view(np.uint32).ravel()
    power = (bits & 0x7FFFFF) == 0
    group = (binade_index(bits) * 3 + np.where(power, 1 + (bits >> 31), 0)).astype(np.uint16)
    order = np.argsort(group, kind="stable")
    return Groups(order, np.concatenate([[0], np.cumsum(np.bincount(group))]))


def permuted(delta: Float32[np.ndarray, "r c"], groups: Groups, rng: np.random.Generator) -> Float32[np.ndarray, "r c"]:
    """The entries of a delta shuffled within the groups: sizes keep their dependence on |w|, rows and columns go."""
    values = delta.ravel()[groups.order]
    for start, stop in zip(groups.bounds, groups.bounds[1:], strict=False):
        rng.shuffle(values[start:stop])
    out = np.empty_like(values)
    out[groups.order] = values
    return out.reshape(delta.shape)


def calibrated(seen: Draw, calibration: str, target: float, start: float | None = None) -> float:
    """Scale a draw until the rounded delta has the target's size; leaves it at the scale that it returns.

    To a tenth of the spread that sampling alone gives the target, or as near as single entries allow.

    Args:
        seen: The draw.
        calibration: `norm` (target ‖Δ‖) or `zeros` (target share of changed entries).
        target: Above zero.
        start: A scale to begin with, that of an earlier draw.

    Raises:
        BadInput: An unknown calibration.
    """
    if calibration not in ("norm", "zeros"):
        raise BadInput(f"there is no calibration called {calibration}", "norm or zeros")
    size = seen.base.size
    if calibration == "norm":
        spread = sqrt(1 / (2 * size))
        first = target / (sqrt(float(np.sum(seen.noise.astype(np.float64) ** 2))) or 1.0)
    else:
        spread = sqrt(max(1 - target, 1 / size) / (target * size))
        first = 1e-3 * (float(np.mean(np.abs(seen.base))) or 1.0)

    def reached(scale: float) -> float:
        seen.at(scale)
        return seen.norm if calibration == "norm" else seen.changed

    scale = find_scale(reached, target, first if start is None else start, _PRECISION * spread)
    if seen.scale != scale:
        seen.at(scale)
    return scale


def chunks(w: np.ndarray) -> Iterator[slice]:
    """Slices of rows that stay in the cache."""
    step = max(1, _CHUNK // w.shape[1])
    for start in range(0, w.shape[0], step):
        yield slice(start, start + step)
