"""The section of `steer`: what pushing along a direction does, beside what pushing along controls does."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from deltalens.report.experiment_arms import (
    CLAIM,
    RATES,
    Arms,
    effects,
    marked,
    printed,
    read_arms,
    side_by_side,
    table,
)
from deltalens.report.experiment_eval import Example
from deltalens.report.experiment_read import Trial
from deltalens.report.experiment_svg import Dot, Line, Point, chart, dots
from deltalens.report.experiment_words import metric, signed, value
from deltalens.report.headline import Finding
from deltalens.report.words import Row, number
from deltalens.store.results import SELECT

LAYERS = 6
"""Layers drawn in styles of their own: those with the largest effect; the others are thin."""


@dataclass(frozen=True, slots=True)
class SteerView:
    """The section.

    Attributes:
        metric: "p_think" or "p_skip".
        task: What is tested on.
        point: The arm at the operating point, None without one.
        strength: Its strength.
        breaking: The strength at which something gives way, None where nothing does.
        broken: What gives way, in words.
        dose: The chosen direction on the test split.
        chosen: Every layer on the select split, None without.
        effects: Edit, controls and the claim at the operating point.
        costs: KL and perplexity of baseline, edit and largest controls: caption, meaning and figure.
        columns: Of the table of arms.
        arms: Name, role and the rows of those columns.
        examples: Baseline, edit and largest controls side by side.
    """

    metric: str
    task: str
    point: str | None
    strength: float | None
    breaking: float | None
    broken: str
    dose: Markup
    chosen: Markup | None
    effects: Markup
    costs: list[tuple[str, str, Markup]]
    columns: list[str]
    arms: list[tuple[str, str, list[Row | None]]]
    examples: list[Example]

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Its sections: the end of their anchors, and what they are called."""
        found = [("dose", "Dose and response"), ("effects", "Arms"), ("costs", "The price")]
        return [*found, *([("written", "What it writes")] if self.examples else [])]


def view(trial: Trial) -> SteerView:
    """Everything the section shows."""
    arms = read_arms(trial)
    operating, breaking = arms.claim("operating_point"), arms.claim("breaking_point")
    strength = None if operating is None else operating["value"]
    broke = None if breaking is None else breaking["value"]
    columns, rows = table(arms)
    return SteerView(
        metric=arms.metric,
        task=arms.task,
        point=arms.point,
        strength=strength,
        breaking=broke,
        broken=printed(None if breaking is None else breaking["method"]),
        dose=_dose(arms, strength, broke),
        chosen=_chosen(arms, strength),
        effects=_effects(arms),
        costs=_costs(arms),
        columns=columns,
        arms=rows,
        examples=side_by_side(arms, [arm for arm, _ in _written(arms)], arms.baseline, arms.point),
    )


def _along(arms: Arms, keep: Callable[[dict[str, Any]], bool]) -> list[tuple[float, str]]:
    """Strength and name of the edits that `keep` keeps, by strength."""
    found = [
        (float(edit["strength"]), arm)
        for arm, edit in arms.edits.items()
        if arms.roles[arm] == "edit" and isinstance(edit.get("strength"), int | float) and keep(edit)
    ]
    return sorted(found)


def _dose(arms: Arms, strength: float | None, breaking: float | None) -> Markup:
    """The measures of the chosen direction along its strengths, on the test split; strength 0 is the baseline."""
    layer = arms.edits.get(arms.point or "", {}).get("layer")
    along = [(0.0, arms.baseline), *_along(arms, lambda edit: edit.get("layer") == layer)]
    lines = []
    for style, name in enumerate((arms.metric, *RATES)):
        points = []
        for x, arm in sorted(along):
            row = arms.of(arm, name)
            if row is None or row["value"] is None:
                continue
            mark = "" if name != arms.metric else " ".join(
                word for word, at in (("operating", strength), ("breaking", breaking)) if x == at
            )  # fmt: skip
            text = f"α {signed(x)}: {metric(name).head} {value(row)}"
            points.append(Point(x, row["value"], row["low"], row["high"], f"{text}{marked(mark)}", mark))
        if points:
            lines.append(Line(metric(name).head, points, style))
    largest = arms.largest
    row = arms.of(largest, arms.metric) if largest else None
    if row is not None and row["value"] is not None and strength is not None:
        text = f"α {signed(strength)}, largest control ({largest}): {metric(arms.metric).head} {value(row)}"
        lines.append(Line("largest control", [Point(strength, row["value"], row["low"], row["high"], text)], 5))
    return chart(lines, [], ("strength α", "probability or share of items"), (0.0, 1.0))


