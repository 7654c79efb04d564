"""Steering arms on a running model: what is moved, what is measured, and the rows of one batch that share a pass."""

import copy
import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float32

from deltalens.direction.activations import Place, read
from deltalens.direction.direction import Direction
from deltalens.direction.estimate import Samples
from deltalens.errors import BadInput, Refused
from deltalens.evaluate.behaviour import completions, p_skip, p_think
from deltalens.evaluate.divergence import kl_per_token, surprisals
from deltalens.evaluate.prompts import Prompts
from deltalens.evaluate.scores import Row, perplexity
from deltalens.evaluate.suite import REFERENCE_TOKENS
from deltalens.methods.steer import SHARES, Plan
from deltalens.model.generate import Decoding, generate_ids
from deltalens.model.hooks import Intervention, intervene
from deltalens.model.load import load
from deltalens.model.select import Selector
from deltalens.model.sites import Site, sites_of
from deltalens.sweep.arms import Arm, Control, direction_controls
from deltalens.sweep.pair import FEW, first

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class Push:
    """An arm with its numbers as the operator takes them."""

    arm: Arm
    vectors: Float32[np.ndarray, "k d"]
    strength: float

    @property
    def layer(self) -> int:
        """Where it acts."""
        return self.arm.edit["layer"]


@dataclass(frozen=True, slots=True, eq=False)
class Rig:
    """The plan, the model, the same weights in modules without hooks, and the tokens that are moved."""

    plan: Plan
    model: "PreTrainedModel"
    untouched: "PreTrainedModel"
    select: Selector


def rigged(plan: Plan, select: Selector) -> Rig:
    """Loads the model and makes sure that every direction fits it."""
    settings = plan.asked.settings
    model = load(plan.source, settings.dtype, settings.device)[0]
    for d in plan.directions:
        site = Site(d.site or "", d.layer)
        if (size := sites_of(model).size(site)) != d.vectors.shape[1]:
            raise BadInput(
                f"direction {d.id} has {d.vectors.shape[1]} entries, {site} of {plan.source} has {size}",
                "a bank that was made from this model",
            )
    weights = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
    return Rig(plan, model, copy.deepcopy(model, weights), select)


def pushed(plan: Plan, d: Direction, norm: float, strength: float, control: Control | None = None) -> Push:
    """The arm of one strength, in the direction's unit, with the direction or a control in its place."""
    operator, vectors = plan.settings.operator, d.vectors if control is None else control.vectors
    length = float(np.linalg.norm(d.vectors[0].astype(np.float64)))
    name = f"layer {d.layer}, {strength:+g} "
    edit = {
        "operator": operator,
        "unit": None if operator in SHARES else d.unit,
        "site": d.site,
        "layer": d.layer,
        "select": plan.settings.select,
        "direction": d.id,
        "strength": strength,
        "seed": None if control is None else control.seed,
        "control": None if control is None else control.kind,
    }
    if operator in SHARES:
        used, added = strength, None
    else:
        size = length if d.unit == "raw" else norm
        vectors, added = vectors * np.float32(size / length), strength * size
        used = added if operator == "clamp" else strength  # to the height that `add` would add
        edit |= {"raw": added / length, "residual": added / norm}
    if control is not None and len(vectors) == 1:
        a, b = vectors[0].astype(np.float64), d.vectors[0].astype(np.float64)
        edit["cosine"] = float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
    of = None if control is None else f"{name}v"
    arm = Arm(
        name=f"{name}v" if control is None else f"{name}{control.name}",
        role="edit" if control is None else "control",
        edit=edit,
        control_of=of,
        functional_norm=abs(added) if operator == "add" and added is not None else None,
    )
    return Push(arm, vectors, used)


