"""How published claims fare on an experiment: for each a word and a sentence of its numbers, intervals and nulls.

Claims of training by reward are held against a pair of role `rl` where there is one, else against the main pair.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltalens.errors import BadInput, DeltalensError
from deltalens.evaluate.scores import Row
from deltalens.experiment.evidence import Step, joined, pairs_of, run_of, step_of
from deltalens.methods.functional_rank import OUT, PUT, WIDE
from deltalens.methods.transition import FULL, SKIP_ATTENTION, SKIP_MLP
from deltalens.spectrum.reading import CHANCE, against, beyond_nulls, decided, equal_size, middle, principal
from deltalens.store.run import Run
from deltalens.sweep.verdicts import ENOUGH, PART, fraction

AGREES, DISAGREES, CANNOT_SAY = "agrees", "disagrees", "cannot say"

MOST_UNCHANGED = 0.7
"""2505.11711: 5 to 30 % of the weights move."""
FULL_RANK = 0.95
"""Numerical rank over full rank that is "nearly full" (ours)."""
ALL_OF_IT = 0.99
"""2510.00553: more than 99 % of the gain."""
SWITCHES = (0.4, 0.6)
"""2510.10977: λ between which thinking comes on."""
SPREAD = 2.0
"""Standard deviations of its null beyond which a scaling of σ is one (ours)."""
SOLVED = 0.2
"""Accuracy below which a task has nothing to lose (ours; chance is .1 on the family)."""
MARGIN = 0.05
"""A fall of accuracy within this is none (docs/measures.md §7)."""


@dataclass(frozen=True, slots=True)
class _Weights:
    """A measured pair: its name, its RUN and the matrices that changed."""

    name: str
    run: Run
    rows: list[Row]

    def medians(self, *columns: str) -> list[float]:
        """Median of each column over the matrices that have all of them.

        Raises:
            BadInput: None has.
        """
        known = [row for row in self.rows if all(row[column] is not None for column in columns)]
        if not known:
            raise BadInput(f"{columns[0].replace('_', ' ')} was not measured in {self.name}")
        return [float(np.median([row[column] for row in known])) for column in columns]

    def drawn(self, statistic: str) -> tuple[bool | None, str]:
        """Whether a statistic survives every null of the ensemble, None where none ran, and that in words."""
        nulls = self.run.nulls
        tested = decided(against(None if nulls is None else nulls.to_pylist()).get(statistic, ()))
        if not tested:
            return None, "no null draws"
        told = ", ".join(f"{a.null} draws in {a.outside} of {a.tested}" for a in tested)
        return beyond_nulls(tested), f"outside {told} matrices"


def _weights(exp: Path, *roles: str) -> _Weights:
    """The first pair of one of these roles."""
    by_role = {role: name for name, role in reversed(pairs_of(exp).items())}
    name = next(by_role[role] for role in (*roles, "main") if role in by_role)
    run = run_of(exp, name)
    return _Weights(name, run, [row for row in run.matrices.to_pylist() if row["norm_delta"]])


def sparse(exp: Path) -> tuple[str, str]:
    """Unchanged entries and numerical rank, beside the predicted share and the spikes."""
    w = _weights(exp, "rl")
    zeros, predicted = w.medians("zero_fraction", "predicted_zero_fraction")
    (spikes,) = w.medians("spikes")
    numerical = full = 0
    for row in w.rows:
        sigma = w.run.spectrum(row["name"])
        numerical += int((sigma > sigma[0] * max(row["rows"], row["cols"]) * np.finfo(np.float32).eps).sum())
        full += len(sigma)
    rank = numerical / full
    here = (
        f"{w.name}: {zeros:.1%} of the entries did not change in the median matrix, where rounding alone would leave "
        f"{predicted:.1%}; the numerical rank is {rank:.0%} of the full one, with {spikes:.0f} spikes above rounding "
        f"and chance in the median matrix."
    )
    return (AGREES if zeros >= MOST_UNCHANGED and rank >= FULL_RANK else DISAGREES), here


def _shares(step: Step, curve: str) -> tuple[Row, Row]:
    """F of the first place on a curve over ranks: by the measure of thinking, and by accuracy if it was completed."""
    arm = step.at(curve, 1.0)
    found = []
    for of in (None, "correct"):
        if of and not step.wrote(arm):
            why = f"{arm} wrote no completions"
            found.append(dict.fromkeys(("value", "low", "high"), None) | {"n": 0, "method": why})
            continue
        base, first, tuned = (step.values(name, of) for name in ("base", arm, "tuned"))
        sides = joined(base, first, tuned)
        if sides is None:
            raise BadInput(f"{arm} was scored on other items than the pair")
        found.append(fraction(sides[0], sides[1], sides[2]))
    return found[0], found[1]


def rank_one(exp: Path) -> tuple[str, str]:
    """What rank 1 of every matrix brings, raw and stretched to the norm of Δ."""
    w, step = _weights(exp), step_of(exp, "rank")
    (energy,) = w.medians("top_energy_1")
    raw, stretched = _shares(step, PUT), _shares(step, WIDE)
    here = (
        f"{w.name}: the first singular direction holds {energy:.0%} of ‖Δ‖² in the median matrix. Put into the base, "
        f"rank 1 brings {_interval(raw[0])} of the difference in {step.metric} and {_interval(raw[1])} of that in "
        f"accuracy; stretched to ‖Δ‖, {_interval(stretched[0])} and {_interval(stretched[1])}."
    )
    share = stretched[1]
    if share["low"] is None:
        return CANNOT_SAY, here
    if share["high"] < ALL_OF_IT:
        return DISAGREES, here
    return (AGREES if share["low"] >= ENOUGH else CANNOT_SAY), here


def path(exp: Path) -> tuple[str, str]:
    """Rank 1 of a path, for which there are too few checkpoints."""
    w = _weights(exp)
    (energy,) = w.medians("top_energy_1")
    here = (
        f"{w.name}: two checkpoints have no path, for which three are needed. Of each matrix by itself, which is "
        f"another question, the first direction holds {energy:.0%} of ‖Δ‖² in the median."
    )
    try:
        step = step_of(exp, "rank")
        here += f" Put into the base it brings {_interval(_shares(step, PUT)[0])} of the difference in {step.metric}."
    except DeltalensError:
        pass
    return CANNOT_SAY, here


def off_principal(exp: Path) -> tuple[str, str]:
    """Energy of Δ in the base's principal directions over chance."""
    w = _weights(exp, "rl")
    found = principal(w.rows)
    if found is None:
        raise BadInput(f"{w.name} was measured without --context")
    held, chance = found
    beyond, draws = w.drawn("principal_energy")
    told = f"{w.name}: the base's principal directions hold {held:.2%} of ‖Δ‖², {held / chance:.2g} × chance ({draws})"
    main = _weights(exp)
    other = principal(main.rows)
    if main.name != w.name and other is not None:
        told += f"; {other[0] / other[1]:.2g} × in {main.name}"
        sizes = [one.run.record["totals"]["relative_change"] for one in (w, main)]
        if not equal_size(*sizes):
            told += f", size not matched (‖Δ‖/‖W‖ {sizes[0]:.1%} and {sizes[1]:.1%}), so that they are not ranked"
    if held / chance >= CHANCE[0]:
        return DISAGREES, f"{told}."
    return (CANNOT_SAY if beyond is False else AGREES), f"{told}."


