"""The matched controls of an edit on a bench: read what the edit's matrices read, and find the sibling's own edit."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from deltalens.checkpoint.pair import Row
from deltalens.edit.edit import PAIRED
from deltalens.edit.plan import Plan, plan
from deltalens.edit.select import editable
from deltalens.edit.swap import swap
from deltalens.store.parts import Part
from deltalens.sweep.bench import BASE, Bench, Point, once
from deltalens.sweep.controls import Control, controls, points
from deltalens.sweep.inputs import Input, second_moments
from deltalens.sweep.pair import opened as opened_on

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_MOST = 2**33
"""Bytes of second moments in memory: beyond, the widest inputs (of down_proj from 7B on) are matched in ‖C‖_F."""


_SIZES = ("kind", "seed", "decides", "functional_norm", "norm")
"""What is stored of a control, so that a finished sweep draws none again."""

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

        @cache
        def made() -> list[Control]:
            return controls(opened, side, self.inputs(opened, side), other)

        def sizes() -> Part:
            return Part({"controls": [[getattr(control, name) for name in _SIZES] for control in made()]}, {})

        name = point.arm.name
        told = once(self.at, f"{name}: controls", ("controls", name, point.arm.edit), sizes).row["controls"]
        known = [
            Control(made=lambda i=i: made()[i].made(), **dict(zip(_SIZES, of, strict=True)))
            for i, of in enumerate(told)
        ]
        return [_beforehand(made, one) for one in points(point, known, base if side == BASE else None)]

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


def _beforehand(made: Callable[[], object], one: Point) -> Point:
    """The same point, its controls drawn before the model is edited: what the unedited one reads sizes them."""

    def put(model: "PreTrainedModel") -> AbstractContextManager[Any]:
        made()
        return one.put(model)

    return replace(one, put=put)


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
