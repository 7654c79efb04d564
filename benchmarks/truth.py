"""Planted truths: what the estimators say about deltas of known truth, against the targets of docs/measures.md §9.

    python benchmarks/truth.py [--quick] [--only ranks,alarms] [--cache FOLDER] [--out docs/truth.md]

Each part's result is kept as JSON in the cache folder and taken from there by a later run of the same code, so that a
long run may be split; the document is assembled from whatever the cache holds. `--fresh` runs the parts again.
"""

import argparse
import ast
import hashlib
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import scipy
import torch
from threadpoolctl import threadpool_limits
from truth import accuracy, alarms, coverage, overlaps, ranks, structure, zeros
from truth.document import write
from truth.planted import SEED

import deltalens
from deltalens import statistics

THREADS = 1
"""The matrices are too small to share one between cores."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the benchmark.

    Attributes:
        title: Its heading.
        sources: Modules whose change makes a cached result stale: of this benchmark, then of the package (of its room
            spectrum where no other is named).
        run: quick → a JSON-able result.
        judge: Result → targets.
        show: Result → Markdown and plots.
    """

    title: str
    sources: str
    run: Callable[[bool], dict]
    judge: Callable[[dict], list[dict]]
    show: Callable[[dict], tuple[str, dict[str, str]]]


PARTS = {
    "sigma": Part(
        "Singular values",
        "accuracy planted / gram delta",
        accuracy.run_sigma,
        accuracy.judge_sigma,
        accuracy.show_sigma,
    ),
    "ranks": Part(
        "Planted rank in float32 noise",
        "ranks planted / gram edge",
        ranks.run_ranks,
        ranks.judge_ranks,
        ranks.show_ranks,
    ),
    "stored": Part(
        "Planted rank in 16-bit storage",
        "ranks planted / gram edge noise",
        ranks.run_stored,
        ranks.judge_stored,
        ranks.show_stored,
    ),
    "alarms": Part(
        "False alarms",
        "alarms planted / gram edge noise",
        alarms.run_alarms,
        alarms.judge_alarms,
        alarms.show_alarms,
    ),
    "directions": Part(
        "Directions",
        "accuracy planted / gram edge",
        accuracy.run_directions,
        accuracy.judge_directions,
        accuracy.show_directions,
    ),
    "zeros": Part(
        "Dead zone: scale and sparsity",
        "zeros planted / deadzone laws noise",
        zeros.run_zeros,
        zeros.judge_zeros,
        zeros.show_zeros,
    ),
    "structure": Part(
        "Context and drawn nulls",
        "structure planted / basis context draw edge gram krylov masks nulls rounding",
        structure.run_structure,
        structure.judge_structure,
        structure.show_structure,
    ),
    "intervals": Part(
        "Intervals of one rate", "accuracy /", accuracy.run_intervals, accuracy.judge_intervals, accuracy.show_intervals
    ),
    "coverage": Part(
        "Intervals of differences, means and effect sizes",
        "coverage planted /",
        coverage.run_coverage,
        coverage.judge_coverage,
        coverage.show_coverage,
    ),
    "overlaps": Part(
        "Overlap p-values",
        "overlaps planted / direction.compare direction.estimate",
        overlaps.run_overlaps,
        overlaps.judge_overlaps,
        overlaps.show_overlaps,
    ),
}


def code_hash(sources: str) -> str:
    """Of the code that a part's result depends on: all but the functions that judge and show it, and the prose."""
    ours, theirs = sources.split("/")
    files = [Path(__file__).parent / "truth" / f"{name}.py" for name in ours.split()]
    package = Path(deltalens.__file__).parent
    files += [package.joinpath(*(name if "." in name else f"spectrum.{name}").split(".")) for name in theirs.split()]
    files = [file.with_suffix(".py") for file in files]
    digest = hashlib.sha256()
    for file in [*files, Path(statistics.__file__)]:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            named = getattr(node, "name", "")
            if not named.startswith(("judge_", "show_")) and not isinstance(node, ast.Import | ast.ImportFrom):
                digest.update(ast.dump(node).encode())
    return digest.hexdigest()[:12]


def processor() -> str:
    """The CPU's name as the system gives it."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def machine() -> dict[str, str]:
    """What the numbers may depend on besides the code."""
    return {
        "processor": processor(),
        "threads": str(THREADS),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "versions": f"deltalens {deltalens.__version__}, numpy {np.__version__}, scipy {scipy.__version__}, "
        f"torch {torch.__version__}",
        "seed": f"{SEED}, with a stream of its own for every cell",
    }


def result_of(name: str, quick: bool, cache: Path, fresh: bool) -> dict:
    """A part's cached result, or a new one."""
    file = cache / f"{name}{'-quick' if quick else ''}.json"
    code = code_hash(PARTS[name].sources)
    if file.exists() and not fresh:
        kept = json.loads(file.read_text())
        if kept["code"] == code:
            print(f"{name}: from {file}")
            return kept
        print(f"{name}: {file} is of other code, running again")
    began = perf_counter()
    with threadpool_limits(limits=THREADS):
        data = PARTS[name].run(quick)
    result = {"code": code, "seconds": perf_counter() - began, "machine": processor(), "data": data}
    cache.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result))
    print(f"{name}: {result['seconds']:.1f} s", flush=True)
    return result


def main() -> int:
    """Run parts, print their targets, write the document; 1 when a target is missed and --strict asks for that."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer trials, about a minute; still writes the document")
    parser.add_argument("--only", help=f"parts to run, by commas: {', '.join(PARTS)}; the document is not written")
    parser.add_argument("--cache", type=Path, default=Path(".benchmarks/truth"), help="folder of the parts' results")
    parser.add_argument("--fresh", action="store_true", help="run again whatever the cache holds")
    parser.add_argument("--out", type=Path, default=Path("docs/truth.md"))
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a target is missed")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else list(PARTS)
    for name in chosen:
        if name not in PARTS:
            parser.error(f"{name} is no part; parts are {', '.join(PARTS)}")
    torch.set_num_threads(THREADS)
    results, missed = [], 0
    for name in chosen:
        part = PARTS[name]
        kept = result_of(name, options.quick, options.cache, options.fresh)
        targets = part.judge(kept["data"])
        for t in targets:
            word = {True: "met", False: "MISSED", None: "–"}[t["met"]]
            print(f"  {word:<7}{t['name']}: {t['measured']} (goal {t['goal']})", flush=True)
        missed += sum(t["met"] is False for t in targets)
        text, plots = part.show(kept["data"])
        facts = {"title": part.title, "seconds": kept["seconds"], "machine": kept["machine"]}
        results.append(facts | {"targets": targets, "text": text, "plots": plots})
    if not options.only:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write(options.out, results, machine())
        print(f"wrote {options.out}")
    return int(options.strict and missed > 0)


if __name__ == "__main__":
    sys.exit(main())
