"""What the page of a run tells of behaviour: models, directions, every edit beside its controls, other trainings."""

from collections.abc import Sequence

from deltalens.report import experiment_eval, experiment_probe, experiment_steer, experiment_sweep
from deltalens.report.experiment_arms import CLAIM, Arms, printed, read_arms
from deltalens.report.experiment_curves import Curve, read_curves
from deltalens.report.experiment_curves import figures as charts_of
from deltalens.report.experiment_read import Trial
from deltalens.report.experiment_svg import Dot, dots
from deltalens.report.experiment_words import metric, p_text, signed, value
from deltalens.report.headline import Finding
from deltalens.report.run_figures import Figure, claim
from deltalens.report.run_parts import Part, Table, Told, records, sentence
from deltalens.report.run_read import Whole
from deltalens.report.words import Row, join, number

TOLD = 2
"""Sentences of one step."""

CHARTS = 4
"""Figures of one step; its own page has them all."""

MEASURES = ("think_ratio", "p_think", "p_skip", "accuracy", "forced_accuracy")
"""Of the pair, in this order."""


def _shown(findings: Sequence[Finding]) -> list[Finding]:
    return list(findings[:TOLD])


def of_behaviour(whole: Whole, trial: Trial) -> Told:
    """The pair on the same items, and every other model beside it."""
    tasks = experiment_eval.view(trial).tasks
    if not tasks:
        return [], [], []
    swept = {read_arms(other).task for other in whole.trials.values() if other.kind in ("steer", "sweep")}
    task = next((one for one in tasks if one.name in swept), tasks[0])
    told = [_moved(trial, name, task.name, whole.tuned) for name in MEASURES]
    figures = [
        Figure(f"behaviour-{panel.title}", f"{panel.title}, {task.name}", panel.meaning, panel.figure)
        for panel in task.panels
    ]
    return [one for one in told if one is not None], figures, []


def _moved(trial: Trial, name: str, task: str, tuned: str) -> Finding | None:
    """One measure of the tuned model beside the base's, and whether they are shown to differ."""
    rows = [row for row in trial.summary if (row["metric"], row["task"], row["group"] or "") == (name, task, "")]
    own = next((row for row in rows if row["arm"] == tuned and not row["reference"]), None)
    change = next((row for row in rows if row["arm"] == tuned and row["reference"]), None)
    if own is None or change is None:
        return None
    before = next((row for row in rows if row["arm"] == change["reference"] and not row["reference"]), None)
    head = metric(name).head
    title = f"{head if '(' in head else head.capitalize()} {value(own)}, before {value(before)}"
    said = f"Paired difference {value(change)}" + (f", Holm {p_text(change['p_holm'])}" if change["p_holm"] else "")
    if not apart(change):
        said += "; no difference is shown"
    return sentence(title, f"{said}, on {change['n']} items of {task}.")


def apart(row: Row, low: float = 0.0) -> bool:
    """Whether the interval of a row lies off a value."""
    return row["low"] is not None and row["high"] is not None and not row["low"] <= low <= row["high"]


def of_probe(whole: Whole, trial: Trial) -> Told:
    """Separation along the direction, layer by layer."""
    seen = experiment_probe.view(trial)
    note = "Shaded: 95 % of null directions; a layer counts when its whole interval is outside both bands."
    figures = [Figure(f"probe-{i}", title, note, figure) for i, (title, _, figure) in enumerate(seen.figures)]
    return _shown(experiment_probe.findings(trial)), figures, []


