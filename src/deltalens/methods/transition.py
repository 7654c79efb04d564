"""The transition from base to tuned along W_b + λΔ (Wu et al., arXiv 2510.10977), and which parts of Δ carry it.

All parameters move, or all but the MLP or the attention, or one band of layers or one kind alone, the rest staying at
base (the ablations of the paper, over thirds of the depth; kinds are ours). Probabilities are taken at every λ,
completions at both ends and, by halving, where greedy thinking passes ½: the think ratio is a step function of p_think,
and the two have their own λ50. Nothing is chosen here, and there is no control: how far a part goes is F at its λ = 1.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.names import LINEAR
from deltalens.checkpoint.pair import Pair
from deltalens.edit.select import GROUPS, depth, kinds_of, weights_of
from deltalens.edit.shares import change_norm
from deltalens.evaluate.scores import Row, summarise
from deltalens.store.engine import Progress
from deltalens.store.experiment import write_results, write_summary
from deltalens.sweep.bench import Bench, Found, Point, bench, edited, generate, score
from deltalens.sweep.pair import FEW, Pairing, opened
from deltalens.sweep.transition import POINTS, lambda_at, sharpness, verdict, width
from deltalens.sweep.verdicts import Verdict, fraction

VERSION = 3
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

LEGEND = """\
W_b + λΔ over every tensor; skip MLP, skip attention: those kinds stay at base; layers, only: all else stays there. F:
share of the pair's difference at λ = 1. λ50: where the mean passes ½, by the greedy think ratio as soon as thinking is
likelier than any other start. width: λ(p = .9) − λ(p = .1). J: largest share of the change of log-odds inside .2 of λ:
.2 for a straight line, sharp from .6, smooth up to .4; all of them from λ in [0, 1].
Intervals are 99.4 % (1 − .05/8), bootstrap by item."""

Selectors = dict[str, Any]
"""Fields of an operation that say what it touches."""

FULL, SKIP_MLP, SKIP_ATTENTION = "all", "skip MLP", "skip attention"
REST = "only embeddings, head, norms"


def _without(group: str) -> Selectors:
    return {"kinds": [kind for kind in GROUPS["all"] if kind not in GROUPS[group]]}


CURVES: dict[str, Selectors] = {FULL: {}, SKIP_MLP: _without("mlp"), SKIP_ATTENTION: _without("attention")}
"""Curves over the whole depth, with what moves; embeddings, norms and the output head move on all of them."""


@dataclass(frozen=True, slots=True)
class Curve:
    """One way from base to tuned.

    Attributes:
        name: One of `CURVES`, or of `parts`.
        lambdas: Ascending from 0 to 1.
        p: The measure of thinking, [points, prompts].
        summary: λ50, width and sharpness as rows of a summary.
        verdict: Whether it is sharp.
        fraction: F at λ = 1, likewise; None where all parameters move.
    """

    name: str
    lambdas: tuple[float, ...]
    p: Float64[np.ndarray, "points prompts"]
    summary: list[Row]
    verdict: Verdict
    fraction: Row | None


@dataclass(frozen=True, slots=True)
class Transition:
    """What a transition sweep found.

    Attributes:
        rows: `store.results.RESULTS`; an arm without completions has no text.
        arms: `store.results.ARMS`.
        summary: `store.results.SUMMARY`; numbers of a whole curve have its name as their arm.
        curves: All parameters, then without MLP and without attention.
        parts: Of one band of layers or one kind alone.
        generated: λ with completions, all parameters moving.
        beyond: λ outside [0, 1], all parameters moving: they have arms and no part in any number of a curve.
    """

    rows: list[Row]
    arms: list[Row]
    summary: list[Row]
    curves: list[Curve]
    parts: list[Curve]
    generated: list[float]
    beyond: list[float]


def transition(
    asked: Pairing,
    points: int = POINTS,
    beyond: float = 0.0,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
    kl: bool = True,
    alone: bool = True,
) -> Transition:
    """Interpolates from base to tuned and says where thinking begins, how sharply, and in which modules.

    Args:
        asked: From `sweep.pair.pairing`.
        points: How many λ in [0, 1], evenly spaced; with fewer than 21 the verdict is `undecided`.
        beyond: How far λ goes on below 0 and above 1, in the same steps.
        out: Directory for the tables, where an interrupted sweep resumes; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.
        kl: Whether KL from the base is taken where all parameters move.
        alone: Whether every band of layers and every kind moves alone too, two thirds of the points.

    Raises:
        BadInput: The model does not load.
        Refused: It keeps a tensor in a way that is not known, or `out` holds something else.
    """
    last = points - 1
    more = int(beyond * last + 1e-9)  # .3 of 20 steps is 6 of them
    unit, lambdas = (tuple(i / last for i in range(-n, points + n)) for n in (0, more))
    names = CURVES | (parts(opened(asked, _step(1.0)).pair) if alone else {})
    recipe = {"recipe": "transition", "version": VERSION, "points": points, "beyond": beyond, "alone": alone}
    with bench(asked, recipe, out, progress, command, kl) as at:
        found = {FULL: score(at, _points(asked, FULL, lambdas))}
        whole = found[FULL][more : more + points]
        others = {name: _points(asked, name, unit[1:], names[name]) for name in names if name != FULL}
        scored = iter(score(at, [p for of in others.values() for p in of], asked.prompts))  # without KL
        found |= {name: [whole[0], *islice(scored, last)] for name in others}
        thought = [] if asked.generate == FEW else _generated(at, whole)
        outside = [] if asked.generate == FEW else generate(at, [f for f in (found[FULL][0], found[FULL][-1]) if more])
        told = {f.name: f for f in (*thought, *outside)}
        arms = {f.name: told.get(f.name, f) for of in found.values() for f in of}
        rows = [row for f in arms.values() for row in f.table]
        curves = [_curve(name, whole if name == FULL else found[name], whole, asked.metric) for name in names]
        curves[0].summary.insert(1, {"metric": "lambda50_think_ratio", **_greedy(asked, thought)})
        labels = {"task": asked.prompts.task.name, "group": ""}
        summary = summarise(rows, whole[0].name)
        summary += [{"arm": c.name, **labels, **row} for c in curves for row in (*c.summary, c.fraction) if row]
        summary += [
            {"arm": f.name, **labels, "group": name, "metric": "strength", "value": _place(f)}
            for name, of in found.items()
            for f in of
        ]
        made = Transition(
            rows=rows,
            arms=[f.point.arm.row for f in arms.values()],
            summary=summary,
            curves=curves[: len(CURVES)],
            parts=curves[len(CURVES) :],
            generated=[_place(f) for f in found[FULL] if f.name in told],
            beyond=[strength for strength in lambdas if not 0 <= strength <= 1],
        )
        if out is not None:
            write_results(out, "transition", made.rows)
            write_summary(out, made.arms, made.summary)
    return made


def arm_name(curve: str, strength: float) -> str:
    """The name of the arm at a point of a curve; at λ = 0 all curves are the base."""
    return f"λ = {strength:g}" + (f", {curve}" if curve != FULL and strength else "")


def parts(pair: Pair) -> dict[str, Selectors]:
    """Parts of Δ that move alone: thirds of the depth, the last two of them, each linear kind, and all other tensors.

    Projections that are stored in one tensor move together.
    """
    count = depth(pair)
    first, second = round(count / 3), round(2 * count / 3)
    bands = [(0, first), (first, second), (second, count), (first, count)]
    found: dict[str, Selectors] = {}
    for start, stop in bands:
        if stop - start == 1:
            found[f"only layer {start}"] = {"layers": f"{start}"}
        elif start < stop:
            found[f"only layers {start}-{stop - 1}"] = {"layers": f"{start}-{stop - 1}"}
    owners = weights_of(pair)
    stored = {kinds_of(row, owners) for row in owners.values()}
    alone = [kinds for kinds in stored if set(kinds) <= {*LINEAR} and not any({*kinds} < {*more} for more in stored)]
    for kinds in sorted(alone, key=lambda kinds: LINEAR.index(kinds[0])):
        found[f"only {', '.join(kinds)}"] = {"kinds": list(kinds)}
    return found | {REST: _without("linear")}


def _points(asked: Pairing, name: str, lambdas: Sequence[float], moving: Selectors | None = None) -> list[Point]:
    """The arms of a curve."""
    norm = change_norm(opened(asked, _step(1.0, moving)))  # that of λΔ is |λ| times as long
    return [
        edited(
            arm_name(name, strength),
            "edit" if strength else "baseline",
            opened(asked, _step(strength, moving)),
            strength,
            abs(strength) * norm,
        )
        for strength in lambdas
    ]


def _step(strength: float, moving: Selectors | None = None) -> dict[str, Any]:
    return {"operator": "interpolate", "strength": strength, **(moving or {})}


def _generated(at: Bench, found: Sequence[Found]) -> list[Found]:
    """Completions at both ends and, where the think ratio passes ½ between them, by halving until neighbours have."""
    low, high = 0, len(found) - 1
    made = dict(zip((low, high), generate(at, [found[low], found[high]]), strict=True))

    def thinks(i: int) -> bool:
        return bool(_thought([made[i]]).mean() >= 0.5)

    while high - low > 1 and thinks(low) != thinks(high):
        middle = (low + high) // 2
        (made[middle],) = generate(at, [found[middle]])
        low, high = (middle, high) if thinks(middle) == thinks(low) else (low, middle)
    return [made[i] for i in sorted(made)]


def _greedy(asked: Pairing, thought: Sequence[Found]) -> Row:
    """λ50 of the greedy think ratio, or why there is none."""
    why = f'no completions: generate = "{asked.generate}"' if not thought else asked.not_greedy
    if why is not None:
        return {"n": len(asked.prompts.items), "value": None, "low": None, "high": None, "p": None, "method": why}
    return lambda_at([_place(f) for f in thought], _thought(thought), odds=False)


def _measured(found: Iterable[Found], metric: str) -> Float64[np.ndarray, "points prompts"]:
    return np.array([f.values(metric) for f in found], float)


def _thought(found: Iterable[Found]) -> Float64[np.ndarray, "points prompts"]:
    return np.array([[r["thought"] for r in f.rows if r["mode"] == "free"] for f in found], float)


def _place(found: Found) -> float:
    assert found.point.strength is not None
    return found.point.strength


def _curve(name: str, found: Sequence[Found], whole: Sequence[Found], metric: str) -> Curve:
    """What is said of a curve from λ = 0 to 1; F is that of its end, against the ends of the whole."""
    lambdas, p = tuple(map(_place, found)), _measured(found, metric)
    sharp = sharpness(lambdas, p)
    said = verdict(lambdas, p, sharp)
    summary = [
        {"metric": f"lambda50_{metric}", **lambda_at(lambdas, p)},
        {"metric": f"width_{metric}", **width(lambdas, p)},
        {"metric": "sharpness", **sharp, "method": f"{said.word}: {said.why}"},
    ]
    share = None
    if name != FULL:
        share = fraction(whole[0].values(metric), found[-1].values(metric), whole[-1].values(metric))
        share |= {"metric": "fraction", "reference": found[-1].name}
    return Curve(name, lambdas, p, summary, said, share)
