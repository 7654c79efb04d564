"""Cells of a delta, each an edit: layer by kind, parted into spikes and the rest, and what lies outside of the layers.

    band    put in                      leave out
    top     W_b + Δ_r                   W_t − Δ_r
    rest    W_b + Δ − Δ_r               W_b + Δ_r, all else tuned
    whole   W_t, all else base          W_b, all else tuned

r is the number of spikes of the matrix, 1 where it has none; of several matrices in a cell (experts) the largest. Every
tensor that differs is in exactly one layer and kind, so that all cells together are Δ.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from deltalens.checkpoint.names import LINEAR
from deltalens.checkpoint.pair import Row as Tensor
from deltalens.edit.edit import from_record
from deltalens.edit.form import Triples
from deltalens.edit.plan import Plan
from deltalens.edit.ranks import spikes
from deltalens.edit.select import kinds_of
from deltalens.edit.swap import swap
from deltalens.errors import Refused
from deltalens.evaluate.scores import Row
from deltalens.sweep.arms import Arm
from deltalens.sweep.bench import BASE, TUNED, Point
from deltalens.sweep.controls import Control, Tensors, changes_of, controls, points
from deltalens.sweep.pair import Pairing, opened

PUT_IN, LEAVE_OUT = "put in", "leave out"
STARTS = {PUT_IN: BASE, LEAVE_OUT: TUNED}
"""Where each direction starts, and what its effects are taken from."""
MATTERS, ALPHA = 0.05, 0.05
"""The least share of the pair's difference, and the largest corrected p, of a cell that matters."""
TOP, REST, WHOLE = "top", "rest", "whole"

_OUTSIDE = {
    "embeddings": ("embed", "pos_embed"),
    "output head": ("lm_head",),
    "norms and biases": ("vector",),
    "other tensors": ("router", "other"),
}

Place = tuple[int | None, str]


@dataclass(frozen=True, slots=True)
class Cell:
    """A part of Δ.

    Attributes:
        layer: None outside of the linear kinds of the layers.
        kind: One of the seven, several with + between where one tensor holds them, or a group outside.
        band: `top`, `rest`, or `whole` where it is not parted.
        rank: r of the top band; None for a whole.
    """

    layer: int | None
    kind: str
    band: str
    rank: int | None

    @property
    def name(self) -> str:
        """Unique among the cells of a pair."""
        return self.kind if self.layer is None else f"layer {self.layer} {self.kind} {self.band}"

    @property
    def record(self) -> dict[str, Any]:
        """As an arm stores it."""
        return asdict(self)

    @property
    def selectors(self) -> dict[str, Any]:
        """Of an operation on its tensors."""
        kinds = list(_OUTSIDE.get(self.kind) or self.kind.split("+"))
        return {"kinds": kinds} if self.layer is None else {"kinds": kinds, "layers": [self.layer]}


@dataclass(frozen=True, slots=True)
class Tried:
    """A cell in one direction.

    Attributes:
        cell: The cell.
        direction: `put in` or `leave out`.
        first_order: What it adds to the mean log-odds to first order, in nats.
        norm: ‖cell‖_F.
        effect: Difference from the direction's start, in the measure; None where it was not run.
        moved: Share of the pair's difference that it moves: F of a put-in, 1 − F of a leave-out; None where it was not
            run or the pair is not shown to differ.
        p: Of its sign-flip test.
        p_holm: The same corrected over all cells that ran.
    """

    cell: Cell
    direction: str
    first_order: float
    norm: float
    effect: float | None = None
    moved: float | None = None
    p: float | None = None
    p_holm: float | None = None

    @property
    def name(self) -> str:
        """Of its arm."""
        return f"{self.direction} {self.cell.name}"

    @property
    def matters(self) -> bool | None:
        """Whether it does more than chance and enough to count; None where that is not known."""
        if self.moved is None or self.p_holm is None:
            return None
        return self.p_holm <= ALPHA and abs(self.moved) >= MATTERS


