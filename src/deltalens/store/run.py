"""RUN, the stored result for one pair: opened lazily, read as Arrow tables and numpy arrays."""

import hashlib
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
from deltalens.store.schema import DEADZONE, HEADS, LEDGER, MATRICES, NULLS, SCHEMA, SPECTRA

REBUILD = "repeat the measure command; it rebuilds the tables from their parts"


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
        damaged = damaged_tables(path, record, hashed=False)
        if damaged:
            raise BadInput(f"{path} lacks {damaged[0]}, or it is not what was stored", REBUILD)
        return cls(path, record)

    @property
    def matrices(self) -> pa.Table:
        """One row per 2-D matrix, in the order layer, kind, expert."""
        return _table(self.path / "matrices.parquet", MATRICES)

    @property
    def ledger(self) -> pa.Table:
        """One row per tensor of either side, with its share of the squared delta norm."""
        return _table(self.path / "ledger.parquet", LEDGER)

    @property
    def deadzone(self) -> pa.Table | None:
        """One row per matrix and step of the storage grid, empty where both sides share none of 16 bits.

        None for a RUN of an earlier version, which stored no curve.
        """
        return self._optional("deadzone.parquet", DEADZONE)

    @property
    def nulls(self) -> pa.Table | None:
        """One row per matrix, statistic and null; None where no null ensemble ran."""
        return self._optional("nulls.parquet", NULLS)

    @property
    def heads(self) -> pa.Table | None:
        """One row per attention head and slice; None where none were measured."""
        return self._optional("heads.parquet", HEADS)

    def _optional(self, name: str, schema: pa.Schema) -> pa.Table | None:
        return _table(self.path / name, schema) if (self.path / name).is_file() else None

    def spectrum(self, name: str) -> Float[np.ndarray, " q"]:
        """All singular values of the delta called `name`, descending, float64.

        Raises:
            BadInput: No matrix of that name was measured.
        """
        table = _table(self.path / "spectra.parquet", SPECTRA)
        index = pc.index(table["name"], str(name)).as_py()
        if index < 0:
            raise BadInput(f"no matrix called {name} in {self.path}", _nearest(str(name), table["name"].to_pylist()))
        return np.asarray(table["sigma"][index].values, dtype=np.float64)

    def directions(self, name: str) -> Directions:
        """The kept singular vectors of the delta called `name`; signs are arbitrary but fixed.

        The largest |entry| of each left vector is positive and the right one follows. A zero delta has none.

        Raises:
            BadInput: No vectors are stored under that name.
        """
        from safetensors import SafetensorError, safe_open

        path = self.path / "directions.safetensors"
        try:
            with safe_open(path, framework="np") as file:
                stored = list(file.keys())
                if f"{name}.sigma" in stored:
                    return Directions(*(file.get_tensor(f"{name}.{part}") for part in ("left", "sigma", "right")))
        except (OSError, SafetensorError) as problem:
            raise BadInput(f"{path} cannot be read: {problem}", REBUILD) from problem
        names = sorted({key.rpartition(".")[0] for key in stored})
        raise BadInput(f"no directions of {name} in {self.path}", _nearest(str(name), names))


def digests(path: Path, names: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of the tables of a RUN that exist, for its record."""
    return {
        name: {"size": (path / name).stat().st_size, "sha256": _sha256(path / name)}
        for name in names
        if (path / name).is_file()
    }


def damaged_tables(path: Path, record: dict[str, Any], hashed: bool) -> list[str]:
    """The tables of a finished RUN that are missing or not as they were stored.

    Args:
        path: The RUN.
        record: Its record.
        hashed: Compare contents too, not only sizes.
    """
    found = []
    for name, stored in record["tables"].items():
        file = path / name
        if (
            not file.is_file()
            or file.stat().st_size != stored["size"]
            or (hashed and _sha256(file) != stored["sha256"])
        ):
            found.append(name)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as problem:
        raise BadInput(f"{file} cannot be read: {problem}", "measure again with --out NEW") from problem
    if not isinstance(record, dict) or "schema" not in record:
        raise BadInput(f"{file} is not the record of a RUN", "measure again with --out NEW")
    if record["schema"] != SCHEMA:
        raise Refused(
            f"{path} has schema {record['schema']}, this deltalens reads {SCHEMA}",
            "measure again with --out NEW",
        )
    wrong = _wrong(record)
    if wrong:
        raise BadInput(f"{file} is damaged ({wrong})", "measure again with --out NEW")
    return record


def _wrong(record: dict[str, Any]) -> str | None:
    """The first thing that a record lacks, None for one that every reader can use."""
    finished = record.get("status") == "complete"
    if record.get("status") not in ("running", "complete"):
        return f"status {record.get('status')!r}"
    kinds: dict[str, type | tuple[type, ...]] = {
        **{"numerics_version": int, "deltalens": str, "settings": dict, "environment": dict, "warnings": list},
        **{"layout": str, "passes": dict, "parentage": dict, "command": (str, type(None))},
        **({"totals": dict, "tables": dict, "peak_rss_bytes": int} if finished else {}),
    }
    for key, kind in kinds.items():
        if not isinstance(record.get(key), kind):
            return f"no valid {key}"
    for side in ("base", "tuned"):
        found = record.get("pair", {}).get(side) if isinstance(record.get("pair"), dict) else None
        identity = found.get("identity") if isinstance(found, dict) else None
        if not isinstance(found, dict) or not isinstance(found.get("source"), str) or not isinstance(identity, dict):
            return f"no valid pair.{side}"
        files = identity.get("files", [])
        if (
            not ("commit" in identity or files)
            or not isinstance(files, list)
            or not all(isinstance(f, dict) for f in files)
        ):
            return f"no valid pair.{side}.identity"
    if not all(isinstance(w, str) for w in record["warnings"]):
        return "warnings that are no text"
    if finished:
        numbers = (
            "tensors",
            "matrices",
            "compared",
            "refused",
            "elements",
            "norm_delta",
            "norm_base",
            "share_measured",
            "seconds",
        )
        if not all(isinstance(record["totals"].get(key), int | float) for key in numbers):
            return "no valid totals"
        if not all(isinstance(t, dict) and {"size", "sha256"} <= set(t) for t in record["tables"].values()):
            return "no valid tables"
    return None


@lru_cache(maxsize=32)
def _read(path: Path, stamp: tuple[int, int]) -> pa.Table:
    return pq.read_table(path)


def _table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        stat = path.stat()
        table = _read(path, (stat.st_mtime_ns, stat.st_size))  # the stamp makes a rewritten file a new entry
    except (OSError, pa.ArrowInvalid) as problem:
        raise BadInput(f"{path} cannot be read: {problem}", REBUILD) from problem
    if not table.schema.equals(schema):
        wrong = [field.name for field in schema if field not in list(table.schema)] or ["their order"]
        raise BadInput(f"{path} has other columns than this version reads ({wrong[0]})", "measure again with --out NEW")
    return table


def _nearest(name: str, names: list[str]) -> str:
    from difflib import get_close_matches

    close = get_close_matches(name, names, 1, 0) or ["none"]
    return f"the nearest name is {close[0]}"
