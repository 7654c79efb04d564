"""The vocabulary tables, embed and lm_head: which of their rows are compared where the sides store them differently.

A vocabulary may be padded on one side: the rows that both have are compared, the others are a part of their own. An
output head may be tied to the embedding on one side only: that side's embed is then what its lm_head computes with,
and is read as such. Its entries count twice, once in each role, because the two differences are two differences.
"""

from dataclasses import dataclass, field, replace

from deltalens.checkpoint.dtypes import floating
from deltalens.checkpoint.names import Name, canonical
from deltalens.checkpoint.source import Checkpoint, TensorInfo

VOCABULARY = ("embed", "lm_head")
SIDES = ("base", "tuned")

Sides = tuple[Checkpoint, Checkpoint]
Infos = tuple[TensorInfo | None, TensorInfo | None]


@dataclass(frozen=True, slots=True)
class Tables:
    """Tensors of both sides by name, after the vocabulary tables were cut and borrowed.

    Args:
        named: Every tensor, or part of one, of either side.
        statuses: By name, the status of what is not compared at all.
        reasons: By name, what is special about a table.
        warnings: The same for a person.
    """

    named: dict[Name, Infos]
    statuses: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def tied(ckpt: Checkpoint) -> bool:
    """Whether the output head is the embedding: the config says so, or only the embedding is stored."""
    kinds = {canonical(info.name, len(info.shape)).kind for info in ckpt.tensors.values()}
    return "embed" in kinds and ("lm_head" not in kinds or ckpt.setting("tie_word_embeddings") is True)


def first_rows(info: TensorInfo, count: int) -> TensorInfo:
    """The first rows of a matrix as a tensor of their own; they are contiguous in the file."""
    width = (info.end - info.start) // info.shape[0]
    return replace(info, shape=(count, *info.shape[1:]), end=info.start + count * width)


def other_rows(info: TensorInfo, count: int) -> TensorInfo:
    """The rows of a matrix behind the first `count`."""
    width = (info.end - info.start) // info.shape[0]
    return replace(info, shape=(info.shape[0] - count, *info.shape[1:]), start=info.start + count * width)


def cut_tables(named: dict[Name, Infos], sides: Sides) -> Tables:
    """Let embed and lm_head be compared over what both sides have; everything else passes unchanged.

    Args:
        named: Tensors of both sides by canonical name.
        sides: Base and tuned.
    """
    tables = Tables(dict(named))
    embed, head = (next((n for n in named if n.name == kind == n.kind), None) for kind in VOCABULARY)
    borrower = None if head is None else _borrow(tables, head, embed, sides)
    if embed is not None:
        _cut(tables, embed, None)
    if head is not None:
        _cut(tables, head, borrower)
    return tables


def _borrow(tables: Tables, head: Name, embed: Name | None, sides: Sides) -> int | None:
    """Read the embed of the one side that ties its head as that head; returns which side that is."""
    ties = tied(sides[0]), tied(sides[1])
    if all(ties):
        tables.statuses[head.name] = "tied"
        tables.reasons[head.name] = "both sides tie it to embed"
        return None
    side = 0 if ties[0] else 1
    table = tables.named[embed][side] if embed is not None else None
    if not any(ties) or table is None:
        return None
    stored, other = tables.named[head][side], tables.named[head][1 - side]
    if stored is not None:  # a copy that no model uses: the config ties the head
        copy = _free(tables, stored.name, head)
        tables.named[copy] = _alone(stored, side)
        tables.statuses[copy.name] = "tied"
        tables.reasons[copy.name] = f"the {SIDES[side]} side ties it to embed"
    tables.named[head] = (table, other) if side == 0 else (other, table)
    tables.reasons[head.name] = "tied on one side"
    tables.warnings.append(
        f"only the {SIDES[side]} side ties lm_head to embed: its embed is also compared with "
        f"the lm_head of the {SIDES[1 - side]} side"
    )
    return side


def _cut(tables: Tables, name: Name, borrower: int | None) -> None:
    """Part a table that has more rows on one side; rows borrowed from embed are already listed there."""
    infos = tables.named[name]
    base, tuned = infos
    if base is None or tuned is None or name.name in tables.statuses:
        return
    counts = base.shape[0], tuned.shape[0]
    common = min(counts)
    same_width = base.shape[1:] == tuned.shape[1:]
    if not same_width or counts[0] == counts[1] or not common or not (floating(base.dtype) and floating(tuned.dtype)):
        return
    longer = 0 if counts[0] > common else 1
    tables.named[name] = first_rows(base, common), first_rows(tuned, common)
    said = f"the first {common} rows, which both sides have"
    tables.reasons[name.name] = f"{tables.reasons[name.name]}; {said}" if name.name in tables.reasons else said
    listed = ""
    if longer != borrower:
        rest = other_rows(tuned if longer else base, common)
        extra = _free(tables, f"{name.name}[{common}:]", name)
        tables.named[extra] = _alone(rest, longer)
        tables.statuses[extra.name] = "unpaired"
        tables.reasons[extra.name] = f"extra vocabulary rows of the {SIDES[longer]} side"
        listed = f", the extra vocabulary rows of the {SIDES[longer]} side are listed as {extra.name}"
    tables.warnings.append(
        f"the vocabularies differ: {name.name} has {counts[0]} rows in the base and {counts[1]} in the tuned side; "
        f"the common {common} are compared{listed}"
    )


def _alone(info: TensorInfo, side: int) -> Infos:
    return (info, None) if side == 0 else (None, info)


def _free(tables: Tables, wanted: str, table: Name) -> Name:
    """A name for a part of a table; a stored tensor may have that name already."""
    taken = {name.name for name in tables.named}
    while wanted in taken:
        wanted += "'"
    return Name(wanted, None, table.kind, None)
