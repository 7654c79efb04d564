"""The page: RUNs in, one self-contained HTML text out. Names and paths come from checkpoints and are never trusted."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deltalens import __version__
from deltalens.checkpoint.atomic import atomic
from deltalens.errors import BadInput
from deltalens.report import headline
from deltalens.report.figures import payload
from deltalens.report.glossary import COLUMNS, WORDS, Column
from deltalens.report.headline import NOTHING, Row, Summary, number, percent
from deltalens.store.run import Run

TEMPLATES = Path(__file__).parent / "templates"

RUNS = 6
"""Runs on one page: as many as there are line colours that a colour-blind reader tells apart."""

ROWS = 2000
"""Matrices with a table row and a drawn spectrum on one page, and listed tensors; the files hold the rest."""

VECTORS, UNMEASURED = "vectors (norm gains, biases)", "unmeasured tensors"
_STATUSES = ("measured", "vector", "unmeasured", "refused", "unpaired", "tied", "buffer")


@dataclass(frozen=True, slots=True)
class View:
    """One run, read and put into words.

    Attributes:
        label: Short name of the pair, distinct on the page.
        base: Source of the base side.
        tuned: Source of the tuned side.
        rows: Its matrices.
        ledger: Its tensors.
        record: `run.json`.
        summary: Counts and medians.
        shares: Share of the squared delta norm by kind of tensor, largest first.
        lead: The one-sentence answer.
        lines: The sentences under it.
    """

    label: str
    base: str
    tuned: str
    rows: list[dict[str, Any]]
    ledger: list[dict[str, Any]]
    record: dict[str, Any]
    summary: Summary
    shares: dict[str, float]
    lead: str
    lines: list[str]


def write_page(runs: Sequence[Run], out: Path) -> Path:
    """Write the page of `runs` to `out`, atomically; returns `out`.

    Raises:
        BadInput: `out` is no .html file in an existing directory that can be written, or as `build_page`.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise BadInput(f"{out} is not named .html", "--out FILE.html")
    if out.is_dir():
        raise BadInput(f"{out} is a directory", f"--out {out / 'report.html'}")
    if not out.parent.is_dir():
        raise BadInput(f"there is no directory {out.parent}", "make it first, or choose another --out")
    page = build_page(runs)
    try:
        with atomic(out) as temporary:
            temporary.write_text(page, encoding="utf-8")
    except OSError as problem:
        raise BadInput(f"cannot write {out}: {problem.strerror}", "--out FILE.html") from problem
    return out


