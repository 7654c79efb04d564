"""The state of an interrupted training, and whether what is there was made with the settings of now."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from recipe import Recipe, settings
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from deltalens.errors import BadInput, Refused


def read(file: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
        BadInput: It is damaged.
    """
    try:
        found = json.loads(file.read_text())
    except ValueError as problem:
        raise damaged(file, problem) from problem
    if not isinstance(found, dict):
        raise damaged(file, "no JSON object")
    return found


def damaged(file: Path, why: object) -> BadInput:
    """What to say of a file of ours that cannot be used."""
    return BadInput(f"{file} is damaged: {why}", f"rm {file}, and it is made anew")


def same(recipe: Recipe, other: Any, where: Path) -> None:
    """Refuses what was made with other settings.

    Raises:
        Refused: Naming them.
    """
    there = other if isinstance(other, dict) else {}
    differ = [f"{k} {there.get(k)} there, {v} now" for k, v in settings(recipe).items() if there.get(k) != v]
    if differ:
        raise Refused(f"{where} was made with other settings: {'; '.join(differ)}", "give another folder for OUT")


def save(
    file: Path,
    recipe: Recipe,
    masters: dict[str, Any],
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    log: list[float],
    seconds: float,
) -> None:
    """Masters and optimizer states in one file, in place of the last one; no pickle."""
    names = {id(p): name for name, p in masters.items()}
    tensors = {f"master/{name}": p.detach() for name, p in masters.items()}
    for optimizer in optimizers:
        for p, entries in optimizer.state.items():
            tensors |= {f"state/{names[id(p)]}/{key}": value for key, value in entries.items()}
    known = {"recipe": settings(recipe), "step": step, "log": log, "seconds": seconds}
    half = file.with_suffix(".half")
    save_file(tensors, half, {"training": json.dumps(known)})
    half.replace(file)


def resumed(
    file: Path, recipe: Recipe, masters: dict[str, Any], optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[int, list[float], float]:
    """The step to go on from, the losses so far and the seconds they took; masters and optimizers put as they were.

    Raises:
        BadInput: The file is damaged.
        Refused: It is of other settings.
    """
    if not file.is_file():
        return 0, [], 0.0
    try:
        with safe_open(file, "pt") as opened:
            known = json.loads(opened.metadata()["training"])
        step, log, seconds = known["step"], known["log"], known["seconds"]
        tensors = load_file(file, device=str(next(iter(masters.values())).device))
        values = {name: tensors[f"master/{name}"] for name in masters}
    except (SafetensorError, KeyError, TypeError, ValueError) as problem:
        raise damaged(file, problem) from problem
    same(recipe, known.get("recipe"), file)
    with torch.no_grad():
        for name, p in masters.items():
            p.copy_(values[name])
    owners = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for key, value in tensors.items():
        kind, name, *entry = key.split("/")
        if kind == "state":
            p = masters[name]
            owners[id(p)].state[p][entry[0]] = value
    return step, log, seconds
