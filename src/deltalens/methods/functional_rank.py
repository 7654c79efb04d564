"""Functional rank: the least k at which W_b + Δ_k behaves like the tuned model (after LoX, arXiv 2506.15606; ours).

Δ_k is the leading part of the delta of each of the seven linear kinds; embeddings, norms and the output head stay at
base. Small Δ_k are short as well as low in rank, so that each is also run stretched to the length of Δ, by 1/√e_k where
e_k is its share of Σ‖Δ‖². The same Δ_k are taken out of the tuned model. Controls are those of every edit of weights
and, of what is put in, the last k triples stretched to the length of Δ_k.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltalens.checkpoint.pair import Row as Tensor
from deltalens.edit.form import Form, Triples, triples
from deltalens.edit.plan import Plan as Opened
from deltalens.edit.tensors import changes
from deltalens.errors import Refused
from deltalens.evaluate.scores import OUTCOMES, Row, mean, rate, summarise
from deltalens.statistics import CLUSTERS
from deltalens.store.engine import Progress
from deltalens.store.experiment import write_results, write_summary
from deltalens.store.results import SELECT
from deltalens.sweep.bench import BASE, TUNED, Bench, Found, Point, bench, edited, generate
from deltalens.sweep.controls import Control, points
from deltalens.sweep.curves import Curve, Swept, sweep
from deltalens.sweep.matched import Matched
from deltalens.sweep.pair import Pairing, opened

VERSION = 2
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

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
            None where nothing was generated.
        least: The least rank at which both do; None where none does, or there are too few items for an interval.
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

    Singular vectors up to the largest k below full are held in memory: at least half of them all.

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
    spectra = _spectra(asked, kept)
    q = max((t.rank for t in spectra), default=0)
    if q == 0:
        raise Refused(f"{asked.base} and {asked.tuned} do not differ in any matrix of the seven linear kinds")
    ranks: dict[float, Rank] = {float(k): k for k in _below(q)} | {float(q): "full"}
    sizes = {x: _energy(spectra, int(x)) for x in ranks}  # ‖Δ_k‖²
    energies = {k: sizes[x] / sizes[q] for x, k in ranks.items()}

    with bench(asked, {"recipe": "rank", "version": VERSION}, out, progress, command, kl) as at:
        matched = Matched(at)

        def curve(name: str, start: str, xs: Sequence[float], *asks: str) -> Curve:
            def plan(x: float) -> Opened:
                strength = (sizes[q] / sizes[x]) ** 0.5 if name == WIDE else 1.0
                operator = "revert" if name == OUT else "truncate"
                return opened(asked, {"operator": operator, "rank": ranks[x], "strength": strength}, kept)

            def make(x: float) -> Point:
                length = sizes[q if name == WIDE else x] ** 0.5
                return edited(name.replace("_k", f"_{ranks[x]}"), "edit", plan(x), x, length)

            def controls(point: Point) -> list[Point]:
                x = _place(point)
                tail = [_bottom(asked, spectra, point)] if name == PUT and x < q else []
                return [*matched.points(point, plan(x)), *tail]

            return Curve(name, start, tuple(xs), make, controls, ("causal", *asks))

        swept = sweep(
            at,
            [
                curve(PUT, BASE, [*ranks], "sufficient"),
                curve(WIDE, BASE, [*ranks][:-1], "sufficient"),
                curve(OUT, TUNED, [*ranks], "necessary", "choice"),
            ],
        )
        one = swept.drawn[PUT]
        inside, told = _inside(at, {0: swept.base, **{ranks[_place(f.point)]: f for f in one.found}}, swept.tuned)
        least = next((k for k, both in inside.items() if all(both)), None)
        point = ranks[_place(one.point.point)]
        shown = [f for c in swept.drawn.values() for f in c.found if ranks[_place(f.point)] in (1, point, least)]
        told |= {f.name: f for f in generate(at, shown)}
        arms, rows, summary = _retold(swept, told)
        labels = {"task": asked.prompts.task.name, "group": "", "n": len(asked.prompts.items)}
        summary += [labels | row for row in _ranks(inside, asked.metric, q, len(asked.prompts.items))]
        summary += [
            labels | {"arm": f.name, "metric": "energy", "value": energies[ranks[_place(f.point)]], "method": _ENERGY}
            for f in one.found
        ]
        if out is not None:
            write_results(out, "rank", rows)
            write_summary(out, arms, summary)
    return FunctionalRank(rows, arms, summary, energies, inside, least, point)


_ENERGY = "Σ‖Δ_k‖²/Σ‖Δ‖² of the seven linear kinds"


def _below(q: int) -> list[int]:
    return [2**i for i in range(q.bit_length()) if 2**i < q]


def _spectra(asked: Pairing, kept: dict[tuple[str, ...], Triples]) -> list[Triples]:
    """All singular values of every matrix, and as many vectors as the largest k below its own full rank needs."""
    whole = opened(asked, {"operator": "truncate", "rank": "full"})
    for k in reversed(_below(max((min(row.shape) for row, _ in changes(whole)), default=0))):
        for _ in changes(opened(asked, {"operator": "truncate", "rank": k}, kept)):
            pass  # what is decomposed on the way is kept
    return list(kept.values())


def _energy(spectra: Sequence[Triples], k: int) -> float:
    return float(sum(np.sum(t.sigma[:k] ** 2) for t in spectra))


def _inside(
    at: Bench, scored: Mapping[Rank, Found], tuned: Found
) -> tuple[dict[Rank, tuple[bool, bool | None]], dict[str, Found]]:
    """Which ranks lie in the tuned model's intervals; upwards, generating while there is something to find."""
    metric = at.pairing.metric
    thinking, accuracy = mean(tuned.values(metric)), rate(_correct(tuned))
    inside: dict[Rank, tuple[bool, bool | None]] = {}
    told: dict[str, Found] = {}
    for k, found in scored.items():
        thinks, right = _within(mean(found.values(metric)), thinking), None
        answered, both = (any(test(pair) for pair in inside.values()) for test in (lambda p: p[1], all))
        if not answered or (thinks and not both):
            (made,) = generate(at, [found])
            told[made.name] = made
            right = _within(rate(_correct(made)), accuracy)
        inside[k] = (thinks, right)
    return inside, told


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


