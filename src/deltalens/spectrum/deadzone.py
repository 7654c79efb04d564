"""The dead zone: are the exact zeros of a 16-bit delta the work of rounding, or did those entries never move?

A weight that lies on the grid moves only if its update is larger than half a step, u/2, and the step doubles from one
binade of |w| to the next. The zero share of each binade is therefore one point of the distribution of |update|, and
the finest binades tell updates that are small from updates that are not there (docs/measures.md §2).

Three questions are kept apart, because each has its own way to go wrong:

1. *How many entries never move?* The largest and the smallest share of entries below the finest steps, over **all**
   scale mixtures of Gaussians that reproduce the zero shares. Gaussian, Laplace, Student, row-scaled and low-rank
   (product-law) updates are all such mixtures, so no family has to be guessed: where the data do not reach far
   enough below the update's scale the two bounds stay apart and the answer is *inconclusive*.
2. *Does the update grow with |w|?* An update ∝ |w| shows the same zeros in every binade, as true sparsity does. But
   inside a binade, where the step is constant, only the former depends on |w|.
3. *How large is it?* From Δ² where the grid is finer than the update, else by likelihood from the zeros, and only
   when the families that fit agree.

What no grid can show stays unknown: weights frozen only where rounding hides every move anyway count as explained by
precision, and a part of the matrix whose update is ∝ |w| and below half a step everywhere counts as not moving.

Method: ours.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64
from scipy.optimize import linprog
from scipy.special import erf

from deltalens.spectrum.laws import Family, families, share_error
from deltalens.spectrum.noise import BINADES, grid_steps

CELLS = 16
"""Cells of the mantissa in each binade; finer ones would only thin the counts."""

DENSE = 0.05
"""At most this share may never have moved in a dense update, at least this share in a sparse one: about what the zero
share of a fine binade with some hundred entries can tell from nothing, and too little to call an update sparse."""

WIDTH = 0.12
"""Widest interval of the share that still counts as known: its middle is then right within .03 in simulation, because
the lower bound is the loose one (a narrow update can hide among few entries, a missing one cannot)."""

MISFIT = 0.01
"""Largest unexplained zero share. Mixtures on the half-octave grid reproduce Gaussian updates within .003; updates of
a few equal steps, bounded updates and bf16-only training miss by .02 to .4."""

GROWTH = 0.2
"""Largest exponent γ of update ∝ |w|^γ at which binades still compare like with like: 1 fakes sparsity, ½ does not
but hides the scale. Updates that do not know |w| measure 0 ± .02."""

_LEAST = 100  # entries of a usable binade: a zero share within .15
_BINADES = 4  # usable binades without which no curve is seen
_CLEAR = 0.01  # standard error of the zero share in the binade that sets the resolution
_ERRORS = 3.0  # standard errors allowed per binade; about 20 binades, so one matrix in 20 touches a limit
_FIRST = 1e4  # weight of the misfit against residuals in standard errors
_SLACK = 0.003  # zero share allowed beyond them: the half-octave grid
_FLAT = 0.1  # relative slope inside a binade that is no slope; an update ∝ |w| has at least .5
_MOVED = 0.01  # at least this share must be seen to move, or a tiny dense update would pass for none
_RISE = 0.25  # relative rise of the share that moves which is more than chance or a slight growth with |w|
_SURE = 0.01  # relative standard error of a scale that may be stated: three of them are the promised 3 %
_AGREE = 0.02  # relative difference of scales up to which two families agree
_SEEN = 0.05  # relative error of the root mean square of Δ up to which it can vouch for a family
_COVERED = 0.5  # share of entries on a grid finer than the update from which Δ² speaks for the whole matrix


@dataclass(frozen=True, slots=True)
class Cells:
    """Counts over 16 cells of the mantissa in each binade of |w_base|, added up block by block.

    Attributes:
        counts: Entries, those with Δ ≠ 0 first and those with Δ == 0 second.
        squares: ΣΔ².
    """

    counts: Int64[np.ndarray, "2 binades cells"]
    squares: Float64[np.ndarray, "binades cells"]

    @classmethod
    def empty(cls) -> "Cells":
        """Nothing counted."""
        return cls(np.zeros((2, BINADES, CELLS), np.int64), np.zeros((BINADES, CELLS)))

    def add(
        self, base: Float32[np.ndarray, "r c"], delta: Float32[np.ndarray, "r c"], square: Float64[np.ndarray, "r c"]
    ) -> None:
        """Count one block of W_base, Δ and Δ², in place."""
        place = (np.ascontiguousarray(base).view(np.uint32).ravel() >> 19) & (BINADES * CELLS - 1)
        place += (delta.ravel() == 0).astype(np.uint32) * np.uint32(BINADES * CELLS)
        size = 2 * BINADES * CELLS
        self.counts[:] += np.bincount(place, minlength=size).reshape(self.counts.shape)
        self.squares[:] += np.bincount(place, square.ravel(), size).reshape(self.counts.shape)[0]

    @property
    def binades(self) -> Int64[np.ndarray, " binades"]:
        """Entries per binade."""
        return self.counts.sum(axis=(0, 2))


@dataclass(frozen=True, slots=True)
class DeadZone:
    """What the zeros of one delta say.

    Attributes:
        verdict: `dense` (explained by precision: at most 5 % of the entries never moved), `sparse` (at least 5 %
            never moved, and how many is known) or `inconclusive`; None where the question does not arise.
        scale: Root mean square of the true update over the entries that moved, right within 3 %; None where the
            data do not say, which a verdict about the zeros survives.
        sparsity: π₀, the share of entries that never moved: its estimate when sparse, the least share compatible with
            the data when dense (normally 0), None when inconclusive.
        misfit: Largest difference between observed and fitted zero share of a binade, beyond sampling error.
        reason: Why it is inconclusive.
        curve: Per usable step, finest first: step, entries, observed zero share, fitted zero share.
    """

    verdict: str | None
    scale: float | None
    sparsity: float | None
    misfit: float | None
    reason: str | None
    curve: Float64[np.ndarray, "steps 4"]


NOT_ASKED = DeadZone(None, None, None, None, None, np.empty((0, 4)))
"""For pairs whose zeros rounding cannot explain: another noise model, or two grids."""


def fit(cells: Cells, dtype: str) -> DeadZone:
    """Judge the exact zeros of a delta whose base lies on the grid that training started from.

    Args:
        cells: Counted over the whole matrix.
        dtype: The 16-bit dtype that both sides share.
    """
    steps, counts, zeros, squares = _by_step(cells, dtype)
    n, z = counts.sum(axis=1), zeros.sum(axis=1)
    share = z / n
    curve = np.column_stack([steps, n, share, np.full(len(n), np.nan)])
    error = share_error(n, z)
    clear = np.flatnonzero(error <= _CLEAR)
    if len(steps) < _BINADES or not len(clear):
        return DeadZone("inconclusive", None, None, None, "too few entries", curve)
    if z.sum() == n.sum():
        return DeadZone("inconclusive", None, None, None, "no entry moved", curve)
    mixture = _mixture(steps, share, error, steps[clear[0]])
    if mixture is None:
        return DeadZone("inconclusive", None, None, None, "no mixture fits", curve)
    curve[:, 3], misfit = mixture.fitted, mixture.misfit
    low, high, sparsity = mixture.low, mixture.high, mixture.share
    if misfit > MISFIT:
        return DeadZone("inconclusive", None, None, misfit, "no mixture fits", curve)
    growth, growth_error, slope, slope_error = _growth(steps, counts, zeros)
    resolved = growth_error <= 0.1
    if resolved and growth + 2 * growth_error < -GROWTH:
        return DeadZone("inconclusive", None, None, misfit, "small weights move more", curve)
    if _rising(n, n - z):
        return DeadZone("inconclusive", None, None, misfit, "large weights move more", curve)
    moments = _rms(steps, counts, squares)
    uniform = resolved and abs(growth) <= GROWTH / 2
    if high <= DENSE:
        fits = families(steps, n, z, free=False)
        return DeadZone("dense", _scale(moments, fits, 0.0, uniform), low, misfit, None, curve)
    if low < DENSE or high - low > WIDTH or high > 1 - _MOVED:
        return DeadZone("inconclusive", None, None, misfit, "the grid is too coarse for the update", curve)
    if resolved:
        independent = abs(growth) <= GROWTH
    else:  # all of the curve is plateau: nothing may vary inside a binade either
        independent = slope_error <= _FLAT / 2 and abs(slope) <= _FLAT + 2 * slope_error
    if not independent:
        return DeadZone("inconclusive", None, None, misfit, "the update grows with |w|", curve)
    fits = [found for found in families(steps, n, z, free=True) if low <= found.sparsity <= high]
    if fits:
        sparsity = float(np.mean([found.sparsity for found in fits]))
    return DeadZone("sparse", _scale(moments, fits, sparsity, uniform or not resolved), sparsity, misfit, None, curve)


def _by_step(cells: Cells, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Steps u with enough entries, finest first, and their counts, zeros and ΣΔ² per cell, [steps, 16].

    The first cell of each binade is left out: it holds the powers of two, whose lower neighbour is only half a step
    away. So are entries that are exactly zero, which have no binade (padding, pruned rows).
    """
    every = grid_steps(dtype)
    counts, zeros = cells.counts.sum(axis=0), cells.counts[1]
    kept = np.zeros((BINADES, CELLS), bool)
    kept[1:, 1:] = True
    steps, owner = np.unique(every, return_inverse=True)  # fp16 subnormals share one step
    tables = [np.zeros((len(steps), CELLS), table.dtype) for table in (counts, zeros, cells.squares)]
    for total, table in zip(tables, (counts, zeros, cells.squares), strict=True):
        np.add.at(total, owner, np.where(kept, table, 0))
    usable = tables[0].sum(axis=1) >= _LEAST
    return steps[usable], *(table[usable] for table in tables)


