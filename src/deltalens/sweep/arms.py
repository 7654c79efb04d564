"""Arms as data, the controls of a direction, and the numbers that a claim rests on (docs/behaviour.md §6).

effect            an arm less the baseline, on the same items
operating point   the least strength that reaches 90 % of the largest effect of its curve
claim             the size of the effect less that of the largest control's, paired by item
breaking point    the least strength at which what is not the effect gives way
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import numpy as np
from jaxtyping import Float32

from deltalens.direction.direction import Direction
from deltalens.direction.estimate import Samples, permuted
from deltalens.evaluate.scores import Row, mean, outcome_pairs, rate_difference
from deltalens.store.parts import part_key

SEEDS = 5
"""Controls of each random kind at an operating point."""

CHOSEN_ON = 60
"""Items of the select split on which things are chosen, and of the extract split for ‖h‖."""

REACHED = 0.9
"""Share of the largest effect that makes an operating point."""

WORSE = 0.1
"""How much a rate must worsen, its interval excluding 0, for an arm to be broken."""

_WRONG_LAYERS = 5


@dataclass(frozen=True, slots=True)
class Arm:
    """One thing that is done to a model, as data; a method carries it out.

    Attributes:
        name: Readable, unique within an experiment.
        role: `baseline`, `edit` or `control`.
        edit: Everything that defines it, as plain JSON values; empty for a baseline.
        control_of: Name of the arm whose control it is.
        norm_delta: ‖W′ − W‖_F of an edit of weights.
        functional_norm: Root mean square length of what the edit adds to an activation, where that is known.
    """

    name: str
    role: str
    edit: Mapping[str, Any] = field(default_factory=dict)
    control_of: str | None = None
    norm_delta: float | None = None
    functional_norm: float | None = None

    @property
    def labels(self) -> Row:
        """What its rows in `store.results.RESULTS` begin with."""
        strength = self.edit.get("strength")
        return {"arm": self.name, "role": self.role, "edit_hash": self._hash, "strength": strength}

    @property
    def row(self) -> Row:
        """Its row in `store.results.ARMS`."""
        edit = json.dumps(dict(self.edit)) if self.edit else None
        norms = {"norm_delta": self.norm_delta, "functional_norm": self.functional_norm}
        names = {"arm": self.name, "edit_hash": self._hash, "edit": edit}
        return names | {"role": self.role, "control_of": self.control_of} | norms

    @property
    def _hash(self) -> str | None:
        return part_key(dict(self.edit)) if self.edit else None


@dataclass(frozen=True, slots=True, eq=False)
class Control:
    """Vectors that stand in for those of a direction, row by row of the same length.

    Attributes:
        kind: `permuted`, `isotropic` or `wrong layer`.
        vectors: Like those of the direction.
        seed: Of a drawn one.
        layer: Of a wrong layer.
    """

    kind: str
    vectors: Float32[np.ndarray, "k d"]
    seed: int | None = None
    layer: int | None = None

    @property
    def name(self) -> str:
        """As it stands in the name of an arm."""
        return f"v of layer {self.layer}" if self.seed is None else f"{self.kind} {self.seed}"


def direction_controls(
    direction: Direction, of: Samples, others: Sequence[Direction], seeds: Sequence[int] = range(SEEDS)
) -> list[Control]:
    """The controls of a direction, all of its length.

    Label-permuted differences of means have the covariance of activations and nothing of the contrast; isotropic ones
    have only the length. A wrong layer's direction, put where this one goes, asks another question: since the residual
    stream carries a direction on, it may well be the same one (ours: it is kept apart from the random ones).

    Args:
        direction: What is controlled.
        of: The activations whose labels are permuted.
        others: The same direction of other layers, in order; at most five, evenly spread, are taken.
        seeds: Of the random ones, one of each kind for each seed.
    """
    k, d = direction.vectors.shape
    length = np.linalg.norm(direction.vectors.astype(np.float64), axis=1, keepdims=True)

    def matched(rows: np.ndarray) -> Float32[np.ndarray, "k d"]:
        return (rows * (length / np.linalg.norm(rows, axis=1, keepdims=True))).astype(np.float32)

    spread = np.unique(np.linspace(0, len(others) - 1, min(len(others), _WRONG_LAYERS)).round().astype(int))
    return [
        *(Control("permuted", matched(permuted(of, k, seed)), seed) for seed in seeds),
        *(Control("isotropic", matched(np.random.default_rng(seed).standard_normal((k, d))), seed) for seed in seeds),
        *(Control("wrong layer", matched(others[i].vectors.astype(np.float64)), None, others[i].layer) for i in spread),
    ]


def operating_point(strengths: Sequence[float], effects: Sequence[float]) -> float:
    """The strength of least size that reaches 90 % of the largest effect, in that effect's direction.

    Args:
        strengths: Of one curve.
        effects: Of each, signed; the largest is the one of largest size.
    """
    largest = max(effects, key=abs)
    towards = -1.0 if largest < 0 else 1.0
    reached = [s for s, effect in zip(strengths, effects, strict=True) if towards * effect >= REACHED * abs(largest)]
    return min(reached, key=abs)


def effect_minus_largest_control(
    baseline: Sequence[float],
    edit: Sequence[float],
    controls: Mapping[str, Sequence[float]],
    level: float = 0.95,
) -> Row:
    """|effect| − |effect of the largest control|, with an interval that is paired by item.

    A control that moves the measure the other way is a control that moves it: both effects count by size. Which control
    is largest is decided on the same items, which makes it look larger than it is: the claim is the harder to make.

    Args:
        baseline: The measure on every item.
        edit: The same of the arm.
        controls: The same of its controls, by name; at least one.
        level: Coverage of the interval.

    Returns:
        The columns n, value, low, high, method and p of a summary, and `reference`, the name of that control.
    """
    effects = {name: fmean(values) - fmean(baseline) for name, values in controls.items()}
    largest = max(effects, key=lambda name: abs(effects[name]))
    toward = -1.0 if fmean(edit) < fmean(baseline) else 1.0
    away = -1.0 if effects[largest] < 0 else 1.0
    triples = zip(baseline, edit, controls[largest], strict=True)
    return {"reference": largest, **mean([toward * (e - b) - away * (c - b) for b, e, c in triples], level)}


def broken(baseline: Sequence[Row], arm: Sequence[Row], perplexities: tuple[float, float] | None) -> tuple[str, ...]:
    """What has given way in an arm, in words; empty while it holds (ours).

    Forced accuracy has fallen, or answers that are not in the asked form or loops have risen, by .1 or more with the
    paired interval excluding 0; or the perplexity of the neutral text has doubled.

    Args:
        baseline: Rows of `store.results.RESULTS`.
        arm: The same of the arm, on the same items.
        perplexities: Of baseline and arm, where both are known.
    """
    found = []
    for metric, sign in (("forced_accuracy", -1.0), ("format_failures", 1.0), ("loops", 1.0)):
        pairs = outcome_pairs(baseline, arm, metric)
        if not pairs:
            continue
        change = rate_difference(pairs)
        bound = change["low"] if sign > 0 else change["high"]
        if sign * change["value"] >= WORSE and bound is not None and sign * bound > 0:
            found.append(f"{metric.replace('_', ' ')} {change['value']:+.2f}")
    if perplexities is not None and perplexities[1] >= 2 * perplexities[0]:
        found.append(f"perplexity ×{perplexities[1] / perplexities[0]:.2g}")
    return tuple(found)


def breaking_point(strengths: Sequence[float], damage: Sequence[Sequence[str]]) -> float | None:
    """The strength of least size at which something has given way (`broken`); None where all hold."""
    return min((s for s, found in zip(strengths, damage, strict=True) if found), key=abs, default=None)