def _chosen(arms: Arms, strength: float | None) -> Markup | None:
    """The measure of every layer along its strengths, on the select split."""
    tasks = dict.fromkeys(row["task"] for row in arms.trial.numbers(arms.metric) if row["task"].endswith(SELECT))
    task = next(iter(tasks), None)
    if task is None:
        return None
    base = arms.of(arms.baseline, arms.metric, task)
    chosen = arms.edits.get(arms.point or "", {}).get("layer")
    drawn = []
    for layer in sorted({edit["layer"] for edit in arms.edits.values() if isinstance(edit.get("layer"), int)}):
        along = [(0.0, arms.baseline), *_along(arms, lambda edit, layer=layer: edit.get("layer") == layer)]
        points = []
        for x, arm in sorted(along):
            row = arms.of(arm, arms.metric, task)
            if row is None or row["value"] is None:
                continue
            mark = "operating" if layer == chosen and x == strength else ""
            text = f"layer {layer}, α {signed(x)}: {value(row)}{marked(mark)}"
            points.append(Point(x, row["value"], row["low"], row["high"], text, mark))
        start = base["value"] if base is not None and base["value"] is not None else 0.0
        if len(points) > 1:
            drawn.append((layer, points, max(abs(point.y - start) for point in points)))
    styled = {layer: i for i, layer in enumerate(sorted(x[0] for x in sorted(drawn, key=lambda x: -x[2])[:LAYERS]))}
    lines = [Line(f"layer {layer}", points, styled.get(layer, LAYERS)) for layer, points, _ in drawn]
    lines.sort(key=lambda line: (line.style < LAYERS, line.style))
    return chart(lines, [], ("strength α", metric(arms.metric).head), (0.0, 1.0))


def _effects(arms: Arms) -> Markup:
    """The effect of the edit and of each control, largest first, and the claim."""
    own = arms.of(arms.point or "", arms.metric, reference=True)
    controls = [(arm, row) for arm in arms.controls if (row := arms.of(arm, arms.metric, reference=True)) is not None]
    return effects((arms.point or "", own), controls, arms.claims)


def _written(arms: Arms) -> list[tuple[str, str]]:
    """Baseline, edit and the largest controls, each with its role as a figure draws it."""
    controls = dict.fromkeys(row["reference"] for row in arms.claims)
    found = [(arms.baseline, "reference"), (arms.point, "edit"), *((arm, "control") for arm in controls)]
    return [(arm, role) for arm, role in found if arm is not None]


def _costs(arms: Arms) -> list[tuple[str, str, Markup]]:
    found = []
    for name in ("kl", "perplexity"):
        rows = [(arm, role, row) for arm, role in _written(arms) if (row := arms.of(arm, name)) is not None]
        if rows:
            lines = [Dot(arm, row["value"], row["low"], row["high"], value(row), role) for arm, role, row in rows]
            found.append((metric(name).head, metric(name).meaning, dots(lines, 0.0 if name == "kl" else None)))
    return found


def findings(trial: Trial) -> list[Finding]:
    """Up to five sentences: the claim, the effect, what is generated, the price and the breaking point."""
    arms = read_arms(trial)
    if arms.point is None:
        return []
    rules: Sequence[Finding | None] = (_claim(arms), _behaviour(arms), _skill(arms), _price(arms), _breaks(arms))
    return [one for one in rules if one is not None]


