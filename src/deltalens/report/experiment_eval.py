"""The section of `eval`: what every model does on every task, and how it differs from the first one."""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from deltalens.report.experiment_read import Trial, segments
from deltalens.report.experiment_svg import Dot, dots
from deltalens.report.experiment_words import metric, p_text, value
from deltalens.report.headline import Finding
from deltalens.report.words import Row, join

PANELS = ("accuracy", "forced_accuracy", "think_ratio", "p_think", "p_skip")
"""What is drawn, where a task has it."""

EXAMPLES = 2
"""Items shown with the completions of every model."""

ALPHA = 0.05

PERPLEXITY = "perplexity"


@dataclass(frozen=True, slots=True)
class Example:
    """One item with what every model wrote: model, outcome in words, and its text cut by `segments`."""

    item: str
    why: str
    answers: list[tuple[str, str, list[tuple[bool, str]]]]


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure: its caption, and the dot plot."""

    title: str
    meaning: str
    figure: Markup


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task: its figures and examples."""

    name: str
    n: int
    panels: list[Panel]
    examples: list[Example]


@dataclass(frozen=True, slots=True)
class EvalView:
    """The section.

    Attributes:
        tasks: In the order of the tables.
        text: The perplexity panel, None without one.
        differences: Rows of the summary that compare with the first model, pooled.
        tests: How many tests Holm's correction covers.
    """

    tasks: list[TaskView]
    text: Panel | None
    differences: list[Row]
    tests: int

    @property
    def parts(self) -> list[tuple[str, str]]:
        """Its sections: the end of their anchors, and what they are called."""
        tasks = [(f"task-{i}", task.name) for i, task in enumerate(self.tasks)]
        return [*tasks, *([("text", "neutral text")] if self.text else []), ("differences", "Differences")]


def view(trial: Trial) -> EvalView:
    """Everything the section shows."""
    tasks = list(dict.fromkeys(row["task"] for row in trial.summary if row["metric"] != PERPLEXITY))
    differences = [row for row in trial.summary if row["reference"]]
    text = [row for row in trial.summary if row["metric"] == PERPLEXITY]
    return EvalView(
        [_task(trial, name) for name in tasks],
        _panel(trial, text, PERPLEXITY, (None, None)) if text else None,
        [row for row in differences if not row["group"]],
        sum(row["p"] is not None for row in differences),
    )


def _task(trial: Trial, name: str) -> TaskView:
    panels = []
    for one in PANELS:
        rows = [row for row in trial.numbers(one) if row["task"] == name]
        if rows:
            panels.append(_panel(trial, rows, one, (0.0, 1.0)))
    pooled = [row["n"] for row in trial.summary if row["task"] == name and not row["group"]]
    return TaskView(name, max(pooled, default=0), panels, examples(trial, name))


def _panel(trial: Trial, rows: Sequence[Row], name: str, ends: tuple[float | None, float | None]) -> Panel:
    found = []
    for row in rows:
        role = "reference" if row["arm"] == trial.models[0] else "edit"
        found.append(Dot(row["arm"].removeprefix("family:"), row["value"], row["low"], row["high"], value(row), role))
    return Panel(metric(name).head, metric(name).meaning, dots(found, *ends))


def examples(trial: Trial, task: str) -> list[Example]:
    """The first item on which the models differ in what they did, and the first on which they do not, free mode."""
    by_item: dict[str, dict[str, Row]] = {}
    for row in trial.results:
        if row["task"] == task and row["mode"] == "free" and not row["sample"] and row["text"] is not None:
            by_item.setdefault(row["item"], {}).setdefault(row["arm"], row)
    differ = [item for item, rows in by_item.items() if len({(r["correct"], r["thought"]) for r in rows.values()}) > 1]
    agree = [item for item in by_item if item not in set(differ)]
    chosen = [(item, "first item on which they differ") for item in differ[:1]]
    chosen += [(item, "first item on which they do the same") for item in agree[: EXAMPLES - len(chosen)]]
    chosen += [(item, "next item on which they differ") for item in differ[1 : 1 + EXAMPLES - len(chosen)]]
    return [
        Example(item, why, [(arm, outcome(row), segments(row["text"])) for arm, row in by_item[item].items()])
        for item, why in chosen
    ]


def outcome(row: Row) -> str:
    """What a completion came to, in words."""
    words = ["right" if row["correct"] else "truncated" if row["truncated"] else "wrong"]
    if row["thought"]:
        words.append(f"thought {row['think_tokens']} tokens")
    elif row["opened"]:
        words.append("opened a block, did not think")
    else:
        words.append("did not think")
    return ", ".join([*words, *(["loops"] if row["loop"] else [])])


def findings(trial: Trial) -> list[Finding]:
    """Up to five sentences: the largest difference in each measure, what stayed, and the price."""
    rules = (_thinking(trial), _accuracy(trial), _skill(trial), _same(trial), _price(trial))
    return [one for one in rules if one is not None]


def _largest(trial: Trial, name: str, sign: int = 0) -> Row | None:
    """The significant difference of largest size, of one sign where asked."""
    rows = [r for r in trial.numbers(name, reference=True) if (r["p_holm"] if r["p_holm"] is not None else 1) <= ALPHA]
    return max((r for r in rows if sign * r["value"] >= 0), key=lambda r: abs(r["value"]), default=None)


