"""What a sweep over a pair will ask, decided before a model is loaded. Loads no torch."""

from dataclasses import dataclass, replace
from typing import Any

from deltalens.edit.edit import from_record
from deltalens.edit.form import Triples
from deltalens.edit.plan import Plan, plan
from deltalens.errors import BadInput
from deltalens.evaluate import plan as evaluation
from deltalens.evaluate.prompts import Prompts, render
from deltalens.methods.steer import CHOSEN_ON

RECIPES = {
    "transition": {"operator": "interpolate", "strength": 1.0},
    "rank": {"operator": "truncate", "rank": "full"},
}
"""What is swept over a pair, by name, with the operation at the end of it."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """A pair and the task that every arm of it is asked.

    Attributes:
        base: As the user named it.
        tuned: Likewise; the model that is loaded.
        asked: Format, decoding and prompts, as an evaluation has them: those of the tuned side.
        metric: `p_think`, or `p_skip` where the template opens the think block.
        chosen_on: Prompts of the select split, on which a rank is chosen; those of a task that is all test.
        notes: What a reader must know.
    """

    base: str
    tuned: str
    asked: evaluation.Plan
    metric: str
    chosen_on: Prompts
    notes: tuple[str, ...]

    @property
    def prompts(self) -> Prompts:
        """The items of the test split, rendered once for every arm."""
        return self.asked.prompts[0]


def pairing(base: str, tuned: str, asked: evaluation.Settings, recipe: str) -> Pairing:
    """Opens both sides by their small files, compares their headers and renders the prompts of one task.

    Args:
        base: The side where λ = 0.
        tuned: The side where λ = 1.
        asked: What to ask; of its tasks the first is used, by default one that thinking helps with. A
            transition is decoded greedily, since its think ratio is the greedy one.
        recipe: One of `RECIPES`.

    Raises:
        BadInput: A model, the task or a setting is not usable, or there is no think format.
        Refused: The tokenizers differ, the models are not comparable, or a tensor cannot take the recipe's edits.
    """
    if recipe == "transition":
        asked = replace(asked, temperature=0.0)
    rendered = evaluation.plan([base, tuned], replace(asked, tasks=asked.tasks[:1]))
    think = rendered.chat.think
    if think is None:
        raise BadInput(
            f"{tuned} has no think format, so there is no probability of thinking to follow",
            "a model whose chat template or tokenizer knows a think tag",
        )
    chosen = next((p for p in rendered.prompts if p.task.name == "chain-hard"), rendered.prompts[0])
    task, notes = chosen.task, list(rendered.notes)
    limit = task.limit("select")
    if limit == 0:
        notes.append(f"{task.name} is all test: what is chosen is chosen on the items that are shown")
    count = CHOSEN_ON if limit is None else min(CHOSEN_ON, limit)
    on = render(task, rendered.chat, "select", count, asked.seeds[0]) if count else chosen
    alone = replace(rendered, prompts=[chosen], own=[])
    metric = "p_skip" if think.opened_by_template else "p_think"
    found = Pairing(base, tuned, alone, metric, on, tuple(notes))
    opened(found, RECIPES[recipe])
    return found


def opened(pairing: Pairing, step: dict[str, Any], kept: dict[tuple[str, ...], Triples] | None = None) -> Plan:
    """The plan of an edit of one operation on the pair, from its fields as an edit file has them."""
    return plan(from_record({"base": pairing.base, "tuned": pairing.tuned, "edit": [step]}), kept)
