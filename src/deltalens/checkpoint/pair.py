"""Two checkpoints side by side: every tensor of either is one row, with what will be done to it and why."""

import difflib
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from deltalens.checkpoint.dtypes import floating
from deltalens.checkpoint.embedding import VOCABULARY, Infos, Sides, Tables, cut_tables
from deltalens.checkpoint.names import Name, canonical, conv1d, sort_key, stem
from deltalens.checkpoint.parentage import Parentage, parentage
from deltalens.checkpoint.quantised import quantisation
from deltalens.checkpoint.settings import function_differences
from deltalens.checkpoint.source import Checkpoint, TensorInfo, open_checkpoint
from deltalens.checkpoint.vocabulary import Token, compare_vocabularies
from deltalens.errors import BadInput, Refused

_SHOWN = 3  # names spelled out in a one-line message
_LONGEST = 80  # characters of one config value in it


@dataclass(frozen=True, slots=True)
class Row:
    """One tensor of either side, or the rows of a vocabulary table that both sides or only one of them have.

    Args:
        name: What it is.
        base: Where the base stores it, None if it does not; of an lm_head tied on one side, where its embed lies.
        tuned: Where the tuned side stores it.
        status: measured, vector, unmeasured, tied, unpaired or buffer; the data may still make it refused.
        reason: Why it is not measured, or what is special about it.
        transposed: Whether it is stored [in, out] and has to be turned.
    """

    name: Name
    base: TensorInfo | None
    tuned: TensorInfo | None
    status: str
    reason: str | None
    transposed: bool

    @property
    def shape(self) -> tuple[int, ...]:
        """The oriented shape, [out, in] for a matrix; the base's where the sides differ."""
        info = self.base or self.tuned
        stored = () if info is None else info.shape
        return stored[::-1] if self.transposed else stored


@dataclass(frozen=True, slots=True)
class Pair:
    """A base, its tuned sibling, and the plan of the ledger.

    Args:
        base: The side that is subtracted.
        tuned: The side that it is subtracted from.
        rows: One row per tensor of either side, in table order.
        warnings: What a reader of any number from this pair should know.
        match: The glob on canonical names that restricts what is measured.
        vocabulary: Token ids that are not one token on both sides; None where no vocabulary table is measured, or
            a side has no readable tokenizer.json.
        parentage: Whether the base is the one that the tuned side was trained from.
    """

    base: Checkpoint
    tuned: Checkpoint
    rows: tuple[Row, ...]
    warnings: tuple[str, ...]
    match: str | None
    vocabulary: tuple[Token, ...] | None
    parentage: Parentage

    @classmethod
    def open(
        cls,
        base: str | os.PathLike[str],
        tuned: str | os.PathLike[str],
        match: str | None = None,
        headers_only: bool = False,
    ) -> "Pair":
        """Open both sides by their headers and pair their tensors.

        Args:
            base: A local path, `hub-id[@revision]` or `family:NAME`.
            tuned: Likewise.
            match: Measure only canonical names that match this glob.
            headers_only: Do not download hub repositories; nothing can be read from the pair then.

        Raises:
            BadInput: A side cannot be opened, or `match` matches no name.
            Refused: A side is quantised, or the two are not comparable.
        """
        sides = open_checkpoint(base, headers_only), open_checkpoint(tuned, headers_only)
        for side, ckpt in zip(("base", "tuned"), sides, strict=True):
            if method := quantisation(ckpt):
                raise Refused(
                    f"the {side} side ({ckpt.source}) is quantised: {method}",
                    "use the unquantised (bf16, fp16 or fp32) release",
                )
        named, ambiguous = _align(*sides)
        tables = cut_tables(named, sides)
        rows = [_row(name, infos, sides, match, tables) for name, infos in tables.named.items()]
        rows.sort(key=lambda row: sort_key(row.name))
        _check_comparable(rows, sides, match)
        tokens, token_warnings = None, []
        if any(row.name.kind in VOCABULARY and row.status == "measured" for row in rows):
            tokens, token_warnings = compare_vocabularies(*sides)
        parent = parentage(*sides)
        wrong = [f"wrong base: {parent.evidence}"] if parent.verdict == "wrong" else []
        warnings = (*wrong, *_warnings(rows, sides, tables), *token_warnings, *ambiguous)
        return cls(*sides, tuple(rows), warnings, match, tokens, parent)


