"""From rows of outcomes to numbers with intervals: every rate, mean and paired difference of an experiment.

A rate over one completion per item has Wilson's interval, a mean or a rate over several samples per item a bootstrap
by item, and paired rates Newcombe's with McNemar's p, corrected over the whole table (docs/behaviour.md §3).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from deltalens.evaluate.pass_at_k import pass_at_k
from deltalens.statistics import CLUSTERS, bootstrap, holm, mcnemar, newcombe_paired, wilson

Row = dict[str, Any]
OUTCOMES: dict[str, tuple[str, Callable[[Row], Any]]] = {
    "accuracy": ("free", lambda r: r["correct"]),
    "think_ratio": ("free", lambda r: r["thought"]),
    "forced_accuracy": ("forced", lambda r: r["correct"]),
    "closed_accuracy": ("closed", lambda r: r["correct"]),
    "closed_think_ratio": ("closed", lambda r: r["thought"]),
    "open_ratio": ("free", lambda r: r["opened"]),
    "close_ratio": ("free", lambda r: r["closed"]),
    "truncated": ("free", lambda r: r["truncated"]),
    "truncated_inside": ("free", lambda r: r["truncated"] and r["opened"] and not r["closed"]),  # None stays None
    "format_failures": ("free", lambda r: None if r["text"] is None else not r["format_ok"] and not r["truncated"]),
    "loops": ("free", lambda r: r["loop"]),
}
"""Yes or no per completion, None where nothing was generated: the mode it is counted in, and how."""

MEANS: dict[str, Callable[[Row], float | None]] = {
    "p_think": lambda r: r["p_think"],
    "p_skip": lambda r: r["p_skip"],
    "think_tokens": lambda r: r["think_tokens"] if r["opened"] else None,
    "tokens": lambda r: r["tokens"],
    "kl": lambda r: r["kl"],
}
"""Continuous, of free completions; an item without the value is left out of the mean."""

COMPARED = ("accuracy", "think_ratio", "forced_accuracy", "closed_accuracy")
"""Rates of which the paired difference is tested."""

COMPARED_MEANS = ("p_think", "p_skip")


def summarise(rows: Sequence[Row], reference: str | Mapping[str, str] | None = None, level: float = 0.95) -> list[Row]:
    """Every number of every arm and task, as rows of `store.results.SUMMARY`.

    Args:
        rows: Rows of `store.results.RESULTS`.
        reference: The arm from which paired differences are taken, or that of every arm that has one; None for none.
        level: Coverage of the intervals.
    """
    found: list[Row] = []
    tests: list[Row] = []
    by_task = _grouped(rows, lambda r: r["task"])
    for task, of_task in by_task.items():
        by_arm = _grouped(of_task, lambda r: r["arm"])
        for arm, own in by_arm.items():
            name = {"arm": arm, "task": task}
            found += [name | score for score in scores(own, level)]
            start = reference.get(arm) if isinstance(reference, Mapping) else reference
            if start is not None and arm != start and start in by_arm:
                pairs = differences(by_arm[start], own, level)
                tests += [name | {"reference": start} | difference for difference in pairs]
    tested = [row for row in tests if row["p"] is not None]
    for row, adjusted in zip(tested, holm([row["p"] for row in tested]), strict=True):
        row["p_holm"] = adjusted
    return found + tests


def scores(rows: Sequence[Row], level: float = 0.95) -> list[Row]:
    """The numbers of one arm on one task: pooled, and accuracy and think ratio by group where there are several."""
    found = []
    by_group = _grouped(rows, lambda r: r["group"] or "")
    parts = [("", rows), *((group, own) for group, own in by_group.items() if group and len(by_group) > 1)]
    for group, own in parts:
        for metric, (mode, outcome) in OUTCOMES.items():
            per_item = _per_item(own, mode, outcome)
            if per_item and (not group or metric in COMPARED):
                found.append({"group": group, "metric": metric, **rate(list(per_item.values()), level)})
        for metric, value in MEANS.items():
            per_item = _per_item(own, "free", value)
            if per_item and (not group or metric in COMPARED_MEANS):
                means = [fmean(values) for values in per_item.values()]
                found.append({"group": group, "metric": metric, **mean(means, level)})
    return found + _pass_at_k(rows, level)


def differences(first: Sequence[Row], second: Sequence[Row], level: float = 0.95) -> list[Row]:
    """Paired differences, second − first, over the items that both have; pooled and by group."""
    found = []
    groups = sorted({r["group"] or "" for r in first} & {r["group"] or "" for r in second})
    for group in ["", *(group for group in groups if group and len(groups) > 1)]:
        a, b = ([r for r in rows if not group or r["group"] == group] for rows in (first, second))
        for metric in COMPARED:
            if pairs := outcome_pairs(a, b, metric):
                # Only pooled differences are tested: tests by group would double the family that Holm corrects for.
                tested = rate_difference(pairs, level)
                found.append({"group": group, "metric": metric, **tested, "p": None if group else tested["p"]})
        for metric in COMPARED_MEANS:
            pairs = _paired(_per_item(a, "free", MEANS[metric]), _per_item(b, "free", MEANS[metric]))
            if pairs:
                change = [fmean(after) - fmean(before) for before, after in pairs]
                found.append({"group": group, "metric": metric, **mean(change, level)})
    return found


def rate(outcomes: Sequence[Sequence[Any]], level: float = 0.95) -> Row:
    """A rate with its interval from the outcomes of each item."""
    if any(len(values) > 1 for values in outcomes):
        return mean([fmean(map(float, values)) for values in outcomes], level)
    hits, n = sum(bool(values[0]) for values in outcomes), len(outcomes)
    low, high = wilson(hits, n, level)
    return {"n": n, "value": hits / n, "low": low, "high": high, "method": "Wilson", "p": None}


def mean(values: Sequence[float], level: float = 0.95) -> Row:
    """A mean over items with its bootstrap interval, without one below 50 items."""
    n = len(values)
    if n < CLUSTERS:
        return {"n": n, "value": fmean(values), "low": None, "high": None, "method": f"mean, n < {CLUSTERS}", "p": None}
    value, low, high = bootstrap(values, list(range(n)), level=level)
    return {"n": n, "value": value, "low": low, "high": high, "method": "bootstrap by item", "p": None}


def perplexity(surprisals: Sequence[tuple[float, int]], level: float = 0.95) -> Row:
    """exp of the nats per token over all pieces of a text, from the nats and tokens of each; bootstrap by piece."""
    n = len(surprisals)
    found = {"n": n, "low": None, "high": None, "method": f"n < {CLUSTERS}", "p": None}
    if n < CLUSTERS:
        nats, tokens = map(sum, zip(*surprisals, strict=True))
        return found | {"value": math.exp(nats / tokens)}

    def per_token(means: Any) -> Any:
        return means[:, 0] / means[:, 1]

    value, low, high = map(math.exp, bootstrap(np.array(surprisals, float), range(n), per_token, level))
    return found | {"value": value, "low": low, "high": high, "method": "bootstrap by piece"}


def rate_difference(pairs: Sequence[tuple[Sequence[Any], Sequence[Any]]], level: float = 0.95) -> Row:
    """The difference of two paired rates, second − first: Newcombe's interval and McNemar's exact p."""
    if any(len(a) > 1 or len(b) > 1 for a, b in pairs):
        return mean([fmean(map(float, b)) - fmean(map(float, a)) for a, b in pairs], level)
    outcomes = [(bool(a[0]), bool(b[0])) for a, b in pairs]
    first, second = outcomes.count((True, False)), outcomes.count((False, True))
    value, low, high = newcombe_paired(
        outcomes.count((True, True)), first, second, outcomes.count((False, False)), level=level
    )
    p = mcnemar(first, second)
    return {"n": len(pairs), "value": value, "low": low, "high": high, "method": "Newcombe paired, McNemar", "p": p}


def outcome_pairs(first: Sequence[Row], second: Sequence[Row], metric: str) -> list[tuple[list[Any], list[Any]]]:
    """One of `OUTCOMES` on every item that both have, sample by sample."""
    mode, outcome = OUTCOMES[metric]
    return _paired(_per_item(first, mode, outcome), _per_item(second, mode, outcome))


def _pass_at_k(rows: Sequence[Row], level: float) -> list[Row]:
    """pass@k for k = 2, 4, 8, … up to the samples that every item has; nothing where there is one."""
    per_item = _per_item(rows, "free", lambda r: r["correct"])
    fewest = min((len(values) for values in per_item.values()), default=0)
    found = []
    k = 2
    while k <= fewest:
        values = [pass_at_k(len(v), sum(map(bool, v)), k) for v in per_item.values()]
        found.append({"group": "", "metric": f"pass@{k}", **mean(values, level)})
        k *= 2
    return found


def _per_item(rows: Iterable[Row], mode: str, value: Callable[[Row], Any]) -> dict[str, list[Any]]:
    """The values of each item over its samples, those that are None left out."""
    found: dict[str, list[Any]] = defaultdict(list)
    for row in rows:
        if row["mode"] == mode and (one := value(row)) is not None:
            found[row["item"]].append(one)
    return found


def _paired(first: dict[str, list[Any]], second: dict[str, list[Any]]) -> list[tuple[list[Any], list[Any]]]:
    return [(first[item], second[item]) for item in first if item in second]


def _grouped(rows: Iterable[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(key(row), []).append(row)
    return found
