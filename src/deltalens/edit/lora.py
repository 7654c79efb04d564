"""An edit as a LoRA adapter in PEFT's layout, exact where its change is low-rank, with a residual where it is not."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltalens.checkpoint.embedding import tied
from deltalens.checkpoint.pair import Row
from deltalens.direction.spaces import role_kind
from deltalens.edit.adapter import Factors, write_adapter
from deltalens.edit.form import Form, triples
from deltalens.edit.plan import Plan
from deltalens.edit.tensors import changes
from deltalens.errors import BadInput, Refused

RANK = 64
"""Rank at which a change of full rank is cut off."""


@dataclass(frozen=True, slots=True, eq=False)
class Adapter:
    """An edit as factors.

    Attributes:
        factors: By canonical name of the matrix.
        rows: Their rows in the plan.
        residuals: Share ‖D − BA‖²/‖D‖² of every change D that the factors leave out, by canonical name; 1 for what no
            adapter can hold: gains of norms, biases, routers and routed experts, an embedding tied to the output head.
    """

    factors: Mapping[str, Factors]
    rows: Mapping[str, Row]
    residuals: Mapping[str, float]


def to_adapter(opened: Plan, rank: int = RANK) -> Adapter:
    """The factors of an edit on the model that it starts from.

    Args:
        opened: The edit.
        rank: Of the best approximation to a change of full rank.

    Raises:
        BadInput: The rank is not positive.
        Refused: The edit changes nothing.
    """
    if rank < 1:
        raise BadInput(f"rank {rank} of an adapter is not possible", "1 or more")
    found: dict[str, Factors] = {}
    rows: dict[str, Row] = {}
    residuals: dict[str, float] = {}
    for row, made in changes(opened):
        name, change = row.name.name, made - Form.of(opened.stored(row))
        if not _takes(opened, row):
            residuals[name] = 1.0
            continue
        left, right, residuals[name] = _factors(change, rank)
        if left.shape[1]:
            found[name], rows[name] = Factors(left, right), row
    if not residuals:
        raise Refused("the edit changes nothing")
    return Adapter(found, rows, residuals)


def inexact(opened: Plan) -> list[str]:
    """Names of the changes that no adapter holds exactly: not low-rank by construction, or of no layer of PEFT's."""
    return [
        row.name.name
        for row, made in changes(opened)
        if not _takes(opened, row) or (made - Form.of(opened.stored(row))).terms
    ]


def write_lora(opened: Plan, adapter: Adapter, out: str | Path) -> None:
    """Write an adapter for PEFT: `adapter_config.json` and `adapter_model.safetensors`, alphas equal to ranks.

    Args:
        opened: The edit.
        adapter: Its factors.
        out: A new or empty directory.

    Raises:
        BadInput: The directory cannot be written.
        Refused: It is not empty.
    """
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder} is not an empty directory", "--out NEW")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise BadInput(f"cannot write {folder}: {(problem.strerror or str(problem)).lower()}") from problem
    modules = {name: opened.stored(row).info.name.removesuffix(".weight") for name, row in adapter.rows.items()}
    by_module = {modules[name]: factors for name, factors in adapter.factors.items()}
    tables = {modules[name] for name, row in adapter.rows.items() if row.name.kind in ("embed", "pos_embed")}
    turned = any(row.transposed for row in adapter.rows.values())
    write_adapter(folder, by_module, tables, opened.carrier.source, turned)


def _takes(opened: Plan, row: Row) -> bool:
    """Whether PEFT has a layer for a tensor: a matrix of a linear map, or an embedding on its own."""
    assert row.tuned is not None
    if len(row.shape) != 2 or row.name.expert is not None:  # transformers stacks the experts that files keep apart
        return False
    kind = role_kind(row.tuned.name, row.name.kind)
    return kind != "other" and kind != "router" and not (kind == "embed" and tied(opened.carrier))


def _factors(change: Form, rank: int) -> tuple[np.ndarray, np.ndarray, float]:
    """B and A of a change, and the share of it that they leave out."""
    if not change.terms:
        return change.left, change.right, 0.0
    found = triples(change, rank)
    total = float(np.sum(found.sigma**2))
    if not total:
        return np.empty((change.shape[0], 0)), np.empty((0, change.shape[1])), 0.0
    part, kept = found.first(rank), found.left.shape[1]
    left_out = float(np.sum(found.sigma[kept:] ** 2) / total)
    return part.left, part.right, left_out if kept < found.rank else 0.0
