"""The delta of one matrix: read in blocks, summed in float64, held whole only when it is small enough.

Orientation: `[rows, cols]` is [out, in]; the *long* orientation X is [p, q] with p ≥ q, the delta itself when it is
tall and its transpose when it is wide. Every algorithm of this room sees blocks of X.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from deltalens.checkpoint.pair import Row
from deltalens.checkpoint.read import HELD_ENTRIES, Reader
from deltalens.spectrum.deadzone import Cells
from deltalens.spectrum.matching import find_scale
from deltalens.spectrum.noise import BINADES, binade_index
from deltalens.spectrum.rounding import to_grid

_CHUNK = 2**18
"""Entries summed at a time: the temporaries stay in the cache, about 3× faster than whole blocks."""

_MATCHED = 1e-3
"""Relative error of a matched norm: far below any difference between two trainings."""

_MATCH_PASSES = 12  # passes over both sides in search of λ; 3 or 4 are usual


@dataclass(slots=True)
class Sums:
    """What one pass over both sides accumulates, in float64 and exact counts.

    Attributes:
        base_sq: ‖W_b‖².
        tuned_sq: ‖W_t‖².
        product: ⟨W_b, W_t⟩.
        zeros: Entries with Δ == 0.
        relative: Entries with |Δ| > 1e-3·max(|w_b|, |w_t|).
        absolute: Entries with |Δ| > 1e-5.
        row_sq: Squared norm of Δ per row.
        col_sq: Squared norm of Δ per column.
        cells: Entries, zeros and ΣΔ² over cells of |w_b|.
        binades_tuned: Entries of W_t per float32 exponent.
    """

    row_sq: Float64[np.ndarray, " m"]
    col_sq: Float64[np.ndarray, " n"]
    base_sq: float = 0.0
    tuned_sq: float = 0.0
    product: float = 0.0
    zeros: int = 0
    relative: int = 0
    absolute: int = 0
    cells: Cells = field(default_factory=Cells.empty)
    binades_tuned: Int64[np.ndarray, " binades"] = field(default_factory=lambda: np.zeros(BINADES, np.int64))

    @property
    def binades_base(self) -> Int64[np.ndarray, " binades"]:
        """Entries of W_b per float32 exponent."""
        return self.cells.binades

    @property
    def delta_sq(self) -> float:
        """‖Δ‖²."""
        return float(self.row_sq.sum())

    @property
    def finite(self) -> bool:
        """Whether neither side holds NaN or Inf and their float32 difference does not overflow."""
        return bool(np.isfinite(self.base_sq + self.tuned_sq + self.delta_sq))

    def add(
        self,
        base: Float32[np.ndarray, "r c"],
        tuned: Float32[np.ndarray, "r c"],
        delta: Float32[np.ndarray, "r c"],
        row: int,
        col: int,
    ) -> None:
        """Count one block whose first entry is at (row, col) of the matrix."""
        step = max(1, _CHUNK // delta.shape[1])
        for a in range(0, len(delta), step):
            self._add(base[a : a + step], tuned[a : a + step], delta[a : a + step], row + a, col)

    def _add(self, b: np.ndarray, t: np.ndarray, d: np.ndarray, row: int, col: int) -> None:
        size = np.abs(d)
        self.zeros += d.size - int(np.count_nonzero(d))
        self.absolute += int(np.count_nonzero(size > np.float32(1e-5)))
        scale = np.maximum(np.abs(b), np.abs(t))
        scale *= np.float32(1e-3)
        self.relative += int(np.count_nonzero(size > scale))
        self.binades_tuned += _binades(t)
        b64, t64 = b.astype(np.float64).ravel(), t.astype(np.float64).ravel()
        self.base_sq += float(b64 @ b64)
        self.tuned_sq += float(t64 @ t64)
        self.product += float(b64 @ t64)
        square = d.astype(np.float64)
        square *= square
        self.cells.add(b, d, square)
        self.row_sq[row : row + len(d)] += square.sum(axis=1)
        self.col_sq[col : col + d.shape[1]] += square.sum(axis=0)


def _binades(w: Float32[np.ndarray, "r c"]) -> Int64[np.ndarray, " binades"]:
    return np.bincount(binade_index(np.ascontiguousarray(w).view(np.uint32).ravel()), minlength=BINADES)


class Delta:
    """Δ of one matrix pair as blocks of its long orientation, from memory or from disk.

    Args:
        row: The pair of tensors; its shape is [rows, cols] after any transposition.
        block_bytes: Largest block read from one side, as float32.
        held_entries: Matrices with more entries are streamed for every pass.
        target_norm: Measure W_b + λΔ rounded to the tuned side's dtype instead of W_t, with λ such that the rounded
            delta has this norm (`measure --size-matched`); a zero delta stays zero.

    Attributes:
        rows: Output dimension m.
        cols: Input dimension n.
        seconds: Time spent reading, upcasting and subtracting in the first pass.
        scale: λ once the first pass has begun, None without a target.
    """

    def __init__(
        self, row: Row, block_bytes: int, held_entries: int = HELD_ENTRIES, target_norm: float | None = None
    ) -> None:
        assert row.base is not None and row.tuned is not None
        self.row = row
        self.rows, self.cols = row.shape
        self.block_bytes = block_bytes
        self.tall = self.rows >= self.cols
        self.long, self.short = max(self.rows, self.cols), min(self.rows, self.cols)
        self.held: Float32[np.ndarray, "m n"] | None = None
        if self.rows * self.cols <= held_entries:
            self.held = np.empty((self.rows, self.cols), np.float32)
        self.seconds = 0.0
        self.target_norm = target_norm
        self.scale: float | None = None

    def scan(self) -> Sums:
        """The first pass: sums over both sides, keeping Δ when it is small enough."""
        self._match()
        sums = Sums(np.zeros(self.rows), np.zeros(self.cols))
        with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf are found in the sums and refused
            for r, c, base, tuned, delta in self._read():
                if self.held is not None:
                    self.held[r : r + delta.shape[0], c : c + delta.shape[1]] = delta
                sums.add(base, tuned, delta, r, c)
        return sums

    def blocks(self) -> Iterator[Float[np.ndarray, "_ q"]]:
        """Blocks of X [p, q], cut along p: views of the held delta, or read again."""
        if self.held is None:
            for _, _, _, _, delta in self._read():
                yield delta if self.tall else delta.T
            return
        whole = self.held if self.tall else self.held.T
        step = max(1, self.block_bytes // (8 * self.short))  # 8: the Gram takes them in float64
        for start in range(0, self.long, step):
            yield whole[start : start + step]

    def _match(self) -> None:
        """Find λ by passes over both sides; rounding makes the size of a delta grow by more or less than λ.

        A stored delta is made of whole steps of the grid, so that many entries cross a threshold at the same λ and the
        norm jumps there: a few percent off in the worst case.
        """
        size = self._norm() if self.target_norm is not None else 0.0
        if not self.target_norm or not 0 < size < np.inf:
            self.scale = 0.0 if self.target_norm == 0 < size < np.inf else None
            return

        def reached(scale: float) -> float:
            self.scale = scale
            return self._norm()

        self.scale = find_scale(reached, self.target_norm, self.target_norm / size, _MATCHED, _MATCH_PASSES, _MATCHED)

    def _norm(self) -> float:
        """‖Δ‖ at the scale in force."""
        with np.errstate(invalid="ignore", over="ignore"):
            return float(np.sqrt(sum(np.sum(delta.astype(np.float64) ** 2) for *_, delta in self._read())))

    def _read(
        self,
    ) -> Iterator[tuple[int, int, Float32[np.ndarray, "r c"], Float32[np.ndarray, "r c"], Float32[np.ndarray, "r c"]]]:
        """(row, col, W_b, W_t, Δ) of blocks that cover the matrix.

        A held matrix is read along the stored rows (contiguous on disk), a streamed one along its long side.
        """
        assert self.row.base is not None and self.row.tuned is not None
        stored_rows = not self.row.transposed  # do the rows of the matrix lie contiguous in the file?
        by_rows = stored_rows if self.held is not None else self.tall
        count, width = (self.rows, self.cols) if by_rows else (self.cols, self.rows)
        step = max(1, self.block_bytes // (4 * width))
        with Reader(self.row.base) as base, Reader(self.row.tuned) as tuned:
            for start in range(0, count, step):
                began = perf_counter()
                stop = min(start + step, count)
                b, t = (
                    reader.rows(start, stop) if by_rows == stored_rows else reader.cols(start, stop)
                    for reader in (base, tuned)
                )
                if self.row.transposed:
                    b, t = b.T, t.T
                delta = t - b
                if self.scale is not None:
                    t = to_grid(b + np.float32(self.scale) * delta, self.row.tuned.dtype)
                    delta = t - b
                self.seconds += perf_counter() - began
                yield (start, 0, b, t, delta) if by_rows else (0, start, b, t, delta)
