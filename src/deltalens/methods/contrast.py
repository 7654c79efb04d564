"""Contrast: w = θ⁺ − θ⁻ from a thinking and a non-thinking fine-tune, added to a base (arXiv 2511.05408).

θ⁺ is the tuned model, θ⁻ its sibling: a fine-tune of the same start, on the same kind of data, that does not think.
θ + k·w for k of both signs stands beside the task vector θ + k·τ⁺, τ± = θ± − θ, and an activation vector: the mean
difference tuned − base at the last prompt token of one layer, added there to the base. Layer and strengths are chosen
on the select split.

What costs less? At its operating point each way has another effect. They are compared at an equal one: 90 % of what the
weakest of the three reaches, each at the least strength that gets there, found by halving; other tasks and the neutral
text are asked there too.

Of the pair: cos(τ⁺, −τ⁻), ‖τ⁺‖/‖τ⁻‖, the drift ratio ‖(τ⁺+τ⁻)/2‖/‖w/2‖ and cos(w, τ⁺), over all parameters at once.
Where training moved both fine-tunes in opposite ways the first is near 1, the third near 0; two fine-tunes on unlike
data are near 0 and 1. Controls of weights are those of `sweep.matched`; of the vector, as long: permuted labels,
isotropic ones, and (shown only) those of other layers.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean

from deltalens.checkpoint.parentage import parentage
from deltalens.edit.plan import Plan
from deltalens.edit.select import editable
from deltalens.evaluate.scores import Row
from deltalens.methods.steer import Curve as Layer
from deltalens.methods.steer import choose
from deltalens.store.engine import Progress
from deltalens.store.parts import Part
from deltalens.sweep.activation_arms import Along, directions, extract, ids_of, read_last, steered, steered_controls
from deltalens.sweep.arms import REACHED
from deltalens.sweep.bench import BASE, Bench, Point, bench, edited, ends, once, score
from deltalens.sweep.curves import Curve, Swept, sweep, write
from deltalens.sweep.matched import Matched
from deltalens.sweep.pair import Pairing, opened
from deltalens.sweep.verdicts import CAUSAL

VERSION = 1
"""Raised whenever a row could change for the same input; stored parts of another version are redone."""

STRENGTHS = (0.25, 0.5, 1.0, 1.5, 2.0)
"""k; at 1 the task vector is the tuned model."""
LENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
"""k of the activation vector, in lengths of the difference of means."""

LEGEND = (
    "w = tuned − sibling; τ = tuned − base; v: mean tuned − base at one layer's last prompt token, added there.\n"
    "at equal effect: the least strength with 90 % of the largest effect of the weakest of the three, on the select\n"
    "split; what each way costs is its KL, perplexity, forced accuracy and accuracy on other tasks.\n"
    "cos anti: cos(τ, −τ_sibling); drift ratio: ‖τ + τ_sibling‖/‖w‖; 1 and 0: training only moved the two apart.\n"
    "F: (arm − base)/(tuned − base). Forced open, the last prompt token is the tag, and v is added there: the forced\n"
    "accuracy of v is no pure skill. Controls of weights keep ‖ΔΣ^½‖, those of v its length. Claims are at 99.4 %."
)

_HALVINGS = 6  # of a step of a grid: p_think rises within a few tenths of a strength
_START = {"operator": "interpolate", "strength": 0.0}
_W, _MINUS, _TAU, _V = "base + k·w", "base − k·w", "base + k·τ", "base + k·v"


def contrast(
    asked: Pairing,
    out: Path | None = None,
    progress: Callable[[Progress], None] | None = None,
    command: str | None = None,
    kl: bool = True,
) -> Swept:
    """Adds w to the base and takes it away, beside the task vector and an activation vector of equal effect.

    Args:
        asked: From `sweep.pair.pairing`, with the `sibling`.
        out: Directory for the tables, where an interrupted sweep resumes; None keeps nothing.
        progress: Called after every point.
        command: The command line to record.
        kl: Whether KL from the base is taken.

    Raises:
        BadInput: The model does not load.
        Refused: The sibling lacks a tensor, or `out` holds something else.
    """
    with bench(asked, {"recipe": "contrast", "version": VERSION}, out, progress, command, kl) as at:
        tau, tau_sibling, w = norms_squared(at)
        matched = Matched(at)

        def weights(name: str, plan_of: Callable[[float], Plan], length: float, *asks: str) -> Curve:
            def make(k: float) -> Point:
                return edited(_at(name, k), "edit", plan_of(k), k, k * length)

            def controls(point: Point) -> Sequence[Point]:
                return matched.points(point, plan_of(point.strength or 1.0)) if asks else ()

            return Curve(name, BASE, STRENGTHS, make, controls, asks)

        claims = ("causal", "sufficient")
        ways = [
            weights(_W, lambda k: along_w(asked, k), w**0.5, *claims),
            weights(_TAU, lambda k: opened(asked, _START | {"strength": k}), tau**0.5, *claims),
            *activations(at),
        ]
        minus = weights(_MINUS, lambda k: along_w(asked, -k), w**0.5)
        equal, reached = at_equal_effect(at, ways)
        labels = {"arm": "pair", "task": asked.prompts.task.name, "group": ""}
        rows = [labels | row for row in (*diagnostics(tau, tau_sibling, w), _origin(asked), *reached)]
        found = sweep(at, [ways[0], minus, *ways[1:], *equal], ledger=True, more=rows)
        write(out, "contrast", found)
    return found


def along_w(asked: Pairing, k: float) -> Plan:
    """θ + k(θ⁺ − θ⁻): the base first, or the operator would start at the tuned side."""
    sibling = asked.others["sibling"].source
    return opened(asked, [_START, {"operator": "contrast", "plus": "tuned", "minus": sibling, "strength": k}])


def norms_squared(at: Bench) -> tuple[float, float, float]:
    """‖τ⁺‖², ‖τ⁻‖² and ‖w‖² over every tensor; a part, since it reads all three models."""
    sibling = at.pairing.others["sibling"].source
    pairs = (("tuned", "base"), (sibling, "base"), ("tuned", sibling))

    def work() -> Part:
        plan = along_w(at.pairing, 1.0)
        rows = [row for row in editable(plan.pair) if row.name.name in plan.steps]
        return Part({"squares": [sum((plan.of(a, r) - plan.of(b, r)).norm_sq() for r in rows) for a, b in pairs]}, {})

    tau, tau_sibling, w = once(at, "norms", ("norms",), work).row["squares"]
    return tau, tau_sibling, w


def diagnostics(tau: float, tau_sibling: float, w: float) -> list[Row]:
    """How the two fine-tunes lie to each other, from ‖τ⁺‖², ‖τ⁻‖² and ‖w‖²; no value where a vector is 0."""
    inner = (tau + tau_sibling - w) / 2
    sums = max(tau + tau_sibling + 2 * inner, 0.0)  # ‖τ⁺ + τ⁻‖², which rounding may take below 0
    found = [
        ("cos_anti", -inner, (tau * tau_sibling) ** 0.5, "cos(τ, −τ_sibling)"),
        ("norm_asymmetry", tau**0.5, tau_sibling**0.5, "‖τ‖/‖τ_sibling‖"),
        ("drift_ratio", sums**0.5, w**0.5, "‖τ + τ_sibling‖/‖w‖"),
        ("cos_w_tau", tau - inner, (w * tau) ** 0.5, "cos(w, τ)"),
    ]
    return [{"metric": m, "value": a / b if b else None, "method": how} for m, a, b, how in found]


def activations(at: Bench) -> list[Curve]:
    """The difference of means of the layer that moves the base furthest; none where the models do not differ there."""
    asked = at.pairing
    base, tuned = ends(asked)
    ids = ids_of(asked, extract(asked, asked.prompts.task) or asked.chosen_on)
    before = read_last(at, base, ids)
    found = directions(read_last(at, tuned, ids), before, True, "tuned − base", before)
    plan = opened(asked, _START)
    start = fmean(_values(at, base))

    def make(along: Along, k: float) -> Point:
        return steered(f"{_at(_V, k)} of layer {along.direction.layer}", along, k, plan)

    def layer(along: Along) -> Layer:
        effects = tuple(fmean(_values(at, make(along, k))) - start for k in LENGTHS)
        return Layer(along.direction.layer or 0, LENGTHS, effects)

    if not found:
        return []
    chosen = choose([layer(along) for along in found]).layer
    along = next(a for a in found if a.direction.layer == chosen)
    controls = lambda point: steered_controls(point, along, plan)  # noqa: E731
    return [Curve(_V, BASE, LENGTHS, partial(make, along), controls, ("causal", "sufficient"))]


def at_equal_effect(at: Bench, ways: Sequence[Curve]) -> tuple[list[Curve], list[Row]]:
    """Every way at the least strength of one effect, as curves of one point, and what that effect is.

    There are none where the weakest way does not reach a fifth of the pair's difference, the least that counts.

    Args:
        at: The bench.
        ways: Curves that start at the base.
    """
    base, tuned = (fmean(_values(at, side)) for side in ends(at.pairing))
    sign = 1.0 if tuned > base else -1.0

    def effect(way: Curve, x: float) -> float:
        return sign * (fmean(_values(at, way.make(x))) - base)

    effects = {way.name: {x: effect(way, x) for x in way.xs} for way in ways}
    largest = {name: max(found.values()) for name, found in effects.items()}
    weakest = min(largest, key=lambda name: largest[name])
    target = REACHED * largest[weakest]
    row = {"metric": "equal_effect", "value": None, "reference": weakest}
    if len(ways) < 2 or largest[weakest] < CAUSAL * abs(tuned - base) or not target:
        why = f"{weakest} reaches less than {CAUSAL} of the difference of the pair: there is no equal effect"
        return [], [row | {"method": why}]
    found = []
    for way in ways:
        x = reaching(effects[way.name], target, partial(effect, way))
        found.append(Curve(f"{way.name} at equal effect", BASE, (x,), way.make, asks=()))
    how = f"{REACHED:.0%} of the largest effect of the weakest way, on the select split"
    return found, [row | {"value": sign * target, "method": how}]


def reaching(effects: Mapping[float, float], target: float, effect: Callable[[float], float]) -> float:
    """The least strength with an effect of at least the target, to 1/64 of a step of the grid.

    Args:
        effects: By strength; 0 has none. At least one reaches the target.
        target: Above 0.
        effect: Of any strength.
    """
    high = min(x for x, found in effects.items() if found >= target)
    low = max((x for x in effects if x < high), default=0.0)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        if effect(middle) >= target:
            high = middle
        else:
            low = middle
    return high


def _at(curve: str, k: float) -> str:
    """An arm of a curve; 4 digits tell halvings of a step apart."""
    return curve.replace("k·", f"{k:.4g}")


def _values(at: Bench, point: Point) -> list[float]:
    """The measure on the select split."""
    return score(at, [point], at.pairing.chosen_on)[0].values(at.pairing.metric)


def _origin(asked: Pairing) -> Row:
    """Whether the base is where the sibling began, as far as names can tell."""
    known = parentage(asked.asked.checkpoints[0], asked.others["sibling"])
    return {"metric": "base_of_sibling", "value": None, "method": f"{known.verdict}: {known.evidence}"}
