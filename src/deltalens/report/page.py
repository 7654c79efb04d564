"""The page: RUNs in, one self-contained HTML text out. Names and paths come from checkpoints and are never trusted."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deltalens import __version__
from deltalens.checkpoint.atomic import atomic
from deltalens.errors import BadInput, printable
from deltalens.report import card, context, ledger
from deltalens.report.figures import payload
from deltalens.report.glossary import COLUMNS, PRINTED, WORDS, Column
from deltalens.report.headline import findings
from deltalens.report.nulls import Outcome, nulls_of, outcomes
from deltalens.report.summary import size_note
from deltalens.report.view import View, read_views
from deltalens.report.words import NOTHING, Row, number, percent, spike_count
from deltalens.store.run import Run

TEMPLATES = Path(__file__).parent / "templates"

SCRIPTS = tuple(
    f"{part}.js" for part in ("core", "maps", "spectrum", "curves", "points", "binades", "forest", "heads", "main")
)
"""The parts of the page's one script, in order."""

RUNS = 6
"""Runs on one page: as many as there are line colours that a colour-blind reader tells apart."""

ROWS = 2000
"""Matrices with a table row and a drawn spectrum on one page, and listed tensors; the files hold the rest."""


def write_page(runs: Sequence[Run], out: Path) -> Path:
    """Write the page of `runs` to `out`, atomically; returns `out`.

    Raises:
        BadInput: `out` is no .html file in an existing directory that can be written, or as `build_page`.
    """
    return write_html(out, lambda: build_page(runs))


def write_html(out: Path, build: Callable[[], str]) -> Path:
    """Write what `build` returns to `out`, atomically; a path that will not do is refused before anything is built.

    Raises:
        BadInput: `out` is no .html file in an existing directory that can be written, or as `build`.
    """
    if out.suffix.lower() not in (".html", ".htm"):
        raise BadInput(f"{out} is not named .html", "--out FILE.html")
    if out.is_dir():
        raise BadInput(f"{out} is a directory", f"--out {out / 'report.html'}")
    if not out.parent.is_dir():
        raise BadInput(f"there is no directory {out.parent}", "make it first, or choose another --out")
    page = build()
    with atomic(out) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return out


