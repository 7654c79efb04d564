"""Parts: one atomic file per finished task, so that a killed run loses at most the task under way."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deltalens.checkpoint.atomic import atomic
from deltalens.errors import BadInput


@dataclass(frozen=True, slots=True)
class Part:
    """What one task leaves behind.

    Attributes:
        row: Plain values (JSON), the task's line in the tables.
        arrays: Named arrays, empty for a task that has none.
    """

    row: dict[str, Any]
    arrays: dict[str, np.ndarray]


def part_key(*identity: Any) -> str:
    """A file name for a task, from everything that its numbers depend on."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


def write_part(directory: Path, key: str, part: Part) -> None:
    """Store `part` under `key`; it is there whole or not at all."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    arrays = {name: np.ascontiguousarray(array) for name, array in part.arrays.items()}
    with atomic(directory / f"{key}.safetensors") as temporary:
        try:
            save_file(arrays, temporary, metadata={"row": json.dumps(part.row, allow_nan=False)})
        except SafetensorError as problem:  # how the library reports a full disk
            raise OSError(str(problem)) from problem


def read_part(directory: Path, key: str) -> Part | None:
    """The part stored under `key`, None where there is none or the disk has damaged it (it is then redone)."""
    from safetensors import SafetensorError, safe_open

    path = directory / f"{key}.safetensors"
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="np") as file:
            row = json.loads(file.metadata()["row"])
            names = file.keys()  # a method of the file, not of a dict
            return Part(row, {name: file.get_tensor(name) for name in names}) if isinstance(row, dict) and row else None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError):
        return None


def finished_part(directory: Path, key: str) -> Part:
    """The part of a task that has run.

    Raises:
        BadInput: Somebody has removed or damaged it since.
    """
    part = read_part(directory, key)
    if part is None:
        raise BadInput(f"a finished part vanished from {directory}", "repeat the command")
    return part
