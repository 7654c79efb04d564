"""Functional rank: the least k at which W_b + Δ_k behaves like the tuned model (after LoX, arXiv 2506.15606; ours).

Δ_k is the leading part of the delta of each of the seven linear kinds; embeddings, norms and the output head stay at
base. Small Δ_k are short as well as low in rank, so that each is also run stretched to the length of Δ, by 1/√e_k where
e_k is its share of Σ‖Δ‖². The same Δ_k are taken out of the tuned model. Controls are those of every edit of weights
and, of what is put in, the last k triples stretched to the length of Δ_k.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from deltalens.checkpoint.pair import Row as Tensor
from deltalens.edit.form import Form, Triples, triples
from deltalens.evaluate.scores import OUTCOMES, Row, mean, rate, summarise
from deltalens.statistics import CLUSTERS
from deltalens.store.engine import Progress
from deltalens.store.experiment import write_results, write_summary
from deltalens.store.results import SELECT
from deltalens.sweep.bench import BASE, TUNED, Bench, Found, Point, bench, generate
from deltalens.sweep.controls import Control, points
from deltalens.sweep.curves import Curve, Swept, sweep
from deltalens.sweep.matched import Matched
from deltalens.sweep.pair import ALL, FEW, POINTS, Pairing, opened
from deltalens.sweep.spectrum import Spectrum, along_ranks, energy, ranks, spectra

VERSION = 4
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

MORE = {FEW: 0, POINTS: 1}
"""Ranks beside operating points that write completions to find the functional rank, the lowest first, of which a claim
on rank 1 speaks; with all as many as it takes."""

LEGEND = """\
Δ_k: the leading k triples of each of the seven linear kinds in the base, all else at base; / √e_k: stretched to the
length of Δ; tuned − Δ_k: taken out of the tuned model. Controls stand where an edit first reaches 90 % of its largest
effect on the select split. random U: the same σ and V, random left vectors; random V: right vectors like the inputs;
layer +s: the change of other layers; bottom: the last k triples at the length of Δ_k; Haar U, V and Gaussian never
decide. Functional rank: the least k within the tuned model's 95 % interval, 0 for the base. –: not generated there."""

PUT, WIDE, OUT = "Δ_k", "Δ_k / √e_k", "tuned − Δ_k"
"""Curves: put into the base, the same stretched, and taken out of the tuned model."""

Rank = int | str


@dataclass(frozen=True, slots=True)
class FunctionalRank:
    """What a sweep over ranks found.

    Attributes:
        rows: `store.results.RESULTS`; an arm without completions has no text.
        arms: `store.results.ARMS`.
        summary: `store.results.SUMMARY`.
        energies: By rank, `full` last: e_k, the share of Σ‖Δ‖² of the seven kinds.
        inside: By rank, that of the base being 0, whether thinking and accuracy lie in the tuned model's intervals;
            None where it wrote no completions.
        least: The least rank at which both are known to; None where none is, or there are too few items for an
            interval.
        point: The operating point of what is put in.
    """

    rows: list[Row]
    arms: list[Row]
    summary: list[Row]
    energies: dict[Rank, float]
    inside: dict[Rank, tuple[bool, bool | None]]
    least: Rank | None
    point: Rank


