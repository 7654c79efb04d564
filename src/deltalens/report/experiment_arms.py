"""The arms of a steering experiment: which is the edit in question, what controls it, and what each one scored."""

import json
from dataclasses import dataclass
from typing import Any

from deltalens.report.experiment_read import Trial
from deltalens.report.words import NOTHING, Row

CLAIM = "effect_minus_largest_control"

SELECT = " (select)"
"""Behind the name of the task on whose select split layer, sign and strength were chosen."""


@dataclass(frozen=True, slots=True)
class Arms:
    """The arms of an experiment and how to find a number of one.

    Attributes:
        trial: The experiment.
        roles: By arm: baseline, edit or control.
        edits: By arm: what defines it.
        baseline: The arm without an edit.
        task: What is tested on.
        metric: "p_think" or "p_skip".
    """

    trial: Trial
    roles: dict[str, str]
    edits: dict[str, dict[str, Any]]
    baseline: str
    task: str
    metric: str

    def of(self, arm: str, name: str, task: str | None = None, reference: bool = False) -> Row | None:
        """The pooled row of an arm, on the task tested, perplexity on its own text."""
        if name == "perplexity":  # of a text, whose name is its group
            return next((r for r in self.trial.summary if (r["arm"], r["metric"]) == (arm, name)), None)
        task = task or self.task
        return next((r for r in self.trial.numbers(name, reference) if (r["arm"], r["task"]) == (arm, task)), None)

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
    skip = any(row["metric"] == "p_skip" for row in trial.summary)
    tasks = dict.fromkeys(row["task"] for row in trial.summary if row["metric"] in ("p_think", "p_skip"))
    tested = [task for task in tasks if not task.endswith(SELECT)]
    edits = {row["arm"]: _edit(row["edit"]) for row in trial.arms}
    roles = {row["arm"]: row["role"] for row in trial.arms}
    chosen = str(trial.record.get("metric") or ("p_skip" if skip else "p_think"))
    return Arms(trial, roles, edits, baseline, tested[0] if tested else NOTHING, chosen)


def _edit(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def printed(words: str | None) -> str:
    """The words of a table with a true minus."""
    return (words or NOTHING).replace("-0", "−0")