def of_refusal(whole: Whole) -> Part:
    """Overlap of the directions of thinking and of refusing, less its largest null."""
    title, found = "Overlap with refusal", whole.values.get("refusal")
    rows = records(found.get("rows")) if isinstance(found, dict) else []
    if not rows:
        return Part("refusal", title, absent=whole.why("refusal"))
    lines, over = [], []
    for row in rows:
        null = (row.get("nulls") or {}).get(row.get("largest"))
        if row.get("overlap") is None or null is None:
            continue
        name = f"layer {row.get('layer')}" if row.get("layer") is not None else str(row.get("a"))
        text = f"φ {number(row['overlap'])}, null {number(null)} ({row['largest']}): {row.get('verdict')}"
        lines.append(Dot(name, row["overlap"] - null, row.get("low"), row.get("high"), text))
        over.append((row["overlap"] - null, row.get("verdict"), name))
    said = []
    if over:
        most, word, name = max(over)
        words = {w: sum(one[1] == w for one in over) for w in ("supported", "contradicted", "undecided")}
        told = join([f"{w} in {n}" for w, n in words.items() if n])
        text = f"Distinct: {told}, of {len(over)} comparisons at 99.4 %"
        text += ". The verdict names the layer of the largest bound, this is the largest overlap beyond its null"
        said.append(sentence(f"At most {signed(most)} beyond its largest null, in {name} ({word})", f"{text}."))
    note = "Overlap of the directions of thinking and of refusing, less its largest null; 0 is what chance gives."
    figure = Figure("refusal", "Overlap with refusal − largest null", note, dots(lines, zero=True), wide=True)
    return Part("refusal", title, said, [figure])


def of_claims(whole: Whole) -> Part:
    """Effect less largest control of every edit of every step, at its operating point."""
    lines, above = [], 0
    for step, trial in whole.trials.items():
        if trial.kind not in ("steer", "sweep"):
            continue
        arms = read_arms(trial)
        named = [(c.name, c.claim) for c in read_curves(arms)] if trial.kind == "sweep" else [(arms.point, arms.claims)]
        for name, row in named:
            row = next((one for one in row if one["metric"] == CLAIM), None) if isinstance(row, list) else row
            if row is not None and row["value"] is not None:
                lines.append(claim(f"{step}: {printed(name)}", row, value(row)))
                above += row["low"] is not None and row["low"] > 0
    if not lines:
        return Part("edits", "Every edit beside its controls", absent="no step with controls was run")
    title = f"{above} of {len(lines)} edits do more than their largest control"
    text = "Counted where the whole interval is above 0; the rest are not shown to."
    note = "Each edit at its operating point, chosen on other items: its effect less that of its largest control."
    drawn = Figure("edits", "Effect − largest control, every edit", note, dots(lines, zero=True), wide=True)
    return Part("edits", "Every edit beside its controls", [sentence(title, text)], [drawn])


def of_sweep(whole: Whole, trial: Trial) -> Told:
    """The curves of a recipe, the controls of the first, and what is left of other abilities."""
    seen, arms = experiment_sweep.view(trial), read_arms(trial)
    curves = read_curves(arms)
    along = [c for c in curves if len(c.along) > 1 and c.point is not None] or curves[:1]
    charts = [(curve, *one) for curve in along[:CHARTS] for one in charts_of(arms, [curve])]
    figures = [
        Figure(f"{trial.label}-{i}", title, _note(curve, seen.task), figure)
        for i, (curve, title, figure) in enumerate(charts)
    ]
    figures += [
        Figure(f"{trial.label}-controls-{i}", f"{curve.name}: effect and controls", _CONTROLS, figure, True, True)
        for i, (curve, figure) in enumerate(seen.effects[:1])
    ]
    tables = []
    if seen.ledger is not None:
        heads, lines = seen.ledger
        named = ["arm", *(", ".join(filter(None, (metric(name).head, task))) for task, name in heads)]
        rows = [[arm, *map(value, cells)] for arm, _, cells in lines]
        tables = [Table("What is left: other tasks, KL and neutral text", named, rows)]
    cut = arms.claim("cut_direction")
    said = [] if cut is None else [sentence(f"What is cut: v = {printed(cut['method'])}", _CUT)]
    return [*_shown(experiment_sweep.findings(trial)), *said], figures, tables