def build_page(runs: Sequence[Run]) -> str:
    """One self-contained HTML page for one run, or for several laid over each other.

    It loads nothing from anywhere. At most about 12 MB: plotly, 256 points per spectrum, and beyond 2,000 matrices
    only those with the largest ‖Δ‖ in the table and the spectra (the page says so).

    Raises:
        BadInput: No run or more than six, one twice, or a damaged record.
    """
    if not runs:
        raise BadInput("no RUN to report", "deltalens report RUN")
    if len(runs) > RUNS:
        raise BadInput(f"{len(runs)} runs on one page cannot be told apart", f"report at most {RUNS}")
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise BadInput("one RUN is named twice", "name each once")
    views = [_view(run, label) for run, label in zip(runs, _labels(runs), strict=True)]
    kept = [_largest(view.rows, ROWS // len(runs)) for view in views]
    data = payload(runs, [view.label for view in views], [view.rows for view in views], kept)
    template = _environment().get_template("page.html.j2")
    return template.render(
        views=views,
        kept=kept,
        columns=COLUMNS,
        words=WORDS,
        version=__version__,
        note=headline.size_note([v.label for v in views], [v.record["totals"]["relative_change"] for v in views]),
        warnings=[(view.label, text) for view in views for text in view.record["warnings"]],
        statuses=_by_status(views),
        kinds=_by_kind(views),
        widest=max((share for view in views for share in view.shares.values()), default=0.0) or 1.0,
        unlisted=[_not_measured(view, ROWS // len(runs)) for view in views],
        settings=[_settings(view) for view in views],
        data=_embedded(data),
        css=_own("page.css"),
        script=_own("page.js"),
        plotly=_plotly(),
    )


def visible(text: object) -> str:
    """`text` with control, bidirectional and other invisible characters shown as escapes."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))
    return "".join(shown)


def _view(run: Run, label: str) -> View:
    rows = [_clean(row) for row in run.matrices.to_pylist()]
    ledger = run.ledger.to_pylist()
    record = run.record
    try:
        sources = [visible(record["pair"][side]["source"]) for side in ("base", "tuned")]
        warnings = [visible(text) for text in record["warnings"]]
        totals = {key: record["totals"][key] for key in ("relative_change", "norm_delta", "seconds", "share_measured")}
        settings, environment = dict(record["settings"]), dict(record["environment"])
    except (KeyError, TypeError, ValueError) as problem:
        raise BadInput(f"{run.path / 'run.json'} is damaged ({problem!r})", "measure again with --out NEW") from problem
    if not all(value is None or type(value) in (int, float) for value in totals.values()):
        raise BadInput(f"{run.path / 'run.json'} is damaged (totals)", "measure again with --out NEW")
    record = {**record, "warnings": warnings, "totals": totals, "settings": settings, "environment": environment}
    summary, shares = headline.summarise(rows), _shares(rows, ledger)
    lead = headline.lead(totals["norm_delta"] or 0.0, totals["relative_change"], summary)
    return View(label, *sources, rows, ledger, record, summary, shares, lead, headline.support(summary, shares))


def _clean(row: dict[str, Any]) -> dict[str, Any]:
    """A row with a name that is safe to look at, its stored name beside it, and no number that JSON cannot hold."""
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return {**finite, "name": visible(row["name"]), "stored_name": row["name"]}


def _labels(runs: Sequence[Run]) -> list[str]:
    """Each pair by the last names of its sides; the directory of the run is added where two read the same."""
    labels = [" → ".join(_short(run.record, side) for side in ("base", "tuned")) for run in runs]
    times = Counter(labels)
    return [
        f"{label} ({visible(run.path.resolve().name)})" if times[label] > 1 else label
        for run, label in zip(runs, labels, strict=True)
    ]


def _short(record: Mapping[str, Any], side: str) -> str:
    try:
        source = str(record["pair"][side]["source"])
    except (KeyError, TypeError):
        return NOTHING  # _view tells of the damage
    return visible(source.removeprefix("family:").rstrip("/").rpartition("/")[2] or source)


def _shares(rows: Sequence[Row], ledger: Sequence[Row]) -> dict[str, float]:
    """Share of the squared delta norm by kind, largest first; they sum to 1, or to 0 where nothing changed."""
    kinds = {row["stored_name"]: row["kind"] for row in rows}
    shares: dict[str, float] = {}
    for row in ledger:
        kind = VECTORS if row["status"] == "vector" else kinds.get(row["name"], UNMEASURED)
        if row["status"] in ("measured", "vector", "unmeasured"):
            shares[kind] = shares.get(kind, 0.0) + row["share"]
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _largest(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` rows, those with the largest change, in their order."""
    if len(rows) <= limit:
        return rows
    chosen = sorted(range(len(rows)), key=lambda i: -(rows[i]["norm_delta"] or 0.0))[:limit]
    return [rows[i] for i in sorted(chosen)]


def _by_status(views: Sequence[View]) -> list[tuple[str, list[dict[str, Any]]]]:
    """For each status that occurs: tensors, elements and share in each run."""
    lines = []
    for status in (*_STATUSES, None):  # None is the sum
        cells = []
        for view in views:
            rows = [row for row in view.ledger if status in (None, row["status"])]
            sums = {key: sum(row[key] or 0 for row in rows) for key in ("elements", "share")}
            cells.append({"tensors": len(rows), **sums})
        if any(cell["tensors"] for cell in cells):
            lines.append((status or "sum", cells))
    return lines


def _by_kind(views: Sequence[View]) -> list[tuple[str, list[float | None]]]:
    order = list(dict.fromkeys(kind for view in views for kind in view.shares))
    order.sort(key=lambda kind: -max(view.shares.get(kind, 0.0) for view in views))
    return [(kind, [view.shares.get(kind) for view in views]) for kind in order]


def _not_measured(view: View, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Tensors without a spectrum, those with the most change and the refused first, and how many are not listed."""
    rows = [row for row in view.ledger if row["status"] != "measured"]
    rows.sort(key=lambda row: (row["status"] != "refused", -(row["share"] or 0.0)))
    listed = [
        {
            **row,
            "name": visible(row["tensor_tuned"] or row["tensor_base"] or row["name"]),
            "reason": visible(row["reason"] or ""),
        }
        for row in rows[:limit]
    ]
    return listed, len(rows) - len(listed)


def _settings(view: View) -> list[tuple[str, str]]:
    """Every line of the reproducibility block but the identities."""
    record = view.record
    peak = record.get("peak_rss_bytes")
    lines = [("command", record.get("command")), ("base", view.base), ("tuned", view.tuned)]
    lines += [(f"{side} revision", record["pair"][side].get("revision")) for side in ("base", "tuned")]
    lines += [("deltalens", record.get("deltalens")), ("numerics version", record.get("numerics_version"))]
    lines += [(str(key).replace("_", " "), value) for key, value in record["settings"].items()]
    lines += [(str(key).replace("_", " "), value) for key, value in record["environment"].items()]
    lines += [("peak memory", f"{peak / 1e6:.0f} MB" if isinstance(peak, int | float) else None)]
    lines += [("time", None if (s := record["totals"]["seconds"]) is None else f"{number(s)} s")]
    return [(visible(key), NOTHING if value is None else _plain(value)) for key, value in lines]


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return visible(value if isinstance(value, str) else json.dumps(value))


def _cell(row: Row, column: Column) -> str:
    """A table cell: six digits, so that a reader can compute with it."""
    if column.key == "spikes":
        return headline.spike_count(row)
    value = row[column.key]
    return NOTHING if value is None else f"{value:.6g}"


def _pretty(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=True)


def _embedded(value: object) -> Markup:
    """JSON that no HTML parser can leave: ASCII, with every character that means something to one escaped."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _own(name: str) -> Markup:
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


def _plotly() -> Markup:
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs())


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: NOTHING if value is None else value,
    )
    environment.filters.update(number=number, percent=percent, pretty=_pretty, cell=_cell)
    return environment
