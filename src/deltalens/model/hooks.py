"""Changing a running model at its sites: one context manager, several interventions, a strength for every row.

    with intervene(model, [Intervention(Site("resid_post", 12), "add", v, strength=torch.tensor([0.0, 1.0, 2.0]))]):
        generate_ids(model, [prompt] * 3, ...)

Rows are the caller's: a sweep over strengths, or a set of control directions, is one batch.
"""

import contextlib
import difflib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from deltalens.errors import BadInput, Refused
from deltalens.model.operators import OPERATORS
from deltalens.model.points import attach
from deltalens.model.select import LAST, Selector, Track
from deltalens.model.sites import Site, Sites, sites_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True, eq=False)
class Intervention:
    """One change of one site.

    Args:
        site: Where.
        operator: A key of `operators.OPERATORS`.
        tensor: A vector [d], or one for each of the caller's rows [rows, d]. For `ablate_subspace` the vectors [k, d]
            that span it; for `replace` also activations [rows, columns, d] of the whole padded batch.
        strength: One number, or one for each of the caller's rows: α, the share that is ablated, or the value that
            `clamp` sets. `replace` has none.
        select: Which tokens.
    """

    site: Site
    operator: str
    tensor: Tensor
    strength: float | Float[Tensor, "rows"] = 1.0
    select: Selector = LAST


@dataclass(frozen=True, slots=True)
class Live:
    """What interventions have done so far."""

    counts: list[int]

    @property
    def fired(self) -> tuple[int, ...]:
        """Tokens that each intervention's selector has met, in the order of the interventions."""
        return tuple(self.counts)


@contextlib.contextmanager
def intervene(model: "PreTrainedModel", interventions: Sequence[Intervention]) -> Generator[Live, None, None]:
    """Applies interventions to every pass of the model within the block; afterwards the model is as it was.

    At one site they act in the order given, and those of an outer block before those of an inner one. A row of
    strength 0 is bitwise the row of the unchanged model. Arithmetic is in float32 at least and rounded once.

    Args:
        model: A causal language model.
        interventions: In order.

    Raises:
        BadInput: A site that the model lacks, an unknown operator, a tensor of another width or with NaN or Inf, or
            fewer strengths or vectors than rows.
        Refused: On leaving, an intervention that met no token; a site that did not pass its validation.
    """
    sites = sites_of(model)
    prepared = [_prepare(sites, item) for item in interventions]
    track, live = Track(), Live([0] * len(interventions))
    handles: list[RemovableHandle] = [model.register_forward_pre_hook(track.observe, with_kwargs=True)]
    try:
        for i, (item, tensor) in enumerate(zip(interventions, prepared, strict=True)):
            handles += _attach(model, sites, item, tensor, track, live, i)
        yield live
    finally:
        for handle in handles:
            handle.remove()
    for item, fired in zip(interventions, live.fired, strict=True):
        if not fired:
            raise Refused(f"{item.operator} at {item.site} met no token", "another selector, or run the model")


def _attach(
    model: "PreTrainedModel", sites: Sites, item: Intervention, tensor: Tensor, track: Track, live: Live, i: int
) -> list[RemovableHandle]:
    operator = OPERATORS[item.operator]
    strength = torch.as_tensor(item.strength, dtype=torch.float32)

    def visit(x: Float[Tensor, "rows new d"]) -> Float[Tensor, "rows new d"] | None:
        nonlocal tensor, strength
        chosen, count = track.chosen(item.select, x.shape[1])  # logits may be those of the last tokens only
        if not count:
            return None
        live.counts[i] += count
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        if tensor.device != x.device or tensor.dtype != wide.dtype:
            tensor, strength = tensor.to(wide), strength.to(wide)
        a = _of_rows(strength, track)[:, None, None] if strength.ndim else strength.view(1, 1, 1)
        new = operator.apply(wide, _at_tokens(tensor, item, track, x.shape[1]), a).to(x.dtype)
        return torch.where(chosen.to(x.device)[..., None], new, x)

    return attach(model, sites.point(item.site), visit, lambda: len(track.real))


def _of_rows(values: Tensor, track: Track) -> Tensor:
    """The values of the rows of this pass."""
    last = int(track.rows.max())
    if last >= len(values):
        raise BadInput(f"row {last} of the batch has none of the {len(values)} values", "one value for every row")
    return values[track.rows.to(values.device)]


def _at_tokens(tensor: Tensor, item: Intervention, track: Track, new: int) -> Tensor:
    """The intervention's tensor, broadcastable to the activation."""
    if tensor.ndim == 1:
        return tensor.view(1, 1, -1)
    if item.operator == "ablate_subspace":
        return tensor
    mine = _of_rows(tensor, track)
    if mine.ndim == 2:
        return mine[:, None]
    seen = track.real.shape[1]
    if seen > mine.shape[1]:
        raise BadInput(f"the batch has {seen} columns, its replacement {mine.shape[1]}", "activations of the same ids")
    return mine[:, seen - new : seen]


def _prepare(sites: Sites, item: Intervention) -> Tensor:
    """The tensor in the operator's form, everything about the intervention checked."""
    if item.operator not in OPERATORS:
        close = difflib.get_close_matches(item.operator, OPERATORS, n=1, cutoff=0.0)
        raise BadInput(
            f"no operator is called {item.operator}", f"{close[0]}; the operators are {', '.join(OPERATORS)}"
        )
    dimensions = {"ablate_subspace": (2,), "replace": (1, 2, 3)}.get(item.operator, (1, 2))
    size = sites.size(item.site)
    if item.tensor.ndim not in dimensions or item.tensor.shape[-1] != size:
        shape = "×".join(map(str, item.tensor.shape))
        raise BadInput(f"{item.site} has width {size}, the direction is {shape}", "a direction made at this site")
    if not bool(torch.isfinite(item.tensor).all()):
        raise BadInput(f"the direction for {item.site} has a NaN or Inf")
    if not bool(torch.isfinite(torch.as_tensor(item.strength)).all()):
        raise BadInput(f"the strength at {item.site} is not finite")
    return OPERATORS[item.operator].prepare(item.tensor.detach().float())
