"""What the documents of runs/ read: summaries of sweeps by arm and metric, and Markdown tables of them."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Row = dict[str, Any]
TASK = "chain-hard"
VERDICTS = ("causal", "sufficient", "necessary", "choice")


class Sweep:
    """The summary of one sweep, and the task whose thinking it followed."""

    def __init__(self, folder: Path, task: str = TASK) -> None:
        self.rows: list[Row] = pq.read_table(folder / "summary.parquet").to_pylist()
        self.task = task

    def row(self, arm: str, metric: str, task: str = "", reference: str | None = None, group: str = "") -> Row:
        """One row; fails where there is none."""
        keys = (arm, metric, task or self.task, reference, group)
        for r in self.rows:
            if (r["arm"], r["metric"], r["task"], r["reference"], r["group"] or "") == keys:
                return r
        raise KeyError(keys)

    def of(self, curve: str, metric: str) -> Row:
        """A row of a whole curve, whatever it refers to."""
        return next(r for r in self.rows if (r["arm"], r["metric"]) == (curve, metric) and not r["group"])

    def at(self, curve: str) -> str:
        """The arm at the operating point of a curve."""
        return self.of(curve, "operating_point")["reference"]

    def curves(self) -> list[str]:
        """Names of all curves that have an operating point, in order."""
        return [r["arm"] for r in self.rows if r["metric"] == "operating_point"]

    def value(self, arm: str, metric: str, task: str = "", form: str = ".2f") -> str:
        """The value of an arm."""
        return format(self.row(arm, metric, task)["value"], form)

    def perplexity(self, arm: str) -> str:
        """Of the neutral text."""
        return format(next(r["value"] for r in self.rows if (r["arm"], r["metric"]) == (arm, "perplexity")), ".2f")


def interval(row: Row, form: str = ".2f") -> str:
    """A value with its interval."""
    if row["value"] is None:
        return "–"
    ends = "" if row["low"] is None else f" [{row['low']:{form}}, {row['high']:{form}}]"
    return format(row["value"], form) + ends


def table(heads: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def claims(of: Sweep) -> str:
    """A line per curve: where it works, beside what, and the words."""
    lines = []
    for curve in of.curves():
        have = {r["metric"]: r for r in of.rows if r["arm"] == curve and not r["group"]}
        claim = have.get("effect_minus_largest_control")
        words = [f"{v} **{have[v]['method'].partition(':')[0]}**" for v in VERDICTS if v in have]
        control = "–" if claim is None else f"{interval(claim)} ({claim['reference'].rpartition(': ')[2]})"
        point = f"{have['operating_point']['value']:g}"
        lines.append([curve, point, interval(have["fraction"]), control, ", ".join(words) or "–"])
    return table(["curve", "at", "F", "effect − largest control", "verdicts"], lines)
