"""The section of `sweep`: edits of a pair's weights, each beside its controls, with what may be claimed of it."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from deltalens.errors import printable
from deltalens.evaluate.scores import MEANS, OUTCOMES
from deltalens.report.experiment_arms import CLAIM, Arms, effects, printed, read_arms, side_by_side, table
from deltalens.report.experiment_curves import TOGETHER, Curve, figures, followed, grouped, multiples, read_curves
from deltalens.report.experiment_eval import PERPLEXITY, Example
from deltalens.report.experiment_read import Trial
from deltalens.report.experiment_words import AT_AN_ARM, VERDICT_LEVEL, metric, signed, value
from deltalens.report.headline import Finding
from deltalens.report.words import NOTHING, Row, join, number
from deltalens.store.results import SELECT

OF_ARMS = {*OUTCOMES, *MEANS, PERPLEXITY, "strength"}
"""Numbers of single arms, which stand in the tables of arms."""

OF_CLAIMS = {*AT_AN_ARM, CLAIM}
"""Numbers that stand in the table of claims, of curves that have an operating point."""

TOLD = 3
"""Curves with a sentence of their own."""

LISTED = 6
"""Parts or curves named in one sentence."""

WRITTEN = 4
"""Edits whose completions are shown."""


@dataclass(frozen=True, slots=True)
class Claim:
    """One curve as a line of the table: each verdict as its question, its word and its reason."""

    curve: Curve
    control: Row | None
    verdicts: list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class SweepView:
    """The section.

    Attributes:
        recipe: What was swept.
        metric: "p_think" or "p_skip".
        task: What is tested on.
        level: Of the intervals of a verdict.
        figures: Caption and chart, of groups of few curves, and of curves that are known well.
        small: Of every group of many others: its start, small charts, and how many curves are not drawn.
        claims: The table of curves.
        rules: How operating points were chosen.
        effects: Of every curve with controls: the curve and its dot plot.
        uncontrolled: Curves without a control.
        ledger: Tasks and numbers, then arms with their role and rows; None where one task was asked.
        facts: Numbers of the recipe's own: their names, then what they are of with a row for each.
        items: How many items those numbers rest on, every count once.
        tuned: The arm that is the tuned model, None without one.
        columns: Of the table of arms.
        arms: Name, role and the rows of those columns.
        examples: Base, tuned and edits side by side.
    """

    recipe: str
    metric: str
    task: str
    level: str
    figures: list[tuple[str, Markup]]
    small: list[tuple[str, list[tuple[str, Markup]], int]]
    claims: list[Claim]
    rules: list[str]
    effects: list[tuple[Curve, Markup]]
    uncontrolled: list[str]
    ledger: tuple[list[tuple[str, str]], list[tuple[str, str, list[Row | None]]]] | None
    facts: tuple[list[str], list[tuple[str, list[Row | None]]]]
    items: list[int]
    tuned: str | None
    columns: list[str]
    arms: list[tuple[str, str, list[Row | None]]]
    examples: list[Example]

    @property
    def points(self) -> list[str]:
        """The arms at operating points."""
        return [claim.curve.point for claim in self.claims if claim.curve.point is not None]

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Its sections: the end of their anchors, and what they are called."""
        named = (
            ("curves", "Curves", True),
            ("claims", "Claims", bool(self.claims)),
            ("effects", "Effects and controls", bool(self.effects)),
            ("recipe", "Numbers of the recipe", bool(self.facts[1])),
            ("ledger", "Abilities", self.ledger is not None),
            ("arms", "Every arm", True),
            ("written", "What it writes", bool(self.examples)),
        )
        return [(part, name) for part, name, shown in named if shown]


def view(trial: Trial) -> SweepView:
    """Everything the section shows."""
    arms = read_arms(trial)
    curves = read_curves(arms)
    many = [group for group in grouped(curves) if len(group) > TOGETHER]
    few = [group for group in grouped(curves) if len(group) <= TOGETHER]
    known = [curve for group in many for curve in group if followed(arms, curve)][:TOGETHER]
    small = [[curve for curve in group if curve not in known] for group in many]
    drawn = [(group, multiples(arms, group)) for group in small]
    own = facts(arms, curves)
    columns, rows = table(arms)
    chosen = [curve for curve in curves if curve.point is not None]
    return SweepView(
        recipe=printable(trial.record.get("recipe", "sweep")),
        metric=arms.metric,
        task=arms.task,
        level=VERDICT_LEVEL,
        figures=[one for group in (*few, *([curve] for curve in known)) for one in figures(arms, group)],
        small=[(group[0].start, charts, len(group) - len(charts)) for group, charts in drawn],
        claims=[Claim(one, one.of_control(one.largest), list(map(verdict, one.verdicts))) for one in chosen],
        rules=list(dict.fromkeys(one.rule for one in chosen if one.rule)),
        effects=[(one, _effects(one)) for one in chosen if one.controls],
        uncontrolled=[one.name for one in chosen if not one.controls],
        ledger=_ledger(arms),
        facts=_pivot(own),
        items=sorted({row["n"] for row in own if row["n"] is not None}),
        tuned=arms.tuned,
        columns=columns,
        arms=rows,
        examples=_examples(arms, curves),
    )


