"""`measure`: every pass over a pair as one list of idempotent tasks, ending in a RUN."""

import operator
import os
import platform
import resource
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

from deltalens.checkpoint.atomic import remove_temporaries
from deltalens.checkpoint.identity import identity, mtimes
from deltalens.checkpoint.pair import Pair
from deltalens.checkpoint.plan import cores
from deltalens.errors import BadInput, Refused
from deltalens.spectrum import passes
from deltalens.spectrum.matrix import Settings
from deltalens.store.engine import Progress, run_tasks
from deltalens.store.files import write_json
from deltalens.store.parts import Part, finished_part, part_key
from deltalens.store.run import Run, damaged_tables, digests, read_record
from deltalens.store.schema import NUMERICS_VERSION, SCHEMA
from deltalens.store.session import check_same_run, discard, essence, writing
from deltalens.store.tables import TABLES, write_tables

MOST_TOP = 4096  # a bank of more is not a summary
MOST_THREADS = 1024


def measure_diff(
    pair: Pair,
    out: str | os.PathLike[str],
    *,
    top: int = 16,
    both_rounded: bool = False,
    context: bool | None = None,
    nulls: str | None = None,
    size_matched: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    verify: bool = False,
    progress: Callable[[Progress], None] | None = None,
    say: Callable[[str], None] | None = None,
    command: str | None = None,
) -> Run:
    """Measure the delta of every tensor of a pair and store it as a RUN; resumes where an earlier start stopped.

    A finished RUN may be given context or nulls later: its other results are kept.

    Args:
        pair: From `Pair.open`.
        out: The RUN directory: new, empty, or a RUN of the same pair and settings.
        top: Singular vectors kept per matrix.
        both_rounded: Count the rounding of both sides as noise (float32 masters exported twice).
        context: Whether to measure Δ against the base; by default up to 3 B measured parameters.
        nulls: `off`, `default` or `full`; by default `default` where there is context, else `off`.
        size_matched: Another RUN: this Δ is scaled to its norm, matrix by matrix, and rounded again.
        threads: BLAS threads; by default those of the RUN that is resumed, else all cores available.
        verify: Hash every byte of both sides into the identity.
        progress: Called after every task.
        say: Called with what each optional pass will cost, before any starts.
        command: The command line to record.

    Raises:
        BadInput: An argument is out of range, `out` not writable, or every tensor holds NaN or Inf.
        Refused: `out` holds something else, another pair or other settings, another process is writing it, or a
            side changed on disk while it was read.
    """
    if not isinstance(pair, Pair):
        raise BadInput(f"measure_diff takes a Pair, not a {type(pair).__name__}", "deltalens.Pair.open(BASE, TUNED)")
    top = _whole("top", top, MOST_TOP)
    threads = None if threads is None else _whole("threads", threads, MOST_THREADS)
    if not os.fspath(out):
        raise BadInput("--out is empty", "--out DIRECTORY")
    out = Path(out)
    started = perf_counter()
    before = mtimes(pair.base), mtimes(pair.tuned)
    sides = {"base": identity(pair.base, verify), "tuned": identity(pair.tuned, verify)}
    targets = passes.size_targets(size_matched) if size_matched is not None else None
    with writing(out):
        earlier = read_record(out)
        settings = _settings(pair, top, both_rounded, size_matched, threads, earlier)
        wanted, notes = passes.choose(pair, context, nulls, settings, (earlier or {}).get("passes"))
        record = _record(pair, sides, settings, wanted, command)
        if earlier is not None:
            check_same_run(earlier, record, out)
            same = all(earlier[key] == record[key] for key in ("numerics_version", "layout", "passes"))
            if same and earlier["status"] == "complete" and not damaged_tables(out, earlier, hashed=True):
                return Run.open(out)
        write_json(out / "run.json", record)
        parts = out / "parts"
        parts.mkdir(exist_ok=True)
        remove_temporaries(parts)
        remove_temporaries(out)
        identities = essence(sides), [SCHEMA, NUMERICS_VERSION]
        tasks = passes.tasks(pair, wanted, settings, targets, identities)
        if say is not None:
            for line in passes.announce(tasks, settings.threads):
                say(line)
        run_tasks([task for group in tasks.values() for task in group], parts, progress)
        if (mtimes(pair.base), mtimes(pair.tuned)) != before:
            raise Refused("a checkpoint changed on disk while it was read", "measure again into a new --out")
        load = {name: _loader(parts, [task.key for task in group]) for name, group in tasks.items()}
        totals, warnings = write_tables(out, pair, load, {name: len(group) for name, group in tasks.items()})
        if totals["compared"] == 0:
            discard(out)
            raise BadInput("every tensor that both sides hold contains NaN or Inf", "check how the sides were saved")
        record["warnings"] = [*pair.warnings, *notes, *warnings]
        record["totals"] = {**totals, "seconds": perf_counter() - started}
        record["tables"] = digests(out, TABLES)
        record["peak_rss_bytes"] = _peak_rss()
        record["status"] = "complete"
        write_json(out / "run.json", record)
    return Run.open(out)


def _whole(name: str, value: Any, most: int) -> int:
    """A whole number from 1 to `most`."""
    try:
        found = operator.index(value)
    except TypeError:
        raise BadInput(f"{name} must be a whole number, not {value!r}") from None
    if not 1 <= found <= most:
        raise BadInput(f"--{name} {found} is not possible", f"--{name} 1 to {most}")
    return found


def _loader(parts: Path, keys: list[str]) -> Callable[[int], Part]:
    return lambda i: finished_part(parts, keys[i])


def _settings(
    pair: Pair,
    top: int,
    both_rounded: bool,
    size_matched: str | os.PathLike[str] | None,
    threads: int | None,
    earlier: dict[str, Any] | None,
) -> Settings:
    recorded = (earlier or {}).get("settings", {}).get("threads")
    if threads is None:
        threads = recorded if isinstance(recorded, int) else cores()
    return Settings(
        top=top,
        both_rounded=both_rounded,
        match=pair.match,
        size_matched=None if size_matched is None else passes.label(size_matched),
        threads=threads,
    )


def _record(
    pair: Pair, sides: dict[str, Any], settings: Settings, wanted: dict[str, Any], command: str | None
) -> dict[str, Any]:
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
        "layout": part_key([[r.name.name, r.status, r.transposed, r.reason] for r in pair.rows]),
        "parentage": asdict(pair.parentage),
        "passes": wanted,
        "warnings": list(pair.warnings),
        "totals": None,
        "tables": None,
        "environment": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "numpy", "scipy", "safetensors")},
            "platform": platform.platform(),
            "cpu_count": os.cpu_count(),
        },
        "peak_rss_bytes": None,
        "command": command,
    }


def _peak_rss() -> int:
    """The most resident memory this process ever had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage survives exec on Linux: a child of a large parent would report the parent
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
