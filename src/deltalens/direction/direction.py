"""A direction: one or more vectors of one space of the model, with what they are and where they came from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64

SAMPLES = "samples"
"""Kind of the rows that a difference of means was taken from: no direction, but what its nulls are drawn from."""

_RANK = 1e-5  # float32 rows are independent down to about 1e-6 of their size


UNITS = ("raw", "residual")
"""What a strength multiplies: the vector as it is stored, or a vector as long as mean ‖h‖."""


@dataclass(frozen=True, slots=True)
class Direction:
    """One direction, or a subspace given by several vectors.

    Attributes:
        id: Its name, unique within a bank: `layers.2.mlp.down_proj.left`, `layers.2.difference`.
        vectors: Rows [k, d] in raw length: where the method defines one (a difference of means) it is that, else 1.
        layer: Which layer it belongs to, None for what has none (embed, lm_head).
        kind: The kind of the matrix, or `writers`, `difference`, `pca`, `probe`, `mean_write`, `samples`.
        space: What its d entries are, by `spaces.SPACE_OF`: residual, attn_in or mlp_in (the stream behind a norm),
            heads, head space, neurons, vocabulary; or experts, positions, unknown. Only directions of one space are
            ever compared.
        site: Where it acts or was read, by the names of `model.sites`; None where there is no such site.
        sigma: Singular values of the rows; None where the rows have none.
        unit: How a strength α is meant by default: `raw` multiplies the vector, `residual` is in units of mean‖h‖.
        sign: `arbitrary`, `oriented` (⟨u, E[ΔW x]⟩ > 0 on reasoning prompts) or `contrast` (towards the first group).
        contrast: The groups that a `contrast` compares, in words; None for weights.
        source: Inputs and side results as plain JSON values.
        seeds: Of everything drawn.
    """

    id: str
    vectors: Float32[np.ndarray, "k d"]
    layer: int | None
    kind: str
    space: str
    site: str | None = None
    sigma: tuple[float, ...] | None = None
    unit: str = "raw"
    sign: str = "arbitrary"
    contrast: str | None = None
    source: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()

    @property
    def basis(self) -> Float64[np.ndarray, "d r"]:
        """An orthonormal basis of the span of the rows, as columns (r ≤ k)."""
        rows = self.vectors.astype(np.float64)
        # Rows of equal weight: a direction counts as independent whatever its length.
        rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
        _, sigma, right = np.linalg.svd(rows, full_matrices=False)
        return np.ascontiguousarray(right[sigma > _RANK * sigma[0]].T)

    @property
    def record(self) -> dict[str, Any]:
        """All but the vectors, as plain JSON values."""
        return {name: getattr(self, name) for name in FIELDS}

    def only(self, i: int) -> "Direction":
        """Its vector `i` alone."""
        sigma = None if self.sigma is None else (self.sigma[i],)
        return replace(self, id=f"{self.id}:{i}", vectors=self.vectors[i : i + 1], sigma=sigma)


FIELDS = tuple(f.name for f in fields(Direction) if f.name != "vectors")
"""What `record` holds."""
