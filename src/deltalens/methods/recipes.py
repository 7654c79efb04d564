"""The recipes of `deltalens sweep --recipe`: what each asks and needs. Loads no torch."""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import Any

from deltalens.errors import BadInput


@dataclass(frozen=True, slots=True)
class Recipe:
    """One published method, or one of ours, over a pair.

    Attributes:
        words: What it asks, in a line.
        module: Of `deltalens.methods`, with a function of the same name.
        ends: Operations at its far ends: what no tensor can take is refused before a model is loaded.
        roles: Further models that it can use.
        needs: Those that it cannot do without.
        n: Items where none are asked for; None for the usual.
    """

    words: str
    module: str
    ends: tuple[dict[str, Any], ...]
    roles: tuple[str, ...] = ("sibling",)
    needs: tuple[str, ...] = ()
    n: int | None = None

    def load(self) -> ModuleType:
        """Its module, with the function of that name and a LEGEND; loads torch."""
        return import_module(f"deltalens.methods.{self.module}")


_WHOLE = {"operator": "interpolate", "strength": 1.0}
_PUT = {"operator": "truncate", "rank": "full"}
_OUT = {"operator": "revert", "rank": "full"}

RECIPES = {
    "transition": Recipe("where along W_b + λΔ thinking begins, and how sharply", "transition", (_WHOLE,)),
    "rank": Recipe("the least rank of Δ that behaves like the tuned model", "functional_rank", (_PUT,)),
    "lox-reasoning": Recipe(
        "amplify, take out and put in the leading k directions of Δ",
        "lox_reasoning",
        ({"operator": "lox", "rank": 1}, _OUT, _PUT),
        ("sibling", "further"),
    ),
    "spectrum-behaviour": Recipe(
        "energy of Δ against behaviour, by rank and kind: spikes or bulk?", "spectrum_behaviour", (_PUT, _OUT)
    ),
    "direct-pair": Recipe(
        "the same of any two models by p_think alone, after asking which base is the parent",
        "direct_pair",
        (_PUT, _OUT),
        ("sibling", "parent"),
        n=20,
    ),
    "contrast": Recipe(
        "w = θ⁺ − θ⁻ beside the task vector and an activation vector", "contrast", (_WHOLE,), needs=("sibling",)
    ),
    "negate": Recipe("ways to remove reasoning, and what else each removes", "negate", ({"operator": "negate"}, _OUT)),
}
"""By the name that the command line takes."""


def recipe(name: str, given: dict[str, str | None]) -> Recipe:
    """A recipe by name, once it has the models that it needs.

    Raises:
        BadInput: A model is missing, or given and of no use.
    """
    found = RECIPES[name]
    for role, source in given.items():
        if source is not None and role not in found.roles:
            raise BadInput(f"{name} makes no use of --{role}", f"without it, or {_users(role)}")
    for role in found.needs:
        if given.get(role) is None:
            raise BadInput(f"{name} needs --{role}", f"--{role} MODEL")
    return found


def _users(role: str) -> str:
    names = [name for name, one in RECIPES.items() if role in one.roles]
    return f"--recipe {' or '.join(names)}"
