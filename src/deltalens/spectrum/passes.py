"""The passes of one measurement: delta always, heads where the config names them, context and nulls where wanted."""

import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from threadpoolctl import ThreadpoolController

from deltalens.checkpoint.pair import Pair, Row
from deltalens.checkpoint.plan import FLOPS_PER_CORE, MARGIN, flops
from deltalens.errors import BadInput
from deltalens.spectrum import context, heads, matching, nulls
from deltalens.spectrum.matrix import Settings, measure_matrix, norm_only
from deltalens.store.engine import Task
from deltalens.store.parts import Part, part_key
from deltalens.store.run import Run
from deltalens.store.session import essence

SMALL = 2e9
"""Arithmetic below which a task gets one BLAS thread: threads wait for each other longer than they work, and on a
loaded machine ten times longer (measured). It depends on shapes alone, so results do not depend on the load."""

CONTEXT_LIMIT = 3_000_000_000
"""Measured parameters up to which context is on by itself: it costs two to three times the delta pass."""

_NO_PARTNER = "the RUN whose size is matched has no such matrix"

MODES = ("off", *nulls.MODES)


def choose(
    pair: Pair, wants_context: bool | None, mode: str | None, settings: Settings, earlier: dict[str, Any] | None
) -> tuple[dict[str, Any], list[str]]:
    """Which passes to run, with their settings, and what to say about those left out.

    Args:
        pair: The pair.
        wants_context: True, False, or None to decide by size.
        mode: One of `MODES`, or None for `default` where there is context.
        settings: Of the delta pass.
        earlier: The passes of the RUN that is resumed; what it has is kept.

    Raises:
        BadInput: An unknown mode.
    """
    if mode is not None and mode not in MODES:
        raise BadInput(f"--nulls {mode} is not known", f"one of {', '.join(MODES)}")
    earlier = earlier or {}
    notes = []
    size = sum(row.base.elements for row in pair.rows if row.status == "measured" and row.base)
    if wants_context is None and not earlier.get("context"):
        wants_context = size <= CONTEXT_LIMIT
        if not wants_context:
            notes.append(
                f"context is off above {CONTEXT_LIMIT / 1e9:.0f} B parameters ({size / 1e9:.1f} B); --context on"
            )
    if mode is None:
        mode = "default" if wants_context else "off"
    common = {"threads": settings.threads, "block_bytes": settings.block_bytes, "seed": settings.seed}
    found: dict[str, Any] = {"context": earlier.get("context"), "nulls": earlier.get("nulls")}
    if wants_context and not found["context"]:
        found["context"] = asdict(context.ContextSettings(**common))
    if mode != "off" and (found["nulls"] or {}).get("mode") != mode:
        found["nulls"] = asdict(nulls.NullSettings(mode=mode, **common))
        left = nulls.choose(pair.rows, mode)[1]
        notes += [f"no nulls for {name}: {why}" for name, why in left.items()]
    return found, notes


def tasks(
    pair: Pair,
    wanted: dict[str, Any],
    settings: Settings,
    targets: dict[str, float] | None,
    identities: Any,
) -> dict[str, list[Task]]:
    """The tasks of every pass, by pass, in table order."""
    pools = ThreadpoolController()

    def task(kind: str, name: str, how: Any, size: int, cost: float, work: Callable[[], Part]) -> Task:
        def limited() -> Part:
            with pools.limit(limits=settings.threads if cost >= SMALL else 1):
                return work()

        return Task(name, part_key(identities, asdict(settings), kind, how, name), size, cost, limited)

    def row_task(kind: str, row: Row, how: Any, cost: float, work: Callable[[], Part]) -> Task:
        infos = [info for info in (row.base, row.tuned) if info]
        read = [[info.name, info.file.name, info.start, *info.shape] for info in infos]  # tying is config, not weights
        key = [how, row.status, row.transposed, row.reason, read]
        return task(kind, row.name.name, key, sum(i.end - i.start for i in infos), cost, work)

    target = (targets or {}).get

    def alone(row: Row) -> bool:
        return targets is not None and row.name.name not in targets

    def in_heads(layer: int) -> Part:
        return heads.measure_heads(pair, layer, settings.block_bytes)

    found = {
        "delta": [
            row_task("delta", row, None, flops(row), lambda row=row: _delta(row, settings, target(row.name.name)))
            for row in pair.rows
        ],
        # Heads read the stored sides: beside a rescaled delta they would be of another size.
        "heads": [
            task("heads", f"layers.{n}.self_attn", None, 0, 0.0, lambda n=n: in_heads(n))
            for n in (heads.head_layers(pair) if targets is None else ())
        ],
    }
    measured = [row for row in pair.rows if row.status == "measured"]
    if how := wanted["context"]:
        chosen = context.ContextSettings(**how)

        def in_context(row: Row) -> Part:
            if alone(row):
                return Part({"context_reason": _NO_PARTNER}, {})
            return context.measure_context(row, chosen, target(row.name.name))

        found["context"] = [
            row_task("context", row, how, context.cost(row), lambda row=row: in_context(row)) for row in measured
        ]
    if how := wanted["nulls"]:
        ensemble = nulls.NullSettings(**how)

        def drawn(row: Row) -> Part:
            return nulls.measure_nulls(row, ensemble, target(row.name.name))

        partners = [row for row in measured if not alone(row)]
        found["nulls"] = [
            row_task("nulls", row, how, nulls.cost(row, ensemble), lambda row=row: drawn(row))
            for row in nulls.choose(partners, ensemble.mode)[0]
        ]
    return found


def announce(groups: dict[str, list[Task]], threads: int) -> list[str]:
    """What each optional pass costs, one line each."""
    delta = sum(task.cost for task in groups["delta"]) or 1.0
    lines = []
    for name in ("context", "nulls"):
        if group := groups.get(name):
            cost = sum(task.cost for task in group)
            seconds = MARGIN * cost / (FLOPS_PER_CORE * threads)
            lines.append(f"{name}: {len(group)} matrices, about {cost / delta:.1f} × the delta pass ({seconds:.0f} s)")
    return lines


def size_targets(run: str | os.PathLike[str]) -> dict[str, float]:
    """The norms that a size-matched Δ is scaled to, by matrix."""
    return matching.size_targets(Run.open(os.fspath(run)))


def label(run: str | os.PathLike[str]) -> str:
    """What a size-matched RUN records of the other one: its pair and a digest of what was measured."""
    record = Run.open(os.fspath(run)).record
    sides = {side: record["pair"][side]["identity"] for side in ("base", "tuned")}
    digest = part_key(essence(sides), record["settings"])[:12]
    return f"{record['pair']['base']['source']} → {record['pair']['tuned']['source']} ({digest})"


def _delta(row: Row, settings: Settings, target_norm: float | None) -> Part:
    if row.status == "measured" and settings.size_matched is not None and target_norm is None:
        row = replace(row, status="unmeasured", reason=_NO_PARTNER)
    if row.status == "measured":
        return measure_matrix(row, settings, target_norm)
    if row.status in ("vector", "unmeasured"):
        return norm_only(row, settings)
    return Part({"status": row.status, "reason": row.reason, "norm_delta_sq": None}, {})
