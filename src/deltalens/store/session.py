"""One directory, one writer, one pair: the lock, and what must agree before a RUN is resumed."""

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deltalens.checkpoint.atomic import TEMPORARY
from deltalens.errors import BadInput, Refused

LOCK = ".deltalens.lock"


@contextmanager
def writing(out: Path, record: str = "run.json") -> Generator[None, None, None]:
    """Make a result directory and hold its lock; nothing else that lies there is touched.

    Args:
        out: The directory.
        record: The file without which whatever lies there is not ours.

    Raises:
        BadInput: The directory cannot be made or written.
        Refused: It holds something else, or another process is writing it.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        foreign = sorted(path.name for path in out.iterdir() if not path.name.startswith((LOCK, TEMPORARY)))
        if foreign and not (out / record).is_file():
            raise Refused(f"{out} is not empty and holds no {record} ({foreign[0]})", "--out NEW")
        # Never truncated, followed or removed: a removed lock file can be held twice.
        lock = os.open(out / LOCK, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
    except OSError as problem:
        raise BadInput(f"{out} cannot be written: {problem.strerror}", "--out a directory you may write") from problem
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as problem:
        raise Refused(f"another process is writing {out}", "wait for it, or --out NEW") from problem
    finally:
        os.close(lock)


def discard(out: Path) -> None:
    """Remove a RUN that came to nothing: everything in its directory is ours."""
    shutil.rmtree(out)


def essence(sides: dict[str, Any]) -> dict[str, Any]:
    """Identities without what only --verify adds, so that a verified and a plain run are the same pair."""
    return {side: _plain(found) for side, found in sides.items()}


def check_same_run(earlier: dict[str, Any], record: dict[str, Any], out: Path) -> None:
    """Refuse to mix two pairs or two settings in one RUN.

    Args:
        earlier: The record that lies there, as `run.read_record` validated it.
        record: The one about to be written.
        out: For the message.
    """
    old = {side: earlier["pair"][side]["identity"] for side in ("base", "tuned")}
    new = {side: record["pair"][side]["identity"] for side in ("base", "tuned")}
    hashes = [(_hashes(old[side]), _hashes(new[side])) for side in ("base", "tuned")]
    if essence(old) != essence(new) or any(a != b for a, b in hashes if a and b):
        raise Refused(f"{out} holds a measurement of another pair", "--out NEW")
    if any(b and not a for a, b in hashes):
        raise Refused(f"{out} was measured without --verify: what was read then cannot be hashed now", "--out NEW")
    settings = earlier["settings"]
    changed = [key for key, value in record["settings"].items() if settings.get(key) != value]
    if changed:
        raise Refused(
            f"{out} was measured with {', '.join(f'{key} = {settings.get(key)}' for key in changed)}, "
            f"not {', '.join(str(record['settings'][key]) for key in changed)}",
            "--out NEW",
        )


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    if "commit" in found:
        return {"commit": found["commit"]}
    return {"files": [{key: value for key, value in f.items() if key != "sha256"} for f in found["files"]]}


def _hashes(found: dict[str, Any]) -> list[str]:
    return [file["sha256"] for file in found.get("files", []) if "sha256" in file]
