"""A site by its name, the point in a module tree where it stands, and the one kind of hook that reads and writes it."""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deltalens.errors import BadInput

Visit = Callable[[Float[Tensor, "rows new size"]], Float[Tensor, "rows new size"] | None]


NAMES = (
    "resid_pre",
    "attn_in",
    "q",
    "k",
    "v",
    "head_in",
    "attn_out",
    "resid_mid",
    "mlp_in",
    "mlp_act",
    "mlp_out",
    "resid_post",
    "logits",
)
HEADED = ("q", "k", "v", "head_in")


@dataclass(frozen=True, slots=True)
class Site:
    """A kind of activation in one layer.

    Args:
        name: One of `NAMES`.
        layer: Which block, from 0; None for `logits`.
        head: One attention head of `q` or `head_in`, one key-value head of `k` or `v`; None for the whole width.

    Raises:
        BadInput: No site has this name, or the name does not take such a layer or head.
    """

    name: str
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            close = difflib.get_close_matches(self.name, NAMES, n=1, cutoff=0.0)
            raise BadInput(f"no site is called {self.name}", f"{close[0]}; the sites are {', '.join(NAMES)}")
        if (self.layer is None) != (self.name == "logits"):
            raise BadInput(f"{self.name} {'has no' if self.name == 'logits' else 'needs a'} layer")
        if self.head is not None and self.name not in HEADED:
            raise BadInput(f"{self.name} has no heads", f"a head of {', '.join(HEADED)}")

    def __str__(self) -> str:
        layer = "" if self.layer is None else f" of layer {self.layer}"
        return self.name + layer + ("" if self.head is None else f", head {self.head}")


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """Where a site's activation stands.

    Args:
        path: The module's name in the model; empty for the model itself, whose output is its logits.
        side: Its first input or its first output.
        columns: Which entries of the last dimension belong to the site; None for all.
        carried_to: The block whose output the activation also reaches past this module. The stream after attention
            is read by a norm *and* added to the MLP's output: a change at the norm alone would be half a change.
    """

    path: str
    side: Literal["input", "output"]
    columns: Int[Tensor, "size"] | None = None
    carried_to: str | None = None


def attach(model: nn.Module, point: Point, visit: Visit, rows: Callable[[], int]) -> list[RemovableHandle]:
    """Calls `visit` with the activation whenever the module runs; what it returns, if anything, takes its place.

    Outputs may be a tensor, a tuple or transformers' ModelOutput. Nothing is written in place: a block's output can
    be a view, part of an autograd graph, or shared.

    Args:
        model: Holds the module.
        point: The place.
        visit: Gets [rows, new, size] and returns a tensor of that shape, or None to change nothing.
        rows: How many rows the pass has; some modules (OPT's MLP) see rows and positions as one dimension.

    Returns:
        What removes the hooks.
    """
    columns = point.columns
    moved: list[Tensor] = []  # the change on its way past the module to the block's output

    def changed(x: Tensor) -> Tensor | None:
        nonlocal columns
        moved.clear()  # a pass may have been cut short
        shaped = x if x.ndim == 3 else x.reshape(rows(), -1, x.shape[-1])
        if columns is not None and columns.device != x.device:
            columns = columns.to(x.device)
        new = visit(shaped if columns is None else shaped[..., columns])
        if new is None:
            return None
        if columns is not None:
            new = shaped.index_copy(-1, columns, new)
        if point.carried_to is not None:
            moved.append(new - shaped)
        return new.reshape(x.shape)

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        new = changed(args[0] if args else kwargs["hidden_states"])
        if new is None:
            return None
        return ((new, *args[1:]), kwargs) if args else (args, kwargs | {"hidden_states": new})

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        new = changed(first(output))
        return None if new is None else _with_first(output, new)

    def carry(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _with_first(output, first(output) + moved.pop()) if moved else None

    module = model.get_submodule(point.path)
    if point.side == "output":
        return [module.register_forward_hook(after)]
    handles = [module.register_forward_pre_hook(before, with_kwargs=True)]
    if point.carried_to is not None:
        # Ahead of every other hook there, so that a change of the block's output builds on this one.
        handles.append(model.get_submodule(point.carried_to).register_forward_hook(carry, prepend=True))
    return handles


def first(output: Any) -> Tensor:
    """The activation in a module's output, whatever it is wrapped in."""
    if isinstance(output, Tensor):
        return output
    return output.logits if hasattr(output, "logits") else output[0]


def _with_first(output: Any, new: Tensor) -> Any:
    """The same output with another activation."""
    if isinstance(output, Tensor):
        return new
    if hasattr(output, "logits"):
        return type(output)(**{**output, "logits": new})
    return (new, *output[1:])
