"""A sweep of one edit file over a grid: carried out."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from deltalens.checkpoint.identity import identity
from deltalens.checkpoint.source import open_checkpoint
from deltalens.direction.bank import split_reference
from deltalens.edit.adapter import CONFIG, WEIGHTS, is_adapter
from deltalens.edit.edit import Edit
from deltalens.edit.form import Triples
from deltalens.edit.plan import Plan, plan
from deltalens.edit.shares import change_norm
from deltalens.methods.grid import Along, Field, edits
from deltalens.store.engine import Progress
from deltalens.sweep.bench import Point, bench, edited
from deltalens.sweep.curves import Curve, Swept, sweep, write
from deltalens.sweep.matched import Matched
from deltalens.sweep.pair import Pairing

VERSION = 1
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""


def grid(
    asked: Pairing,
    edit: Edit,
    varied: Mapping[Field, list[Any]],
    adaptive: bool = False,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
    kl: bool = True,
) -> Swept:
    """Sweeps an edit over a grid.

    Args:
        asked: From `sweep.pair.pairing`, of the edit's two sides; its `sibling` gives a control.
        edit: The edit; fields that are varied are replaced.
        varied: From `read_grid`.
        adaptive: Whether strengths are added where the measure jumps.
        out: Directory for the tables, where an interrupted sweep resumes; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.
        kl: Whether KL from the base is taken.

    Raises:
        BadInput: A value is none of its field, or there are too many curves.
        Refused: A tensor cannot take the edit, or `out` holds something else.
    """
    kept: dict[tuple[str, ...], Triples] = {}
    recipe = {
        "recipe": "grid",
        "version": VERSION,
        "edit": edit.record,
        "grid": {f"{number}.{name}": values for (number, name), values in varied.items()},
        "adaptive": adaptive,
    }
    described = edits(edit, varied, adaptive)
    # what no tensor can take is refused before a model is loaded
    recipe["reads"] = _reads([plan(along.made(x), kept) for along in described for x in along.xs])
    with bench(asked, recipe, out, progress, command, kl) as at:
        matched = Matched(at)
        found = sweep(at, [_curve(along, kept, matched) for along in described])
        write(out, "grid", found)
    return found


def _reads(plans: Sequence[Plan]) -> dict[str, Any]:
    """What lies in the banks, adapters and further models that edits name: their paths alone do not say."""
    banks = {split_reference(reference)[0] for opened in plans for reference in opened.directions}
    models = {name for opened in plans for name in opened.models} - {"base", "tuned"}
    adapters = {name for name in models if is_adapter(name)}
    files = [*banks, *(f"{name}/{file}" for name in adapters for file in (CONFIG, WEIGHTS))]
    found: dict[str, Any] = {name: hashlib.sha256(Path(name).read_bytes()).hexdigest()[:16] for name in files}
    return found | {name: identity(open_checkpoint(name)) for name in models - adapters}


def _curve(along: Along, kept: dict[tuple[str, ...], Triples], matched: Matched) -> Curve:
    start = along.made(along.xs[0]).home

    @cache
    def opened(x: float) -> Plan:
        return plan(along.made(x), kept)

    def make(x: float) -> Point:
        place = repr(x).removesuffix(".0")  # every digit: two arms of one name would be one arm
        return edited(f"{along.name}: {place}", "edit", opened(x), x, change_norm(opened(x)))

    def controls(point: Point) -> list[Point]:
        assert point.strength is not None
        return matched.points(point, opened(point.strength))

    asks = ("causal", "sufficient") if start == "base" else ("causal", "necessary", "choice")
    return Curve(along.name, start, along.xs, make, controls, asks, along.adaptive)
