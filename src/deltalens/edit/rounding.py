"""From float32 to the bytes of a stored dtype: to the nearest, or at random with a seed; and what that loses."""

import hashlib
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64

from deltalens.checkpoint.dtypes import DTYPES, sixteen_bit
from deltalens.spectrum.rounding import to_grid


@dataclass(slots=True)
class Gap:
    """What storing an edited tensor made of its change, summed block by block.

    Attributes:
        wanted: ‖W′ − W‖².
        written: ‖W″ − W‖², W″ as stored.
        product: ⟨W″ − W, W′ − W⟩.
    """

    wanted: float = 0.0
    written: float = 0.0
    product: float = 0.0

    def add(self, before: Float64[np.ndarray, "_ n"], wanted: np.ndarray, written: np.ndarray) -> None:
        """Count one block."""
        a, b = (wanted - before).ravel(), (written - before).ravel()
        self.wanted += float(a @ a)
        self.written += float(b @ b)
        self.product += float(a @ b)

    @property
    def strength(self) -> float:
        """Achieved strength ⟨W″ − W, W′ − W⟩/‖W′ − W‖²: 1 where nothing is lost."""
        return self.product / self.wanted if self.wanted else 1.0

    @property
    def cosine(self) -> float:
        """Of the change as written with the change as wanted; 0 where nothing was written."""
        size = (self.wanted * self.written) ** 0.5
        return self.product / size if size else float(self.wanted == self.written)


def generator(name: str, seed: int) -> np.random.Generator:
    """The source of a tensor's random rounding, the same whatever else is written."""
    digest = hashlib.sha256(f"round/{seed}/{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def rounded(
    x: Float32[np.ndarray, "m n"], dtype: str, chance: np.random.Generator | None = None
) -> Float32[np.ndarray, "m n"]:
    """The float32 values that a tensor stored as `dtype` would be read back with.

    Args:
        x: Values.
        dtype: BF16, F16, F32 or F64.
        chance: Where given, a 16-bit value lies on either neighbour with a probability that makes its mean exact.
    """
    if chance is None or not sixteen_bit(dtype):
        return to_grid(x, dtype)
    step = _steps(x, dtype)
    size = np.floor(np.abs(x.astype(np.float64)) / step + chance.random(x.shape)) * step
    return to_grid(np.copysign(size, x).astype(np.float32), dtype)


def to_bytes(x: Float32[np.ndarray, "..."], dtype: str) -> bytes:
    """Values that lie on the grid of a dtype as its little-endian bytes."""
    if dtype == "BF16":
        return (np.ascontiguousarray(x).view(np.uint32) >> 16).astype("<u2").tobytes()
    return x.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def _steps(x: Float32[np.ndarray, "m n"], dtype: str) -> Float64[np.ndarray, "m n"]:
    """The distance of the two grid values around each entry."""
    form = DTYPES[dtype]
    assert form.precision is not None and form.e_min is not None
    _, exponents = np.frexp(x)
    return np.ldexp(1.0, np.maximum(exponents - 1, form.e_min) - form.precision)
