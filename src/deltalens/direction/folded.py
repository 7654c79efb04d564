"""One delta with the gains of its norms multiplied in: W_t·diag(γ_t) − W_b·diag(γ_b), in float64 blocks, and its SVD.

γ is trained too, so the change of what a matrix reads is not ΔW·diag(γ). The product of weight and gain is taken in
float64: rounded to float32 it would carry an error of 1e-7·W, which a small delta would show.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from deltalens.checkpoint.pair import Row
from deltalens.checkpoint.read import BLOCK_BYTES, Reader
from deltalens.spectrum.gram import (
    ZERO,
    certificate,
    fix_signs,
    gram,
    long_vectors,
    short_vectors,
    singular_values,
    tridiagonalise,
)
from deltalens.spectrum.ranks import numerical_rank

Gains = tuple[Float64[np.ndarray, " d"], Float64[np.ndarray, " d"]]
"""γ of base and tuned."""


@dataclass(frozen=True, slots=True)
class Folded:
    """A delta between gains.

    Attributes:
        row: The pair of tensors.
        left: Gains on the output side, None for none.
        right: Gains on the input side, None for none.
        centred: Whether the norm before it subtracts the mean: every row of the product then has its own taken out.
    """

    row: Row
    left: Gains | None = None
    right: Gains | None = None
    centred: bool = False

    @property
    def tall(self) -> bool:
        """Whether the output side is the long one."""
        return self.row.shape[0] >= self.row.shape[1]

    def blocks(self) -> Iterator[Float64[np.ndarray, "c q"]]:
        """The long orientation (itself if tall, else its transpose), cut along its long side."""
        if self.centred and not self.tall:  # the mean over the inputs needs all of them first
            mean = sum(block.sum(axis=0) for block in self._products()) / self.row.shape[1]
            yield from (block - mean for block in self._products())
            return
        for block in self._products():
            yield block - block.mean(axis=1, keepdims=True) if self.centred else block

    def _products(self) -> Iterator[Float64[np.ndarray, "c q"]]:
        row, gains = self.row, (self.left, self.right) if self.tall else (self.right, self.left)
        assert row.base is not None and row.tuned is not None
        p, q = max(row.shape), min(row.shape)
        step = max(1, BLOCK_BYTES // (8 * q))
        by_rows = self.tall != row.transposed  # the long side lies along the stored rows
        with Reader(row.base) as base, Reader(row.tuned) as tuned:
            for start in range(0, p, step):
                cut = slice(start, min(p, start + step))
                parts = []
                for i, reader in enumerate((base, tuned)):
                    stored = reader.rows(cut.start, cut.stop) if by_rows else reader.cols(cut.start, cut.stop).T
                    part = stored.astype(np.float64)
                    if gains[0] is not None:
                        part *= gains[0][i][cut, None]
                    if gains[1] is not None:
                        part *= gains[1][i]
                    parts.append(part)
                yield parts[1] - parts[0]

    def times(self, x: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " m"]:
        """Δ·x."""
        if self.tall:
            return np.concatenate([block @ x for block in self.blocks()])
        total, start = np.zeros(self.row.shape[0]), 0
        for block in self.blocks():
            total += x[start : start + len(block)] @ block
            start += len(block)
        return total


@dataclass(frozen=True, slots=True)
class Triples:
    """Leading singular triples of a delta.

    Attributes:
        left: Output-side vectors as rows.
        right: Input-side vectors as rows.
        spectrum: All singular values, descending.
        certificate: max ‖Δᵀu − σv‖/σ₁ over the vectors.
    """

    left: Float32[np.ndarray, "k m"]
    right: Float32[np.ndarray, "k n"]
    spectrum: Float64[np.ndarray, " q"]
    certificate: float


def leading(delta: Folded, top: int) -> Triples | None:
    """The `top` leading singular triples, fewer where the numerical rank is lower; None of a zero delta."""
    form = tridiagonalise(gram(delta.blocks(), min(delta.row.shape)))
    spectrum = singular_values(form)
    k = min(top, numerical_rank(spectrum, ZERO))
    if k == 0:
        return None
    short = short_vectors(form, k)
    long = long_vectors(delta.blocks(), short, spectrum[:k])
    proof = certificate(delta.blocks(), long, short, spectrum[:k], left_is_long=delta.tall)
    return Triples(*fix_signs(*((long, short) if delta.tall else (short, long))), spectrum, proof)
