"""What a causal map says of its cells: tests, shares, and the rows of its tables."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean

import numpy as np
from jaxtyping import Float64

from deltalens.evaluate.scores import Row, differences, mean, scores
from deltalens.methods.cells import ALPHA, MATTERS, PUT_IN, STARTS, Tried
from deltalens.statistics import holm, permutation_p
from deltalens.store.results import SELECT
from deltalens.sweep.arms import Arm
from deltalens.sweep.bench import BASE, TUNED, Found
from deltalens.sweep.curves import Swept
from deltalens.sweep.pair import Pairing
from deltalens.sweep.verdicts import LEVEL, unseparated

FLIPS = 10_000
"""Sign flips of a test; a hundred for every test where there are more, or Holm's least p would be above `ALPHA`."""

_CHUNK = 1000
_ROUNDING = 1e-9  # a flip that changes nothing must count as reached, whatever the order of its sum


def shift(found: Found, start: Found, metric: str) -> float:
    """Difference of the means of a measure."""
    return fmean(found.values(metric)) - fmean(start.values(metric))


def sign_flips(changes: Float64[np.ndarray, "tests items"]) -> list[float]:
    """Two-sided p that paired differences scatter around 0: their mean against that under random signs (Fisher 1935).

    Args:
        changes: Paired differences by item; one draw of signs serves every test.
    """
    flips, rng = max(FLIPS, 100 * len(changes)), np.random.default_rng(0)
    null = [
        np.abs(rng.choice([-1.0, 1.0], size=(min(_CHUNK, flips - at), changes.shape[1])) @ changes.T)
        for at in range(0, flips, _CHUNK)
    ]
    sums = np.abs(changes.sum(1)) * (1 - _ROUNDING)
    return [permutation_p(float(s), draws) for s, draws in zip(sums, np.concatenate(null).T, strict=True)]


def judged(run: Sequence[Tried], found: Sequence[Found], start: Mapping[str, Found], metric: str) -> list[Tried]:
    """Cells that ran, with what they do on the test split.

    Args:
        run: The cells.
        found: Their arms on the test split.
        start: Base and tuned model on the same.
        metric: The measure.
    """
    values = {side: np.array(f.values(metric)) for side, f in start.items()}
    whole = mean((values[TUNED] - values[BASE]).tolist(), LEVEL)
    differs = whole["low"] is not None and unseparated(whole) is None
    changes = [np.array(f.values(metric)) - values[STARTS[t.direction]] for t, f in zip(run, found, strict=True)]
    p = sign_flips(np.array(changes)) if changes else []
    made = []
    for t, change, raw, adjusted in zip(run, changes, p, holm(p), strict=True):
        effect = float(change.mean())
        share = effect / whole["value"] if differs else None
        moved = -share if share is not None and t.direction != PUT_IN else share
        made.append(replace(t, effect=effect, moved=moved, p=raw, p_holm=adjusted))
    return made


def of_cells(asked: Pairing, tried: Sequence[Tried], chosen: Mapping[str, float]) -> list[Row]:
    """First order, effect on the select split, F, and whether it matters, of every cell in both directions."""
    budget = sum(t.effect is not None for t in tried)
    rows: list[Row] = []
    for t in tried:
        own = _labels(asked) | {"arm": t.name}
        estimate = "nats of mean log-odds, to first order, select split"
        if t.effect is None:
            estimate += f"; not run: not among the {budget} largest"
        rows.append(own | {"metric": "first_order", "value": t.first_order, "method": estimate})
        if t.effect is None:
            continue
        rows.append(
            own
            | {"task": asked.prompts.task.name + SELECT, "metric": asked.metric, "reference": STARTS[t.direction]}
            | {"n": len(asked.chosen_on.items), "value": chosen[t.name], "method": "difference of means"}
        )
        left = t.moved if t.moved is None or t.direction == PUT_IN else 1 - t.moved
        ratio = "ratio of means" if left is not None else "the tuned model is not shown to differ from the base"
        n = {"n": len(asked.prompts.items)}
        rows.append(own | n | {"metric": "fraction", "reference": t.name, "value": left, "method": ratio})
        rule = f"p_holm ≤ {ALPHA} and at least {MATTERS} of the difference moved"
        matters = None if t.matters is None else float(t.matters)
        rows.append(own | n | {"metric": "matters", "value": matters, "method": rule, "p": t.p, "p_holm": t.p_holm})
    return rows


