"""RUN, the stored result for one pair: opened lazily, read as Arrow tables and numpy arrays."""

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Float

from deltalens.errors import BadInput, Refused
from deltalens.store.schema import LEDGER, MATRICES, SCHEMA, SPECTRA


@dataclass(frozen=True, slots=True)
class Directions:
    """The top singular vectors of one delta.

    Attributes:
        left: Output-side vectors as rows, [k, rows].
        sigma: Their singular values, descending, [k].
        right: Input-side vectors as rows, [k, cols].
    """

    left: Float[np.ndarray, "k rows"]
    sigma: Float[np.ndarray, " k"]
    right: Float[np.ndarray, "k cols"]


@dataclass(frozen=True, slots=True)
class Run:
    """A finished measurement of one pair.

    Attributes:
        path: Its directory.
        record: `run.json`: pair identity, settings, totals, environment.
    """

    path: Path
    record: dict[str, Any]

    @classmethod
    def open(cls, path: str | Path) -> "Run":
        """Open a finished RUN.

        Raises:
            BadInput: No RUN lies there, or one of its files is missing or damaged.
            Refused: It is unfinished, or of a schema that this version does not read.
        """
        path = Path(path)
        record = read_record(path)
        if record is None:
            raise BadInput(f"{path} is not a RUN (it has no run.json)", "deltalens measure BASE TUNED --out RUN")
        if record.get("status") != "complete":
            raise Refused(f"{path} is unfinished", "repeat the measure command that began it; it resumes")
        for name in ("matrices.parquet", "ledger.parquet", "spectra.parquet", "directions.safetensors"):
            if not (path / name).is_file():
                raise BadInput(f"{path} has no {name}", "repeat the measure command; it rebuilds the tables")
        return cls(path, record)

    @property
    def matrices(self) -> pa.Table:
        """One row per 2-D matrix, in the order layer, kind, expert."""
        return _table(self.path / "matrices.parquet", MATRICES)

    @property
    def ledger(self) -> pa.Table:
        """One row per tensor of either side, with its share of the squared delta norm."""
        return _table(self.path / "ledger.parquet", LEDGER)

    def spectrum(self, name: str) -> Float[np.ndarray, " q"]:
        """All singular values of the delta called `name`, descending, float64.

        Raises:
            BadInput: No matrix of that name was measured.
        """
        table = _table(self.path / "spectra.parquet", SPECTRA)
        index = pc.index(table["name"], name).as_py()
        if index < 0:
            raise BadInput(f"no matrix called {name} in {self.path}", _nearest(name, table["name"].to_pylist()))
        return np.asarray(table["sigma"][index].values, dtype=np.float64)

    def directions(self, name: str) -> Directions:
        """The kept singular vectors of the delta called `name`; signs are arbitrary but fixed.

        The largest |entry| of each left vector is positive and the right one follows. A zero delta has none.

        Raises:
            BadInput: No vectors are stored under that name.
        """
        from safetensors import safe_open

        with safe_open(self.path / "directions.safetensors", framework="np") as file:
            stored = list(file.keys())
            if f"{name}.sigma" not in stored:
                names = sorted({key.rpartition(".")[0] for key in stored})
                raise BadInput(f"no directions of {name} in {self.path}", _nearest(name, names))
            return Directions(*(file.get_tensor(f"{name}.{part}") for part in ("left", "sigma", "right")))


def read_record(path: Path) -> dict[str, Any] | None:
    """`run.json` of a RUN directory, None where there is none.

    Raises:
        BadInput: It is not readable JSON of the right form.
        Refused: It was written by another schema.
    """
    file = path / "run.json"
    if not file.is_file():
        return None
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as problem:
        raise BadInput(f"{file} cannot be read: {problem}", "measure again with --out NEW") from problem
    if not isinstance(record, dict) or "schema" not in record:
        raise BadInput(f"{file} is not the record of a RUN", "measure again with --out NEW")
    if record["schema"] != SCHEMA:
        raise Refused(
            f"{path} has schema {record['schema']}, this deltalens reads {SCHEMA}",
            "measure again with --out NEW",
        )
    return record


@lru_cache(maxsize=32)
def _read(path: Path, stamp: tuple[int, int]) -> pa.Table:
    return pq.read_table(path)


def _table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        stat = path.stat()
        table = _read(path, (stat.st_mtime_ns, stat.st_size))  # the stamp makes a rewritten file a new entry
    except (OSError, pa.ArrowInvalid) as problem:
        raise BadInput(f"{path} cannot be read: {problem}", "repeat the measure command") from problem
    missing = [field for field in schema.names if field not in table.column_names]
    if missing:
        raise BadInput(f"{path} lacks the column {missing[0]}", "measure again with --out NEW")
    return table


def _nearest(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, names, 1, 0) or ["none"]
    return f"the nearest name is {close[0]}"
