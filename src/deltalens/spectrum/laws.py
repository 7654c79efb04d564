"""Families of updates fitted to the zero shares of the binades by maximum likelihood (docs/measures.md §2)."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.special import erf

_ERRORS = 3.0  # standard errors by which a binade may miss
_MATCH = 0.05  # and, of zeros and of moves alike, this part: the scale is then right to 2 %
_STEPS = 50  # of Fisher scoring; 5 to 10 are usual

Law = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Family:
    """A family of updates that explains every binade.

    Attributes:
        scale: Root mean square s of the entries that move.
        sparsity: π₀, the share of those that do not.
        error: Standard error of log s.
        sparsity_error: Standard error of π₀.
    """

    scale: float
    sparsity: float
    error: float
    sparsity_error: float


def share_error(n: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Standard error of the zero shares z/n that does not vanish at 0 and 1 (Agresti and Coull's centre)."""
    centre = (z + 2) / (n + 4)
    return np.sqrt(centre * (1 - centre) / n) + 1 / n


def families(steps: np.ndarray, n: np.ndarray, z: np.ndarray, free: bool) -> list[Family]:
    """Those of the Gaussian and the Laplace family whose maximum-likelihood fit reproduces every binade.

    Args:
        steps: u of each binade.
        n: Its entries.
        z: Its zeros, of which a family predicts the share π₀ + (1 − π₀)·P(|update| < u/2).
        free: Whether π₀ is fitted; else it is 0.
    """
    share, error = z / n, share_error(n, z)
    room = _ERRORS * error + _MATCH * np.minimum(share, 1 - share)
    found = []
    for law in (_gaussian, _laplace):
        family = _likelihood(law, steps, n, z, free)
        fitted = family.sparsity + (1 - family.sparsity) * law(steps / (2 * family.scale))[0]
        if np.all(np.abs(fitted - share) <= room):
            found.append(family)
    return found


def _gaussian(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """P(|v| < x) and its derivative for unit variance."""
    return erf(x / np.sqrt(2)), np.sqrt(2 / np.pi) * np.exp(-(x**2) / 2)


def _laplace(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    root = np.sqrt(2)
    return -np.expm1(-root * x), root * np.exp(-root * x)


def _likelihood(law: Law, steps: np.ndarray, n: np.ndarray, z: np.ndarray, free: bool) -> Family:
    """s, π₀ and the standard errors of log s and π₀ that maximise the binomial likelihood; π₀ = 0 unless `free`."""

    def shares(log_s: np.ndarray, atom: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = steps / (2 * np.exp(log_s)[..., None])
        below, density = law(x)
        rest = 1 - atom[..., None]
        return np.clip(1 - rest * (1 - below), 1e-12, 1 - 1e-12), -rest * x * density, 1 - below

    def score(log_s: np.ndarray, atom: np.ndarray) -> np.ndarray:
        zero = shares(log_s, atom)[0]
        return np.log(zero) @ z + np.log1p(-zero) @ (n - z)

    atoms = np.array([0.0, 0.02, 0.1, 0.3, 0.5, 0.7, 0.85, 0.95, 0.98]) if free else np.zeros(1)
    grid = np.arange(np.log(steps[0] / 4), np.log(steps[-1] * 4), 0.35)
    a, b = (axis.ravel() for axis in np.meshgrid(grid, atoms, indexing="ij"))
    best = int(np.argmax(score(a, b)))
    point = np.array([a[best], b[best]])
    value = float(score(point[:1], point[1:])[0])
    information = np.eye(2)
    for _ in range(_STEPS):
        zero, by_scale, by_atom = (found[0] for found in shares(point[:1], point[1:]))
        gradient = np.array([by_scale, by_atom if free else np.zeros_like(by_atom)])
        precision = n / (zero * (1 - zero))
        information = gradient * precision @ gradient.T
        information[1, 1] += 0.0 if free else 1.0
        step = np.linalg.lstsq(information, gradient @ (precision * (z / n - zero)), rcond=None)[0]
        step *= min(1.0, 1 / max(abs(step[0]), 1e-300))
        for _ in range(20):
            trial = point + step
            trial[1] = np.clip(trial[1], 0.0, 1 - 1e-9)
            reached = float(score(trial[:1], trial[1:])[0])
            if reached >= value:
                break
            step = step / 2
        else:
            break
        moved = float(np.abs(trial - point).max())
        point, value = trial, reached
        if moved < 1e-7:
            break
    if free and point[1] <= 0:
        information = np.diag([information[0, 0], 1.0])
    errors = np.sqrt(np.maximum(np.diag(np.linalg.pinv(information)), 0.0))
    return Family(float(np.exp(point[0])), float(point[1]), float(errors[0]), float(errors[1]))
