"""What a sweep prints: a line per curve and its claims, or the tables of a transition and of ranks."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deltalens.cli.display import estimate, number, out, table

if TYPE_CHECKING:
    from deltalens.methods.functional_rank import FunctionalRank
    from deltalens.methods.transition import Transition
    from deltalens.sweep.bench import Found
    from deltalens.sweep.curves import Drawn, Swept
    from deltalens.sweep.pair import Pairing

Row = dict[str, Any]
_SCORES = ("think_ratio", "accuracy", "forced_accuracy")
_CURVE = ("operating_point", "effect_minus_largest_control", "fraction", "strength")
_VERDICTS = ("causal", "sufficient", "necessary", "choice")


def show_curves(asked: "Pairing", found: "Swept") -> None:
    """A line per arm, a line per curve, then whatever else was measured."""
    task = asked.prompts.task.name
    cells = _pooled(found.summary, task)
    told: dict[str, Found] = {f.name: f for f in (found.base, found.tuned)}
    for one in found.drawn.values():
        told |= {f.name: f for f in (*one.found, *one.controls[:1])}
    metrics = [m for m in (asked.metric, *_SCORES, "kl") if any((name, m) in cells for name in told)]
    lines = [[name, *(number(cells.get((name, m)), ".3f") for m in metrics)] for name in told]
    table(f"{task}: {asked.base} to {asked.tuned} (n = {len(asked.prompts.items)})", ["arm", *metrics], lines, left=1)
    heads = ["curve", "from", "operating point", "effect", "effect − largest control", "F", "verdicts"]
    effects = {(r["arm"], r.get("reference")): r for r in found.summary if r["metric"] == asked.metric}
    table("", heads, [_claims(name, one, effects) for name, one in found.drawn.items()], left=2)
    _others(found, task)
    _ledger(asked, found, told)


def _claims(name: str, one: "Drawn", effects: dict[tuple[str, str | None], Row]) -> list[str]:
    """The line of a curve."""
    own = {row["metric"]: row for row in one.rows}
    claim = own.get("effect_minus_largest_control")
    effect = effects.get((one.point.name, one.curve.start))
    return [
        name,
        one.curve.start,
        f"{own['operating_point']['value']:g}",
        "–" if effect is None else estimate(effect, "+.3f"),
        "–" if claim is None else f"{estimate(claim, '+.3f')} ({_short(claim['reference'], one.point.name)})",
        estimate(own["fraction"], ".3f"),
        " ".join(f"{v} {own[v]['method'].partition(':')[0]}" for v in _VERDICTS if v in own),
    ]


def _others(found: "Swept", task: str) -> None:
    """Numbers that are neither scores of an arm nor said of every curve."""
    from deltalens.evaluate.scores import MEANS, OUTCOMES

    known = {*_CURVE, *_VERDICTS, *OUTCOMES, *MEANS, "perplexity"}
    lines = []
    for row in found.summary:
        if row["metric"] not in known and row.get("task") == task:
            what = row["metric"].replace("_", " ") + (f" ({row['group']})" if row.get("group") else "")
            about = f"{row['arm']}, {row['reference']}" if row.get("reference") else row["arm"]
            shown = estimate({"value": None, "low": None, "high": None, **row}, ".3f")
            lines.append([about, what, shown, row.get("method") or ""])
    if lines:
        table("", ["", "", "value", ""], lines, left=4)


def _ledger(asked: "Pairing", found: "Swept", told: "dict[str, Found]") -> None:
    """Accuracy on the other tasks and perplexity, of arms that were asked."""
    asks = [p.task.name for p in asked.ledger if any(r["task"] == p.task.name for r in found.summary)]
    if not asks:
        return
    by = {(r["arm"], r["task"], r["metric"]): r for r in found.summary if not r.get("reference")}
    lines = []
    for name, f in told.items():
        if f.ledger:
            cells = [by.get((name, task, "accuracy")) for task in (asked.prompts.task.name, *asks)]
            text = next((r["value"] for r in found.summary if (r["arm"], r["metric"]) == (name, "perplexity")), None)
            lines.append([name, *("–" if c is None else f"{c['value']:.2f}" for c in cells), number(text, ".3g")])
    table("accuracy by task", ["arm", asked.prompts.task.name, *asks, "perplexity"], lines, left=1)


def _short(control: str, arm: str) -> str:
    return control.removeprefix(f"{arm}: ")


def show_transition(asked: "Pairing", found: "Transition") -> None:
    """A line per λ, then a line per curve, then the verdict."""
    from deltalens.methods.transition import CURVES, arm_name

    cells = _pooled(found.summary, asked.prompts.task.name)
    lines = []
    metric, inside = asked.metric, found.curves[0].lambdas
    for strength in sorted({*inside, *found.beyond}):
        own = [cells.get((arm_name("all", strength), m)) for m in (metric, *_SCORES)]
        others = [
            number(c.p[inside.index(strength)].mean() if strength in inside else None, ".4f") for c in found.curves
        ]
        lines.append([f"{strength:.3g}", number(own[0], ".4f"), *(number(v, ".3f") for v in own[1:]), *others[1:]])
    heads = ["λ", metric, "think ratio", "accuracy", "forced", *(f"{metric}, {name}" for name in list(CURVES)[1:])]
    task = asked.prompts.task
    title = f"{task.name}: {asked.base} to {asked.tuned} (n = {len(asked.prompts.items)})"
    table(title, heads, lines, left=0)
    words = {f"lambda50_{metric}": f"λ50 of {metric}", f"width_{metric}": "width", "sharpness": "J"}
    words["lambda50_think_ratio"] = "λ50 of the greedy think ratio"
    lines = []
    for curve in found.curves:
        for row in curve.summary:
            why = row["method"] if row["value"] is None or row["metric"] == "sharpness" else ""
            lines.append([curve.name, words[row["metric"]], estimate(row, ".3f"), why])
    table("", ["what moves", "", "value", ""], lines, left=4)
    parts = {c.name: c for c in (*found.curves[1:], *found.parts) if c.fraction is not None}
    lines = [[name, estimate(c.fraction or {}, ".3f")] for name, c in parts.items()]
    table("", ["what moves", "F at λ = 1"], lines, left=2)


def show_rank(asked: "Pairing", found: "FunctionalRank") -> None:
    """A line per arm, the functional ranks, and what a claim rests on."""
    cells = _pooled(found.summary, asked.prompts.task.name)
    lines = []
    for arm in found.arms:
        name, edit = arm["arm"], json.loads(arm["edit"] or "{}")
        stretch = edit["edit"][0]["strength"] if "/ √e" in name else None
        scores = [number(cells.get((name, metric)), ".3f") for metric in (asked.metric, *_SCORES)]
        lines.append([name, number(cells.get((name, "energy")), ".3f"), number(stretch, ".3f"), *scores])
    heads = ["arm", "e_k", "1/√e_k", asked.metric, "think ratio", "accuracy", "forced"]
    table(f"{asked.prompts.task.name}: Δ_k of {asked.base} to {asked.tuned}", heads, lines, left=1)
    for row in found.summary:
        if row["metric"].startswith("functional_rank"):
            by = row["metric"].removeprefix("functional_rank").removeprefix("_") or f"{asked.metric} and accuracy"
            value = "none" if row["value"] is None else f"{row['value']}"
            out(f"functional rank by {by}: {value} ({row['method']})")
        if row["metric"] == "effect_minus_largest_control":
            out(f"{row['arm']}, |effect| less that of the largest control: {estimate(row, '.3f')} ({row['reference']})")


def _pooled(summary: list[Row], task: str) -> dict[tuple[str, str], float | None]:
    rows = (r for r in summary if r.get("task") == task and not r.get("group") and not r.get("reference"))
    return {(r["arm"], r["metric"]): r["value"] for r in rows}


SHOWN: dict[str, Callable[..., None]] = {"transition": show_transition, "rank": show_rank}
"""Recipes with tables of their own."""
