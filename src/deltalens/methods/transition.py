"""The transition from base to tuned along W_b + λΔ (Wu et al., arXiv 2510.10977), and which modules carry it.

Probabilities are taken at every λ, completions on a coarse grid and where thinking begins: the greedy think ratio is a
step function of p_think, and the two have their own λ50.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from deltalens.edit.select import GROUPS
from deltalens.edit.shares import change_norm
from deltalens.evaluate.scores import Row, summarise
from deltalens.methods.pair import Pairing, opened
from deltalens.methods.pair_arms import Bench, Found, Point, bench, edited, generate, score
from deltalens.store.engine import Progress
from deltalens.store.experiment import write_results, write_summary
from deltalens.sweep.transition import POINTS, Verdict, lambda_at, sharpness, verdict, width

VERSION = 1
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

FULL, SKIP_MLP, SKIP_ATTENTION = "all", "skip MLP", "skip attention"
CURVES = {FULL: (), SKIP_MLP: GROUPS["mlp"], SKIP_ATTENTION: GROUPS["attention"]}
"""Curves along λ, with the kinds that stay at base; embeddings, norms and the output head move on all of them."""
_COARSE = 6  # λ with completions before anything is known: 0, .2, …, 1


@dataclass(frozen=True, slots=True)
class Curve:
    """One way from base to tuned.

    Attributes:
        name: One of `CURVES`.
        lambdas: Ascending.
        p: The measure of thinking, [points, prompts].
        summary: λ50, width and sharpness as rows of a summary.
        verdict: Whether it is sharp.
    """

    name: str
    lambdas: tuple[float, ...]
    p: Float64[np.ndarray, "points prompts"]
    summary: list[Row]
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Transition:
    """What a transition sweep found.

    Attributes:
        rows: `store.results.RESULTS`; an arm without completions has no text.
        arms: `store.results.ARMS`.
        summary: `store.results.SUMMARY`; numbers of a whole curve have its name as their arm.
        curves: All parameters, then the ablations.
        generated: λ with completions, all parameters moving.
    """

    rows: list[Row]
    arms: list[Row]
    summary: list[Row]
    curves: list[Curve]
    generated: list[float]


def transition(
    asked: Pairing,
    points: int = POINTS,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
) -> Transition:
    """Interpolates from base to tuned and says where thinking begins, how sharply, and without which modules.

    Args:
        asked: From `methods.pair.pairing`.
        points: How many λ in [0, 1], evenly spaced; with fewer than 21 the verdict is `undecided`.
        out: Directory for the tables, where an interrupted sweep resumes; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.

    Raises:
        BadInput: The model does not load.
        Refused: It keeps a tensor in a way that is not known, or `out` holds something else.
    """
    lambdas = tuple(i / (points - 1) for i in range(points))
    recipe = {"recipe": "transition", "version": VERSION, "points": points}
    with bench(asked, recipe, out, progress, command) as at:
        found = {name: score(at, of) for name, of in _points(asked, lambdas).items()}
        p = {name: np.array([f.probabilities[asked.metric] for f in of], float) for name, of in found.items()}
        whole = _generated(at, lambdas, found[FULL], p[FULL])
        ends = generate(at, [found[name][-1] for name in (SKIP_MLP, SKIP_ATTENTION)])
        told = {f.point.arm.name: f for f in (*whole.values(), *ends)}
        arms = {f.point.arm.name: told.get(f.point.arm.name, f) for of in found.values() for f in of}
        rows = [row for f in arms.values() for row in f.table(asked)]
        generated = [lambdas[i] for i in whole]
        ratio = {"metric": "lambda50_think_ratio", **lambda_at(generated, _thought(whole.values()), odds=False)}
        curves = [_curve(name, lambdas, p[name], asked.metric, [ratio] if name == FULL else []) for name in CURVES]
        labels = {"task": asked.prompts.task.name, "group": ""}
        summary = summarise(rows, arm_name(FULL, 0.0))
        summary += [{"arm": curve.name, **labels, **row} for curve in curves for row in curve.summary]
        made = Transition(rows, [f.point.arm.row for f in arms.values()], summary, curves, generated)
        if out is not None:
            write_results(out, "transition", made.rows)
            write_summary(out, made.arms, made.summary)
    return made


def arm_name(curve: str, strength: float) -> str:
    """The name of the arm at a point of a curve; at λ = 0 all curves are the base."""
    return f"λ = {strength:g}" + (f", {curve}" if curve != FULL and strength else "")


def _points(asked: Pairing, lambdas: Sequence[float]) -> dict[str, list[Point]]:
    """The arms of every curve."""
    made = {}
    for name, skipped in CURVES.items():
        norm = change_norm(opened(asked, _step(1.0, skipped)))  # that of λΔ is λ times as long
        made[name] = []
        for strength in lambdas:
            edit = opened(asked, _step(strength, skipped if strength else ()))
            role = "edit" if strength else "baseline"
            made[name].append(edited(arm_name(name, strength), role, edit, strength, strength * norm))
    return made


def _step(strength: float, skipped: Sequence[str] = ()) -> dict[str, Any]:
    kinds = {"kinds": [kind for kind in GROUPS["all"] if kind not in skipped]} if skipped else {}
    return {"operator": "interpolate", "strength": strength, **kinds}


def _generated(
    at: Bench, lambdas: Sequence[float], found: Sequence[Found], p: Float64[np.ndarray, "points prompts"]
) -> dict[int, Found]:
    """Completions at six λ, on both sides of where p is ½, and wherever the think ratio is seen to pass ½."""
    wanted = set(np.linspace(0, len(lambdas) - 1, _COARSE).round().astype(int).tolist())
    wanted |= set(_around(p, range(len(lambdas))))
    made = dict(zip(sorted(wanted), generate(at, [found[i] for i in sorted(wanted)]), strict=True))
    first, last = _around(_thought(made.values()), list(made)) or (0, 0)
    between = range(first + 1, last)
    made |= zip(between, generate(at, [found[i] for i in between]), strict=True)
    return dict(sorted(made.items()))


def _around(values: Float64[np.ndarray, "points prompts"], at: Sequence[int]) -> tuple[int, int] | tuple[()]:
    """The neighbours between which the mean first passes ½, as they are numbered."""
    means = values.mean(1)
    i = next((i for i in range(1, len(means)) if (means[i - 1] < 0.5) != (means[i] < 0.5)), None)
    return () if i is None else (at[i - 1], at[i])


def _thought(found: Iterable[Found]) -> Float64[np.ndarray, "points prompts"]:
    return np.array([[r["thought"] for r in f.rows if r["mode"] == "free"] for f in found], float)


def _curve(
    name: str, lambdas: tuple[float, ...], p: Float64[np.ndarray, "points prompts"], metric: str, more: list[Row]
) -> Curve:
    sharp = sharpness(lambdas, p)
    said = verdict(lambdas, p, sharp)
    summary = [
        {"metric": f"lambda50_{metric}", **lambda_at(lambdas, p)},
        *more,
        {"metric": f"width_{metric}", **width(lambdas, p)},
        {"metric": "sharpness", **sharp, "method": f"{said.word}: {said.why}"},
    ]
    return Curve(name, lambdas, p, summary, said)
