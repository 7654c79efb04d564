"""What a steering experiment will do, decided before a model is loaded, and what it chooses. Loads no torch."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from deltalens.direction.bank import read_bank, read_directions, split_reference
from deltalens.direction.direction import SAMPLES, Direction
from deltalens.errors import BadInput
from deltalens.evaluate import plan as evaluation
from deltalens.evaluate.prompts import Prompts, render
from deltalens.evaluate.tasks.item import Task
from deltalens.evaluate.tasks.registry import can, defaults, task
from deltalens.sweep.arms import CHOSEN_ON, operating_point
from deltalens.sweep.pair import ALL

OPERATORS = ("add", "add_keep_norm", "ablate", "clamp", "ablate_subspace")
UNITS = ("raw", "residual")

_RESIDUAL = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")
SHARES = ("ablate", "ablate_subspace")  # their strength is the share that is taken out: no unit, no sign
# A difference of means does its work between 1 and 2 of itself, a vector in units of ‖h‖ between ¼ and 2; a grid goes
# on to where things break.
_GRIDS = {"raw": (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0), "residual": (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)}
_SHARE_GRID = (0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class Settings:
    """How a direction is applied.

    Attributes:
        direction: `BANK`, `BANK#id` or `BANK#GLOB`: one direction, or one of every layer.
        alphas: Strengths; empty for the grid of the unit.
        operator: One of `OPERATORS`.
        unit: `raw` multiplies the stored vector, `residual` a vector as long as the mean ‖h‖; None: as the bank says.
        site: A name of `model.sites`; None: where the direction lives.
        layers: Only these; empty for all that the reference names.
        select: Which tokens, as `model.select.parse_selector` reads it.
        generate: One of `sweep.pair.GENERATE`: `all` completes along the whole chosen curve and with the largest
            control of each kind, `points` at the operating point and with its largest control, `few` nothing.
        generated: How many items are completed, the first ones; 0 for all.
    """

    direction: str
    alphas: tuple[float, ...] = ()
    operator: str = "add"
    unit: str | None = None
    site: str | None = None
    layers: tuple[int, ...] = ()
    select: str = "last"
    generate: str = ALL
    generated: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is decided before a model is loaded.

    Attributes:
        settings: What was asked.
        asked: Model, format, decoding, neutral text and the prompts of the test split, as an evaluation has them.
        directions: One per layer, in order; with the site and unit in which it is applied, and for every operator but
            `ablate_subspace` a single vector.
        elsewhere: By layer, the same direction of the other layers of the bank.
        strengths: The signed grid.
        chosen_on: Prompts of the select split.
        extract: Prompts of the extract split.
        metric: `p_think`, or `p_skip` where the template opens the think block.
        notes: What a reader must know.
    """

    settings: Settings
    asked: evaluation.Plan
    directions: tuple[Direction, ...]
    elsewhere: Mapping[int, tuple[Direction, ...]]
    strengths: tuple[float, ...]
    chosen_on: Prompts
    extract: Prompts
    metric: str
    notes: list[str]

    @property
    def test(self) -> Prompts:
        """Prompts of the test split."""
        return self.asked.prompts[0]

    @property
    def source(self) -> str:
        """The model as the user named it."""
        return self.asked.sources[0]


@dataclass(frozen=True, slots=True)
class Curve:
    """Effects of one direction along strengths of one sign.

    Attributes:
        layer: Of the direction.
        strengths: In the order of the grid.
        effects: Mean change of the measure at each.
    """

    layer: int
    strengths: tuple[float, ...]
    effects: tuple[float, ...]

    @property
    def point(self) -> float:
        """Its operating point."""
        return operating_point(self.strengths, self.effects)

    @property
    def effect(self) -> float:
        """The effect there."""
        return self.effects[self.strengths.index(self.point)]


def plan(source: str, settings: Settings, asked: evaluation.Settings) -> Plan:
    """Opens the model by its small files, reads the bank and renders the prompts.

    Args:
        source: The model.
        settings: How to steer.
        asked: What to ask; of its tasks the first is used, by default one that thinking helps with. Decoding is greedy
            unless a temperature is given.

    Raises:
        BadInput: Anything about the model, the bank, the task or a setting that cannot be used.
    """
    strengths, unit = settings.alphas, settings.unit
    if settings.operator not in OPERATORS:
        raise BadInput(f"no operator is called {settings.operator}", f"one of {', '.join(OPERATORS)}")
    if unit is not None and unit not in UNITS:
        raise BadInput(f"no unit is called {unit}", f"one of {', '.join(UNITS)}")
    if not all(map(math.isfinite, strengths)):
        raise BadInput("a strength of --alpha is not finite", "--alpha 0.5 1 2")
    bank = read_bank(split_reference(settings.direction)[0])
    named = _profile(settings)
    directions = tuple(_placed(d, settings) for d in named)
    units = {d.unit for d in directions}
    if len(units) > 1:
        raise BadInput(f"the directions have different units ({', '.join(sorted(units))})", "--unit raw")
    strengths = strengths or (_SHARE_GRID if settings.operator in SHARES else _GRIDS[directions[0].unit])
    strengths = tuple(dict.fromkeys(strengths))
    arbitrary = settings.operator not in SHARES and any(d.sign == "arbitrary" for d in directions)
    if arbitrary:
        strengths = tuple(dict.fromkeys([*strengths, *(-a for a in strengths if a)]))
    tasks = asked.tasks[:1] or (_default_task(source, asked),)
    asked = replace(asked, tasks=tasks, temperature=asked.temperature or 0.0)
    rendered = evaluation.plan([source], asked)
    think = rendered.chat.think
    if think is None:
        raise BadInput(
            f"{source} has no think format, so there is no probability of thinking to move",
            "a model whose chat template or tokenizer knows a think tag",
        )
    found = rendered.prompts[0].task
    chooser = found if found.limit("select") != 0 else task(_default_task(source, asked), can(rendered.chat))
    notes = list(rendered.notes)
    if chooser is not found:
        notes.append(f"{found.name} is all test: layer, sign and strength are chosen on {chooser.name}")
    if arbitrary:
        notes.append(
            "the sign of this direction is arbitrary: both +v and −v are run, and neither is 'towards' anything"
        )
    notes += [
        f"{a.id} has {len(a.vectors)} vectors, {settings.operator} uses the first"
        for a, b in zip(named, directions, strict=True)
        if len(b.vectors) < len(a.vectors)
    ]
    if settings.select == "all":
        notes.append(
            "every token is moved, generated ones too: thinking may rise while accuracy falls (on the family to 0)"
        )
    return Plan(
        settings=settings,
        asked=rendered,
        directions=directions,
        elsewhere={d.layer: _elsewhere(d, bank) for d in directions if d.layer is not None},
        strengths=strengths,
        chosen_on=_some(chooser, rendered, "select"),
        extract=_some(chooser, rendered, "extract"),
        metric="p_skip" if think.opened_by_template else "p_think",
        notes=notes,
    )


