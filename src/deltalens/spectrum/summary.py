"""A RUN in a few lines: one per kind and depth third, as `measure` prints it."""

from dataclasses import dataclass
from statistics import median

from deltalens.checkpoint.names import KINDS
from deltalens.store.run import Run

THIRDS = ("early", "middle", "late")


@dataclass(frozen=True, slots=True)
class Line:
    """One kind of matrix in one third of the layers.

    Attributes:
        kind: As in `checkpoint.names.KINDS`.
        depth: `early`, `middle`, `late`, or None for matrices outside the layers.
        matrices: How many.
        relative_change: ‖Δ‖/‖W_base‖ over all of them together; None when the base is zero.
        effective_rank: Median of the raw effective rank over the matrices with any σ above the floor, else None.
        denoised_effective_rank: Median over the same matrices: a raw rank never stands without its partner.
        above_floor: How many have any σ above the floor.
        spikes: Median number of spikes.
        zero_fraction: Observed share of unchanged entries.
        predicted_zero_fraction: What rounding of a dense update would leave, None where undefined.
    """

    kind: str
    depth: str | None
    matrices: int
    relative_change: float | None
    effective_rank: float | None
    denoised_effective_rank: float | None
    above_floor: int
    spikes: float
    zero_fraction: float
    predicted_zero_fraction: float | None


def summarise(run: Run) -> list[Line]:
    """The lines of a RUN in order of kind, then depth; refused matrices are left out."""
    rows = [r for r in run.matrices.to_pylist() if r["status"] == "measured"]
    layers = 1 + max((r["layer"] for r in rows if r["layer"] is not None), default=0)
    groups: dict[tuple[int, int], list[dict]] = {}
    for r in rows:
        third = -1 if r["layer"] is None else r["layer"] * 3 // layers
        groups.setdefault((KINDS.index(r["kind"]), third), []).append(r)
    return [
        _line(KINDS[kind], None if third < 0 else THIRDS[third], groups[kind, third]) for kind, third in sorted(groups)
    ]


def _line(kind: str, depth: str | None, rows: list[dict]) -> Line:
    delta_sq = sum(r["norm_delta"] ** 2 for r in rows)
    base_sq = sum(r["norm_base"] ** 2 for r in rows)
    above = [r for r in rows if r["denoised_effective_rank"] is not None]
    predicted = [r["predicted_zero_fraction"] for r in rows]
    entries = [r["rows"] * r["cols"] for r in rows]
    return Line(
        kind=kind,
        depth=depth,
        matrices=len(rows),
        relative_change=(delta_sq / base_sq) ** 0.5 if base_sq else None,
        effective_rank=median(r["effective_rank"] for r in above) if above else None,
        denoised_effective_rank=median(r["denoised_effective_rank"] for r in above) if above else None,
        above_floor=len(above),
        spikes=float(median(r["spikes"] for r in rows)),
        zero_fraction=_weighted([r["zero_fraction"] for r in rows], entries),
        predicted_zero_fraction=None if None in predicted else _weighted(predicted, entries),
    )


def _weighted(values: list[float], weights: list[int]) -> float:
    return sum(v * w for v, w in zip(values, weights, strict=True)) / sum(weights)