def agreement(asked: Pairing, tried: Sequence[Tried]) -> list[Row]:
    """Spearman's rank correlation of first-order and true effects over the cells that ran, by direction.

    Signed, and of their sizes, by which cells are chosen to run.
    """
    from scipy.stats import spearmanr  # slow to import

    rows: list[Row] = []
    for direction in STARTS:
        pairs = [(t.first_order, t.effect) for t in tried if t.direction == direction and t.effect is not None]
        for metric, values in (("spearman", np.array(pairs)), ("spearman_size", np.abs(pairs))):
            known = len(pairs) > 2 and bool((values.std(0) > 0).all())
            rho = float(spearmanr(values[:, 0], values[:, 1]).statistic) if known else None
            method = f"first-order against true effects of cells, {direction}; n is their number"
            rows.append(
                _labels(asked) | {"arm": direction, "metric": metric, "n": len(pairs), "value": rho, "method": method}
            )
    return rows


def of_sets(asked: Pairing, name: str, cells: Sequence[str], enough: bool, path: Sequence[Found]) -> list[Row]:
    """What a set of cells holds, and the places of the sets that were tried on the way."""
    said = "enough" if enough else "not enough: all cells that help"
    held = {"arm": name, "metric": "cells", "value": float(len(cells)), "method": f"{said}: {', '.join(cells)}"}
    places = [{"arm": f.name, "group": name, "metric": "strength", "value": f.point.strength} for f in path]
    return [_labels(asked) | row for row in (held, *places)]


def table(
    asked: Pairing,
    swept: Swept,
    scored: Sequence[Found],
    start: Mapping[str, Found],
    tried: Sequence[Tried],
    rows: Sequence[Row],
    waiting: Sequence[Arm],
) -> Swept:
    """The tables of the winners with all else that ran: each arm once, edits with their difference from their start.

    Args:
        asked: The pair.
        swept: The winners and their controls.
        scored: Cells, their controls and sets of cells, on the test split.
        start: Base and tuned model on the same.
        tried: The cells, judged.
        rows: Further rows of the summary.
        waiting: Arms of the cells that were not run.
    """
    there = {arm["arm"] for arm in swept.arms}
    more = {f.name: f for f in scored if f.name not in there}
    summary = [*swept.summary]
    for f in more.values():
        own = {"arm": f.name, "task": f.prompts.task.name}
        summary += [own | row for row in scores(f.table)]
        if f.point.arm.role == "edit":
            side = start[STARTS[f.point.arm.edit["direction"]]]
            summary += [own | {"reference": side.name} | row for row in differences(side.table, f.table)]
    tests = {(t.name, STARTS[t.direction]): {"p": t.p, "p_holm": t.p_holm, "method": _TESTED} for t in tried}
    of_measure = (asked.prompts.task.name, asked.metric, "")
    summary = [
        row | (tests.get((row["arm"], row.get("reference")), {}) if _place(row) == of_measure else {})
        for row in summary
    ]
    return replace(
        swept,
        rows=[*swept.rows, *(row for f in more.values() for row in f.table)],
        arms=[*swept.arms, *(f.point.arm.row for f in more.values()), *(arm.row for arm in waiting)],
        summary=[*summary, *rows],
    )


_TESTED = "bootstrap by item; p by sign flips, Holm over the cells that ran"


def _labels(asked: Pairing) -> Row:
    return {"task": asked.prompts.task.name, "group": ""}


def _place(row: Row) -> tuple[str, str, str]:
    return row["task"], row["metric"], row.get("group", "")
