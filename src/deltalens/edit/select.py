"""Which tensors, and which rows or columns of them, an operation touches: by layer, kind, query head and expert."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

import numpy as np

from deltalens.checkpoint.names import KINDS, LINEAR, stem
from deltalens.checkpoint.pair import Pair, Row
from deltalens.direction.spaces import role_kind
from deltalens.edit.edit import OPERATORS, Operation
from deltalens.edit.form import Mask
from deltalens.errors import BadInput, Refused

GROUPS: Mapping[str, tuple[str, ...]] = {
    "attention": LINEAR[:4],
    "mlp": (*LINEAR[4:], "router"),
    "linear": LINEAR,
    "matrix": tuple(KINDS),
    "all": (*KINDS, "vector"),
}
"""Names for several kinds at once. `vector` is what is neither a matrix nor the bias of one: gains of norms."""

WRITERS = {"o_proj", "down_proj", "embed", "pos_embed"}
"""Kinds that add their output to the residual stream."""

_QKV, _GATE_UP = LINEAR[:3], LINEAR[4:6]
_FUSED = {"attn.c_attn": _QKV, "query_key_value": _QKV, "qkv_proj": _QKV, "gate_up_proj": _GATE_UP}
_PACKED = re.compile(r"\.experts\.(gate_up_proj|gate_proj|up_proj|down_proj)$")
_TEXT = re.compile(r"(?:(?:decoder|gpt_neox|model)\.)*(?:layers|h|blocks)\.[0-9]+\.")
_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_PART = re.compile(rf"([0-9]{{1,18}})(?:-([0-9]{{1,18}}))?|{_NUMBER}%-{_NUMBER}%")
_SHOWN = 3


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """A tensor that an operation touches, and where in it."""

    row: Row
    mask: Mask


def editable(pair: Pair) -> list[Row]:
    """Rows of a pair that both sides have as floating-point tensors of one shape."""
    return [row for row in pair.rows if row.status in ("measured", "vector", "unmeasured")]


def module_of(row: Row) -> str:
    """The module that a tensor belongs to, without wrapper: its weight and its bias have it in common."""
    assert row.tuned is not None
    return re.sub(r"\.(weight|bias)$", "", stem(row.tuned.name))


def is_bias(row: Row) -> bool:
    """Whether a tensor is a bias."""
    assert row.tuned is not None
    return row.tuned.name.endswith(".bias") and len(row.tuned.shape) == 1


def kinds_of(row: Row, owners: Mapping[str, Row]) -> tuple[str, ...]:
    """The kinds that a tensor holds: several where projections are fused; a bias has those of its matrix.

    Args:
        row: The tensor.
        owners: The weight of every module.
    """
    if is_bias(row) and (owner := owners.get(module_of(row))) is not None:
        return kinds_of(owner, owners)
    assert row.tuned is not None
    if len(row.tuned.shape) < 2:
        return ("vector",)
    if found := _PACKED.search(module_of(row)):
        return _GATE_UP if found[1] == "gate_up_proj" else (found[1],)
    module = module_of(row)
    if not _in_text(row):  # a vision stack's MLP is not the language model's
        return (row.name.kind,)
    fused = next((kinds for part, kinds in _FUSED.items() if module.endswith(part)), None)
    return (role_kind(row.tuned.name, row.name.kind),) if fused is None else fused


def weights_of(pair: Pair) -> dict[str, Row]:
    """The weight of every module."""
    return {module_of(row): row for row in editable(pair) if not is_bias(row)}


def depth(pair: Pair) -> int:
    """Layers of the text stack."""
    return 1 + max((row.name.layer for row in pair.rows if _in_text(row) and row.name.layer is not None), default=-1)


def choose(operation: Operation, pair: Pair, whole: bool, biases: bool) -> list[Choice]:
    """The tensors that an operation touches.

    Args:
        operation: Its selectors, and its default scope.
        pair: The tensors.
        whole: Whether it works entry by entry on a whole delta, so that vectors and stacks of matrices can take it.
        biases: Whether a bias goes with its matrix; else it counts as a vector.

    Raises:
        BadInput: A selector is malformed or matches nothing; names what is near.
        Refused: A chosen tensor holds what was not chosen, or a stack of matrices cannot take the operator.
    """
    owners = weights_of(pair)
    wanted = _kinds(operation)
    layers = None if operation.layers is None else _layers(operation.layers, depth(pair))
    rows = [row for row in editable(pair) if layers is None or (_in_text(row) and row.name.layer in layers)]
    if operation.experts is not None:
        rows = [row for row in rows if row.name.expert in operation.experts or _packed(row)]
    if operation.heads is not None:
        wanted = _headed(operation, wanted)
    found: list[Choice] = []
    for row in rows:
        kinds = kinds_of(row, owners) if biases or not is_bias(row) else ("vector",)
        if not set(kinds) & set(wanted) or (operation.heads is not None and is_bias(row) and kinds == ("o_proj",)):
            continue
        if missed := [kind for kind in kinds if kind not in wanted]:
            raise Refused(
                f"{row.name.name} holds {' and '.join(kinds)} in one tensor, {' and '.join(missed)} was not chosen",
                f"kinds = {list(dict.fromkeys((*(operation.kinds or wanted), *missed)))}",
            )
        assert row.tuned is not None
        dimensions = len(row.tuned.shape)
        if _packed(row) and not whole:
            raise Refused(
                f"{row.name.name} is a stack of {row.tuned.shape[0]} matrices, which {operation.operator} cannot take",
                'kinds = ["attention"] leaves packed experts out',
            )
        if dimensions == 2 or whole or (biases and is_bias(row)):
            found.append(Choice(row, _mask(operation, row, kinds, pair)))
    if not found:
        raise _nothing(operation, pair, wanted, owners)
    return found


def _packed(row: Row) -> bool:
    return _PACKED.search(module_of(row)) is not None


def _in_text(row: Row) -> bool:
    """Whether a tensor belongs to a layer of the language model, not to one of a vision or audio stack."""
    info = row.base or row.tuned
    return row.name.layer is not None and info is not None and _TEXT.match(stem(info.name)) is not None


def _kinds(operation: Operation) -> tuple[str, ...]:
    scope = OPERATORS[operation.operator].scope
    named = operation.kinds if operation.kinds is not None else ("all",) if scope is None else scope
    if not named:
        raise BadInput(f"{operation.operator} has no default scope", 'kinds = ["down_proj"]')
    known = (*GROUPS["all"], *GROUPS)
    found: list[str] = []
    for name in named:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise BadInput(f"no kind is called {name!r}", f"{near}; there are {', '.join(known)}")
        found += GROUPS.get(name, (name,))
    return tuple(dict.fromkeys(found))


def _headed(operation: Operation, wanted: Sequence[str]) -> tuple[str, ...]:
    """The chosen kinds that have heads; naming others beside heads is a mistake."""
    found = tuple(kind for kind in wanted if kind in GROUPS["attention"])
    if not found or (operation.kinds is not None and len(found) < len(wanted)):
        raise BadInput("heads are those of q_proj, k_proj, v_proj and o_proj", 'kinds = ["attention"]')
    return found


def _layers(asked: str | tuple[int, ...], count: int) -> set[int]:
    """Layer numbers; `50%-100%` are those whose start l/L lies in [.5, 1)."""
    if not isinstance(asked, str):
        found = set(asked)
    else:
        found = set()
        for part in asked.replace(" ", "").split(","):
            match = _PART.fullmatch(part)
            if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
                raise BadInput(f"layers = {asked!r} is not possible", '"0-13", "50%-100%", "0,4-7" or a list')
            if match[1] is not None:
                first, last = int(match[1]), int(match[2] or match[1])
                found |= {first, *range(first, min(last, count) + 1)}  # one beyond the end is enough to be told
            else:
                low, high = float(match[3]) / 100, float(match[4]) / 100
                found |= {layer for layer in range(count) if low <= layer / count < high}
    if outside := sorted(layer for layer in found if not 0 <= layer < count):
        raise BadInput(f"the model has no layer {outside[0]}", f"layers from 0 to {count - 1}")
    if not found:
        raise BadInput(f"layers = {asked!r} matches none of the {count} layers", "a wider range")
    return found


def _mask(operation: Operation, row: Row, kinds: tuple[str, ...], pair: Pair) -> Mask:
    assert row.tuned is not None
    if operation.experts is not None and _packed(row):
        count = row.tuned.shape[0]
        if outside := [e for e in operation.experts if not 0 <= e < count]:
            raise BadInput(f"{row.name.name} has no expert {outside[0]}", f"experts from 0 to {count - 1}")
        return _ones(count, operation.experts)[:, None]
    if operation.heads is None:
        return 1.0
    if len(kinds) > 1:
        raise Refused(f"{row.name.name} holds {' and '.join(kinds)} in one tensor: its heads cannot be told apart")
    heads, kv, width = _head_layout(pair)
    if outside := [h for h in operation.heads if not 0 <= h < heads]:
        raise BadInput(f"the model has no query head {outside[0]}", f"heads from 0 to {heads - 1}")
    grouped = kinds[0] in ("k_proj", "v_proj")
    chosen = {h // (heads // kv) for h in operation.heads} if grouped else set(operation.heads)
    entries = [h * width + i for h in sorted(chosen) for i in range(width)]
    length = row.shape[1] if kinds[0] == "o_proj" else row.shape[0]
    if length != (kv if grouped else heads) * width:
        raise Refused(f"{row.name.name} has {length} entries for {heads} heads of {width}: its heads are not known")
    mask = _ones(length, entries)
    return mask[None, :] if kinds[0] == "o_proj" else mask[:, None]


def _ones(length: int, at: Sequence[int]) -> np.ndarray:
    mask = np.zeros(length)
    mask[list(at)] = 1.0
    return mask


def _head_layout(pair: Pair) -> tuple[int, int, int]:
    """Query heads, key-value heads, and the width of one."""
    get: Callable[[str], int | None] = pair.tuned.setting
    heads = get("num_attention_heads") or get("n_head")
    hidden = get("hidden_size") or get("n_embd")
    if heads is None or hidden is None:
        raise Refused(f"the config of {pair.tuned.source} does not say how many heads there are")
    return heads, get("num_key_value_heads") or heads, get("head_dim") or hidden // heads


def _nothing(operation: Operation, pair: Pair, wanted: Sequence[str], owners: Mapping[str, Row]) -> BadInput:
    """What an operation that touches nothing could have meant."""
    selectors = [f"{name} = {getattr(operation, name)!r}" for name in ("layers", "heads", "experts")]
    said = ", ".join(s for s in selectors if not s.endswith("None"))
    listed = [*wanted[:_SHOWN], *(["…"] if len(wanted) > _SHOWN else [])]
    there = sorted({kind for row in editable(pair) for kind in kinds_of(row, owners)})
    names = [row.name.name for row in editable(pair)]
    near = get_close_matches(wanted[0], names, n=_SHOWN, cutoff=0.2) or names[:_SHOWN]
    return BadInput(
        f"{operation.operator} matches no tensor (kinds {', '.join(listed)}{'; ' + said if said else ''})",
        f"the model has the kinds {', '.join(there)}, in tensors such as {', '.join(near)}",
    )
