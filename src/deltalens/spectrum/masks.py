"""Entry masks of a base matrix: how much of the changed entries lies in them, and how much |w| alone explains.

The low-magnitude mask holds the entries of smallest |w|, the principal mask those of largest |rank-k reconstruction|.
16-bit rounding hides small changes of large weights, so every overlap with them is first of all a function of |w|:
none is shown without the expectation given |w|, the row's norm and the column's norm (docs/measures.md §4).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8

from deltalens.spectrum.basis import Basis

ALPHAS = (10, 30, 50)
"""Percent of the entries in a mask: the shares that the literature uses."""

MASK_K = 64
"""Rank of the reconstruction behind the principal mask, as in the published follow-ups."""

PATTERNS = 16
"""An entry's place: how many low masks hold it (0–3), times four, plus how many principal masks do."""

_CODES = 2**15  # upper half of |float32|: 128 steps a binade, in the order of the values
_QUANTILES = 256  # bins of |w| on a large matrix
_GROUPS = 10  # deciles of row norms and of column norms on a large matrix
_CELL = 32  # entries that a cell should hold, else its expectation is its own observation
_CHUNK = 2**20  # entries at a time: temporaries of a few MB


@dataclass(frozen=True, slots=True)
class Masks:
    """The masks of one base matrix w, in its stored orientation.

    Attributes:
        pattern: Place of every entry, see `PATTERNS`.
        k: Rank of the reconstruction.
    """

    pattern: UInt8[np.ndarray, "r c"]
    k: int


