"""`measure`: the delta pass over a pair, one idempotent task per tensor, ending in a RUN."""

import fcntl
import os
import platform
import resource
import shutil
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from threadpoolctl import threadpool_limits

from deltalens.checkpoint.atomic import remove_temporaries
from deltalens.checkpoint.identity import identity, mtimes
from deltalens.checkpoint.pair import Pair, Row
from deltalens.checkpoint.plan import cores, flops
from deltalens.errors import BadInput, Refused
from deltalens.spectrum.matrix import Settings, measure_matrix, norm_only
from deltalens.store.engine import Progress, Task, run_tasks
from deltalens.store.files import write_json
from deltalens.store.parts import Part, part_key, read_part
from deltalens.store.run import Run, read_record
from deltalens.store.schema import NUMERICS_VERSION, SCHEMA
from deltalens.store.tables import TABLES, write_tables


def measure_diff(
    pair: Pair,
    out: str | os.PathLike[str],
    *,
    top: int = 16,
    both_rounded: bool = False,
    threads: int | None = None,
    verify: bool = False,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
) -> Run:
    """Measure the delta of every tensor of a pair and store it as a RUN; resumes where an earlier start stopped.

    Args:
        pair: From `Pair.open`.
        out: The RUN directory: new, empty, or a RUN of the same pair and settings.
        top: Singular vectors kept per matrix.
        both_rounded: Count the rounding of both sides as noise (float32 masters exported twice).
        threads: BLAS threads; by default those of the RUN that is resumed, else all cores available.
        verify: Hash every byte of both sides into the identity.
        progress: Called after every task.
        command: The command line to record.

    Raises:
        BadInput: `top` or `threads` below 1, `out` not writable, or every tensor holds NaN or Inf.
        Refused: `out` holds something else, another pair or other settings, another process is writing it, or a
            side changed on disk while it was read.
    """
    if top < 1:
        raise BadInput(f"--top {top} keeps no vectors", "--top 1 or more")
    if threads is not None and threads < 1:
        raise BadInput(f"--threads {threads} is not a number of threads", "--threads 1 or more")
    out = Path(out)
    started = perf_counter()
    before = mtimes(pair.base), mtimes(pair.tuned)
    sides = {"base": identity(pair.base, verify), "tuned": identity(pair.tuned, verify)}
    with _writing(out) as created:
        earlier = read_record(out)
        settings = _settings(pair, top, both_rounded, threads, earlier, out)
        record = _record(pair, sides, settings, command)
        if earlier is not None:
            _same_run(earlier, record, out)
            finished = earlier["status"] == "complete" and earlier["numerics_version"] == NUMERICS_VERSION
            if finished and all((out / name).is_file() for name in TABLES):
                return Run.open(out)
        write_json(out / "run.json", record)
        parts = out / "parts"
        parts.mkdir(exist_ok=True)
        remove_temporaries(parts)
        remove_temporaries(out)
        tasks = [_task(row, settings, sides) for row in pair.rows]
        with threadpool_limits(limits=settings.threads):
            run_tasks(tasks, parts, progress)
        if (mtimes(pair.base), mtimes(pair.tuned)) != before:
            raise Refused("a checkpoint changed on disk while it was read", "measure again into a new --out")
        totals, warnings = write_tables(out, pair, _stored(parts, tasks))
        if totals["compared"] == 0:
            if created:
                shutil.rmtree(out)
            raise BadInput("every tensor that both sides hold contains NaN or Inf", "check how the sides were saved")
        record["warnings"] = [*pair.warnings, *warnings]
        record["totals"] = {**totals, "seconds": perf_counter() - started}
        record["peak_rss_bytes"] = _peak_rss()
        record["status"] = "complete"
        write_json(out / "run.json", record)
    return Run.open(out)


def _measure(row: Row, settings: Settings) -> Part:
    if row.status == "measured":
        return measure_matrix(row, settings)
    if row.status in ("vector", "unmeasured"):
        return norm_only(row, settings)
    return Part({"status": row.status, "reason": row.reason, "norm_delta_sq": None}, {})


def _task(row: Row, settings: Settings, sides: dict[str, Any]) -> Task:
    return Task(
        name=row.name.name,
        key=part_key(SCHEMA, NUMERICS_VERSION, _essence(sides), asdict(settings), row.name.name, row.status),
        bytes=sum(info.end - info.start for info in (row.base, row.tuned) if info),
        cost=flops(row),
        work=lambda: _measure(row, settings),
    )