_CUT = "Difference of means at the last prompt token, layer by layer; what one layer's cut does depends on which it is."


def _note(curve: Curve, task: str) -> str:
    """How to read the chart of one curve, by the marks that it has."""
    marks = ["ring: operating point"] * (curve.point is not None)
    marks += ["triangle: its largest control"] * (curve.largest is not None)
    return "; ".join([f"Items of {task}, test split, n as in the tables", *marks]) + "."


_CONTROLS = "Change from the curve's start on the same items; diamond: the claim; grey: controls that never decide."


def of_steer(whole: Whole, trial: Trial) -> Told:
    """Dose and response, and the controls of the operating point."""
    seen = experiment_steer.view(trial)
    point = printed(seen.point or trial.label)
    marks = ["ring: operating point"] * (seen.strength is not None)
    marks += ["cross: where skill, form or ordinary language gives way"] * (seen.breaking is not None)
    marks += ["triangle: largest control"] * (read_arms(trial).largest is not None)
    note = "; ".join(marks).capitalize() + "."
    figures = [
        Figure(f"{trial.label}-dose", f"Dose and response, {trial.models[0]}", note, seen.dose),
        Figure(
            f"{trial.label}-controls",
            f"{point}: effect and controls",
            _CONTROLS,
            seen.effects,
            True,
            True,
        ),
    ]
    return _shown(experiment_steer.findings(trial)), figures, []


def of_choice(whole: Whole, trial: Trial) -> Told:
    """Thinking and skill before and after what was learned is left out."""
    arms = read_arms(trial)
    curve = next((c for c in read_curves(arms) if any(row["metric"] == "choice" for row in c.verdicts)), None)
    said = []
    if curve is not None:
        for row in curve.verdicts:
            if row["metric"] == "choice":
                _, word, why = experiment_sweep.verdict(row)
                said.append(sentence(f"Choice rather than skill: {word}", f"{curve.point}: {why}."))
    names = [arms.baseline, arms.tuned] + ([] if curve is None else [curve.point, curve.largest])
    lines = [
        claim(f"{metric(name).head}, {arm}", row, value(row), "reference" if arm in names[:2] else "edit")
        for name in ("think_ratio", "forced_accuracy")
        for arm in names
        if (row := arms.of(arm or "", name)) is not None
    ]
    if not lines:
        return said, [], []
    note = "Forced: the think block is opened for the model. Where only thinking falls, a choice is gone, not skill."
    return said, [Figure("choice", "Thinking, and accuracy when made to think", note, dots(lines, 0.0, 1.0), True)], []


def of_specific(whole: Whole, trial: Trial) -> Told:
    """The pair's Δ_k and those of other trainings in one base, and the differences."""
    arms = read_arms(trial)
    own, others = [row for row in trial.summary if row["metric"] == "specific"], read_curves(arms)
    lines = [_effect(arms, curve, curve.name not in {row["arm"] for row in own}) for curve in others]
    lines += [claim(f"pair − {r['arm']}", r, value(r), "claim") for r in own if r["value"] is not None]
    verdict = next((row for row in own if row["value"] is None and row["method"]), None)
    said = []
    if verdict is not None:
        _, word, why = experiment_sweep.verdict(verdict)
        said = [sentence(f"Specific to reasoning: {word}", f"{why[:1].upper()}{why[1:]}.")]
    note = f"Change of {metric(arms.metric).head} of the base, same items; diamonds: the pair less the other, 99.4 %."
    drawn = Figure("specific", "Δ of other trainings at equal functional norm", note,
                   dots([one for one in lines if one is not None], zero=True), wide=True)  # fmt: skip
    return said, [drawn], []


def _effect(arms: Arms, curve: Curve, own: bool) -> Dot | None:
    arm = curve.point or (curve.along[-1][1] if curve.along else "")
    row = curve.effect or arms.of(arm, arms.metric, reference=True)
    return None if row is None else claim(curve.name, row, value(row), "edit" if own else "control")