def curves(plan: Plan, baseline: Sequence[float], found: Mapping[tuple[int, float], Sequence[float]]) -> list[Curve]:
    """One curve per layer and sign.

    Args:
        plan: What was asked.
        baseline: The measure on every item of the select split.
        found: The same by layer and strength.
    """
    made = []
    for d in plan.directions:
        for negative in (False, True):
            strengths = tuple(s for s in plan.strengths if (s < 0) == negative)
            if strengths:
                assert d.layer is not None
                effects = tuple(float(np.mean(found[d.layer, s]) - np.mean(baseline)) for s in strengths)
                made.append(Curve(d.layer, strengths, effects))
    return made


def choose(found: Sequence[Curve]) -> Curve:
    """The curve whose operating point has the largest effect, of equals the first: lower layer, positive sign."""
    return max(found, key=lambda curve: abs(curve.effect))


def _profile(settings: Settings) -> list[Direction]:
    """One direction per layer: those the reference names, of several kinds the difference of means."""
    found = list(read_directions(settings.direction))
    if placeless := next((d for d in found if d.layer is None), None):
        raise BadInput(f"direction {placeless.id} has no layer to be applied at", "name a direction of a layer")
    if len({d.layer for d in found}) < len(found):
        means = [d for d in found if d.kind == "difference"]
        twice = next(d.layer for i, d in enumerate(found) if any(d.layer == e.layer for e in found[:i]))
        if len({d.layer for d in means}) < len(means) or not means:
            path, pattern = split_reference(settings.direction)[0], _everywhere(found[0].id)
            raise BadInput(f"{settings.direction} names several directions of layer {twice}", f"'{path}#{pattern}'")
        found = means
    have = {d.layer for d in found}
    if missing := [layer for layer in settings.layers if layer not in have]:
        raise BadInput(
            f"{settings.direction} has no direction of layer {missing[0]}",
            f"--layers with some of {', '.join(str(d.layer) for d in found)}",
        )
    return sorted((d for d in found if not settings.layers or d.layer in settings.layers), key=lambda d: d.layer or 0)


def _placed(d: Direction, settings: Settings) -> Direction:
    """The direction as it is applied."""
    site = settings.site or d.site
    allowed = _RESIDUAL if d.space == "residual" else () if d.site is None else (d.site,)
    if site not in allowed:
        raise BadInput(
            f"direction {d.id} lives in {d.space}, which is not at {site or 'any site'}",
            f"--site {allowed[0]} or one of {', '.join(allowed)}" if allowed else "another direction",
        )
    one = d if len(d.vectors) == 1 or settings.operator == "ablate_subspace" else d.only(0)
    return replace(one, site=site, unit=settings.unit or d.unit)


def _everywhere(name: str) -> str:
    """The id of a direction with any layer in place of its own."""
    return re.sub(r"layers\.\d+\.", "layers.*.", name, count=1)


def _elsewhere(d: Direction, bank: Sequence[Direction]) -> tuple[Direction, ...]:
    """The same direction of every other layer of a bank, with the same vectors of it."""
    owner, colon, number = d.id.rpartition(":")
    name = _everywhere(owner if colon else d.id)
    same = [o for o in bank if o.kind != SAMPLES and o.layer != d.layer and _everywhere(o.id) == name]
    at = int(number) if colon else 0
    rows = [o.vectors[at : at + len(d.vectors)] for o in same]
    fitting = [replace(o, vectors=r) for o, r in zip(same, rows, strict=True) if r.shape == d.vectors.shape]
    return tuple(sorted(fitting, key=lambda o: o.layer or 0))


def _default_task(source: str, asked: evaluation.Settings) -> str:
    """A task that thinking helps with and that the tokenizer can write."""
    from deltalens.checkpoint.chat import read_chat
    from deltalens.checkpoint.source import open_checkpoint

    names = defaults(can(read_chat(open_checkpoint(source))))
    return "chain-hard" if "chain-hard" in names else names[0]


def _some(found: Task, rendered: evaluation.Plan, split: str) -> Prompts:
    limit = found.limit(split)
    n = CHOSEN_ON if limit is None else min(CHOSEN_ON, limit)
    if n == 0:
        raise BadInput(f"task {found.name} has no {split} split", "another task")
    return render(found, rendered.chat, split, n, rendered.settings.seeds[0])