def functional_rank(
    asked: Pairing,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
    kl: bool = True,
) -> FunctionalRank:
    """Puts Δ_k into the base, raw and stretched, and takes it out of the tuned model, over k = 1, 2, 4, … and full.

    Holds half of the singular vectors of the seven kinds in float64.

    Args:
        asked: From `sweep.pair.pairing`.
        out: Directory for the tables, where an interrupted sweep resumes; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.
        kl: Whether KL from the base is taken.

    Raises:
        BadInput: The model does not load.
        Refused: It keeps a tensor in a way that is not known, the linear kinds do not differ, or `out` holds something
            else.
    """
    kept: dict[tuple[str, ...], Triples] = {}
    of = spectra(asked, kept)
    with bench(asked, {"recipe": "rank", "version": VERSION}, out, progress, command, kl) as at:
        swept = sweep(at, _curves(at, of, kept))
        one = swept.drawn[PUT]
        named: dict[float, Rank] = {0.0: 0} | {x: int(x) for x in one.xs} | {one.xs[-1]: "full"}
        inside, told = _inside(at, [swept.base, *one.found], swept.tuned)
        least = next((x for x, both in inside.items() if all(both)), None)
        point = _place(one.point.point)
        told |= {f.name: f for f in generate(at, _shown(asked, swept, (1.0, point, least)))}
        arms, rows, summary = _retold(swept, told)
        summary += _ranks(asked, inside)
        whole = energy(of, one.xs[-1])
        held = {"metric": "energy", "method": "Σ‖Δ_k‖²/Σ‖Δ‖² of the seven linear kinds"}
        energies = {named[x]: energy(of, x) / whole for x in one.xs}
        summary += [
            _labels(asked) | held | {"arm": f.name, "value": e}
            for f, e in zip(one.found, energies.values(), strict=True)
        ]
        if out is not None:
            write_results(out, "rank", rows)
            write_summary(out, arms, summary)
    return FunctionalRank(
        rows=rows,
        arms=arms,
        summary=summary,
        energies=energies,
        inside={named[x]: both for x, both in inside.items()},
        least=None if least is None else named[least],
        point=named[point],
    )


def _curves(at: Bench, of: Sequence[Spectrum], kept: dict[tuple[str, ...], Triples]) -> list[Curve]:
    """What is put in, the same stretched, and what is taken out."""
    asked, matched, xs = at.pairing, Matched(at), ranks(of)
    put = replace(along_ranks(asked, kept, PUT, of, xs, ("causal", "sufficient"), matched), writes=FEW)

    def controls(point: Point) -> list[Point]:
        return [*put.controls(point), *([_bottom(asked, of, point)] if _place(point) < xs[-1] else [])]

    out = along_ranks(asked, kept, OUT, of, xs, ("causal", "necessary", "choice"), matched, out=True)
    out = replace(out, writes=FEW)
    if len(xs) == 1:  # an adapter of rank 1 has nothing to stretch
        return [replace(put, controls=controls), out]
    wide = along_ranks(asked, kept, WIDE, of, xs[:-1], ("causal", "sufficient"), matched, stretched=True)
    return [replace(put, controls=controls), wide, out]


def _inside(
    at: Bench, scored: Sequence[Found], tuned: Found
) -> tuple[dict[float, tuple[bool, bool | None]], dict[str, Found]]:
    """Which ranks lie in the tuned model's intervals; upwards, generating while there is something to find."""
    metric, left = at.pairing.metric, MORE.get(at.pairing.generate, len(scored))
    thinking, accuracy = mean(tuned.values(metric)), rate(_correct(tuned))
    inside: dict[float, tuple[bool, bool | None]] = {}
    told: dict[str, Found] = {}
    for one in scored:
        found = one
        thinks, right = _within(mean(found.values(metric)), thinking), None
        answered, both = any(right for _, right in inside.values()), any(all(pair) for pair in inside.values())
        if not found.rows and left and (not answered or (thinks and not both)):
            left -= 1
            (found,) = generate(at, [found])
            told[found.name] = found
        if found.rows:
            right = _within(rate(_correct(found)), accuracy)
        inside[_place(found.point)] = (thinks, right)
    return inside, told


def _shown(asked: Pairing, swept: Swept, ranks: Sequence[float | None]) -> list[Found]:
    """Further arms that write completions: rank 1 stretched, which a published claim is about, or all of some ranks."""
    curves = {name: c for name, c in swept.drawn.items() if asked.generate == ALL or name == WIDE}
    some = ranks if asked.generate == ALL else (1.0,) if asked.generate == POINTS else ()
    return [f for c in curves.values() for f in c.found if _place(f.point) in some]


