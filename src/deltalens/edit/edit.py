"""An edit as data: a base, a tuned side, and operations in order; read from TOML, written back, and hashed."""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from deltalens.checkpoint.header import one_line
from deltalens.checkpoint.names import LINEAR
from deltalens.errors import BadInput
from deltalens.store.parts import part_key

SCHEMA = 1
"""Layout of an edit file."""

"""The seven linear kinds of a layer."""


@dataclass(frozen=True, slots=True)
class Takes:
    """What an operator takes.

    Attributes:
        start: The side that a tensor stands at before its first operation: `base`, `tuned`, or None for the side that
            the edit leaves everything else at.
        sets: Whether it puts a tensor somewhere whatever it was before, so that nothing may come before it.
        needs: Fields that must be given.
        may: Fields that may be given, besides the selectors.
        scope: Kinds that are touched by default; None for every tensor, `()` for no default.
    """

    start: str | None
    sets: bool
    needs: tuple[str, ...]
    may: tuple[str, ...]
    scope: tuple[str, ...] | None


OPERATORS = {
    "interpolate": Takes("base", True, ("strength",), (), None),
    "truncate": Takes("base", True, ("rank",), ("strength", "rest"), LINEAR),
    "revert": Takes("tuned", False, ("rank",), ("strength",), LINEAR),
    "negate": Takes("base", True, (), ("strength",), None),
    "lox": Takes("tuned", False, ("rank",), ("strength",), ("matrix",)),
    "contrast": Takes(None, False, ("plus", "minus"), ("strength",), None),
    "cut": Takes(None, False, ("direction",), ("strength",), ("o_proj", "down_proj", "embed")),
    "restore": Takes(None, False, (), ("strength", "direction", "rank", "side", "reference"), ()),
    "add": Takes(None, False, ("direction", "strength"), ("site",), ()),
}
PAIRED = ("interpolate", "truncate", "revert", "negate", "lox")
"""Operators on the difference of base and tuned."""

SELECTORS = ("layers", "kinds", "heads", "experts")


@dataclass(frozen=True, slots=True)
class Energy:
    """A rank by what it holds: the least k with Σ_{≤k}σ² ≥ share·Σσ²."""

    share: float


@dataclass(frozen=True, slots=True)
class Operation:
    """One step of an edit.

    Attributes:
        operator: One of `OPERATORS`.
        strength: λ, α or k of its formula.
        rank: How much of a delta it takes: a number of singular triples, `spikes`, `full`, or a share of the energy.
        layers: `0-13`, `50%-100%`, several of either between commas, or a list; None for all, tensors of no layer
            included.
        kinds: Kinds or groups of kinds (see `select.GROUPS`); None for the operator's default scope.
        heads: Query heads; keys and values of their groups come with them.
        experts: Routed experts.
        direction: `BANK#id`, what is cut, added or restored along.
        rest: Where `truncate` leaves what it does not touch: `base` (default) or `tuned`.
        side: Which sides of a matrix `restore` projects: `both` (default), `left` or `right`.
        reference: What `restore` restores from: a model, `base` (default) or `tuned`.
        plus: θ⁺ of `contrast`: a model, `base` or `tuned`.
        minus: θ⁻ of `contrast`, likewise.
        site: Whose output `add` is added to; by default the direction's own.
    """

    operator: str
    strength: float = 1.0
    rank: int | str | Energy | None = None
    layers: str | tuple[int, ...] | None = None
    kinds: tuple[str, ...] | None = None
    heads: tuple[int, ...] | None = None
    experts: tuple[int, ...] | None = None
    direction: str | None = None
    rest: str | None = None
    side: str | None = None
    reference: str | None = None
    plus: str | None = None
    minus: str | None = None
    site: str | None = None

    def __post_init__(self) -> None:
        if self.operator not in OPERATORS:
            raise BadInput(f"no operator is called {self.operator!r}", _nearest(self.operator, tuple(OPERATORS)))
        takes = OPERATORS[self.operator]
        given = {f.name for f in fields(self) if getattr(self, f.name) != f.default and f.name != "operator"}
        for name in sorted(given - {*takes.needs, *takes.may, *SELECTORS}):
            fields_of = ", ".join((*takes.needs, *takes.may, *SELECTORS))
            raise BadInput(f"{self.operator} takes no {name}", f"it takes {fields_of}")
        for name in takes.needs:
            if name not in given and name != "strength":
                raise BadInput(f"{self.operator} needs {name}", _EXAMPLES[name])
        if not math.isfinite(self.strength):
            raise BadInput(f"the strength of {self.operator} is {self.strength}", "a finite number")
        _check_rank(self.operator, self.rank)
        for name, allowed in (("rest", ("base", "tuned")), ("side", ("both", "left", "right"))):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise BadInput(f"{name} = {value!r} is not possible", f"one of {', '.join(allowed)}")
        if self.operator == "restore" and self.rank is not None and not isinstance(self.rank, int):
            raise BadInput(f"restore takes a number as its rank, not {self.rank!r}", "rank = 16")
        if self.operator == "restore" and (self.direction is None) == (self.rank is None):
            raise BadInput("restore needs rank or direction, not both", "rank = 16, or direction = BANK#id")

    @property
    def record(self) -> dict[str, Any]:
        """Its fields as plain JSON values, those that are not set left out."""
        found: dict[str, Any] = {"operator": self.operator, "strength": self.strength}
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and f.name not in found:
                plain = {"energy": value.share} if isinstance(value, Energy) else value
                found[f.name] = list(plain) if isinstance(plain, tuple) else plain
        return found


