"""Deltas whose truth is known: noise, planted low rank, rounding to a 16-bit grid; and the estimators run on them."""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from deltalens.spectrum.delta import Delta
from deltalens.spectrum.edge import find_spikes
from deltalens.spectrum.gram import Tridiagonal, gram, singular_values, tridiagonalise
from deltalens.spectrum.noise import BINADES, binade_index, floor_edge, grid_steps, noise_sigma
from deltalens.statistics import wilson

TORCH = {"BF16": torch.bfloat16, "F16": torch.float16}
WEIGHT = 0.02
"""Standard deviation of the planted weights, that of a typical linear layer."""

SEED = 20261122


def generator(*key: object) -> np.random.Generator:
    """An independent stream for one cell of one part: the same numbers whatever else runs, and in which order."""
    return np.random.default_rng([SEED, zlib.crc32(repr(key).encode())])


class Held(Delta):
    """A delta in memory with what the Gram and the edge ask of one; no checkpoint is written for a trial."""

    def __init__(self, x: np.ndarray) -> None:
        self.tall = x.shape[0] >= x.shape[1]
        self.x = np.ascontiguousarray(x if self.tall else x.T, np.float32)
        self.rows, self.cols = x.shape
        self.long, self.short = self.x.shape
        self.held = self.x

    def blocks(self) -> Iterator[np.ndarray]:
        """One block: the long orientation."""
        yield self.x


@dataclass(slots=True)
class Found:
    """What the estimators say about one delta.

    Attributes:
        delta: The matrix.
        form: Tridiagonal form of its Gram matrix.
        sigma: Its spectrum.
        spikes: Their number.
        edge: The sign-flip edge.
    """

    delta: Held
    form: Tridiagonal
    sigma: np.ndarray
    spikes: int
    edge: float


def find(x: np.ndarray, seed: int, floor: float = 0.0) -> Found:
    """Spectrum and spikes of one delta, by the code that `measure` runs."""
    delta = Held(x)
    form = tridiagonalise(gram(delta.blocks(), delta.short))
    sigma = singular_values(form)
    spikes = find_spikes(delta, form, sigma, floor, seed)
    return Found(delta, form, sigma, spikes.count, spikes.edge)


def threshold(m: int, n: int) -> float:
    """Weakest planted singular value that any method can see in i.i.d. unit noise, (mn)^¼."""
    return (m * n) ** 0.25


def frame(rng: np.random.Generator, d: int, k: int) -> np.ndarray:
    """K random orthonormal columns in d dimensions."""
    return np.linalg.qr(rng.standard_normal((d, k)))[0]


def low_rank(rng: np.random.Generator, m: int, n: int, strengths: list[float]) -> np.ndarray:
    """A matrix with the given singular values and uniformly random singular vectors."""
    return (frame(rng, m, len(strengths)) * np.array(strengths)) @ frame(rng, n, len(strengths)).T


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """X rounded to the nearest even neighbour on the grid of `dtype`, as float32."""
    return torch.from_numpy(np.ascontiguousarray(x)).to(TORCH[dtype]).float().numpy()


def weights(rng: np.random.Generator, m: int, n: int, dtype: str) -> np.ndarray:
    """Gaussian weights on the grid of `dtype`, as float32."""
    return rounded(WEIGHT * rng.standard_normal((m, n)), dtype)


def binades(w: np.ndarray) -> np.ndarray:
    """Entries per float32 exponent."""
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32).ravel()
    return np.bincount(binade_index(bits), minlength=BINADES)


def steps(w: np.ndarray, dtype: str) -> np.ndarray:
    """The grid step at every entry of w."""
    bits = np.ascontiguousarray(w, np.float32).view(np.uint32).ravel()
    return grid_steps(dtype)[binade_index(bits)].reshape(w.shape)


def rounding_noise(base: np.ndarray, tuned: np.ndarray, dtype: str, model: str) -> float:
    """`noise_sigma` of a stored pair."""
    return noise_sigma(model, binades(base), binades(tuned), dtype, dtype)


def scaled_noise(rng: np.random.Generator, m: int, n: int) -> np.ndarray:
    """Gaussian entries with log-normal scales (σ = .5) on the rows and on the columns."""
    return rng.standard_normal((m, n)) * np.exp(rng.normal(0, 0.5, (m, 1)) + rng.normal(0, 0.5, n))


def jittered(dtype: str, share: float) -> Callable[[np.random.Generator, int, int], tuple[np.ndarray, float]]:
    """Deltas of pairs whose tuned side is the base plus noise of `share` of a grid step, rounded again."""

    def draw(rng: np.random.Generator, m: int, n: int) -> tuple[np.ndarray, float]:
        base = weights(rng, m, n, dtype)
        tuned = rounded(base + share * steps(base, dtype) * rng.standard_normal((m, n)), dtype)
        return tuned - base, floor_edge(rounding_noise(base, tuned, dtype, "tuned_rounded"), m, n)

    return draw


def exported_twice(dtype: str) -> Callable[[np.random.Generator, int, int], tuple[np.ndarray, float]]:
    """Deltas of two independent roundings of one float32 master.

    Rounding to nearest is deterministic, so independence comes from a dither: each export rounds the master plus
    its own uniform error of up to half a step, which is stochastic rounding.
    """

    def draw(rng: np.random.Generator, m: int, n: int) -> tuple[np.ndarray, float]:
        master = (WEIGHT * rng.standard_normal((m, n))).astype(np.float32)
        step = steps(master, dtype)
        one, two = (rounded(master + step * (rng.random((m, n)) - 0.5), dtype) for _ in range(2))
        return two - one, floor_edge(rounding_noise(one, two, dtype, "both_rounded"), m, n)

    return draw


def free(
    draw: Callable[[np.random.Generator, int, int], np.ndarray],
) -> Callable[[np.random.Generator, int, int], tuple[np.ndarray, float]]:
    """Float32 noise, which has no rounding floor."""
    return lambda rng, m, n: (draw(rng, m, n), 0.0)


NOISES: dict[str, Callable[[np.random.Generator, int, int], tuple[np.ndarray, float]]] = {
    "i.i.d. Gaussian": free(lambda rng, m, n: rng.standard_normal((m, n))),
    "row- and column-scaled": free(scaled_noise),
    "Student t₃": free(lambda rng, m, n: rng.standard_t(3, (m, n))),
    "bf16(W + N(0, (ulp/4)²))": jittered("BF16", 0.25),
    "bf16(W + N(0, ulp²))": jittered("BF16", 1.0),
    "bf16, master exported twice": exported_twice("BF16"),
    "fp16(W + N(0, (ulp/4)²))": jittered("F16", 0.25),
    "fp16(W + N(0, ulp²))": jittered("F16", 1.0),
    "fp16, master exported twice": exported_twice("F16"),
}
"""Deltas without structure, each with the rounding floor that `measure` would give them."""


def target(name: str, goal: str, measured: str, met: bool | None, n: int | None = None, note: str = "") -> dict:
    """One line of the summary; `met` None for a figure reported without a target."""
    return {"name": name, "goal": goal, "measured": measured, "met": met, "n": n, "note": note}


def rate(successes: int, n: int) -> str:
    """A rate with Wilson's 95 % interval, in per cent."""
    low, high = wilson(successes, n)
    return f"{100 * successes / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
