"""The delta task of one tensor: everything that docs/measures.md §1–§2 asks of one matrix, from one Gram."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from time import perf_counter
from typing import Any

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.dtypes import sixteen_bit
from deltalens.checkpoint.pair import Row
from deltalens.checkpoint.read import BLOCK_BYTES, Reader
from deltalens.spectrum import deadzone
from deltalens.spectrum.delta import Delta, Sums
from deltalens.spectrum.edge import Spikes, find_spikes, seed_of
from deltalens.spectrum.gram import (
    ZERO,
    Tridiagonal,
    certificate,
    fix_signs,
    gram,
    long_vectors,
    short_vectors,
    singular_values,
    tridiagonalise,
)
from deltalens.spectrum.noise import (
    denoised_effective_rank,
    floor_edge,
    gaussian_scale,
    lost_share,
    noise_model,
    noise_sigma,
    predicted_zero_fraction,
    snr,
)
from deltalens.spectrum.ranks import numerical_rank, shape_of
from deltalens.store.parts import Part


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything besides the inputs that a number may depend on; stored in `run.json`.

    Attributes:
        top: Singular vectors kept per matrix.
        both_rounded: Whether both sides' rounding counts as noise.
        match: The glob that chose the matrices, None for all.
        size_matched: Which other RUN's norms Δ was scaled to, None for Δ as it is.
        threads: BLAS threads; sums are taken in another order with another count.
        block_bytes: Largest block read from one side, as float32.
        seed: Of the sign flips.
    """

    top: int = 16
    both_rounded: bool = False
    match: str | None = None
    size_matched: str | None = None
    threads: int = 1
    block_bytes: int = BLOCK_BYTES
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The complete spectrum of a delta, and what stands out of noise.

    Attributes:
        form: Tridiagonal form of its Gram matrix.
        sigma: All singular values, descending.
        model: The noise model.
        noise: `noise_sigma`.
        floor: `floor_edge`.
        spikes: Above floor and sign-flip edge.
        seconds: Spent on form and sigma, reading included.
    """

    form: Tridiagonal
    sigma: Float64[np.ndarray, " q"]
    model: str
    noise: float
    floor: float
    spikes: Spikes
    seconds: float


def spectrum_of(row: Row, delta: Delta, sums: Sums, settings: Settings) -> Spectrum:
    """One Gram matrix, its spectrum, the rounding floor and the spikes.

    Args:
        row: The pair of tensors.
        delta: Of them, scanned.
        sums: What the scan found, all finite.
        settings: Of the delta pass.
    """
    assert row.base is not None and row.tuned is not None
    began = perf_counter()
    form = tridiagonalise(gram(delta.blocks(), delta.short))
    sigma = singular_values(form)
    seconds = delta.seconds + perf_counter() - began
    model = noise_model(row.tuned.dtype, settings.both_rounded)
    noise = noise_sigma(model, sums.binades_base, sums.binades_tuned, row.base.dtype, row.tuned.dtype)
    floor = floor_edge(noise, delta.rows, delta.cols)
    spikes = find_spikes(delta, form, sigma, floor, seed_of(row.name.name, settings.seed))
    return Spectrum(form, sigma, model, noise, floor, spikes, seconds)


def measure_matrix(row: Row, settings: Settings, target_norm: float | None = None) -> Part:
    """Measure the delta of one 2-D tensor.

    Args:
        row: The pair of tensors.
        settings: Of the delta pass.
        target_norm: Scale Δ to this norm and round W_tuned again first; None leaves it as it is.

    Returns:
        A part whose row holds the columns of `matrices.parquet` and whose arrays are the complete `sigma` (float64),
        the kept `left` and `right` vectors as rows (float32) and, where the dead zone is asked for, `zeros`, lines of
        (step, entries, zero share observed, fitted, predicted); a refused tensor has none.
    """
    assert row.base is not None and row.tuned is not None
    began = perf_counter()
    delta = Delta(row, settings.block_bytes, target_norm=target_norm)
    sums = delta.scan()
    if not sums.finite:
        return Part({"status": "refused", "reason": _not_finite(sums), "norm_delta_sq": None}, {})
    m, n = delta.rows, delta.cols
    found = spectrum_of(row, delta, sums, settings)
    sigma, model, noise, floor, spikes = found.sigma, found.model, found.noise, found.floor, found.spikes
    above = int(np.count_nonzero(sigma > max(floor, ZERO * sigma[0])))
    energy = float(sigma @ sigma)
    on_grid = model == "tuned_rounded" and row.base.dtype == row.tuned.dtype and sixteen_bit(row.tuned.dtype)
    gaussian = gaussian_scale(sums.binades_base, row.base.dtype, sums.delta_sq / (m * n)) if on_grid else None
    # A rescaled delta has other zeros than rounding its update would leave.
    zeros = deadzone.fit(sums.cells, row.tuned.dtype) if on_grid and delta.scale is None else deadzone.NOT_ASKED
    numbers: dict[str, Any] = {
        **_norms(sums),
        "zero_fraction": sums.zeros / (m * n),
        "changed_relative": sums.relative / (m * n),
        "changed_absolute": sums.absolute / (m * n),
        "row_share_1": float(sums.row_sq.max() / sums.delta_sq) if sums.delta_sq else 0.0,
        "col_share_1": float(sums.col_sq.max() / sums.delta_sq) if sums.delta_sq else 0.0,
        **shape_of(sigma),
        "noise_model": model,
        "noise_sigma": noise,
        "snr": snr(sums.delta_sq, noise, m, n),
        "floor_edge": floor,
        "above_floor": above,
        "bulk_edge": spikes.edge,
        "spikes": spikes.count,
        "spikes_capped": spikes.capped,
        "spike_energy": float(sigma[: spikes.count] @ sigma[: spikes.count]) / energy if energy else 0.0,
        "denoised_effective_rank": denoised_effective_rank(sigma, above, noise, m, n),
        "predicted_zero_fraction": None
        if gaussian is None
        else predicted_zero_fraction(sums.binades_base, row.base.dtype, gaussian),
        "deadzone": zeros.verdict,
        "deadzone_scale": zeros.scale,
        "deadzone_sparsity": zeros.sparsity,
        "deadzone_misfit": zeros.misfit,
    }
    arrays, proof = _vectors(delta, found.form, sigma, settings.top)
    if gaussian is not None and len(zeros.curve):
        arrays["zeros"] = np.column_stack([zeros.curve, lost_share(zeros.curve[:, 0], gaussian)])
    return Part(
        {
            "status": "measured",
            "reason": row.reason,
            "norm_delta_sq": sums.delta_sq,
            **numbers,
            "certificate": proof,
            "seconds_spectrum": found.seconds,
            "seconds": perf_counter() - began,
        },
        {"sigma": sigma, **arrays},
    )


def norm_only(row: Row, settings: Settings) -> Part:
    """‖Δ‖² of a tensor that gets no spectrum: vectors, three and more dimensions, matrices left out by --match."""
    assert row.base is not None and row.tuned is not None
    total = base_sq = tuned_sq = 0.0
    with Reader(row.base) as base, Reader(row.tuned) as tuned, np.errstate(invalid="ignore", over="ignore"):
        for b, t in zip(_chunks(base, settings.block_bytes), _chunks(tuned, settings.block_bytes), strict=True):
            total += _square(t - b)
            base_sq += _square(b)
            tuned_sq += _square(t)
    if not np.isfinite(total + base_sq + tuned_sq):
        sums = Sums(np.array([total]), np.zeros(0), base_sq=base_sq, tuned_sq=tuned_sq)
        return Part({"status": "refused", "reason": _not_finite(sums), "norm_delta_sq": None}, {})
    row_out = {"status": row.status, "reason": row.reason, "norm_delta_sq": total}
    return Part({**row_out, "norm_base_sq": base_sq, "norm_tuned_sq": tuned_sq}, {})


def _chunks(reader: Reader, block_bytes: int) -> Iterator[np.ndarray]:
    """The tensor in blocks along its first dimension."""
    shape = reader.info.shape
    if reader.info.elements == 0:
        return
    if not shape:
        yield reader.all().reshape(1)  # a difference of 0-D arrays would be a bare number
        return
    step = max(1, block_bytes // (4 * max(1, prod(shape[1:]))))
    for start in range(0, shape[0], step):
        yield reader.rows(start, start + step)


def _square(x: np.ndarray) -> float:
    flat = x.ravel().astype(np.float64)
    return float(flat @ flat)


def _norms(sums: Sums) -> dict[str, float | None]:
    base, tuned = sums.base_sq**0.5, sums.tuned_sq**0.5
    return {
        "norm_base": base,
        "norm_tuned": tuned,
        "norm_delta": sums.delta_sq**0.5,
        "relative_change": sums.delta_sq**0.5 / base if base else None,
        "cosine": min(1.0, max(-1.0, sums.product / (base * tuned))) if base and tuned else None,
    }


def _vectors(delta: Delta, form: Tridiagonal, sigma: np.ndarray, top: int) -> tuple[dict[str, np.ndarray], float]:
    k = min(top, numerical_rank(sigma, ZERO))
    if k == 0:
        return {}, 0.0
    short = short_vectors(form, k)
    long = long_vectors(delta.blocks(), short, sigma[:k])
    proof = certificate(delta.blocks(), long, short, sigma[:k], left_is_long=delta.tall)
    left, right = fix_signs(*((long, short) if delta.tall else (short, long)))
    return {"left": left, "right": right}, proof


def _not_finite(sums: Sums) -> str:
    sides = [side for side, norm in (("base", sums.base_sq), ("tuned", sums.tuned_sq)) if not np.isfinite(norm)]
    return f"NaN or Inf in {' and '.join(sides)}" if sides else "the difference overflows float32"
