"""An edit in a loaded model: touched tensors are overwritten in place and afterwards put back, bit by bit."""

import re
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from deltalens.checkpoint.names import canonical, stem
from deltalens.checkpoint.pair import Row
from deltalens.edit.form import Form
from deltalens.edit.plan import Plan
from deltalens.edit.tensors import changes
from deltalens.errors import Refused

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EXPERT = re.compile(r"(layers\.[0-9]+\.mlp\.experts)\.([0-9]+)\.(gate_proj|up_proj|down_proj)")

_RENAMED = {"embed_out.weight": "lm_head.weight"}  # GPT-NeoX's files keep the name that transformers gave up


@contextmanager
def swap(model: "PreTrainedModel", opened: Plan, side: str | None = None) -> Generator[None, None, None]:
    """The edited model within the block; afterwards the model is bit by bit as it was, also after an exception.

    Takes one extra copy of the touched tensors in the model's dtype, and one tensor in float32 at a time.

    Args:
        model: Loaded from the base or the tuned side.
        opened: The edit.
        side: Which side's weights the model has; by default those that the edit starts from (`plan.edit.home`).

    Raises:
        Refused: The model keeps a tensor in a way that is not known, or does not hold that side's weights.
    """
    with swapped(model, _of_side(model, opened, side)):
        yield


def overwrite(model: "PreTrainedModel", opened: Plan, side: str | None = None) -> None:
    """The edited model for good, with no copy kept; see `swap`."""
    parameters = named(model)
    with torch.no_grad():
        for row, form in _of_side(model, opened, side):
            _fill(view_of(parameters, row), row, form)


@contextmanager
def swapped(model: "PreTrainedModel", made: Iterable[tuple[Row, Form]]) -> Generator[None, None, None]:
    """Given tensors in place of the model's own within the block; see `swap`.

    Args:
        model: A causal language model.
        made: Tensors of the checkpoint it was loaded from, with what they become.

    Raises:
        Refused: The model keeps a tensor in a way that is not known, or a value is NaN or beyond its dtype.
    """
    parameters = named(model)
    saved: list[tuple[Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for row, form in made:
                place = view_of(parameters, row)
                saved.append((place, place.clone()))
                _fill(place, row, form)
        yield
    finally:
        with torch.no_grad():
            for place, before in reversed(saved):
                place.copy_(before)


def _fill(place: Tensor, row: Row, form: Form) -> None:
    with np.errstate(over="ignore"):
        place.copy_(as_stored(row, form.dense()))
    if not place.isfinite().all():
        dtype = str(place.dtype).removeprefix("torch.")
        raise Refused(
            f"{row.name.name} would hold NaN or values beyond {dtype}", "a smaller strength, or fewer tensors"
        )


def _of_side(model: "PreTrainedModel", opened: Plan, side: str | None) -> Iterator[tuple[Row, Form]]:
    """The changes, once the first of them is seen to start from what the model holds."""
    for i, (row, made) in enumerate(changes(opened, side)):
        if i == 0:
            place = view_of(named(model), row)
            own = as_stored(row, Form.of(opened.stored(row, side)).dense())
            if not torch.equal(place, own.to(place)):
                side = side or opened.edit.home
                raise Refused(f"the loaded model does not hold the {side} side's weights", "load that side, or name it")
        yield row, made


def named(model: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters by canonical name, tied ones once; names that are not canonical without their wrapper."""
    return {_key(name, parameter.ndim): parameter for name, parameter in model.named_parameters()}


def view_of(parameters: dict[str, nn.Parameter], row: Row) -> Tensor:
    """Where a loaded model keeps a stored tensor: a parameter, some rows of one, or an expert of a stack of them.

    Raises:
        Refused: Nowhere that is known, or in another shape.
    """
    info = row.base or row.tuned
    assert info is not None
    place: Tensor | None = parameters.get(_key(info.name, len(info.shape)))
    if place is None and (found := _EXPERT.fullmatch(row.name.name)):
        place = _unpacked(parameters, found[1], int(found[2]), found[3])
    if place is not None and row.name.kind in ("embed", "lm_head") and place.shape[0] > info.shape[0]:
        place = place[: info.shape[0]]  # the sides differ in their vocabulary: rows that both have
    if place is None or tuple(place.shape) != info.shape:
        there = "nowhere" if place is None else f"as {list(place.shape)}"
        raise Refused(
            f"the loaded model keeps {row.name.name} {there}, the checkpoint as {list(info.shape)}",
            "write the edited checkpoint with --out and load that",
        )
    return place.data


def as_stored(row: Row, matrix: np.ndarray) -> Tensor:
    """A matrix [out, in] in the orientation and shape in which the tensor is stored."""
    info = row.base or row.tuned
    assert info is not None
    turned = np.ascontiguousarray(matrix.T if row.transposed else matrix)
    return torch.from_numpy(turned.reshape(info.shape))


def _key(name: str, ndim: int) -> str:
    known = canonical(_RENAMED.get(name, name), ndim)
    return stem(name) if known.kind == "other" else known.name


def _unpacked(parameters: dict[str, nn.Parameter], experts: str, number: int, kind: str) -> Tensor | None:
    """One expert's matrix in transformers' stacks: gate_up_proj [experts, 2·inner, width], down_proj [experts, …]."""
    stack = parameters.get(f"{experts}.{'down_proj' if kind == 'down_proj' else 'gate_up_proj'}")
    if stack is None:
        return None
    if kind == "down_proj":
        return stack[number]
    return stack[number].chunk(2)[0 if kind == "gate_proj" else 1]
