"""Arms along a direction of the residual stream: added at the last prompt token, or cut from what writes to it.

The direction of a layer is a difference of means at the last prompt token, on prompts of the extract split. What was
read is a part, so that a resumed sweep goes on with the same numbers.
"""

import hashlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32, Float64

from deltalens.direction.activations import Place, read
from deltalens.direction.direction import Direction
from deltalens.direction.estimate import Samples, difference, permuted, samples
from deltalens.direction.spaces import SPACE_OF
from deltalens.edit.plan import Plan
from deltalens.edit.shares import change_norm
from deltalens.edit.swap import swap
from deltalens.evaluate.prompts import Prompts, render
from deltalens.evaluate.tasks.item import Task as Questions
from deltalens.model.hooks import Intervention, intervene
from deltalens.model.select import LAST
from deltalens.model.sites import Site
from deltalens.store.parts import Part
from deltalens.sweep.arms import CHOSEN_ON, SEEDS, Arm, Control, direction_controls
from deltalens.sweep.bench import Bench, Point, once
from deltalens.sweep.pair import Pairing

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SITE = "resid_post"

Rows = Mapping[int, Float32[np.ndarray, "_ _"]]
"""By layer, an activation of every prompt."""


@dataclass(frozen=True, slots=True, eq=False)
class Along:
    """A direction, and what random ones like it are drawn from.

    Attributes:
        direction: One vector of a layer, or those of all layers.
        samples: Of the layer of each vector: the activations whose labels are permuted.
        others: The same direction of other layers, as controls.
    """

    direction: Direction
    samples: tuple[Samples, ...]
    others: tuple[Direction, ...] = ()

    def controls(self) -> list[Control]:
        """As `arms.direction_controls`; of several layers, the labels of each are permuted on its own activations."""
        known = direction_controls(self.direction, self.samples[0], self.others)
        if len(self.samples) == 1:
            return known
        drawn = [np.concatenate([permuted(of, 1, seed) for of in self.samples]) for seed in range(SEEDS)]
        found = [Control("permuted", rows.astype(np.float32), seed) for seed, rows in enumerate(drawn)]
        return [*found, *(c for c in known if c.kind == "isotropic")]


def extract(asked: Pairing, task: Questions) -> Prompts | None:
    """Items of a task that directions may be made from; None for a task that has none."""
    limit, settings = task.limit("extract"), asked.asked.settings
    n = CHOSEN_ON if limit is None else min(CHOSEN_ON, limit)
    return render(task, asked.asked.chat, "extract", n, settings.seeds[0]) if n else None


def ids_of(asked: Pairing, prompts: Prompts) -> list[list[int]]:
    """The prompts up to where the measure is taken."""
    return prompts.ids["forced" if asked.metric == "p_skip" else "free"]


def read_last(at: Bench, point: Point, prompts: Sequence[Sequence[int]]) -> Rows:
    """What the residual stream holds behind every layer at the last token of each prompt, in one arm; a part."""

    def work() -> Part:
        model = at.load()
        with point.put(model):
            found = read(model, prompts, Place(SITE))
        return Part({"site": SITE}, {str(layer): rows for layer, rows in found.values.items()})

    name = point.arm.name
    arrays = once(at, f"{name}: read", ("read", name, point.arm.edit, prompts), work).arrays
    return {int(layer): arrays[layer] for layer in sorted(arrays, key=int)}