def _of(trial: Trial, name: str, arm: str, task: str) -> Row | None:
    return next((r for r in trial.numbers(name) if (r["arm"], r["task"]) == (arm, task)), None)


def _against(trial: Trial, row: Row) -> str:
    """Both values of a difference, the difference and its p."""
    own, first = (_of(trial, row["metric"], arm, row["task"]) for arm in (row["arm"], row["reference"]))
    return (
        f"{value(own)} against {value(first)} of {row['reference']} on {row['task']}: {value(row)} on the same items, "
        f"Holm {p_text(row['p_holm'])}"
    )


def _thinking(trial: Trial) -> Finding | None:
    row = _largest(trial, "think_ratio")
    if row is None:
        tested = [r for r in trial.numbers("think_ratio", reference=True) if r["p_holm"] is not None]
        if not tested:
            return None
        widest = max(tested, key=lambda r: abs(r["value"]))
        title = f"No model thinks more or less often than {trial.models[0]}"
        text = f"Largest difference: {widest['arm']} on {widest['task']}, {value(widest)}, {p_text(widest['p_holm'])}."
        return Finding(title, text, _anchor(trial, widest["task"]), widest["task"])
    title = f"{row['arm']} thinks {'more' if row['value'] > 0 else 'less'} often than {row['reference']}"
    same = [
        r["arm"]
        for r in trial.numbers("think_ratio", reference=True)
        if r["task"] == row["task"] and r["arm"] != row["arm"] and (r["p_holm"] or 0) > ALPHA
    ]
    beside = f"; no difference is shown for {join(same)}" if same else ""
    return Finding(title, f"Think ratio {_against(trial, row)}{beside}.", _anchor(trial, row["task"]), row["task"])


def _accuracy(trial: Trial) -> Finding | None:
    row = _largest(trial, "accuracy")
    if row is None:
        return None
    title = f"{row['arm']} answers {row['task']} {'better' if row['value'] > 0 else 'worse'} than {row['reference']}"
    text = f"Accuracy {_against(trial, row)}."
    other = _largest(trial, "accuracy", -1 if row["value"] > 0 else 1)
    if other is not None:
        text += f" The other way, {other['arm']}: {value(other)} on {other['task']}, Holm {p_text(other['p_holm'])}."
    return Finding(title, text, _anchor(trial, row["task"]), row["task"])


def _skill(trial: Trial) -> Finding | None:
    """The first model with its block opened for it, where another one is better left free."""
    row = _largest(trial, "accuracy", 1)
    if row is None:
        return None
    first = row["reference"]
    free, forced = (_of(trial, name, first, row["task"]) for name in ("accuracy", "forced_accuracy"))
    own = _of(trial, "accuracy", row["arm"], row["task"])
    if free is None or forced is None or own is None or None in (free["high"], forced["low"]):
        return None
    can = forced["low"] > free["high"]
    title = (
        f"{first} has the skill and does not choose it" if can else f"Opening the block does not lend {first} the skill"
    )
    text = (
        f"With the think block opened for it, {first} answers {value(forced)} of {row['task']}, "
        f"{value(free)} left free; {row['arm']} answers {value(own)}."
    )
    return Finding(title, text, _anchor(trial, row["task"]), row["task"])


def _same(trial: Trial) -> Finding | None:
    rows = [r for r in trial.numbers("accuracy", reference=True) if r["p_holm"] is not None]
    tasks = [task for task in dict.fromkeys(r["task"] for r in rows)
             if all(r["p_holm"] > ALPHA for r in rows if r["task"] == task)]  # fmt: skip
    if not tasks:
        return None
    widest = max((r for r in rows if r["task"] in tasks), key=lambda r: abs(r["value"]))
    text = (
        f"Accuracy on {join(tasks)}: no difference from {trial.models[0]} survives Holm's correction; the largest is "
        f"{value(widest)} ({widest['arm']}, {widest['task']}), {p_text(widest['p_holm'])}."
    )
    return Finding(f"No difference shown on {join(tasks)}", text, trial.anchor("differences"), "differences")


def _price(trial: Trial) -> Finding | None:
    rows = [row for row in trial.summary if row["metric"] == PERPLEXITY]
    first = next((row for row in rows if row["arm"] == trial.models[0]), None)
    others = [row for row in rows if row["arm"] != trial.models[0] and row["value"] is not None]
    if first is None or not first["value"] or not others:
        return None
    worst = max(others, key=lambda row: row["value"])
    ratio = worst["value"] / first["value"]
    title = f"Perplexity of neutral text: at most {ratio:.3g} × that of {first['arm']}"
    text = f"{worst['arm']} {value(worst)}, {first['arm']} {value(first)}, over {first['n']} pieces."
    return Finding(title, text, trial.anchor("text"), "neutral text")


def _anchor(trial: Trial, task: str) -> str:
    """The id of the section of a task: its number, since a task may be named after a file."""
    tasks = list(dict.fromkeys(row["task"] for row in trial.summary if row["metric"] != PERPLEXITY))
    return trial.anchor(f"task-{tasks.index(task)}")
