"""Is it reasoning, or any training? The leading part of other deltas, put into the same base at the same length (ours).

Every control's own Δ_k (a sibling that learned to answer, a safety tune, ordinary fine-tuning, another recipe) stands
in for that of the pair, rescaled tensor by tensor to the same ‖ΔΣ^½‖ on the base's inputs: what then differs is which
directions were learned, not how far the weights moved.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deltalens.checkpoint.pair import Row as Tensor
from deltalens.edit.edit import from_record
from deltalens.edit.form import Form, Triples
from deltalens.edit.plan import Plan, plan
from deltalens.edit.shares import change_norm
from deltalens.evaluate.scores import Row
from deltalens.store.engine import Progress
from deltalens.sweep.arms import Arm
from deltalens.sweep.bench import Point, bench, edited, placed
from deltalens.sweep.controls import Change, changes_of
from deltalens.sweep.curves import Curve, Swept, sweep, write
from deltalens.sweep.matched import Matched
from deltalens.sweep.pair import ALL, Pairing, opened
from deltalens.sweep.verdicts import CONTRADICTED, ITEMS, SUPPORTED, UNDECIDED, Verdict, gap

VERSION = 2
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

MARGIN = 0.05
"""Two effects are equal where the whole interval of their difference lies within this."""

MAIN = "Δ_k of the pair"
NEEDED = ("sibling", "safety")
"""Roles from which the pair's effect must differ."""

LEGEND = (
    "Each line is the leading part of another change of weights, put into the same base and stretched, matrix by\n"
    "matrix, to the length of the pair's own on the base's inputs (‖ΔΣ^½‖). specific: the pair's p less the other's,\n"
    "paired by item, 99.4 %; supported where it excludes 0 for the sibling and for the safety tune."
)


def specific(
    asked: Pairing,
    rank: int,
    others: Sequence[tuple[str, str, str, str]],
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
    kl: bool = True,
) -> Swept:
    """Puts Δ_k of the pair, and of every other pair at the same length, into the pair's base.

    Args:
        asked: From `sweep.pair.pairing`, which has opened the other models too.
        rank: k.
        others: Name, role, base and tuned side of every other pair.
        out: Directory for the tables, where an interrupted sweep resumes; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.
        kl: Whether KL from the base is taken.

    Raises:
        Refused: The sides of another pair do not compare, or `out` holds something else.
    """
    kept: dict[tuple[str, ...], Triples] = {}
    step = {"operator": "truncate", "rank": rank}
    own = opened(asked, step, kept)
    base = opened(asked, {"operator": "interpolate", "strength": 0.0})
    plans = {name: plan(from_record({"base": b, "tuned": t, "edit": [step]}), kept) for name, _, b, t in others}
    recipe = {"recipe": "specific", "version": VERSION, "rank": rank, "others": [list(other) for other in others]}
    with bench(asked, recipe, out, progress, command, kl) as at:
        matched = Matched(at)
        changes = changes_of(own, "base", matched.inputs(own, "base"))

        def make_own(_: float) -> Point:
            return edited(MAIN, "edit", own, 1.0, change_norm(own))

        asks = ("causal", "sufficient")
        curves = [Curve(MAIN, "base", (1.0,), make_own, lambda p: matched.points(p, own), asks, writes=ALL)]
        for name, role, *_ in others:
            arm = Arm(f"Δ_k of {name}", "edit", {**own.edit.record, "of": plans[name].edit.record, "role": role})
            made = placed(arm, 1.0, base, lambda name=name: _transplanted(changes, plans[name]))
            curves.append(Curve(arm.name, "base", (1.0,), lambda _, made=made: made, asks=("causal",), writes=ALL))
        found = sweep(at, curves)
        found.summary.extend(_compared(asked, found, {name: role for name, role, *_ in others}))
        write(out, "specific", found)
    return found


def _transplanted(changes: Sequence[Change], other: Plan) -> Iterator[tuple[Tensor, Form]]:
    """The pair's base with the other delta in place of its own, at its length; what has no counterpart stays."""
    theirs = {c.row.name.name: c.form for c in changes_of(other, "base")}
    for c in changes:
        form = theirs.get(c.row.name.name)
        if form is not None and form.shape == c.form.shape and (made := c.matched(form)) is not None:
            yield c.row, c.start + made


def _compared(asked: Pairing, found: Swept, roles: Mapping[str, str]) -> list[Row]:
    """The pair's effect less each other's, and the verdict on both that it needs."""
    labels: Row = {"task": asked.prompts.task.name, "group": ""}
    own = found.drawn[MAIN].point.values(asked.metric)
    toward = 1.0 if sum(own) >= sum(found.base.values(asked.metric)) else -1.0
    rows, by_role = [], {}
    for name, role in roles.items():
        arm = f"Δ_k of {name}"
        theirs = found.drawn[arm].point.values(asked.metric)
        row = gap([toward * v for v in theirs], [toward * v for v in own])
        by_role.setdefault(role, []).append(row)
        rows.append(labels | {"arm": arm, "metric": "specific", "reference": MAIN, **row})
    said = judge(by_role, next(row for row in found.drawn[MAIN].rows if row["metric"] == "fraction"))
    return [*rows, labels | {"arm": "pair", "metric": "specific", "method": said.text}]


def judge(by_role: Mapping[str, Sequence[Row]], share: Row) -> Verdict:
    """Specific to reasoning? (docs/behaviour.md).

    Args:
        by_role: Paired differences pair − control.
        share: F of the pair's own Δ_k: where it is undefined nothing separates the two sides.
    """
    if share["n"] < ITEMS:
        return Verdict(UNDECIDED, f"{share['n']} items, {ITEMS} are needed")
    if share["low"] is None:
        return Verdict(UNDECIDED, share["method"])
    missing = [role for role in NEEDED if role not in by_role]
    rows = [(role, row) for role in NEEDED for row in by_role.get(role, ())]
    told = "; ".join(f"{role} {_interval(row)}" for role, row in rows)
    equal = [role for role, row in rows if _equal(row)]
    if equal:
        return Verdict(CONTRADICTED, f"the {equal[0]} delta does as much: {told}")
    if missing:
        return Verdict(UNDECIDED, f"no {' and no '.join(missing)} pair" + (f" ({told})" if told else ""))
    if all(row["low"] > 0 for _, row in rows):
        more = [f"{r} {_interval(row)}" for r, own in by_role.items() if r not in NEEDED for row in own if _equal(row)]
        also = f"; as much: {'; '.join(more)}" if more else ""  # another reasoning training is no counter-evidence
        return Verdict(SUPPORTED, f"more than either: {told}{also}")
    return Verdict(UNDECIDED, told)


def _equal(row: Row) -> bool:
    return row["low"] >= -MARGIN and row["high"] <= MARGIN


def _interval(row: Mapping[str, Any]) -> str:
    return f"{row['value']:+.2f} [{row['low']:+.2f}, {row['high']:+.2f}]"