@dataclass(frozen=True, slots=True)
class _Mixture:
    """What scale mixtures of Gaussians with an atom at zero say of the zero shares."""

    fitted: np.ndarray
    misfit: float
    share: float
    low: float
    high: float


def _mixture(steps: np.ndarray, share: np.ndarray, error: np.ndarray, finest: float) -> _Mixture | None:
    """Fit P(zero | u) = π₀ + Σ_k w_k·erf(u/(2√2·s_k)), w ≥ 0, and bound the share that does not move.

    `finest` is the finest step with a clear zero share. The lower bound counts components below half of it, the
    upper bound those below twice it: only a curve that is flat around it brings the two together.
    """
    scales = np.exp2(np.arange(np.log2(steps[0]) - 3, np.log2(steps[-1]) + 3, 0.5))
    # Beyond the last scale zero shares only shrink in proportion, which a component without zeros adds to the mixture.
    scales = np.concatenate([[0.0], scales, [np.inf]])
    with np.errstate(divide="ignore"):
        design = erf(steps[:, None] / (2 * np.sqrt(2) * scales))
    k, b = len(scales), len(steps)
    one = np.ones((1, k))
    # First the least misfit t, then the least absolute residuals r in units of the standard error: both are linear.
    eye, zero = np.diag(error), np.zeros((b, b))
    column, none = np.ones((b, 1)), np.zeros((b, 1))
    found = linprog(
        np.concatenate([np.zeros(k), np.ones(b), [_FIRST]]),
        A_ub=np.block(
            [
                [design, -eye, none],
                [-design, -eye, none],
                [design, zero, -column],
                [-design, zero, -column],
            ]
        ),
        b_ub=np.concatenate([share, -share, share + _ERRORS * error, _ERRORS * error - share]),
        A_eq=np.hstack([one, np.zeros((1, b + 1))]),
        b_eq=[1.0],
        method="highs",
    )
    if found.x is None:  # the solver gave up
        return None
    weights = found.x[:k]
    fitted = design @ weights
    misfit = float(np.maximum(np.abs(fitted - share) - _ERRORS * error, 0.0).max())
    room = _ERRORS * error + misfit + _SLACK
    bounds = []
    for sign, reach in ((1, finest / 2), (-1, finest * 2)):
        still = (scales <= reach * 1.001).astype(float)
        edge = linprog(
            sign * still,
            A_ub=np.vstack([design, -design]),
            b_ub=np.concatenate([share + room, room - share]),
            A_eq=one,
            b_eq=[1.0],
            method="highs",
        )
        # The fit itself is feasible up to the solver's own tolerance; without a solution nothing is known.
        bounds.append(float(still @ edge.x) if edge.x is not None else (1 - sign) / 2)
    low, high = bounds
    return _Mixture(fitted, misfit, float(np.clip(weights @ (scales <= finest), low, high)), low, high)


