"""Banks: directions in one safetensors file, written whole, read with every mistake named."""

import json
from collections.abc import Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from deltalens.checkpoint.header import one_line, parse_json, read_header
from deltalens.checkpoint.write import write_safetensors
from deltalens.direction.direction import FIELDS, SAMPLES, UNITS, Direction
from deltalens.errors import BadInput

SCHEMA = 1
"""Layout of a bank."""

_KEY = "deltalens"
_REBUILD = "write the bank again with `deltalens directions`"


def write_bank(path: str | Path, directions: Sequence[Direction]) -> None:
    """Write directions as a bank that appears under its name only when it is complete.

    Tensors `"0"`, `"1"`, … are float32 [k, d]; the metadata key `deltalens` is JSON `{schema, directions: [{id, layer,
    kind, space, site, sigma, unit, sign, contrast, source, seeds}]}` in the same order.

    Raises:
        BadInput: There is nothing to write, two directions share an id, one is not finite, or the system refused.
    """
    if not directions:
        raise BadInput("there is no direction to write")
    ids = [d.id for d in directions]
    if len(set(ids)) < len(ids):
        repeated = next(i for i in ids if ids.count(i) > 1)
        raise BadInput(f"two directions are called {repeated}")
    for d in directions:
        _check_numbers(d.id, d.vectors, d.kind)
    record = {"schema": SCHEMA, "directions": [d.record for d in directions]}
    write_safetensors(
        Path(path),
        [(str(i), "F32", d.vectors.shape) for i, d in enumerate(directions)],
        lambda name: directions[int(name)].vectors,
        {_KEY: json.dumps(record, ensure_ascii=False, allow_nan=False)},
    )


def read_bank(path: str | Path) -> tuple[Direction, ...]:
    """Every direction of a bank, samples included, in stored order.

    Raises:
        BadInput: The file is no bank, of another schema, damaged, or holds NaN or Inf.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    stored = read_header(path)
    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise BadInput(f"{path} is not a bank (its metadata has no {_KEY!r})", _REBUILD)
            entries = _entries(path, text)
            if sorted(stored) != sorted(str(i) for i in range(len(entries))):
                raise BadInput(f"{path} holds other tensors than its list of directions names", _REBUILD)
            found = []
            for i, entry in enumerate(entries):
                info = stored[str(i)]
                if info.dtype != "F32" or len(info.shape) != 2 or 0 in info.shape:
                    raise BadInput(f"{path}: direction {entry['id']} is not a float32 matrix", _REBUILD)
                found.append(_direction(path, entry, file.get_tensor(str(i))))
    except (OSError, SafetensorError) as problem:
        raise BadInput(f"{path} cannot be read: {one_line(problem)}", _REBUILD) from problem
    ids = [d.id for d in found]
    if len(set(ids)) < len(ids):
        raise BadInput(f"{path} names two directions alike", _REBUILD)
    for d in found:
        _check_samples(path, d, found)
    return tuple(found)


def _check_samples(path: Path, of: Direction, bank: Sequence[Direction]) -> None:
    """Refuses samples that are not those of the direction that names them."""
    named = of.source.get("samples")
    for rows in bank if named is not None else ():
        if rows.kind == SAMPLES and rows.id == named:
            first, n = rows.source.get("first"), len(rows.vectors)
            split = first is None or (type(first) is int and 0 < first < n)
            if not split or "first" not in rows.source or rows.vectors.shape[1] != of.vectors.shape[1]:
                raise BadInput(f"{path}: {rows.id} are no samples of {of.id}", _REBUILD)


def read_directions(reference: str, width: int | None = None) -> tuple[Direction, ...]:
    """The directions that a reference names, in stored order.

    Args:
        reference: `BANK`: all of them; `BANK#id`: one; `BANK#id:2`: the third vector of one; `BANK#GLOB`: those whose
            id matches, such as the layer profile `BANK#*.difference`. Samples are no directions and never come.
        width: The d that is needed; None takes any.

    Raises:
        BadInput: The bank cannot be read, names no such direction, or one of them has another width.
    """
    path, wanted = split_reference(reference)
    bank = read_bank(path)
    found = _named(bank, wanted)
    if not found:
        near = get_close_matches(wanted or "", [d.id for d in bank], 1, 0) or ["none"]
        raise BadInput(f"{path} has no direction {wanted or 'but samples'}", f"the nearest name is {near[0]}")
    for d in found:
        if width is not None and d.vectors.shape[1] != width:
            raise BadInput(
                f"direction {d.id} of {path} has {d.vectors.shape[1]} entries ({d.space}), {width} are needed",
                "build the bank from this model, or name a direction of another space or site",
            )
    return found


def read_direction(reference: str, width: int | None = None) -> Direction:
    """The one direction that a reference names.

    Raises:
        BadInput: As `read_directions`, or it names several.
    """
    found = read_directions(reference, width)
    if len(found) > 1:
        path, _ = split_reference(reference)
        raise BadInput(f"{reference} names {len(found)} directions", f"name one, such as {path}#{found[0].id}")
    return found[0]


def split_reference(reference: str) -> tuple[str, str | None]:
    """`BANK#id` as (path, id), the id None where there is none; a file that exists may have a # in its name."""
    if Path(reference).exists() or "#" not in reference:
        return reference, None
    path, _, wanted = reference.rpartition("#")
    return path, wanted


