"""From an edit to tensors: which models and banks it names, which tensors it touches, and what would be refused.

Opening reads headers and banks only; what a tensor becomes is worked out in `tensors`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from deltalens.checkpoint.embedding import tied
from deltalens.checkpoint.header import TensorInfo
from deltalens.checkpoint.pair import Pair, Row
from deltalens.checkpoint.source import Checkpoint
from deltalens.direction.bank import read_direction
from deltalens.direction.direction import Direction
from deltalens.direction.spaces import Side, sides
from deltalens.edit.adapter import Factors, is_adapter, read_adapter
from deltalens.edit.edit import OPERATORS, PAIRED, Edit, Operation
from deltalens.edit.form import Form, Mask, Stored, Triples
from deltalens.edit.select import WRITERS, Choice, choose, editable, is_bias, kinds_of, module_of, weights_of
from deltalens.errors import BadInput, Refused

_BIAS_OF = {"attn_out": "o_proj", "resid_mid": "o_proj", "mlp_out": "down_proj", "resid_post": "down_proj"}
_BIAS_OF |= {"q": "q_proj", "k": "k_proj", "v": "v_proj"}


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One model that an edit names, seen from its base.

    Attributes:
        tensors: By canonical name; of an adapter those of the base.
        factors: Of an adapter, by module.
    """

    tensors: Mapping[str, TensorInfo]
    factors: Mapping[str, Factors] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One operation on one tensor."""

    operation: Operation
    mask: Mask


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """An edit, opened.

    Attributes:
        edit: What is asked.
        pair: Base and tuned; a model alone, or the base of an adapter, with itself.
        models: Every model that the edit names, by what it is called there; `base` and `tuned` among them.
        directions: By reference.
        steps: By canonical name, in order.
        notes: What a reader of the result should know.
        kept: Singular triples found so far; one dictionary may serve many plans of one pair.
        owners: The weight of every module.
        spaces: Sides of matrices looked up so far, by layer and kind.
    """

    edit: Edit
    pair: Pair
    models: Mapping[str, Model]
    directions: Mapping[str, Direction]
    steps: Mapping[str, tuple[Step, ...]]
    notes: tuple[str, ...]
    kept: dict[tuple[str, ...], Triples]
    owners: Mapping[str, Row]
    spaces: dict[tuple[int | None, str], tuple[Side, Side]] = field(default_factory=dict)

    @property
    def carrier(self) -> Checkpoint:
        """The checkpoint on disk that the edit starts from."""
        return self.pair.base if self.edit.home == "base" else self.pair.tuned

    def stored(self, row: Row, side: str | None = None) -> Stored:
        """A tensor as it lies in the base, the tuned side, or (default) where the edit starts from."""
        info = row.base if (side or self.edit.home) == "base" else row.tuned
        assert info is not None
        return Stored(info, row.transposed)

    def of(self, model: str, row: Row) -> Form:
        """A tensor of a model that the edit names.

        Raises:
            Refused: The model lacks it.
        """
        found = self.models[model]
        info = found.tensors.get(row.name.name)
        if info is None:
            raise Refused(f"{model} has no tensor {row.name.name}", "leave it out with kinds = [...]")
        factors = None if is_bias(row) else found.factors.get(module_of(row))
        form = Form.of(Stored(info, row.transposed))
        if factors is None:
            return form
        if (len(factors.left), factors.right.shape[1]) != form.shape:
            raise Refused(f"{model} has factors of another shape for {row.name.name}")
        return form + Form.product(factors.left, factors.right)


def plan(edit: Edit, kept: dict[tuple[str, ...], Triples] | None = None) -> Plan:
    """Open every model and bank that an edit names, and find what it touches.

    Args:
        edit: The edit.
        kept: Where singular triples are looked up and left, for several edits of one pair.

    Raises:
        BadInput: Something named cannot be opened, or a selector matches nothing.
        Refused: The models are not comparable, or a tensor cannot take its operator.
    """
    adapter = edit.tuned is not None and is_adapter(edit.tuned)
    tuned = edit.base if edit.tuned is None or adapter else edit.tuned
    pair = Pair.open(edit.base, tuned)
    kinds = [checkpoint.setting("model_type") for checkpoint in (pair.base, pair.tuned)]
    if kinds[0] != kinds[1]:  # tensors of one side under the config of the other would load, and be another model
        found = f"{edit.base} is a {kinds[0]} model, {tuned} a {kinds[1]} model"
        raise Refused(found, "name two models of one architecture")
    rows = editable(pair)
    models = {side: Model({r.name.name: getattr(r, side) for r in rows}) for side in ("base", "tuned")}
    if adapter:
        assert edit.tuned is not None
        models["tuned"] = _model(pair, edit.tuned)
    for operation in edit.operations:
        for source in (operation.plus, operation.minus, operation.reference):
            if source is not None and source not in models:
                models[source] = _model(pair, source)
    directions = {o.direction: read_direction(o.direction) for o in edit.operations if o.direction is not None}
    steps: dict[str, list[Step]] = {}
    notes: list[str] = [] if edit.tuned is None or adapter else list(pair.warnings)
    for number, operation in enumerate(edit.operations, 1):
        home = pair.base if edit.home == "base" else pair.tuned
        for choice in _chosen(operation, pair, tied(home), directions, notes):
            before = steps.setdefault(choice.row.name.name, [])
            if OPERATORS[operation.operator].sets and any(np.any(step.mask * choice.mask) for step in before):
                raise Refused(
                    f"operation {number} ({operation.operator}) would undo an earlier one on {choice.row.name.name}",
                    f"put {operation.operator} first, or let them touch different tensors",
                )
            before.append(Step(operation, choice.mask))
    frozen = {name: tuple(found) for name, found in steps.items()}
    kept = {} if kept is None else kept
    opened = Plan(edit, pair, models, directions, frozen, tuple(notes), kept, weights_of(pair))
    _check(opened)
    return opened


def _model(pair: Pair, source: str) -> Model:
    if is_adapter(source):
        named = {r.name.name: r.base for r in editable(pair) if r.base is not None}
        factors = read_adapter(source)
        known = {module_of(row) for row in editable(pair)}
        if unknown := sorted(set(factors) - known):
            raise Refused(f"the adapter {source} changes {unknown[0]}, which {pair.base.source} does not store")
        return Model(named, factors)
    other = Pair.open(pair.base.source, source)
    return Model({r.name.name: r.tuned for r in editable(other) if r.tuned is not None})


def _chosen(
    operation: Operation, pair: Pair, one_table: bool, directions: Mapping[str, Direction], notes: list[str]
) -> list[Choice]:
    if operation.operator == "add":
        return _biases(operation, pair, directions[operation.direction or ""])
    ranked = "rank" in (*OPERATORS[operation.operator].needs, *OPERATORS[operation.operator].may)
    whole = operation.rank == "full" if ranked else operation.operator in (*PAIRED, "contrast")
    if operation.operator == "cut" and one_table:
        if operation.kinds is None:
            operation = replace(operation, kinds=("o_proj", "down_proj"))
        elif {"embed", "lm_head", "matrix", "all"} & set(operation.kinds):
            notes.append("embed is tied to lm_head: where one is cut the other is too")
    found = choose(operation, pair, whole, biases=not ranked)
    if operation.operator == "cut":  # a reader's bias reads nothing
        owners = weights_of(pair)
        found = [c for c in found if not is_bias(c.row) or set(kinds_of(c.row, owners)) <= WRITERS]
    return found


def _biases(operation: Operation, pair: Pair, direction: Direction) -> list[Choice]:
    """The biases that `add` can fold a vector into."""
    if operation.kinds or operation.heads or operation.experts:
        raise BadInput("add takes its place from site and layers", 'site = "mlp_out", layers = "3"')
    site = operation.site or direction.site or ""
    kind = _BIAS_OF.get(site)
    steer = "deltalens steer adds it to activations"
    if kind is None:
        raise Refused(f"nothing of a checkpoint is added at {site or 'a direction without a site'}", steer)
    layers = operation.layers
    if layers is None and direction.layer is not None:
        layers = (direction.layer,)
    there = choose(replace(operation, kinds=(kind,), layers=layers), pair, whole=True, biases=True)
    found = [choice for choice in there if is_bias(choice.row)]
    if not found:
        raise Refused(f"{pair.tuned.setting('model_type')} has no bias of {kind} to fold a vector into", steer)
    for choice in there:
        info = choice.row.tuned
        assert info is not None
        if not is_bias(choice.row) and sides(pair.tuned, info.name, kind)[0].norm is not None:
            raise Refused(f"the output of {choice.row.name.name} is normalised before it is added", steer)
    return found


def _check(opened: Plan) -> None:
    """Everything that can be wrong about a step without reading a weight, but for the headers."""
    for row in editable(opened.pair):
        for step in opened.steps.get(row.name.name, ()):
            operation = step.operation
            if operation.operator == "add":
                d = opened.directions[operation.direction or ""]
                if d.vectors.shape != (1, row.shape[0]):
                    raise BadInput(
                        f"direction {d.id} is {d.vectors.shape[0]} × {d.vectors.shape[1]}, {row.name.name} needs one "
                        f"vector of {row.shape[0]}",
                        "name one vector of this site, such as BANK#id:0",
                    )
            elif operation.direction is not None:
                residual_side(opened, row, opened.directions[operation.direction])
    for operation in opened.edit.operations:
        chosen = [row for row in editable(opened.pair) if _touches(opened, row, operation) and len(row.shape) > 1]
        full = max((min(row.shape[0], row.shape[1]) for row in chosen), default=0)
        if isinstance(operation.rank, int) and operation.rank > full:
            raise BadInput(f"rank {operation.rank} is above {full}, the full rank of what was chosen", 'rank = "full"')


def _touches(opened: Plan, row: Row, operation: Operation) -> bool:
    return any(step.operation is operation for step in opened.steps.get(row.name.name, ()))


def residual_side(opened: Plan, row: Row, direction: Direction) -> tuple[Side, bool]:
    """The side of a matrix, or of the bias of one, that touches the residual stream; whether it is the output side.

    Raises:
        BadInput: The direction is of another space or width.
        Refused: The tensor has no such side.
    """
    owner = opened.owners.get(module_of(row), row)
    info = opened.stored(owner).info
    key = owner.name.layer, owner.name.kind
    if owner.name.kind == "other":  # several matrices of a layer may be
        left, right = sides(opened.carrier, info.name, "other")
    else:
        if key not in opened.spaces:
            opened.spaces[key] = sides(opened.carrier, info.name, owner.name.kind)
        left, right = opened.spaces[key]
    output = left.role == "write"
    side = left if output else right
    if side.role == "inner" or (is_bias(row) and not output):
        raise Refused(f"{row.name.name} does not touch the residual stream in a known way", "kinds = [...] without it")
    width = owner.shape[0] if output else owner.shape[1]
    if direction.space != "residual":
        raise BadInput(f"direction {direction.id} is of the space {direction.space}, a cut needs residual")
    if direction.vectors.shape[1] != width:
        raise BadInput(
            f"direction {direction.id} has {direction.vectors.shape[1]} entries, {row.name.name} has {width}",
            "a bank that was made from this model",
        )
    return side, output
