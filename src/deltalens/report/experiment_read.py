"""One experiment, read for the page: safe texts, finite numbers. Nothing that a model wrote or is called is trusted."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deltalens.checkpoint.chat import TAGS
from deltalens.errors import BadInput, printable
from deltalens.report.words import NOTHING, Row
from deltalens.store.experiment import Experiment
from deltalens.store.results import TOKENS

KINDS = ("eval", "probe", "steer", "sweep")

LONGEST = 4000
"""Characters of one completion on the page; the tables hold the rest."""

_OPENERS = tuple(opener for opener, _ in TAGS)
_TAG = re.compile("|".join(re.escape(tag) for pair in TAGS for tag in pair))


@dataclass(frozen=True, slots=True)
class Trial:
    """One experiment.

    Attributes:
        place: Its position on the page, in the ids of its sections.
        label: Short name, distinct on the page.
        kind: One of `KINDS`.
        record: `experiment.json`.
        models: What was run, the first or reference first.
        arms: Rows of arms.parquet.
        summary: Rows of summary.parquet.
        results: Rows of results, empty where there are none.
        tokens: Rows of tokens.parquet, empty where there is none.
    """

    place: int
    label: str
    kind: str
    record: dict[str, Any]
    models: list[str]
    arms: list[Row]
    summary: list[Row]
    results: list[Row]
    tokens: list[Row]

    def anchor(self, part: str) -> str:
        """The id of one of its sections."""
        return f"e{self.place}-{part}"

    def numbers(self, metric: str, reference: bool = False, group: str = "") -> list[Row]:
        """Rows of the summary with this metric: values, or with `reference` differences."""
        return [
            row
            for row in self.summary
            if row["metric"] == metric and bool(row["reference"]) == reference and (row["group"] or "") == group
        ]


def read_trials(experiments: Sequence[Experiment]) -> list[Trial]:
    """Reads every experiment.

    Raises:
        BadInput: A record or a table is damaged, or of a kind that has no page.
    """
    names = [one.path.resolve().name for one in experiments]
    return [_read(i, name if names.count(name) == 1 else f"{name} ({i + 1})", one)
            for i, (name, one) in enumerate(zip(names, experiments, strict=True))]  # fmt: skip


def _read(place: int, label: str, experiment: Experiment) -> Trial:
    record = experiment.record
    kind = record.get("kind")
    if kind not in KINDS:
        raise BadInput(
            f"{experiment.path} is an experiment of kind {kind!r}, which has no page", "deltalens report EXP"
        )
    models = record.get("models")
    named = [one.get("source") for one in models if isinstance(one, dict)] if isinstance(models, list) else []
    if not named or not isinstance(record.get("settings"), dict):
        raise BadInput(f"{experiment.path} has a damaged record", "repeat the command with --out NEW")
    results = experiment.path / "results"
    step = Path(str(record.get("recipe"))).name if kind == "sweep" else kind  # a name: a record leads nowhere else
    return Trial(
        place,
        printable(label),
        kind,
        record,
        [printable(name) for name in named],
        _rows(experiment.arms),
        _rows(experiment.summary),
        _rows(experiment.results(step)) if (results / f"{step}.parquet").is_file() else [],
        _rows(_tokens(results / "tokens.parquet")),
    )


def _tokens(path: Path) -> pa.Table:
    if not path.is_file():
        return TOKENS.empty_table()
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as problem:
        raise BadInput(f"{path} cannot be read: {problem}", "repeat the command that made it") from problem
    if not table.schema.equals(TOKENS):
        raise BadInput(f"{path} has other columns than this version reads", "repeat the command with --out NEW")
    return table


def _rows(table: pa.Table) -> list[Row]:
    return [{key: _safe(key, value) for key, value in row.items()} for row in table.to_pylist()]


def _safe(key: str, value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value if key == "text" else printable(value)  # texts are made safe where they are shown
    return value


def shown(text: str) -> str:
    """`text` with every invisible character but the line break as an escape."""
    return "\n".join(map(printable, text.split("\n")))


def segments(text: str, forced: bool = False) -> list[tuple[bool, str]]:
    """A completion cut where think blocks begin and end: whether inside, and the text with its tags, none of it lost.

    Args:
        text: The completion.
        forced: Whether the prompt itself ends with the opening tag.
    """
    more = len(text) - LONGEST
    if more > 0:
        text = f"{text[: LONGEST // 2]}\n[… {more} characters …]\n{text[-LONGEST // 2 :]}"
    return [(inside, part) for inside, part in _cut(shown(text), forced) if part.strip()]


def _cut(text: str, inside: bool) -> Iterator[tuple[bool, str]]:
    start = 0
    for tag in _TAG.finditer(text):
        if (tag[0] in _OPENERS) == inside:
            continue  # a tag repeated inside a block belongs to it, a closing one outside closes nothing
        end = tag.end() if inside else tag.start()
        yield inside, text[start:end]
        start, inside = end, not inside
    yield inside, text[start:]


def settings(trial: Trial) -> list[tuple[str, str]]:
    """Every line of the reproducibility block but the identities and the directions."""
    left_out = ("schema", "kind", "status", "models", "directions", "settings", "template")
    record = trial.record
    lines = [("command", record.get("command")), ("template hash", record.get("template"))]
    lines += [(str(key), value) for key, value in record["settings"].items()]
    lines += [(str(key), value) for key, value in record.items() if key not in (*left_out, "command")]
    return [(printable(key.replace("_", " ")), plain(value)) for key, value in lines]


def plain(value: object) -> str:
    """A value of a record in words."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(map(plain, value)) or NOTHING
    if isinstance(value, dict):
        return "; ".join(f"{printable(key)} {plain(one)}" for key, one in value.items()) or NOTHING
    return printable(value)