def _align(base: Checkpoint, tuned: Checkpoint) -> tuple[dict[Name, Infos], list[str]]:
    """Tensors of both sides by name; two of one side that would share a name keep their stored ones."""
    ambiguous: set[str] = set()
    while True:
        sides = [_named(ckpt, ambiguous) for ckpt in (base, tuned)]
        clashes = {name for side in sides for name, infos in side.items() if len(infos) > 1} - ambiguous
        if not clashes:
            break
        ambiguous |= clashes
    warnings = [f"several tensors would be called {name}: each keeps its stored name" for name in sorted(ambiguous)]
    found: list[dict[str, tuple[Name, TensorInfo]]] = [
        {name: infos[0] for name, infos in side.items()} for side in sides
    ]
    # A matrix of no known kind keeps its stored name, wrapper and all, which may be on one side only.
    lone = [{name: entry for name, entry in found[i].items() if name not in found[1 - i]} for i in (0, 1)]
    stems = [_unique_stems(side) for side in lone]
    for key in stems[0].keys() & stems[1].keys():
        name, twin = stems[0][key], stems[1][key]
        if twin not in found[0] and name not in found[1]:
            found[1][name] = found[1].pop(twin)
    named: dict[Name, Infos] = {}
    for key in sorted(found[0].keys() | found[1].keys()):
        first, second = found[0].get(key), found[1].get(key)
        name = (first or second)[0]  # ty: ignore[not-subscriptable]
        named[name] = (first[1] if first else None, second[1] if second else None)
    return named, warnings


def _named(ckpt: Checkpoint, ambiguous: set[str]) -> dict[str, list[tuple[Name, TensorInfo]]]:
    found: dict[str, list[tuple[Name, TensorInfo]]] = {}
    for stored, info in ckpt.tensors.items():
        name = canonical(stored, len(info.shape))
        if name.name in ambiguous:
            name = Name(stored, name.layer, "other", name.expert)
        found.setdefault(name.name, []).append((name, info))
    return found


def _unique_stems(side: dict[str, tuple[Name, TensorInfo]]) -> dict[str, str]:
    """Name by stored name without wrapper, where no two share it."""
    stems = Counter(stem(info.name) for _, info in side.values())
    return {stem(info.name): name for name, (_, info) in side.items() if stems[stem(info.name)] == 1}


def _row(name: Name, infos: Infos, sides: Sides, match: str | None, tables: Tables) -> Row:
    base, tuned = infos
    gpt2 = any(ckpt.setting("model_type") == "gpt2" for ckpt in sides)
    transposed = gpt2 and any(info is not None and len(info.shape) == 2 and conv1d(info.name) for info in infos)
    status, reason = tables.statuses.get(name.name), tables.reasons.get(name.name)
    if status is None:
        status, usual = _status(name, base, tuned, match)
        reason = usual or reason
    return Row(name, base, tuned, status, reason, transposed)


def _status(name: Name, base: TensorInfo | None, tuned: TensorInfo | None, match: str | None) -> tuple[str, str | None]:
    """What will be done to a tensor, and why where it is not simply measured."""
    if base is None or tuned is None:
        return "unpaired", f"only in the {'tuned' if base is None else 'base'} side"
    dtypes = base.dtype, tuned.dtype
    if None in (kinds := (floating(base.dtype), floating(tuned.dtype))):
        return "unpaired", f"unknown dtype ({' and '.join(sorted(set(dtypes)))})"
    if not any(kinds):
        return "buffer", f"not floating point ({' and '.join(sorted(set(dtypes)))})"
    if not all(kinds):
        return "unpaired", f"floating point on one side only ({dtypes[0]} and {dtypes[1]})"
    if base.shape != tuned.shape:
        return "unpaired", f"shapes differ: {list(base.shape)} and {list(tuned.shape)}"
    if match is not None and not fnmatchcase(name.name, match):
        return "unmeasured", f"not matched by {match}"
    if len(base.shape) < 2:
        return "vector", None
    if base.elements == 0:
        return "unmeasured", "no entries"
    if len(base.shape) > 2:
        return "unmeasured", f"{len(base.shape)} dimensions"
    return "measured", None


