"""The page of experiments: tables in, one self-contained HTML text out. What models wrote is foreign text."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from deltalens import __version__
from deltalens.errors import BadInput
from deltalens.report import experiment_eval, experiment_probe, experiment_steer, experiment_sweep
from deltalens.report.experiment_read import Trial, read_trials, settings
from deltalens.report.experiment_words import FILTERS, definitions
from deltalens.report.headline import Finding
from deltalens.report.page import _embedded, _environment, _own, write_html
from deltalens.store.experiment import Experiment

SECTIONS = {
    "eval": experiment_eval,
    "probe": experiment_probe,
    "steer": experiment_steer,
    "sweep": experiment_sweep,
}

TITLES = {
    "eval": "How the models behave",
    "probe": "What the direction reads",
    "steer": "What the direction causes",
    "sweep": "What an edit of the weights causes",
}

SCRIPTS = ("experiment.js", "experiment_tokens.js")

MOST = 8
"""Experiments on one page."""

SENTENCES = 5
"""Headline sentences of the page, shared among its experiments, at least one each."""

LISTED = 3000
"""Rows of one table on the page; the file holds the rest."""


def write_experiments(experiments: Sequence[Experiment], out: Path) -> Path:
    """Write the page of `experiments` to `out`, atomically; returns `out`.

    Raises:
        BadInput: `out` is no .html file in an existing directory that can be written, or as `build_experiments`.
    """
    return write_html(out, lambda: build_experiments(experiments))


def build_experiments(experiments: Sequence[Experiment]) -> str:
    """One self-contained HTML page with a section for each experiment. It loads nothing from anywhere.

    Figures are SVG that needs no script; the script sorts tables, reads marks out and recolours the heat strips.

    Raises:
        BadInput: No experiment or more than eight, one twice, or a damaged one.
    """
    if not experiments:
        raise BadInput("no experiment to report", "deltalens report EXP")
    if len(experiments) > MOST:
        raise BadInput(f"{len(experiments)} experiments are too many for one page", f"report at most {MOST}")
    if len({one.path.resolve() for one in experiments}) < len(experiments):
        raise BadInput("one experiment is named twice", "name each once")
    trials = read_trials(experiments)
    views = [SECTIONS[trial.kind].view(trial) for trial in trials]
    kinds = [trial.kind for trial in trials]
    environment = _environment()
    environment.filters.update(FILTERS)
    return environment.get_template("experiment.html.j2").render(
        title=TITLES[kinds[0]] if len(set(kinds)) == 1 else "What the experiments show",
        sections=list(zip(trials, views, strict=True)),
        findings=headlines(trials),
        contents=contents(trials, views),
        rows=[trial.summary[:LISTED] for trial in trials],
        settings=[settings(trial) for trial in trials],
        definitions=definitions(kinds, {row["metric"] for trial in trials for row in trial.summary}),
        version=__version__,
        data=_embedded([payload(view) for view in views]),
        css=_own("page.css") + _own("experiment.css"),
        dark=_own("dark.css"),
        script=Markup('"use strict";\n(() => {{\n{}\n}})();').format(Markup("\n").join(map(_own, SCRIPTS))),
    )


def headlines(trials: Sequence[Trial]) -> list[tuple[Trial, Finding]]:
    """The first sentences of every experiment, five in all where there are so few experiments."""
    each = max(1, SENTENCES // len(trials))
    return [(trial, one) for trial in trials for one in SECTIONS[trial.kind].findings(trial)[:each]]


def contents(trials: Sequence[Trial], views: Sequence[Any]) -> list[tuple[str, str]]:
    """Anchors and names for the top of the page: the experiments, or the parts of a single one."""
    if len(trials) > 1:
        return [(trial.anchor("top"), trial.label) for trial in trials]
    return [(trials[0].anchor(part), name) for part, name in views[0].parts]


def payload(view: object) -> Mapping[str, Any]:
    """What the script needs of a section."""
    strips = view.strips if isinstance(view, experiment_probe.ProbeView) else []
    return {"strips": [experiment_probe.payload(strip) for strip in strips]}