def _ranks(inside: Mapping[Rank, tuple[bool, bool | None]], metric: str, full: int, n: int) -> list[Row]:
    """The functional rank by each measure and by both, as rows of a summary."""
    tests = {f"functional_rank_{metric}": lambda p: p[0], "functional_rank_accuracy": lambda p: p[1]}
    tests["functional_rank"] = all
    found = []
    for name, test in tests.items():
        least = next((k for k, pair in inside.items() if test(pair)), None)
        rule = "least k within the tuned model's interval"
        if least is None:
            rule = "not even Δ_full is within the tuned model's"
        if n < CLUSTERS and name != "functional_rank_accuracy":
            rule = f"n < {CLUSTERS}: no interval"
        found.append({"arm": PUT, "metric": name, "value": full if least == "full" else least, "method": rule})
    return found


def _within(found: Row, interval: Row) -> bool:
    return interval["low"] is not None and interval["low"] <= found["value"] <= interval["high"]


def _bottom(asked: Pairing, spectra: Sequence[Triples], of: Point) -> Point:
    """The last k triples of each matrix at the length of its first k; a matrix that has no others stays at base."""
    whole = opened(asked, {"operator": "truncate", "rank": "full"})
    k = int(_place(of))

    def made() -> Iterator[tuple[Tensor, Form]]:  # last vectors are not kept, but found one matrix at a time
        for row, _ in changes(whole):
            base = whole.of("base", row)
            delta = whole.of("tuned", row) - base
            t = triples(delta, min(delta.shape))
            if t.rank > k:
                last = slice(max(k, t.rank - k), t.rank)
                sigma = t.sigma[last] * np.linalg.norm(t.sigma[:k]) / np.linalg.norm(t.sigma[last])
                yield row, base + Form.product(t.left[:, last] * sigma, t.right[:, last].T)

    length = _energy([t for t in spectra if t.rank > k], k) ** 0.5
    start = opened(asked, {"operator": "interpolate", "strength": 0.0})
    return points(of, [Control("bottom", None, True, made, None, length)], start)[0]


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
