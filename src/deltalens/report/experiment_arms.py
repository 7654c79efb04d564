"""The arms of an experiment: which is the edit in question, what controls it, what each one scored and wrote."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from deltalens.report.experiment_eval import EXAMPLES, PERPLEXITY, Example, outcome
from deltalens.report.experiment_read import Trial, segments
from deltalens.report.experiment_svg import Dot, dots
from deltalens.report.experiment_words import metric, value
from deltalens.report.words import NOTHING, Row
from deltalens.store.results import SELECT

CLAIM = "effect_minus_largest_control"

RATES = ("think_ratio", "accuracy", "forced_accuracy")
COLUMNS = ("p_think", "p_skip", *RATES, "kl", PERPLEXITY, "format_failures", "loops", "truncated", "think_tokens")
"""Of the table of arms, where any arm has a number."""


@dataclass(frozen=True, slots=True)
class Arms:
    """The arms of an experiment and how to find a number of one.

    Attributes:
        trial: The experiment.
        roles: By arm: baseline, edit or control.
        edits: By arm: what defines it.
        baseline: The arm without an edit.
        tuned: The tuned model as it is, None where the experiment has one model.
        task: What is tested on.
        metric: "p_think" or "p_skip".
        cells: Pooled rows by arm, metric, task and reference: False for a value, True for the first difference, or the
            arm that is taken away. Perplexity, of a text, has the task "".
    """

    trial: Trial
    roles: dict[str, str]
    edits: dict[str, dict[str, Any]]
    baseline: str
    tuned: str | None
    task: str
    metric: str
    cells: dict[tuple[str, str, str, bool | str], Row]

    def of(self, arm: str, name: str, task: str | None = None, reference: bool | str = False) -> Row | None:
        """The pooled row of an arm, on the task tested, perplexity on its own text."""
        return self.cells.get((arm, name, "" if name == PERPLEXITY else task or self.task, reference))

    def claim(self, name: str) -> Row | None:
        """A number of the whole experiment, which stands at the operating point's arm."""
        return next((row for row in self.trial.summary if row["metric"] == name), None)

    @property
    def point(self) -> str | None:
        """The arm at the operating point."""
        row = self.claim("operating_point")
        return None if row is None else row["arm"]

    @property
    def controls(self) -> list[str]:
        """The controls of the operating point."""
        return [row["arm"] for row in self.trial.arms if row["role"] == "control" and row["control_of"] == self.point]

    @property
    def claims(self) -> list[Row]:
        """Effect less a control's, the one that decides first."""
        rows = [row for row in self.trial.summary if row["metric"].startswith("effect_minus_")]
        return sorted(rows, key=lambda row: row["metric"] != CLAIM)

    @property
    def largest(self) -> str | None:
        """The control with the largest effect."""
        row = self.claim(CLAIM)
        return None if row is None else row["reference"]


def read_arms(trial: Trial) -> Arms:
    """The arms of an experiment, and what was tested."""
    baseline = next((row["arm"] for row in trial.arms if row["role"] == "baseline"), "baseline")
    tuned = next((row["arm"] for row in trial.arms if row["role"] == "model"), None)
    skip = any(row["metric"] == "p_skip" for row in trial.summary)
    tasks = dict.fromkeys(row["task"] for row in trial.summary if row["metric"] in ("p_think", "p_skip"))
    tested = [task for task in tasks if not task.endswith(SELECT)]
    tested = [row["task"] for row in trial.summary if row["metric"] == "operating_point"] or tested
    edits = {row["arm"]: _edit(row["edit"]) for row in trial.arms}
    roles = {row["arm"]: row["role"] for row in trial.arms}
    chosen = str(trial.record.get("metric") or ("p_skip" if skip else "p_think"))
    return Arms(trial, roles, edits, baseline, tuned, tested[0] if tested else NOTHING, chosen, _cells(trial))


def _cells(trial: Trial) -> dict[tuple[str, str, str, bool | str], Row]:
    cells: dict[tuple[str, str, str, bool | str], Row] = {}
    for row in trial.summary:
        arm, name, other = row["arm"], row["metric"], row["reference"]
        if name == PERPLEXITY:  # the name of its text is its group
            cells.setdefault((arm, name, "", False), row)
        elif not row["group"]:
            for reference in (True, other) if other else (False,):
                cells.setdefault((arm, name, row["task"], reference), row)
    return cells


def _edit(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def printed(words: str | None) -> str:
    """The words of a table with a true minus."""
    return re.sub(r"(?<!\w)-(?=\d)", "−", words or NOTHING)


def marked(mark: str) -> str:
    """What is said of a point that is an operating or breaking point."""
    return "".join(f"; {word} point" for word in mark.split())


def table(arms: Arms) -> tuple[list[str], list[tuple[str, str, list[Row | None]]]]:
    """Every arm on the task tested: the numbers that any has, then the name of each arm, its role and its rows."""
    names = [name for name in COLUMNS if any(arms.of(arm, name) for arm in arms.roles)]
    rows = [(arm, role, [arms.of(arm, name) for name in names]) for arm, role in arms.roles.items()]
    return names, [row for row in rows if any(row[2])]


def effects(
    edit: tuple[str, Row | None], controls: Sequence[tuple[str, Row]], claims: Sequence[Row], muted: Sequence[str] = ()
) -> Markup:
    """The effect of an edit and of each of its controls, largest first, and the claim.

    Args:
        edit: Name and effect.
        controls: The same of its controls.
        claims: Effect less a control's.
        muted: Controls that never decide, under all the rest.
    """
    name, own = edit
    rows = [] if own is None else [Dot(f"{name} (edit)", own["value"], own["low"], own["high"], value(own), "edit")]
    largest = next((row["reference"] for row in claims if row["metric"] == CLAIM), None)
    aside = []
    for arm, row in sorted(controls, key=lambda pair: -abs(pair[1]["value"] or 0.0)):
        note = " (largest control)" if arm == largest else " (never decides)" if arm in muted else ""
        role = "muted" if arm in muted else "control"
        dot = Dot(f"{arm}{note}", row["value"], row["low"], row["high"], value(row), role)
        (aside if arm in muted else rows).append(dot)
    rows += [Dot(metric(r["metric"]).head, r["value"], r["low"], r["high"], value(r), "claim") for r in claims]
    return dots([*rows, *aside], zero=True) if rows else Markup('<p class="hint">No effects were tested.</p>')


def side_by_side(arms: Arms, names: Sequence[str], before: str, after: str | None) -> list[Example]:
    """Items with what `names` wrote: the first whose thinking changes from `before` to `after`, then the others."""
    by_item: dict[str, dict[str, Row]] = {}
    for row in arms.trial.results:
        free = row["mode"] == "free" and not row["sample"] and row["text"] is not None
        if free and row["arm"] in names and row["task"] == arms.task:
            by_item.setdefault(row["item"], {}).setdefault(row["arm"], row)
    both = [item for item, rows in by_item.items() if before in rows and after in rows]
    changed = [item for item in both if by_item[item][before]["thought"] != by_item[item][after or ""]["thought"]]
    order = [(item, "first item whose thinking it changes") for item in changed[:1]]
    order += [(item, "first item whose thinking it leaves") for item in both if item not in set(changed)][:1]
    order += [(item, "next item whose thinking it changes") for item in changed[1:]]
    return [
        Example(item, why, [(arm, outcome(by_item[item][arm]), segments(by_item[item][arm]["text"]))
                            for arm in names if arm in by_item[item]])
        for item, why in order[:EXAMPLES]
    ]  # fmt: skip
