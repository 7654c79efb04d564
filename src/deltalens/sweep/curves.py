"""Curves of edits over one strength: an operating point, controls there, and what may be claimed of each.

A curve starts at the base (something is put in) or at the tuned model (something is taken out), and its effects are
taken from that side. Strengths are chosen on the select split; every number of a claim is from the test split.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from deltalens.evaluate.scores import Row, outcome_pairs, rate_difference, scores, summarise
from deltalens.store.experiment import write_results, write_summary
from deltalens.store.results import SELECT
from deltalens.sweep.arms import REACHED, effect_minus_largest_control, operating_point
from deltalens.sweep.bench import BASE, TUNED, Bench, Found, Point, ends, generate, score, texts_of
from deltalens.sweep.pair import ALL, FEW, GENERATE, POINTS, Pairing
from deltalens.sweep.verdicts import LEVEL, UNDECIDED, Verdict, causal, choice, enough, fraction, left_out

GAP, FINEST = 0.1, 1 / 64
"""A curve is refined where its measure jumps by more than this between neighbours, down to this share of its length."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Edits of one kind along one strength.

    Attributes:
        name: Unique within an experiment.
        start: `base` or `tuned`: where strength 0 stands, and what effects are taken from.
        xs: Strengths or ranks, 0 left out.
        make: The edit at one of them.
        controls: Of the edit at the operating point; those of `decides: false` are shown only.
        asks: Verdicts that make sense of it, of `causal`, `sufficient`, `necessary` and `choice`.
        adaptive: Whether points are added where the measure jumps.
        writes: The least of `pair.GENERATE` under which its operating point writes completions.
        rivals: Of curves with one such name, all but that of the largest effect on the select split write completions
            only where all do.
    """

    name: str
    start: str
    xs: tuple[float, ...]
    make: Callable[[float], Point]
    controls: Callable[[Point], Sequence[Point]] = lambda _: ()
    asks: tuple[str, ...] = ("causal",)
    adaptive: bool = False
    writes: str = POINTS
    rivals: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """A curve, swept.

    Attributes:
        curve: What was asked.
        xs: Ascending, as swept.
        found: Of each, on the test split.
        point: The arm at the operating point, with its completions.
        controls: Its controls, the largest of those that decide first.
        rows: Of a summary, about the curve as a whole and the places on it.
    """

    curve: Curve
    xs: tuple[float, ...]
    found: tuple[Found, ...]
    point: Found
    controls: tuple[Found, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Swept:
    """What a sweep found.

    Attributes:
        base: The base as it is.
        tuned: The tuned model as it is.
        drawn: By name of the curve.
        rows: `store.results.RESULTS`; an arm without completions has no text.
        arms: `store.results.ARMS`.
        summary: `store.results.SUMMARY`.
    """

    base: Found
    tuned: Found
    drawn: dict[str, Drawn]
    rows: list[Row]
    arms: list[Row]
    summary: list[Row]


def sweep(
    at: Bench, curves: Sequence[Curve], *, generates: bool = True, ledger: bool = False, more: Sequence[Row] = ()
) -> Swept:
    """Scores every point, chooses, controls what was chosen, and generates where a claim is made.

    Args:
        at: The bench.
        curves: What to sweep.
        generates: Whether anything writes completions: base, tuned model, operating points and their largest controls
            as the pairing asks.
        ledger: Whether they are asked the other tasks and the neutral text too.
        more: Further rows for the summary.
    """
    pairing = at.pairing
    task = pairing.prompts.task.name

    def told(found: Sequence[Found], writes: bool) -> list[Found]:
        return generate(at, found, ledger) if writes else list(found)

    sides = score(at, ends(pairing), pairing.chosen_on)
    on_select = dict(zip((BASE, TUNED), sides, strict=True))
    chosen_on = [_chosen(at, curve, on_select) for curve in curves]
    silent = _silent(pairing, curves, [select[x] for x, select in chosen_on], on_select, generates)
    base, tuned = told(score(at, ends(pairing)), None in silent)
    start = {BASE: base, TUNED: tuned}
    drawn = {}
    for curve, (x, select), why in zip(curves, chosen_on, silent, strict=True):
        found = score(at, [f.point for f in select.values()])
        (point,) = told([found[list(select).index(x)]], why is None)
        controls = _largest_first(score(at, curve.controls(point.point)), start[curve.start], pairing.metric)
        controls = [*told(controls[:1], why is None and pairing.generate != FEW), *controls[1:]]
        xs = tuple(sorted(select))
        found = [point if f.name == point.name else f for f in sorted(found, key=lambda f: f.point.strength or 0.0)]
        labels = {"arm": curve.name, "task": task, "group": "", "n": point_count(point)}
        rows = _claims(curve, start, point, controls, pairing.metric, x, why or pairing.not_greedy)
        rows = [labels | row for row in rows]
        places = [(start[curve.start].name, 0.0), *((f.name, f.point.strength) for f in found)]
        rows += [
            {"arm": arm, "task": task, "group": curve.name, "metric": "strength", "value": place}
            for arm, place in places
        ]
        drawn[curve.name] = Drawn(curve, xs, tuple(found), point, tuple(controls), tuple(rows))
    return _told(base, tuned, drawn, [*sides, *(f for _, select in chosen_on for f in select.values())], more)


def write(out: Path | None, recipe: str, found: Swept) -> None:
    """Writes the tables of a sweep; None keeps nothing."""
    if out is not None:
        write_results(out, recipe, found.rows)
        write_summary(out, found.arms, found.summary)


def point_count(found: Found) -> int:
    """Items that an arm was scored on."""
    return len(found.prompts.items)


def _chosen(at: Bench, curve: Curve, sides: Mapping[str, Found]) -> tuple[float, dict[float, Found]]:
    """The operating point of a curve, and its points on the select split."""
    pairing = at.pairing
    before = fmean(sides[curve.start].values(pairing.metric))
    found = dict(zip(curve.xs, score(at, [curve.make(x) for x in curve.xs], pairing.chosen_on), strict=True))

    def effects() -> dict[float, float]:
        return {x: fmean(f.values(pairing.metric)) - before for x, f in found.items()}

    while curve.adaptive and (new := between(effects() | {0.0: 0.0})):
        found |= zip(new, score(at, [curve.make(x) for x in new], pairing.chosen_on), strict=True)
    made = effects()
    return operating_point(list(made), list(made.values())), found


def _silent(
    pairing: Pairing, curves: Sequence[Curve], chosen: Sequence[Found], sides: Mapping[str, Found], generates: bool
) -> list[str | None]:
    """Why the operating point of a curve writes no completions, None where it does.

    Args:
        pairing: The pair, and how much of a sweep writes completions.
        curves: Of the sweep.
        chosen: Their operating points on the select split.
        sides: Both ends there.
        generates: Whether anything does.
    """
    foremost: dict[str, tuple[float, Curve]] = {}
    for curve, found in zip(curves, chosen, strict=True):
        pair = found.values(pairing.metric), sides[curve.start].values(pairing.metric)
        size = abs(fmean(pair[0]) - fmean(pair[1]))
        if curve.rivals not in foremost or size > foremost[curve.rivals][0]:
            foremost[curve.rivals] = size, curve

    def why(curve: Curve) -> str | None:
        if not generates:
            return "nothing writes completions"
        if GENERATE.index(pairing.generate) < GENERATE.index(curve.writes):
            return f'no completions: generate = "{pairing.generate}"'
        one = foremost[curve.rivals][1]
        if curve.rivals and curve is not one and pairing.generate != ALL:
            return f"no completions: of {curve.rivals} only the foremost, {one.name}, writes them"
        return None

    return list(map(why, curves))


def between(effects: Mapping[float, float]) -> list[float]:
    """Midpoints of neighbours between which the measure jumps; empty once it is known finely enough.

    Args:
        effects: By strength, the start among them.
    """
    xs = sorted(effects)
    finest = FINEST * (xs[-1] - xs[0])
    return [(a + b) / 2 for a, b in pairwise(xs) if abs(effects[b] - effects[a]) > GAP and b - a >= 2 * finest]


def decides(point: Point) -> bool:
    """Whether a claim rests on this control."""
    return bool(point.arm.edit.get("decides", True))


def _largest_first(controls: list[Found], start: Found, metric: str) -> list[Found]:
    before = fmean(start.values(metric))
    return sorted(controls, key=lambda f: (not decides(f.point), -abs(fmean(f.values(metric)) - before)))


def _claims(
    curve: Curve,
    start: Mapping[str, Found],
    point: Found,
    controls: Sequence[Found],
    metric: str,
    x: float,
    unasked: str | None,
) -> list[Row]:
    """What is said of a whole curve; `unasked` is why its completions say nothing of a choice, None where they do."""
    here = {"reference": point.name}
    rule = f"least strength of {REACHED:.0%} of the largest effect on the select split"
    rows: list[Row] = [{"metric": "operating_point", "value": x, "method": rule, **here}]
    before, now = start[curve.start].values(metric), point.values(metric)
    claim = None
    if deciding := {f.name: f.values(metric) for f in controls if decides(f.point)}:
        claim = {"metric": "effect_minus_largest_control", **effect_minus_largest_control(before, now, deciding, LEVEL)}
        rows.append(claim)
    share = fraction(start[BASE].values(metric), now, start[TUNED].values(metric))
    rows.append({"metric": "fraction", **share, **here})
    moved = share if curve.start == BASE else left_out(share)
    said = {"causal": lambda: causal(moved, claim), "sufficient": lambda: enough(moved)}
    said["necessary"] = said["sufficient"]
    said["choice"] = lambda: _choice(start[curve.start], point, unasked)
    return rows + [{"metric": ask, "method": said[ask]().text, **here} for ask in curve.asks]


def _choice(start: Found, point: Found, unasked: str | None) -> Verdict:
    if unasked is not None:
        return Verdict(UNDECIDED, unasked)
    pairs = [outcome_pairs(start.rows, point.rows, metric) for metric in ("think_ratio", "forced_accuracy")]
    if not all(pairs):
        return Verdict(UNDECIDED, f"{point.prompts.task.name} has no forced accuracy")
    return choice(*(rate_difference(one, LEVEL) for one in pairs))


def _told(base: Found, tuned: Found, drawn: dict[str, Drawn], select: Sequence[Found], more: Sequence[Row]) -> Swept:
    """The tables: every arm once, with its difference from where its curve starts."""
    starts = {TUNED: BASE}
    arms = {f.name: f for f in (base, tuned)}
    for one in drawn.values():
        for f in (*one.found, *one.controls):
            if f.name not in arms or (f.rows and not arms[f.name].rows):
                arms[f.name] = f
            starts.setdefault(f.name, one.curve.start)
    rows = [row for f in arms.values() for row in f.table]
    summary = summarise(rows, starts)
    seen = {f.name: f for f in select}
    for f in seen.values():
        summary += [{"arm": f.name, "task": f.prompts.task.name + SELECT, **row} for row in scores(f.table)]
    summary += texts_of(arms.values())
    summary += [row for one in drawn.values() for row in one.rows]
    return Swept(base, tuned, drawn, rows, [f.point.arm.row for f in arms.values()], [*summary, *more])
