"""A grid over an edit file: every combination of other values of its fields, as curves along strength or rank.

    strength = [0.25, 0.5, 1]          the first operation's
    layers = ["0-33%", "34%-66%"]      one curve for each
    2.rank = [1, 2, 4]                 the second operation's

The first numeric field that is varied, a strength before a rank, runs along the curves. Loads no torch.
"""

import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import product
from typing import Any

from deltalens.checkpoint.header import one_line
from deltalens.edit.edit import Edit, Operation, as_float, from_record
from deltalens.errors import BadInput

LEGEND = (
    "from: where strength 0 stands, and what effects are taken from. operating point: least strength of 90 % of the\n"
    "largest effect, chosen on the select split; all else is the test split. effect − largest control: controls keep\n"
    "the functional norm ‖ΔΣ^½‖ of the edit. F: (edit − base)/(tuned − base). Intervals of claims are 99.4 %."
)

Field = tuple[int, str]
"""Number of an operation, from 1, and the name of its field."""

_ALONG = ("strength", "rank")
_MOST = 64  # curves of one grid: each has controls of its own
_FIX = 'a line such as "strength = [0.25, 0.5, 1]"'


def read_grid(lines: Sequence[str], record: Mapping[str, Any]) -> dict[Field, list[Any]]:
    """The values of every field that is varied.

    Args:
        lines: TOML assignments; each names a field and lists its values.
        record: The plain values of an edit file; its table `grid` holds the same, and is overruled by a line.

    Raises:
        BadInput: A line is no TOML, or names no field of an operation that there is.
    """
    try:
        asked = [record.get("grid", {}), *(tomllib.loads(line) for line in lines)]
    except ValueError as problem:
        raise BadInput(f"--grid is not TOML ({one_line(problem)})", _FIX) from None
    if not isinstance(asked[0], dict):
        raise BadInput("grid of the edit file is no table", f"[grid] and below it {_FIX}")
    steps, known = len(record.get("edit", ())), [f.name for f in fields(Operation)]
    found: dict[Field, list[Any]] = {}
    for key, value in (pair for table in asked for pair in table.items()):
        inner = value if isinstance(value, dict) else {key: value}
        number = key if isinstance(value, dict) else "1"
        if not number.isdecimal() or not 1 <= int(number) <= steps:
            raise BadInput(f"the grid names operation {number}, the edit has {steps}", _FIX)
        for name, values in inner.items():
            if name not in known or not isinstance(values, list) or not values:
                raise BadInput(f"the grid cannot vary {name!r} over {values!r}", f"{_FIX}, of {', '.join(known)}")
            found[int(number), name] = values
    if not found:
        raise BadInput("the grid is empty: there is one edit, and nothing to sweep", f"--grid with {_FIX}")
    return found


@dataclass(frozen=True, slots=True, eq=False)
class Along:
    """A curve of a grid.

    Attributes:
        name: Its operators and what sets it apart.
        xs: Strengths or ranks, 0 left out.
        made: The edit at one of them.
        adaptive: Whether strengths are added where the measure jumps.
    """

    name: str
    xs: tuple[float, ...]
    made: Callable[[float], Edit]
    adaptive: bool = False


def edits(edit: Edit, varied: Mapping[Field, list[Any]], adaptive: bool = False) -> list[Along]:
    """The curves of a grid.

    Args:
        edit: Fields that are varied are replaced.
        varied: From `read_grid`.
        adaptive: Whether strengths are added where the measure jumps.

    Raises:
        BadInput: A value is none of its field, or there are too many curves.
    """
    along = next((f for name in _ALONG for f in varied if f[1] == name and _numeric(varied[f])), None)
    others = [f for f in varied if f != along]
    combinations = list(product(*(varied[f] for f in others)))
    if len(combinations) > _MOST:
        raise BadInput(f"the grid has {len(combinations)} curves, {_MOST} are the most", "vary fewer fields at a time")
    if adaptive and (along is None or along[1] != "strength"):
        raise BadInput("--adaptive adds strengths, but the grid varies none", "--grid 'strength = [0.25, 0.5, 1]'")
    found = []
    for values in combinations:
        fixed = dict(zip(others, values, strict=True))
        one = _with(edit, fixed)
        words = [f"{_label(f)} = {json.dumps(v, ensure_ascii=False)}" for f, v in fixed.items()]
        name = ", ".join([*(operation.operator for operation in edit.operations), *words])
        if along is None:
            found.append(Along(name, (one.operations[0].strength,), lambda _, one=one: one))
            continue
        xs = tuple(dict.fromkeys(as_float(x) for x in varied[along] if x or along[1] == "rank"))
        if not xs:
            raise BadInput(f"{_label(along)} is only varied over 0, where nothing is edited", _FIX)
        for x in xs:
            _at(one, along, x)  # or a value that its field cannot take would be found when the sweep has begun
        found.append(Along(name, xs, partial(_at, one, along), adaptive))
    return found


def _with(edit: Edit, fixed: Mapping[Field, Any]) -> Edit:
    record = edit.record
    for (number, name), value in fixed.items():
        record["edit"][number - 1][name] = value
    return from_record(record)


def _at(edit: Edit, along: Field, x: float) -> Edit:
    return _with(edit, {along: int(x) if along[1] == "rank" and float(x).is_integer() else x})


def _numeric(values: Sequence[Any]) -> bool:
    return all(type(value) in (int, float) for value in values)


def _label(of: Field) -> str:
    return of[1] if of[0] == 1 else f"{of[0]}.{of[1]}"