def _claim(arms: Arms) -> Finding | None:
    claim, point, largest = arms.claim(CLAIM), arms.point, arms.largest
    if claim is None or point is None or claim["value"] is None:
        return None
    own, other = (arms.of(arm, arms.metric, reference=True) for arm in (point, largest or ""))
    head = metric(arms.metric).head
    moved = f"{head} {signed(None if own is None else own['value'])} along the direction"
    if claim["low"] is None:
        title = f"{head} moves by {value(own)}; too few items to say whether by more than a control"
    elif claim["low"] > 0:
        title = f"{moved}, {number(claim['value'])} more than the largest control"
    else:
        title = f"{moved}, no more than the largest control"
    text = (
        f"At {point}: effect {value(own)}, largest of {len(arms.controls)} controls ({largest}) {value(other)}; "
        f"effect − largest control {value(claim)}, on {claim['n']} items of {arms.task}."
    )
    for row in arms.claims[1:]:
        text += f" {metric(row['metric']).head.capitalize()} ({row['reference']}): {value(row)}."
    return Finding(title, text, arms.trial.anchor("effects"), "arms")


def _behaviour(arms: Arms) -> Finding | None:
    return _moved(arms, "think_ratio", ("It thinks more often", "It thinks less often", "It thinks as often as before"))


def _skill(arms: Arms) -> Finding | None:
    return _moved(arms, "accuracy", ("It answers better", "It answers worse", "Its accuracy is not shown to change"))


def _moved(arms: Arms, name: str, titles: tuple[str, str, str]) -> Finding | None:
    point = arms.point or ""
    before, after = arms.of(arms.baseline, name), arms.of(point, name)
    change = arms.of(point, name, reference=True)
    if before is None or after is None or change is None:
        return None
    low, high = change["low"], change["high"]
    title = titles[0] if low is not None and low > 0 else titles[1] if high is not None and high < 0 else titles[2]
    text = f"{metric(name).head.capitalize()} {value(before)} before, {value(after)} at {point}: {value(change)}"
    control = arms.of(arms.largest, name) if arms.largest else None
    if control is not None:
        text += f"; {value(control)} under the largest control"
        ends = (control["low"], control["high"], after["low"], after["high"])
        if (
            title != titles[2]
            and None not in ends
            and control["high"] >= after["low"]
            and control["low"] <= after["high"]
        ):
            title += ", and so it does under the largest control"
    if name == "accuracy" and (forced := arms.of(point, "forced_accuracy")) is not None:
        text += f". With the block opened for it {value(forced)}"
        if (base := arms.of(arms.baseline, "forced_accuracy")) is not None:
            text += f", {value(base)} before"
    return Finding(f"{title}: {value(after)}", f"{text}.", arms.trial.anchor("dose"), "dose–response")


def _price(arms: Arms) -> Finding | None:
    before, after = arms.of(arms.baseline, "perplexity"), arms.of(arms.point or "", "perplexity")
    kl = arms.of(arms.point or "", "kl")
    if before is None or after is None or not before["value"] or after["value"] is None:
        return None
    ratio = after["value"] / before["value"]
    text = f"Perplexity {value(after)} at {arms.point}, {value(before)} before"
    if arms.largest and (control := arms.of(arms.largest, "perplexity")) is not None:
        text += f", {value(control)} under the largest control"
    if kl is not None:
        text += f"; KL {value(kl)} nats per token along the unsteered text"
    return Finding(f"Ordinary language: perplexity × {number(ratio)}", f"{text}.", arms.trial.anchor("costs"), "price")


def _breaks(arms: Arms) -> Finding | None:
    row, point = arms.claim("breaking_point"), arms.claim("operating_point")
    if row is None or point is None:
        return None
    anchor = arms.trial.anchor("dose")
    if row["value"] is None and row["method"].startswith("not asked"):
        return Finding("Nothing gives way where completions were written", f"{printed(row['method']).capitalize()}.",
                       anchor, "dose–response")  # fmt: skip
    if row["value"] is None:
        return Finding("Nothing gives way on the grid", f"At no strength of {arms.point}'s curve do skill, form or "
                       f"perplexity give way by the rule below.", anchor, "dose–response")  # fmt: skip
    title = f"It breaks at α {signed(row['value'])}"
    if point["value"]:
        title += f", {number(abs(row['value'] / point['value']))} × the operating point"
    if row["value"] == point["value"]:
        title = f"It breaks where it works, at α {signed(row['value'])}"
    text = f"What gives way: {printed(row['method'])}; the operating point is α {signed(point['value'])}."
    return Finding(title, text, anchor, "dose–response")
