"""What an edit makes of one tensor, kept as a formula: W′ = Σ c∘W + L·R over stored tensors W.

Every operator, and every chain of operators, stays in this form. It gives all renderings: the dense tensor in blocks of
rows, the exact low-rank factors of a change, and where the change is dense the stored tensors that make it. A
coefficient of exactly 1 on one tensor and no factors *is* that tensor, bit by bit: whatever takes a whole delta never
meets an SVD.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from jaxtyping import Float32, Float64

from deltalens.checkpoint.header import TensorInfo
from deltalens.checkpoint.read import BLOCK_BYTES, Reader
from deltalens.spectrum.gram import ZERO, gram, long_vectors, short_vectors, singular_values, tridiagonalise
from deltalens.spectrum.ranks import numerical_rank

Mask = float | Float64[np.ndarray, "#m #n"]
"""1 where an operation acts, 0 elsewhere: rows, columns, or one number for the whole tensor."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A stored tensor as a matrix [out, in]; a vector is one column, what has more dimensions is cut after the first.

    Attributes:
        info: Where it lies.
        transposed: Whether it lies there as [in, out].
    """

    info: TensorInfo
    transposed: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        shape = self.info.shape
        if self.transposed:
            return shape[1], shape[0]
        return (shape[0] if shape else 1), prod(shape[1:])

    def rows(self, start: int, stop: int) -> Float32[np.ndarray, "_ n"]:
        """Rows [start, stop)."""
        with Reader(self.info) as reader:
            if self.transposed:
                return reader.cols(start, stop).T
            part = reader.rows(start, stop) if self.info.shape else reader.all()
        return part.reshape(-1, self.shape[1])


@dataclass(frozen=True, slots=True, eq=False)
class Form:
    """Σ c∘W + L·R.

    Attributes:
        shape: Of the result.
        terms: Stored tensors of that shape with their coefficients.
        left: L, float64.
        right: R, float64.
    """

    shape: tuple[int, int]
    terms: tuple[tuple[Stored, Mask], ...]
    left: Float64[np.ndarray, "m r"]
    right: Float64[np.ndarray, "r n"]

    __array_ufunc__ = None  # or numpy would multiply a mask into a form entry by entry

    @classmethod
    def of(cls, stored: Stored) -> "Form":
        """A stored tensor as it is."""
        m, n = stored.shape
        return cls((m, n), ((stored, 1.0),), np.empty((m, 0)), np.empty((0, n)))

    @classmethod
    def product(cls, left: Float64[np.ndarray, "m r"], right: Float64[np.ndarray, "r n"]) -> "Form":
        """L·R."""
        return cls((len(left), right.shape[1]), (), left, right)

    def __add__(self, other: "Form") -> "Form":
        terms = dict(self.terms)
        for stored, c in other.terms:
            terms[stored] = terms.get(stored, 0.0) + c
        kept = tuple((stored, c) for stored, c in terms.items() if np.any(c))
        if np.array_equal(self.right, other.right):  # the same factors again: they add up, and may cancel exactly
            left = self.left + other.left
            there = left.any(axis=0)
            return Form(self.shape, kept, left[:, there], self.right[there])
        left, right = np.hstack([self.left, other.left]), np.vstack([self.right, other.right])
        return Form(self.shape, kept, left, right)

    def __sub__(self, other: "Form") -> "Form":
        return self + -1.0 * other

    def __rmul__(self, mask: Mask) -> "Form":
        """Times a number, or entry by entry times a mask of rows or columns."""
        terms = tuple((stored, mask * c) for stored, c in self.terms)
        left, right = self.left, self.right
        if np.ndim(mask) and np.shape(mask)[0] == 1:  # a mask of columns
            right = mask * right
        else:
            left = mask * left
        kept = left.any(axis=0) & right.any(axis=1)
        kept_terms = tuple((stored, c) for stored, c in terms if np.any(c))
        return replace(self, terms=kept_terms, left=left[:, kept], right=right[kept])

    @property
    def same(self) -> Stored | None:
        """The stored tensor that this is, None if it is none."""
        if self.left.shape[1] or len(self.terms) != 1:
            return None
        stored, c = self.terms[0]
        return stored if np.all(c == 1.0) else None

    @property
    def zero(self) -> bool:
        """Whether nothing is left."""
        return not self.terms and not self.left.shape[1]

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[Float64[np.ndarray, "_ n"]]:
        """Rows in float64, cut into blocks."""
        stop = self.shape[0] if stop is None else stop
        step = max(1, BLOCK_BYTES // (8 * max(1, self.shape[1])))
        for a in range(start, stop, step):
            b = min(a + step, stop)
            # -0.0 is the neutral element of addition, sign of zero included: what is taken whole keeps its bits.
            total = np.full((b - a, self.shape[1]), -0.0)
            for stored, c in self.terms:
                part = c[a:b] if np.ndim(c) and np.shape(c)[0] > 1 else c  # ty: ignore[not-subscriptable]
                total += np.where(part == 0, -0.0, part * stored.rows(a, b).astype(np.float64))
            if self.left.shape[1]:
                added = self.left[a:b] @ self.right
                total += np.where(added == 0, -0.0, added)
            yield total

    def dense(self) -> Float32[np.ndarray, "m n"]:
        """The whole result, rounded once to float32."""
        if (stored := self.same) is not None:
            return np.ascontiguousarray(stored.rows(0, self.shape[0]))
        whole = np.empty(self.shape, np.float32)
        at = 0
        for block in self.blocks():
            whole[at : at + len(block)] = block
            at += len(block)
        return whole

    def times(self, q: Float64[np.ndarray, "n k"]) -> Float64[np.ndarray, "m k"]:
        """W′Q."""
        return np.concatenate([block @ q for block in self.blocks()])

    def transposed_times(self, q: Float64[np.ndarray, "m k"]) -> Float64[np.ndarray, "k n"]:
        """QᵀW′."""
        total, at = np.zeros((q.shape[1], self.shape[1])), 0
        for block in self.blocks():
            total += q[at : at + len(block)].T @ block
            at += len(block)
        return total

    def norm_sq(self) -> float:
        """‖W′‖²."""
        return float(sum(np.sum(block * block) for block in self.blocks()))


@dataclass(frozen=True, slots=True, eq=False)
class Triples:
    """Singular triples of a form.

    Attributes:
        sigma: All singular values, descending; of bare factors those of their rank.
        left: Leading left vectors as columns.
        right: Leading right vectors as columns.
    """

    sigma: Float64[np.ndarray, " q"]
    left: Float64[np.ndarray, "m k"]
    right: Float64[np.ndarray, "n k"]

    @property
    def rank(self) -> int:
        """How many singular values are numerically above zero."""
        return numerical_rank(self.sigma, ZERO) if len(self.sigma) else 0

    def first(self, k: int) -> Form:
        """Δ_k = Σ_{i≤k} σ_i u_i v_iᵀ."""
        k = min(k, self.left.shape[1])
        return Form.product(self.left[:, :k] * self.sigma[:k], self.right[:, :k].T)


def triples(delta: Form, k: int) -> Triples:
    """All singular values of a form and its k leading vectors, fewer where its numerical rank is lower.

    By the float64 Gram matrix of the short side of the float32 difference, as everything is measured; bare factors by
    QR of both and an SVD of the small product, exactly.
    """
    if not delta.terms:
        (a, upper), (b, lower) = np.linalg.qr(delta.left), np.linalg.qr(delta.right.T)
        u, sigma, v = np.linalg.svd(upper @ lower.T)
        found = Triples(sigma, a @ u, b @ v.T)
        k = min(k, found.rank)
        return Triples(sigma, found.left[:, :k], found.right[:, :k])
    tall = delta.shape[0] >= delta.shape[1]
    held = None if tall else delta.dense()  # a wide matrix is read along its columns, which lie apart on disk

    def long() -> Iterator[np.ndarray]:
        if held is None:
            yield from (block.astype(np.float32) for block in delta.blocks())
            return
        step = max(1, BLOCK_BYTES // (8 * len(held)))
        for start in range(0, held.shape[1], step):
            yield held[:, start : start + step].T

    form = tridiagonalise(gram(long(), min(delta.shape)))
    sigma = singular_values(form)
    k = min(k, numerical_rank(sigma, ZERO))
    if k == 0:
        return Triples(sigma, np.empty((delta.shape[0], 0)), np.empty((delta.shape[1], 0)))
    short = short_vectors(form, k)
    far = long_vectors(long(), short, sigma[:k])
    return Triples(sigma, *((far, short) if tall else (short, far)))
