"""The embedded members by name: where they lie, their parents and sizes. Loads no torch."""

from dataclasses import dataclass
from pathlib import Path

from deltalens.checkpoint.header import read_header
from deltalens.checkpoint.source import family_root, resolve

MODELS = family_root()


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


def directory(name: str) -> Path:
    """The model directory of a member.

    Raises:
        BadInput: No such member; the fix names the nearest.
    """
    return resolve(f"family:{name}")


def size(path: Path) -> tuple[int, int]:
    """Parameters and bytes of a model directory's `model.safetensors`, read from its header."""
    file = path / "model.safetensors"
    return sum(info.elements for info in read_header(file).values()), file.stat().st_size