def masks(w: Float32[np.ndarray, "r c"], basis: Basis) -> Masks:
    """Build the six masks.

    Ties at a threshold all belong to the mask, so it may hold a little more than its share.

    Args:
        w: The base, C-contiguous; `basis.x` is w or its transpose.
        basis: Of w.
    """
    k = max(1, min(MASK_K, basis.x.shape[1] // 2, basis.rank))
    short = basis.short[:, :k]
    long = basis.x @ short
    left, right = (long, short) if basis.x.shape == w.shape and basis.x.flags.c_contiguous else (short, long)
    right = np.ascontiguousarray(right.T)

    def low() -> Iterator[tuple[slice, np.ndarray]]:
        for rows in _chunks(w):
            yield rows, np.abs(w[rows])

    def principal() -> Iterator[tuple[slice, np.ndarray]]:
        for rows in _chunks(w):
            part = left[rows] @ right
            yield rows, np.abs(part, out=part)

    pattern = np.zeros(w.shape, np.uint8)
    held = [-(-w.size * a // 100) for a in ALPHAS]
    for limit in _thresholds(low, held, w.size):
        for rows, size in low():
            pattern[rows] += (size <= limit).view(np.uint8) << 2
    limits = _thresholds(principal, [w.size + 1 - count for count in held], w.size)
    for rows, size in principal():
        for limit in limits:
            pattern[rows] += (size >= limit).view(np.uint8)
    return Masks(pattern, k)


def overlaps(held: Masks, changed: Bool[np.ndarray, "r c"]) -> dict[str, float]:
    """|mask ∩ changed|/|changed| for the six masks, NaN where nothing changed."""
    counts = np.zeros(2 * PATTERNS, np.int64)
    for rows in _chunks(held.pattern):  # counting both kinds is faster than picking one out
        place = held.pattern[rows] + changed[rows].view(np.uint8) * np.uint8(PATTERNS)
        counts += np.bincount(place.ravel(), minlength=2 * PATTERNS)
    return _shares(counts[PATTERNS:].astype(np.float64))


def expected(held: Masks, w: Float32[np.ndarray, "r c"], changed: Bool[np.ndarray, "r c"]) -> dict[str, float]:
    """The overlaps that |w|, row norms and column norms explain: Σ_c |mask ∩ c|·(changed share of c)/|changed|.

    Cells c are up to 256 quantiles of |w| × deciles of the rows' ‖w‖ × deciles of the columns' ‖w‖, fewer on a small
    matrix. The low mask is itself a function of |w|, so its expectation nearly equals it: that overlap can only say
    what |w| says.
    """
    bins, groups = _resolution(w.size)
    codes = np.zeros(_CODES, np.int64)
    squares = np.zeros(w.shape[0]), np.zeros(w.shape[1])
    for rows in _chunks(w):
        codes += np.bincount(_code(np.abs(w[rows])).ravel(), minlength=_CODES)
        square = w[rows].astype(np.float64) ** 2
        squares[0][rows] = square.sum(axis=1)
        squares[1][:] += square.sum(axis=0)
    before = np.cumsum(codes) - codes
    bin_of = (before * bins // w.size).astype(np.int32) * (groups * groups * PATTERNS)
    row, col = (_groups(norms, groups) for norms in squares)
    row, col = row * (groups * PATTERNS), col * PATTERNS
    size = bins * groups * groups * PATTERNS
    counts = np.zeros(2 * size, np.int64)
    for rows in _chunks(w):
        place = bin_of[_code(np.abs(w[rows]))]
        place += row[rows, None]
        place += col
        place += held.pattern[rows]
        place += changed[rows] * np.int32(size)
        counts += np.bincount(place.ravel(), minlength=2 * size)
    still, moved = counts.reshape(2, -1, PATTERNS)
    whole = still + moved
    rate = moved.sum(axis=1) / np.maximum(whole.sum(axis=1), 1)
    return _shares(rate @ whole)


def _shares(counts: np.ndarray) -> dict[str, float]:
    """Six shares from (expected) counts of changed entries per pattern."""
    table, total = counts.reshape(4, 4), counts.sum()
    if total == 0:
        return {f"mask_{mask}_{a}": float("nan") for mask in ("low", "principal") for a in ALPHAS}
    low, principal = table.sum(axis=1), table.sum(axis=0)
    # The masks are nested: an entry of the smallest is in all three, one of the largest only has place 1.
    return {
        f"mask_{mask}_{a}": float(line[len(ALPHAS) - i :].sum() / total)
        for mask, line in (("low", low), ("principal", principal))
        for i, a in enumerate(ALPHAS)
    }


def _thresholds(
    parts: Callable[[], Iterator[tuple[slice, np.ndarray]]], ranks: list[int], size: int
) -> list[np.float32]:
    """The values at these ranks (1 = smallest) of a non-negative matrix that is never held whole."""
    codes = np.zeros(_CODES, np.int64)
    for _, part in parts():
        codes += np.bincount(_code(part).ravel(), minlength=_CODES)
    above = np.cumsum(codes)
    ranks = [min(max(rank, 1), size) for rank in ranks]
    homes = [int(np.searchsorted(above, rank)) for rank in ranks]
    found: dict[int, list[np.ndarray]] = {home: [] for home in homes}
    for _, part in parts():
        code = _code(part)
        for home, values in found.items():
            values.append(part[code == home])
    limits: list[np.float32] = []
    for rank, home in zip(ranks, homes, strict=True):
        values, place = np.concatenate(found[home]), rank - 1 - int(above[home] - codes[home])
        limits.append(np.partition(values, place)[place])
    return limits


def _code(size: np.ndarray) -> np.ndarray:
    """The upper half of non-negative float32 numbers."""
    return (size.view(np.uint32) >> 16).astype(np.uint16)


def _groups(norms: np.ndarray, groups: int) -> Int64[np.ndarray, " d"]:
    """Which of `groups` equal parts each norm lies in, by rank."""
    order = np.empty(len(norms), np.int64)
    order[np.argsort(norms, kind="stable")] = np.arange(len(norms))
    return order * groups // len(norms)


def _resolution(size: int) -> tuple[int, int]:
    """Bins of |w| and groups of norms such that a cell holds about 32 entries."""
    bins = min(_QUANTILES, max(8, size // (_CELL * _GROUPS**2)))
    return bins, max(1, min(_GROUPS, isqrt(size // (_CELL * bins))))


def _chunks(w: np.ndarray) -> Iterator[slice]:
    step = max(1, _CHUNK // w.shape[1])
    for start in range(0, w.shape[0], step):
        yield slice(start, start + step)
