"""What a matrix reads: second moments of its input, and how long a change of it is on that input."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float64

from deltalens.checkpoint.names import LINEAR
from deltalens.checkpoint.pair import Row
from deltalens.edit.form import Form
from deltalens.edit.select import kinds_of
from deltalens.errors import BadInput, Refused

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from deltalens.model.points import Site


@dataclass(frozen=True, slots=True, eq=False)
class Input:
    """Moments of what a matrix reads.

    Attributes:
        sigma: Σ = E[xxᵀ], uncentred: what a length on these inputs is taken in.
        mean: E[x].
    """

    sigma: Float64[np.ndarray, "n n"]
    mean: Float64[np.ndarray, " n"]

    @property
    def covariance(self) -> Float64[np.ndarray, "n n"]:
        """Cov(x) = Σ − E[x]E[x]ᵀ."""
        return self.sigma - np.outer(self.mean, self.mean)


def second_moments(
    model: "PreTrainedModel", rows: Iterable[Row], prompts: Sequence[Sequence[int]], batch_size: int = 64
) -> dict[str, Input]:
    """Σ and mean of what every matrix of the seven linear kinds reads, over all tokens of the prompts, by name.

    Matrices of one input share one `Input`. Left out are matrices whose input is no known site: embeddings, output
    heads, routers, experts, and sites that failed their validation.

    One pass per layer, stopped behind it, holds that layer's Σ on the model's device; all of them stay on the CPU, d²
    float64 for each input: 6 GB for d = 28 000. Ask for the matrices of an edit, not for all.

    Args:
        model: A causal language model in evaluation mode.
        rows: Tensors of the checkpoint that it was loaded from.
        prompts: Token ids.
        batch_size: Prompts at a time.
    """
    from deltalens.model.capture import capture_moments
    from deltalens.model.select import EVERYWHERE

    layers: dict[int | None, dict[str, Site]] = {}
    for row in rows:
        if (site := _input(model, row)) is not None:
            layers.setdefault(site.layer, {})[row.name.name] = site
    found = {}
    for wanted in layers.values():
        sites = list(dict.fromkeys(wanted.values()))
        moments = capture_moments(model, prompts, sites, EVERYWHERE, outer=True, batch_size=batch_size)
        read = {s: Input(m.outer[0].numpy(), m.mean[0].numpy()) for s, m in moments.items() if m.outer is not None}
        found |= {name: read[site] for name, site in wanted.items()}
    return found


def functional_norm(change: Form, sigma: Float64[np.ndarray, "n n"]) -> float:
    """‖CΣ^½‖_F, the root mean square length of Cx, as √tr(CΣCᵀ); of bare factors C = L·R as √tr(LᵀL·RΣRᵀ)."""
    if change.terms:
        square = sum(np.sum((block @ sigma) * block) for block in change.blocks())
    else:
        square = np.sum((change.left.T @ change.left) * (change.right @ sigma @ change.right.T))
    return float(np.sqrt(max(square, 0.0)))  # rounding leaves less than nothing where no input meets the change


def _input(model: "PreTrainedModel", row: Row) -> "Site | None":
    """The site that a matrix reads; None where that is not known."""
    from deltalens.model.sites import input_of, sites_of

    kind = kinds_of(row, {})[0]
    if kind not in LINEAR or row.name.layer is None or row.name.expert is not None or len(row.shape) != 2:
        return None
    site = input_of(kind, row.name.layer)
    try:
        sites_of(model).point(site)
    except (BadInput, Refused):
        return None
    return site