def _stored(parts: Path, tasks: list[Task]) -> Callable[[int], Part]:
    def load(i: int) -> Part:
        part = read_part(parts, tasks[i].key)
        if part is None:
            raise BadInput(f"a finished part vanished from {parts}", "repeat the measure command")
        return part

    return load


def _settings(
    pair: Pair, top: int, both_rounded: bool, threads: int | None, earlier: dict[str, Any] | None, out: Path
) -> Settings:
    recorded = (earlier or {}).get("settings", {}).get("threads")
    if threads is None:
        threads = recorded if isinstance(recorded, int) else cores()
    return Settings(top=top, both_rounded=both_rounded, match=pair.match, threads=threads)


def _record(pair: Pair, sides: dict[str, Any], settings: Settings, command: str | None) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "numerics_version": NUMERICS_VERSION,
        "deltalens": version("deltalens"),
        "status": "running",
        "pair": {
            side: {
                "source": checkpoint.source,
                "path": str(checkpoint.path),
                "revision": checkpoint.revision,
                "identity": sides[side],
                "mtimes": mtimes(checkpoint),
            }
            for side, checkpoint in (("base", pair.base), ("tuned", pair.tuned))
        },
        "settings": asdict(settings),
        "warnings": list(pair.warnings),
        "totals": None,
        "environment": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "scipy", "safetensors")},
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
        },
        "peak_rss_bytes": None,
        "command": command,
    }


def _essence(sides: dict[str, Any]) -> dict[str, Any]:
    """Identities without what only --verify adds, so that a verified and a plain run are the same pair."""
    return {side: _plain(found) for side, found in sides.items()}


def _plain(found: dict[str, Any]) -> dict[str, Any]:
    if "commit" in found:
        return {"commit": found["commit"]}
    return {"files": [{key: value for key, value in f.items() if key != "sha256"} for f in found["files"]]}


def _hashes(found: dict[str, Any]) -> list[str]:
    return [file["sha256"] for file in found.get("files", []) if "sha256" in file]


def _same_run(earlier: dict[str, Any], record: dict[str, Any], out: Path) -> None:
    """Refuse to mix two pairs or two settings in one RUN."""
    try:
        old = {side: earlier["pair"][side]["identity"] for side in ("base", "tuned")}
        new = {side: record["pair"][side]["identity"] for side in ("base", "tuned")}
        settings = earlier["settings"]
        status = earlier["status"], earlier["numerics_version"]
    except (KeyError, TypeError) as problem:
        raise BadInput(f"{out / 'run.json'} is damaged (no {problem})", "--out NEW") from problem
    if status[0] not in ("running", "complete"):
        raise BadInput(f"{out / 'run.json'} is damaged (status {status[0]!r})", "--out NEW")
    hashes = [(_hashes(old[side]), _hashes(new[side])) for side in ("base", "tuned")]
    if _essence(old) != _essence(new) or any(a != b for a, b in hashes if a and b):
        raise Refused(f"{out} holds a measurement of another pair", "--out NEW")
    changed = [key for key, value in record["settings"].items() if settings.get(key) != value]
    if changed:
        raise Refused(
            f"{out} was measured with {', '.join(f'{key} = {settings.get(key)}' for key in changed)}, "
            f"not {', '.join(str(record['settings'][key]) for key in changed)}",
            "--out NEW",
        )


@contextmanager
def _writing(out: Path) -> Generator[bool, None, None]:
    """Make the RUN directory and hold its lock; yields whether it is new."""
    created = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = (out / ".lock").open("w")
    except OSError as problem:
        raise BadInput(f"{out} cannot be written: {problem.strerror}", "--out a directory you may write") from problem
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as problem:
            raise Refused(f"another process is measuring into {out}", "wait for it, or --out NEW") from problem
        foreign = sorted(path.name for path in out.iterdir() if path.name != ".lock")
        if foreign and not (out / "run.json").is_file():
            (out / ".lock").unlink()
            raise Refused(f"{out} is not empty and holds no RUN ({foreign[0]})", "--out NEW")
        try:
            yield created
        except OSError as problem:
            if problem.errno is None or problem.filename is None:
                raise
            raise BadInput(
                f"{problem.filename}: {problem.strerror}", "mend it and repeat: the run resumes"
            ) from problem
        finally:
            (out / ".lock").unlink(missing_ok=True)


def _peak_rss() -> int:
    """The most resident memory this process ever had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage survives exec on Linux: a child of a large parent would report the parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