def build_page(runs: Sequence[Run]) -> str:
    """One self-contained HTML page for one run, or for several laid over each other; the last is the one in question.

    It loads nothing from anywhere. At most about 12 MB: plotly, 256 points per spectrum, and beyond 2,000 matrices
    only those with the largest ‖Δ‖ in the table and the figures that draw matrices one by one (the page says so).

    Raises:
        BadInput: No run or more than six, one twice, or a damaged record.
    """
    if not runs:
        raise BadInput("no RUN to report", "deltalens report RUN")
    if len(runs) > RUNS:
        raise BadInput(f"{len(runs)} runs on one page cannot be told apart", f"report at most {RUNS}")
    if len({run.path.resolve() for run in runs}) < len(runs):
        raise BadInput("one RUN is named twice", "name each once")
    views = read_views(runs)
    kept = [_largest(view.rows, ROWS // len(runs)) for view in views]
    shares = [view.shares for view in views]
    columns = _columns(views)
    against = [outcomes(view.nulls) for view in views]
    template = _environment().get_template("page.html.j2")
    return template.render(
        views=views,
        kept=kept,
        findings=findings(views),
        columns=columns,
        unprinted=[place for place, column in enumerate(columns, 3) if column.key not in PRINTED],
        words=WORDS,
        version=__version__,
        note=size_note([view.label for view in views], [view.size for view in views]),
        warnings=[(view.label, text) for view in views for text in view.record["warnings"]],
        context=[context.by_kind(view.rows) for view in views],
        statistics=context.STATISTICS,
        masks=[context.masks(view.rows) for view in views],
        nulls=nulls_of(against),
        tested=_tested(against),
        zeros=any(row["zero_gap"] is not None for view in views for row in view.rows),
        binades=any(view.zeros for view in views),
        heads=any(view.heads for view in views),
        card=card.table(views),
        measures=card.MEASURES,
        comparable=card.comparable(views),
        effects=card.size_effects(views),
        statuses=ledger.by_status([view.ledger for view in views]),
        kinds=ledger.across(shares, [ledger.entries(view.rows, view.ledger) for view in views]),
        widest=max((share for one in shares for share in one.values()), default=0.0) or 1.0,
        unlisted=[_unlisted(view, ROWS // len(runs)) for view in views],
        settings=[_settings(view) for view in views],
        data=_embedded(payload(views, kept)),
        css=_own("page.css"),
        dark=_own("dark.css"),
        script=Markup('"use strict";\n(() => {{\n{}\n}})();').format(Markup("\n").join(map(_own, SCRIPTS))),
        plotly=_plotly(),
    )


def _columns(views: Sequence[View]) -> list[Column]:
    """The columns of the table: those that any run has a number for."""
    return [c for c in COLUMNS if any(row[c.key] is not None for view in views for row in view.rows)]


def _tested(against: Sequence[Sequence[Outcome]]) -> list[tuple[Outcome, list[Outcome | None]]]:
    """For each statistic of any run: one that names it, and the result of each run, None where it was not tested."""
    by_run = [{line.statistic: line for line in run} for run in against]
    first = {line.statistic: line for run in reversed(against) for line in run}
    order = dict.fromkeys(line.statistic for run in against for line in run)
    return [(first[statistic], [lines.get(statistic) for lines in by_run]) for statistic in order]


def _largest(rows: list[dict[str, Any]], limit: int) -> list[dict[str, Any]]:
    """At most `limit` rows, those with the largest change, in their order."""
    if len(rows) <= limit:
        return rows
    chosen = sorted(range(len(rows)), key=lambda i: -(rows[i]["norm_delta"] or 0.0))[:limit]
    return [rows[i] for i in sorted(chosen)]


def _unlisted(view: View, limit: int) -> tuple[list[dict[str, Any]], int]:
    """Tensors without a spectrum, with texts that are safe to look at, and how many are not listed."""
    rows, more = ledger.without_spectrum(view.ledger, limit)
    named = [
        {
            **row,
            "name": printable(row["tensor_tuned"] or row["tensor_base"] or row["name"]),
            "reason": printable(row["reason"] or ""),
        }
        for row in rows
    ]
    return named, more


def _settings(view: View) -> list[tuple[str, str]]:
    """Every line of the reproducibility block but the identities."""
    record = view.record
    peak = record.get("peak_rss_bytes")
    lines = [("command", record.get("command")), ("base", view.base), ("tuned", view.tuned)]
    lines += [(f"{side} revision", record["pair"][side].get("revision")) for side in ("base", "tuned")]
    lines += [("deltalens", record.get("deltalens")), ("numerics version", record.get("numerics_version"))]
    lines += [(str(key).replace("_", " "), value) for key, value in record["settings"].items()]
    passes = record.get("passes")
    lines += [(f"pass: {key}", value) for key, value in (passes.items() if isinstance(passes, Mapping) else ())]
    lines += [(str(key).replace("_", " "), value) for key, value in record["environment"].items()]
    lines += [("peak memory", f"{peak / 1e6:.0f} MB" if isinstance(peak, int | float) else None)]
    lines += [("time", None if (s := record["totals"]["seconds"]) is None else f"{number(s)} s")]
    return [(printable(key), NOTHING if value is None else _plain(value)) for key, value in lines]


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(value if isinstance(value, str) else json.dumps(value))


def _cell(row: Row, column: Column) -> str:
    """A table cell: six digits, so that a reader can compute with it."""
    if column.key == "spikes":
        return spike_count(row)
    value = row[column.key]
    return NOTHING if value is None else f"{value:.6g}"


def _shown(value: float | None, unit: str) -> str:
    return percent(value) if unit == "percent" else number(value, 6 if unit == "factor" else 3)


def _score(z: float | None) -> str:
    return NOTHING if z is None else f"{round(z, 1) + 0.0:.1f}".replace("-", "−")


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
    environment.filters.update(number=number, percent=percent, pretty=_pretty, cell=_cell, shown=_shown, score=_score)
    return environment
