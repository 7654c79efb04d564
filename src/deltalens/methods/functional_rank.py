"""Functional rank: the least k at which W_b + Δ_k behaves like the tuned model (after LoX, arXiv 2506.15606; ours).

Δ_k is the leading part of the delta of each of the seven linear kinds; embeddings, norms and the output head stay at
base. Small Δ_k are short as well as low in rank, so that each is also run stretched to the length of Δ, by 1/√e_k where
e_k is its share of Σ‖Δ‖². Controls stand at the operating point: the same right vectors and singular values with random
left vectors (the same functional norm, whatever the inputs), and the last k triples stretched to the length of Δ_k.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.pair import Row as Tensor
from deltalens.edit.form import Form, Triples
from deltalens.edit.plan import Plan as Opened
from deltalens.edit.ranks import leading
from deltalens.edit.select import editable
from deltalens.errors import Refused
from deltalens.evaluate.scores import OUTCOMES, Row, mean, rate, summarise
from deltalens.methods.pair import Pairing, opened
from deltalens.methods.pair_arms import Bench, Found, Point, bench, edited, generate, placed, score, untouched
from deltalens.statistics import CLUSTERS
from deltalens.store.engine import Progress
from deltalens.store.experiment import write_results, write_summary
from deltalens.sweep.arms import SEEDS, Arm, effect_minus_largest_control, operating_point

VERSION = 1
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

BASE, TUNED = "base", "tuned"

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
        point: The rank at which the controls stand.
    """

    rows: list[Row]
    arms: list[Row]
    summary: list[Row]
    energies: dict[Rank, float]
    inside: dict[Rank, tuple[bool, bool | None]]
    least: Rank | None
    point: int


@dataclass(frozen=True, slots=True, eq=False)
class _Delta:
    """Δ of one matrix as U·diag(σ) and Vᵀ, all of it, and where it belongs."""

    row: Tensor
    base: Form
    left: Float64[np.ndarray, "m q"]
    right: Float64[np.ndarray, "q n"]

    @property
    def energies(self) -> Float64[np.ndarray, " q"]:
        """σ², descending."""
        return np.sum(self.left**2, axis=0)


def functional_rank(
    asked: Pairing,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
) -> FunctionalRank:
    """Puts Δ_k into the base, raw and stretched, and takes it out of the tuned model, over k = 1, 2, 4, … and full.

    All singular vectors are held in memory: about six times what the seven kinds take in float32.

    Args:
        asked: From `methods.pair.pairing`.
        out: Directory for the tables, where an interrupted sweep resumes; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.

    Raises:
        BadInput: The model does not load.
        Refused: It keeps a tensor in a way that is not known, the linear kinds do not differ, or `out` holds something
            else.
    """
    kept: dict[tuple[str, ...], Triples] = {}
    deltas = _deltas(opened(asked, _step("truncate", {"energy": 1.0}), kept))
    if not deltas:
        raise Refused(f"{asked.base} and {asked.tuned} do not differ in any matrix of the seven linear kinds")
    q = max(d.left.shape[1] for d in deltas)
    numbers = tuple(2**i for i in range(q.bit_length()) if 2**i < q)
    energies: dict[Rank, float] = {k: _energy(deltas, k) for k in numbers} | {"full": 1.0}
    length = float(np.sqrt(sum(d.energies.sum() for d in deltas)))

    def edit(name: str, operator: str, k: Rank, strength: float = 1.0) -> Point:
        step = opened(asked, _step(operator, k, strength), kept)
        return edited(name, "edit", step, strength, strength * length * energies[k] ** 0.5)

    raw = {k: edit(f"Δ_{k}", "truncate", k) for k in energies}
    wide = {k: edit(f"Δ_{k} / √e_{k}", "truncate", k, energies[k] ** -0.5) for k in numbers}
    less = {k: edit(f"tuned − Δ_{k}", "revert", k) for k in energies}
    base = opened(asked, {"operator": "interpolate", "strength": 0.0})
    with bench(asked, {"recipe": "rank", "version": VERSION}, out, progress, command) as at:
        ends = [edited(BASE, "baseline", base, 0.0, 0.0), untouched(TUNED)]
        before, *grid = (np.mean(_values(f, asked)) for f in score(at, [ends[0], *raw.values()], asked.chosen_on))
        point = int(operating_point([float(k) for k in numbers], [float(p - before) for p in grid[:-1]]))
        controls = score(at, _controls(asked, base, deltas, point))
        first, last = generate(at, score(at, ends))
        scored = dict(zip(energies, score(at, list(raw.values())), strict=True))
        others = score(at, [*wide.values(), *less.values()])
        inside, told = _inside(at, {0: first, **scored}, last)
        least = next((k for k, found in inside.items() if all(found)), None)
        claim = effect_minus_largest_control(
            _values(first, asked), _values(scored[point], asked), {_name(f): _values(f, asked) for f in controls}
        )
        wanted = {_name(of[k]) for k in (1, point, least or point) for of in (wide, less) if k in of}
        wanted |= {claim["reference"]}
        more = [f for f in (*others, *controls) if _name(f) in wanted]
        made = told | {_name(f): f for f in generate(at, [*more, *(scored[k] for k in {1, point})])}
        arms = [made.get(_name(f), f) for f in (first, last, *scored.values(), *others, *controls)]
        rows = [row for f in arms for row in f.table(asked)]
        summary = summarise(rows, BASE)
        labels = {"task": asked.prompts.task.name, "group": "", "n": len(asked.prompts.items)}
        of_point = labels | {"arm": _name(raw[point])}
        summary += [
            of_point | {"metric": "operating_point", "value": point, "method": "least k of 90 % of the largest effect"},
            of_point | {"metric": "effect_minus_largest_control", **claim},
            *(labels | row for row in _ranks(inside, asked.metric, q, len(asked.prompts.items))),
            *(
                labels | {"arm": _name(raw[k]), "metric": "energy", "value": e, "method": _ENERGY}
                for k, e in energies.items()
            ),
        ]
        found = FunctionalRank(rows, [f.point.arm.row for f in arms], summary, energies, inside, least, point)
        if out is not None:
            write_results(out, "rank", found.rows)
            write_summary(out, found.arms, found.summary)
    return found


