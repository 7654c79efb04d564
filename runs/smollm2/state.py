"""The state of an interrupted training, and whether what is there was made with the settings of now."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from recipe import Recipe
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from deltalens.errors import BadInput, Refused


def read(file: Path) -> Any:
    """A JSON file.

    Raises:
        BadInput: It is damaged.
    """
    try:
        return json.loads(file.read_text())
    except ValueError as problem:
        raise BadInput(f"{file} is damaged: {problem}", f"rm {file}, and it is made anew") from problem


def same(recipe: Recipe, other: dict[str, Any], where: Path) -> None:
    """Refuses what was made with other settings."""
    ours = json.loads(json.dumps(asdict(recipe)))
    if differ := [
        f"{key} {other.get(key)} there, {value} now" for key, value in ours.items() if other.get(key) != value
    ]:
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
    known = {"recipe": asdict(recipe), "step": step, "log": log, "seconds": seconds}
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
        tensors = load_file(file, device=str(next(iter(masters.values())).device))
    except SafetensorError as problem:
        raise BadInput(f"{file} is damaged: {problem}", f"rm {file}, and the training begins anew") from problem
    same(recipe, known["recipe"], file)
    with torch.no_grad():
        for name, p in masters.items():
            p.copy_(tensors[f"master/{name}"])
    owners = {id(p): optimizer for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    for key, value in tensors.items():
        kind, name, *entry = key.split("/")
        if kind == "state":
            p = masters[name]
            owners[id(p)].state[p][entry[0]] = value
    return known["step"], known["log"], known["seconds"]
