"""What a sweep over a pair will ask, decided before a model is loaded. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from deltalens.checkpoint.source import Checkpoint, open_checkpoint
from deltalens.edit.edit import from_record
from deltalens.edit.form import Triples
from deltalens.edit.plan import Plan, plan
from deltalens.errors import BadInput
from deltalens.evaluate import plan as evaluation
from deltalens.evaluate.prompts import Prompts, render
from deltalens.sweep.arms import CHOSEN_ON

GENERATE = ("few", "points", "all")
"""How much of a sweep writes completions, the least first; docs/behaviour.md, §8."""
FEW, POINTS, ALL = GENERATE


@dataclass(frozen=True, slots=True)
class Pairing:
    """A pair and the task that every arm of it is asked.

    Attributes:
        base: As the user named it.
        tuned: Likewise; the model that is loaded.
        asked: Format, decoding and prompts of the one task that is swept: those of the tuned side.
        metric: `p_think`, or `p_skip` where the template opens the think block.
        chosen_on: Prompts of the select split, on which strengths and ranks are chosen; those of a task that is all
            test.
        ledger: The other tasks, for arms whose price is to be known.
        notes: What a reader must know.
        others: Further models by their role, such as `sibling`.
        generate: One of `GENERATE`.
        generated: How many items of a task are completed, the first ones; 0 for all.
        prices: Whether the ledger is asked at all; directions are made from its prompts in any case.
        shared: Directory in which sweeps of one experiment share the completions of the two sides; None for none.
    """

    base: str
    tuned: str
    asked: evaluation.Plan
    metric: str
    chosen_on: Prompts
    ledger: tuple[Prompts, ...]
    notes: tuple[str, ...]
    others: Mapping[str, Checkpoint] = field(default_factory=dict)
    generate: str = ALL
    generated: int = 0
    prices: bool = True
    shared: Path | None = None

    @property
    def not_greedy(self) -> str | None:
        """Why completions do not show what is chosen greedily; None where they do."""
        warm = self.asked.temperature
        return f"decoded at temperature {warm:g}, not greedily" if warm else None

    @property
    def prompts(self) -> Prompts:
        """The items of the test split, rendered once for every arm."""
        return self.asked.prompts[0]


def pairing(
    base: str,
    tuned: str,
    asked: evaluation.Settings,
    ends: Sequence[Mapping[str, Any]] = (),
    others: Mapping[str, str | None] | None = None,
) -> Pairing:
    """Opens all models by their small files, compares their headers and renders the prompts.

    Args:
        base: The side where λ = 0.
        tuned: The side where λ = 1.
        asked: What to ask; the first task is swept, by default one that thinking helps with, and the others are the
            ledger. Decoding is greedy unless a temperature is given.
        ends: Operations that the sweep will end in, so that what it cannot do is refused before a model is loaded.
        others: Further models by their role; None for one that is not given. They must be fine-tunes of the same
            architecture.

    Raises:
        BadInput: A model, the task or a setting is not usable, or there is no think format.
        Refused: The tokenizers differ, the models are not comparable, or a tensor cannot take an operation.
    """
    asked = replace(asked, temperature=asked.temperature or 0.0)
    rendered = evaluation.plan([base, tuned], asked)
    think = rendered.chat.think
    if think is None:
        raise BadInput(
            f"{tuned} has no think format, so there is no probability of thinking to follow",
            "a model whose chat template or tokenizer knows a think tag",
        )
    named = rendered.prompts[0]
    chosen = named if asked.tasks else next((p for p in rendered.prompts if p.task.name == "chain-hard"), named)
    task, notes = chosen.task, list(rendered.notes)
    limit = task.limit("select")
    if limit == 0:
        notes.append(f"{task.name} is all test: what is chosen is chosen on the items that are shown")
    count = CHOSEN_ON if limit is None else min(CHOSEN_ON, limit)
    on = render(task, rendered.chat, "select", count, asked.seeds[0]) if count else chosen
    ledger = tuple(p for p in rendered.prompts if p is not chosen)
    given = {role: source for role, source in (others or {}).items() if source is not None}
    found = Pairing(
        base=base,
        tuned=tuned,
        asked=replace(rendered, prompts=[chosen], own=[]),
        metric="p_skip" if think.opened_by_template else "p_think",
        chosen_on=on,
        ledger=ledger,
        notes=tuple(notes),
        others={role: open_checkpoint(source) for role, source in given.items()},
    )
    for step in ends or ({"operator": "interpolate", "strength": 1.0},):
        opened(found, step)
    for source in given.values():
        opened(replace(found, tuned=source), {"operator": "interpolate", "strength": 1.0})
    return found


def first(prompts: Prompts, n: int) -> Prompts:
    """The first n items; all where n is 0."""
    if not n:
        return prompts
    return replace(prompts, items=prompts.items[:n], ids={mode: rows[:n] for mode, rows in prompts.ids.items()})


def opened(
    pairing: Pairing,
    step: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    kept: dict[tuple[str, ...], Triples] | None = None,
) -> Plan:
    """The plan of an edit of the pair, from the fields of its operation or operations as an edit file has them."""
    steps = [step] if isinstance(step, Mapping) else list(step)
    return plan(from_record({"base": pairing.base, "tuned": pairing.tuned, "edit": [dict(s) for s in steps]}), kept)
