"""Whether the deltas of two pairs can be compared in coordinates: one architecture, and bases of one random start.

Two models trained from other random weights have their neurons, heads and residual axes in another order, so that
nothing can be shared in coordinates, whatever their deltas do. Pairs with one base, or one of which starts where the
other ends, share a start. Of others the cosine of the bases tells.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltalens.checkpoint.names import LINEAR
from deltalens.checkpoint.pair import Pair
from deltalens.checkpoint.read import BLOCK_BYTES
from deltalens.errors import BadInput, Refused
from deltalens.spectrum.delta import Delta
from deltalens.store.run import Run
from deltalens.store.session import essence

UNRELATED = 0.1
"""|cosine| of two bases below which they count as trained from other random weights: independent matrices of 128² have
.008, and the seeds of the family .001; a base after more training keeps most of its cosine with itself."""

OTHER = "other architecture"
UNALIGNED = "not comparable without alignment"
UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Gauge:
    """What stands against comparing two pairs.

    Attributes:
        word: `OTHER`, `UNALIGNED` or `UNDECIDED`; None where nothing does.
        reason: Why.
        cosine: Of the bases; None where it was not needed or not to be had.
    """

    word: str | None = None
    reason: str | None = None
    cosine: float | None = None


def gauge(a: Run, b: Run) -> Gauge:
    """Judge two measured pairs; at most one layer of either base is read, and nothing is downloaded."""
    one, two = ({row["name"]: row for row in run.matrices.to_pylist()} for run in (a, b))
    common = one.keys() & two.keys()
    if not common:
        return Gauge(OTHER, "no matrix has the same name")
    if differing := sorted(n for n in common if one[n]["layer"] is not None and _shape(one[n]) != _shape(two[n])):
        return Gauge(OTHER, f"the shapes of {differing[0]} differ")
    sides = ("base", "tuned")
    first, second = (essence({side: run.record["pair"][side]["identity"] for side in sides}) for run in (a, b))
    if first["base"] in second.values() or second["base"] == first["tuned"]:
        return Gauge()
    try:
        cosine = _base_cosine(*(Path(run.record["pair"]["base"]["path"]) for run in (a, b)))
    except Refused as refused:
        return Gauge(OTHER, refused.error)
    except BadInput as missing:
        return Gauge(UNDECIDED, f"the bases differ and cannot be compared: {missing.error}")
    if abs(cosine) < UNRELATED:
        return Gauge(UNALIGNED, f"the cosine of the bases is {cosine:.3f}", cosine)
    return Gauge(cosine=cosine)


def _shape(row: dict) -> tuple[int, int]:
    return row["rows"], row["cols"]


def _base_cosine(one: Path, two: Path) -> float:
    """Median cosine over the linear matrices of the middle layer: another random start turns every matrix.

    Raises:
        BadInput: A base does not lie where it was measured, or no matrix can be compared.
        Refused: They are not of one architecture.
    """
    for path in (one, two):
        if not path.exists():
            raise BadInput(f"{path} is not there")
    rows = [row for row in Pair.open(one, two).rows if row.status == "measured" and row.name.kind in LINEAR]
    layers = sorted({row.name.layer for row in rows if row.name.layer is not None})
    found = []
    for row in rows:
        if row.name.layer == layers[len(layers) // 2] and row.name.expert is None:
            sums = Delta(row, BLOCK_BYTES).scan()
            if sums.finite and sums.base_sq and sums.tuned_sq:
                found.append(sums.product / (sums.base_sq * sums.tuned_sq) ** 0.5)
    if not found:
        raise BadInput("they have no linear matrix in common")
    return float(np.median(found))
