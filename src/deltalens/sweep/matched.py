"""The matched controls of an edit on a bench: read what the edit's matrices read, and find the sibling's own edit."""

from contextlib import nullcontext
from dataclasses import dataclass, field, replace

from deltalens.checkpoint.pair import Row
from deltalens.edit.edit import PAIRED
from deltalens.edit.plan import Plan, plan
from deltalens.edit.select import editable
from deltalens.edit.swap import swap
from deltalens.sweep.bench import BASE, Bench, Point
from deltalens.sweep.controls import controls, points
from deltalens.sweep.inputs import Input, second_moments
from deltalens.sweep.pair import opened as opened_on

_MOST = 2**33
"""Bytes of second moments in memory: beyond, the widest inputs (of down_proj from 7B on) are matched in ‖C‖_F."""


_SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Kinds that read one input."""


@dataclass(frozen=True, slots=True, eq=False)
class Matched:
    """Controls of edits on one bench; what they read is read once for each side and tensor.

    Attributes:
        at: The bench; its `sibling`, where it has one, gives a control.
        known: Σ by side and canonical name.
    """

    at: Bench
    known: dict[tuple[str, str], Input] = field(default_factory=dict)

    def points(self, point: Point, opened: Plan) -> list[Point]:
        """The controls of an edit as points.

        Args:
            point: The edit's own.
            opened: The edit, of the bench's pair.
        """
        side, pairing = opened.edit.home, self.at.pairing
        sibling = pairing.others.get("sibling")
        other = None
        if sibling is not None and all(operation.operator in PAIRED for operation in opened.edit.operations):
            other = plan(replace(opened.edit, tuned=sibling.source))
        base = opened_on(pairing, {"operator": "interpolate", "strength": 0.0})
        made = controls(opened, side, self.inputs(opened, side), other)
        return points(point, made, base if side == BASE else None)

    def inputs(self, opened: Plan, side: str) -> dict[str, Input]:
        """Σ of every tensor that the edit touches, on the select split, in the model that the edit starts from."""
        rows = [row for row in editable(opened.pair) if row.name.name in opened.steps and len(row.shape) == 2]
        names = {row.name.name for row in rows}
        if missing := [row for row in _affordable(rows) if (side, row.name.name) not in self.known]:
            model, asked = self.at.load(), self.at.pairing
            base = opened_on(asked, {"operator": "interpolate", "strength": 0.0})
            with swap(model, base, side="tuned") if side == BASE else nullcontext():
                size = asked.asked.settings.batch_size
                found = second_moments(model, missing, asked.chosen_on.ids["free"], size)
            self.known.update({(side, name): moment for name, moment in found.items()})
        return {name: moment for (where, name), moment in self.known.items() if where == side and name in names}


def _affordable(rows: list[Row]) -> list[Row]:
    """Matrices by the width of their input, as many as fit; those that read one input are counted once."""
    total, counted, found = 0, set(), []
    for row in sorted(rows, key=lambda row: row.shape[1]):
        kind = row.name.kind
        place = row.name.layer, next((group for group in _SHARED if kind in group), kind)
        total += 0 if place in counted else 8 * row.shape[1] ** 2
        counted.add(place)
        if total > _MOST:
            break
        found.append(row)
    return found
