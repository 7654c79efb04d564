"""A whole run of `deltalens run`, read for its page: every step beside the reason where one is absent."""

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deltalens.errors import BadInput, DeltalensError, printable
from deltalens.report.experiment_read import Trial, read_trials
from deltalens.report.view import View, read_views
from deltalens.store.experiment import RECORD, Experiment
from deltalens.store.run import Run

KIND = "run"

PAGE_OF_PAIRS = "spectra.html"
"""The page of all measured pairs, beside that of the run."""

_VALUES = ("verdicts", "stages", "atlas", "refusal")
"""Plain values of the run, each in a file of its own."""

_FIELDS = {
    "missing": ("step", "error", "fix"),
    "steps": ("name", "title", "status", "error", "seconds", "command"),
    "pairs": ("name", "base", "tuned", "role"),
    "verdicts": ("question", "word", "why", "numbers", "figure"),
    "claims": ("title", "paper", "says", "here", "word", "difference"),
}
"""What the page reads of the records in a list, the name first."""

_OPTION = re.compile(r"(--(?:out|config|direction|prompts|task|figures)[ =])\S+")
_STEP = r"[^\s/\\\"'`<>,;:()\[\]]+"
_PATH = re.compile(rf"(?<![\w<./])(?:(?:~|\.{{1,2}})?(?:/{_STEP}){{2,}}|[A-Za-z]:(?:\\{_STEP})+)")
"""Whatever looks like a path of two steps or more: a fraction such as 3/4 does not, nor does a tag."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A run.

    Attributes:
        path: Its directory.
        record: Its `experiment.json`.
        base: What is the base of the pair in question called.
        tuned: Likewise.
        trials: By step, what it found.
        pairs: By name, every measured pair; the one in question first.
        values: By file, `verdicts`, `stages`, `atlas` and `refusal`, where there are such.
        absent: By step, pair or file, why it is not there.
        linked: Whether the page of pairs stands beside this one and may be named.
    """

    path: Path
    record: dict[str, Any]
    base: str
    tuned: str
    trials: dict[str, Trial]
    pairs: dict[str, View]
    values: dict[str, Any]
    absent: dict[str, str]
    linked: bool

    def why(self, step: str) -> str:
        """Why a step is not there; of `pairs`, why the first missing pair is not."""
        named = next((name for name in self.absent if name in (step, f"{step}/{name.partition('/')[2]}")), step)
        return self.absent.get(named, "this run did not include it")


def is_run(path: Path) -> bool:
    """Whether a directory holds a whole run rather than one experiment."""
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("kind") == KIND


def read_whole(path: Path, anonymise: bool = False) -> Whole:
    """Reads a run, also one that is unfinished or lacks steps.

    Args:
        path: Its directory.
        anonymise: Whether models are called base and tuned in every text, and paths are left out.

    Raises:
        BadInput: No run lies there, or its record is damaged.
    """
    if not is_run(path):
        raise BadInput(f"{path} is not what `deltalens run` writes", "deltalens run BASE TUNED --out EXP")
    record = _loaded((path / RECORD).read_text(encoding="utf-8"))
    models = record.get("models")
    named = [str(one.get("source")) for one in models if isinstance(one, dict)] if isinstance(models, list) else []
    if len(named) < 2 or not isinstance(record.get("settings"), dict):
        raise BadInput(f"{path} has a damaged record", "repeat the command with --out NEW")
    absent = {one["name"]: one.get("error") or "it was left out" for one in skipped(record)}
    absent |= {one["step"]: one.get("error") or "it failed" for one in listed(record, "missing")}
    pairs = _pairs(path, _main(record), absent)
    trials, values = _trials(path, absent), _values(path, absent)
    hide = _hider(path, record, named, values) if anonymise else str
    return Whole(
        path=path,
        record=_mapped(record, hide),
        base=hide(named[0]),
        tuned=hide(named[1]),
        trials={step: _hidden(trial, hide) for step, trial in trials.items()},
        pairs={hide(name): replace(view, label=hide(name)) for name, view in pairs.items()},
        values=_mapped(values, hide),
        absent=_mapped(absent, hide),
        linked=not anonymise and (path / PAGE_OF_PAIRS).is_file(),
    )