def scaling(exp: Path) -> tuple[str, str]:
    """A common factor of all σ, beyond its null."""
    w = _weights(exp)
    drift, drift_null, scaling, sd = w.medians("spectral_drift", "spectral_drift_null", "scaling", "scaling_null_sd")
    scaled = middle([abs(r["scaling"] - 1) / r["scaling_null_sd"] for r in w.rows if r["scaling_null_sd"]])
    beyond, draws = w.drawn("spectral_drift")
    here = (
        f"{w.name}: the median σ is scaled by {scaling:.4f} (null 1 ± {sd:.2g}), and the spectrum moved by {drift:.2g} "
        f"of ‖Δ‖ (null {drift_null:.2g}; {draws}), medians over matrices. {_turned(w)}"
    )
    moved = drift > CHANCE[1] * drift_null if beyond is None else beyond
    if not moved:
        return CANNOT_SAY, f"{here} A spectrum that moves no more than by chance has no scaling to be uniform."
    return (AGREES if scaled is not None and scaled > SPREAD else DISAGREES), here


def extremes(exp: Path) -> tuple[str, str]:
    """Change of σ against rotation of the leading directions."""
    w = _weights(exp)
    drift, left, left_null, right, right_null = w.medians(
        *("spectral_drift", "left_rotation", "left_rotation_null", "right_rotation", "right_rotation_null")
    )
    beyond = [w.drawn(f"{side}_rotation")[0] for side in ("left", "right")]
    here = (
        f"{w.name}: {drift**2:.1%} of ‖Δ‖² is a change of singular values in the median matrix. {_turned(w)} "
        f"The tail of the spectrum and restoration were not measured."
    )
    more = left > CHANCE[1] * left_null or right > CHANCE[1] * right_null
    if any(b is not None for b in beyond):
        more = any(beyond)
    if drift**2 >= PART:
        return DISAGREES, here
    if not more:
        return CANNOT_SAY, f"{here} Directions that turn no more than by chance say nothing of training."
    return AGREES, here