def _named(bank: tuple[Direction, ...], wanted: str | None) -> tuple[Direction, ...]:
    if wanted is None:
        return tuple(d for d in bank if d.kind != SAMPLES)
    bank = tuple(d for d in bank if d.kind != SAMPLES)  # rows that a direction was made from point nowhere in common
    if exact := [d for d in bank if d.id == wanted]:
        return tuple(exact)
    owner, colon, number = wanted.rpartition(":")
    if colon and number.isdecimal():
        found = [d for d in bank if d.id == owner]
        if found and int(number) >= len(found[0].vectors):
            last = len(found[0].vectors) - 1
            raise BadInput(f"direction {owner} has no vector {number}", f"{owner}:0 to {owner}:{last}")
        return tuple(d.only(int(number)) for d in found)
    return tuple(d for d in bank if fnmatchcase(d.id, wanted))


def _entries(path: Path, text: str) -> list[dict[str, Any]]:
    record = parse_json(text.encode(), path)
    if not isinstance(record, dict) or not isinstance(record.get("directions"), list):
        raise BadInput(f"{path} is not a bank (its metadata lists no directions)", _REBUILD)
    if record.get("schema") != SCHEMA:
        raise BadInput(f"{path} has schema {record.get('schema')}, this deltalens reads {SCHEMA}", _REBUILD)
    for entry in record["directions"]:
        wrong = _wrong(entry)
        if wrong is not None:
            raise BadInput(f"{path} describes a direction badly ({wrong})", _REBUILD)
    return record["directions"]


def _wrong(entry: Any) -> str | None:
    """What is wrong with the description of one direction, None for one that can be used."""
    if not isinstance(entry, dict) or set(entry) != set(FIELDS):
        return "other fields than " + ", ".join(FIELDS)
    words = {"id": str, "kind": str, "space": str, "unit": str, "sign": str, "source": dict, "seeds": list}
    perhaps = {"layer": int, "site": str, "sigma": list, "contrast": str}
    for name, kind in words.items():
        if not isinstance(entry[name], kind):
            return f"no valid {name}"
    for name, kind in perhaps.items():
        if entry[name] is not None and (not isinstance(entry[name], kind) or isinstance(entry[name], bool)):
            return f"no valid {name}"
    if entry["unit"] not in UNITS:
        return f"unit {entry['unit']!r} is not {' or '.join(UNITS)}"
    prompts = entry["source"].get("prompts", [])
    if not isinstance(prompts, list) or not all(isinstance(name, str) for name in prompts):
        return "no valid source.prompts"
    if not all(type(seed) is int for seed in entry["seeds"]):
        return "no valid seeds"
    if not all(type(value) in (int, float) for value in entry["sigma"] or []):
        return "no valid sigma"
    return None


def _direction(path: Path, entry: dict[str, Any], vectors: np.ndarray) -> Direction:
    sigma = entry["sigma"]
    if sigma is not None and len(sigma) != len(vectors):
        raise BadInput(f"{path}: direction {entry['id']} has {len(vectors)} vectors and {len(sigma)} sigma", _REBUILD)
    _check_numbers(f"{entry['id']} of {path}", vectors, entry["kind"])
    listed: dict[str, Any] = {
        "sigma": None if sigma is None else tuple(map(float, sigma)),
        "seeds": tuple(entry["seeds"]),
    }
    return Direction(vectors=vectors, **(entry | listed))


def _check_numbers(name: str, vectors: np.ndarray, kind: str) -> None:
    if not np.isfinite(vectors).all():
        raise BadInput(f"direction {name} holds NaN or Inf", _REBUILD)
    if kind != SAMPLES and not vectors.any(axis=1).all():
        raise BadInput(f"direction {name} holds a vector of zeros, which points nowhere", _REBUILD)
