"""An edit on activations: every touched module's output gets what the change of its weight would add, W′x − Wx.

A low-rank change is applied by its exact factors, L(Rx), and the weights are never read again nor written.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltalens.edit.form import Form
from deltalens.edit.plan import Plan
from deltalens.edit.select import is_bias
from deltalens.edit.swap import named, view_of
from deltalens.edit.tensors import changes
from deltalens.errors import Refused

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class Addition:
    """What a change adds to the output of a module.

    Attributes:
        module: An embedding or a linear map.
        left: L, or the whole change where there is no R; of a bias one column.
        right: R.
        bias: Whether it is the bias that changes: the addition does not depend on the input.
    """

    module: nn.Module
    left: Tensor
    right: Tensor | None
    bias: bool = False


@contextmanager
def hook(model: "PreTrainedModel", opened: Plan) -> Generator[None, None, None]:
    """The edited function within the block, by hooks on a model that holds the weights the edit starts from.

    Raises:
        Refused: A touched tensor is not the weight or bias of a linear map or an embedding.
    """
    with added(additions(model, opened)):
        yield


def additions(model: "PreTrainedModel", opened: Plan) -> list[Addition]:
    """What the edit adds to which module; see `hook`."""
    parameters, found = named(model), []
    for row, made in changes(opened):
        change = made - Form.of(opened.stored(row))
        place = view_of(parameters, row)
        bias = is_bias(row)
        # Tied modules share one parameter: each of them gets the addition.
        owners = [m for m in model.modules() if _holds(m, "bias" if bias else "weight", place)]
        if not owners or not all(bias or _linear(m) or _embedding(m) for m in owners):
            raise Refused(
                f"{row.name.name} is not the weight or bias of a linear map or an embedding: hooks cannot take it",
                "swap or write the edited weights",
            )
        left, right = factors(change)
        found += [Addition(owner, left, right, bias) for owner in owners]
    return found


def factors(change: Form) -> tuple[Tensor, Tensor | None]:
    """L and R in float32 of a change that is low-rank by construction, else the whole change."""
    if change.terms:
        return torch.from_numpy(change.dense()), None
    return torch.from_numpy(change.left).float(), torch.from_numpy(change.right).float()


@contextmanager
def added(items: Sequence[Addition]) -> Generator[None, None, None]:
    """Applies additions within the block."""
    handles = [_attach(item) for item in items]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attach(item: Addition) -> RemovableHandle:
    left, right = item.left, item.right

    def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal left, right
        if left.device != output.device:
            left, right = left.to(output.device), None if right is None else right.to(output.device)
        if item.bias:
            whole = left if right is None else left @ right
            return output + whole[:, 0].to(output.dtype)
        if _embedding(module):
            new = left[args[0]] if right is None else left[args[0]] @ right
            new = new * getattr(module, "embed_scale", 1.0)
        else:
            wide = args[0].to(left.dtype)
            new = wide @ left.T if right is None else (wide @ right.T) @ left.T
        return (output.to(left.dtype) + new).to(output.dtype)

    return item.module.register_forward_hook(add)


def _holds(module: nn.Module, name: str, place: Tensor) -> bool:
    parameter = module._parameters.get(name)
    return parameter is not None and parameter.data_ptr() == place.data_ptr() and parameter.shape == place.shape


def _linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or hasattr(module, "nf")  # nf: transformers' Conv1D


def _embedding(module: nn.Module) -> bool:
    """A plain table, or Gemma's, which scales what it looks up; OPT's positions are looked up shifted."""
    return type(module) is nn.Embedding or hasattr(module, "embed_scale")