def listed(record: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of records in a record, of those that have a name; a field that one lacks is null."""
    found, fields = record.get(key), _FIELDS[key]
    rows = [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
    return [dict.fromkeys(fields) | one for one in rows if isinstance(one.get(fields[0]), str)]


def skipped(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps that the run was not asked for, or could not ask of its pairs."""
    return [one for one in listed(record, "steps") if one.get("status") == "skipped"]


def _trials(path: Path, absent: dict[str, str]) -> dict[str, Trial]:
    found = {}
    for folder in sorted(one for one in (path / "steps").glob("*") if (one / RECORD).is_file()):
        try:
            (found[printable(folder.name)],) = read_trials([Experiment.open(folder)])
        except DeltalensError as problem:
            absent.setdefault(printable(folder.name), _without(folder, problem))
    return found


def configured(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The pairs that were asked for: name, base, tuned and role of each."""
    config = record.get("config")
    return listed(config, "pairs") if isinstance(config, dict) else []


def _main(record: dict[str, Any]) -> str:
    return next((str(pair["name"]) for pair in configured(record) if pair.get("role") == "main"), "main")


def _pairs(path: Path, main: str, absent: dict[str, str]) -> dict[str, View]:
    found = {}
    for folder in sorted((path / "pairs").glob("*"), key=lambda one: (one.name != main, one.name)):
        try:
            (found[printable(folder.name)],) = read_views([Run.open(folder)])
        except DeltalensError as problem:
            absent.setdefault(f"pairs/{printable(folder.name)}", _without(folder, problem))
    return found


def _without(folder: Path, problem: DeltalensError) -> str:
    """Why a directory cannot be read, in words that do not depend on where it lies."""
    return printable(problem.error.replace(str(folder), folder.name))


def _values(path: Path, absent: dict[str, str]) -> dict[str, Any]:
    found = {}
    for name in _VALUES:
        file = path / f"{name}.json"
        if file.is_file():
            try:
                found[name] = _loaded(file.read_text(encoding="utf-8"))
            except (OSError, ValueError, RecursionError) as problem:
                absent.setdefault(name, printable(f"{file.name} cannot be read: {problem}"))
    return found


def _loaded(text: str) -> Any:
    """JSON whose texts are safe to look at and whose numbers are finite."""
    return _mapped(json.loads(text, parse_float=_finite, parse_constant=lambda _: None), printable)


def _finite(text: str) -> float | None:
    return value if math.isfinite(value := float(text)) else None


def _mapped(value: Any, text: Callable[[str], str]) -> Any:
    """Plain values with every text in them changed, keys too."""
    if isinstance(value, dict):
        return {_mapped(key, text): _mapped(one, text) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(one, text) for one in value]
    return text(value) if isinstance(value, str) else value


def _hidden(trial: Trial, hide: Callable[[str], str]) -> Trial:
    tables = ("record", "models", "arms", "summary", "results", "tokens")
    return replace(trial, label=hide(trial.label), **{name: _mapped(getattr(trial, name), hide) for name in tables})


def _hider(path: Path, record: dict[str, Any], sources: list[str], values: dict[str, Any]) -> Callable[[str], str]:
    """What a text says once models are called by their part in the run, and no path is left."""
    names = dict(zip(sources, ("base", "tuned"), strict=False))
    for pair in configured(record):
        for side in ("base", "tuned"):
            names.setdefault(str(pair.get(side)), f"{side} of {pair.get('name')}")
    stages = values.get("stages")
    others = stages.get("sources") if isinstance(stages, dict) else []
    for i, source in enumerate([*sources, *(others if isinstance(others, list) else [])]):
        names.setdefault(str(source), f"model {i + 1}")
    names = {name.partition("@")[0]: told for name, told in names.items()} | names
    names |= {str(Path(name).resolve()): told for name, told in names.items() if Path(name).exists()}
    names |= {printable(str(place)): "EXP" for place in (path, path.resolve())}
    whole = re.compile("|".join(rf"(?<![\w-]){re.escape(n)}(?![\w-])" for n in sorted(names, key=len, reverse=True)))

    def hide(text: str) -> str:
        return _PATH.sub("PATH", _OPTION.sub(r"\1PATH", whole.sub(lambda found: names[found[0]], text)))

    return hide