def directions(first: Rows, second: Rows, paired: bool, contrast: str, labelled: Rows | None = None) -> list[Along]:
    """First less second, layer by layer; a layer in which they do not differ has none.

    Args:
        first: The group that the directions point to.
        second: The other.
        paired: Whether row i of both comes from one prompt.
        contrast: The two groups in words.
        labelled: The activations whose labels are permuted, in halves; by default those of both groups. Paired
            differences of two models may vary along their mean alone, and their permutations would be ±v again.
    """
    found, drawn = [], {}
    for layer, rows in first.items():
        of = samples(rows, second[layer], paired)
        mean = difference(of)
        if mean.any():
            name, vectors = f"layers.{layer}.difference", mean[None].astype(np.float32)
            found.append(
                Direction(name, vectors, layer, "difference", SPACE_OF[SITE], SITE, sign="contrast", contrast=contrast)
            )
            drawn[layer] = of if labelled is None else Samples(labelled[layer], len(labelled[layer]) // 2)
    return [Along(d, (drawn[d.layer],), tuple(o for o in found if o is not d)) for d in found]


def span(of: Sequence[Along]) -> Along:
    """The directions of all layers at once."""
    vectors = np.concatenate([a.direction.vectors for a in of])
    one = replace(of[0].direction, id="layers.all.difference", vectors=vectors, layer=None)
    return Along(one, tuple(a.samples[0] for a in of))


def steered(name: str, along: Along, strength: float, base: Plan) -> Point:
    """The base with αv added behind a layer at the last prompt token, v as long as the difference of means.

    Of a text without a prompt, as for a perplexity, that is its first token; where the think block is forced open, its
    tag, so that forced accuracy is of another place than p_think.

    Args:
        name: Of the arm.
        along: The direction of one layer.
        strength: α.
        base: The plan that gives the base.
    """
    return _pushed(Arm(name, "edit", _adding(along.direction, strength)), strength, along.direction.vectors, base)


def steered_controls(of: Point, along: Along, base: Plan) -> list[Point]:
    """The same with other vectors of its length; those of other layers are shown and decide nothing."""
    strength = of.strength or 0.0
    return [
        _pushed(_control(of, c, _adding(along.direction, strength, c.vectors)), strength, c.vectors, base)
        for c in along.controls()
    ]


def cut(name: str, opened: Plan, bank: str) -> Point:
    """The tuned model with (I − QQᵀ)W in place of W wherever a plan cuts.

    Args:
        name: Of the arm.
        opened: A plan of the operator `cut`.
        bank: What the bank is called in the record of the arm: the plan knows it by its path.
    """
    norm = change_norm(opened)
    return _without(Arm(name, "edit", _cutting(opened, bank), norm_delta=norm), opened)


def cut_controls(of: Point, along: Along, opened: Plan, bank: str) -> list[Point]:
    """The same cut along other directions."""
    (reference,) = opened.directions
    found = []
    for c in along.controls():
        other = replace(opened, directions={reference: replace(along.direction, vectors=c.vectors)})
        found.append(_without(_control(of, c, _cutting(other, bank), change_norm(other)), other))
    return found


def _pushed(arm: Arm, strength: float, vectors: Float32[np.ndarray, "1 d"], base: Plan) -> Point:
    length = abs(strength) * float(np.linalg.norm(vectors.astype(np.float64)))
    push = Intervention(Site(SITE, arm.edit["layer"]), "add", torch.from_numpy(vectors[0]), strength, LAST)

    @contextmanager
    def put(model: "PreTrainedModel") -> Generator[None, None, None]:
        with swap(model, base, side="tuned"), intervene(model, [push]):
            yield

    return Point(replace(arm, functional_norm=length), strength, put)


def _without(arm: Arm, opened: Plan) -> Point:
    return Point(arm, 1.0, lambda model: swap(model, opened, side="tuned"))


def _adding(d: Direction, strength: float, vectors: Float32[np.ndarray, "1 d"] | None = None) -> dict[str, Any]:
    used = d.vectors if vectors is None else vectors
    place = {"site": SITE, "layer": d.layer, "select": "last", "direction": f"{d.id}, {d.contrast}"}
    return {"operator": "add", "unit": "raw", **place, "vectors": _digest(used), "strength": strength}


def _cutting(opened: Plan, bank: str) -> dict[str, Any]:
    (d,) = opened.directions.values()
    record = opened.edit.record
    steps = [step | {"direction": f"{bank}#{d.id}"} for step in record["edit"]]
    return record | {"edit": steps, "vectors": _digest(d.vectors), "strength": steps[0]["strength"]}


def _control(of: Point, control: Control, edit: dict[str, Any], norm: float | None = None) -> Arm:
    drawn = {"control": control.kind, "seed": control.seed, "decides": control.kind != "wrong layer"}
    return Arm(f"{of.arm.name}: {control.name}", "control", edit | drawn, of.arm.name, norm_delta=norm)


def _digest(vectors: Float32[np.ndarray, "_ _"] | Float64[np.ndarray, "_ _"]) -> str:
    return hashlib.sha256(vectors.tobytes()).hexdigest()[:16]