@dataclass(frozen=True, slots=True, eq=False)
class Edits:
    """Cells as edits of one pair.

    Attributes:
        asked: The pair.
        kept: Singular triples, found once for all of them.
    """

    asked: Pairing
    kept: dict[tuple[str, ...], Triples] = field(default_factory=dict)

    def plan(self, of: Sequence[Cell], direction: str) -> Plan:
        """Cells put in together, or left out together; reads the headers of both sides, and is not kept."""
        return opened(self.asked, operations(of, direction), self.kept)

    def one(self, tried: Tried) -> Point:
        """A cell by itself."""
        what = {"cell": tried.cell.record}
        return self._point(tried.name, [tried.cell], tried.direction, what, tried.norm)

    def several(self, of: Sequence[Tried]) -> Point:
        """Cells of one direction, at least one; one alone is its own arm."""
        direction, parts = of[0].direction, [t.cell for t in of]
        if len(of) == 1:
            return self.one(of[0])
        what = {"cells": [cell.record for cell in parts]}
        norm = float(np.linalg.norm([t.norm for t in of]))  # the bands of a matrix are orthogonal
        return self._point(f"{direction} the first {len(of)} cells", parts, direction, what, norm)

    def _point(self, name: str, of: Sequence[Cell], direction: str, what: Row, norm: float) -> Point:
        edit = from_record({"base": self.asked.base, "tuned": self.asked.tuned, "edit": operations(of, direction)})
        arm = Arm(name, "edit", {**edit.record, **what, "direction": direction}, norm_delta=norm)
        return Point(arm, float(len(of)), lambda model: swap(model, self.plan(of, direction), side="tuned"))

    def control(self, tried: Tried) -> Point:
        """One random U of the length of a cell, drawn when it is run."""
        side = STARTS[tried.direction]

        def made() -> Tensors:
            drawn = controls(self.plan([tried.cell], tried.direction), side)
            return next(c for c in drawn if c.kind == "random U").made()

        control = Control("random U", 0, True, made, None, tried.norm)
        start = opened(self.asked, {"operator": "interpolate", "strength": 0.0}) if side == BASE else None
        return points(self.one(tried), [control], start)[0]


def cells(asked: Pairing, count: Callable[[Tensor], int] = spikes) -> list[Cell]:
    """Every cell of a pair, in the order of its tensors; reads both sides once, and again to count spikes.

    Args:
        asked: The pair.
        count: The spikes of a matrix.

    Raises:
        BadInput: A tensor holds NaN or Inf.
        Refused: The sides do not differ.
    """
    places: dict[Place, list[Tensor]] = {}
    for change in changes_of(opened(asked, {"operator": "interpolate", "strength": 1.0}), "base"):
        places.setdefault(_place(change.row), []).append(change.row)
    if not places:
        raise Refused(f"{asked.base} and {asked.tuned} do not differ in any tensor: there is nothing to map")
    found = []
    for (layer, kind), rows in places.items():
        rank = None
        if layer is not None and all(len(row.shape) == 2 for row in rows):  # a stack of experts has no spikes
            rank = max(1, *map(count, rows))
        if rank is None or rank >= max(min(row.shape) for row in rows):
            found.append(Cell(layer, kind, WHOLE, None))
        else:
            found += [Cell(layer, kind, band, rank) for band in (TOP, REST)]
    return found


def operations(of: Sequence[Cell], direction: str) -> list[dict[str, Any]]:
    """Cells put into the base together, or left out of the tuned model, as the operations of an edit file."""
    places: dict[Place, list[Cell]] = {}
    for cell in of:
        places.setdefault((cell.layer, cell.kind), []).append(cell)
    return [
        step | own[0].selectors
        for own in places.values()
        for step in _steps(direction, own[0].band if len(own) == 1 else WHOLE, own[0].rank)
    ]


def _place(row: Tensor) -> Place:
    kinds = kinds_of(row, {})
    if set(kinds) <= {*LINEAR}:
        return row.name.layer, "+".join(kinds)
    return None, next(group for group, own in _OUTSIDE.items() if set(kinds) <= {*own})


def _steps(direction: str, band: str, rank: int | None) -> list[dict[str, Any]]:
    if direction == PUT_IN:
        if band == TOP:
            return [{"operator": "truncate", "rank": rank}]
        whole = {"operator": "truncate", "rank": "full"}
        return [whole] if band == WHOLE else [whole, {"operator": "revert", "rank": rank}]
    if band == REST:
        return [{"operator": "truncate", "rank": rank, "rest": "tuned"}]
    return [{"operator": "revert", "rank": rank if band == TOP else "full"}]