def _retold(swept: Swept, told: Mapping[str, Found]) -> tuple[list[Row], list[Row], list[Row]]:
    """Arms, rows and summary of a sweep in which more arms have completions."""
    found = {f.name: f for f in (swept.base, swept.tuned)}
    starts = {TUNED: BASE}
    for one in swept.drawn.values():
        for f in (*one.found, *one.controls):
            found[f.name], starts[f.name] = f, one.curve.start
    arms = [told.get(name, f) for name, f in found.items()]
    rows = [row for f in arms for row in f.table]
    summary = summarise(rows, starts)
    summary += [row for row in swept.summary if row["task"].endswith(SELECT)]
    summary += [row for one in swept.drawn.values() for row in one.rows]
    return [f.point.arm.row for f in arms], rows, summary


def _ranks(asked: Pairing, inside: Mapping[float, tuple[bool, bool | None]]) -> list[Row]:
    """The functional rank by each measure and by both, as rows of a summary."""
    n = len(asked.prompts.items)
    tests = {f"functional_rank_{asked.metric}": lambda p: p[0], "functional_rank_accuracy": lambda p: p[1]}
    tests["functional_rank"] = all
    found = []
    for name, test in tests.items():
        least = next((x for x, pair in inside.items() if test(pair)), None)
        rule = "least k within the tuned model's interval"
        if least is None:
            rule = "not even Δ_full is within the tuned model's interval"
        silent = [x for x, (thinks, right) in inside.items() if right is None and (thinks or "accuracy" in name)]
        if name != next(iter(tests)) and any(least is None or x < least for x in silent):
            wrote = [f"{x:g}" for x, (_, right) in inside.items() if right is not None]
            if least is None:
                rule = "none is within the tuned model's interval"
            rule += f", of the k that wrote completions ({', '.join(wrote)})"
        if n < CLUSTERS and name != "functional_rank_accuracy":
            rule = f"n < {CLUSTERS}: no interval"
        found.append(
            _labels(asked)
            | {"arm": PUT, "metric": name, "value": None if least is None else int(least), "method": rule}
        )
    return found


def _labels(asked: Pairing) -> Row:
    return {"task": asked.prompts.task.name, "group": "", "n": len(asked.prompts.items)}


def _within(found: Row, interval: Row) -> bool:
    return interval["low"] is not None and interval["low"] <= found["value"] <= interval["high"]


def _bottom(asked: Pairing, of: Sequence[Spectrum], top: Point) -> Point:
    """The last k triples of each matrix at the length of its first k; a matrix that has no others stays at base."""
    start, k = opened(asked, {"operator": "interpolate", "strength": 0.0}), int(_place(top))
    some = [s for s in of if s.full > k]

    def made() -> Iterator[tuple[Tensor, Form]]:  # last vectors are not kept, but found one matrix at a time
        for s in some:
            base = start.of("base", s.row)
            t = triples(start.of("tuned", s.row) - base, s.full)
            last = slice(max(k, t.rank - k), t.rank)
            sigma = t.sigma[last] * np.linalg.norm(t.sigma[:k]) / np.linalg.norm(t.sigma[last])
            yield s.row, base + Form.product(t.left[:, last] * sigma, t.right[:, last].T)

    control = Control("bottom", None, True, made, None, energy(some, _place(top)) ** 0.5)
    return points(top, [control], start)[0]


def _correct(found: Found) -> list[list[bool]]:
    """Right or wrong of every item, once per sample."""
    by_item: dict[str, list[bool]] = {}
    mode, outcome = OUTCOMES["accuracy"]
    for row in found.rows:
        if row["mode"] == mode:
            by_item.setdefault(row["item"], []).append(outcome(row))
    return list(by_item.values())


def _place(of: Point) -> float:
    assert of.strength is not None
    return of.strength