def _turned(w: _Weights) -> str:
    told = []
    for side, word in (("left", "output"), ("right", "input")):
        value, null = w.medians(f"{side}_rotation", f"{side}_rotation_null")
        told.append(f"{value:.2g} on the {word} side (null {null:.2g}; {w.drawn(f'{side}_rotation')[1]})")
    return f"The leading directions of the base turned by {' and '.join(told)}."


def removal(exp: Path) -> tuple[str, str]:
    """What taking Δ away costs in accuracy."""
    step = step_of(exp, "negate")
    arm = step.row(_NEGATED, "operating_point")["reference"]
    if not step.wrote(arm):
        raise BadInput(f"{arm} wrote no completions")
    solved = [
        row["task"]
        for row in step.summary
        if (row["arm"], row["metric"], row["reference"], row["group"]) == ("base", "accuracy", None, "")
        and row["value"] >= SOLVED
    ]
    if not solved:
        raise BadInput("the base solves no task of the ledger, so that it has nothing to lose")
    lost = {task: step.shift("base", arm, "accuracy", task) for task in solved}
    told = "; ".join(f"{task} {_interval(row, '+')}" for task, row in lost.items())
    here = f"{arm}: accuracy less the base's on tasks that the base solves: {told}."
    out = step.row(OUT, "operating_point")["reference"]
    left = {name: step.shift("tuned", out, metric) for name, metric in _OUTCOMES.items()}
    told = "; ".join(f"{name} {_interval(row, '+')}" for name, row in left.items())
    here += f" {out}, less the tuned model's: {told}."
    if any(row["high"] < 0 for row in lost.values()):
        return AGREES, here
    return (DISAGREES if all(row["low"] > -MARGIN for row in lost.values()) else CANNOT_SAY), here


_NEGATED = "base − ατ"
_OUTCOMES = {"accuracy": "accuracy", "with thinking forced": "forced_accuracy"}


def switch(exp: Path) -> tuple[str, str]:
    """Where along λ thinking comes on."""
    step = step_of(exp, "transition")
    ratio, sharp = step.row(FULL, "lambda50_think_ratio"), step.row(FULL, "sharpness")
    own, width = step.row(FULL, f"lambda50_{step.metric}"), step.row(FULL, f"width_{step.metric}")
    here = (
        f"λ50 of the greedy think ratio is {_interval(ratio)}, that of {step.metric} {_interval(own)} with a width of "
        f"{_interval(width)}; J = {_interval(sharp)} ({sharp['method']})."
    )
    if ratio["low"] is None:
        return CANNOT_SAY, here
    if ratio["low"] >= SWITCHES[0] and ratio["high"] <= SWITCHES[1]:
        return AGREES, here
    apart = ratio["low"] > SWITCHES[1] or ratio["high"] < SWITCHES[0]
    return (DISAGREES if apart else CANNOT_SAY), here


def mlp(exp: Path) -> tuple[str, str]:
    """Whether Δ without the MLP, or without attention, brings thinking."""
    step = step_of(exp, "transition")
    without = {name: step.row(name, "fraction") for name in (SKIP_MLP, SKIP_ATTENTION)}
    told = "; ".join(f"{name} {_interval(row)}" for name, row in without.items())
    here = f"F at λ = 1: {told}."
    alone = [row for row in step.summary if row["arm"].startswith("only ") and row["metric"] == "fraction"]
    if known := [row for row in alone if row["value"] is not None]:
        best = max(known, key=lambda row: row["value"])
        here += f" Of single parts {best['arm']} does most: {_interval(best)}."
    mlp, attention = without[SKIP_MLP], without[SKIP_ATTENTION]
    if mlp["low"] is None or attention["low"] is None:
        return CANNOT_SAY, here
    if mlp["high"] < PART and attention["low"] >= ENOUGH:
        return AGREES, here
    opposite = mlp["low"] >= PART or attention["high"] < PART
    return (DISAGREES if opposite else CANNOT_SAY), here


def _interval(row: Row, sign: str = "") -> str:
    if row["value"] is None:
        return f"undefined ({row['method']})"
    if row["low"] is None:
        return f"{row['value']:{sign}.2f} (no interval)"
    return f"{row['value']:{sign}.2f} [{row['low']:{sign}.2f}, {row['high']:{sign}.2f}]"
