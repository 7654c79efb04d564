"""One run, read for the page: safe names, finite numbers, its words. Nothing that a checkpoint says is trusted."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltalens.errors import BadInput, printable
from deltalens.report import summary
from deltalens.report.context import ratios
from deltalens.report.ledger import shares
from deltalens.report.summary import Summary
from deltalens.report.words import NOTHING
from deltalens.spectrum.reading import Leading, leading
from deltalens.store.run import Run

MATCHED = re.compile(r"(.+) → (.+) \([0-9a-f]+\)", re.DOTALL)
"""How a run records what it was scaled to: base, tuned, and a digest of that run."""


@dataclass(frozen=True, slots=True)
class View:
    """One run, read and put into words.

    Attributes:
        run: The run, for its spectra.
        label: Short name of the pair, distinct on the page.
        base: Source of the base side.
        tuned: Source of the tuned side.
        matched: What its ‖Δ‖ was scaled to, None where it is as trained.
        rows: Its matrices, with the ratios of `context.ratios` and the gap of zeros.
        ledger: Its tensors.
        nulls: Rows of nulls.parquet, None where no null ensemble ran.
        heads: Rows of heads.parquet, None where there is none.
        zeros: Rows of deadzone.parquet, None where an earlier version stored none.
        record: `run.json`.
        summary: Counts and medians.
        leading: What the leading spikes hold, None where none were counted.
        shares: Share of the squared delta norm by kind of tensor, largest first.
        lead: The one-sentence answer.
        lines: The sentences under it.
    """

    run: Run
    label: str
    base: str
    tuned: str
    matched: str | None
    rows: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    nulls: list[dict[str, Any]] | None
    heads: list[dict[str, Any]] | None
    zeros: list[dict[str, Any]] | None
    record: dict[str, Any]
    summary: Summary
    leading: Leading | None
    shares: dict[str, float]
    lead: str
    lines: list[str]

    @property
    def size(self) -> float | None:
        """‖Δ‖/‖W_base‖ over every compared tensor."""
        return self.record["totals"]["relative_change"]


def read_views(runs: Sequence[Run]) -> list[View]:
    """Every run as a view, in order.

    Raises:
        BadInput: A damaged record.
    """
    return [_view(run, label) for run, label in zip(runs, _labels(runs), strict=True)]


def _view(run: Run, label: str) -> View:
    rows = [_derive(_clean(row)) for row in run.matrices.to_pylist()]
    ledger = run.ledger.to_pylist()
    nulls, heads, zeros = (
        None if table is None else [_clean(row) for row in table.to_pylist()]
        for table in (run.nulls, run.heads, run.deadzone)
    )
    record = run.record
    try:
        sources = [printable(record["pair"][side]["source"]) for side in ("base", "tuned")]
        warnings = [printable(text) for text in record["warnings"]]
        totals = {key: record["totals"][key] for key in ("relative_change", "norm_delta", "seconds", "share_measured")}
        settings, environment = dict(record["settings"]), dict(record["environment"])
    except (KeyError, TypeError, ValueError) as problem:
        raise BadInput(f"{run.path / 'run.json'} is damaged ({problem!r})", "measure again with --out NEW") from problem
    if not all(value is None or type(value) in (int, float) for value in totals.values()):
        raise BadInput(f"{run.path / 'run.json'} is damaged (totals)", "measure again with --out NEW")
    record = {**record, "warnings": warnings, "totals": totals, "settings": settings, "environment": environment}
    counted, by_kind = summary.summarise(rows), shares(rows, ledger)
    return View(
        run=run,
        label=label,
        base=sources[0],
        tuned=sources[1],
        matched=matched(record),
        rows=rows,
        ledger=ledger,
        nulls=nulls,
        heads=heads,
        zeros=zeros,
        record=record,
        summary=counted,
        leading=leading(run),
        shares=by_kind,
        lead=summary.lead(totals["norm_delta"] or 0.0, totals["relative_change"], counted),
        lines=summary.support(counted, by_kind),
    )


def _clean(row: dict[str, Any]) -> dict[str, Any]:
    """A row with texts that are safe to look at, its stored name beside them, and no number that JSON cannot hold."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    safe = {k: printable(v) if isinstance(v, str) else v for k, v in finite.items()}
    return {**safe, "stored_name": row["name"]}


def _derive(row: dict[str, Any]) -> dict[str, Any]:
    observed, predicted = row["zero_fraction"], row["predicted_zero_fraction"]
    gap = None if observed is None or predicted is None else observed - predicted
    return {**row, **ratios(row), "zero_gap": gap}


def matched(record: Mapping[str, Any]) -> str | None:
    """The pair whose ‖Δ‖ a run was scaled to, in short, or its path; None where the run is as trained."""
    settings = record.get("settings")
    value = settings.get("size_matched") if isinstance(settings, Mapping) else None
    if value is None:
        return None
    pair = MATCHED.fullmatch(str(value))
    return printable(_last(str(value)) if pair is None else " → ".join(map(_last, pair.groups())))


def _labels(runs: Sequence[Run]) -> list[str]:
    """Each pair by the last names of its sides; what tells it from others of that name is added."""
    labels = []
    for run in runs:
        label, to = " → ".join(_short(run.record, side) for side in ("base", "tuned")), matched(run.record)
        labels.append(label if to is None else f"{label}, size-matched to {to}")
    times = Counter(labels)
    return [
        f"{label} ({printable(run.path.resolve().name)})" if times[label] > 1 else label
        for run, label in zip(runs, labels, strict=True)
    ]


def _short(record: Mapping[str, Any], side: str) -> str:
    try:
        source = str(record["pair"][side]["source"])
    except (KeyError, TypeError):
        return NOTHING  # _view tells of the damage
    return printable(_last(source))


def _last(source: str) -> str:
    return source.removeprefix("family:").rstrip("/").rpartition("/")[2] or source
