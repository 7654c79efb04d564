"""Atomic files: a reader sees the old content or the new, never a part."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from deltalens.errors import BadInput

TEMPORARY = ".tmp-"
"""Prefix of files under way; what a killed run left of them is removed by the next."""


@contextmanager
def atomic(path: Path) -> Generator[Path, None, None]:
    """A temporary path beside `path` that replaces it when the block succeeds, synced to disk first.

    Args:
        path: The file to write; its directory must exist.

    Raises:
        BadInput: The system refused to write: no room, no right, no such directory.
    """
    try:
        handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=path.suffix, dir=path.parent)
    except OSError as problem:
        raise BadInput(f"cannot write {path}: {_reason(problem)}") from problem
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        mask = os.umask(0)  # mkstemp makes private files; a result is as readable as any other file
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        temporary.replace(path)
    except OSError as problem:
        raise BadInput(f"cannot write {path}: {_reason(problem)}", "make room or mend it, then repeat") from problem
    finally:
        temporary.unlink(missing_ok=True)


def _reason(problem: OSError) -> str:
    return (problem.strerror or str(problem)).lower()


def remove_temporaries(directory: Path) -> None:
    """Remove what a killed process left half-written in `directory`."""
    for path in directory.glob(TEMPORARY + "*"):
        path.unlink(missing_ok=True)
