"""Δ_k: the leading part of a delta, its k a number, a share of the energy, or the spikes above noise and chance."""

from typing import TYPE_CHECKING

import numpy as np

from deltalens.checkpoint.pair import Row
from deltalens.edit.edit import Energy
from deltalens.edit.form import Form, Triples, triples
from deltalens.errors import BadInput, Refused
from deltalens.spectrum.delta import Delta
from deltalens.spectrum.matrix import Settings, spectrum_of
from deltalens.spectrum.ranks import energy_rank

if TYPE_CHECKING:
    from deltalens.edit.plan import Plan, Step


def leading(opened: "Plan", row: Row, step: "Step") -> Form:
    """Δ_k of the chosen part of a tensor; the whole of Δ is left as it is, with no SVD.

    Raises:
        Refused: Spikes are asked of an adapter or of some heads: rounding noise is that of whole stored matrices.
    """
    delta = step.mask * (opened.of("tuned", row) - opened.of("base", row))
    rank, q = step.operation.rank, min(delta.shape)
    if rank == "full" or (isinstance(rank, int) and rank >= q) or delta.zero:
        return delta
    if isinstance(rank, int):
        return _kept(opened, row, step, delta, rank).first(rank)
    if isinstance(rank, Energy):
        found = _kept(opened, row, step, delta, q)
        return found.first(energy_rank(found.sigma, rank.share))
    if not np.all(step.mask == 1.0) or opened.models["tuned"].factors:
        what = "an adapter" if opened.models["tuned"].factors else "some heads"
        raise Refused(f'rank = "spikes" is defined for whole stored matrices, not for {what}', "rank = a number")
    key = (*_key(opened, row), "spikes")  # counting takes an SVD and a sign-flip edge: once for every plan of a pair
    if key not in opened.kept:
        count = spikes(row)
        found = _kept(opened, row, step, delta, count)
        opened.kept[key] = Triples(found.sigma, found.left[:, :count], found.right[:, :count])
    return opened.kept[key].first(min(delta.shape))


def spikes(row: Row) -> int:
    """Singular values above the rounding floor and the sign-flip edge, as `measure` counts them by default.

    Raises:
        BadInput: The tensor holds NaN or Inf.
    """
    settings = Settings()
    delta = Delta(row, settings.block_bytes)
    sums = delta.scan()
    if not sums.finite:
        raise BadInput(f"{row.name.name} holds NaN or Inf")
    return spectrum_of(row, delta, sums, settings).spikes.count


def _kept(opened: "Plan", row: Row, step: "Step", delta: Form, k: int) -> Triples:
    """Triples of a delta, found once for every plan that shares `kept`."""
    mask = "" if np.ndim(step.mask) == 0 else np.asarray(step.mask).tobytes().hex()
    key = (*_key(opened, row), mask)
    found = opened.kept.get(key)
    if found is None or found.left.shape[1] < min(k, found.rank):
        found = opened.kept[key] = triples(delta, k)
    return found


def _key(opened: "Plan", row: Row) -> tuple[str, ...]:
    return opened.edit.base, opened.edit.tuned or "", row.name.name
