"""`deltalens eval`: what models do, with intervals, and how they differ from the first one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from deltalens.cli.display import Dtype, err, estimate, invocation, measuring, number, out, table, target
from deltalens.errors import printable

_RATES = ("accuracy", "forced_accuracy", "closed_accuracy", "think_ratio", "p_think", "p_skip")
_PLAIN = ("think_tokens", "tokens", "truncated", "truncated_inside", "format_failures", "loops", "kl")
_SAME = 0.001
_WORDS = {
    "accuracy": "accuracy",
    "forced_accuracy": "forced",
    "closed_accuracy": "closed",
    "think_ratio": "think ratio",
    "p_think": "p_think",
    "p_skip": "p_skip",
    "think_tokens": "think",
    "tokens": "tokens",
    "truncated": "cut",
    "truncated_inside": "inside",
    "format_failures": "form",
    "loops": "loops",
    "kl": "KL",
}
_LEGEND = (
    "forced: accuracy with the think block opened (skill, not choice). p_think: probability of the whole opening tag.\n"
    "think, tokens: mean length inside the block and in all. cut: truncated (counted wrong); inside: of these, while\n"
    "thinking. form: answers not in the asked form. loops: an 8-gram 5 times. KL: nats per token from the first model\n"
    "along its greedy text. pass@k: probability that one of k samples is right. Intervals are 95 %: Wilson (rates),\n"
    "bootstrap by item (means and several samples), Newcombe (differences)."
)


@dataclass(frozen=True, slots=True)
class Eval:
    """Evaluate models on the same prompts: accuracy, thinking, its skill and its cost, with intervals."""

    models: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Directories, hub-id[@revision] or family:NAME that share a tokenizer; the others are compared with the first."""
    task: tuple[str, ...] = ()
    """Tasks, such as chain-hard, deduction, jsonl:FILE or gym:NAME; by default four that the tokenizer can write."""
    n: int | None = None
    """Items per task; by default 200, or all that a smaller task has."""
    seed: tuple[int, ...] = (0,)
    """The first draws the items; sampling takes one completion per item and seed."""
    max_tokens: int | None = None
    """Longest completion; by default what the task needs on the family, 4096 elsewhere."""
    temperature: float | None = None
    """0 is greedy; by default 0 on the family and 0.6 elsewhere."""
    top_p: float = 0.95
    """Nucleus of sampling."""
    out: Annotated[str | None, tyro.conf.arg(metavar="DIR")] = None
    """Keep every completion and number here; the same command resumes."""
    batch_size: int = 64
    """Rows decoded together."""
    dtype: Dtype = "auto"
    """Of computation; auto: float32 on a CPU, as stored on a GPU."""
    device: str = "auto"
    """cpu or cuda; auto takes a GPU where there is one."""
    json: bool = False
    """Print the summary as JSON in place of the tables."""
    quiet: bool = False
    """No progress on stderr."""

    def run(self) -> int:
        """Evaluate, print a table per task and one of differences."""
        from deltalens.evaluate.plan import Settings, plan

        folder = target(self.out)
        asked = plan(
            self.models,
            Settings(
                tasks=self.task,
                n=self.n,
                seeds=self.seed,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                batch_size=self.batch_size,
                dtype=self.dtype,
                device=self.device,
            ),
        )
        for note in asked.notes:
            err(printable(f"note: {note}"))
        from deltalens.evaluate.suite import evaluate  # loads torch: not before every mistake is found

        with measuring(self.quiet, "eval") as progress:
            found = evaluate(asked, folder, progress, invocation())
        if self.json:
            out(json.dumps(found.summary, indent=2, ensure_ascii=False))
            return 0
        for prompts in asked.prompts:
            show_task(prompts.task.name, prompts.task.description, found.summary)
        show_text(asked.text[0], found.summary)
        show_differences(self.models[0], found.summary)
        out(_LEGEND)
        if folder is not None:
            out(printable(f"stored in {self.out}"))
        return 0


def show_task(name: str, description: str, summary: Sequence[dict[str, Any]]) -> None:
    """One table: a row per arm, rates with their intervals, the rest as plain numbers."""
    rows = [row for row in summary if row["task"] == name and not row.get("reference")]
    arms = list(dict.fromkeys(row["arm"] for row in rows))
    cells = {(row["arm"], row["group"], row["metric"]): row for row in rows}
    groups = [g for g in dict.fromkeys(row["group"] for row in rows) if g]
    several = list(dict.fromkeys(row["metric"] for row in rows if row["metric"].startswith("pass@")))
    pooled = [m for m in (_RATES[0], *several, *_RATES[1:], *_PLAIN) if any((arm, "", m) in cells for arm in arms)]
    n = max(row["n"] for row in rows)
    table(
        f"{name}: {description} (n = {n})",
        ["model", *(_WORDS.get(metric, metric) for metric in pooled)],
        [[arm, *(_cell(cells.get((arm, "", metric)), metric) for metric in pooled)] for arm in arms],
        left=1,
    )
    if groups:
        columns = [group for group in groups if any((arm, group, "accuracy") in cells for arm in arms)]
        table(
            "",
            ["accuracy", *columns],
            [[arm, *(_short(cells.get((arm, group, "accuracy"))) for group in columns)] for arm in arms],
            left=1,
        )


def show_text(name: str, summary: Sequence[dict[str, Any]]) -> None:
    """Perplexity of every model on the neutral text."""
    rows = [row for row in summary if row["metric"] == "perplexity"]
    if not rows:
        return
    table(
        f"perplexity of {name} ({rows[0]['n']} pieces)",
        ["model", "perplexity"],
        [[row["arm"], estimate(row, ".3f")] for row in rows],
        left=1,
    )


def show_differences(reference: str, summary: Sequence[dict[str, Any]]) -> None:
    """Paired differences from the first model, with p-values corrected over the whole table."""
    all_rows = [row for row in summary if row.get("reference") and not row["group"]]
    tests = sum(row["p"] is not None for row in all_rows)
    rows = [row for row in all_rows if any(abs(row[end] or 0) >= _SAME for end in ("value", "low", "high"))]
    if not all_rows:
        return
    table(
        f"differences from {reference}, paired by item; p: exact McNemar, Holm over {tests} tests",
        ["model", "task", "metric", "difference", "p"],
        [
            [
                row["arm"],
                row["task"],
                _WORDS[row["metric"]],
                estimate(row, "+.3f"),
                _p(row.get("p_holm")),
            ]
            for row in rows
        ],
        left=3,
    )
    if len(rows) < len(all_rows):
        out(f"({len(all_rows) - len(rows)} within ±{_SAME}, intervals included, are left out; --json has them)")
        out("")


def _cell(row: dict[str, Any] | None, metric: str) -> str:
    if row is None:
        return "–"
    if metric not in _PLAIN:
        return _probability(row["value"]) + (
            "" if row["low"] is None else f" [{_probability(row['low'])}, {_probability(row['high'])}]"
        )
    return number(row["value"], ".1f" if metric in ("tokens", "think_tokens") else ".3f")


def _probability(value: float) -> str:
    """Three decimals, or the order of magnitude of a small one: p_think may be 1e-6 and move a lot."""
    return f"{value:.3f}" if value >= 0.001 or value == 0 else f"{value:.0e}"


def _short(row: dict[str, Any] | None) -> str:
    return "–" if row is None else estimate(row, ".2f")


def _p(value: float | None) -> str:
    return "–" if value is None else "< 1e-4" if value < 1e-4 else f"{value:.4f}"