_EXAMPLES = {
    "rank": 'rank = 4, "spikes", "full" or {energy = 0.9}',
    "direction": "direction = BANK#id",
    "plus": "plus = MODEL, minus = MODEL",
    "minus": "plus = MODEL, minus = MODEL",
    "strength": "strength = 0.5",
}
_TEXT = ("layers", "rank", "direction", "rest", "side", "reference", "plus", "minus", "site", "operator")
_WHOLE = ("layers", "heads", "experts")


@dataclass(frozen=True, slots=True)
class Edit:
    """What is done to a model.

    Attributes:
        base: A model; of an edit without a tuned side the one that is edited.
        operations: In the order in which they are carried out.
        tuned: Its tuned sibling, or a LoRA adapter on it.
    """

    base: str
    operations: tuple[Operation, ...]
    tuned: str | None = None

    def __post_init__(self) -> None:
        if not self.operations:
            raise BadInput("the edit has no operation", "add a table [[edit]] with an operator")
        for operation in self.operations:
            if operation.operator in PAIRED and self.tuned is None:
                raise BadInput(f"{operation.operator} works on a difference, but no tuned side is given", 'tuned = "…"')

    @property
    def home(self) -> str:
        """The side at which whatever no operation touches is left: `base` or `tuned`."""
        first = self.operations[0]
        return first.rest or OPERATORS[first.operator].start or ("base" if self.tuned is None else "tuned")

    @property
    def record(self) -> dict[str, Any]:
        """The edit as plain JSON values: what `from_record` reads and an arm stores."""
        sides = {"base": self.base} | ({} if self.tuned is None else {"tuned": self.tuned})
        return {"schema": SCHEMA, **sides, "edit": [operation.record for operation in self.operations]}

    @property
    def edit_hash(self) -> str:
        """A hash of everything that defines it."""
        return part_key(self.record)

    @property
    def toml(self) -> str:
        """An edit file that reads back as this edit."""
        head = {key: value for key, value in self.record.items() if key != "edit"}
        tables = [head, *self.record["edit"]]
        texts = ["".join(f"{key} = {_toml(value)}\n" for key, value in table.items()) for table in tables]
        return "\n[[edit]]\n".join(texts)


def read_edit(path: str | Path) -> Edit:
    """An edit from a TOML file.

    Raises:
        BadInput: It cannot be read, or says something that no edit can mean; names the nearest field.
    """
    return from_record(read_record(path))