def verdict(row: Row) -> tuple[str, str, str]:
    """The question of a verdict, its word and its reason."""
    word, _, why = printed(row["method"]).partition(": ")
    return metric(row["metric"]).head, word, why


def facts(arms: Arms, curves: Sequence[Curve]) -> list[Row]:
    """The numbers that only this recipe has, and those of claims where a curve has no operating point."""
    claimed = {curve.name for curve in curves if curve.point is not None}
    found = []
    for row in arms.trial.summary:
        told = row["metric"] in OF_ARMS or (row["metric"] in OF_CLAIMS and row["arm"] in claimed)
        if not (told or row["metric"].startswith("pass@") or (row["task"] or "").endswith(SELECT)):
            found.append(row)
    return found


def _pivot(rows: Sequence[Row]) -> tuple[list[str], list[tuple[str, list[Row | None]]]]:
    """One line for all that is known of a curve, or of a pair of arms."""
    names = list(dict.fromkeys(row["metric"] for row in rows))
    lines: dict[str, dict[str, Row]] = {}
    for row in rows:
        other = row["reference"] if row["metric"] not in OF_CLAIMS else None
        lines.setdefault(", ".join(filter(None, (row["arm"], row["group"], other))), {}).setdefault(row["metric"], row)
    return names, [(of, [cells.get(name) for name in names]) for of, cells in lines.items()]


def _effects(curve: Curve) -> Markup:
    claims = [] if curve.claim is None else [curve.claim]
    return effects((curve.point or "", curve.effect), curve.controls, claims, curve.muted)


def _ledger(arms: Arms) -> tuple[list[tuple[str, str]], list[tuple[str, str, list[Row | None]]]] | None:
    """What arms that were asked several tasks can still do: accuracy of each, KL, and ordinary language."""
    summary = arms.trial.summary
    tasks = [task for task in dict.fromkeys(row["task"] or "" for row in summary) if not task.endswith(SELECT)]
    wanted = [(task, "accuracy") for task in tasks] + [(task, "kl") for task in tasks] + [("", PERPLEXITY)]
    asked = [
        (arm, role)
        for arm, role in arms.roles.items()
        if sum(arms.of(arm, "accuracy", task) is not None for task in tasks) > 1
    ]
    heads = [(task, name) for task, name in wanted if any(arms.of(arm, name, task) for arm, _ in asked)]
    lines = [(arm, role, [arms.of(arm, name, task) for task, name in heads]) for arm, role in asked]
    return (heads, lines) if lines else None


def _examples(arms: Arms, curves: Sequence[Curve]) -> list[Example]:
    """Base, tuned model and the foremost edits, or the end of the first curve where there is no operating point."""
    wrote = {row["arm"] for row in arms.trial.results if row["text"] is not None}
    edits = [(one.start, one.point) for one in _foremost(curves) if one.point in wrote][:WRITTEN]
    edits = edits or [(one.start, arm) for one in curves[:1] for _, arm in one.along[-1:] if arm in wrote]
    names = dict.fromkeys(arm for arm in (arms.baseline, arms.tuned, *(arm for _, arm in edits)) if arm in wrote)
    before, after = edits[0] if edits else (arms.baseline, arms.tuned)
    return side_by_side(arms, [arm for arm in names if arm is not None], before, after)


def _foremost(curves: Sequence[Curve]) -> list[Curve]:
    """Those with the largest lower bound over their controls first; without a bound last."""
    return sorted(curves, key=lambda curve: float("inf") if (low := _bound(curve)) is None else -low)


def _bound(curve: Curve) -> float | None:
    """Lower bound of effect − largest control."""
    return None if curve.claim is None else curve.claim["low"]


def findings(trial: Trial) -> list[Finding]:
    """Sentences: what the recipe measures of its own, how many edits beat their controls, and the foremost of them."""
    arms = read_arms(trial)
    curves = read_curves(arms)
    chosen = [curve for curve in curves if curve.point is not None]
    own = facts(arms, curves)
    found = [one for one in (_transition(arms, own), _parts(arms, own), _rank(arms, own)) if one is not None]
    if len(chosen) > TOLD:
        return [*found, _count(arms, chosen), *(_claim(arms, one) for one in _foremost(chosen)[:TOLD])]
    return [*found, *(_claim(arms, one) for one in chosen)]