_ENERGY = "Σ‖Δ_k‖²/Σ‖Δ‖² of the seven linear kinds"


def _step(operator: str, rank: Any, strength: float = 1.0) -> dict[str, Any]:
    return {"operator": operator, "rank": rank, "strength": strength}


def _deltas(all_of_it: Opened) -> list[_Delta]:
    """The factors of every matrix that differs."""
    found = []
    for row in editable(all_of_it.pair):
        for step in all_of_it.steps.get(row.name.name, ()):
            form = leading(all_of_it, row, step)
            if not form.zero:
                found.append(_Delta(row, all_of_it.of("base", row), form.left, form.right))
    return found


def _energy(deltas: Sequence[_Delta], k: int) -> float:
    return float(sum(d.energies[:k].sum() for d in deltas) / sum(d.energies.sum() for d in deltas))


def _inside(
    at: Bench, scored: Mapping[Rank, Found], tuned: Found
) -> tuple[dict[Rank, tuple[bool, bool | None]], dict[str, Found]]:
    """Which ranks lie in the tuned model's intervals; upwards, generating while there is something to find."""
    pairing = at.pairing
    thinking, accuracy = mean(_values(tuned, pairing)), rate(_correct(tuned))
    inside: dict[Rank, tuple[bool, bool | None]] = {}
    told: dict[str, Found] = {}
    for k, found in scored.items():
        thinks, right = _within(mean(_values(found, pairing)), thinking), None
        answered, both = (any(test(pair) for pair in inside.values()) for test in (lambda p: p[1], all))
        if not answered or (thinks and not both):
            (made,) = generate(at, [found])
            told[_name(made)] = made
            right = _within(rate(_correct(made)), accuracy)
        inside[k] = (thinks, right)
    return inside, told


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
        found.append({"arm": "Δ_k", "metric": name, "value": full if least == "full" else least, "method": rule})
    return found


def _within(found: Row, interval: Row) -> bool:
    return interval["low"] is not None and interval["low"] <= found["value"] <= interval["high"]


def _controls(asked: Pairing, base: Opened, deltas: Sequence[_Delta], k: int) -> list[Point]:
    """Random left vectors under the same σ and V, and the last k of the other triples at the length of Δ_k."""

    def random(seed: int) -> Iterator[tuple[Tensor, Form]]:
        rng = np.random.default_rng(seed)
        for d in deltas:
            rank = min(k, d.left.shape[1])
            left = np.linalg.qr(rng.standard_normal((len(d.left), rank)))[0]
            yield d.row, d.base + Form.product(left * np.sqrt(d.energies[:rank]), d.right[:rank])

    def bottom() -> Iterator[tuple[Tensor, Form]]:
        for d in deltas:
            start = max(k, d.left.shape[1] - k)
            left, energy = d.left[:, start:], d.energies
            if left.shape[1]:
                stretch = np.sqrt(energy[:k].sum() / energy[start:].sum())
                yield d.row, d.base + Form.product(left * stretch, d.right[start:])

    common = {"base": asked.base, "tuned": asked.tuned, "operator": "truncate", "rank": k}
    made = [
        placed(_control(f"random U {seed}", k, common | {"seed": seed}), 1.0, base, lambda seed=seed: random(seed))
        for seed in range(SEEDS)
    ]
    return [*made, placed(_control(f"bottom {k}", k, common), 1.0, base, bottom)]


def _control(name: str, k: int, edit: dict[str, Any]) -> Arm:
    return Arm(name, "control", edit | {"control": name}, control_of=f"Δ_{k}")


def _values(found: Found, pairing: Pairing) -> list[float]:
    return [v for v in found.probabilities[pairing.metric] if v is not None]


def _correct(found: Found) -> list[list[bool]]:
    """Right or wrong of every item, once per sample."""
    by_item: dict[str, list[bool]] = {}
    mode, outcome = OUTCOMES["accuracy"]
    for row in found.rows:
        if row["mode"] == mode:
            by_item.setdefault(row["item"], []).append(outcome(row))
    return list(by_item.values())


def _name(of: Found | Point) -> str:
    return (of.point if isinstance(of, Found) else of).arm.name
