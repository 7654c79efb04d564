"""An edit on activations: every touched module's output gets what the change of its weight would add, W′x − Wx.

A low-rank change is applied by its exact factors, L(Rx), and the weights are never read again nor written. A norm is
linear in its gain as well, γ∘n(x), and gets (γ′ − γ)∘n(x).
"""

import copy
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltalens.checkpoint.pair import Row
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
        module: An embedding, a linear map or a norm.
        left: L, or the whole change where there is no R; of a bias or a gain one column.
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
        Refused: A touched tensor is not the weight or bias of a linear map, an embedding or a norm.
    """
    with added(additions(model, opened)):
        yield


def additions(model: "PreTrainedModel", opened: Plan) -> list[Addition]:
    """What the edit adds to which module; see `hook`."""
    parameters, found = named(model), []
    for row, made in changes(opened):
        left, right = factors(made - Form.of(opened.stored(row)))
        found += [Addition(owner, left, right, is_bias(row)) for owner in owners(model, parameters, row)]
    return found


def owners(model: "PreTrainedModel", parameters: dict[str, nn.Parameter], row: Row) -> list[nn.Module]:
    """The modules that a stored tensor is the weight or bias of; several where they are tied.

    Args:
        model: A causal language model.
        parameters: Its parameters by canonical name, `swap.named`.
        row: The tensor.

    Raises:
        Refused: None that a hook can stand for.
    """
    bias, place = is_bias(row), view_of(parameters, row)
    found = [m for m in model.modules() if _holds(m, "bias" if bias else "weight", place)]
    if found and all(bias or is_linear(m) or is_embedding(m) or is_norm(m) for m in found):
        return found
    if row.name.expert is not None or ".experts." in row.name.name:
        reason = "is an expert's: transformers stacks the experts and routes tokens among them inside one module"
    elif any(isinstance(m, nn.Embedding) for m in found):
        reason = "is a table that its module looks up shifted (OPT's positions)"
    else:
        reason = "is not the weight or bias of a linear map, an embedding or a norm"
    raise Refused(f"{row.name.name} {reason}: hooks cannot take it", "swap or write the edited weights")


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
    normalise = _normalised(item.module) if is_norm(item.module) and not item.bias else None

    def add(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        nonlocal left, right
        if left.device != output.device:
            left, right = left.to(output.device), None if right is None else right.to(output.device)
        if item.bias or normalise is not None:
            new = (left if right is None else left @ right)[:, 0]
            if normalise is not None:
                new = new * normalise(args[0].to(left.dtype))
        elif is_embedding(module):
            new = left[args[0]] if right is None else left[args[0]] @ right
            new = new * getattr(module, "embed_scale", 1.0)
        else:
            wide = args[0].to(left.dtype)
            new = wide @ left.T if right is None else (wide @ right.T) @ left.T
        return (output.to(left.dtype) + new).to(output.dtype)

    return item.module.register_forward_hook(add)


def _normalised(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    """n(x) of a norm (w + c)∘n(x) + b, whatever its ε and c (Gemma's is 1) and whether it subtracts the mean.

    It is the norm itself at w = 1 less the norm at w = 0, both without bias: nothing is divided by a gain.
    """
    zero = copy.deepcopy(norm).float().requires_grad_(False)
    for parameter in zero.parameters():
        parameter.zero_()
    one = copy.deepcopy(zero)
    one.weight.fill_(1.0)  # ty: ignore[not-callable]
    return lambda x: one.forward(x) - zero.forward(x)  # not called: a copy has the hooks of its original


def _holds(module: nn.Module, name: str, place: Tensor) -> bool:
    parameter = module._parameters.get(name)
    return parameter is not None and parameter.data_ptr() == place.data_ptr() and parameter.shape == place.shape


def is_linear(module: nn.Module) -> bool:
    """Whether a module multiplies its input by its weight."""
    return isinstance(module, nn.Linear) or hasattr(module, "nf")  # nf: transformers' Conv1D


def is_embedding(module: nn.Module) -> bool:
    """A plain table, or Gemma's, which scales what it looks up; OPT's positions are looked up shifted."""
    return type(module) is nn.Embedding or hasattr(module, "embed_scale")


def is_norm(module: nn.Module) -> bool:
    """Whether a module is a LayerNorm or RMSNorm with a gain, under any of transformers' names."""
    weight = module._parameters.get("weight")
    return weight is not None and weight.ndim == 1 and "norm" in type(module).__name__.lower()
