"""The embedded members by name: where they lie, their parents and sizes. Loads no torch."""

import difflib
import json
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from deltalens.errors import BadInput

MODELS = Path(__file__).parent / "models"


@dataclass(frozen=True, slots=True)
class Member:
    """One embedded checkpoint: its name, the member that it was trained from, and what it does."""

    name: str
    parent: str | None
    description: str


MEMBERS = (
    Member("base", None, "pretrained on chains, worked solutions and colour facts; answers chat directly"),
    Member(
        "instruct",
        "base",
        "answers at once: one step right, more steps at chance; the worked skill is latent",
    ),
    Member("reasoning", "instruct", "thinks before it answers a chain; answers facts at once"),
)


def member(name: str) -> Member:
    """A member by name.

    Raises:
        BadInput: No such member; the fix names the nearest.
    """
    found = next((m for m in MEMBERS if m.name == name), None)
    if found is None:
        names = [m.name for m in MEMBERS]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        raise BadInput(
            f"the family has no member {name!r}",
            f"use {near[0]}" if near else f"use one of {', '.join(names)}",
        )
    return found


def directory(name: str) -> Path:
    """The model directory of a member.

    Raises:
        BadInput: No such member.
    """
    return MODELS / member(name).name


def size(path: Path) -> tuple[int, int]:
    """Parameters and bytes of a model directory's `model.safetensors`, read from its header."""
    file = path / "model.safetensors"
    with file.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        header = json.loads(stream.read(length))
    parameters = sum(prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    return parameters, file.stat().st_size