def controls(rig: Rig, d: Direction) -> list[Control]:
    """The controls of a direction.

    Labels are permuted over this model's activations on the extract prompts, whatever the bank was made of: weights
    have no samples, and paired differences of two models may vary along v alone, whose permutations are ±v again.
    """
    assert d.layer is not None and d.site is not None
    values = read(rig.model, _read_ids(rig.plan), Place(d.site, (d.layer,), rig.select)).values[d.layer]
    return direction_controls(d, Samples(values, len(values) // 2), rig.plan.elsewhere[d.layer])


def _read_ids(plan: Plan) -> list[list[int]]:
    """The extract prompts up to where the measure is taken."""
    return plan.extract.ids["forced" if plan.metric == "p_skip" else "free"]


def _applied(rig: Rig, pushes: Sequence[Push], rows: int) -> AbstractContextManager[Any]:
    """The arms, each on `rows` rows of the caller's; a single arm on all rows."""
    if not pushes:
        return nullcontext()
    edit = pushes[0].arm.edit
    site, operator = Site(edit["site"], edit["layer"]), edit["operator"]
    if len(pushes) == 1:
        vectors = torch.from_numpy(pushes[0].vectors)
        tensor = vectors if operator == "ablate_subspace" else vectors[0]
        return intervene(rig.model, [Intervention(site, operator, tensor, pushes[0].strength, rig.select)])
    tensor = torch.from_numpy(np.concatenate([p.vectors for p in pushes])).repeat_interleave(rows, 0)
    strength = torch.tensor([p.strength for p in pushes]).repeat_interleave(rows)
    return intervene(rig.model, [Intervention(site, operator, tensor, strength, rig.select)])


def baseline(rig: Rig) -> Row:
    """The unsteered model: mean ‖h‖ at every direction's site, both splits, and its greedy texts.

    It writes completions where any arm does.
    """
    plan, size = rig.plan, rig.plan.asked.settings.batch_size
    norms = []
    for d in plan.directions:
        assert d.layer is not None and d.site is not None
        norms.append(
            float(read(rig.model, _read_ids(plan), Place(d.site, (d.layer,), rig.select)).norms[d.layer].mean())
        )
    found: Row = {"norms": norms, "rows": [], "perplexity": None}
    if plan.settings.generate != FEW:
        found |= generate(rig, None)
    greedy = Decoding(min(plan.asked.max_tokens(plan.test.task), REFERENCE_TOKENS))
    for name, prompts in (("select", plan.chosen_on), ("test", plan.test)):
        found[name] = _scored(rig.model, prompts, size)
        found[f"{name}_texts"] = generate_ids(
            rig.model, prompts.ids["free"], greedy, ends=plan.asked.ends, batch_size=size
        )
    return found


def _scored(model: "PreTrainedModel", prompts: Prompts, size: int) -> dict[str, list[float | None]]:
    return {"p_think": p_think(model, prompts, size), "p_skip": p_skip(model, prompts, size)}


def scan(rig: Rig, pushes: Sequence[Push], prompts: Prompts, texts: list[list[int]] | None) -> Row:
    """What needs no generation, of every arm: p_think, p_skip and, along given texts of the unsteered model, KL."""
    n, size = len(prompts.items), rig.plan.asked.settings.batch_size
    # The vectors of a subspace are shared by all rows of a batch, so that its arms come one by one.
    together = 1 if rig.plan.settings.operator == "ablate_subspace" else len(pushes)
    arms: list[dict[str, list[float | None]]] = []
    for at in range(0, len(pushes), together):
        group = pushes[at : at + together]
        ids = {mode: rows * len(group) for mode, rows in prompts.ids.items()}
        many = Prompts(prompts.task, prompts.split, prompts.items * len(group), prompts.chat, ids)
        with _applied(rig, group, n):
            found = _scored(rig.model, many, size)
            if texts is not None:
                found["kl"] = kl_per_token(rig.untouched, rig.model, many.ids["free"], texts * len(group), size)
        arms += [{m: values[i * n : (i + 1) * n] for m, values in found.items()} for i in range(len(group))]
    return {"arms": arms}


def generate(rig: Rig, push: Push | None) -> Row:
    """One arm on the test split, free and forced, and its perplexity."""
    plan, test = rig.plan, first(rig.plan.test, rig.plan.settings.generated)
    asked, size = plan.asked.settings, plan.asked.settings.batch_size
    decoding = plan.asked.decoding(test.task)
    pushes = () if push is None else (push,)
    found: Row = {"rows": [], "perplexity": None}
    with _applied(rig, pushes, len(test.items)):
        for mode in ("free", "forced") if test.task.measures == "accuracy" else ("free",):
            found["rows"] += completions(rig.model, test, mode, decoding, asked.seeds, plan.asked.ends, size)[0]
    name, pieces = plan.asked.text
    if pieces:
        try:
            with _applied(rig, pushes, len(pieces)):
                score = perplexity(surprisals(rig.model, pieces, size))
        except Refused:  # a selector that no token of plain text meets
            return found
        found["perplexity"] = {"group": name, "metric": "perplexity", **score}
    return found
