"""The page of a whole run: nine verdicts on top, then the story that bears them out, from one directory alone."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from deltalens import __version__
from deltalens.checkpoint.atomic import atomic
from deltalens.errors import BadInput
from deltalens.report.experiment_arms import printed, read_arms, side_by_side
from deltalens.report.experiment_curves import read_curves
from deltalens.report.experiment_eval import Example
from deltalens.report.experiment_read import plain
from deltalens.report.experiment_words import FILTERS, definitions, signed
from deltalens.report.page import _environment, _own, write_html
from deltalens.report.run_files import svg_file
from deltalens.report.run_parts import records, texts
from deltalens.report.run_read import Whole, listed, read_whole, skipped
from deltalens.report.run_story import story

WORDS = {"supported": "✓", "contradicted": "✗", "undecided": "?"}
"""The words of a verdict, each with its sign."""

SHOWN = 3
"""Numbers of one verdict on the card; the figure that it leads to has the rest."""

GLOSSARY = (
    ("Δ", "W_tuned − W_base, matrix by matrix"),
    ("Δ_k", "the leading k singular triples of Δ, of the seven linear kinds"),
    ("spike", "a singular value above both the rounding floor and the bulk edge"),
    ("functional norm", "‖ΔΣ^½‖, Σ the second moments of what a matrix reads: how far activations move"),
    ("first order", "⟨gradient, part of Δ⟩: what a part would do if effects were linear, in nats of log-odds"),
    ("φ", "‖AᵀB‖²/k, share of one subspace inside another"),
    ("top, rest", "the spikes of a matrix (rank 1 where it has none), and Δ without them"),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """One row of the verdict card; numbers are texts, anchor is None where its figure is not on the page."""

    question: str
    word: str
    why: str
    numbers: list[str]
    anchor: str | None


def write_run_page(exp: Path, out: Path, anonymise: bool = False) -> Path:
    """Write the page of a run to `out`, atomically; returns `out`.

    Args:
        exp: What `deltalens run` has written, finished or not.
        out: An .html file.
        anonymise: Whether models are called base and tuned in every text, and paths are left out.

    Raises:
        BadInput: `out` is no .html file in an existing directory that can be written, or as `build_run_page`.
    """
    return write_html(out, lambda: build_run_page(exp, anonymise))


def build_run_page(exp: Path, anonymise: bool = False) -> str:
    """One self-contained HTML page; it loads nothing from anywhere, and its figures need no script.

    Raises:
        BadInput: No run lies in `exp`, or its record is damaged.
    """
    whole = read_whole(exp, anonymise)
    sections = story(whole)
    anchors = {part.anchor for section in sections for part in section.parts}
    kinds = [trial.kind for trial in whole.trials.values()]
    metrics = {row["metric"] for trial in whole.trials.values() for row in trial.summary}
    environment = _environment()
    environment.filters.update(FILTERS, minus=printed)
    return environment.get_template("run.html.j2").render(
        whole=whole,
        identity=identity(whole),
        answers=answers(whole, anchors),
        signs=WORDS,
        notes=texts(_told(whole).get("notes")),
        claims=listed(_told(whole), "claims"),
        sections=sections,
        examples=examples(whole),
        missing=listed(whole.record, "missing"),
        skipped=skipped(whole.record),
        steps=[step for step in listed(whole.record, "steps") if step["status"] != "skipped"],
        settings=settings(whole.record),
        definitions=[*GLOSSARY, *definitions(kinds, metrics)],
        version=__version__,
        css=_own("page.css") + _own("experiment.css") + _own("run.css"),
        dark=_own("dark.css"),
        script=Markup('"use strict";\n(() => {{\n{}\n}})();').format(_own("experiment.js")),
    )


def save_figures(exp: Path, folder: Path, anonymise: bool = False) -> list[Path]:
    """Save every figure of the page as an SVG file with its caption, numbered in their order.

    Args:
        exp: What `deltalens run` has written.
        folder: Made where it does not exist.
        anonymise: As for the page.

    Raises:
        BadInput: `folder` cannot be made, or as `build_run_page`.
    """
    figures = [
        figure for section in story(read_whole(exp, anonymise)) for part in section.parts for figure in part.figures
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise BadInput(f"{folder} cannot be made: {problem}", "--figures DIR") from problem
    written = []
    for i, figure in enumerate(figures, 1):
        path = folder / f"{i:02d}-{slug(figure.name)}.svg"
        with atomic(path) as temporary:
            temporary.write_text(svg_file(figure), encoding="utf-8")
        written.append(path)
    return written


def slug(name: str) -> str:
    """A name as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:60] or "figure"