def _growth(steps: np.ndarray, counts: np.ndarray, zeros: np.ndarray) -> tuple[float, float, float, float]:
    """How the update grows with |w|: γ of update ∝ |w|^γ, and the relative slope inside binades, each with its error.

    With P(zero) = G(u/s(w)) and s ∝ |w|^γ the zero share falls by γ·G' per octave of |w| inside a binade and rises by
    (1 − γ)·G' from binade to binade, whatever G is; so γ = fall/(fall + rise), averaged over binades by precision.
    The slope is the same fall in units of the rarer of zeros and moves: it still speaks where G' is 0.
    """
    octave = np.log2(1 + (np.arange(CELLS) + 0.5) / CELLS)
    n = counts.sum(axis=1)
    share = (zeros.sum(axis=1) + 1) / (n + 2)
    spread = share * (1 - share) / n
    top = bottom = slope = weight = 0.0
    for b in range(1, len(steps) - 1):
        if steps[b + 1] != 2 * steps[b] or steps[b - 1] != steps[b] / 2:
            continue
        held = counts[b] > 0
        w, y = counts[b, held].astype(np.float64), zeros[b, held] / counts[b, held]
        x = octave[held] - w @ octave[held] / n[b]
        lever = w @ x**2
        if lever == 0:
            continue
        fall = -float(w * x @ y / lever)
        variance = share[b] * (1 - share[b]) / lever
        rise = (share[b + 1] - share[b - 1]) / 2
        total = rise + fall
        # Less what sampling error alone contributes to the two products.
        top += fall * total / variance - 1
        bottom += total**2 / variance - 1 - (spread[b + 1] + spread[b - 1]) / (4 * variance)
        rarer = min(share[b], 1 - share[b])
        slope += fall * rarer / variance
        weight += rarer**2 / variance
    growth = (float(top / bottom), float(bottom**-0.5)) if bottom > 0 else (0.0, np.inf)
    return *growth, *((float(slope / weight), float(weight**-0.5)) if weight > 0 else (0.0, np.inf))


