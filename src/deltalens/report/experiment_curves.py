"""The curves of a sweep: which arms stand where on each, what is said of it as a whole, and how they are drawn."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise, product

from markupsafe import Markup

from deltalens.report.experiment_arms import CLAIM, Arms, marked
from deltalens.report.experiment_svg import Line, Point, chart, ticks
from deltalens.report.experiment_words import metric, signed, value
from deltalens.report.words import Row, number

TOGETHER = 5
"""Curves in one chart: as many as there are line styles beside that of the controls. More are drawn one by one."""

MOST = 60
"""Charts of one group that is drawn one by one."""

VERDICTS = ("causal", "sufficient", "necessary", "choice")

_GENERATED = ("think_ratio", "accuracy")

_FOLLOWED = 3


@dataclass(frozen=True, slots=True)
class Curve:
    """One edit at several strengths.

    Attributes:
        name: As the tables call it.
        start: The arm at 0, from which effects are taken.
        along: Place and arm of every edit, in order.
        ranks: Whether its places are ranks that double or quadruple: they are drawn on a logarithmic axis.
        point: The arm at the operating point, None without one.
        x: Its place.
        rule: How it was chosen.
        effect: Its paired difference from the start.
        controls: Of that arm, with their paired differences from the start.
        muted: Those of them that never decide.
        claim: Its effect less that of the largest control, None without a control.
        fraction: F.
        verdicts: Rows whose method is a verdict and its reason.
    """

    name: str
    start: str
    along: list[tuple[float, str]]
    ranks: bool
    point: str | None
    x: float | None
    rule: str | None
    effect: Row | None
    controls: list[tuple[str, Row]]
    muted: list[str]
    claim: Row | None
    fraction: Row | None
    verdicts: list[Row]

    @property
    def unit(self) -> str:
        """What its places are."""
        return "rank" if self.ranks else "strength"

    @property
    def largest(self) -> str | None:
        """The control with the largest effect."""
        return None if self.claim is None else self.claim["reference"]

    def of_control(self, arm: str | None) -> Row | None:
        """The effect of one of its controls."""
        return dict(self.controls).get(arm or "")


def read_curves(arms: Arms) -> list[Curve]:
    """Every curve of a sweep; one that has no places in the summary takes them from the rows of its results."""
    places: dict[str, list[tuple[float, str]]] = {}
    for row in arms.trial.summary:
        if row["metric"] == "strength" and row["group"] and row["value"] is not None:
            places.setdefault(row["group"], []).append((row["value"], row["arm"]))
    if not places:
        rows = [r for r in arms.trial.results if r["role"] == "edit" and r["strength"] is not None]
        if rows:
            places["edits"] = [(x, arm) for arm, x in {r["arm"]: r["strength"] for r in rows}.items()]
    return [_curve(arms, name, sorted(along)) for name, along in places.items()]


def _curve(arms: Arms, name: str, places: list[tuple[float, str]]) -> Curve:
    along = [(x, arm) for x, arm in places if arms.roles.get(arm) == "edit"]
    at = arms.of(name, "operating_point", reference=True)
    start = next((arm for x, arm in places if x == 0 and (x, arm) not in along), arms.baseline)
    point = None if at is None else at["reference"]
    controls = [row["arm"] for row in arms.trial.arms if row["role"] == "control" and row["control_of"] == point]
    moved = [(arm, arms.of(arm, arms.metric, reference=start)) for arm in controls]
    return Curve(
        name=name,
        start=start,
        along=along,
        ranks=_doubling([x for x, _ in along]),
        point=point,
        x=None if at is None else at["value"],
        rule=None if at is None else at["method"],
        effect=arms.of(point or "", arms.metric, reference=start),
        controls=[(arm, row) for arm, row in moved if row is not None],
        muted=[arm for arm in controls if arms.edits[arm].get("decides") is False],
        claim=arms.of(name, CLAIM, reference=True),
        fraction=arms.of(name, "fraction", reference=True),
        verdicts=[row for one in VERDICTS if (row := arms.of(name, one, reference=True)) is not None],
    )


def _doubling(xs: Sequence[float]) -> bool:
    """Whether these are 1, 2, 4, … or 1, 4, 16, … and at last all there is, which need not be a whole step."""
    whole = len(xs) >= 4 and all(x > 0 and x == int(x) for x in xs)
    steps = [b / a for a, b in pairwise(xs)] if whole else []
    return whole and steps[0] in (2, 4) and all(s == steps[0] for s in steps[:-1]) and 1 < steps[-1] <= steps[0]


def grouped(curves: Sequence[Curve]) -> list[list[Curve]]:
    """Curves that share their axes: one start, one kind of place."""
    groups: dict[tuple[str, bool], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.start, curve.ranks), []).append(curve)
    return list(groups.values())


def followed(arms: Arms, curve: Curve) -> bool:
    """Whether completions are known at three places of a curve: it is worth a chart of its own."""
    return sum(arms.of(arm, _GENERATED[0]) is not None for _, arm in curve.along) >= _FOLLOWED


def figures(arms: Arms, group: Sequence[Curve]) -> list[tuple[str, Markup]]:
    """Few curves: one with all its measures, or a chart of each measure with a line per curve; caption and chart."""
    start = group[0].start
    if len(group) == 1:
        return [(f"{group[0].name}, from {start}", _chart(arms, group, _measures(arms)))]
    shown = [m for m in _measures(arms) if any(_points(arms, curve, m, float) for curve in group)]
    return [(f"{metric(m).head}, from {start}", _chart(arms, group, [m])) for m in shown]


def multiples(arms: Arms, group: Sequence[Curve]) -> list[tuple[str, Markup]]:
    """Many curves: a small chart of each on the same axes, those with the largest effects where there are too many."""
    kept = list(group)
    if len(kept) > MOST:
        sizes = sorted((abs(c.effect["value"] or 0.0) if c.effect else 0.0 for c in kept), reverse=True)
        kept = [c for c in kept if c.effect and abs(c.effect["value"] or 0.0) >= sizes[MOST - 1]][:MOST]
    return [(curve.name, _chart(arms, [curve], _measures(arms), group, 4)) for curve in kept]


def _measures(arms: Arms) -> list[str]:
    return [arms.metric, *_GENERATED]


def _chart(
    arms: Arms, curves: Sequence[Curve], measures: Sequence[str], axes: Sequence[Curve] = (), labels: int = 8
) -> Markup:
    """Lines of curves × measures over one x axis, that of `axes` where it is shared, and the largest controls."""
    first = curves[0]
    xs = sorted({0.0, *(x for curve in axes or curves for x, _ in curve.along)})
    place = _logarithm(xs) if first.ranks else float
    lines = []
    for style, (curve, name) in enumerate(product(curves, measures)):
        points = _points(arms, curve, name, place, name == measures[0])
        several = len({x for x, _ in curve.along}) == len(curve.along)
        if points:
            # A measure that is known at few places only, or at several arms of one place, is no line.
            joined = several and 2 * len(points) > len(curve.along)
            lines.append(Line(curve.name if len(curves) > 1 else metric(name).head, points, style, joined))
    controls = [_control(arms, curve, measures[0], place) for curve in curves]
    if found := [point for point in controls if point is not None]:
        lines.append(Line("largest control", found, 5, False))
    other = arms.baseline if first.start != arms.baseline else arms.tuned
    row = arms.of(other or "", measures[0])
    level = None if row is None or row["value"] is None else (row["value"], f"{other} {value(row)}")
    titles = ("rank, logarithmic" if first.ranks else "strength", _axis(measures))
    return chart(lines, [], titles, (0.0, 1.0), level, places=_places(xs, place, labels, first.ranks))


def _axis(measures: Sequence[str]) -> str:
    return metric(measures[0]).head if len(measures) == 1 else "probability or share of items"


def _points(
    arms: Arms, curve: Curve, name: str, place: Callable[[float], float], operating: bool = False
) -> list[Point]:
    """A measure at the start and along a curve, wherever it is known."""
    found = []
    for x, arm in [(0.0, curve.start), *curve.along]:
        row = arms.of(arm, name)
        if row is None or row["value"] is None:
            continue
        mark = "operating" if operating and arm == curve.point else ""
        text = f"{curve.name}, {curve.unit} {signed(x, sign=False)}: {metric(name).head} {value(row)}{marked(mark)}"
        found.append(Point(place(x), row["value"], row["low"], row["high"], text, mark))
    return sorted(found, key=lambda point: point.x)


def _control(arms: Arms, curve: Curve, name: str, place: Callable[[float], float]) -> Point | None:
    row = arms.of(curve.largest or "", name)
    if row is None or row["value"] is None or curve.x is None:
        return None
    text = f"{curve.name}, largest control ({curve.largest}): {metric(name).head} {value(row)}"
    return Point(place(curve.x), row["value"], row["low"], row["high"], text)


def _logarithm(xs: Sequence[float]) -> Callable[[float], float]:
    """log₂, with 0 one step before the least rank."""
    nothing = math.log2(min(x for x in xs if x > 0)) - 1
    return lambda x: math.log2(x) if x > 0 else nothing


def _places(xs: Sequence[float], place: Callable[[float], float], most: int, ranks: bool) -> list[tuple[float, str]]:
    """What stands under the x axis, and its two ends without a name."""
    step = math.ceil(len(xs) / (most + 2))
    named = xs[::step] if ranks else ticks(xs[0], xs[-1], most)
    ends = [(place(x), "") for x in (xs[0], xs[-1])]
    return [*((place(x), number(x).replace("-", "−")) for x in named), *ends]
