"""What each tensor becomes, worked out when it is asked for: nothing of a model is held."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.names import canonical
from deltalens.checkpoint.pair import Row
from deltalens.direction.spaces import gain
from deltalens.edit import operators
from deltalens.edit.edit import OPERATORS, Operation
from deltalens.edit.form import Form, Mask, triples
from deltalens.edit.plan import Plan, Step, residual_side
from deltalens.edit.ranks import leading
from deltalens.edit.select import editable, module_of
from deltalens.errors import Refused


def form(opened: Plan, row: Row) -> Form:
    """What a tensor becomes; the start of its first operation, or the edit's home, where nothing comes before."""
    now = opened.of(opened.edit.home, row)
    touched: Mask = 0.0
    for step in opened.steps.get(row.name.name, ()):
        start = OPERATORS[step.operation.operator].start
        acting = now
        if start is not None:
            acting = touched * now + (1.0 - touched) * opened.of(start, row)
        result = _apply(opened, row, step, acting)
        now = result if np.all(step.mask == 1.0) else step.mask * result + (1.0 - step.mask) * now
        touched = np.maximum(touched, step.mask)
    return now


def affected(opened: Plan, side: str | None = None) -> list[Row]:
    """Every tensor that may differ from a side's own, by default from where the edit starts."""
    elsewhere = (side or opened.edit.home) != opened.edit.home
    factors = opened.models[opened.edit.home].factors  # of an adapter: its base is what lies on disk
    rows = editable(opened.pair)
    return [row for row in rows if elsewhere or row.name.name in opened.steps or module_of(row) in factors]


def changes(opened: Plan, side: str | None = None) -> Iterator[tuple[Row, Form]]:
    """Every tensor that differs, by formula, from a side's own, with what it becomes.

    Args:
        opened: The plan.
        side: `base` or `tuned`, by default where the edit starts from.

    Raises:
        Refused: An output head would differ from the embedding that it is tied to.
    """
    for row in affected(opened, side):
        made, stored = form(opened, row), opened.stored(row, side)
        if made.same == stored:
            continue
        if row.name.kind == "lm_head" and canonical(stored.info.name, 2).kind == "embed":
            raise Refused(
                f"the {side or opened.edit.home} side ties lm_head to embed: it cannot be given one of its own",
                "untie it first, or choose kinds without lm_head",
            )
        yield row, made


def _apply(opened: Plan, row: Row, step: Step, now: Form) -> Form:
    operation, a = step.operation, step.operation.strength
    match operation.operator:
        case "interpolate" | "negate":
            delta = opened.of("tuned", row) - opened.of("base", row)
            function = operators.interpolate if operation.operator == "interpolate" else operators.negate
            return function(now, delta, a)
        case "truncate":
            return operators.truncate(now, leading(opened, row, step), a)
        case "revert":
            return operators.revert(now, leading(opened, row, step), a)
        case "lox":
            return operators.lox(now, leading(opened, row, step), a)
        case "contrast":
            assert operation.plus is not None and operation.minus is not None
            return operators.contrast(now, opened.of(operation.plus, row), opened.of(operation.minus, row), a)
        case "cut":
            q, output = basis(opened, row, operation)
            return operators.cut_output(now, q, a) if output else operators.cut_input(now, q, a)
        case "restore":
            reference = opened.of(operation.reference or "base", row)
            left, right = _projections(opened, row, operation, reference)
            return operators.restore(now, reference, left, right, a)
    vector = opened.directions[operation.direction or ""].vectors[0].astype(np.float64)
    return operators.add(now, vector, a)


def _projections(
    opened: Plan, row: Row, operation: Operation, reference: Form
) -> tuple[operators.Basis | None, operators.Basis | None]:
    """P_U and P_V of `restore`: along a direction on its own side, else the reference's principal subspaces."""
    if operation.direction is not None:
        q, output = basis(opened, row, operation)
        return (q, None) if output else (None, q)
    assert isinstance(operation.rank, int)
    found = triples(reference, operation.rank)
    side = operation.side or "both"
    return (found.left if side != "right" else None), (found.right if side != "left" else None)


def basis(opened: Plan, row: Row, operation: Operation) -> tuple[Float64[np.ndarray, "d r"], bool]:
    """Q of a direction at one matrix, and whether it lies on its output side.

    Behind a norm a matrix reads γ∘r, and where its own output is normalised it writes r along γ∘r; γ is that of the
    edited model. A LayerNorm takes the mean out of r before.

    Raises:
        Refused: Nothing of the direction passes the norm.
    """
    direction = opened.directions[operation.direction or ""]
    side, output = residual_side(opened, row, direction)
    columns = direction.basis
    gamma = 1.0 if side.norm is None else _gain(opened, side.norm)[:, None]
    passed = columns - columns.mean(axis=0) if side.centred else columns
    q = operators.orthonormal(gamma * passed, float(np.linalg.norm(gamma * columns, 2)))
    if not q.shape[1]:
        raise Refused(
            f"nothing of direction {direction.id} passes {side.norm or 'the norm'}: {row.name.name} reads none of it",
            "kinds or layers without it",
        )
    return q, output


def _gain(opened: Plan, norm: str) -> Float64[np.ndarray, " d"]:
    row = opened.owners[norm]
    before = Form.of(opened.stored(row)).dense()[:, 0].astype(np.float64)
    offset = gain(opened.carrier, norm) - before  # 1 where a model stores γ − 1
    return form(opened, row).dense()[:, 0].astype(np.float64) + offset