def _claim(arms: Arms, curve: Curve) -> Finding:
    """One curve at its operating point, in the words of its rows."""
    head, claim = metric(arms.metric).head, curve.claim
    moved = signed(None if curve.effect is None else curve.effect["value"])
    done = " put into" if curve.start == arms.baseline else ", from"  # the name itself says what is left out
    title = f"{curve.name}{done} {curve.start} at {curve.unit} {signed(curve.x, sign=False)}: {head} {moved}"
    if claim is None or claim["value"] is None:
        title += ", without a control"
    elif claim["low"] is None:
        title += ", no interval against its controls"
    elif claim["low"] > 0:
        title += f", {number(claim['value'])} more than the largest control"
    elif claim["high"] is not None and claim["high"] < 0:
        title += f", {number(-claim['value'])} less than the largest control"
    else:
        title += ", not shown to be more than the largest control"
    verdicts = [verdict(row) for row in curve.verdicts]
    if verdicts:
        title += f"; {', '.join(f'{question}: {word}' for question, word, _ in verdicts)}"
    text = f"Effect of {curve.point}: {value(curve.effect)} from {curve.start}"
    if claim is not None:
        text += (
            f"; largest of {len(curve.controls) - len(curve.muted)} deciding controls ({curve.largest}) "
            f"{value(curve.of_control(curve.largest))}; effect − largest control {stated(claim)}, "
            f"on {claim['n']} items of {arms.task}"
        )
    if curve.fraction is not None:
        text += f". F {stated(curve.fraction)}"
    text += "".join(f". {question.capitalize()}: {word} ({why})" for question, word, why in verdicts)
    return Finding(title, f"{text}.", arms.trial.anchor("claims"), "claims")


def stated(row: Row) -> str:
    """A value with its interval, or what there is in place of one."""
    if row["value"] is None:
        return f"{NOTHING} ({printed(row['method'])})"
    return value(row) if row["low"] is not None else f"{value(row)} (no interval)"


def _count(arms: Arms, curves: Sequence[Curve]) -> Finding:
    """Of many curves: on how many the lower bound over the controls is above 0, and what their verdicts are."""
    bounds = [(one.name, low) for one in curves if (low := _bound(one)) is not None]
    above = [name for name, low in bounds if low > 0]
    title = f"{len(above)} of {len(curves)} edits move {metric(arms.metric).head} more than their largest control"
    if not bounds:
        title = f"{len(curves)} edits, and no interval against a control"
    text = f"Lower bound above 0: {join(above[:LISTED]) if above else 'none'}"
    text += f", {len(above) - LISTED} more" if len(above) > LISTED else ""
    said = [verdict(row)[:2] for one in curves for row in one.verdicts]
    counts = [f"{question} {word} {said.count((question, word))}" for question, word in dict.fromkeys(said)]
    text += f". Verdicts: {', '.join(counts)}" if counts else ""
    return Finding(title, f"{text}.", arms.trial.anchor("claims"), "claims")


def _transition(arms: Arms, rows: Sequence[Row]) -> Finding | None:
    """Where thinking begins along λ by both measures, how wide it is, and whether it is sharp: of the first curve."""
    name = next((row["arm"] for row in rows if row["metric"].startswith("lambda50_")), None)
    if name is None:
        return None
    own = {row["metric"]: row for row in rows if row["arm"] == name}
    points = [_short(row) for one, row in own.items() if one.startswith("lambda50_")]
    title = join(points)
    text = [f"{metric(one).head} {stated(row)}" for one, row in own.items()]
    if (sharp := own.get("sharpness")) is not None:
        _, word, why = verdict(sharp)
        title += f"; sharp: {word}, {why}"
    return Finding(title, f"{name}: {'; '.join(text)}.", arms.trial.anchor("recipe"), "numbers of the recipe")


def _short(row: Row) -> str:
    """A number without its interval, or what there is in place of one."""
    head = metric(row["metric"]).head
    return f"{head}: {printed(row['method'])}" if row["value"] is None else f"{head} {number(row['value'])}"


def _parts(arms: Arms, rows: Sequence[Row]) -> Finding | None:
    """How far the pair is moved where only a part of it moves, and no operating point was chosen."""
    known = [row for row in rows if row["metric"] == "fraction" and row["value"] is not None]
    if not known:
        return None
    first, *others = sorted(known, key=lambda row: -row["value"])
    title = f"Where only a part moves, F is at most {number(first['value'])}: {first['arm']}"
    text = "; ".join(f"{row['arm']} {stated(row)}" for row in (first, *others[: LISTED - 1]))
    return Finding(title, f"F of {text}.", arms.trial.anchor("recipe"), "numbers of the recipe")


def _rank(arms: Arms, own: Sequence[Row]) -> Finding | None:
    rows = [row for row in own if row["metric"].startswith("functional_rank")]
    if not rows:
        return None
    main = next((row for row in rows if row["metric"] == "functional_rank"), rows[0])
    title = _short(main)
    text = [printed(main["method"])] if main["value"] is not None else []
    text += [_short(row) for row in rows if row is not main]
    text = f"{main['arm']} on {main['n']} items of {arms.task}: {'; '.join(text)}."
    return Finding(f"{title[0].upper()}{title[1:]}", text, arms.trial.anchor("recipe"), "numbers of the recipe")