def _check_comparable(rows: list[Row], sides: Sides, match: str | None) -> None:
    """Refuse what is not one architecture; with `match`, refuse only when it leaves nothing."""
    common = [row for row in rows if row.status in ("measured", "vector", "unmeasured")]
    if match is not None:
        chosen = [row for row in rows if fnmatchcase(row.name.name, match)]
        if not chosen:
            names = [row.name.name for row in rows]
            near = difflib.get_close_matches(match, names, n=_SHOWN, cutoff=0.3) or names[:_SHOWN]
            raise BadInput(f"--match {match} matches no tensor", f"names look like {', '.join(near)}")
        if not any(row.status in ("measured", "vector", "unmeasured") for row in chosen):
            first = chosen[0]
            raise Refused(f"no tensor that --match {match} names can be compared ({first.name.name}: {first.reason})")
        return
    if not any(row.base and row.tuned for row in rows):
        left, right = (next(iter(ckpt.tensors)) for ckpt in sides)
        raise Refused(f"the two sides have no tensor in common (base: {left}, …; tuned: {right}, …)")
    fix = "--match GLOB measures the tensors that both have in one shape"
    differing = [row for row in rows if _differs(row) and not _padded(row)]
    if differing:
        shown = "; ".join(f"{r.name.name} {_shape(r.base)} and {_shape(r.tuned)}" for r in differing[:_SHOWN])
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise Refused(f"different widths{_widths(sides, 'hidden_size')}: {shown}{more}", fix)
    if not common:
        raise Refused(f"no tensor of the two sides can be compared ({rows[0].name.name}: {rows[0].reason})")
    base, tuned = _layers(r.name for r in rows if r.base), _layers(r.name for r in rows if r.tuned)
    for stack in sorted(base.keys() & tuned.keys()):  # a stack of one side alone (vision, say) is only unpaired
        if base[stack] != tuned[stack]:
            counts = f"{len(base[stack])} layers in the base, {len(tuned[stack])} in the tuned side"
            raise Refused(f"different depths{_widths(sides, 'num_hidden_layers')}: {counts}", fix)


def _layers(names: Iterable[Name]) -> dict[str, set[int]]:
    """The layers of each stack (`layers`, `h`, `visual.blocks`) that occur in some names."""
    found: dict[str, set[int]] = {}
    for name in names:
        if name.layer is not None:
            found.setdefault(stem(name.name).partition(f"{name.layer}.")[0], set()).add(name.layer)
    return found


def _differs(row: Row) -> bool:
    return row.base is not None and row.tuned is not None and row.base.shape != row.tuned.shape


def _padded(row: Row) -> bool:
    """Whether a vocabulary matrix differs between the sides in its rows alone."""
    if row.name.kind not in VOCABULARY or row.base is None or row.tuned is None:
        return False
    return row.base.shape[1:] == row.tuned.shape[1:] and row.base.shape[0] != row.tuned.shape[0]


def _shape(info: TensorInfo | None) -> str:
    return "none" if info is None else str(list(info.shape))


def _widths(sides: Sides, key: str) -> str:
    values = [ckpt.setting(key) for ckpt in sides]
    return f" ({key} {values[0]} and {values[1]})" if values[0] != values[1] else ""


def _warnings(rows: list[Row], sides: Sides, tables: Tables) -> list[str]:
    found: list[str] = []
    if sides[0].path.resolve() == sides[1].path.resolve() and sides[0].revision == sides[1].revision:
        found.append("both sides are the same checkpoint")
    types = [ckpt.setting("model_type") for ckpt in sides]
    if types[0] != types[1]:
        found.append(f"the sides are of different model types: {types[0]} and {types[1]}")
    if changed := function_differences(*sides):
        listed = ", ".join(f"{d.setting} ({_value(d.base)} and {_value(d.tuned)})" for d in changed)
        found.append(f"the configs differ in {listed}: the weights are read by different functions")
    found += tables.warnings
    lone = [r for r in rows if r.status == "unpaired" and r.name.name not in tables.statuses]
    for reason, names in _by_reason(lone).items():
        found.append(f"{len(names)} unpaired ({reason}): {_listed(names)}")
    both = [(row.base, row.tuned) for row in rows if row.base is not None and row.tuned is not None]
    mixed = Counter((a.dtype, b.dtype) for a, b in both if a.dtype != b.dtype)
    for (a, b), count in sorted(mixed.items()):
        found.append(f"{count} tensors are {a} in the base and {b} in the tuned side")
    if any("F64" in (a.dtype, b.dtype) for a, b in both):
        found.append("float64 tensors are rounded to float32 on reading")
    return found


def _value(value: object) -> str:
    return "not set" if value is None else str(value)[:_LONGEST]


def _by_reason(rows: Iterable[Row]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in rows:
        reason = "shapes differ" if (row.reason or "").startswith("shapes differ") else row.reason or ""
        found.setdefault(reason, []).append(row.name.name)
    return found


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
