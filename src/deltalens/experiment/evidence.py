"""What an experiment has stored, as verdicts and claims read it; what is not there raises, with its reason."""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from deltalens.errors import BadInput, DeltalensError, Refused
from deltalens.evaluate.scores import Row, outcome_pairs, rate_difference
from deltalens.store.experiment import RECORD, Experiment
from deltalens.store.run import Run
from deltalens.sweep.verdicts import LEVEL

REFUSAL = "refusal.json"
"""What the step of that name leaves behind."""

THINKS = 0.5
"""Greedy think ratio from which a model is said to think."""


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step.

    Attributes:
        name: As in `EXP/steps`.
        record: Its `experiment.json`.
        summary: Its rows of `store.results.SUMMARY`.
        rows: Its rows of `store.results.RESULTS` from the test split.
    """

    name: str
    record: dict[str, Any]
    summary: list[Row]
    rows: list[Row]

    @property
    def metric(self) -> str:
        """`p_think` or `p_skip`."""
        return self.record["metric"]

    def find(self, arm: str, metric: str) -> Row | None:
        """The row about a curve, or about another arm as a whole; None where there is none."""
        named = (row for row in self.summary if row["arm"] == arm and row["metric"] == metric)
        return next((row for row in named if not row["group"] and row["task"] == self.task), None)

    def row(self, arm: str, metric: str) -> Row:
        """The same.

        Raises:
            BadInput: There is none.
        """
        found = self.find(arm, metric)
        if found is None:
            raise BadInput(f"step {self.name} has no {metric} of {arm}")
        return found

    def at(self, curve: str, place: float) -> str:
        """Name of the arm at a place on a curve.

        Raises:
            BadInput: There is none.
        """
        for row in self.summary:
            if row["metric"] == "strength" and row["group"] == curve and row["value"] == place:
                return row["arm"]
        raise BadInput(f"step {self.name} has no {curve} at {place:g}")

    @property
    def task(self) -> str:
        """The task that was swept."""
        return self.record["settings"]["tasks"][0]

    def values(self, arm: str, of: str | None = None) -> dict[str, float]:
        """One number of an arm on the swept task, by item, free of prefills; a mean over samples.

        Args:
            arm: Its name.
            of: A column of `store.results.RESULTS`; the step's measure unless named.

        Raises:
            BadInput: The arm has none.
        """
        of = of or self.metric
        found: dict[str, list[float]] = {}
        for row in self.rows:
            if row["arm"] == arm and row["task"] == self.task and row["mode"] == "free" and row[of] is not None:
                found.setdefault(row["item"], []).append(float(row[of]))
        if not found:
            raise BadInput(f"step {self.name} has no {of} of {arm}")
        return {item: fmean(values) for item, values in found.items()}

    def wrote(self, arm: str) -> bool:
        """Whether an arm wrote completions on the swept task."""
        return any(row["text"] is not None for row in self.rows if row["arm"] == arm and row["task"] == self.task)

    def shift(self, first: str, second: str, outcome: str, task: str | None = None) -> Row:
        """Paired difference of a rate, second − first, at a verdict's level.

        Args:
            first: An arm.
            second: Another.
            outcome: One of `evaluate.scores.OUTCOMES`.
            task: That of the sweep unless named.

        Raises:
            BadInput: They did not answer the same items.
        """
        task = task or self.task
        a, b = ([r for r in self.rows if r["arm"] == arm and r["task"] == task] for arm in (first, second))
        pairs = outcome_pairs(a, b, outcome)
        if not pairs:
            raise BadInput(f"step {self.name} has no {outcome.replace('_', ' ')} of {first} and {second}")
        return rate_difference(pairs, LEVEL)


def read_exp(exp: Path) -> dict[str, Any]:
    """`experiment.json`, finished or not.

    Raises:
        BadInput: There is none.
    """
    try:
        return json.loads((exp / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError) as problem:
        raise BadInput(f"{exp} is not an experiment ({problem})", "deltalens run BASE TUNED --out EXP") from problem


def pairs_of(exp: Path) -> dict[str, str]:
    """Role of every pair by its name, the main one first."""
    roles = {pair["name"]: pair["role"] for pair in read_exp(exp)["config"]["pairs"]}
    return dict(sorted(roles.items(), key=lambda item: item[1] != "main"))


def run_of(exp: Path, name: str | None = None) -> Run:
    """The RUN of a pair, of the main one unless named.

    Raises:
        BadInput: It is missing or damaged.
        Refused: It is unfinished.
    """
    name = name or next(iter(pairs_of(exp)))
    if not (exp / "pairs" / name).is_dir():
        raise BadInput(why_missing(exp, f"pairs/{name}", "measure", name))
    return Run.open(exp / "pairs" / name)


def step_of(exp: Path, name: str) -> Step:
    """A finished step.

    Raises:
        BadInput: It is missing or damaged.
        Refused: It is unfinished.
    """
    path = exp / "steps" / name
    if not path.is_dir():
        raise BadInput(why_missing(exp, name))
    try:
        found = Experiment.open(path)
    except Refused as problem:  # it stopped half-way: the experiment knows why
        raise BadInput(why_missing(exp, name, said="is unfinished")) from problem
    results = next((path / "results").glob("*.parquet"), None)
    rows = [] if results is None else found.results(results.stem).to_pylist()
    return Step(name, found.record, found.summary.to_pylist(), [row for row in rows if row["split"] == "test"])


def notes(exp: Path) -> list[str]:
    """What a reader of the verdicts must know first: doubts about the main pair, and a side that thinks or does not."""
    found: list[str] = []
    with suppress(DeltalensError):  # its absence is told where it is missing
        found += run_of(exp).record["warnings"]
    try:
        step = step_of(exp, "eval")
    except DeltalensError:
        return found
    whole = [r for r in step.summary if r["metric"] == "think_ratio" and not r["group"] and r["reference"] is None]
    base, tuned = (max((r["value"] or 0 for r in whole if r["arm"] == source), default=None) for source in _main(exp))
    if base is not None and base >= THINKS:
        found.append(f"the base already thinks, in {base:.0%} of its completions of a task")
    if tuned is not None and tuned < THINKS:
        found.append(f"the tuned model thinks in no more than {tuned:.0%} of its completions of any task")
    return found


def _main(exp: Path) -> list[str]:
    return [model["source"] for model in read_exp(exp)["models"][:2]]


def why_missing(exp: Path, *names: str, said: str = "was not run") -> str:
    """Why a step is not there, as the experiment has recorded it under one of these names; else what is said."""
    record = read_exp(exp)
    told = {one["name"]: one["error"] for one in record.get("steps", ()) if one.get("error")}
    told |= {one["step"]: one["error"] for one in record.get("missing", ())}
    return next((told[name] for name in names if name in told), f"step {names[0]} {said}")


def joined(first: dict[str, float], *others: dict[str, float]) -> Sequence[list[float]] | None:
    """Values of several arms on the same items, in one order; None where the items differ."""
    if any(first.keys() != other.keys() for other in others):
        return None
    return [[arm[item] for item in first] for arm in (first, *others)]
