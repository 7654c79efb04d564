"""How much of a change an edit touches, and what a cut leaves behind."""

import numpy as np

from deltalens.checkpoint.pair import Row
from deltalens.edit.edit import Operation
from deltalens.edit.form import Form, Mask
from deltalens.edit.plan import Plan
from deltalens.edit.select import WRITERS, editable, kinds_of
from deltalens.edit.tensors import basis, changes


def touched_shares(opened: Plan) -> list[float | None]:
    """Share of ‖Δ‖² in the entries that each operation touches, then in those that any does; reads both sides once.

    The whole is every tensor of floating-point numbers that both sides have, each counted once. None where base and
    tuned are the same.
    """
    operations = opened.edit.operations
    sums, total = np.zeros(len(operations) + 1), 0.0
    for row in editable(opened.pair):
        delta = opened.of("tuned", row) - opened.of("base", row)
        if delta.zero:
            continue
        size = delta.norm_sq()
        if not np.isfinite(size):  # refused in the ledger too
            continue
        total += size
        steps = opened.steps.get(row.name.name, ())
        union: Mask = 0.0
        for step in steps:
            union = np.maximum(union, step.mask)
        masks = [next((s.mask for s in steps if s.operation is o), 0.0) for o in operations]
        for i, mask in enumerate([*masks, union]):
            if np.any(mask):
                sums[i] += size if np.all(mask == 1.0) else (mask * delta).norm_sq()
    return [float(value / total) if total else None for value in sums]


def left_along(opened: Plan, operation: Operation) -> dict[str, float]:
    """Of all that is written along a cut direction, the share of each table that the cut leaves, by name.

    Written along Q by a matrix: ‖QᵀW‖², of a table of embeddings ‖EQ‖²; what a cut of o_proj and down_proj leaves is
    in the embeddings, where these are tied to the output head or were not chosen.
    """
    energies: dict[str, float] = {}
    left: list[str] = []
    for row in _writers(opened):
        q, output = basis(opened, row, operation)
        form = opened.of(opened.edit.home, row)
        written = form.transposed_times(q) if output else form.times(q)
        energies[row.name.name] = float(np.sum(written**2))
        if not any(step.operation is operation for step in opened.steps.get(row.name.name, ())):
            left.append(row.name.name)
    total = sum(energies.values())
    if not total or len(left) == len(energies):  # only readers are cut
        return {}
    return {name: energies[name] / total for name in left if name in ("embed", "pos_embed")}


def change_norm(opened: Plan, side: str | None = None) -> float:
    """‖θ′ − θ‖ over all that the edit changes, from where it starts or from a side."""
    made = ((m - Form.of(opened.stored(row, side))).norm_sq() for row, m in changes(opened, side))
    return float(np.sqrt(sum(made)))


def _writers(opened: Plan) -> list[Row]:
    """Matrices that write to the residual stream."""
    found = []
    for row in editable(opened.pair):
        assert row.tuned is not None
        if len(row.shape) == 2 and set(kinds_of(row, opened.owners)) <= WRITERS:
            found.append(row)
    return found
