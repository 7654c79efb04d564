"""One set of tables for a whole experiment: the rows of every step, its arms named `STEP: ARM`."""

from collections.abc import Sequence
from pathlib import Path
from shutil import copyfile
from typing import Any

import pyarrow.parquet as pq

from deltalens.checkpoint.atomic import atomic
from deltalens.experiment.phases import Step
from deltalens.store.experiment import write_summary

_NAMES = ("arm", "reference", "control_of")
"""Columns that hold the name of an arm."""


def gather(exp: Path, steps: Sequence[Step]) -> None:
    """Writes `results/STEP.parquet` of every step that has such rows, `arms.parquet` and `summary.parquet`.

    Args:
        exp: The experiment's directory.
        steps: Those that are done.

    Raises:
        BadInput: The system refused to write.
    """
    (exp / "results").mkdir(exist_ok=True)
    for stale in (exp / "results").glob("*.parquet"):
        stale.unlink()
    arms: list[dict[str, Any]] = []
    summary: list[dict[str, Any]] = []
    for step in steps:
        folder = exp / step.place
        for table in (folder / "results").glob("*.parquet"):
            name = table.name if table.stem == "tokens" else f"{step.name}.parquet"
            with atomic(exp / "results" / name) as temporary:
                copyfile(table, temporary)
        arms += _rows(folder / "arms.parquet", step.name)
        summary += _rows(folder / "summary.parquet", step.name)
        summary += _rows(exp / "steps" / f"{step.name}.parquet", step.name)
    write_summary(exp, arms, summary)


def _rows(path: Path, step: str) -> list[dict[str, Any]]:
    """The rows of one table, none where the step has no such table."""
    rows = pq.read_table(path).to_pylist() if path.is_file() else []
    return [row | {key: f"{step}: {row[key]}" for key in _NAMES if row.get(key) is not None} for row in rows]