def _told(whole: Whole) -> dict[str, Any]:
    found = whole.values.get("verdicts")
    return found if isinstance(found, dict) else {}


def answers(whole: Whole, anchors: set[str]) -> list[Answer]:
    """The verdict card."""
    found = []
    for one in listed(_told(whole), "verdicts"):
        word, figure = str(one.get("word")), one.get("figure")
        numbers = _numbers(records(one["numbers"])[:SHOWN])
        anchor = figure if figure in anchors else None
        found.append(
            Answer(
                str(one.get("question")),
                word if word in WORDS else "undecided",
                printed(str(one.get("why"))),
                numbers,
                anchor,
            )
        )
    return found


def _numbers(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Numbers with their intervals; how many items they rest on once, where all rest on as many."""
    counts = {row.get("n") for row in rows} - {None}
    told = [_number(row, row.get("step") == rows[0].get("step")) for row in rows]
    if len(counts) == 1:
        return [*told, f"n\u00a0=\u00a0{counts.pop()}"]
    items = [row.get("n") for row in rows]
    return [text + ("" if n is None else f", n\u00a0=\u00a0{n}") for text, n in zip(told, items, strict=True)]


def _number(one: dict[str, Any], deciding: bool) -> str:
    """One number; what is not of the step that decides says of which it is."""
    text = f"{one.get('name')} {signed(one.get('value'), sign=False)}"
    if one.get("low") is not None and one.get("high") is not None:
        text += f" [{signed(one['low'], sign=False)},\u00a0{signed(one['high'], sign=False)}]"
    return text if deciding else f"{text} ({str(one.get('step')).removeprefix('pairs/')})"


def identity(whole: Whole) -> str:
    """What the run is of, without a date: digests of both models and of the template, and the measure."""
    models = whole.record["models"]
    told = [f"{side} {_digest(one.get('identity'))}" for side, one in zip(("base", "tuned"), models, strict=False)]
    every = [whole.record, *(trial.record for trial in whole.trials.values())]
    for name in ("template", "metric"):
        told += [f"{name} {record[name]}" for record in every if record.get(name)][:1]
    return " · ".join(told)


def _digest(identity: Any) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


def settings(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Every line of the reproducibility block but commands, steps and identities."""
    left_out = ("schema", "kind", "status", "models", "steps", "missing", "command", "settings", "config")
    lines = [(key, text) for key, text in record.items() if key not in left_out]
    for name in ("settings", "config"):
        found = record.get(name)
        lines += [(key, text) for key, text in found.items() if key != "pairs"] if isinstance(found, dict) else []
    return [(str(key).replace("_", " "), plain(text)) for key, text in dict(lines).items()]


def examples(whole: Whole) -> list[Example]:
    """Completions of base, tuned model, an edit at its operating point and its largest control, side by side."""
    trial = whole.trials.get("rank")
    if trial is None:
        return []
    arms = read_arms(trial)
    curve = next((one for one in read_curves(arms) if one.point is not None and one.start == arms.baseline), None)
    after = [] if curve is None else [arm for arm in (curve.point, curve.largest) if arm is not None]
    names = [arm for arm in (arms.baseline, arms.tuned, *after) if arm is not None]
    return side_by_side(arms, names, arms.baseline, after[0] if after else arms.tuned)
