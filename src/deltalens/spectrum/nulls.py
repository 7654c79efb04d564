"""The null ensemble: what a structureless update, seen through the same storage, would show (docs/measures.md §3).

Each draw is noise of the observed size, added to W_base and rounded to the dtype that the tuned side is stored in; then
every number of the context and of the entry masks is taken from the rounded difference, as from the observed one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import asin, nan, sqrt
from typing import Any

import numpy as np
from jaxtyping import Float32

from deltalens.checkpoint.dtypes import sixteen_bit
from deltalens.checkpoint.pair import Row
from deltalens.checkpoint.read import BLOCK_BYTES, read_matrix
from deltalens.errors import BadInput
from deltalens.spectrum.basis import (
    Basis,
    Products,
    decompose,
    drift,
    energies,
    products,
    scaling,
    spectral_energy,
    turned,
)
from deltalens.spectrum.context import frame, long, matched, sides_of, square, unusable
from deltalens.spectrum.draw import NULLS, Draw, binade_groups, calibrated, noise, permuted
from deltalens.spectrum.edge import seed_of
from deltalens.spectrum.krylov import SPARE, top_triplets
from deltalens.spectrum.masks import ALPHAS, Masks, masks, overlaps
from deltalens.statistics import drawn_p, holm
from deltalens.store.parts import Part

MODES = {"default": ("gaussian", "permuted"), "full": NULLS}
"""Which nulls each mode draws."""

SPECTRUM_SHORT = 2048
"""Up to this short side every draw gets its complete spectrum; above it `spectral_drift` and `scaling` are left out
and the angles come from float32 Krylov steps, else one matrix would take an hour."""

MOST_ENTRIES = 2**24
"""Largest matrix drawn for: 20 draws of both default nulls of a 1536 × 8960 matrix take 80 s on one core."""

ZERO_SHARES = (0.02, 0.995)
"""Observed zero shares that say something about the size of an update: outside, a scale fitted to them is noise."""

STATISTICS = (
    *("principal_energy", "left_energy", "right_energy", "spectral_energy"),
    *("left_rotation", "right_rotation", "left_angle", "right_angle", "left_wedin", "right_wedin"),
    *("spectral_drift", "scaling"),
    *(f"mask_{mask}_{alpha}" for mask in ("low", "principal") for alpha in ALPHAS),
    *("zero_fraction", "stable_rank", "top_energy_16"),
)
"""Everything that is compared with draws."""


FEW = 20
"""With fewer entries changed, or unchanged, a mask overlap is a handful of coin flips and its z means nothing."""


@dataclass(frozen=True, slots=True)
class NullSettings:
    """Everything besides the inputs that a null may depend on.

    Attributes:
        mode: `default` (Gaussian and permuted, calibrated by norm) or `full` (also Laplace and |w|-proportional, and
            calibrated by the share of zeros where that is possible).
        draws: Per null, at least 2: a mean and a spread are taken of them.
        seed: Of the draws.
        k: Principal singular vectors, as in the context.
        block_bytes: Largest block read from one side, as float32.
        threads: BLAS threads.

    Raises:
        BadInput: An unknown mode, or fewer than two draws.
    """

    mode: str = "default"
    draws: int = 20
    seed: int = 0
    k: int = 16
    block_bytes: int = BLOCK_BYTES
    threads: int = 1

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise BadInput(f"--nulls {self.mode} is not known", "--nulls off, default or full")
        if self.draws < 2:
            raise BadInput(f"{self.draws} draws have no mean and spread", "2 draws or more; 20 are the default")


def choose(rows: Sequence[Row], mode: str = "default") -> tuple[tuple[Row, ...], dict[str, str]]:
    """The matrices that nulls are drawn for, and why others that stand for a kind and depth were left out.

    One depth per kind, the middle one of the layers that have the kind (the lowest of its experts); the first, middle
    and last in mode `full`. Matrices outside the layers stand for themselves.

    Args:
        rows: Of a pair; only measured ones count.
        mode: `default` or `full`.

    Returns:
        The rows in their given order, and a reason for each canonical name that would have been chosen otherwise.

    Raises:
        BadInput: An unknown mode.
    """
    if mode not in MODES:
        raise BadInput(f"--nulls {mode} is not known", "--nulls off, default or full")
    kinds: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row.status == "measured":
            layer = -1 if row.name.layer is None else row.name.layer
            kinds.setdefault(row.name.kind if layer >= 0 else row.name.name, {}).setdefault(layer, row)
    picked: set[str] = set()
    for layers in kinds.values():
        depths = sorted(layers)
        places = {len(depths) // 2} if mode == "default" else {0, len(depths) // 2, len(depths) - 1}
        picked |= {layers[depths[place]].name.name for place in places}
    chosen, left = [], {}
    for row in rows:
        if row.status == "measured" and row.name.name in picked:
            if row.shape[0] * row.shape[1] > MOST_ENTRIES:
                left[row.name.name] = f"{row.shape[0]} × {row.shape[1]} is more than 2^24 entries"
            else:
                chosen.append(row)
    return tuple(chosen), left


def cost(row: Row, settings: NullSettings) -> float:
    """Arithmetic of one matrix, in the unit of `checkpoint.plan.flops`; zero-share draws are counted as if possible."""
    m, n = row.shape
    q = min(m, n)
    ensembles = 2 if settings.mode == "default" else 2 * len(NULLS) - 1
    spectra = 4 / 3 if q <= SPECTRUM_SHORT else 0.0
    draw = 1.5 * m * n * q + (spectra + 1) * q**3 + 400 * m * n
    return m * n * q + 5 * q**3 + (1 + ensembles * settings.draws) * draw


def measure_nulls(row: Row, settings: NullSettings, target_norm: float | None = None) -> Part:
    """Draw the nulls of one matrix.

    Args:
        row: The pair of tensors.
        settings: Of the ensemble.
        target_norm: Scale Δ to this norm and round again first, as `--size-matched` does.

    Returns:
        A part without arrays whose row holds `rows`, the matrix's lines of `nulls.parquet` (undefined numbers are
        None), and `reason`, why there are none (zero base, zero delta, NaN or Inf), else None.
    """
    assert row.base is not None and row.tuned is not None
    base, tuned = (read_matrix(info, settings.block_bytes) for info in (row.base, row.tuned))
    if reason := unusable(base) or unusable(tuned):
        return Part({"rows": [], "reason": reason}, {})
    delta = np.subtract(tuned, base, out=tuned) if target_norm is None else matched(row, settings, target_norm)
    if not delta.any():
        return Part({"rows": [], "reason": "the delta is zero"}, {})
    basis = decompose(long(base), settings.k)
    if basis is None:
        return Part({"rows": [], "reason": "the base matrix is zero"}, {})
    held, names = masks(base, basis), sides_of(row)
    observed = _statistics(basis, held, delta, names)
    if min(np.count_nonzero(delta), np.count_nonzero(delta == 0)) < FEW:
        observed = {name: value for name, value in observed.items() if not name.startswith("mask_")}
    norm = sqrt(square(delta))
    share = 1 - np.count_nonzero(delta) / delta.size
    targets = {"norm": norm}
    if settings.mode == "full" and sixteen_bit(row.tuned.dtype) and ZERO_SHARES[0] <= share <= ZERO_SHARES[1]:
        targets["zeros"] = 1 - share
    groups, seed = binade_groups(base), seed_of(row.name.name, settings.seed)
    lines: list[dict[str, Any]] = []
    for null in MODES[settings.mode]:
        for calibration, target in targets.items():
            if null == "permuted" and calibration != "norm":  # its size is its own
                continue
            scale, found = None, []
            for draw in range(settings.draws):
                rng = np.random.default_rng([seed, NULLS.index(null), draw])
                if null == "permuted":
                    seen = Draw(base, permuted(delta, groups, rng), row.tuned.dtype)
                    seen.at(1.0)
                else:
                    seen = Draw(base, noise(null, rng, base), row.tuned.dtype)
                    scale = calibrated(seen, calibration, target, scale)
                found.append(_statistics(basis, held, seen.delta, names))
            lines += _lines(row.name.name, null, calibration, observed, found)
    return Part({"rows": lines, "reason": None}, {})


def survives(rows: Iterable[dict[str, Any]], level: float = 0.05) -> dict[tuple[str, str], tuple[str, ...]]:
    """Which nulls each statistic survives: (name, statistic) ↦ labels such as `gaussian` or `laplace/zeros`.

    Structure is what survives *every* null: surviving `laplace` alone only says that the update is not Laplacian.
    A statistic survives a null when the draws do not explain it: `statistics.drawn_p` of its z, adjusted by Holm over
    all statistics and nulls of the same matrix, is at most `level`. Without a z (no spread) it survives nothing.

    Args:
        rows: Lines of `nulls.parquet`.
        level: Chance of any false survivor in one matrix.
    """
    lines = list(rows)
    found: dict[tuple[str, str], tuple[str, ...]] = {(r["name"], r["statistic"]): () for r in lines}
    for name in {r["name"] for r in lines}:
        family = [r for r in lines if r["name"] == name and r["z"] is not None]
        for r, p in zip(family, holm([drawn_p(r["z"], r["draws"]) for r in family]), strict=True):
            if p <= level:
                label = r["null"] if r["calibration"] == "norm" else f"{r['null']}/{r['calibration']}"
                found[name, r["statistic"]] += (label,)
    return found


def _statistics(
    basis: Basis, held: Masks, delta: Float32[np.ndarray, "r c"], names: tuple[str, str]
) -> dict[str, float]:
    """Every statistic of one delta, NaN where it is undefined; the delta lies as the base is stored."""
    x = long(delta)
    made = products(basis, x)
    norm_sq = float(np.trace(made.own, dtype=np.float64))
    changed = delta != 0
    if norm_sq == 0:
        return {"zero_fraction": 1.0}
    both, on_long, on_short = energies(basis, made, norm_sq)
    found = {"principal_energy": both, "spectral_energy": spectral_energy(basis, made, norm_sq)}
    squares, rank_one = _leading(made)
    if x.shape[1] <= SPECTRUM_SHORT:
        sigma, after = frame(basis, x, made)
        found |= {"spectral_drift": drift(basis.sigma, sigma, sqrt(norm_sq)), "scaling": scaling(basis, sigma)}
    else:
        tuned = top_triplets(basis.x + x, basis.k, basis.short[:, : basis.k + SPARE])
        after = tuned[0], tuned[2]
    for i, (side, before, energy) in enumerate(
        zip(names, (basis.long_k, basis.short_k), (on_long, on_short), strict=True)
    ):
        turn, sine = (nan, nan) if after is None else turned(before, after[i])
        found |= {f"{side}_energy": energy, f"{side}_rotation": turn, f"{side}_angle": asin(sine)}
        found[f"{side}_wedin"] = sine * basis.gap / rank_one
    return {
        **found,
        **overlaps(held, changed),
        "zero_fraction": 1 - np.count_nonzero(changed) / changed.size,
        "stable_rank": norm_sq / rank_one**2,
        "top_energy_16": min(1.0, squares / norm_sq),
    }


def _leading(made: Products) -> tuple[float, float]:
    """Σ of the 16 largest σ² of the delta, and σ₁."""
    scale = float(made.own.diagonal().max())  # σ² of a tiny delta would underflow in float32
    squares = top_triplets(made.own / np.float32(scale), min(16, len(made.own)))[1]
    return float(squares.sum()) * scale, sqrt(float(squares[0]) * scale)


def _lines(
    name: str, null: str, calibration: str, observed: dict[str, float], found: list[dict[str, float]]
) -> list[dict[str, Any]]:
    lines = []
    for statistic in STATISTICS:
        if statistic not in observed:
            continue
        if statistic == "zero_fraction" and (null == "permuted" or calibration == "zeros"):
            continue  # kept by construction, so its spread is only that of a few ties
        drawn = np.array([one.get(statistic, nan) for one in found])
        usable = bool(np.isfinite(drawn).all() and np.isfinite(observed[statistic]))
        mean, sd = (float(drawn.mean()), float(drawn.std(ddof=1))) if usable else (None, None)
        seen = observed[statistic] if np.isfinite(observed[statistic]) else None
        z = (seen - mean) / sd if seen is not None and mean is not None and sd else None
        lines.append(
            {
                "name": name,
                "statistic": statistic,
                "null": null,
                "calibration": calibration,
                "draws": len(found),
                "observed": seen,
                "mean": mean,
                "sd": sd,
                "z": z,
            }
        )
    return lines
