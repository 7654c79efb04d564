"""Causal map: which cells of Δ, layer × kind × rank band, make the model think, put in alone or left out alone (ours).

Put in: W_b + cell; left out: W_t − cell. A gradient at either end ranks all cells by what they would do to first order,
⟨g, cell⟩ in nats of mean log-odds on the select split; the best `budget` are run. Largest cells and the order in which
sets of cells grow are chosen on the select split too; every claim is from the test split. A cell matters where the
sign-flip test of its paired differences, corrected by Holm over all cells that ran, gives p ≤ .05 and it moves at least
.05 of the pair's difference. How far the first order is from the truth is a result of its own, a rank correlation.

Beside every cell stands one random U of the same functional norm; the winners have every control of `sweep.matched`.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltalens.checkpoint.pair import Row as Tensor
from deltalens.edit.ranks import spikes
from deltalens.evaluate.scores import Row
from deltalens.methods.causal_rows import agreement, judged, of_cells, of_sets, shift, table
from deltalens.methods.cells import PUT_IN, STARTS, Cell, Edits, Tried, cells
from deltalens.methods.first_order import along, gradient
from deltalens.store.engine import Progress
from deltalens.store.parts import Part
from deltalens.sweep.bench import BASE, TUNED, Bench, Found, Point, bench, ends, once, score
from deltalens.sweep.controls import changes_of
from deltalens.sweep.curves import Curve, sweep, write
from deltalens.sweep.matched import Matched
from deltalens.sweep.pair import ALL, Pairing
from deltalens.sweep.verdicts import ENOUGH

VERSION = 2
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

GROWN = 12
"""Sets of cells that are tried, in either direction, on the way to the smallest one."""

LEGEND = (
    "put in: base with one cell of Δ; leave out: tuned model without it. top: the spikes of a matrix (rank 1 where it\n"
    "has none), rest: Δ without them. first order: ⟨gradient, cell⟩ in nats of mean log-odds of thinking.\n"
    "matters: p ≤ 0.05 (sign flips, Holm over all cells that ran) and at least 0.05 of the pair's difference moved.\n"
    "smallest set: cells in order of their effect on the select split, until 0.8 of the difference has moved there."
)


@dataclass(frozen=True, slots=True, eq=False)
class CausalMap:
    """Where in Δ thinking comes from.

    Attributes:
        cells: Every cell in both directions, the largest first-order effects first.
        sets: By direction, the smallest set of cells that was found to move enough on the select split; a direction in
            which not even all helpful cells do is left out.
        rows: `store.results.RESULTS`.
        arms: `store.results.ARMS`.
        summary: `store.results.SUMMARY`.
    """

    cells: tuple[Tried, ...]
    sets: dict[str, tuple[Cell, ...]]
    rows: list[Row]
    arms: list[Row]
    summary: list[Row]


def causal_map(
    asked: Pairing,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
    kl: bool = False,
    budget: int = 256,
) -> CausalMap:
    """Ranks every cell of Δ by a gradient, runs the best of them, and grows the smallest sets that are enough.

    A gradient takes twice the model in float32; a cell that runs takes three forward passes over the prompts: on the
    select split, on the test split, and of its control.

    Args:
        asked: From `sweep.pair.pairing`; its `sibling` gives the winners a control.
        out: Directory for the tables, where an interrupted map resumes; None keeps nothing.
        progress: Called after every part.
        command: The command line to record.
        kl: Whether KL from the base is taken.
        budget: Cells that are run, put-ins and leave-outs together.

    Raises:
        BadInput: The model does not load, or a tensor holds NaN or Inf.
        Refused: The sides do not differ, or `out` holds something else.
    """
    edits = Edits(asked)
    with bench(asked, {"recipe": "causal-map", "version": VERSION, "budget": budget}, out, progress, command, kl) as at:
        ranked = _ranked(at, edits)
        run, waiting = ranked[:budget], ranked[budget:]
        select = score(at, [edits.one(t) for t in run], asked.chosen_on)
        sides = dict(zip((BASE, TUNED), score(at, ends(asked), asked.chosen_on), strict=True))
        chosen = {t.name: shift(f, sides[STARTS[t.direction]], asked.metric) for t, f in zip(run, select, strict=True)}
        grown = [g for direction in STARTS if (g := _grown(at, edits, run, direction, chosen, sides))]
        swept = sweep(at, _curves(at, edits, grown))
        start = {BASE: swept.base, TUNED: swept.tuned}
        found = score(at, [edits.one(t) for t in run])
        beside = score(at, [edits.control(t) for t in run])
        paths = {g.name: score(at, [edits.several(g.order[:k]) for k in g.tried if k != g.size]) for g in grown}
        tried = (*judged(run, found, start, asked.metric), *waiting)
        rows = of_cells(asked, tried, chosen) + agreement(asked, tried)
        for g in grown:
            rows += of_sets(asked, g.name, [t.cell.name for t in g.order[: g.size]], g.enough, paths[g.name])
        scored = [*found, *beside, *(f for path in paths.values() for f in path)]
        told = table(asked, swept, scored, start, tried, rows, [edits.one(t).arm for t in waiting])
        write(out, "causal-map", told)
    sets = {g.order[0].direction: tuple(t.cell for t in g.order[: g.size]) for g in grown if g.enough}
    return CausalMap(tried, sets, told.rows, told.arms, told.summary)


def _ranked(at: Bench, edits: Edits) -> list[Tried]:
    """Every cell in both directions by the size of its first-order effect; the model is run at either end."""
    asked = at.pairing

    def part(what: str, *more: str, work: Callable[[], Row]) -> Row:
        return once(at, what, (what, *more), lambda: Part(work(), {})).row

    def slopes(point: Point) -> Row:
        model = at.load()
        with point.put(model):
            slope = gradient(model, asked.chosen_on, asked.metric, asked.asked.settings.batch_size)
        found = {}
        for cell in known:
            changes = changes_of(edits.plan([cell], PUT_IN), BASE)
            found[cell.name] = along(slope, changes), float(np.linalg.norm([c.size for c in changes]))
        return found

    def counted(row: Tensor) -> int:  # of a large model minutes each
        return part(f"spikes of {row.name.name}", work=lambda: {"spikes": spikes(row)})["spikes"]

    found = part("cells of Δ", work=lambda: {"cells": [cell.record for cell in cells(asked, counted)]})["cells"]
    known = [Cell(**record) for record in found]
    ranked = []
    for direction, point in zip(STARTS, ends(asked), strict=True):
        effects = part(f"gradient of {point.arm.name}", json.dumps(found), work=lambda point=point: slopes(point))
        sign = 1.0 if direction == PUT_IN else -1.0
        ranked += [Tried(cell, direction, sign * effects[cell.name][0], effects[cell.name][1]) for cell in known]
    return sorted(ranked, key=lambda t: -abs(t.first_order))


@dataclass(frozen=True, slots=True)
class _Grown:
    """A set of cells of one direction, grown on the select split.

    Attributes:
        order: Cells that move the measure towards the other end, the largest effects first.
        tried: How many of the first were tried together.
        size: The least number that moves enough, or all where not even they do.
        enough: Whether they do.
    """

    order: tuple[Tried, ...]
    tried: tuple[int, ...]
    size: int
    enough: bool

    @property
    def name(self) -> str:
        """Of its curve, whose places are numbers of cells."""
        return f"smallest set, {self.order[0].direction}"


def _grown(
    at: Bench,
    edits: Edits,
    run: Sequence[Tried],
    direction: str,
    chosen: Mapping[str, float],
    sides: Mapping[str, Found],
) -> _Grown | None:
    """The smallest set of cells in order of their own effects; None where no cell moves towards the other end."""
    metric, start = at.pairing.metric, sides[STARTS[direction]]
    whole = shift(sides[TUNED], sides[BASE], metric)
    toward = math.copysign(1.0, whole if direction == PUT_IN else -whole)
    own = [t for t in run if t.direction == direction and toward * chosen[t.name] > 0]
    order = tuple(sorted(own, key=lambda t: -abs(chosen[t.name])))

    def moves(k: int) -> bool:
        (made,) = score(at, [edits.several(order[:k])], at.pairing.chosen_on)
        return toward * shift(made, start, metric) >= ENOUGH * abs(whole)

    if not order:
        return None
    tried, least = grow(len(order), moves)
    return _Grown(order, tuple(tried), least or len(order), least is not None)


def grow(count: int, moves: Callable[[int], bool]) -> tuple[list[int], int | None]:
    """How many of some things in order were tried together, and the least number found that moves enough.

    Doubling, then halving; at most `GROWN` tries, unless there are more than 2¹¹ things.

    Args:
        count: How many there are.
        moves: Whether the first k do.
    """
    tried, low, high = [1], 0, 1
    while not moves(high):
        if high == count:
            return tried, None
        low, high = high, min(2 * high, count)
        tried.append(high)
    while high - low > 1 and len(tried) < GROWN:
        middle = (low + high) // 2
        tried.append(middle)
        low, high = (low, middle) if moves(middle) else (middle, high)
    return sorted(tried), high


def _curves(at: Bench, edits: Edits, grown: Sequence[_Grown]) -> list[Curve]:
    """The winners: of either direction the largest cell and the smallest set, as curves of one point."""
    matched = Matched(at)

    def curve(name: str, of: Sequence[Tried]) -> Curve:
        direction = of[0].direction
        point, plan = edits.several(of), edits.plan([t.cell for t in of], direction)
        asks = ("causal", "sufficient") if direction == PUT_IN else ("causal", "necessary", "choice")
        controls = lambda p: matched.points(p, plan)  # noqa: E731
        return Curve(name, STARTS[direction], (float(len(of)),), lambda _: point, controls, asks, writes=ALL)

    named = [(f"largest cell, {g.order[0].direction}", g.order[:1]) for g in grown]
    named += [(g.name, g.order[: g.size]) for g in grown]
    return [curve(name, of) for name, of in named]
