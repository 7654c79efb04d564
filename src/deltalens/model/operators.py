"""What an intervention does to an activation: small pure functions, and the table that names them.

h [rows, new, d] is the activation. v, unit v̂ and q broadcast against it; a [rows, 1, 1] is the strength of each row.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from deltalens.errors import BadInput

Activation = Float[Tensor, "rows new d"]
Vector = Float[Tensor, "#rows #new d"]
Strength = Float[Tensor, "#rows 1 1"]


def add(h: Activation, v: Vector, a: Strength) -> Activation:
    """h + a v."""
    return h + a * v


def add_keep_norm(h: Activation, v: Vector, a: Strength) -> Activation:
    """h + a v at the length of h: the direction changes, the size does not."""
    moved = h + a * v
    tiny = torch.finfo(h.dtype).tiny
    return moved * (h.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True).clamp(min=tiny))


def ablate(h: Activation, v: Vector, a: Strength) -> Activation:
    """h - a (h·v̂) v̂: at a = 1 nothing is left along v̂ on either side of 0 (arXiv 2406.11717)."""
    return h - a * (h * v).sum(-1, keepdim=True) * v


def clamp(h: Activation, v: Vector, c: Strength) -> Activation:
    """h + (c - h·v̂) v̂: the component along v̂ becomes c."""
    return h + (c - (h * v).sum(-1, keepdim=True)) * v


def ablate_subspace(h: Activation, q: Float[Tensor, "k d"], a: Strength) -> Activation:
    """(I - a QQᵀ) h with orthonormal rows of q."""
    return h - a * (h @ q.T @ q)


def replace(h: Activation, source: Vector, a: Strength) -> Activation:
    """The source itself, whatever the strength: patching."""
    return source.expand_as(h)


@dataclass(frozen=True, slots=True)
class Operator:
    """An operator as `intervene` uses it.

    Args:
        apply: The function.
        prepare: Brings the given tensor into the function's form, once.
    """

    apply: Callable[[Tensor, Tensor, Tensor], Tensor]
    prepare: Callable[[Tensor], Tensor]


def unit(v: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
    """Every vector at length 1.

    Raises:
        BadInput: A vector of length 0 has no direction.
    """
    norm = v.norm(dim=-1, keepdim=True)
    if not bool((norm > 0).all()):
        raise BadInput("a direction of length 0 cannot be normalised")
    return v / norm


def orthonormal(vectors: Float[Tensor, "k d"]) -> Float[Tensor, "rank d"]:
    """An orthonormal basis of the span of the rows; directions below 1e-6 of the largest are rounding, and left out.

    Raises:
        BadInput: The rows are all 0.
    """
    _, sigma, basis = torch.linalg.svd(vectors.double(), full_matrices=False)
    if not float(sigma[0]) > 0:
        raise BadInput("the subspace has no direction")
    return basis[sigma > 1e-6 * sigma[0]].to(vectors.dtype)


def _as_given(tensor: Tensor) -> Tensor:
    return tensor


OPERATORS = {
    "add": Operator(add, _as_given),
    "add_keep_norm": Operator(add_keep_norm, _as_given),
    "ablate": Operator(ablate, unit),
    "clamp": Operator(clamp, unit),
    "ablate_subspace": Operator(ablate_subspace, orthonormal),
    "replace": Operator(replace, _as_given),
}