def read_record(path: str | Path) -> dict[str, Any]:
    """The plain values of an edit file.

    Raises:
        BadInput: It cannot be read, or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_bytes().decode("utf-8"))
    except OSError as problem:
        raise BadInput(
            f"cannot read {path}: {(problem.strerror or one_line(problem)).lower()}", "the path of an edit file (TOML)"
        ) from None
    except (ValueError, RecursionError) as problem:  # not UTF-8, or no TOML
        raise BadInput(f"{path} is not TOML ({one_line(problem)})", 'base = "…", then [[edit]] tables') from None


def from_record(record: Mapping[str, Any]) -> Edit:
    """An edit from the plain values of its file or of an arm.

    Raises:
        BadInput: A field is unknown, missing, or not of its type.
    """
    _known(record, ("schema", "base", "tuned", "edit"), "an edit")
    if record.get("schema", SCHEMA) != SCHEMA:
        raise BadInput(f"the edit has schema {record['schema']}, this deltalens reads {SCHEMA}")
    for name in ("base", "tuned"):
        if not isinstance(record.get(name, "" if name == "tuned" else None), str):
            raise BadInput(f"the edit has no valid {name}", f'{name} = "a directory, hub id or family:NAME"')
    steps = record.get("edit")
    if not isinstance(steps, list) or not all(isinstance(step, dict) for step in steps):
        raise BadInput("the edit has no list of operations", "add a table [[edit]] with an operator")
    return Edit(record["base"], tuple(map(_operation, steps)), record.get("tuned") or None)


def _operation(step: dict[str, Any]) -> Operation:
    _known(step, tuple(f.name for f in fields(Operation)), "an operation")
    if "operator" not in step:
        raise BadInput("an operation has no operator", f"one of {', '.join(OPERATORS)}")
    if "strength" not in step and "strength" in OPERATORS.get(step["operator"], _NOTHING).needs:
        raise BadInput(f"{step['operator']} needs strength", _EXAMPLES["strength"])
    return Operation(**{name: _field(name, value) for name, value in step.items()})


_NOTHING = Takes(None, False, (), (), None)


def _field(name: str, value: Any) -> Any:
    """A value as its field takes it; what cannot be one is bad input."""
    if name == "strength" and type(value) in (int, float):
        return as_float(value)
    if name == "rank" and isinstance(value, dict):
        _known(value, ("energy",), "a rank")
        if type(value.get("energy")) in (int, float):
            return Energy(as_float(value["energy"]))
    elif (name == "rank" and type(value) is int) or (name in _TEXT and isinstance(value, str)):
        return value
    elif name in _WHOLE and isinstance(value, list) and value and all(type(n) is int for n in value):
        return tuple(value)
    elif name == "kinds":
        named = [value] if isinstance(value, str) else value
        if isinstance(named, list) and named and all(isinstance(n, str) for n in named):
            return tuple(named)
    raise BadInput(f"{name} = {value!r} is not possible", _EXAMPLES.get(name))


def as_float(value: int | float) -> float:
    """A number of a file as a float; a whole one that is too large for one becomes infinite, which no field takes."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _check_rank(operator: str, rank: int | str | Energy | None) -> None:
    if isinstance(rank, Energy):
        possible = 0 < rank.share <= 1
    elif isinstance(rank, str):
        possible = rank in ("spikes", "full")
    else:
        possible = rank is None or rank >= 1
    if not possible:
        raise BadInput(f"rank {rank!r} of {operator} is not possible", _EXAMPLES["rank"])


def _known(record: Mapping[str, Any], names: tuple[str, ...], what: str) -> None:
    for name in record:
        if name not in names:
            raise BadInput(f"{what} has no field {name!r}", _nearest(str(name), names))


def _nearest(name: str, names: tuple[str, ...]) -> str:
    near = get_close_matches(str(name), names, n=1, cutoff=0.0)
    return f"{near[0]}; there are {', '.join(names)}"


def _toml(value: Any) -> str:
    """A plain value as TOML; JSON's strings, numbers and lists are TOML's."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # the one character that only TOML escapes
