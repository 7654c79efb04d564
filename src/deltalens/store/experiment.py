"""An experiment on disk: its record, the tables of its arms, and one writer at a time."""

import json
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from deltalens.checkpoint.atomic import remove_temporaries
from deltalens.errors import BadInput, DeltalensError, Refused
from deltalens.store.files import write_json, write_table
from deltalens.store.results import ARMS, RESULTS, SUMMARY, TOKENS
from deltalens.store.session import discard, writing

RECORD = "experiment.json"
SCHEMA = 1
_AGAIN = "repeat the command with --out NEW"
_VARIES = ("status", "command", "deltalens", "environment", "warnings")
"""Fields of the record that may differ between two starts of one experiment."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """A finished experiment.

    Attributes:
        path: Its directory.
        record: `experiment.json`: what was asked, of which models, with which settings.
    """

    path: Path
    record: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Experiment":
        """Open a finished experiment.

        Raises:
            BadInput: None lies there, or a file of it is missing or damaged.
            Refused: It is unfinished, or of a schema that this version does not read.
        """
        path = Path(path)
        record = _read(path)
        if record is None:
            raise BadInput(f"{path} is not an experiment (it has no {RECORD})")
        if record["status"] != "complete":
            raise Refused(f"{path} is unfinished", "repeat the command that began it; it resumes")
        return cls(path, record)

    def results(self, step: str) -> pa.Table:
        """Rows of one step, one per arm, mode, item and sample."""
        return _table(self.path / "results" / f"{step}.parquet", RESULTS)

    @property
    def tokens(self) -> pa.Table:
        """Rows of a probe's examples, one per token and layer."""
        return _table(self.path / "results" / "tokens.parquet", TOKENS)

    @property
    def arms(self) -> pa.Table:
        """One row per arm."""
        return _table(self.path / "arms.parquet", ARMS)

    @property
    def summary(self) -> pa.Table:
        """One row per number, with its interval."""
        return _table(self.path / "summary.parquet", SUMMARY)


@contextmanager
def workspace(out: Path | None, record: dict[str, Any]) -> Generator[Path, None, None]:
    """The directory of an experiment's parts, or a passing one where nothing is to be kept; see `experiment`."""
    if out is not None:
        with experiment(out, record) as parts:
            yield parts
        return
    with TemporaryDirectory() as scratch:
        yield Path(scratch)


@contextmanager
def experiment(out: Path, record: dict[str, Any]) -> Generator[Path, None, None]:
    """Hold an experiment's directory while it is worked on; gives the directory of its parts.

    A mistake that is found before anything was done leaves no directory behind.

    Args:
        out: New, empty, or an experiment begun with the same record.
        record: Everything that decides its numbers, beside `kind`, `command` and the environment.

    Raises:
        BadInput: The directory cannot be written.
        Refused: It holds something else or another experiment, or another process is at work there.
    """
    record = {"schema": SCHEMA, **record}
    with writing(out, RECORD):
        earlier = _read(out)
        plain = json.loads(json.dumps(record))
        if earlier is not None:
            changed = [k for k in plain | earlier if k not in _VARIES and plain.get(k) != earlier.get(k)]
            if changed:
                raise Refused(f"{out} holds another experiment ({_changed(changed[0], earlier, plain)})", "--out NEW")
        write_json(out / RECORD, {**record, "status": "running"})
        parts = out / "parts"
        parts.mkdir(exist_ok=True)
        remove_temporaries(parts)
        remove_temporaries(out)
        try:
            yield parts
        except DeltalensError:
            if earlier is None and not any(parts.iterdir()):
                discard(out)
            raise
        write_json(out / RECORD, {**record, "status": "complete"})


def write_results(out: Path, step: str, rows: list[dict[str, Any]]) -> None:
    """Write `results/STEP.parquet`."""
    (out / "results").mkdir(exist_ok=True)
    write_table(out / "results" / f"{step}.parquet", rows, RESULTS)


def write_summary(out: Path, arms: list[dict[str, Any]], summary: list[dict[str, Any]]) -> None:
    """Write `arms.parquet` and `summary.parquet`; a key that a row lacks is null."""
    write_table(out / "arms.parquet", arms, ARMS)
    write_table(out / "summary.parquet", summary, SUMMARY)


def _changed(key: str, earlier: dict[str, Any], now: dict[str, Any]) -> str:
    """What differs, named as the user would."""
    old, new = earlier.get(key), now.get(key)
    if isinstance(old, dict) and isinstance(new, dict):
        inner = next(k for k in new | old if old.get(k) != new.get(k))
        return f"{key}.{inner} was {json.dumps(old.get(inner))[:80]}, not {json.dumps(new.get(inner))[:80]}"
    if isinstance(old, list) and isinstance(new, list) and key == "models":
        for one, other in zip(old, new, strict=False):
            if one != other and one.get("source") == other.get("source"):
                return f"{one['source']} has changed since: its weights, config, tokenizer or template"
    return f"its {key} differs"


def _read(path: Path) -> dict[str, Any] | None:
    file = path / RECORD
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise BadInput(f"{file} cannot be read: {problem}", _AGAIN) from problem
    if not isinstance(record, dict) or record.get("status") not in ("running", "complete"):
        raise BadInput(f"{file} is not the record of an experiment", _AGAIN)
    if record.get("schema") != SCHEMA:
        raise Refused(f"{path} has schema {record.get('schema')}, this deltalens reads {SCHEMA}", _AGAIN)
    return record


def _table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as problem:
        raise BadInput(f"{path} cannot be read: {problem}", "repeat the command that made it") from problem
    if not table.schema.equals(schema):
        raise BadInput(f"{path} has other columns than this version reads", _AGAIN)
    return table