def _rising(n: np.ndarray, moves: np.ndarray) -> bool:
    """Whether a coarser step lets clearly more entries through than all finer ones, which precision cannot do."""
    finer, passed = np.cumsum(n)[:-1], np.cumsum(moves)[:-1]
    pooled = (passed + moves[1:]) / (finer + n[1:])
    excess = moves[1:] / n[1:] - passed / finer
    error = np.sqrt(pooled * (1 - pooled) * (1 / finer + 1 / n[1:]))
    return bool(np.any((excess > 5 * error) & (excess > _RISE * passed / finer)))


def _rms(steps: np.ndarray, counts: np.ndarray, squares: np.ndarray) -> tuple[float, float, float]:
    """(root mean square of the update, its relative error, share of entries) over the steps finer than the result.

    There rounding adds u²/12 to Δ², whatever the update looks like. The error is taken from the spread of the cells,
    so that heavy tails enlarge it. (0, inf, 0) when no grid is fine enough.
    """
    own = squares - counts * (steps**2 / 12)[:, None]
    mean = np.cumsum(own.sum(axis=1)) / np.cumsum(counts.sum(axis=1))
    fine = np.flatnonzero(steps <= np.sqrt(np.maximum(mean, 0.0)))
    if not len(fine):
        return 0.0, np.inf, 0.0
    k = fine[-1]
    n, total = counts[: k + 1].ravel(), own[: k + 1].ravel()
    deviation = np.sqrt(((total - mean[k] * n) ** 2).sum()) / n.sum()
    return float(np.sqrt(mean[k])), float(deviation / (2 * mean[k])), float(n.sum() / counts.sum())


def _scale(moments: tuple[float, float, float], fits: list[Family], sparsity: float, uniform: bool) -> float | None:
    """The update's scale where it is known to 3 %: from Δ², else from families that fit and agree."""
    rms, error, covered = moments
    moved = [1 - found.sparsity for found in fits] or [1.0]
    known = sparsity == 0 or (bool(fits) and max(moved) - min(moved) <= _AGREE * min(moved))
    doubt = 0.0 if sparsity == 0 or not fits else max(f.sparsity_error / (2 * (1 - f.sparsity)) for f in fits)
    # Entries on coarser steps are taken to move alike, unless there are none.
    if np.hypot(error, doubt) <= _SURE and known and (covered > 0.999 or (covered >= _COVERED and uniform)):
        return rms / (1 - sparsity) ** 0.5
    scales = [found.scale for found in fits]
    if not uniform or not fits or error > _SEEN or max(found.error for found in fits) > _SURE:
        return None
    # Zeros alone would take any law with the right density at 0 for a Gaussian: the few visible sizes must agree.
    if any(abs(rms / (found.scale * (1 - found.sparsity) ** 0.5) - 1) > _ERRORS * error for found in fits):
        return None
    return float(np.mean(scales)) if max(scales) - min(scales) <= _AGREE * min(scales) else None
