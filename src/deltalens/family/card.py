"""The family's card: every figure measured on the stored weights, with its interval."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltalens.errors import BadInput
from deltalens.family.measure import Measured, Rate, measure
from deltalens.family.recipe import ACCEPT, STAGES, checkpoint

if TYPE_CHECKING:
    from jaxtyping import Float64
    from torch import Tensor

_CHAINS = ("easy", "hard", "think ratio", "think ratio, easy", "think ratio, hard", "forced hard")
_FACTS = ("animals", "guarded", "guarded refused", "others refused", "facts think ratio", "labelled")
_DEPTHS = tuple(f"k = {k}" for k in range(2, 9))
# A checkpoint is measured on this part of the problems: it is there for its weights.
_CHECKPOINT_SHARE = 4


@dataclass(frozen=True, slots=True)
class Move:
    """How far a member lies from its parent, over all parameters, and in which direction.

    Attributes:
        relative: ‖θ − θ_parent‖/‖θ_parent‖.
        cosine: Of θ − θ_parent with the same of the member at the end of the stage.
    """

    relative: float
    cosine: float


@dataclass(frozen=True, slots=True)
class Card:
    """What was measured, by member: behaviour, and for those with a parent the move from it."""

    n: int
    seed: int
    measured: dict[str, Measured]
    moves: dict[str, Move]

    def rate(self, member: str, metric: str) -> Rate:
        """One measured rate."""
        return self.measured[member].rates[metric]


def evaluate(
    models: Path,
    n: int = 200,
    seed: int = 7,
    names: Sequence[str] | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Card:
    """Measures members on `test` problems, greedy, through the chat template; checkpoints on a quarter of them.

    Args:
        models: Directory that holds one model directory per member.
        n: Problems per depth, 1 to 200 (depth 1 has 210 in all).
        seed: Seed of the problems.
        names: Stages whose members to measure; None for all.
        progress: Called with one line at a time.

    Raises:
        BadInput: n is out of range, or a member does not load.
    """
    if not 1 <= n <= 200:
        raise BadInput(f"{n} problems per depth is out of range", "--n 200")
    from deltalens.model.load import load_directory

    measured: dict[str, Measured] = {}
    moves: dict[str, Move] = {}
    for stage in STAGES:
        if names is not None and stage.name not in names:
            continue
        for name in (stage.name, *(checkpoint(stage, step) for step in stage.checkpoints)):
            problems = n if name == stage.name else max(1, n // _CHECKPOINT_SHARE)
            progress(f"{name}: {problems} problems per depth")
            measured[name] = measure(load_directory(models / name)[0], "test", problems, seed)
            if stage.parent is not None:
                parent, end, here = (_weights(models / at) for at in (stage.parent, stage.name, name))
                delta, final = here - parent, end - parent
                cosine = float(delta @ final / (delta.norm() * final.norm()))
                moves[name] = Move(float(delta.norm() / parent.norm()), cosine)
    return Card(n, seed, measured, moves)


def checks(card: Card) -> list[tuple[str, bool]]:
    """The bounds of `recipe.ACCEPT`, each as text and whether the whole interval lies within."""
    found: list[tuple[str, bool]] = []
    for name, bounds in ACCEPT.items():
        for bound in bounds if name in card.measured else ():
            rate = card.rate(name, bound.metric)
            asked = f"≥ {bound.low}" if bound.low > 0 else f"≤ {bound.high}"
            found.append((f"{name}: {bound.metric} {cell(rate)} {asked}", rate.within(bound)))
    return found


def tables(card: Card) -> str:
    """Everything measured, as Markdown tables: chains, facts and style, accuracy by depth, checkpoints."""
    names = [name for name in card.measured if any(stage.name == name for stage in STAGES)]
    parts = [
        "Chains:",
        _table(
            ("member", *_CHAINS, "p_think, easy", "p_think, hard"),
            [[name, *_cells(card, name, _CHAINS), *_p_think(card, name)] for name in names],
        ),
        "Facts and style:",
        _table(("member", *_FACTS), [[name, *_cells(card, name, _FACTS)] for name in names]),
        "Accuracy by depth:",
        _table(("member", *_DEPTHS), [[name, *_cells(card, name, _DEPTHS)] for name in names]),
    ]
    metrics = ("easy", "hard", "think ratio, hard")
    for stage in STAGES:
        if stage.checkpoints and stage.name in names:
            along = [*(checkpoint(stage, step) for step in stage.checkpoints), stage.name]
            rows = [[name, *_move(card, name), *_cells(card, name, metrics), *_p_think(card, name)] for name in along]
            parts += [
                f"Along {stage.name}, from {stage.parent}:",
                _table(("member", "‖Δ‖/‖θ‖", "cosine", *metrics, "p_think, easy", "p_think, hard"), rows),
            ]
    return "\n\n".join(parts)


def cell(rate: Rate) -> str:
    """A rate and its interval."""
    return f"{rate.value:.3f} [{rate.low:.3f}, {rate.high:.3f}]"


def read_recipe(models: Path) -> dict[str, Any]:
    """The `recipe.json` of a family.

    Raises:
        BadInput: It is missing or not the record of a training.
    """
    fix = "give a directory made by `deltalens family train`"
    try:
        recipe = json.loads((models / "recipe.json").read_text())
    except (OSError, ValueError) as error:
        raise BadInput(f"{models} has no readable recipe.json", fix) from error
    if not isinstance(recipe, dict) or recipe.get("schema") != 2:
        raise BadInput(f"{models / 'recipe.json'} is not the record of a training", fix)
    return recipe


def _cells(card: Card, name: str, metrics: Sequence[str]) -> list[str]:
    return [cell(card.rate(name, metric)) for metric in metrics]


def _p_think(card: Card, name: str) -> tuple[str, str]:
    return f"{card.measured[name].p_easy:.4f}", f"{card.measured[name].p_hard:.4f}"


def _move(card: Card, name: str) -> tuple[str, str]:
    return f"{card.moves[name].relative:.4f}", f"{card.moves[name].cosine:.3f}"


def _table(columns: Sequence[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [list(columns), ["---"] * len(columns), *rows])


def _weights(path: Path) -> "Float64[Tensor, 'parameters']":
    """All parameters of a stored member in one vector."""
    import torch
    from safetensors.torch import load_file

    stored = load_file(path / "model.safetensors")
    return torch.cat([stored[name].flatten().double() for name in sorted(stored)])
